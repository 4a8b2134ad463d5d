"""Files that become shorter while they are mapped: the system stops whoever reads there, and says nothing by itself.

Pages of a mapped file that is cut short are gone, and touching one raises SIGBUS in whatever thread does; so does a
disk that fails. No Python code can run then, so that a small compiled handler writes the sentence and ends the process
as any other error does. What was finished before is kept, as after a kill.
"""

import contextlib
import ctypes
import signal
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
from numba import types

from fcdeploy.graph.kernels import cfunc

EXIT_CODE = 1
SENTENCE = np.frombuffer(
    b"Error: a file became shorter while it was being read (the features, lists, or one in the run folder), or its "
    b"disk failed; put it back and run the same command again.\n",
    np.uint8,
)
STDERR = 2
_write = cast(
    Callable[[int, object, int], int],
    types.ExternalFunction("write", types.intp(types.intc, types.voidptr, types.uintp)),
)
_exit = cast(Callable[[int], None], types.ExternalFunction("_exit", types.void(types.intc)))
_pause = cast(Callable[[], int], types.ExternalFunction("pause", types.intc()))
_umask = cast(Callable[[int], int], types.ExternalFunction("umask", types.uintc(types.uintc)))
NOTHING_ALLOWED = 0o777


@contextlib.contextmanager
def sigbus_guard() -> Iterator[None]:
    """Let a file that becomes shorter while it is mapped end the process with one sentence and exit code 1.

    For commands, whose process it is; a library has no business ending somebody's process.
    """
    library = ctypes.CDLL(None)
    library.signal.restype = ctypes.c_void_p
    library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
    before = library.signal(signal.SIGBUS, _handler.address)
    try:
        yield
    finally:
        library.signal(signal.SIGBUS, before)


@cfunc("void(int32)")
def _handler(number: int) -> None:
    # Threads may come here together; the kernel exchanges the mask as one step, and so tells the first from the others.
    if _umask(NOTHING_ALLOWED) == NOTHING_ALLOWED:
        _pause()
    _write(STDERR, SENTENCE.ctypes, len(SENTENCE))
    _exit(EXIT_CODE)
