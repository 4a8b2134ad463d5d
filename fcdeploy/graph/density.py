"""How central a face is in its cluster."""

import numpy as np
from numba import njit, prange


@njit(cache=True, nogil=True, parallel=True)
def sum_similarities(sims: np.ndarray, out: np.ndarray) -> None:
    """Sum each face's similarities in their order, in float32, into out (m,).

    sims: (m, k) float32. The order and the width are part of the published definition: densities are compared
    for strict inequality.
    """
    for row in prange(len(sims)):
        total = np.float32(0)
        for p in range(sims.shape[1]):
            total += sims[row, p]
        out[row] = total


def density_from_sums(sums: np.ndarray) -> np.ndarray:
    """Return ``sums`` (n,) float32 divided by the largest magnitude among them (PSE-GCN, clustering.py)."""
    largest = np.abs(sums).max(initial=np.float32(0))
    return sums / largest if largest > 0 else sums.copy()
