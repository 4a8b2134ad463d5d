"""Arrays of NumPy: ``.npy``, and one of an ``.npz`` archive, mapped in place unless they are compressed."""

import math
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Literal

import numpy as np

from fcdeploy.data.damaged import DAMAGED, LONGEST_REASON, reason_of
from fcdeploy.data.forms.shape import as_rows, is_real, two_axes
from fcdeploy.data.forms.spool import spool_rows
from fcdeploy.errors import InputError

MAGIC = b"\x93NUMPY"
CHUNK = 8 << 20  # bytes that are decompressed at a time


def read_npy(path: Path, name: str, dim: int | None) -> np.ndarray:
    """Map an ``.npy`` file as features (n, d), in any byte order and either memory order.

    Raises InputError for a file that is shorter than its header says, or longer: behind its array may be others.
    """
    try:
        with open(path, "rb") as file:
            shape, dtype, fortran, at = _header(file)
        _check_no_objects(dtype, name, "the array")
        size = math.prod(shape) * dtype.itemsize
        _check_length(path, name, at, size, f"{shape} {dtype}"[:LONGEST_REASON])
        order: Literal["C", "F"] = "F" if fortran else "C"
        array: np.ndarray = (
            np.memmap(path, dtype, "r", at, shape, order) if size else np.empty(shape, dtype, order)
        )
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{name}: not a readable .npy array ({reason_of(error)}).") from error
    return as_rows(array, name, dim)


def _check_no_objects(dtype: np.dtype, name: str, what: str) -> None:
    if dtype.hasobject:
        raise InputError(
            f"{name}: {what} is a pickle of objects, which can run code; save "
            "numpy.stack(rows).astype(numpy.float32)."
        )


def _check_length(path: Path, name: str, at: int, size: int, what: str) -> None:
    """Raise InputError unless an array of ``size`` bytes, which begins ``at`` a byte, ends where its file does."""
    behind = path.stat().st_size - at - size
    if behind < 0:
        raise InputError(
            f"{name}: was cut short: its header says {what}, {size:,} bytes, of which {-behind:,} are missing; write "
            "or copy it again."
        )
    if behind:
        with open(path, "rb") as file:
            file.seek(at + size)
            another = file.read(len(MAGIC)) == MAGIC
        if another:
            raise InputError(
                f"{name}: holds several arrays behind each other, of which only the first, {what}, would be read; save "
                "one per file, and give their folder."
            )
        raise InputError(
            f"{name}: holds {behind:,} bytes behind its array, {what}, which would not be read; write it again."
        )


def read_npz(
    path: Path, name: str, dim: int | None, column: str | None, scratch: Path | None
) -> tuple[np.ndarray, str]:
    """Return the features of an ``.npz`` archive and the key they are under; ``column`` is that key, if given.

    Raises InputError when there are several arrays that could be features and no ``column`` says which.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
            headers = {key: _header_of(archive, info) for key, info in members.items()}
            key = choose_array(
                {key: header[:2] for key, header in headers.items()}, name, column, "an .npz archive"
            )
            shape, dtype, fortran, skip = headers[key]
            _check_no_objects(dtype, name, f"the array '{key}'")
            imagined = np.broadcast_to(np.zeros((), dtype), shape)
            rows = as_rows(imagined, f"{name}, '{key}'", dim).shape
            info = members[key]
            size = math.prod(shape) * dtype.itemsize
            if info.file_size < skip + size:
                raise InputError(
                    f"{name}: the array '{key}' is shorter than its header says; write it again."
                )
            if info.compress_type == zipfile.ZIP_STORED and not info.flag_bits & 1:
                at = offset_of(path, info) + skip
                if at + size > path.stat().st_size:
                    raise InputError(f"{name}: was cut short; write it again.")
                array: np.ndarray = np.memmap(path, dtype, "r", at, shape, "F" if fortran else "C")
            elif fortran:
                with archive.open(info) as file:
                    file.read(skip)
                    array = np.frombuffer(file.read(size), dtype).reshape(shape, order="F")
            else:
                blocks = _blocks(archive, info, skip, rows, dtype)
                array = spool_rows(blocks, rows[1], dtype, scratch)
    except InputError:
        raise
    except (*DAMAGED, NotImplementedError, struct.error) as error:
        raise InputError(f"{name}: not a readable .npz archive ({reason_of(error)}).") from error
    return array.reshape(rows), key


def choose_array(
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype | str]], name: str, column: str | None, what: str
) -> str:
    """Return the key of the array that is features: ``column``, or the only one of two axes and real numbers.

    arrays: key -> (shape, dtype). Raises InputError, which lists the keys, where that is none or several.
    """
    listed = ", ".join(f"'{key}' {shape} {dtype}" for key, (shape, dtype) in list(arrays.items())[:20])
    if column is not None:
        if column not in arrays:
            raise InputError(f"{name}: has no array '{column}' (--column); it holds {listed or 'nothing'}.")
        return column
    fitting = [
        key
        for key, (shape, dtype) in arrays.items()
        if two_axes(shape) is not None
        and (is_real(dtype) if isinstance(dtype, np.dtype) else dtype != "other")
    ]
    floats = [key for key in fitting if "float" in str(arrays[key][1])]
    if len(fitting) > 1 and len(floats) == 1:
        fitting = floats  # beside integers: ids, boxes or lists
    if len(fitting) == 1:
        return fitting[0]
    if len(arrays) == 1 and not fitting:
        return next(iter(arrays))  # what is wrong with it is said of it
    if not fitting:
        raise InputError(
            f"{name}: is {what} without an (n, d) array of real numbers; it holds {listed or 'nothing'}."
        )
    raise InputError(
        f"{name}: is {what} of several arrays ({listed}); choose one with --column {fitting[0]}."
    )


def offset_of(path: Path, info: zipfile.ZipInfo) -> int:
    """Return where the bytes of a stored member of a zip archive begin in the file."""
    with open(path, "rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise zipfile.BadZipFile("a member is not where the directory says")
    name, extra = struct.unpack("<HH", header[26:30])
    return info.header_offset + 30 + int(name) + int(extra)


def _header_of(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo
) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    with archive.open(info) as file:
        return _header(file)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool, int]:
    """Return shape, dtype, whether in Fortran order, and the bytes before the data, of an array."""
    counted = _Counted(file)
    version = np.lib.format.read_magic(counted)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(
        version
    )
    if read is None:
        raise ValueError(f"an array of version {version}")
    shape, fortran, dtype = read(counted)
    if any(type(length) is not int or length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, dtype, fortran, counted.count


class _Counted:
    """A file that counts what is read of it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.count = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.count += len(data)
        return data


def _blocks(
    archive: zipfile.ZipFile, info: zipfile.ZipInfo, skip: int, shape: tuple[int, ...], dtype: np.dtype
) -> Iterator[np.ndarray]:
    row = shape[1] * dtype.itemsize
    block, left = max(1, CHUNK // row) * row, shape[0] * row
    with archive.open(info) as file:
        file.read(skip)
        while left:
            data = file.read(min(block, left))
            if len(data) != min(block, left):
                raise EOFError("it is shorter than its header says")
            left -= len(data)
            yield np.frombuffer(data, dtype).reshape(-1, shape[1])
