"""Lists of what could not be used, beside an output: a number a line, counted from 0, and why behind a tab."""

import re
from collections.abc import Iterable
from pathlib import Path

from fcdeploy.data.atomic import atomic_file
from fcdeploy.errors import InputError

HEAD = 1 << 16  # bytes of a list that tell whether it is one
LINE = re.compile(rb"\d+\t[^\n]*")


def bad_list_of(output: Path) -> Path:
    """Return where the bad rows or lines of a command's input are listed."""
    return output.with_suffix(".bad.txt")


def check_bad_list(path: Path, inputs: Iterable[Path | None] = ()) -> None:
    """Raise InputError where a list would replace one of the inputs, or a file that is no such list.

    A link is replaced, not what it leads to.
    """
    if any(given is not None and is_same(path, given) for given in inputs):
        raise InputError(
            f"{path}: is an input, and the list of what cannot be used would replace it; choose another output."
        )
    if path.exists() and not path.is_symlink() and not is_bad_list(path):
        raise InputError(
            f"{path}: is not a list of what could not be used, and would be replaced by one; move it, or choose "
            "another "
            "output."
        )


def is_bad_list(path: Path) -> bool:
    """Tell whether a file, or what a link leads to, looks like a list of an earlier run."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(HEAD)
    lines = head.split(b"\n")[:-1]
    return bool(lines) and all(map(LINE.fullmatch, lines))


def write_bad_list(path: Path, lines: Iterable[tuple[int, bytes]]) -> None:
    """Write numbers and reasons, whole or not at all."""
    with atomic_file(path) as file:
        for number, reason in lines:
            file.write(b"%d\t%s\n" % (number, reason))


def remove_bad_list(path: Path) -> None:
    """Delete the list of an earlier run; anything else of that name stays."""
    if is_bad_list(path):
        path.unlink()


def is_same(path: Path, other: Path) -> bool:
    """Tell whether two paths are one file that is there."""
    return path.exists() and other.exists() and path.samefile(other)
