"""Tensors of PyTorch: ``.pt`` files of tensors alone and ``.safetensors``, mapped where they lie, without PyTorch.

A ``.pt`` file is a zip archive: ``data.pkl`` says how tensors view storages, whose bytes are members of their own. The
pickle is read by an unpickler that knows tensors, storages and dictionaries; anything else ends the reading.
"""

import io
import json
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.forms.numpy_files import choose_array, offset_of
from fcdeploy.data.forms.shape import as_rows
from fcdeploy.data.rows import Bfloat16, Rows
from fcdeploy.errors import InputError

LARGEST_PICKLE = 64 << 20  # bytes; tensors' values are not in it
LARGEST_HEADER = 100 << 20  # what the safetensors library allows
STORAGES = {
    "FloatStorage": "f4",
    "DoubleStorage": "f8",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "ShortStorage": "i2",
    "IntStorage": "i4",
    "LongStorage": "i8",
    "BoolStorage": "?",
}
DTYPES = {
    "float16": "f2",
    "float32": "f4",
    "float64": "f8",
    "bfloat16": "bfloat16",
    "uint16": "u2",
    "uint8": "u1",
}
SAFETENSORS = {
    "F16": "f2",
    "F32": "f4",
    "F64": "f8",
    "BF16": "bfloat16",
    "I8": "i1",
    "U8": "u1",
    "I16": "i2",
    "U16": "u2",
    "I32": "i4",
    "I64": "i8",
    "BOOL": "?",
}
SAVE = "save tensors alone: torch.save(features.cpu(), 'features.pt')"


@dataclass(frozen=True)
class Storage:
    """The values behind tensors: a member of the archive, of a dtype and a number."""

    key: str
    dtype: str
    count: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage; offset and strides in values."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str


class _Refused(Exception):
    """The pickle wants more than tensors."""


def read_torch(path: Path, name: str, dim: int | None, column: str | None) -> tuple[Rows, str]:
    """Return the features of a ``.pt`` file, and the key they stand under ("" where the file is one tensor).

    The file holds a tensor, a dictionary of tensors, or a list of rows. Raises InputError for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = {info.filename: info for info in archive.infolist()}
            pickled = next(key for key in members if key == "data.pkl" or key.endswith("/data.pkl"))
            prefix = pickled.removesuffix("data.pkl")
            if members[pickled].file_size > LARGEST_PICKLE:
                raise InputError(f"{name}: holds far more than tensors; {SAVE}.")
            found = _Tensors(io.BytesIO(archive.read(pickled))).load()
            order: Literal["<", ">"] = ">" if b"big" in _member(archive, f"{prefix}byteorder") else "<"

            def values(tensor: Tensor) -> np.ndarray:
                return _view(path, archive, members, prefix, order, tensor)

            if isinstance(found, (list, tuple)):
                return _stacked(found, values, name, dim), ""
            key = ""
            if isinstance(found, dict):
                tensors = {str(k): v for k, v in found.items() if isinstance(v, Tensor)}
                described = {k: (v.shape, _described(v.dtype)) for k, v in tensors.items()}
                key = choose_array(described, name, column, "a file of tensors")
                found = tensors[key]
            elif column is not None:
                raise InputError(f"{name}: is a single tensor; leave out --column {column}.")
            if not isinstance(found, Tensor):
                raise InputError(f"{name}: holds a {type(found).__name__} and no tensor; {SAVE}.")
            return _as_rows(values(found), found.dtype, f"{name}, '{key}'" if key else name, dim), key
    except InputError:
        raise
    except _Refused as error:
        raise InputError(f"{name}: {error}; {SAVE}.") from None
    except (
        *DAMAGED,
        pickle.UnpicklingError,
        StopIteration,
        AttributeError,
        IndexError,
        struct.error,
    ) as error:
        reason = reason_of(error) if str(error) else "the file is cut short or of another form"
        raise InputError(f"{name}: not a readable file of tensors ({reason}); {SAVE}.") from error


def read_safetensors(path: Path, name: str, dim: int | None, column: str | None) -> tuple[Rows, str]:
    """Return the features of a ``.safetensors`` file and the key they stand under."""
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(LARGEST_HEADER, size - 8):
                raise ValueError("its header does not fit in the file")
            header = json.loads(file.read(length))
        tensors = {key: entry for key, entry in header.items() if key != "__metadata__"}
        described = {
            key: (tuple(entry["shape"]), _described(SAFETENSORS.get(entry["dtype"], entry["dtype"])))
            for key, entry in tensors.items()
        }
        key = choose_array(described, name, column, "a file of tensors")
        entry = tensors[key]
        if entry["dtype"] not in SAFETENSORS:
            raise InputError(
                f"{name}: '{key}' is of dtype {entry['dtype']}, which is not read; save it as float32."
            )
        dtype, shape = SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
        begin, end = entry["data_offsets"]
        stored = np.dtype("<u2" if dtype == "bfloat16" else dtype).newbyteorder("<")
        if any(type(number) is not int or number < 0 for number in (*shape, begin, end)):
            raise ValueError("its header is damaged")
        if end - begin != math.prod(shape) * stored.itemsize or 8 + length + end > size:
            raise ValueError("it ends before its header says")
        if begin == end:
            array = np.empty(shape, stored)
        else:
            array = np.memmap(path, stored, "r", 8 + length + begin, shape)
    except InputError:
        raise
    except (*DAMAGED, struct.error, AttributeError, RecursionError) as error:
        raise InputError(f"{name}: not a readable .safetensors file ({reason_of(error)}).") from error
    return _as_rows(array, dtype, f"{name}, '{key}'", dim), key


class _Tensors(pickle.Unpickler):
    """Reads what ``torch.save`` writes of tensors, dictionaries and lists, and calls nothing but the functions here."""

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
            ("torch._utils", "_rebuild_tensor_v3"): _rebuild_v3,
            ("torch._utils", "_rebuild_parameter"): lambda data, *others: data,
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
        }
        if (module, name) in known:
            return known[module, name]
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        if (module, name) == ("torch.storage", "UntypedStorage"):
            return "untyped"
        raise _Refused(f"is a pickle that wants {module}.{name}, and only tensors are loaded")

    def persistent_load(self, pid: Any) -> Storage:
        kind, dtype, key, _, count, *_ = pid
        if kind != "storage" or not isinstance(dtype, str) or not isinstance(count, int):
            raise _Refused("is a pickle of more than tensors")
        return Storage(str(key), dtype, count)


def _rebuild(storage: Any, offset: Any, shape: Any, strides: Any, *others: Any) -> Tensor:
    numbers = (offset, *shape, *strides)
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise ValueError("a tensor of no storage")
    if any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError("a tensor of impossible shape")
    return Tensor(storage, offset, tuple(shape), tuple(strides), storage.dtype)


def _rebuild_v3(
    storage: Any, offset: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *others: Any
) -> Tensor:
    tensor = _rebuild(storage, offset, shape, strides)
    if not isinstance(dtype, str):
        raise ValueError("a tensor of an unknown dtype")
    return Tensor(tensor.storage, tensor.offset, tensor.shape, tensor.strides, dtype)


def _described(dtype: str) -> Any:
    """Return a dtype as it is shown; "other" where it is none of ours."""
    if dtype == "bfloat16":
        return "bfloat16"
    try:
        return np.dtype(dtype)
    except TypeError:
        return "other"


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        return archive.read(name)
    except KeyError:
        return b""


def _view(
    path: Path,
    archive: zipfile.ZipFile,
    members: dict[str, zipfile.ZipInfo],
    prefix: str,
    order: Literal["<", ">"],
    tensor: Tensor,
) -> np.ndarray:
    """Return a tensor's values as stored (bfloat16 as uint16), a memory map; bounds are those of its storage."""
    dtype = np.dtype("u2" if tensor.dtype == "bfloat16" else tensor.dtype).newbyteorder(order)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    info = members[f"{prefix}data/{tensor.storage.key}"]
    last = tensor.offset + sum(
        (length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    if (last + 1) * dtype.itemsize > info.file_size:
        raise ValueError("a tensor reaches beyond its values")
    if info.compress_type == zipfile.ZIP_STORED:
        at = offset_of(path, info)
        if at + info.file_size > path.stat().st_size:
            raise ValueError("it is cut short")
        values: Any = np.memmap(path, np.uint8, "r", at, (info.file_size,))
    else:
        values = np.frombuffer(archive.read(info), np.uint8)
    strides = tuple(stride * dtype.itemsize for stride in tensor.strides)
    return np.ndarray(tensor.shape, dtype, values, tensor.offset * dtype.itemsize, strides)


def _as_rows(array: np.ndarray, dtype: str, name: str, dim: int | None) -> Rows:
    rows = as_rows(array, name, dim)
    return Bfloat16(rows) if dtype == "bfloat16" else rows


def _stacked(found: Any, values: Callable[[Tensor], np.ndarray], name: str, dim: int | None) -> np.ndarray:
    """Return a list of tensors, each a row or some rows, as one array."""
    if not found or not all(isinstance(each, Tensor) for each in found):
        raise InputError(f"{name}: holds a list of other things than tensors; {SAVE}.")
    blocks: list[np.ndarray] = []
    for at, tensor in enumerate(found):
        array = values(tensor)
        row = array.reshape(1, -1) if array.ndim == 1 else array
        rows = np.asarray(_as_rows(row, tensor.dtype, f"{name}, tensor {at:,} of the list", dim)[:])
        if blocks and rows.shape[1] != blocks[0].shape[1]:
            raise InputError(
                f"{name}: tensor {at:,} of the list (counted from 0) is {rows.shape[1]} wide, those before it "
                f"{blocks[0].shape[1]}; rows have to be of one width."
            )
        blocks.append(rows)
    return np.concatenate(blocks)
