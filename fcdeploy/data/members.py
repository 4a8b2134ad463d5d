"""Images that lie in archives: where each is, and its bytes, without anything being unpacked to disk."""

import io
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

LARGEST = 1 << 28  # bytes of a member that is not read in place
ZIP_HEADER = struct.Struct("<4s22xHH")  # of a member: signature, lengths of name and extra field
RECORD_HEADER = struct.Struct("<II")  # magic number; kind of part (3 bits) and length (29 bits)
RECORD_MAGIC = 0xCED7230A
IMAGE_HEADER = struct.Struct("<IfQQ")  # number of labels that follow, label, id, second id
FIRST_PART, LAST_PART = 1, 3


class Kind(IntEnum):
    """How a member is stored."""

    PLAIN = 0  # as it is
    ZIPPED = 1  # in a zip archive, perhaps compressed
    PARTS = 2  # a record in several parts


@dataclass(frozen=True)
class Members:
    """Where the images of n lines lie.

    archives: the files; archive: (n,) int32, which of them. kinds: (n,) uint8. starts, lengths: (n,) int64, the bytes
    of a plain member, the parts of a record, or the header and the compressed bytes of a zipped one; sizes: (n,) int64
    of the image. checks: (n,) uint32, the CRC of a zipped one.
    """

    archives: tuple[Path, ...]
    archive: np.ndarray
    kinds: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray
    checks: np.ndarray

    def chosen(self, which: np.ndarray) -> "Members":
        """Return the members ``which`` (m,), in that order."""
        arrays = (self.archive, self.kinds, self.starts, self.lengths, self.sizes, self.checks)
        return Members(self.archives, *(array[which] for array in arrays))

    def source(self, at: int) -> Callable[[], BinaryIO]:
        """Return what opens member ``at``; opening raises OSError, or ValueError where its bytes are damaged."""
        path = self.archives[self.archive[at]]
        kind = Kind(self.kinds[at])
        start, length, size = int(self.starts[at]), int(self.lengths[at]), int(self.sizes[at])
        if kind is Kind.PLAIN:
            return lambda: io.BufferedReader(_Window(path, start, length))
        if kind is Kind.PARTS:
            return lambda: io.BytesIO(_joined(path, start, length))
        return lambda: io.BytesIO(_unzipped(path, start, length, size, int(self.checks[at])))


@dataclass
class Found:
    """Members as they are found, one list each; ``names`` are for messages and lists, never used as paths.

    labels: of each what it says of its person, None for nothing. passed: members that are no images, by reason.
    """

    names: list[bytes] = field(default_factory=list)
    labels: list[bytes | float | None] = field(default_factory=list)
    kinds: "array[int]" = field(default_factory=lambda: array("B"))
    starts: "array[int]" = field(default_factory=lambda: array("q"))
    lengths: "array[int]" = field(default_factory=lambda: array("q"))
    sizes: "array[int]" = field(default_factory=lambda: array("q"))
    checks: "array[int]" = field(default_factory=lambda: array("L"))
    passed: dict[str, int] = field(default_factory=lambda: {"hidden": 0, "other": 0})

    def add(
        self,
        name: bytes,
        kind: Kind,
        start: int,
        length: int,
        size: int,
        check: int = 0,
        label: float | None = None,
    ) -> None:
        """Note an image."""
        self.names.append(name)
        self.labels.append(label)
        self.kinds.append(kind)
        self.starts.append(start)
        self.lengths.append(length)
        self.sizes.append(size)
        self.checks.append(check)


def members_of(archives: tuple[Path, ...], found: list[Found]) -> Members:
    """Put together what was found in each of the archives."""
    counts = [len(each.names) for each in found]

    def joined(name: str, dtype: type) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(each, name)).astype(dtype) for each in found])

    return Members(
        archives,
        np.repeat(np.arange(len(archives), dtype=np.int32), counts),
        joined("kinds", np.uint8),
        joined("starts", np.int64),
        joined("lengths", np.int64),
        joined("sizes", np.int64),
        joined("checks", np.uint32),
    )


def read_parts(file: BinaryIO, end: int) -> bytes:
    """Read a record in parts from where ``file`` stands, not beyond ``end``; raises ValueError when it is damaged."""
    pieces: list[bytes] = []
    total = 0
    while True:
        header = file.read(RECORD_HEADER.size)
        if len(header) < RECORD_HEADER.size:
            raise ValueError("a record is cut short")
        magic, word = RECORD_HEADER.unpack(header)
        part, length = word >> 29, word & (1 << 29) - 1
        total += length + 4
        if magic != RECORD_MAGIC or file.tell() + length > end or total > LARGEST:
            raise ValueError("a record is damaged")
        pieces.append(file.read(length))
        file.seek(-length % 4, os.SEEK_CUR)
        if part == LAST_PART:
            # A record is split where its own bytes are those of the magic number.
            return struct.pack("<I", RECORD_MAGIC).join(pieces)


def labels_length(header: bytes) -> int:
    """Return the bytes of the header of an image record and of the labels behind it."""
    return IMAGE_HEADER.size + 4 * int(IMAGE_HEADER.unpack_from(header)[0])


class _Window(io.RawIOBase):
    """The bytes of a file from ``start`` on, as a file of their own."""

    def __init__(self, path: Path, start: int, length: int) -> None:
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by close
        self._start, self._length, self._at = start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._length}[whence]
        if base + offset < 0:
            raise ValueError("before the start of the file")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        wanted = max(0, min(len(view), self._length - self._at))
        read = os.pread(self._file.fileno(), wanted, self._start + self._at)
        view[: len(read)] = read
        self._at += len(read)
        return len(read)

    def close(self) -> None:
        self._file.close()
        super().close()


def _joined(path: Path, start: int, length: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(start)
        record = read_parts(file, start + length)
    return record[labels_length(record) :]


def _unzipped(path: Path, start: int, length: int, size: int, check: int) -> bytes:
    if max(length, size) > LARGEST:
        raise ValueError(f"more than {LARGEST:,} bytes")
    with open(path, "rb") as file:
        file.seek(start)
        signature, names, extras = ZIP_HEADER.unpack(file.read(ZIP_HEADER.size))
        if signature != b"PK\3\4":
            raise ValueError("no member of a zip archive")
        file.seek(names + extras, os.SEEK_CUR)
        content = file.read(length)
    if length != size or zlib.crc32(content) != check:  # what is stored as it is, is its own
        content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size + 1)
    if len(content) != size or zlib.crc32(content) != check:
        raise ValueError("other bytes than the archive says")
    return content


def is_zip(head: bytes) -> bool:
    """Tell whether a file that begins so is a zip archive."""
    return head.startswith((b"PK\3\4", b"PK\5\6"))


ZIP_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
