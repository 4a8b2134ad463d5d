"""Clusters judged by pairs that a person has checked: an estimate of pairwise F, and how sure it is."""

from dataclasses import dataclass, field

import numpy as np

from fcdeploy.clustering.metrics import Evaluation, PrecisionRecall
from fcdeploy.data.checked_pairs import CheckedPairs
from fcdeploy.errors import InputError

STRATUM, PAIRS = (
    "stratum",
    "stratum_pairs",
)  # columns of `fcdeploy pairs`: which one, and how many pairs it has
DRAWS, SEED, LEVEL = 1000, 0, 0.95  # of the bootstrap
NOT_MEASURED = PrecisionRecall(float("nan"), float("nan"))


@dataclass
class PairJudge:
    """Estimates pairwise precision, recall and F of labels from checked pairs; remembers what it was asked about.

    ids: (m, 2) int32, same: (m,) bool; weight: (m,) float64, how many pairs each stands for; stratum: (m,) int64.
    weighted: whether weights are known, by which pairs stand for all; otherwise they stand for themselves, and so do
    the figures. seen: of the labels judged so far, which pairs they put together, (m,) bool each, and how many pairs of
    faces in all.
    """

    ids: np.ndarray
    same: np.ndarray
    weight: np.ndarray
    stratum: np.ndarray
    weighted: bool
    seen: list[tuple[np.ndarray, float]] = field(default_factory=list)

    def __call__(self, labels: np.ndarray) -> Evaluation:
        """Estimate how good labels (n,) int64 are; only the pairwise measures mean anything."""
        own, other = (labels[self.ids[:, side]] for side in (0, 1))
        together = (own == other) & (own >= 0)
        sizes = np.bincount(labels[labels >= 0], minlength=1).astype(np.float64)
        joined = float((sizes * (sizes - 1)).sum() / 2) if self.weighted else float(together.sum())
        self.seen.append((together, joined))
        right, true = self.weight[together & self.same].sum(), self.weight[self.same].sum()
        pairwise = PrecisionRecall(min(1.0, right / joined) if joined else 1.0, right / true if true else 1.0)
        clusters = len(np.unique(labels[labels >= 0]))
        nan = float("nan")
        return Evaluation(pairwise, NOT_MEASURED, nan, nan, len(labels), clusters, pairs=int(joined))

    def drawn_f(self) -> np.ndarray:
        """Return F of all labels judged so far for pairs drawn anew, each from its stratum: (DRAWS, labels)."""
        rng = np.random.default_rng(SEED)
        counts = np.zeros((DRAWS, len(self.ids)))
        for stratum in np.unique(self.stratum):
            of = np.flatnonzero(self.stratum == stratum)
            counts[:, of] = rng.multinomial(len(of), np.full(len(of), 1 / len(of)), DRAWS)
        weights = counts * (self.weight * self.same)
        together = np.array([together for together, _ in self.seen], np.float64)  # (labels, m)
        right, true = weights @ together.T, weights.sum(axis=1, keepdims=True)
        if self.weighted:
            joined = np.array([joined for _, joined in self.seen])[None]
        else:
            joined = counts @ together.T
        return 2 * right / np.maximum(joined + true, 1e-300)


def judge_of(pairs: CheckedPairs) -> PairJudge:
    """Return what judges by these pairs; raises InputError where they cannot tell good clusters from bad ones."""
    stratum, sizes = (pairs.numbers.get(name, np.full(len(pairs.ids), np.nan)) for name in (STRATUM, PAIRS))
    weighted = bool((np.isfinite(stratum) & (sizes > 0) & np.isfinite(sizes)).all())
    for answer, word in ((pairs.same, "same"), (~pairs.same, "different")):
        if not answer.any():
            raise InputError(
                f"{pairs.name}: of {len(pairs.same):,} checked pairs none is {word}; give some of both, as "
                "`fcdeploy pairs` draws them."
            )
    if not weighted:
        one = np.zeros(len(pairs.ids), np.int64)
        return PairJudge(pairs.ids, pairs.same, np.ones(len(pairs.ids)), one, weighted)
    _, group, answered = np.unique(stratum, return_inverse=True, return_counts=True)
    return PairJudge(pairs.ids, pairs.same, sizes / answered[group], group, weighted)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return between which two LEVEL of some values (m,) lie."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return float(low), float(high)
