"""Standard streams that are closed, full or gone: a command does its work anyway, and says what it can.

A process may begin without its streams (``2>&-``, some service managers). The next files that it opens would take
their numbers, and whatever a library prints would end up in those files.
"""

import contextlib
import io
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

STDIN, STDOUT, STDERR = range(3)
STANDARD_OUTPUT = "standard output"


class _Messages(io.FileIO):
    """stderr: what cannot be written there is lost, for which no command fails."""

    def write(self, data: "ReadableBuffer") -> int:
        with contextlib.suppress(OSError):
            super().write(data)
        return memoryview(data).nbytes


class _Results(io.FileIO):
    """stdout: what cannot be written there is an error, which says where it was."""

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data)
        except OSError as error:
            raise OSError(error.errno, error.strerror, STANDARD_OUTPUT) from None


def mend_streams() -> None:
    """Open what is closed of stdin, stdout and stderr on nothing, and let messages that cannot be written be lost."""
    for number in (STDIN, STDOUT, STDERR):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115 - as long as the process
    for name, number, kind in (("stdout", STDOUT, _Results), ("stderr", STDERR, _Messages)):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _text(kind(number, "w", closefd=False), "utf-8", number == STDERR))
        elif stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(OSError):
                stream.flush()
            raw = kind(number, "w", closefd=False)
            setattr(sys, name, _text(raw, stream.encoding, number == STDERR or stream.isatty()))
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _text(raw: io.FileIO, encoding: str, line_buffering: bool) -> io.TextIOWrapper:
    # Errors: a name may hold bytes that are no text.
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors="backslashreplace", line_buffering=line_buffering
    )


def give_up_stdout() -> None:
    """Let what is left in stdout's buffer go nowhere: nobody reads it, or there is no room for it."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
