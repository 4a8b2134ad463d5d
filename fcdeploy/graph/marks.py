"""Sets of faces as bytes: one byte a face and thread, all zero between uses."""

import numba
import numpy as np

from fcdeploy.graph.kernels import njit


def new_scratch(n: int) -> np.ndarray:
    """Return the marks that kernels over n faces work with: (threads, n) uint8, zero; a kernel leaves it so."""
    return np.zeros((numba.get_num_threads(), n), dtype=np.uint8)


def new_counters(n: int, most: int) -> np.ndarray:
    """Return counters of n faces, (threads, n) uint16 or uint32, zero, for counts up to ``most``."""
    dtype = np.uint16 if most <= np.iinfo(np.uint16).max else np.uint32
    return np.zeros((numba.get_num_threads(), n), dtype=dtype)


@njit(cache=True, nogil=True)
def unmark(marks: np.ndarray, faces: np.ndarray) -> None:
    """Set marks[faces] back to zero."""
    for face in faces:
        marks[face] = 0
