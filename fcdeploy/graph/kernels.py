"""numba for our kernels: cached where there is a place for it, and safe to call from several threads at once.

numba caches compiled code beside its source or in the user's home and refuses to when neither can be written, as in a
container without a home. Kernels then are cached in a private folder of the machine's temporary one, or not at all.
Of its threading layers, workqueue, which is used where there is neither TBB nor libgomp, ends the process when two
threads run parallel kernels at the same time; there, they wait for each other.
"""

import atexit
import contextlib
import functools
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Protocol, TypeVar, cast

import numba
from numba import prange
from numba.core.ccallback import CFunc

from fcdeploy.errors import FcdeployError

__all__ = ["cfunc", "njit", "place_of_kernels", "prange", "told_of_compiling"]

REFUSED = "cannot cache"  # begins what numba says where it finds no folder for its cache
UNSAFE_LAYERS = ("workqueue",)

Kernel = TypeVar("Kernel", bound=Callable[..., object])
Made = TypeVar("Made")


class Cache(Protocol):
    """numba's cache of one kernel."""

    def load_overload(self, *arguments: object) -> object: ...

    def save_overload(self, *arguments: object) -> None: ...


_one_at_a_time = threading.RLock()
_listeners: list[Callable[[], None]] = []


def njit(
    *,
    cache: bool = True,
    parallel: bool = False,
    nogil: bool = False,
    fastmath: bool | set[str] = False,
    inline: Literal["never", "always"] = "never",
) -> Callable[[Kernel], Kernel]:
    """Compile a function like ``numba.njit``, with the cache and the locks that the module speaks of.

    A parallel kernel is to be called from Python, not from another kernel.
    """

    def compiled(function: Kernel) -> Kernel:
        dispatcher = _with_cache(
            lambda cache: numba.njit(
                cache=cache, parallel=parallel, nogil=nogil, fastmath=fastmath, inline=inline
            )(function),
            cache,
        )
        _watch(dispatcher)
        kernel = cast(Kernel, dispatcher)
        return _in_turn(kernel) if parallel else kernel

    return compiled


def cfunc(signature: str) -> Callable[[Callable[..., object]], CFunc]:
    """Compile a callback for C like ``numba.cfunc``, with the cache that the module speaks of."""
    return lambda function: _with_cache(lambda cache: numba.cfunc(signature, cache=cache)(function), True)


def _in_turn(dispatcher: Kernel) -> Kernel:
    @functools.wraps(dispatcher)
    def kernel(*arguments: object) -> object:
        if threads_may_meet():
            return dispatcher(*arguments)
        with _one_at_a_time:
            return dispatcher(*arguments)

    return cast(Kernel, kernel)


@functools.cache
def threads_may_meet() -> bool:
    """Tell whether several threads may run parallel kernels at the same time; starts numba's threads.

    Raises FcdeployError when numba has no threads to start, which it then says why.
    """
    try:
        numba.get_num_threads()
        return numba.threading_layer() not in UNSAFE_LAYERS
    except ValueError as error:
        layer = numba.config.THREADING_LAYER  # type: ignore[attr-defined]
        raise FcdeployError(
            f"numba's threading layer '{layer}' does not start ({' '.join(str(error).split())}); set "
            "NUMBA_THREADING_LAYER=workqueue, which needs nothing else."
        ) from error


class Config(Protocol):
    """numba's settings; a module, whose variables its types do not tell of."""

    CACHE_DIR: str


def _with_cache(make: Callable[[bool], Made], cache: bool) -> Made:
    """Make a kernel with numba's cache, with one in a folder of our own, or without."""
    try:
        return make(cache)
    except RuntimeError as error:
        if not cache or not str(error).startswith(REFUSED):
            raise
    config = cast(Config, numba.config)
    before = config.CACHE_DIR
    if folder := private_folder():
        config.CACHE_DIR = folder  # read while a kernel is made only
        try:
            return make(True)
        except RuntimeError as error:
            if not str(error).startswith(REFUSED):
                raise
        finally:
            config.CACHE_DIR = before
    return make(False)


@functools.cache
def private_folder() -> str:
    """Return a folder for cached kernels that nobody else can write to; "" where there is none.

    Whoever can write there can have us run code. A folder of that name that is somebody else's is left alone, and one
    that is deleted when the process ends is used instead.
    """
    try:
        folder = Path(tempfile.gettempdir()) / f"fcdeploy-kernels-{os.getuid()}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
        if private and os.access(folder, os.W_OK | os.X_OK):
            return str(folder)
        made = tempfile.mkdtemp(prefix="fcdeploy-kernels-")
    except OSError:
        return ""
    atexit.register(_remove, made, os.getpid())
    return made


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:  # not in what was forked from it
        shutil.rmtree(folder, ignore_errors=True)


class _Cache:
    """A kernel's cache that never fails, and that tells when there is something to compile.

    A full or read-only disk, or a damaged file, costs the time of compiling and nothing else.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def __getattr__(self, name: str) -> object:
        return getattr(self._cache, name)

    def load_overload(self, *arguments: object) -> object:
        try:
            found = self._cache.load_overload(*arguments)
        except Exception:  # what comes of unpickling damaged bytes can be anything
            found = None
        if found is None:
            for tell in _listeners:
                tell()
        return found

    def save_overload(self, *arguments: object) -> None:
        with contextlib.suppress(OSError, ValueError, EOFError):
            self._cache.save_overload(*arguments)


def _watch(dispatcher: object) -> None:
    if hasattr(dispatcher, "_cache"):  # without NUMBA_DISABLE_JIT
        dispatcher._cache = _Cache(dispatcher._cache)


@contextlib.contextmanager
def told_of_compiling(tell: Callable[[], None]) -> Iterator[None]:
    """Call ``tell`` whenever a kernel is about to be compiled inside the block, which takes a second or more."""
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


def place_of_kernels() -> str:
    """Say where compiled kernels are cached, for people."""
    remedy = "set NUMBA_CACHE_DIR to a folder that can be written"
    path = getattr(getattr(_sample, "stats", None), "cache_path", None)
    if path is None:
        return f"compiled anew by every process (no folder for them can be written; {remedy})"
    if Path(path).is_relative_to(private_folder_in_use()):
        return (
            f"cached in {private_folder_in_use()} (the installation and the home cannot be written; {remedy})"
        )
    return f"cached in {path}"


def private_folder_in_use() -> str:
    """Return the private folder if a kernel is cached there, else a path that holds none."""
    return private_folder() if private_folder.cache_info().currsize else os.devnull


@njit(nogil=True)
def _sample(number: int) -> int:
    return number


def _after_fork() -> None:
    global _one_at_a_time
    _one_at_a_time = threading.RLock()  # its owner may be a thread that is not here


os.register_at_fork(after_in_child=_after_fork)
