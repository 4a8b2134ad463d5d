"""How many threads the libraries of a run use, and the caller's own settings behind it.

numba and OpenMP, by which faiss and its BLAS compute, keep the number of threads for each Python thread by itself: what
is set here reaches the thread that runs the block, and those that ``in_threads_of`` starts, and no other. PyTorch's is
set where it trains; ONNX Runtime is told for each session.
"""

import contextlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numba

from fcdeploy.errors import FcdeployWarning, MissingDependencyError
from fcdeploy.forks import check_not_forked, faiss_inherited, mark_started
from fcdeploy.graph.faiss_library import import_faiss


@contextlib.contextmanager
def threads_limited(threads: int) -> Iterator[None]:
    """Let numba kernels and faiss use ``threads`` threads inside the block, and as many as before behind it.

    Raises FcdeployError in a process that was forked from one in which there was such a block: what threads left in
    locks and pools is copied, they themselves are not, and waiting for them never ends.
    """
    check_not_forked()
    mark_started()
    try:
        faiss: Any = import_faiss()
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
        if faiss is not None:
            stack.callback(faiss.omp_set_num_threads, faiss.omp_get_max_threads())
            faiss.omp_set_num_threads(1 if faiss_inherited() else threads)
        stack.callback(numba.set_num_threads, numba.get_num_threads())
        numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
        yield


def settings_of_this_thread() -> Callable[[], None]:
    """Return a function that gives the thread which calls it the settings of the one that calls this."""
    faiss: Any = sys.modules.get("faiss")
    kernels = numba.get_num_threads()
    searches = faiss.omp_get_max_threads() if faiss is not None else 0

    def apply() -> None:
        numba.set_num_threads(kernels)
        if faiss is not None:
            faiss.omp_set_num_threads(searches)

    return apply
