"""A folder of images as a list: all images below it in natural order, and the people that its folders stand for."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcdeploy.data.filelist import Filelist, filelist_from_lines
from fcdeploy.data.images import HEAD_BYTES, begins_like_an_image
from fcdeploy.errors import InputError

SUFFIXES = frozenset(
    b".jpg .jpeg .jpe .jfif .mpo .png .apng .webp .bmp .dib .gif .tif .tiff .ppm .pgm .pbm .pnm .jp2 .j2k .jpx .j2c "
    b".jpc .jpf .avif .avifs .heic .heics .heif .heifs .hif".split()
)
NOT_OURS = (b"__MACOSX", b"@eaDir")  # copies and thumbnails that systems put beside pictures
UNKNOWN = (b"", b"-1", b"nan", b"NaN")  # labels of nobody
NUMBER = re.compile(rb"([0-9]+)")


def filelist_from_folder(path: Path | str) -> Filelist | None:
    """Take all images below a folder as a list, or return None when there are none.

    Paths are relative to the folder, in natural order (2.jpg before 10.jpg), folder by folder. An image is a file with
    the suffix of one, or that begins like one. Hidden files and folders, and files of other kinds, are passed over and
    counted. Links are followed, each folder once. Labels are those of ``labels_of_folders``. Raises InputError when a
    folder below cannot be read or a name holds a line break.
    """
    root = os.fsencode(path)
    names: list[bytes] = []
    skipped = {"hidden": 0, "other": 0}
    seen: set[tuple[int, int]] = set()
    waiting = [b""]
    while waiting:
        below = waiting.pop()
        folder = os.path.join(root, below)
        try:
            found = os.stat(folder)
            if (found.st_dev, found.st_ino) in seen:
                continue
            seen.add((found.st_dev, found.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except OSError as error:
            raise InputError(f"{os.fsdecode(folder)}: cannot be read ({error.strerror}).") from None
        for entry in entries:
            name = os.path.join(below, entry.name)
            if is_hidden(entry.name):
                skipped["hidden"] += 1
            elif entry.is_dir():
                waiting.append(name)
            elif _is_image(entry):
                names.append(name)
            else:
                skipped["other"] += 1
    broken = next((name for name in names if b"\n" in name), None)
    if broken is not None:
        raise InputError(f"{path}: holds a name with a line break, {broken!r}; rename the file.")
    if not names:
        return None
    names.sort(key=natural)
    return filelist_from_lines(
        root, names, str(path), labels=labels_of_folders(names), is_text=False, skipped=skipped
    )


def natural(path: bytes) -> tuple[tuple[tuple[bytes | int, ...], ...], bytes]:
    """Return a sort key by which numbers in names come in their order as numbers."""
    parts = [NUMBER.split(part.lower()) for part in path.split(b"/")]
    return tuple(
        tuple(int(piece) if at % 2 else piece for at, piece in enumerate(part)) for part in parts
    ), path


def is_hidden(name: bytes) -> bool:
    """Tell whether a name is of what systems hide, or put beside the user's files."""
    return name.startswith(b".") or name in NOT_OURS


def labels_of_folders(paths: Sequence[bytes]) -> np.ndarray | None:
    """Return the person of every image by the first folder in which paths differ, or None where all are in one.

    Folders that all paths begin with are no people. Returns (n,) int64, numbered by first appearance; -1 for an image
    that lies beside those folders.
    """
    folders = [path.split(b"/")[:-1] for path in paths]
    first, last = min(folders), max(folders)
    depth = 0
    while depth < min(len(first), len(last)) and first[depth] == last[depth]:
        depth += 1
    if all(len(folder) == depth for folder in folders):
        return None
    return identities_of([folder[depth] if len(folder) > depth else None for folder in folders])


def identities_of(names: Sequence[bytes | float | None]) -> np.ndarray:
    """Number names (n,) by first appearance, int64; None is nobody's, -1."""
    numbers: dict[bytes | float, int] = {}
    return np.array(
        [-1 if name is None else numbers.setdefault(name, len(numbers)) for name in names], np.int64
    )


def person_of(text: bytes) -> bytes | None:
    """Return the person that a label names, None where it says that nobody is known."""
    return None if text in UNKNOWN else text


def _is_image(entry: "os.DirEntry[bytes]") -> bool:
    """Tell whether a file is an image by its name or its first bytes; what is no file, or not to be read, by name."""
    if os.path.splitext(entry.name)[1].lower() in SUFFIXES:
        return True
    try:
        if not entry.is_file():
            return False
        with open(entry.path, "rb") as file:
            return begins_like_an_image(file.read(HEAD_BYTES))
    except OSError:
        return False
