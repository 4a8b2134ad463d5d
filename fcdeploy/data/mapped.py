"""Arrays that are maps of files, and the memory that they take."""

import mmap

import numpy as np


def release_pages(*arrays: np.ndarray) -> None:
    """Let go of the pages that this process has touched of arrays that are maps; they are read again when needed.

    What was written to them stays in the file. Arrays in memory stay as they are, and so do maps of mode "c", whose
    changes are nowhere else.
    """
    for array in arrays:
        mapped = getattr(array, "_mmap", None)
        if mapped is not None and getattr(array, "mode", "c") != "c":
            mapped.madvise(mmap.MADV_DONTNEED)
