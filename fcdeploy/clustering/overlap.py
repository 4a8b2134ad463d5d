"""Clusters from ranked proposals that overlap: the better one of two that are nearly the same, each face once.

Proposals are sets of faces as offset arrays: proposal p holds ``nodes[offsets[p]:offsets[p + 1]]``, no face twice.
learn-to-cluster's ``nms`` compares every pair of proposals. Here a proposal is compared with the kept ones that share
one of its rarest faces with it, found by an index from faces to kept proposals. That leaves nothing out: two proposals
whose IoU is above the limit share so many faces that the rarest of these is among the rarest of both. Most of the
others are told by 64 bits: every face of a proposal sets one, and a bit that is set for one proposal only is a face
that the other does not hold.
"""

import numpy as np

from fcdeploy.graph.kernels import njit, prange

UNCOVERED = -1


def rank_proposals(scores: np.ndarray, min_score: float) -> np.ndarray:
    """Return the proposals (r,) int64 whose score is at least ``min_score``, best first, equal ones as they come.

    scores: (p,) float, compared in float64.
    """
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    return order[scores[order].astype(np.float64) >= min_score]


def suppress(n: int, offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray, max_iou: float) -> np.ndarray:
    """Tell which proposals stay when each that is nearly a better one is dropped.

    order: (r,) int64 from ``rank_proposals``; proposals without a face may be among them, and stay. One is dropped when
    the intersection over union (float64) with a better one that stays is above ``max_iou``, 0 or more; at 1 and more
    none is. Returns (r,) bool, in the order of ``order``.
    """
    if max_iou >= 1:
        return np.ones(len(order), dtype=bool)
    return _suppress(n, offsets, nodes, order, max_iou)


@njit(cache=True, nogil=True)
def _least_shared(size: int, max_iou: float) -> int:
    """Return how many faces a proposal shares with another at least when their IoU is above ``max_iou``.

    The union holds the proposal, so that shared / size is at least the IoU, in floating point, too.
    """
    least = max(1, int(max_iou * size))
    while least / size <= max_iou:
        least += 1
    while least > 1 and (least - 1) / size > max_iou:
        least -= 1
    return least


@njit(cache=True, nogil=True)
def _signature(faces: np.ndarray) -> np.uint64:
    """Return 64 bits, of which every face sets one."""
    bits = np.uint64(0)
    for face in faces:
        place = np.uint64(np.uint64(face) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(58)
        bits |= np.uint64(1) << place
    return bits


@njit(cache=True, nogil=True)
def _count_bits(bits: np.uint64) -> np.int64:
    bits = bits - ((bits >> np.uint64(1)) & np.uint64(0x5555555555555555))
    bits = (bits & np.uint64(0x3333333333333333)) + ((bits >> np.uint64(2)) & np.uint64(0x3333333333333333))
    bits = (bits + (bits >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((bits * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def _rarest_first(n: int, offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Return nodes with faces numbered by rarity, those of every proposal in ``order`` ascending."""
    counts = np.zeros(n, dtype=np.int32)
    for p in order:
        for t in range(offsets[p], offsets[p + 1]):
            counts[nodes[t]] += 1
    number = np.empty(n, dtype=np.int32)
    number[np.argsort(counts, kind="mergesort")] = np.arange(n, dtype=np.int32)
    numbered = number[nodes]
    for p in order:
        numbered[offsets[p] : offsets[p + 1]].sort()
    return numbered


@njit(cache=True, nogil=True)
def _suppress(
    n: int, offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray, max_iou: float
) -> np.ndarray:
    nodes = _rarest_first(n, offsets, nodes, order)
    sizes, least = np.zeros(len(order), dtype=np.int32), np.zeros(len(order), dtype=np.int32)
    starts = np.zeros(n + 1, dtype=np.int64)  # of each face's room for the proposals that it finds
    for rank in range(len(order)):
        begin, end = offsets[order[rank]], offsets[order[rank] + 1]
        sizes[rank] = end - begin
        if end > begin:
            least[rank] = _least_shared(end - begin, max_iou)
            for t in range(begin, end - least[rank] + 1):
                starts[nodes[t] + 1] += 1
    starts = np.cumsum(starts)
    ends = starts[:-1].copy()
    holders = np.empty(starts[-1], dtype=np.int32)
    signatures = np.empty(starts[-1], dtype=np.uint64)
    kept = np.ones(len(order), dtype=np.bool_)
    compared = np.full(len(order), -1, dtype=np.int32)  # by rank: the last proposal that it was compared with
    held = np.zeros(n, dtype=np.uint8)  # by the proposal in question
    for rank in range(len(order)):
        begin, end = offsets[order[rank]], offsets[order[rank] + 1]
        if begin == end:
            continue
        size, needed = end - begin, least[rank]
        first = end - needed + 1
        own = _signature(nodes[begin:end])
        held[nodes[begin:end]] = 1
        for t in range(begin, first):
            for at in range(starts[nodes[t]], ends[nodes[t]]):
                most = size - _count_bits(own & ~signatures[at])  # faces that the two may share
                if most < needed:
                    continue
                other = holders[at]
                both = size + sizes[other]
                if compared[other] == rank or most < least[other] or most / (both - most) <= max_iou:
                    continue
                compared[other] = rank
                shared = 0
                for face in nodes[offsets[order[other]] : offsets[order[other] + 1]]:
                    shared += held[face]
                if shared / (both - shared) > max_iou:
                    kept[rank] = False
                    break
            if not kept[rank]:
                break
        held[nodes[begin:end]] = 0
        if kept[rank]:
            for t in range(begin, first):
                holders[ends[nodes[t]]] = rank
                signatures[ends[nodes[t]]] = own
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


@njit(cache=True, nogil=True, parallel=True)
def lengths_of(vectors: np.ndarray) -> np.ndarray:
    """Return the 2-norm of each row of (n, d) float32, (n,) float64."""
    lengths = np.empty(len(vectors), dtype=np.float64)
    for face in prange(len(vectors)):
        total = 0.0
        for value in vectors[face]:
            total += np.float64(value) * np.float64(value)
        lengths[face] = np.sqrt(total)
    return lengths


@njit(cache=True, nogil=True)
def _cohesion(faces: np.ndarray, vectors: np.ndarray, lengths: np.ndarray, sums: np.ndarray) -> float:
    """Return the mean cosine similarity between two of some faces, 1 of a single one; sums (d,) float64 is scratch.

    The squared length of the sum of unit vectors holds every pair twice, and each face with itself.
    """
    if len(faces) < 2:
        return 1.0
    sums[:] = 0.0
    for face in faces:
        for at in range(len(sums)):
            sums[at] += vectors[face, at] / lengths[face]
    total = 0.0
    for at in range(len(sums)):
        total += sums[at] * sums[at]
    return (total - len(faces)) / (float(len(faces)) * (len(faces) - 1))


@njit(cache=True, nogil=True, parallel=True)
def cohesion_of(
    offsets: np.ndarray, nodes: np.ndarray, order: np.ndarray, vectors: np.ndarray, lengths: np.ndarray
) -> np.ndarray:
    """Return how alike the faces of each proposal in ``order`` (r,) are, (r,) float64: the mean cosine of its pairs.

    A proposal of one face or none has 1. vectors: (n, d) float32; lengths: their 2-norms.
    """
    found = np.ones(len(order), dtype=np.float64)
    for rank in prange(len(order)):
        sums = np.empty(vectors.shape[1], dtype=np.float64)
        found[rank] = _cohesion(
            nodes[offsets[order[rank]] : offsets[order[rank] + 1]], vectors, lengths, sums
        )
    return found


@njit(cache=True, nogil=True)
def first_cohesive_holders(
    n: int,
    offsets: np.ndarray,
    nodes: np.ndarray,
    order: np.ndarray,
    vectors: np.ndarray,
    lengths: np.ndarray,
    min_cohesion: float,
) -> np.ndarray:
    """Return the proposal that each face belongs to, as ``first_holders``, but none gets faces that are not alike.

    What better ones have left of a proposal has to have a mean cosine similarity of at least ``min_cohesion``;
    otherwise its faces stay free for those behind it. vectors: (n, d) float32; lengths: their 2-norms.
    """
    holder = np.full(n, UNCOVERED, dtype=np.int64)
    sums = np.empty(vectors.shape[1], dtype=np.float64)
    free = np.empty(n, dtype=np.int64)
    for p in order:
        count = 0
        for t in range(offsets[p], offsets[p + 1]):
            if holder[nodes[t]] == UNCOVERED:
                free[count] = nodes[t]
                count += 1
        if _cohesion(free[:count], vectors, lengths, sums) >= min_cohesion:
            holder[free[:count]] = p
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
