"""Ctrl-C and its like: found in whatever form it arrives, and answered with how to continue."""

import contextlib
import math
import signal
import threading
import time
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
PATIENCE_SECONDS = 10.0  # for which more signals behind the first are taken for the same wish
# The signals that end a command, and what was to come of them where nobody asked for anything else.
USUAL = {
    signal.SIGINT: signal.default_int_handler,
    signal.SIGTERM: signal.SIG_DFL,
    **({signal.SIGHUP: signal.SIG_DFL} if hasattr(signal, "SIGHUP") else {}),
}

_received = 0
_held_back = 0
_raised_at = -math.inf


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

    So do SIGTERM and SIGHUP where nothing else was to come of them; ``received`` tells which it was. While a signal
    passes through ``FRAGILE`` code it is held back; more of them soon behind the first change nothing, so that what it
    leaves is cleared up in peace. Signals stay as they are outside of the main thread, where Ctrl-C is handled
    otherwise already (a shell's background jobs ignore it), and without timers (Windows).
    """
    global _received, _held_back, _raised_at
    handled = threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer")
    numbers = [
        number for number, usual in USUAL.items() if handled and signal.getsignal(number) is usual
    ]  # of a job of nohup's, SIGHUP is ignored
    timed = [signal.SIGALRM] if numbers else []
    if numbers:
        _received, _held_back, _raised_at = 0, 0, -math.inf
    before = {number: signal.signal(number, _interrupt) for number in (*numbers, *timed)}
    try:
        with unmasked():
            yield
    finally:
        if numbers:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def unmasked() -> Iterator[None]:
    """Let what others make of a Ctrl-C leave the block as KeyboardInterrupt: see ``MASKS``."""
    try:
        yield
    except MASKS as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt from error


def received() -> int:
    """Return the number of the signal that the last ``interruptible`` block was left for, 0 if there was none."""
    return _received


def ignore_signals() -> None:
    """Let nothing disturb the end of the process any more."""
    for number in USUAL:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _received, _held_back, _raised_at
    if number == signal.SIGALRM:
        number = _held_back or signal.SIGINT
    if time.monotonic() - _raised_at < PATIENCE_SECONDS:
        return
    while frame is not None:
        name, code = frame.f_globals.get("__name__") or "", frame.f_code
        ignored = {("", code.co_name), (code.co_filename, code.co_name)}.intersection(IGNORED)
        if ignored or name.partition(".")[0] in FRAGILE:
            _held_back = number
            signal.setitimer(signal.ITIMER_REAL, HELD_BACK_SECONDS)
            return
        frame = frame.f_back
    _received, _raised_at = number, time.monotonic()
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
