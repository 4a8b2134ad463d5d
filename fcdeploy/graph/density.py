"""How central a face is in its cluster."""

import numpy as np

from fcdeploy.graph.kernels import njit, prange


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


@njit(cache=True, nogil=True, parallel=True)
def sum_and_count_similarities(sims: np.ndarray, rho: float, sums: np.ndarray, counts: np.ndarray) -> None:
    """Sum each face's similarities into sums (m,) float32, and count those of at least rho into counts (m,) int32.

    sims: (m, k) float32. Added up in float64 and rounded once; compared with rho in float64, as SEPFL does.
    """
    for row in prange(len(sims)):
        total = 0.0
        count = 0
        for p in range(sims.shape[1]):
            sim = np.float64(sims[row, p])
            total += sim
            if sim >= rho:
                count += 1
        sums[row] = total
        counts[row] = count


def density_from_sums_and_counts(
    sums: np.ndarray, counts: np.ndarray, largest: tuple[np.float32, int] | None = None
) -> np.ndarray:
    """Return the mean (n,) float64 of sums (n,) float32 and counts (n,) int32, each over its largest (SEPFL).

    The sums are divided in float32, the counts in float64. Where all counts are zero, which the publication leaves
    undefined, so is their half. largest: the largest sum and count of other faces, to be compared with these.
    """
    if largest is None:
        return (density_from_sums(sums) + counts / max(1, counts.max(initial=0))) / 2
    over = largest[0] if largest[0] > 0 else np.float32(1)
    return (sums / over + counts / max(1, largest[1])) / 2
