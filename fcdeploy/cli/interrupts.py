"""Ctrl-C: found in whatever form it arrives, and answered with how to go on."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

# What comes of a Ctrl-C while numba calls back into Python, and while a library of C++ is imported.
MASKS = (SystemError, ImportError)
# Where an exception out of nowhere leaves a lock taken, for which the next thread waits for ever, or ends the process:
# numba and llvmlite while they compile. In a callback of a weak reference Python prints it and goes on. NumPy,
# which asks abc what a file is, takes it for a yes.
FRAGILE = ("_weakrefset", "abc", "llvmlite", "numba", "weakref")
# What Python calls when an object dies, and whose exceptions it ignores: file and name of the code; any file is "".
IGNORED = (("", "__del__"), ("<frozen importlib._bootstrap>", "cb"))
HELD_BACK_SECONDS = 0.05


@contextlib.contextmanager
def resumable(advice: str, kept: Path | None = None) -> Iterator[None]:
    """Let an interrupt of the block say how to go on: KeyboardInterrupt(advice), once there is ``kept``, if given."""
    try:
        yield
    except BaseException as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt(advice if kept is None or kept.exists() else "") from None


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a Ctrl-C leave the block as KeyboardInterrupt, whatever others make of it, and from where it does no harm.

    While it passes through ``FRAGILE`` code it is held back. Signals stay as they are outside of the main thread,
    where Ctrl-C is handled otherwise already (a shell's background jobs ignore it), and without timers (Windows).
    """
    handled = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        and hasattr(signal, "setitimer")
    )
    numbers = (signal.SIGINT, signal.SIGALRM) if handled else ()
    before = {number: signal.signal(number, _interrupt) for number in numbers}
    try:
        yield
    except MASKS as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt from error
    finally:
        if handled:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        name, code = frame.f_globals.get("__name__") or "", frame.f_code
        ignored = {("", code.co_name), (code.co_filename, code.co_name)}.intersection(IGNORED)
        if ignored or name.partition(".")[0] in FRAGILE:
            signal.setitimer(signal.ITIMER_REAL, HELD_BACK_SECONDS)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def interrupted(error: BaseException | None) -> bool:
    """Tell whether an exception is a Ctrl-C, or what others make of one: see ``MASKS``."""
    if isinstance(error, KeyboardInterrupt):
        return True
    if not isinstance(error, MASKS):
        return False
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None
