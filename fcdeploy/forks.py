"""What a forked process lacks: the threads of the libraries that its parent had started.

They are gone while the locks and pools that they left are copied, and waiting for them never ends. This is known of a
process from the import of ``fcdeploy`` on, and costs nothing until there is a fork.
"""

import contextlib
import os
import sys

from fcdeploy.errors import FcdeployError

_started = False
_inherited = ""
_faiss_inherited = False


def mark_started() -> None:
    """Note that threads of libraries are started in this process, for those that are forked from it."""
    global _started
    _started = True


def check_not_forked() -> None:
    """Raise FcdeployError in a process that was forked after a run, where another run might wait for ever."""
    if _inherited:
        raise FcdeployError(
            f"this process was forked from one in which {_inherited}, whose threads it does not have; start "
            "processes with multiprocessing.get_context('spawn') (or 'forkserver'), or let the first run be in the "
            "forked process."
        )


def faiss_inherited() -> bool:
    """Tell whether faiss was loaded, and maybe used, before this process was forked."""
    return _faiss_inherited


def _after_fork() -> None:
    global _inherited, _faiss_inherited
    _faiss_inherited = _faiss_inherited or "faiss" in sys.modules
    if _started:
        _inherited = "fcdeploy had already run"
    elif numba := sys.modules.get("numba"):
        with contextlib.suppress(
            ValueError, AttributeError
        ):  # no threads were started, or numba is half imported
            if numba.threading_layer() == "omp":  # which ends a forked process
                _inherited = _inherited or "numba had already started its threads"


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
