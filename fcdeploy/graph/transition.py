"""Density peaks on transition distances: how central a face is, and how alike the ways out of two faces are.

After "On Mitigating Hard Clusters for Face Clustering" (arXiv 2207.11895). Lists here are sorted by distance; a
face's list need not start with itself. Write P_i = softmax-like shares of face i's neighbors m,

    P_im = exp(-d_im / sigma) / (sum over its list + 1e-5),

then density_m = sum over all i of P_im over the first k of each list, and the transition distance of i and its
neighbor j = 1 - sum over the faces m in both lists of sqrt(P_im P_jm).
"""

import numpy as np

from fcdeploy.graph.hashing import FREE, find_slot, new_table
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.links import NO_LINK

SUM_EPS = np.float32(1e-5)  # in every sum of shares


def shares(dists: np.ndarray, sigma: float) -> np.ndarray:
    """Return exp(-d / sigma) of each row over its sum plus 1e-5: dists (m, k) float32 -> (m, k) float32."""
    weights = np.exp(-dists / np.float32(sigma))
    return weights / (weights.sum(axis=1, keepdims=True) + SUM_EPS)


@njit(cache=True, nogil=True)
def add_received(ids: np.ndarray, given: np.ndarray, density: np.ndarray) -> None:
    """Add given[i, p] to the density of face ids[i, p]: ids (m, k) int32, given (m, k) float32, density (n,) float64.

    In the order of rows, so that density does not depend on how rows are cut into blocks.
    """
    for row in range(len(ids)):
        for p in range(ids.shape[1]):
            density[ids[row, p]] += given[row, p]


@njit(cache=True, nogil=True, parallel=True)
def transition_distances(ids: np.ndarray, weights: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the transition distance of each of ``faces`` (m,) int32 to its neighbors, (m, k) float32.

    ids: (n, k) int32, no face twice in a row; weights: (n, k) float32, square roots of ``shares``. Added up in
    float64, in the order of the neighbor's list.
    """
    k = ids.shape[1]
    dists = np.empty((len(faces), k), dtype=np.float32)
    for row in prange(len(faces)):
        face = faces[row]
        own = new_table(k)
        own_weights = np.empty(len(own), dtype=np.float32)
        for p in range(k):
            slot = find_slot(own, ids[face, p])
            own[slot] = ids[face, p]
            own_weights[slot] = weights[face, p]
        for p in range(k):
            other = ids[face, p]
            shared = 0.0
            for q in range(k):
                slot = find_slot(own, ids[other, q])
                if own[slot] != FREE:
                    shared += np.float64(own_weights[slot]) * np.float64(weights[other, q])
            dists[row, p] = np.float32(1) - np.float32(shared)
    return dists


@njit(cache=True, nogil=True, parallel=True)
def link_to_peaks(
    ids: np.ndarray, dists: np.ndarray, density: np.ndarray, start: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the first ``most`` neighbors of each face, by distance, that are at least as dense as it is.

    ids: (m, k) int32 and dists: (m, k) float32, the lists of faces start..start+m-1 in any order, equal distances
    staying in it; density: (n,) float64 of all faces. Returns them (m, most) int32, NO_LINK where there are fewer,
    and their distances (m, most) float32 (0 there). Equal densities do link; a face never links to itself.
    """
    m = len(ids)
    peaks = np.full((m, most), NO_LINK, dtype=np.int32)
    reached = np.zeros((m, most), dtype=np.float32)
    for row in prange(m):
        order = np.argsort(dists[row], kind="mergesort")
        found = 0
        for p in order:
            other = ids[row, p]
            if other == start + row or density[other] < density[start + row]:
                continue
            peaks[row, found] = other
            reached[row, found] = dists[row, p]
            found += 1
            if found == most:
                break
    return peaks, reached
