"""Ctrl-C: found in whatever form it arrives, and answered with how to go on."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def resumable(advice: str) -> Iterator[None]:
    """Let an interrupt of the block say how to go on: KeyboardInterrupt(advice)."""
    try:
        yield
    except BaseException as error:
        if not interrupted(error):
            raise
        raise KeyboardInterrupt(advice) from None


def interrupted(error: BaseException | None) -> bool:
    """Tell whether an exception is a Ctrl-C, or what numba and others make of one while they call back into Python."""
    if isinstance(error, KeyboardInterrupt):
        return True
    if not isinstance(error, SystemError):
        return False
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__cause__ or cause.__context__
    return cause is not None
