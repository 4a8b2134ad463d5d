"""At most one link a face: to its most similar neighbor that is denser than itself."""

import numpy as np

from fcdeploy.graph.kernels import njit, prange

NO_LINK = -1


@njit(cache=True, nogil=True, parallel=True)
def link_to_denser(
    ids: np.ndarray, sims: np.ndarray, density: np.ndarray, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the first strictly denser neighbor of each face, in order of similarity.

    ids: (m, k) int32 and sims: (m, k) float32, the lists of faces start..start+m-1, most similar first; density:
    (n,) float32 of all faces. Returns the denser neighbor (m,) int32, NO_LINK where there is none, and its
    similarity (m,) float32 (0 where there is none). Equal densities do not link. PSE-GCN, clustering.py.
    """
    m, k = ids.shape
    denser = np.full(m, NO_LINK, dtype=np.int32)
    best = np.zeros(m, dtype=np.float32)
    for row in prange(m):
        own = density[start + row]
        for p in range(k):
            if density[ids[row, p]] > own:
                denser[row] = ids[row, p]
                best[row] = sims[row, p]
                break
    return denser, best
