"""Pairs of faces worth a person's look, drawn so that what is said of them says something of all pairs.

Pairs are sorted by the link that brings their two faces together: those inside a cluster by its links, the others by
the links that would join clusters next. Along this order pairs are cut into strata, narrow ones on both sides of the
threshold, where an answer moves it, and of each stratum about equally many are drawn, every pair of it alike: at even
distances along the order, from a random start. One link may bring millions of pairs together, which are all of one
person or none: even distances give every such link its share of the draw. A pair stands for as many as its stratum has
over those of it that were checked.
"""

import itertools
from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.dendrogram import dendrogram_of
from fcdeploy.clustering.evidence import Evidence

INSIDE = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # shares of the pairs in clusters, from the strongest link on
BEYOND = (1.0, 1.1, 1.4, 2.0, 4.0, 16.0)  # the same number beyond the threshold, in pairs in clusters


@dataclass(frozen=True)
class DrawnPairs:
    """Pairs to be checked: ids (m, 2) int32, faces; strength (m,) float32 of the link that brings them together.

    stratum: (m,) int64; pairs: (m,) int64, how many pairs the stratum has; together: (m,) bool, whether they are in
    one cluster.
    """

    ids: np.ndarray
    strength: np.ndarray
    stratum: np.ndarray
    pairs: np.ndarray
    together: np.ndarray


def draw_pairs(evidence: Evidence, count: int, seed: int = 0) -> DrawnPairs:
    """Draw up to ``count`` pairs of different faces, strata after strata; the same for the same seed.

    Fewer are drawn where there are fewer. Pairs beyond the last stratum, which only a threshold would bring together
    that makes clusters of many times as many pairs, are never drawn.
    """
    n = len(evidence.within)
    links = np.concatenate([evidence.links, evidence.beyond])
    strength = np.concatenate([evidence.strength, evidence.beyond_strength])
    tree = dendrogram_of(n, links, strength)
    cumulated = np.concatenate([[0], np.cumsum(tree.pairs)])
    inside = int(cumulated[len(evidence.links)])
    cuts = cuts_of(inside, int(cumulated[-1]))
    rng = np.random.default_rng(seed)
    none = np.empty(0, np.int64)
    parts: list[tuple[np.ndarray, ...]] = [
        (np.empty((0, 2), np.int32), np.empty(0, np.float32), none, none, np.empty(0, bool))
    ]
    left = count
    for stratum, (first, last) in enumerate(itertools.pairwise(cuts)):
        share = -(-left // (len(cuts) - 1 - stratum))
        size = last - first
        if size <= share:
            numbers = np.arange(first, last)
        else:
            numbers = first + ((np.arange(share) + rng.random()) * (size / max(1, share))).astype(np.int64)
        left -= len(numbers)
        at = np.searchsorted(cumulated, numbers, side="right") - 1
        inner = numbers - cumulated[at]
        wide = tree.end[at] - tree.middle[at]
        ids = np.stack(
            [tree.order[tree.begin[at] + inner // wide], tree.order[tree.middle[at] + inner % wide]], axis=1
        )
        parts.append(
            (ids, strength[at], np.full(len(numbers), stratum), np.full(len(numbers), size), numbers < inside)
        )
    return DrawnPairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def cuts_of(inside: int, total: int) -> list[int]:
    """Return where strata of pairs begin and end, ascending; ``inside`` of ``total`` pairs are in clusters."""
    if not inside:  # nothing but single faces: the strongest links beyond
        return sorted({0, *(min(total, 10**power) for power in range(1, 7))})
    cuts = {round(inside * share) for share in (*INSIDE, *BEYOND)}
    return sorted({min(cut, total) for cut in cuts})
