"""The graph of neighbor lists: symmetric, weighted by similarity, with a self loop of 1.

W_ij is the similarity of j in the list of i where that is at least th_sim and j is not i, S = max(W, W^T), and networks
see the rows of S + I, each divided by its sum. A pair counts where either face lists the other, so that a row has k
entries or more, and no upper limit: rows are kept one behind the other, entries by the number of the face.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit, prange

NO_FACE = 1 << 40  # behind every face


@dataclass(frozen=True)
class Edges:
    """Rows of S + I: those of face i are starts[i] and on, counts[i] of them, by the number of the face.

    starts: (n,) int64; counts: (n,) int32; ids: (e,) int32; sims: (e,) float32, 1 for the face itself.
    """

    starts: np.ndarray
    counts: np.ndarray
    ids: np.ndarray
    sims: np.ndarray

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.starts, self.counts, self.ids, self.sims


def edges_of_lists(ids: np.ndarray, sims: np.ndarray, k: int, th_sim: float) -> Edges:
    """Return the whole graph of lists ids (n, >= k) int32 and sims (n, >= k) float32, of their first k entries."""
    counts, found, weights = edges_of_rows(ids, sims, 0, len(ids), k, th_sim)
    return Edges(np.cumsum(counts, dtype=np.int64) - counts, counts, found, weights)


def edges_of_rows(
    ids: np.ndarray, sims: np.ndarray, start: int, stop: int, k: int, th_sim: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of faces start..stop-1: counts (m,) int32, and their ids (e,) int32 and sims (e,) float32.

    All lists are read for these rows; nothing is held but theirs. A row's own list may hold the face itself anywhere,
    or not at all.
    """
    ends, listing, given = _listed_by(ids, sims, start, stop, k, th_sim)
    counts = np.empty(stop - start, dtype=np.int32)
    room = ends + np.arange(1, stop - start + 1) * (
        k + 1
    )  # own entries and the self loop beside those of others
    found, weights = np.empty(room[-1], dtype=np.int32), np.empty(room[-1], dtype=np.float32)
    _merge(ids, sims, start, k, th_sim, ends, listing, given, room, counts, found, weights)
    return counts, *_packed(counts, room, found, weights)


@njit(cache=True, nogil=True, inline="always")
def _weight(sim: np.float32) -> np.float32:
    """Return 1 - d of the distance d = 1 - sim, which float32 rounds below 0.5; 1 - d is exact again."""
    return np.float32(1) - (np.float32(1) - sim)


@njit(cache=True, nogil=True)
def _listed_by(
    ids: np.ndarray, sims: np.ndarray, start: int, stop: int, k: int, th_sim: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return who lists each of start..stop-1, by number, and how similar: ends (m,), faces and sims."""
    ends = np.zeros(stop - start, dtype=np.int64)
    for i in range(len(ids)):
        for p in range(k):
            j = ids[i, p]
            if start <= j < stop and j != i and _weight(sims[i, p]) >= th_sim:
                ends[j - start] += 1
    ends = np.cumsum(ends)
    free = np.zeros(stop - start, dtype=np.int64)
    free[1:] = ends[:-1]
    listing = np.empty(ends[-1], dtype=np.int32)
    given = np.empty(ends[-1], dtype=np.float32)
    for i in range(len(ids)):
        for p in range(k):
            j = ids[i, p]
            if start <= j < stop and j != i and _weight(sims[i, p]) >= th_sim:
                listing[free[j - start]] = i
                given[free[j - start]] = _weight(sims[i, p])
                free[j - start] += 1
    return ends, listing, given


@njit(cache=True, nogil=True, parallel=True)
def _merge(
    ids: np.ndarray,
    sims: np.ndarray,
    start: int,
    k: int,
    th_sim: float,
    ends: np.ndarray,
    listing: np.ndarray,
    given: np.ndarray,
    room: np.ndarray,
    counts: np.ndarray,
    found: np.ndarray,
    weights: np.ndarray,
) -> None:
    """Write each row at its ``room``: who it lists, who lists it, and itself, by number; of two weights the larger."""
    for row in prange(len(counts)):
        face = start + row
        order = np.argsort(ids[face, :k])
        at = room[row - 1] if row else 0
        first, other = at, ends[row - 1] if row else 0
        own, looped = 0, False
        while True:
            while own < k and (
                ids[face, order[own]] == face or not _weight(sims[face, order[own]]) >= th_sim
            ):
                own += 1
            mine = np.int64(ids[face, order[own]]) if own < k else np.int64(NO_FACE)
            theirs = np.int64(listing[other]) if other < ends[row] else np.int64(NO_FACE)
            nearest = min(mine, theirs)
            if not looped and nearest > face:
                found[at], weights[at] = face, 1
                looped = True
                at += 1
                continue
            if nearest == NO_FACE:
                break
            weight = np.float32(-1)
            if mine == nearest:
                weight = _weight(sims[face, order[own]])
                own += 1
            if theirs == nearest:
                weight = max(weight, given[other])
                other += 1
            found[at], weights[at] = nearest, weight
            at += 1
        counts[row] = at - first


@njit(cache=True, nogil=True)
def _packed(
    counts: np.ndarray, room: np.ndarray, found: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows one behind the other."""
    total = 0
    for row in range(len(counts)):
        at = room[row - 1] if row else 0
        for t in range(counts[row]):
            found[total + t] = found[at + t]
            weights[total + t] = weights[at + t]
        total += counts[row]
    return found[:total].copy(), weights[:total].copy()


def sum_over_edges(edges: Edges, faces: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the means (m, w) of the rows of ``table`` (n, w) over the edges of ``faces`` (m,), of the table's dtype.

    A row of S + I is divided by its sum in float64, as published, and rounded once.
    """
    out = np.zeros((len(faces), table.shape[1]), dtype=table.dtype)
    _sum_over_edges(*edges.arrays, faces, table, out)
    return out


@njit(cache=True, nogil=True, parallel=True)
def _sum_over_edges(
    starts: np.ndarray,
    counts: np.ndarray,
    ids: np.ndarray,
    sims: np.ndarray,
    faces: np.ndarray,
    table: np.ndarray,
    out: np.ndarray,
) -> None:
    for row in prange(len(faces)):
        start, count = starts[faces[row]], counts[faces[row]]
        share = 1 / _sum(sims[start : start + count])
        weight = np.empty(1, dtype=out.dtype)  # no wider than out, or the loop would be
        for at in range(start, start + count):
            weight[0] = sims[at] * share
            add_row(out[row], weight[0], table[ids[at]])


@njit(cache=True, nogil=True)
def _sum(values: np.ndarray) -> float:
    total = 0.0
    for value in values:
        total += np.float64(value)
    return total


@njit(cache=True, nogil=True, fastmath={"contract"})
def add_row(out: np.ndarray, weight: np.floating, values: np.ndarray) -> None:
    """Add ``weight`` times a row of values (w,) to out (w,)."""
    for c in range(len(out)):
        out[c] += weight * values[c]
