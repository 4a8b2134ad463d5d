"""Clusters from ranked proposals that overlap: the better one of two that are nearly the same, each face once.

Proposals are sets of faces as offset arrays: proposal p holds ``nodes[offsets[p]:offsets[p + 1]]``, no face twice.
Non-maximum suppression compares a proposal only with the kept ones that share a face with it: an index from every
face to the kept proposals that hold it gives their intersections as counts. learn-to-cluster's ``nms`` compares every
pair of proposals, to the same end.
"""

import numpy as np
from numba import njit

UNCOVERED = -1


def rank_proposals(scores: np.ndarray, min_score: float) -> np.ndarray:
    """Return the proposals (r,) int64 whose score is at least ``min_score``, best first, equal ones as they come.

    scores: (p,) float, compared in float64.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    return order[scores[order].astype(np.float64) >= min_score]


def suppress(n: int, offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray, max_iou: float) -> np.ndarray:
    """Tell which proposals stay when each that is nearly a better one is dropped.

    order: (r,) int64 from ``rank_proposals``, proposals without a face among them or not. One is dropped when the
    intersection over union (float64) with a better one that stays is above ``max_iou``; at 1 and more none is. Returns
    (r,) bool, in the order of ``order``.
    """
    if max_iou >= 1:
        return np.ones(len(order), dtype=bool)
    return _suppress(n, offsets, nodes, order, max_iou)


@njit(cache=True, nogil=True)
def _suppress(
    n: int, offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray, max_iou: float
) -> np.ndarray:
    starts = np.zeros(n + 1, dtype=np.int64)  # room for all that may come to hold a face
    for p in order:
        for t in range(offsets[p], offsets[p + 1]):
            starts[nodes[t] + 1] += 1
    starts = np.cumsum(starts)
    ends = starts[:-1].copy()
    holders = np.empty(starts[-1], dtype=np.int32)
    kept = np.ones(len(order), dtype=np.bool_)
    common = np.zeros(len(order), dtype=np.int32)  # by rank: faces shared with the proposal in question
    sharing = np.empty(len(order), dtype=np.int32)
    for rank in range(len(order)):
        begin, end = offsets[order[rank]], offsets[order[rank] + 1]
        found = 0
        for t in range(begin, end):
            for at in range(starts[nodes[t]], ends[nodes[t]]):
                other = holders[at]
                if common[other] == 0:
                    sharing[found] = other
                    found += 1
                common[other] += 1
        for at in range(found):
            other = sharing[at]
            size = offsets[order[other] + 1] - offsets[order[other]]
            union = size + (end - begin) - common[other]
            if common[other] / union > max_iou:
                kept[rank] = False
            common[other] = 0
        if kept[rank]:
            for t in range(begin, end):
                holders[ends[nodes[t]]] = rank
                ends[nodes[t]] += 1
    return kept


@njit(cache=True, nogil=True)
def first_holders(n: int, offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return the proposal that each face belongs to, (n,) int64: the first in ``order`` (r,) that holds it.

    UNCOVERED for a face that none of them holds.
    """
    holder = np.full(n, UNCOVERED, dtype=np.int64)
    for p in order:
        for t in range(offsets[p], offsets[p + 1]):
            if holder[nodes[t]] == UNCOVERED:
                holder[nodes[t]] = p
    return holder


@njit(cache=True, nogil=True)
def select_members(
    offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Keep of each proposal in ``order`` (r,) the faces that are chosen.

    chosen: (t,) bool, one a face of a proposal, as ``nodes``. Returns offsets (r + 1,) int64 and nodes int32 in the
    order of ``order``; a proposal may be left without a face.
    """
    kept = np.zeros(len(order) + 1, dtype=np.int64)
    for rank in range(len(order)):
        for t in range(offsets[order[rank]], offsets[order[rank] + 1]):
            kept[rank + 1] += chosen[t]
    kept = np.cumsum(kept)
    members = np.empty(kept[-1], dtype=np.int32)
    filled = 0
    for p in order:
        for t in range(offsets[p], offsets[p + 1]):
            if chosen[t]:
                members[filled] = nodes[t]
                filled += 1
    return kept, members
