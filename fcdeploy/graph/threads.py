"""How many threads the libraries of a run use, and the caller's own settings behind it.

numba and OpenMP, by which faiss and its BLAS compute, keep the number of threads for each Python thread by itself: what
is set here reaches the thread that runs the block, and those that ``prefetch`` starts, and no other. NumPy's BLAS has
one number for the whole process. PyTorch's is set where it trains; ONNX Runtime is told for each session.
"""

import contextlib
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from types import ModuleType

import numba
from threadpoolctl import LibController, ThreadpoolController

from fcdeploy.errors import FcdeployWarning, MissingDependencyError
from fcdeploy.forks import check_not_forked, faiss_inherited, mark_started
from fcdeploy.graph.faiss_library import import_faiss

_blas_lock = threading.Lock()
_blas_limits: list[int] = []  # of the blocks that are open, in whatever thread
_blas_before: dict[
    str, tuple[LibController, int]
] = {}  # library -> what sets its threads, and how many it had before the blocks


@contextlib.contextmanager
def threads_limited(threads: int) -> Iterator[None]:
    """Limit numba, faiss and BLAS to ``threads`` threads inside the block; the previous numbers come back afterwards.

    Pools of OpenMP and BLAS are those of the libraries that are loaded by then. BLAS gets no more threads than it had,
    and the fewest of those wanted where blocks are open in several threads.

    Raises FcdeployError in a process that was forked from one in which there was such a block: what threads left in
    locks and pools is copied, they themselves are not, and waiting for them never ends.
    """
    check_not_forked()
    mark_started()
    try:
        faiss: ModuleType | None = import_faiss()
    except MissingDependencyError:  # a run that searches says so
        faiss = None
    with contextlib.ExitStack() as stack:
        if faiss is not None and faiss_inherited() and threads > 1:
            # Alone, a thread does not wait for others of its team, which are not here.
            warnings.warn(
                "faiss was loaded before this process was forked, and searches on one thread; import faiss in the "
                "forked process, or start it with 'spawn'.",
                FcdeployWarning,
                stacklevel=4,
            )
        stack.callback(
            numba.set_num_threads, numba.get_num_threads()
        )  # starts its layer, which may load OpenMP
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        openmp = 1 if faiss_inherited() else threads
        pools = ThreadpoolController()
        stack.enter_context(pools.select(user_api="openmp").limit(limits=openmp))
        stack.enter_context(blas_limited(threads))
        if faiss is not None:
            stack.callback(faiss.omp_set_num_threads, faiss.omp_get_max_threads())
            faiss.omp_set_num_threads(openmp)
        yield


def follows_openmp(pool: LibController) -> bool:
    """Tell whether a library of BLAS takes the number of threads that OpenMP has."""
    return pool.internal_api == "openblas" and pool.threading_layer == "openmp"


@contextlib.contextmanager
def blas_limited(threads: int) -> Iterator[None]:
    """Let BLAS use ``threads`` threads inside the block at most, whichever thread calls it.

    One that follows OpenMP, as faiss's own OpenBLAS, has what OpenMP has in the thread that calls it.
    """
    found = ThreadpoolController().select(user_api="blas").lib_controllers
    pools = [pool for pool in found if not follows_openmp(pool)]
    with _blas_lock:
        for pool in pools:
            _blas_before.setdefault(pool.filepath, (pool, pool.num_threads))
        _blas_limits.append(threads)
        _set_blas_threads()
    try:
        yield
    finally:
        with _blas_lock:
            _blas_limits.remove(threads)
            _set_blas_threads()
            if not _blas_limits:
                _blas_before.clear()


def _set_blas_threads() -> None:
    for pool, before in _blas_before.values():
        pool.set_num_threads(min([before, *_blas_limits]))


def settings_of_this_thread() -> Callable[[], None]:
    """Return a function that gives the thread which calls it the settings of the one that calls this."""
    faiss = sys.modules.get("faiss")
    kernels = numba.get_num_threads()
    searches = faiss.omp_get_max_threads() if faiss is not None else 0

    def apply() -> None:
        numba.set_num_threads(kernels)
        if faiss is not None:
            faiss.omp_set_num_threads(searches)

    return apply
