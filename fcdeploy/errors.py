"""The few ways in which fcdeploy fails, each with the exit code that the command line returns.

Sentences name options as the command line does, "--on-bad skip"; who calls fcdeploy from Python reads "on_bad skip".
"""

import contextlib
import re
from collections.abc import Iterator

# Flags and what they are called in Python; run.options adds its own.
ARGUMENTS = {
    name: name.replace("-", "_")
    for name in (
        *("run-dir", "on-bad", "column", "engine", "detector", "embedder"),
        *("score-threshold", "nms-threshold", "top-k", "min-face"),
        *("min-size", "min-sharpness", "max-yaw", "min-norm"),
        *("drop-flagged", "same-photo"),
        *("methods", "objective", "unknown"),
    )
}
VALUES = {"stop", "skip", "zero"}  # words that are values of options; run.options adds its own
LEADING = re.compile(r"^--([a-z-]+) (.+?)(?=: )")
OPTION = re.compile(r"--([a-z]+(?:-[a-z]+)*)(?: (\d[\d.]*\d|\d|[a-z][a-z0-9-]*))?")
_speaking_flags = False  # of the whole process: sentences come from other threads, too


@contextlib.contextmanager
def speaking_flags() -> Iterator[None]:
    """Let sentences name options as the command line does, inside the block."""
    global _speaking_flags
    before, _speaking_flags = _speaking_flags, True
    try:
        yield
    finally:
        _speaking_flags = before


def counted(n: int, one: str, several: str = "") -> str:
    """Return a number with its noun, as in "1 label" and "2,670 labels"; several: a plural that is not regular."""
    return f"{n:,} {one if n == 1 else several or f'{one}s'}"


def spoken(sentence: str) -> str:
    """Return a sentence with options named as its reader types them."""

    def named(match: re.Match[str]) -> str:
        name, value = ARGUMENTS.get(match[1]), match[2]
        if name is None or value is None:
            return name or match[0]
        if value[0].isdigit() or value in VALUES:
            return f"{name}={value if value[0].isdigit() else repr(value)}"
        return f"{name} {value}"

    def led(match: re.Match[str]) -> str:
        return f"{ARGUMENTS[match[1]]} = {match[2]}" if match[1] in ARGUMENTS else match[0]

    return sentence if _speaking_flags else OPTION.sub(named, LEADING.sub(led, sentence))


class FcdeployError(Exception):
    """An error that is not caused by invalid input (exit code 1); the base class of all errors of fcdeploy."""

    exit_code = 1

    def __init__(self, *sentence: object) -> None:
        super().__init__(*(spoken(part) if isinstance(part, str) else part for part in sentence))


class InputError(FcdeployError, ValueError):
    """Input or arguments are invalid; the message says what is wrong, where, and what to do (exit code 2)."""

    exit_code = 2


class ParityError(FcdeployError):
    """The outputs of an exported graph differ too much from those of the PyTorch network (exit code 3)."""

    exit_code = 3


class MissingDependencyError(FcdeployError, ImportError):
    """A package that is needed is not installed; the message has the command that installs it."""

    exit_code = 2


class BrokenDependencyError(MissingDependencyError):
    """A package that this command needs is installed and does not load; the sentence holds the reason."""


class FcdeployWarning(UserWarning):
    """A note: fcdeploy changed or noticed something, for example a k larger than the number of faces."""
