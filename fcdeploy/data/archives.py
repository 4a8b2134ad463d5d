"""Archives of images as lists: tar (shards too), zip, and MXNet's RecordIO. Nothing is unpacked to disk."""

import dataclasses
import json
import math
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.filelist import Filelist, filelist_from_lines
from fcdeploy.data.imagefolder import (
    SUFFIXES,
    identities_of,
    is_hidden,
    labels_of_folders,
    natural,
    person_of,
)
from fcdeploy.data.images import HEAD_BYTES, begins_like_an_image
from fcdeploy.data.members import (
    FIRST_PART,
    IMAGE_HEADER,
    RECORD_HEADER,
    RECORD_MAGIC,
    ZIP_METHODS,
    Found,
    Kind,
    is_zip,
    labels_length,
    members_of,
    read_parts,
)
from fcdeploy.errors import InputError, counted

HEAD = 512  # bytes that tell an archive
TAR_HEADER, ZIP_INDEX = 1 << 24, 1 << 30  # bytes of a header of a tar, and of the index of a zip, at most
LONGEST_LABEL, LONGEST_JSON = 64, 1 << 16  # bytes of a .cls and of a .json member
LABEL_KEYS = ("label", "identity", "cls")  # of a .json member
MOST_SHARDS = 100_000
COMPRESSED = {
    b"\x1f\x8b": "gzip -d",
    b"BZh": "bzip2 -d",
    b"\xfd7zXZ": "xz -d",
    b"\x28\xb5\x2f\xfd": "zstd -d",
}
NUMBERS = re.compile(r"\{([0-9]+)\.\.([0-9]+)\}")
NAME_SUFFIXES = (".tar", ".zip", ".rec")


def archive_kind(path: Path) -> str | None:
    """Return 'tar', 'zip' or 'rec' for an archive, by content; None for anything else.

    Raises InputError for a compressed tar archive, whose members cannot be read in place.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return None
    if head[:4] == RECORD_MAGIC.to_bytes(4, "little"):
        return "rec"
    if is_zip(head):
        return "zip"
    if head[257:262] == b"ustar" or (path.suffix.lower() == ".tar" and tarfile.is_tarfile(path)):
        return "tar"
    for magic, command in COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(
                f"{path}: is compressed; archives of images are read in place, so unpack it first: `{command} {path}`."
            )
    return None


def shards_of(path: Path) -> list[Path] | None:
    """Return the files of a pattern with braces, as ``shard-{000..010}.tar``; None where ``path`` is no pattern."""
    text = str(path)
    match = NUMBERS.search(text)
    if match is None or path.exists():
        return None
    first, last = match.groups()
    if not int(first) <= int(last) < int(first) + MOST_SHARDS:
        raise InputError(
            f"{path}: {{{first}..{last}}} is not from a number to a larger one, of {MOST_SHARDS:,} at most."
        )
    width = len(first) if first.startswith("0") or len(first) == len(last) else 0
    paths = []
    for number in range(int(first), int(last) + 1):
        one = Path(f"{text[: match.start()]}{number:0{width}}{text[match.end() :]}")
        paths += shards_of(one) or [one]
    for one in paths:
        if not one.is_file():
            raise InputError(f"{path}: {one} is missing; give the shards that are there.")
    return paths


def shards_in(folder: Path) -> list[Path]:
    """Return the archives that lie in a folder, in natural order."""
    found = [
        one
        for one in folder.iterdir()
        if one.suffix.lower() in NAME_SUFFIXES and one.is_file() and one.name[0] != "."
    ]
    return sorted(found, key=lambda one: natural(os.fsencode(one.name)))


def filelist_from_archives(paths: Sequence[Path], name: str) -> Filelist:
    """Take the images in one or more archives as a list, in the order of their members.

    The lines are the members' names (of RecordIO, the ids), behind the name of the archive where there are several.
    Labels are those of ``.cls`` or ``.json`` members (WebDataset), of records, or of folders (``labels_of_folders``).
    Raises InputError when an archive is damaged, cut short, encrypted, or there are no images.
    """
    readers: dict[str | None, Callable[[Path], Found]] = {"tar": _in_tar, "zip": _in_zip, "rec": _in_records}
    kinds = [archive_kind(path) for path in paths]
    if None in kinds:
        raise InputError(f"{paths[kinds.index(None)]}: is not an archive of images (tar, zip or RecordIO).")
    found = [readers[kind](path) for kind, path in zip(kinds, paths, strict=True)]
    names = [each for one in found for each in one.names]
    passed = {kind: sum(one.passed[kind] for one in found) for kind in ("hidden", "other")}
    if not names:
        raise InputError(
            f"{name}: holds no images ({counted(sum(passed.values()), 'member')} of other kinds)."
        )
    said = [label for one in found for label in one.labels]
    labels: np.ndarray | None
    if any(label is not None for label in said):
        labels = identities_of(said)
    else:
        labels = labels_of_folders([re.sub(rb"^(\./)+", b"", each) for each in names])
    if len(paths) > 1:
        behind = [os.fsencode(path.name) for path, one in zip(paths, found, strict=True) for _ in one.names]
        names = [folder + b"/" + each for folder, each in zip(behind, names, strict=True)]
    lines = [_printable(each) for each in names]
    return filelist_from_lines(
        b"",
        lines,
        name,
        labels=labels,
        is_text=False,
        skipped=passed,
        members=members_of(tuple(paths), found),
    )


def opened_lines(files: Filelist) -> Filelist:
    """Return a list as it is, or, where its lines lead into tar archives (``shard.tar/name.jpg``), with the members.

    The first line tells. Raises InputError for a line that names no member, where the first one does.
    """
    first = files.line(0).partition(b".tar/")
    if not first[1] or not os.path.isfile(os.path.join(files.folder, first[0] + b".tar")):
        return files
    archives: dict[bytes, int] = {}
    wanted = []
    for at in range(files.n):
        archive, into, member = files.line(at).partition(b".tar/")
        if not into:
            raise InputError(
                f"{files.name}: line {at}, counted from 0, {files.shown(at)!r}, is not in an archive, as the lines "
                "before it do; list members of archives only, or files only."
            )
        wanted.append((archives.setdefault(archive + b".tar", len(archives)), member))
    paths = [Path(os.fsdecode(os.path.join(files.folder, one))) for one in archives]
    for path in paths:
        if not path.is_file() or archive_kind(path) != "tar":
            raise InputError(f"{files.name}: is in {path}, which is not a tar archive.")
    found = [_in_tar(path) for path in paths]
    members = members_of(tuple(paths), found)
    names = [(number, name) for number, one in enumerate(found) for name in one.names]
    place = {name: at for at, name in enumerate(names)}
    missing = next((at for at, key in enumerate(wanted) if key not in place), None)
    if missing is not None:
        raise InputError(
            f"{files.name}: line {missing}, counted from 0, {files.shown(missing)!r}: there is no such member."
        )
    return dataclasses.replace(files, members=members.chosen(np.array([place[key] for key in wanted])))


class _Headers:
    """A file for tarfile and zipfile that reads no more at a time than headers are long, whatever they claim."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file, self._most = file, most
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, size: int = -1) -> bytes:
        left = max(0, os.fstat(self._file.fileno()).st_size - self._file.tell())
        wanted = left if size == -1 else min(size, left)
        if not 0 <= wanted <= self._most:
            raise ValueError(f"a header of more than {self._most:,} bytes")
        return self._file.read(wanted)


def _in_tar(path: Path) -> Found:
    found = Found()
    classes: dict[bytes, bytes | None] = {}
    size = path.stat().st_size
    with open(path, "rb") as file:
        try:
            for info in _tar_members(file):
                name = os.fsencode(info.name)
                start, length = info.offset_data, info.size
                if length < 0 or start + length > size:
                    raise tarfile.ReadError(f"it ends within {info.name!r}")
                if not info.isreg() or info.issparse():
                    found.passed["other"] += not info.isdir()
                elif _hidden(name):
                    found.passed["hidden"] += 1
                elif _has_suffix(name) or begins_like_an_image(_head(file, start, length)):
                    found.add(name, Kind.PLAIN, start, length, length)
                else:
                    found.passed["other"] += 1
                    if name.endswith(b".cls") and length <= LONGEST_LABEL:
                        classes[_sample(name)] = person_of(os.pread(file.fileno(), length, start).strip())
                    elif name.endswith(b".json") and length <= LONGEST_JSON:
                        told = _label_in(os.pread(file.fileno(), length, start))
                        if told is not None:
                            classes.setdefault(_sample(name), told)
        except (*DAMAGED, tarfile.TarError) as error:
            raise _damaged(path, error) from None
    if classes:
        found.labels = [classes.get(_sample(name)) for name in found.names]
    return found


def _label_in(content: bytes) -> bytes | None:
    """Return the person that a .json member names: a whole number or a name under a key of labels."""
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return None
    for key in LABEL_KEYS if isinstance(fields, dict) else ():
        value = fields.get(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, str) or type(value) is int:
            return person_of(str(value).strip().encode("utf-8", "surrogatepass"))
    return None


def _tar_members(file: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a tar archive; raises tarfile.ReadError where it is damaged or cut short."""
    with tarfile.TarFile(fileobj=_Headers(file, TAR_HEADER), mode="r") as archive:  # type: ignore[arg-type]
        while (info := archive.next()) is not None:
            archive.members.clear()  # type: ignore[attr-defined] # it keeps all, and we need none
            yield info
        # tarfile takes a block that is no header for the end.
        file.seek(archive.offset)
        block = file.read(HEAD)
        if block.strip(b"\0") or 0 < len(block) < HEAD:
            raise tarfile.ReadError(f"no header of a member at byte {archive.offset:,}")


def _in_zip(path: Path) -> Found:
    found = Found()
    size = path.stat().st_size
    try:
        with open(path, "rb") as file, zipfile.ZipFile(_Headers(file, ZIP_INDEX)) as archive:
            for info in archive.infolist():
                name = info.filename.encode("utf-8", "surrogateescape")
                if info.is_dir():
                    continue
                if _hidden(name):
                    found.passed["hidden"] += 1
                elif not _has_suffix(name):
                    found.passed["other"] += 1
                elif info.flag_bits & 1:
                    raise InputError(f"{path}: is encrypted; unpack it first: `unzip {path}`.")
                elif info.compress_type not in ZIP_METHODS:
                    raise InputError(
                        f"{path}: is compressed by method {info.compress_type}; only the usual one (deflate) and none "
                        "are read in place. Unpack it first."
                    )
                elif info.header_offset < 0 or info.header_offset + info.compress_size > size:
                    raise zipfile.BadZipFile(f"it ends within {info.filename!r}")
                else:
                    found.add(
                        name, Kind.ZIPPED, info.header_offset, info.compress_size, info.file_size, info.CRC
                    )
    except InputError:
        raise
    except (*DAMAGED, UnicodeError) as error:
        raise _damaged(path, error) from None
    return found


def _in_records(path: Path) -> Found:
    """Find the images of a RecordIO file; records without one (of InsightFace: the first, and those of people) go."""
    found = Found()
    size = path.stat().st_size
    with open(path, "rb", buffering=1 << 16) as file:
        at = 0
        while at < size:
            file.seek(at)
            head = file.read(RECORD_HEADER.size + IMAGE_HEADER.size)
            try:
                if len(head) < RECORD_HEADER.size:
                    raise ValueError(f"it ends within the record at byte {at:,}")
                magic, word = RECORD_HEADER.unpack_from(head)
                part, length = word >> 29, word & (1 << 29) - 1
                start = at + RECORD_HEADER.size
                if magic != RECORD_MAGIC or part > FIRST_PART:
                    raise ValueError(f"no record begins at byte {at:,}")
                if start + length > size:
                    raise ValueError(f"it ends within the record at byte {at:,}")
                header = head[RECORD_HEADER.size :][:length]
                end = start + length + -length % 4
                kind = Kind.PLAIN
                if part == FIRST_PART:
                    file.seek(at)
                    header = read_parts(file, size)
                    kind, end, length = Kind.PARTS, file.tell(), len(header)
                if len(header) < IMAGE_HEADER.size or (behind := labels_length(header)) > length:
                    raise ValueError(f"the record at byte {at:,} is not one of an image")
            except ValueError as error:
                raise _damaged(path, error) from None
            count, label, number, _ = IMAGE_HEADER.unpack_from(header)
            if count:
                if kind is Kind.PLAIN:
                    file.seek(start + IMAGE_HEADER.size)
                    header += file.read(4)
                label = float(np.frombuffer(header, "<f4", 1, IMAGE_HEADER.size)[0])
            if behind == length and count:
                found.passed["other"] += 1
            else:
                person = label if math.isfinite(label) and label >= 0 else None
                begin, span = (start + behind, length - behind) if kind is Kind.PLAIN else (at, end - at)
                found.add(b"%d" % number, kind, begin, span, length - behind, label=person)
            at = end
    return found


def _head(file: BinaryIO, start: int, length: int) -> bytes:
    return os.pread(file.fileno(), min(length, HEAD_BYTES), start)


def _hidden(name: bytes) -> bool:
    return any(is_hidden(part) for part in name.split(b"/") if part not in (b".", b".."))


def _has_suffix(name: bytes) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def _sample(name: bytes) -> bytes:
    """Return what the members of a sample have in common: all before the first dot of the last part of the name."""
    folder, slash, last = name.rpartition(b"/")
    return folder + slash + last.split(b".")[0]


def _printable(name: bytes) -> bytes:
    """Return a member's name as one line, with escapes for what would break it."""
    if re.search(rb"[\x00-\x1f\x7f]", name) is None:
        return name
    return re.sub(rb"[\x00-\x1f\x7f]", lambda found: b"\\x%02x" % found[0][0], name)


def _damaged(path: Path, error: Exception) -> InputError:
    return InputError(f"{path}: is damaged or cut short ({reason_of(error)}); copy or download it again.")
