"""How good a clustering is: pairwise and BCubed precision, recall and F, NMI and ARI."""

import dataclasses
from typing import NotRequired, TypedDict

import numpy as np
from numpy.typing import ArrayLike

from fcdeploy.data.label_values import labels_from_values
from fcdeploy.data.labels import as_labels, check_known, renumber
from fcdeploy.errors import InputError, counted

UNKNOWNS = ("ignore", "singleton")


class Measured(TypedDict):
    """A ``PrecisionRecall`` in JSON."""

    precision: float
    recall: float
    f: float


class Measures(TypedDict):
    """An ``Evaluation`` in JSON; unknown: where there are such."""

    pairwise: Measured
    bcubed: Measured
    nmi: float
    ari: float
    faces: int
    clusters: int
    unknown: NotRequired[int]


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
    """A precision, a recall, and F, their harmonic mean (0 when both are 0)."""

    precision: float
    recall: float

    @property
    def f(self) -> float:
        total = self.precision + self.recall
        return 2 * self.precision * self.recall / total if total else 0.0

    def as_dict(self) -> Measured:
        return {"precision": self.precision, "recall": self.recall, "f": self.f}


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` found: every measure lies in [0, 1] (ARI in [-0.5, 1]) and none is ever NaN.

    faces: how many were compared.  clusters: how many were predicted of these, faces in no cluster not counted.
    unknown: faces that were left out because their identity is unknown.  pairs: how many pairs of faces were predicted
    to be one identity; with none, precision is 1 and says nothing.  largest: faces of the largest cluster predicted of
    those compared.
    """

    pairwise: PrecisionRecall
    bcubed: PrecisionRecall
    nmi: float
    ari: float
    faces: int
    clusters: int
    unknown: int = 0
    pairs: int = 0
    largest: int = 0

    def as_dict(self) -> Measures:
        """Give the measures as plain numbers, ready for JSON."""
        found: Measures = {
            "pairwise": self.pairwise.as_dict(),
            "bcubed": self.bcubed.as_dict(),
            "nmi": self.nmi,
            "ari": self.ari,
            "faces": self.faces,
            "clusters": self.clusters,
        }
        if self.unknown:
            found["unknown"] = self.unknown
        return found


def share_in_same_cluster(first: ArrayLike, second: ArrayLike) -> float:
    """Return the share of faces whose cluster is the same set of faces in both clusterings.

    first, second: (n,) integers, one a face in the same order; only the partitions matter, not the numbers. Faces
    labelled -1 are in no cluster: such a face agrees where it is in none in the other clustering, too. Of no faces
    the share is 1.
    """
    one, other = as_labels(first, "first"), as_labels(second, "second")
    if len(one) != len(other):
        raise InputError(f"the first clustering has {counted(len(one), 'face')}, the second {len(other):,}.")
    if not len(one):
        return 1.0
    alone = (one < 0) & (other < 0)
    _, place, together = np.unique(np.stack([one, other]), axis=1, return_inverse=True, return_counts=True)
    sizes = []
    for labels in (one, other):
        _, at, counts = np.unique(labels, return_inverse=True, return_counts=True)
        sizes.append(counts[at])
    same = (together[place.reshape(-1)] == sizes[0]) & (sizes[0] == sizes[1]) & (one >= 0) & (other >= 0)
    return float(np.mean(same | alone))


def evaluate(pred: ArrayLike, truth: ArrayLike, *, unknown: str = "ignore") -> Evaluation:
    """Measure how well predicted clusters agree with the true identities.

    pred, truth: (n,) integers, whole floats or names, one per face in the same order; only the partitions matter, not
    the numbers. In ``pred`` a face labelled -1 is in no cluster and counts as a cluster of one: it is paired with
    nobody, and two such faces are not paired with each other. In ``truth`` -1, NaN and None are unknown: with
    ``unknown`` "ignore" these faces are left out, of the clusters, too, and everything is measured on the others; with
    "singleton" each is an identity of its own.

    With c_ij the faces of identity i in cluster j, and a dot for a sum over that index:

    - pairwise: pairs together in both, sum c_ij^2 - n, over pairs together in the prediction, sum c_.j^2 - n
      (precision), or over pairs together in the truth, sum c_i.^2 - n (recall).
    - BCubed: precision is the mean over faces of c_ij / c_.j, recall that of c_ij / c_i. .
    - NMI: the mutual information over the arithmetic mean of the two entropies.
    - ARI: the adjusted Rand index of Hubert and Arabie.

    Where a denominator is zero: a prediction that pairs nobody makes no wrong pair, so its pairwise precision
    is 1; a truth that pairs nobody leaves no pair to miss, so pairwise recall is 1 (scikit-learn treats
    homogeneity and completeness so; its ``precision_score``, and the NSR-FC evaluator, would say 0, and
    learn-to-cluster NaN). F is 0 when precision and recall are. One cluster on both sides, like any two equal
    partitions, gives NMI 1 and ARI 1, as in scikit-learn; one cluster on one side only gives NMI 0 and ARI 0.

    Counts are exact integers for any n below 3e9. Equal partitions give exactly 1 everywhere.
    Raises InputError when the two are not labels of one length, are empty, or all identities are unknown and ignored.
    """
    check_unknown(unknown)
    return _evaluate(labels_from_values(pred, "pred"), labels_from_values(truth, "truth"), unknown)


def _evaluate(pred: np.ndarray, truth: np.ndarray, unknown: str) -> Evaluation:
    n = len(pred)
    if n != len(truth):
        raise InputError(
            f"pred has {counted(n, 'label')} and truth has {len(truth):,}; give the labels of the same faces."
        )
    if not n:
        raise InputError("there are no labels to compare; give one label per face.")
    check_known(truth, "truth", unknown)
    left_out = int(np.count_nonzero(truth == -1)) if unknown == "ignore" else 0
    if left_out:
        pred, truth = pred[truth != -1], truth[truth != -1]
        n = len(pred)

    pred, truth = renumber(pred), renumber(truth)
    clusters = int(pred.max()) + 1
    pred, truth = _singled_out(pred), _singled_out(truth)
    in_pred, in_truth = np.bincount(pred), np.bincount(truth)  # c_.j, c_i.
    cells, both = np.unique(truth * len(in_pred) + pred, return_counts=True)  # the c_ij that are not 0, (m,)
    of_pred, of_truth = in_pred[cells % len(in_pred)], in_truth[cells // len(in_pred)]  # (m,)

    together, pred_pairs, truth_pairs = (_ordered_pairs(sizes, n) for sizes in (both, in_pred, in_truth))
    return Evaluation(
        pairwise=PrecisionRecall(
            together / pred_pairs if pred_pairs else 1.0,
            together / truth_pairs if truth_pairs else 1.0,
        ),
        bcubed=PrecisionRecall(
            float(np.sum(both * (both / of_pred)) / n),
            float(np.sum(both * (both / of_truth)) / n),
        ),
        nmi=_nmi(both, both * n / (of_pred * of_truth), in_pred, in_truth, n),
        ari=_ari(together, pred_pairs, truth_pairs, n),
        faces=n,
        clusters=clusters,
        unknown=left_out,
        pairs=pred_pairs // 2,
        largest=int(in_pred.max()),
    )


def check_unknown(unknown: str) -> None:
    """Raise InputError unless ``unknown`` says what becomes of faces of unknown identity."""
    if unknown not in UNKNOWNS:
        raise InputError(f"--unknown {unknown}: is neither {' nor '.join(UNKNOWNS)}.")


def _singled_out(labels: np.ndarray) -> np.ndarray:
    """Give each face labelled -1 a cluster of its own, clusters again numbered by first appearance."""
    alone = np.flatnonzero(labels == -1)
    if not alone.size:
        return labels
    labels = labels.copy()
    labels[alone] = labels.max() + 1 + np.arange(len(alone))
    return renumber(labels)


def _ordered_pairs(sizes: np.ndarray, n: int) -> int:
    """Count the ordered pairs of two different faces in one group: sum of the squared sizes - n."""
    return int(np.sum(sizes.astype(np.int64) ** 2)) - n


def _nmi(both: np.ndarray, lift: np.ndarray, in_pred: np.ndarray, in_truth: np.ndarray, n: int) -> float:
    """Normalise the mutual information of a contingency table by the mean entropy of its sides.

    both: (m,) the cells c_ij that are not 0.  lift: (m,) n c_ij / (c_i. c_.j).
    """
    if len(in_pred) == len(in_truth) == 1:
        return 1.0
    information = float(np.sum(both / n * np.log(lift)))
    entropies = float(np.sum(in_pred / n * np.log(n / in_pred)) + np.sum(in_truth / n * np.log(n / in_truth)))
    return min(max(2 * information / entropies, 0.0), 1.0)


def _ari(together: int, pred_pairs: int, truth_pairs: int, n: int) -> float:
    """Adjust the Rand index for chance, in exact integers: the products pass 2^63."""
    only_pred, only_truth = pred_pairs - together, truth_pairs - together
    apart = n * (n - 1) - together - only_pred - only_truth
    if only_pred == only_truth == 0:
        return 1.0
    return (
        2
        * (together * apart - only_pred * only_truth)
        / (truth_pairs * (only_truth + apart) + pred_pairs * (only_pred + apart))
    )
