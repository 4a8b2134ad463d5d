"""Face embeddings on disk or in memory: opened, checked, normalised and handed out in blocks."""

import dataclasses
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.errors import InputError

BLOCK_ROWS = 16384
SHOWN_ROWS = 5


@dataclass(frozen=True)
class Features:
    """The embeddings of n faces, read as float32 rows of unit length (or as they are).

    array: (given, d), any float dtype; a memory map when it came from a file, so nothing is read until a block is
    asked for. ``name`` is what error messages call it. ``normalize`` divides every row by its 2-norm. path: the file,
    if they came from one. chosen: (n,) int64, ascending: the rows of ``array`` that are faces here; None for all.
    """

    array: np.ndarray
    name: str
    normalize: bool = True
    path: Path | None = None
    chosen: np.ndarray | None = None

    @property
    def n(self) -> int:
        return self.given if self.chosen is None else len(self.chosen)

    @property
    def given(self) -> int:
        """How many rows the file or array has, whether or not they are faces here."""
        return int(self.array.shape[0])

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def select(self, faces: np.ndarray) -> "Features":
        """Return the features of some ``faces`` (m,), ascending; no row is read or copied."""
        faces = np.asarray(faces, dtype=np.int64)
        return dataclasses.replace(self, chosen=faces if self.chosen is None else self.chosen[faces])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Return faces start..stop-1 as a fresh C-contiguous (stop - start, d) float32 array."""
        return self._normalized(self.raw(start, stop))

    def take(self, faces: np.ndarray) -> np.ndarray:
        """Return the rows of ``faces`` (m,) as a fresh C-contiguous (m, d) float32 array."""
        wanted = faces if self.chosen is None else self.chosen[faces]
        return self._normalized(np.array(self.array[wanted], dtype=np.float32, order="C"))

    def raw(self, start: int, stop: int) -> np.ndarray:
        """Return the rows of faces start..stop-1 as they are on disk, as a fresh (stop - start, d) float32 array."""
        rows = slice(start, stop) if self.chosen is None else self.chosen[start:stop]
        return np.array(self.array[rows], dtype=np.float32, order="C")

    def _normalized(self, block: np.ndarray) -> np.ndarray:
        if self.normalize:
            # As every published loader does it: float32 norms, one division.
            block /= np.linalg.norm(block, axis=1).reshape(-1, 1)
        return block

    def blocks(self, size: int = BLOCK_ROWS) -> Iterator[tuple[int, np.ndarray]]:
        """Yield (start, rows) over all faces; ``size`` rows at a time, never changing the values."""
        for start in range(0, self.n, size):
            yield start, self.rows(start, min(start + size, self.n))


def open_features(path: Path | str, dim: int | None = None, *, normalize: bool = True) -> Features:
    """Open a features file without reading it.

    path: ``.npy`` (n, d) of any float dtype, or raw little-endian float32 rows under any other name (``.bin``),
    whose width ``dim`` has to be given. Raises InputError when the file is missing, empty, of another form, or
    of a size that is no multiple of ``dim``.
    """
    path = Path(path)
    if path.suffix.lower() == ".txt":
        raise InputError(
            f"{path}: is no features file but, by its name, a list of images; make features of it with "
            "`fcdeploy embed`, or give --embedder MODEL to `fcdeploy cluster`."
        )
    if not path.exists():
        raise InputError(f"{path}: no such file; give a .bin (raw float32) or .npy features file.")
    if not path.is_file():
        raise InputError(f"{path}: is a folder; give a .bin (raw float32) or .npy features file.")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: may not be read; change its permissions or copy it.")
    if path.suffix == ".npy":
        array = _open_npy(path)
        if dim is not None and array.shape[1] != dim:
            raise InputError(f"{path}: expected (n, {dim}) features, found {array.shape} {array.dtype}.")
    else:
        array = _open_bin(path, dim)
    return Features(array, str(path), normalize, path)


def features_from_array(array: Any, dim: int | None = None, *, normalize: bool = True) -> Features:
    """Take an (n, d) array-like of real numbers as features; float arrays are not copied.

    Raises InputError when it is not two-dimensional, is empty, does not hold numbers or has another width
    than ``dim``.
    """
    array = np.asarray(array)
    if array.dtype.kind in "iub":
        array = array.astype(np.float32)
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(
            f"features: expected an (n, d) array of floats with n, d >= 1, found {array.shape} {array.dtype}."
        )
    if dim is not None and array.shape[1] != dim:
        raise InputError(f"features: expected (n, {dim}), found {array.shape} {array.dtype}.")
    return Features(array, "features", normalize)


def check_features(features: Features) -> None:
    """Read every row once and raise InputError when one is NaN, infinite or, if normalising, of zero norm.

    The message counts the bad rows and names the first of them.
    """
    broken, zero = _RowList(), _RowList()
    for start in range(0, features.n, BLOCK_ROWS):
        with np.errstate(over="ignore", invalid="ignore"):
            block = features.raw(start, min(start + BLOCK_ROWS, features.n))
            norm = np.linalg.norm(block, axis=1)
        # Only a row whose float32 norm is not finite needs a closer look: a huge finite row overflows it too.
        broken.add(start + np.flatnonzero(~np.isfinite(norm)))
        zero.add(start + np.flatnonzero(norm == 0))
    if broken.count:
        raise InputError(
            f"{features.name}: {broken.count:,} of {features.n:,} rows hold NaN, infinite or overflowing values "
            f"({broken}); remove or recompute these faces."
        )
    if zero.count and features.normalize:
        raise InputError(
            f"{features.name}: {zero.count:,} of {features.n:,} rows are all zero ({zero}) and have no direction; "
            "remove or recompute these faces."
        )


def stamp_of(features: Features) -> tuple[int, ...]:
    """Return what is another when the file of the features was changed or exchanged; nothing for arrays."""
    if features.path is None:
        return ()
    try:
        found = os.stat(features.path)
    except OSError:
        return (0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def write_features(path: Path | str, shape: tuple[int, int], blocks: Iterable[np.ndarray]) -> None:
    """Write (n, d) float32 features, whole or not at all: an array when ``path`` ends in .npy, else raw rows.

    blocks: arrays (m, d) whose rows are n together.
    """
    path = Path(path)
    with atomic_file(path) as file:
        if path.suffix == ".npy":
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype="<f4").data)


class _RowList:
    """How many rows, and the first few of them."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[int] = []

    def add(self, rows: np.ndarray) -> None:
        self.count += len(rows)
        self.first += rows[: SHOWN_ROWS - len(self.first)].tolist()

    def __str__(self) -> str:
        more = ", ..." if self.count > len(self.first) else ""
        return (
            f"{'row' if self.count == 1 else 'rows'} {', '.join(map(str, self.first))}{more}, counted from 0"
        )


def _open_npy(path: Path) -> np.ndarray:
    try:
        array = np.lib.format.open_memmap(path, mode="r")  # a header that promises too much fails here
    except DAMAGED as error:
        raise InputError(f"{path}: not a readable .npy array ({reason_of(error)}).") from error
    if array.ndim != 2 or array.dtype.kind != "f" or 0 in array.shape:
        raise InputError(
            f"{path}: expected an (n, d) array of floats with n, d >= 1, found {array.shape} {array.dtype}; "
            "save the features with numpy.save as one float row a face."
        )
    return array


def _open_bin(path: Path, dim: int | None) -> np.ndarray:
    size = path.stat().st_size
    if dim is None:
        raise InputError(f"{path}: a raw features file does not say how wide its rows are; give --dim.")
    if dim < 1:
        raise InputError(f"{path}: a feature width of {dim} is not possible; give --dim 1 or more.")
    if size == 0:
        raise InputError(f"{path}: is empty; expected rows of {dim} float32 values.")
    if size % (4 * dim):
        raise InputError(
            f"{path}: {size:,} bytes are not a whole number of rows of {dim} float32 values ({4 * dim:,} bytes "
            "each); check the width, or whether the file was cut short."
        )
    return np.memmap(path, dtype="<f4", mode="r", shape=(size // (4 * dim), dim))
