"""Neighbor lists as undirected graphs: the similar pairs in them, and the graph among the members of a group."""

import numpy as np

from fcdeploy.graph.kernels import njit, prange

NOBODY = -1  # in a list that is shorter than others


@njit(cache=True, nogil=True)
def _is_listed(ids: np.ndarray, sims: np.ndarray, threshold: float, face: int) -> bool:
    found = False
    for p in range(len(ids)):
        found |= ids[p] == face and sims[p] >= threshold
    return found


@njit(cache=True, nogil=True)
def _starts_pair(ids: np.ndarray, sims: np.ndarray, k: int, threshold: float, face: int, p: int) -> bool:
    """Tell whether entry p of a face's list is the one that stands for its pair: that in the list of the smaller id."""
    other = ids[face, p]
    if other < 0 or np.int64(other) == np.int64(face) or not np.float64(sims[face, p]) >= threshold:
        return False
    return np.int64(face) < other or not _is_listed(ids[other, :k], sims[other, :k], threshold, face)


@njit(cache=True, nogil=True, parallel=True)
def similar_pairs(
    ids: np.ndarray, sims: np.ndarray, k: int, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the pairs of faces of which one is among the other's k neighbors, at ``threshold`` similarity or more.

    ids: (n, >= k) int32, NOBODY where a list ends; sims: (n, >= k) float32, compared in float64. Returns smaller ends
    and larger ends (m,) int32 and similarities (m,) float64, each pair once, one that is in both lists with that of the
    smaller id's. learn-to-cluster, ``filter_knns``.
    """
    n = len(ids)
    ends = np.zeros(n + 1, dtype=np.int64)
    for face in prange(n):
        count = 0
        for p in range(k):
            count += _starts_pair(ids, sims, k, threshold, face, p)
        ends[face + 1] = count
    ends = np.cumsum(ends)
    a, b = np.empty(ends[-1], dtype=np.int32), np.empty(ends[-1], dtype=np.int32)
    scores = np.empty(ends[-1], dtype=np.float64)
    for face in prange(n):
        at = ends[face]
        for p in range(k):
            if _starts_pair(ids, sims, k, threshold, face, p):
                a[at], b[at] = min(face, ids[face, p]), max(face, ids[face, p])
                scores[at] = sims[face, p]
                at += 1
    return a, b, scores


@njit(cache=True, nogil=True, parallel=True)
def first_neighbors(ids: np.ndarray, sims: np.ndarray, k: int) -> np.ndarray:
    """Return whom a search for the k nearest would have found beside the row itself: (n, <= k) int32, then NOBODY.

    ids: (n, w) int32, the row itself first and the others by similarity; sims: (n, w) float32. Among rows of
    different length the row itself need not be among its k nearest: then k others are, otherwise k - 1.
    """
    n, wide = ids.shape
    found = np.full((n, min(k, wide - 1)), NOBODY, dtype=np.int32)
    for row in prange(n):
        count = k if wide > k and sims[row, k] > sims[row, 0] else min(k, wide) - 1
        for p in range(count):
            found[row, p] = ids[row, 1 + p]
    return found


@njit(cache=True, nogil=True, parallel=True)
def connect_members(
    members: np.ndarray,
    sizes: np.ndarray,
    ks: np.ndarray,
    ids: np.ndarray,
    sims: np.ndarray,
    weighted: bool,
    adj: np.ndarray,
    degrees: np.ndarray,
) -> None:
    """Fill the graphs among the members of groups: connected is who is among the first neighbors of the other.

    members: (b, w) int32, the sizes[g] faces of group g ascending, then anything; ks: (b,) the length of the lists that
    count; ids, sims: (n, k) lists of all faces. Writes adj (b, w, w) float32: 1 for a face and itself, 1 or (weighted)
    the similarity between connected ones, the smaller id's where their lists differ, rows divided by their sums in
    float64, padding 0; and degrees (b, w) float64, those sums. learn-to-cluster, ``build_adj``.
    """
    for g in prange(len(members)):
        size = sizes[g]
        faces = members[g, :size]
        adj[g] = 0
        adj[g, :size, :size] = -1  # not connected yet: a similarity may be 0
        degrees[g] = 0
        for row in range(size):
            adj[g, row, row] = 1
            for p in range(ks[g]):
                other = ids[faces[row], p]
                column = np.searchsorted(faces, other)
                if column < size and faces[column] == other and adj[g, row, column] < 0:
                    weight = sims[faces[row], p] if weighted else np.float32(1)
                    adj[g, row, column] = weight
                    adj[g, column, row] = weight
        for row in range(size):
            total = 0.0
            for column in range(size):
                adj[g, row, column] = max(adj[g, row, column], np.float32(0))
                total += adj[g, row, column]
            degrees[g, row] = total
            for column in range(size):
                adj[g, row, column] = adj[g, row, column] / total
