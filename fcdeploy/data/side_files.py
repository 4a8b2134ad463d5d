"""Files that a command writes, held against what is there: its inputs, and files that the user did not name."""

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from fcdeploy.errors import InputError

HEAD = 1 << 16  # bytes by which a file is told


def check_not_an_input(
    path: Path, inputs: Iterable[Path | None], advice: str = "choose another output"
) -> None:
    """Raise InputError when ``path`` is one of the files that the same command reads, by whatever name."""
    if not path.exists():
        return
    for given in inputs:
        if given is not None and given.exists() and path.samefile(given):
            raise InputError(f"{path}: is also an input; {advice}.")


def check_replaceable(
    path: Path, ours: Callable[[Path], bool], what: str, advice: str = "choose another output"
) -> None:
    """Raise InputError when a file that nobody named would be written over, and is not one of ours.

    ours: tells of an existing file whether it is; what: what goes there, for the message.
    """
    if os.path.lexists(path) and not (path.is_file() and not path.is_symlink() and ours(path)):
        raise InputError(
            f"{path}: was not written by fcdeploy, and would be replaced by {what}; move it, or {advice}."
        )


def head_of(path: Path) -> bytes:
    """Return the beginning of a file."""
    with open(path, "rb") as file:
        return file.read(HEAD)


def is_table(path: Path, line: re.Pattern[bytes]) -> bool:
    """Tell whether a text file has lines, all of which match; of a long one, those in its beginning."""
    found = head_of(path)
    lines = found.split(b"\n")
    whole = lines[:-1] if len(found) == HEAD or not lines[-1] else lines
    return bool(whole) and all(map(line.fullmatch, whole))
