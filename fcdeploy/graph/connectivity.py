"""Links from scores of neighbors: scores made symmetric, density from them, candidates and certain links.

After LCE-PCENet (github.com/illian01/LCE-PCENet). Column 0 of a list stands for the face itself, as published.
"""

import numpy as np

from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.links import NO_LINK


@njit(cache=True, nogil=True, parallel=True)
def symmetric_scores(ids: np.ndarray, scores: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the mean of both directions' scores for the lists of ``faces`` (m,) int32, (m, k) float64.

    ids: (n, k) int32, no face twice in a row; scores: (n, k) float32. A direction that is in no list counts as 0.
    Added in float32 and halved, as a sparse float32 matrix plus its transpose would be.
    """
    k = ids.shape[1]
    means = np.empty((len(faces), k), dtype=np.float64)
    for row in prange(len(faces)):
        face = faces[row]
        for p in range(k):
            other = ids[face, p]
            back = np.float32(0)
            for q in range(k):  # without a break: the compiler turns it into vector comparisons
                back = scores[other, q] if ids[other, q] == face else back
            means[row, p] = np.float64(np.float32(scores[face, p] + back)) / 2
    return means


def density_from_scores(means: np.ndarray, sims: np.ndarray) -> np.ndarray:
    """Return the sum over a face's neighbors, column 0 left out, of score times similarity: (m, k) -> (m,) float64."""
    return (means[:, 1:] * sims[:, 1:]).sum(axis=1)


def weighted_largest(sims: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return each face's weighted mean (m,) float64 of its largest similarities, column 0 left out.

    sims: (m, k) float32; weights: (w,), w < k, that of the largest last.
    """
    largest = np.sort(sims[:, 1:], axis=1)[:, sims.shape[1] - 1 - len(weights) :]
    return np.average(largest, axis=1, weights=weights)


@njit(cache=True, nogil=True, parallel=True)
def candidates_and_certain(
    ids: np.ndarray, strengths: np.ndarray, density: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    """Pick each face's strongest denser neighbor, and mark the other denser ones of strength ``threshold`` or more.

    ids: (m, k) int32 lists; strengths: (m, k) float64, score times similarity; density: (n,) float64 of all faces.
    Returns the strongest (m,) int32, the first of equal ones, NO_LINK where no denser neighbor has a strength above
    0, and marks (m, k) bool.
    """
    m, k = ids.shape
    strongest = np.full(m, NO_LINK, dtype=np.int32)
    certain = np.zeros((m, k), dtype=np.bool_)
    for row in prange(m):
        own = density[ids[row, 0]]
        best = 0.0
        at = -1
        for p in range(1, k):
            if density[ids[row, p]] > own:
                certain[row, p] = strengths[row, p] >= threshold
                if strengths[row, p] > best:
                    best = strengths[row, p]
                    at = p
        if at > 0:
            strongest[row] = ids[row, at]
            certain[row, at] = False
    return strongest, certain
