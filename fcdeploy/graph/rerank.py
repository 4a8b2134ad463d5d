"""Re-ranking of kNN lists by the overlap of their k-reciprocal sets (PSE-GCN, after Zhong et al., CVPR 2017).

Write N_m(i) for the first m neighbors of face i, and half = k // 2:

    R_m(i)     = { j in N_m(i) : i in N_m(j) }
    R*(i)      = R_k(i), joined with R_half(j) for every j in R_k(i) with |R_half(j) ∩ R_k(i)| >= 2/3 |R_half(j)|
    candidates = N_k(i) ∪ { N_10(j) : j in N_k(i) }
    similarity = |R*(i) ∩ R*(j)| / |R*(i) ∪ R*(j)|

and keep the k candidates of highest similarity. The published code leaves ties in the order of a CPython set;
here they go to members of N_k(i) first and then to the others, each by cosine similarity and then by id. With
exact kNN lists, whose members are nearer than all others, this is "by cosine similarity, then by id".

Four passes over blocks of faces in any order, so that what lies between them may be a memory map. |R*(i) ∩ R*(j)| is
how many members of R*(i) have j among their holders, the faces in whose R* they are: a face adds up the holders of its
members instead of looking into the sets of all its candidates, most of which share nothing with its own. Faces may
be numbered by their place in an order that keeps neighbors together: what a face looks up is then in the cache.
``names`` gives back the face of each place, for ties and for the rows of its vector.
"""

import numba
import numpy as np

from fcdeploy.graph.inner_products import inner_product
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.marks import new_scratch

CANDIDATE_REACH = 10  # the 10 of N_10, whatever k is (re-ranking.py of Stalker-DAs/PSE-GCN)
IN_HALF, IN_FULL = 2, 1  # marks of a mutual neighbor: in R_half (and so in R_k), or in R_k alone
Ragged = tuple[np.ndarray, np.ndarray, np.ndarray]  # starts (n,) int64, counts (n,) int32, members int32
RECIPROCAL, ADDED = 1, 2  # marks of a face while a set R* grows: in R_k(i), or joined later


def sets_and_holders(ids: np.ndarray) -> tuple[Ragged, Ragged]:
    """Return R* of all faces of lists (n, k) int32, and in whose R* each is; in memory."""
    faces = np.arange(len(ids), dtype=np.int32)
    counts, members = expand_reciprocal(ids, mark_mutual(ids, faces), faces, new_scratch(len(ids)))
    sets = np.cumsum(counts, dtype=np.int64) - counts, counts, members
    times, held_by = holders_of(*sets, faces)
    return sets, (np.cumsum(times, dtype=np.int64) - times, times, held_by)


def largest_set(k: int) -> int:
    """Return how many faces R* can hold at most."""
    return k * (k // 2 + 1)


@njit(cache=True, nogil=True, parallel=True)
def mark_mutual(ids: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Mark for each of ``faces`` (m,) int32 which of its neighbors have it as a neighbor, too.

    ids: (n, k) int32. Returns (m, k) uint8: IN_HALF, IN_FULL or 0.
    """
    k = ids.shape[1]
    half = k // 2
    marks = np.zeros((len(faces), k), dtype=np.uint8)
    for row in prange(len(faces)):
        i = faces[row]
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
    ids: np.ndarray, mutual: np.ndarray, faces: np.ndarray, scratch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Build R* of ``faces`` (m,) int32.

    ids: (n, k) int32; mutual: (n, k) uint8 as ``mark_mutual`` gives it for all faces; scratch: ``new_scratch(n)``.
    Returns the size of each set (m,) int32 and the sets one behind the other, int32, R_k(i) first.
    """
    k = ids.shape[1]
    counts = np.empty(len(faces), dtype=np.int32)
    wide = np.empty((len(faces), k * (k // 2 + 1)), dtype=np.int32)
    lanes = len(scratch)
    for lane in prange(lanes):
        marks = scratch[lane]
        for row in range(lane, len(faces), lanes):
            counts[row] = _expand_one(ids, mutual, faces[row], marks, wide[row])
    ends = np.cumsum(counts)
    members = np.empty(ends[-1], dtype=np.int32)
    for row in prange(len(faces)):
        members[ends[row] - counts[row] : ends[row]] = wide[row, : counts[row]]
    return counts, members


@njit(cache=True, nogil=True)
def _expand_one(ids: np.ndarray, mutual: np.ndarray, i: int, marks: np.ndarray, out: np.ndarray) -> int:
    """Write R*(i) into ``out`` and return its size; ``marks`` (n,) uint8 is all zero before and after."""
    k = ids.shape[1]
    half = k // 2
    count = 0
    for p in range(k):
        if mutual[i, p]:
            marks[ids[i, p]] = RECIPROCAL
            out[count] = ids[i, p]
            count += 1
    own = count
    for r in range(own):
        j = out[r]
        total = 0
        shared = 0
        for q in range(half):
            if mutual[j, q] == IN_HALF:
                total += 1
                shared += marks[ids[j, q]] == RECIPROCAL  # R_k(i) itself, not the growing set
        if 3 * shared < 2 * total:
            continue
        for q in range(half):
            if mutual[j, q] == IN_HALF and marks[ids[j, q]] == 0:
                marks[ids[j, q]] = ADDED
                out[count] = ids[j, q]
                count += 1
    for r in range(count):
        marks[out[r]] = 0
    return count


def holders_of(
    starts: np.ndarray, counts: np.ndarray, members: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Find in whose sets R* the consecutive ``faces`` (m,) int32 are.

    starts (n,) int64, counts (n,) int32, members int32: the sets of all faces, as ``rank_candidates`` takes them.
    Returns how many holders each of ``faces`` has (m,) int32 and the holders one behind the other, int32, upwards.
    """
    return _find_holders(starts, counts, members, faces, numba.get_num_threads())


@njit(cache=True, nogil=True, parallel=True)
def _find_holders(
    starts: np.ndarray, counts: np.ndarray, members: np.ndarray, faces: np.ndarray, lanes: int
) -> tuple[np.ndarray, np.ndarray]:
    first, m = np.int64(faces[0]), len(faces)
    times = np.zeros(m, dtype=np.int32)
    for lane in prange(lanes):  # each looks for some of the faces
        low, high = first + m * lane // lanes, first + m * (lane + 1) // lanes
        for i in range(len(starts)):
            for s in range(starts[i], starts[i] + counts[i]):
                if low <= members[s] < high:
                    times[members[s] - first] += 1
    ends = np.cumsum(times)
    holders = np.empty(ends[-1], dtype=np.int32)
    at = ends - times
    for lane in prange(lanes):
        low, high = first + m * lane // lanes, first + m * (lane + 1) // lanes
        for i in range(len(starts)):
            for s in range(starts[i], starts[i] + counts[i]):
                if low <= members[s] < high:
                    holders[at[members[s] - first]] = i
                    at[members[s] - first] += 1
    return times, holders


@njit(cache=True, nogil=True, parallel=True)
def rank_candidates(
    ids: np.ndarray,
    sims: np.ndarray,
    vectors: np.ndarray,
    names: np.ndarray,
    sets: Ragged,
    holders: Ragged,
    faces: np.ndarray,
    shared: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k most similar candidates of ``faces`` (m,) int32 by the overlap of their R* sets.

    ids: (n, k) int32, no face twice in a row; sims: (m, k) float32, cosines of the rows of ``faces``; vectors: (n, d)
    float32 unit rows, read only to order ties; names: (n,) int32, under which number a face lies there and is ordered.
    sets: R*(i) of every face i is counts[i] of members from starts[i]; holders: likewise, the faces in whose sets i is.
    shared: ``new_counters(n, largest_set(k))``. Returns ids (m, k) int32 and similarities (m, k) float64, downwards.
    """
    k = ids.shape[1]
    ranked = np.empty((len(faces), k), dtype=np.int32)
    ranked_sims = np.empty((len(faces), k), dtype=np.float64)
    lanes = len(shared)
    for lane in prange(lanes):
        counters = shared[lane]
        candidates = np.empty(k * (min(CANDIDATE_REACH, k) + 1), dtype=np.int32)
        overlaps = np.empty(len(candidates), dtype=np.float64)
        for row in range(lane, len(faces), lanes):
            _count_shared(sets, holders, faces[row], counters, False)
            count = _find_candidates(ids, faces[row], sets[1], counters, candidates, overlaps)
            _count_shared(sets, holders, faces[row], counters, True)
            overlap = overlaps[:count]
            order = _order_candidates(
                sims[row], vectors, names[faces[row]], names[candidates[:count]], overlap
            )
            for p in range(k):
                ranked[row, p] = candidates[order[p]]
                ranked_sims[row, p] = overlap[order[p]]
    return ranked, ranked_sims


@njit(cache=True, nogil=True)
def _count_shared(sets: Ragged, holders: Ragged, i: int, counters: np.ndarray, forget: bool) -> None:
    """Count |R*(i) ∩ R*(j)| in ``counters`` (n,), zero before, for every face j; or set them back to zero."""
    starts, counts, members = sets
    first, times, held_by = holders
    for s in range(starts[i], starts[i] + counts[i]):
        member = members[s]
        for h in range(first[member], first[member] + times[member]):
            if forget:
                counters[held_by[h]] = 0
            else:
                counters[held_by[h]] += 1


@njit(cache=True, nogil=True)
def _find_candidates(
    ids: np.ndarray,
    i: int,
    counts: np.ndarray,
    counters: np.ndarray,
    candidates: np.ndarray,
    overlaps: np.ndarray,
) -> int:
    """Write the k neighbors of i, then the others that their first neighbors bring and that share something with it.

    The rest overlaps by nothing and comes after the k neighbors: it is never among the first k. overlaps:
    |R*(i) ∩ R*(j)| / |R*(i) ∪ R*(j)| of every candidate j, from the sizes of sets and ``counters``, in which faces
    that were written are set to zero. Returns how many candidates there are.
    """
    k = ids.shape[1]
    count = 0
    for p in range(k):
        face = ids[i, p]
        shared = np.int64(
            counts[i] if face == i else counters[face]
        )  # one that entered later is in no holders
        candidates[count] = face
        overlaps[count] = shared / (counts[i] + counts[face] - shared) if shared else 0.0
        counters[face] = 0
        count += 1
    for p in range(k):
        for q in range(min(CANDIDATE_REACH, k)):
            face = ids[ids[i, p], q]
            shared = np.int64(counters[face])
            if shared:
                candidates[count] = face
                overlaps[count] = shared / (counts[i] + counts[face] - shared)
                counters[face] = 0
                count += 1
    return count


@njit(cache=True, nogil=True)
def _order_candidates(
    sims: np.ndarray, vectors: np.ndarray, i: int, candidates: np.ndarray, overlap: np.ndarray
) -> np.ndarray:
    """Return positions of candidates, of which the first k are in their final order."""
    k = len(sims)
    count = len(candidates)
    # Only overlaps worth sorting: the many candidates below the k-th stay out.
    cut = np.partition(overlap, count - k)[count - k]
    order = np.flatnonzero(overlap >= cut)
    # Stable, so that a run of equal overlaps starts with the members of N_k(i), which are candidates 0..k-1.
    order = order[np.argsort(-overlap[order], kind="mergesort")]
    cosine = np.empty(count, dtype=np.float32)
    cosine[:k] = sims
    first = 0
    while first < k:
        last = first + 1
        while last < len(order) and overlap[order[last]] == overlap[order[first]]:
            last += 1
        near = first  # where the run's members of N_k(i) end
        while near < last and order[near] < k:
            near += 1
        _sort_tied(order, first, near, cosine, candidates)
        if near < min(last, k):
            for t in range(near, last):
                cosine[order[t]] = inner_product(vectors[i], vectors[candidates[order[t]]])
            _sort_tied(order, near, last, cosine, candidates)
        first = last
    return order


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
