"""Memory of the C library, which a training on the CPU takes and frees by gigabytes at every step."""

import contextlib
import ctypes
from collections.abc import Iterator

# Of glibc's mallopt (malloc.h): what is set, its value in a training, and the one it begins with.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
NEVER, LARGE, AS_EVER = 2**31 - 1, 2**30, 128 * 1024


def c_library() -> ctypes.CDLL | None:
    """Return glibc, or None where there is another C library."""
    try:
        library = ctypes.CDLL(None)
        _ = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return library


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Let the C library keep what is freed inside the block until ``give_back``, where it can.

    Otherwise each tensor of some tens of megabytes is new memory of the system, zeroed page by page: of a step of
    SEPFL's a quarter.
    """
    library = c_library()
    if library is None:
        yield
        return
    library.mallopt(M_MMAP_THRESHOLD, LARGE)
    library.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield
    finally:
        library.mallopt(M_MMAP_THRESHOLD, AS_EVER)
        library.mallopt(M_TRIM_THRESHOLD, AS_EVER)
        give_back()


def give_back() -> None:
    """Return all freed memory to the system."""
    library = c_library()
    if library is not None:
        library.malloc_trim(0)
