"""A small open-addressing table of face ids for numba kernels: sets that fit the first-level cache."""

import numpy as np

from fcdeploy.graph.kernels import njit

FREE = -1


@njit(cache=True, nogil=True)
def new_table(entries: int) -> np.ndarray:
    """Return an empty int32 table with room for ``entries`` ids at a load of at most one half."""
    size = 64
    while size < 2 * entries:
        size *= 2
    return np.full(size, FREE, dtype=np.int32)


@njit(cache=True, nogil=True, inline="always")
def find_slot(table: np.ndarray, face: int) -> int:
    """Return the slot that holds ``face``, or the free one where it would go."""
    mask = table.shape[0] - 1
    # Fibonacci hashing: neighbors often have ids in a row, which would crowd one end of the table.
    slot = (np.int64(face) * 0x9E3779B1 >> 12) & mask
    while table[slot] != FREE and table[slot] != face:
        slot = (slot + 1) & mask
    return slot
