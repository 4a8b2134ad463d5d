"""Re-ranking of kNN lists by the overlap of their k-reciprocal sets (PSE-GCN, after Zhong et al., CVPR 2017).

Write N_m(i) for the first m neighbors of face i, and half = k // 2:

    R_m(i)     = { j in N_m(i) : i in N_m(j) }
    R*(i)      = R_k(i), joined with R_half(j) for every j in R_k(i) with |R_half(j) ∩ R_k(i)| >= 2/3 |R_half(j)|
    candidates = N_k(i) ∪ { N_10(j) : j in N_k(i) }
    similarity = |R*(i) ∩ R*(j)| / |R*(i) ∪ R*(j)|

and keep the k candidates of highest similarity. The published code leaves ties in the order of a CPython set;
here they go to members of N_k(i) first and then to the others, each by cosine similarity and then by id. With
exact kNN lists, whose members are nearer than all others, this is "by cosine similarity, then by id".

Three passes over blocks of faces, so that what lies between them may be a memory map.
"""

import numpy as np
from numba import njit, prange

from fcdeploy.graph.hashing import FREE, find_slot, new_table

CANDIDATE_REACH = 10  # the 10 of N_10, whatever k is (re-ranking.py of Stalker-DAs/PSE-GCN)
IN_HALF, IN_FULL = 2, 1  # marks of a mutual neighbor: in R_half (and so in R_k), or in R_k alone


def rerank(ids: np.ndarray, sims: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Re-rank whole kNN lists in memory; see the module for the definition.

    ids: (n, k) int32, no face twice in a row. sims: (n, k) float32 cosine similarities. vectors: (n, d) float32
    unit rows, read only to order ties. Returns ids (n, k) int32 and similarities (n, k) float64, downwards.
    """
    n = len(ids)
    mutual = mark_mutual(ids, 0, n)
    offsets, members = expand_reciprocal(ids, mutual, 0, n)
    return rank_candidates(ids, sims, vectors, offsets, members, 0, n)


@njit(cache=True, nogil=True, parallel=True)
def mark_mutual(ids: np.ndarray, start: int, stop: int) -> np.ndarray:
    """Mark for faces start..stop-1 which of their neighbors have them as a neighbor, too.

    ids: (n, k) int32. Returns (stop - start, k) uint8: IN_HALF, IN_FULL or 0.
    """
    k = ids.shape[1]
    half = k // 2
    marks = np.zeros((stop - start, k), dtype=np.uint8)
    for row in prange(stop - start):
        i = start + row
        for p in range(k):
            theirs = ids[ids[i, p]]
            # Whole loops without a break: the compiler turns them into vector comparisons.
            near = False
            for q in range(half):
                near |= theirs[q] == i
            far = False
            for q in range(half, k):
                far |= theirs[q] == i
            if near and p < half:
                marks[row, p] = IN_HALF
            elif near or far:
                marks[row, p] = IN_FULL
    return marks


@njit(cache=True, nogil=True, parallel=True)
def expand_reciprocal(
    ids: np.ndarray, mutual: np.ndarray, start: int, stop: int
) -> tuple[np.ndarray, np.ndarray]:
    """Build R* of faces start..stop-1.

    ids: (n, k) int32; mutual: (n, k) uint8 as ``mark_mutual`` gives it for all faces. Returns offsets
    (stop - start + 1,) int64, from 0, and members int32, R_k(i) first.
    """
    k = ids.shape[1]
    half = k // 2
    sizes = np.zeros(stop - start + 1, dtype=np.int64)
    wide = np.empty((stop - start, k * (half + 1)), dtype=np.int32)
    for row in prange(stop - start):
        sizes[row + 1] = _expand_one(ids, mutual, start + row, wide[row])
    offsets = np.cumsum(sizes)
    members = np.empty(offsets[-1], dtype=np.int32)
    for row in prange(stop - start):
        members[offsets[row] : offsets[row + 1]] = wide[row, : sizes[row + 1]]
    return offsets, members


@njit(cache=True, nogil=True)
def _expand_one(ids: np.ndarray, mutual: np.ndarray, i: int, out: np.ndarray) -> int:
    k = ids.shape[1]
    half = k // 2
    reciprocal = new_table(k)  # R_k(i), against which every neighbor is tested
    count = 0
    for p in range(k):
        if mutual[i, p]:
            reciprocal[find_slot(reciprocal, ids[i, p])] = ids[i, p]
            out[count] = ids[i, p]
            count += 1
    own = count
    added = new_table(k)
    load = 0
    for r in range(own):
        j = out[r]
        total = 0
        shared = 0
        for q in range(half):
            if mutual[j, q] == IN_HALF:
                total += 1
                shared += reciprocal[find_slot(reciprocal, ids[j, q])] != FREE
        if 3 * shared < 2 * total:
            continue
        for q in range(half):
            face = ids[j, q]
            if mutual[j, q] != IN_HALF or reciprocal[find_slot(reciprocal, face)] != FREE:
                continue
            slot = find_slot(added, face)
            if added[slot] == FREE:
                added[slot] = face
                out[count] = face
                count += 1
                load += 1
                if 2 * load > added.shape[0]:
                    added = new_table(2 * load)
                    for s in range(own, count):
                        added[find_slot(added, out[s])] = out[s]
    return count


@njit(cache=True, nogil=True)
def _cosine(vectors: np.ndarray, i: int, j: int) -> np.float32:
    total = np.float32(0)
    for c in range(vectors.shape[1]):
        total += vectors[i, c] * vectors[j, c]
    return total


@njit(cache=True, nogil=True, parallel=True)
def rank_candidates(
    ids: np.ndarray,
    sims: np.ndarray,
    vectors: np.ndarray,
    offsets: np.ndarray,
    members: np.ndarray,
    start: int,
    stop: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar candidates of faces start..stop-1 by the overlap of their R* sets.

    ids, sims, vectors: as in ``rerank``. offsets (n + 1,) int64, members int32: R*(i) of every face i is
    members[offsets[i] : offsets[i + 1]]. Returns ids (stop - start, k) int32 and similarities
    (stop - start, k) float64, downwards.
    """
    k = ids.shape[1]
    ranked = np.empty((stop - start, k), dtype=np.int32)
    ranked_sims = np.empty((stop - start, k), dtype=np.float64)
    for row in prange(stop - start):
        _rank_one(ids, sims, vectors, offsets, members, start + row, ranked[row], ranked_sims[row])
    return ranked, ranked_sims


@njit(cache=True, nogil=True)
def _rank_one(
    ids: np.ndarray,
    sims: np.ndarray,
    vectors: np.ndarray,
    offsets: np.ndarray,
    members: np.ndarray,
    i: int,
    out_ids: np.ndarray,
    out_sims: np.ndarray,
) -> None:
    k = ids.shape[1]
    reach = min(CANDIDATE_REACH, k)

    own = members[offsets[i] : offsets[i + 1]]
    own_table = new_table(len(own))
    for face in own:
        own_table[find_slot(own_table, face)] = face

    # Candidates: the k neighbors, then the others that their first neighbors bring.
    candidates = np.empty(k * (reach + 1), dtype=np.int32)
    candidates[:k] = ids[i]
    count = k
    seen = new_table(k * (reach + 1))
    for p in range(k):
        seen[find_slot(seen, ids[i, p])] = ids[i, p]
    for p in range(k):
        j = ids[i, p]
        for q in range(reach):
            slot = find_slot(seen, ids[j, q])
            if seen[slot] == FREE:
                seen[slot] = ids[j, q]
                candidates[count] = ids[j, q]
                count += 1

    overlap = np.empty(count, dtype=np.float64)
    for c in range(count):
        j = candidates[c]
        shared = 0
        for s in range(offsets[j], offsets[j + 1]):
            shared += own_table[find_slot(own_table, members[s])] != FREE
        union = len(own) + offsets[j + 1] - offsets[j] - shared
        overlap[c] = shared / union if union > 0 else 0.0

    # Stable, so that a run of equal overlaps starts with the members of N_k(i).
    order = np.argsort(-overlap, kind="mergesort")
    cosine = np.empty(count, dtype=np.float32)
    cosine[:k] = sims[i]
    first = 0
    while first < k:
        last = first + 1
        while last < count and overlap[order[last]] == overlap[order[first]]:
            last += 1
        near = first  # where the run's members of N_k(i) end
        while near < last and order[near] < k:
            near += 1
        _sort_tied(order, first, near, cosine, candidates)
        if near < min(last, k):
            for t in range(near, last):
                cosine[order[t]] = _cosine(vectors, i, candidates[order[t]])
            _sort_tied(order, near, last, cosine, candidates)
        first = last

    for p in range(k):
        out_ids[p] = candidates[order[p]]
        out_sims[p] = overlap[order[p]]


@njit(cache=True, nogil=True)
def _sort_tied(order: np.ndarray, first: int, last: int, cosine: np.ndarray, faces: np.ndarray) -> None:
    """Sort order[first:last] in place by cosine downwards, then by face id (insertion: runs are short)."""
    for t in range(first + 1, last):
        moving = order[t]
        s = t - 1
        while s >= first and (
            cosine[order[s]] < cosine[moving]
            or (cosine[order[s]] == cosine[moving] and faces[order[s]] > faces[moving])
        ):
            order[s + 1] = order[s]
            s -= 1
        order[s + 1] = moving
