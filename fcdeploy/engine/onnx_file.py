"""What an ONNX file says of itself, read without the package onnx: which other files its weights lie in."""

import functools
import hashlib
import mmap
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from fcdeploy.data.digests import sha256_of
from fcdeploy.errors import InputError

# message -> number of a field -> the message it holds; fields without tensors somewhere in them are passed over
TENSORS_WITHIN = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a tensor
KEY, VALUE = 1, 2  # fields of an entry of its external data
LONGEST = 4096  # bytes of such a field; no name or number is longer
GIT_LFS = b"version https://git-lfs"
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


def takes_other_files(model: bytes) -> bool:
    """Tell whether a tensor of an ONNX model, in whatever sub-graph, lies in a file of its own.

    What is no protobuf is left to whoever loads it: False.
    """
    return any(True for _ in _tensors_elsewhere(memoryview(model)))


def model_files(path: Path) -> list[Path]:
    """Return all files that an ONNX model consists of: the graph, and those that its weights lie in, by name.

    Raises InputError when a file of weights is missing, is shorter than the graph says, or does not lie in the folder
    of the model (symlinks resolved; where the model itself is one, in the folder it leads to, as in caches of models).
    """
    try:
        wanted = _weights_elsewhere(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    allowed = [os.path.realpath(path.parent), os.path.dirname(os.path.realpath(path))]
    files = []
    for location, least in sorted(wanted.items()):
        file = path.parent / location
        if not location or "\0" in location or os.path.isabs(location):
            raise InputError(
                f"{path}: takes weights from {location!r}, which is not the name of a file beside it; save the model "
                "with its weights in its own folder."
            )
        place = os.path.realpath(file)
        if not any(os.path.commonpath([folder, place]) == folder for folder in allowed):
            raise InputError(
                f"{path}: takes weights from {location!r}, which leads out of the model's folder (to {place}); put a "
                "copy of the file into that folder."
            )
        try:
            found = os.stat(file)
        except OSError:
            raise InputError(
                f"{path}: takes weights from {location!r}, and there is no such file ({file}); put it there: the "
                "files of a model belong together."
            ) from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{path}: takes weights from {location!r}, which is not a file.")
        if found.st_size < least:
            with open(file, "rb") as opened:
                pointer = opened.read(len(GIT_LFS)) == GIT_LFS
            cause = (
                "is a Git LFS pointer, get the file itself with `git lfs pull`"
                if pointer
                else "was cut short or is of another model"
            )
            raise InputError(
                f"{file}: holds {found.st_size:,} bytes, and {path} takes weights from the first {least:,}; it {cause}."
            )
        files.append(file)
    return [path, *files]


def check_model_path(path: Path, what: str) -> None:
    """Raise InputError when ``path`` is no file that can be read; what: the model is, as in "face embedder"."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the .onnx file of a {what}.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the .onnx file of a {what}.")


def model_digest(path: Path, settings: object) -> str:
    """Return a hash of all files of a model, those of its weights too, and of the settings that were given with it.

    Raises InputError when a file of its weights is missing.
    """
    state = hashlib.sha256(repr(settings).encode())
    for file in model_files(path):
        state.update(file_digest(file).encode())
    return state.hexdigest()


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal; read once per process while the file stays as it is."""
    found = os.stat(path)
    return _file_digest(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(256)
def _file_digest(path: Path, *stamp: int) -> str:
    return sha256_of(path)


def _weights_elsewhere(path: Path) -> dict[str, int]:
    """Return the locations that a model names, and how many bytes each has to hold at least."""
    wanted: dict[str, int] = {}
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return wanted
        model = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    for said, entries in _tensors_elsewhere(model):
        if said:
            location = entries.get("location", "")
            numbers = [entries.get(name, "") for name in ("offset", "length")]
            end = sum(int(number) for number in numbers if number.isascii() and number.isdigit())
            wanted[location] = max(wanted.get(location, 0), end)
    return wanted


def _tensors_elsewhere(model: memoryview) -> Iterator[tuple[bool, dict[str, str]]]:
    """Yield of every tensor that names another file whether it lies there, and where: location, offset, length."""
    waiting = [("model", model)]
    while waiting:
        kind, message = waiting.pop()
        entries: dict[str, str] = {}
        said = False
        try:
            for field, value in _fields(message):
                if kind == "tensor":
                    said |= field == DATA_LOCATION and value != 0
                    if field == EXTERNAL_DATA and isinstance(value, memoryview):
                        entry = {
                            at: bytes(part[:LONGEST])
                            for at, part in _fields(value)
                            if isinstance(part, memoryview)
                        }
                        key, text = (entry.get(at, b"").decode("utf-8", "replace") for at in (KEY, VALUE))
                        entries[key] = text
                elif (inner := TENSORS_WITHIN[kind].get(field)) and isinstance(value, memoryview):
                    waiting.append((inner, value))
        except (IndexError, ValueError):
            pass
        if said or entries:
            yield said, entries


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number of every field and its value: a whole number, or the bytes of it."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(message):
            raise IndexError
        yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of too many bytes")
