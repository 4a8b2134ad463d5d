"""Lists of image files, one path a line; a face's id is the number of its line, from 0."""

import errno
import hashlib
import os
import re
import stat
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypedDict, Unpack

import numpy as np

from fcdeploy.data.images import State
from fcdeploy.data.members import Members
from fcdeploy.data.unicode_names import Listings, same_name
from fcdeploy.errors import InputError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
HEAD = 4096  # bytes that tell whether a file is a text
LOOK_BLOCK = 4096  # paths that one thread looks up at a time
NO_STAMP = 0  # of a line that names no file


@dataclass(frozen=True)
class Filelist:
    """The lines of a list, kept as they were written: a path may hold any byte but newline and NUL.

    folder: what relative paths start from. text holds line i at text[starts[i]:ends[i]]; starts, ends: (n,) int64.
    ``name`` is what messages call the list. labels: (n,) int64, the people of the lines, numbered from 0, -1 where
    unknown; None where the list has no labels. is_text: whether the lines are in a file of the
    user's. skipped: how many files were passed over, by reason. found_as: the paths of lines whose files have names in
    another Unicode normalisation, as far as they were looked up. members: where the images lie, when that is in
    archives; the lines are no paths then.
    """

    folder: bytes
    text: bytes
    starts: np.ndarray
    ends: np.ndarray
    name: str
    labels: np.ndarray | None = None
    is_text: bool = True
    skipped: dict[str, int] = field(default_factory=dict)
    found_as: dict[int, bytes] = field(default_factory=dict)
    members: Members | None = None

    @property
    def n(self) -> int:
        return len(self.starts)

    def line(self, at: int) -> bytes:
        """Return line ``at``, counted from 0, without its end."""
        return self.text[self.starts[at] : self.ends[at]]

    def path(self, at: int) -> bytes:
        """Return the path of line ``at`` as the system takes it."""
        return self.found_as.get(at) or os.path.join(self.folder, self.line(at))

    def source(self, at: int) -> bytes | Callable[[], BinaryIO]:
        """Return what line ``at`` is read from: its path, or what opens a member of an archive."""
        return self.path(at) if self.members is None else self.members.source(at)

    @property
    def sources(self) -> tuple[Path, ...]:
        """The files that the list was read from."""
        return (Path(self.name),) if self.members is None else self.members.archives

    def shown(self, at: int) -> str:
        """Return line ``at`` for a message; bytes that are no UTF-8 as escapes."""
        return self.line(at).decode("utf-8", "backslashreplace")

    def digest(self) -> str:
        """Return a hash of the lines and their order."""
        state = hashlib.sha256()
        for at in range(self.n):
            state.update(self.line(at) + b"\n")
        return state.hexdigest()


def read_filelist(path: Path | str) -> Filelist:
    """Read a list of image paths, one a line, relative to the folder of the list.

    Lines end in LF or CRLF. Every line counts, blank ones too (they are found bad later, so that no id shifts), but
    for blank ones at the end. Nothing is a comment. A byte-order mark is passed over. Raises InputError when the
    list is missing, empty or not a text of paths.
    """
    path = Path(path)
    text = read_text(path)
    folder = os.fsencode(path.parent)
    starts, ends = _lines(text)
    if not len(starts):
        raise InputError(f"{path}: is empty; expected one image path per line.")
    return Filelist(folder, text, starts, ends, str(path))


def read_text(path: Path) -> bytes:
    """Return the bytes of a text without its byte-order mark; raises InputError when it is none or cannot be read."""
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give a text file with one image path per line, or a folder of images."
        ) from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; give a text file with one image path per line.") from None
    except PermissionError:
        raise InputError(f"{path}: may not be read; change its permissions or copy it.") from None
    if text.startswith(UTF16_MARKS):
        raise InputError(f"{path}: is UTF-16 text; save it as UTF-8.")
    if b"\0" in text[:HEAD]:
        raise InputError(f"{path}: is not a text file; give one with one image path per line.")
    return text.removeprefix(BYTE_ORDER_MARK)


class FilelistFields(TypedDict, total=False):
    """Further fields of a ``Filelist``."""

    labels: np.ndarray | None
    is_text: bool
    skipped: dict[str, int]
    members: Members | None


def filelist_from_lines(
    folder: bytes, lines: Sequence[bytes], name: str, **more: Unpack[FilelistFields]
) -> Filelist:
    """Take lines as a list; more: further fields of ``Filelist``."""
    lengths = np.array([len(line) for line in lines], dtype=np.int64)
    ends = np.cumsum(lengths + 1) - 1
    return Filelist(folder, b"\n".join(lines), ends - lengths, ends, name, **more)


def filelist_from_paths(paths: Sequence[Path | str | bytes]) -> Filelist:
    """Take paths, relative to the current folder, as a list; raises InputError when there are none."""
    encoded = [os.fsencode(path) for path in paths]
    if not encoded:
        raise InputError("images: there are none; give at least one path.")
    for at, path in enumerate(encoded):
        if b"\n" in path:
            raise InputError(f"images: path {at} holds a line break, {path!r}; rename the file.")
    return filelist_from_lines(b"", encoded, "images")


def lines_outside(files: Filelist) -> np.ndarray:
    """Return the lines (m,) int64 whose paths lead out of the folder of the list, as they are written.

    Symlinks inside the folder are not looked at.
    """
    text = np.frombuffer(files.text, np.uint8)
    absolute = np.flatnonzero((files.ends > files.starts) & (text[files.starts % len(text)] == ord("/")))
    climbing = [at.start() for at in re.finditer(rb"\.\.", files.text)]
    lines = np.union1d(absolute, np.searchsorted(files.starts, climbing, side="right") - 1)
    inside = os.path.join(os.path.abspath(files.folder), b"")
    outside = [at for at in lines.tolist() if not os.path.abspath(files.path(at)).startswith(inside)]
    return np.array(outside, dtype=np.int64)


def look_up(
    files: Filelist, start: int, stop: int, listings: Listings | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Tell of lines start..stop-1, without opening anything, whether they name a file, and which.

    A name that is there in another Unicode normalisation only is that file's. listings: of ``same_name``. Returns
    states (m,) uint8, ``State.GOOD`` or why not, and stamps (m,) uint64: another when the file was changed or is
    another one, NO_STAMP where there is none.
    """
    if files.members is not None:
        return _look_into(files.members, start, stop)
    listings = {} if listings is None else listings
    states = np.zeros(stop - start, np.uint8)
    stamps = np.full(stop - start, NO_STAMP, np.uint64)
    for at in range(start, stop):
        if not files.line(at).strip():
            states[at - start] = State.BLANK
            continue
        try:
            found = _stat(files, at, listings)
        except OSError as error:
            absent = error.errno in (errno.ENOENT, errno.ENOTDIR)
            states[at - start] = State.MISSING if absent else State.UNREADABLE
            continue
        except ValueError:  # a NUL in the path
            states[at - start] = State.MISSING
            continue
        if not stat.S_ISREG(found.st_mode):  # a pipe would be waited for, for ever
            states[at - start] = State.NOT_A_FILE
        elif not found.st_size:
            states[at - start] = State.EMPTY
        else:
            stamps[at - start] = _stamp(found)
    return states, stamps


def look_up_all(
    files: Filelist, threads: int, advance: Callable[[int], None]
) -> tuple[np.ndarray, np.ndarray]:
    """Do ``look_up`` for all lines, which on a file server takes a while; ``advance`` is told how many are done."""
    states, stamps = np.empty(files.n, np.uint8), np.empty(files.n, np.uint64)
    listings: Listings = {}

    def look(start: int) -> int:
        stop = min(start + LOOK_BLOCK, files.n)
        states[start:stop], stamps[start:stop] = look_up(files, start, stop, listings)
        return stop - start

    pool = ThreadPoolExecutor(threads)
    try:
        for looked_up in pool.map(look, range(0, files.n, LOOK_BLOCK)):
            advance(looked_up)
    finally:
        pool.shutdown(cancel_futures=True)
    return states, stamps


def _stat(files: Filelist, at: int, listings: Listings) -> os.stat_result:
    try:
        return os.stat(files.path(at))
    except FileNotFoundError:
        other = same_name(os.path.join(files.folder, files.line(at)), listings)
        if other is None:
            raise
        found = os.stat(other)
        files.found_as[at] = other
        return found


def _look_into(members: Members, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Do ``look_up`` for members of archives: a stamp is of the archive and of the place in it."""
    states = np.zeros(stop - start, np.uint8)
    stamps = np.full(stop - start, NO_STAMP, np.uint64)
    found: dict[int, os.stat_result | None] = {}
    for at in range(start, stop):
        number = int(members.archive[at])
        if number not in found:
            try:
                found[number] = os.stat(members.archives[number])
            except OSError:
                found[number] = None
        archive = found[number]
        if archive is None:
            states[at - start] = State.MISSING
        elif not members.sizes[at]:
            states[at - start] = State.EMPTY
        else:
            stamps[at - start] = _stamp(archive, int(members.starts[at]), int(members.lengths[at]))
    return states, stamps


def _stamp(found: os.stat_result, *place: int) -> int:
    # The time of change of the inode cannot be set by a user, as that of the content can.
    fields = struct.pack("<QqqQ", found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size)
    fields += struct.pack(f"<{len(place)}q", *place)
    return max(NO_STAMP + 1, int.from_bytes(hashlib.blake2b(fields, digest_size=8).digest(), "little"))


def _lines(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return where every line starts and ends, (n,) int64 each, without blank lines at the end of the text."""
    last = len(text.rstrip())
    end = text.find(b"\n", last)  # of the last line that is not blank, with any spaces that its path ends in
    raw = np.frombuffer(text, np.uint8, count=len(text) if end < 0 else end)
    breaks = np.flatnonzero(raw == ord("\n"))
    starts = np.concatenate([[0], breaks + 1])
    ends = np.concatenate([breaks, [len(raw)]])
    if not last:
        return starts[:0], ends[:0]
    carriage = (ends > starts) & (raw[ends - 1] == ord("\r"))
    return starts, ends - carriage
