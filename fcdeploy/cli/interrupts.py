"""Ctrl-C: found in whatever form it arrives, and answered with how to go on."""

import contextlib
from collections.abc import Iterator

# What comes of a Ctrl-C while numba calls back into Python, and while a library of C++ is imported.
MASKS = (SystemError, ImportError)


@contextlib.contextmanager
def resumable(advice: str) -> Iterator[None]:
    """Let an interrupt of the block say how to go on: KeyboardInterrupt(advice)."""
    try:
        yield
    except BaseException as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt(advice) from None


@contextlib.contextmanager
def unmasked() -> Iterator[None]:
    """Let an interrupt of the block leave it as KeyboardInterrupt, whatever it arrived as."""
    try:
        yield
    except MASKS as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt from error


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
