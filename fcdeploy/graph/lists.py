"""Neighbor lists that were made elsewhere: read block by block and checked, never unpickled."""

import hashlib
import io
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.digests import sha256_of
from fcdeploy.errors import InputError, counted
from fcdeploy.graph.kernels import njit

READ_ROWS = 65536
SAMPLE = 1000  # lists
LONGEST_HEADER = 65536  # bytes, of an array in an archive
LARGEST_TRANSPOSED = 1 << 30  # bytes, of an array in column order, which is read as a whole


class ListsFile:
    """Neighbor lists that somebody else made, read block by block.

    Forms: ``.npz`` with ``data`` (n, 2, k), ids over distances 1 - cosine, as the published systems keep them;
    ``.npz`` with ``ids`` and perhaps ``sims``; a folder with ``ids.npy`` and perhaps ``sims.npy``, as our run folders
    keep them; ``.npz`` with ``knns`` and ``dists`` (NSR-FC); ``.npy`` (n, k) of integer ids. Raises InputError for
    anything else; object arrays are pickles and are never loaded.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        beside = {name: self.path / f"{name}.npy" for name in ("ids", "sims")}
        self._arrays = {name: file for name, file in beside.items() if file.is_file()}  # of a folder
        if self.path.is_dir() and "ids" not in self._arrays:
            raise InputError(f"{path}: is a folder without ids.npy, where neighbor lists were expected.")
        if not self.path.is_file() and not self._arrays:
            raise InputError(f"{path}: no such file of neighbor lists.")
        try:
            self._open()
        except InputError:
            raise
        except DAMAGED as error:
            raise self._unreadable(error) from error

    def _open(self) -> None:
        headers = self._headers()
        for name, (_, dtype) in headers.items():
            if dtype.hasobject:
                what, key = (f"'{name}'", f"['{name}']") if name else ("the array", "")
                raise InputError(
                    f"{self.path}: {what} is an object array, a pickle that could run code, and is not loaded; "
                    f"convert it where you trust it: data = np.load(file, allow_pickle=True){key}; "
                    "np.savez(out, data=np.stack([np.stack(row) for row in data]))."
                )
        if "data" in headers and len(headers["data"][0]) == 3 and headers["data"][0][1] == 2:
            (self.n, _, self.k), self._form = headers["data"][0], "stacked"
        elif "ids" in headers or "" in headers:
            self._form, self._ids, self._sims = "pair", "ids" if "ids" in headers else "", "sims"
        elif "knns" in headers and "dists" in headers:
            self._form, self._ids, self._sims = "distances", "knns", "dists"
        else:
            found = ", ".join(
                f"{name or 'array'} {shape} {dtype}" for name, (shape, dtype) in headers.items()
            )
            raise InputError(
                f"{self.path}: expected 'data' (n, 2, k), or 'ids' (n, k), or 'knns' and 'dists' (n, k); found {found}."
            )
        if self._form != "stacked":
            shape, dtype = headers[self._ids]
            if len(shape) != 2 or 0 in shape or dtype.kind not in "iu":
                raise InputError(f"{self.path}: expected (n, k) integer ids, found {shape} {dtype}.")
            self.n, self.k = shape
            if self._sims in headers:
                sims_shape, sims_dtype = headers[self._sims]
                if sims_shape != shape or sims_dtype.kind not in "fiu":
                    raise InputError(
                        f"{self.path}: expected '{self._sims}' of numbers {shape}, found {sims_shape} {sims_dtype}."
                    )
        else:
            shape, dtype = headers["data"]
            if 0 in shape or dtype.kind != "f":
                raise InputError(f"{self.path}: expected 'data' (n, 2, k) of floats, found {shape} {dtype}.")
        if self.k > self.n:
            raise InputError(
                f"{self.path}: holds {counted(self.k, 'neighbor')} per face and only {counted(self.n, 'face')}; "
                "make the lists again."
            )
        self.has_sims = self._form == "stacked" or self._sims in headers

    @property
    def holds(self) -> str:
        """What its values are by its form: "cosine similarities", or distances "1 - cosine"."""
        return "cosine similarities" if self._form == "pair" else "1 - cosine"

    @property
    def digest(self) -> str:
        """A SHA-256 of the file's bytes, or of those of the arrays in the folder, in hexadecimal."""
        if self.path.is_file():
            return sha256_of(self.path)
        named = "".join(f"{name} {sha256_of(file)}\n" for name, file in self._arrays.items())
        return hashlib.sha256(named.encode()).hexdigest()

    def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        headers = {}
        if self.path.is_file():
            with open(self.path, "rb") as file:
                if file.read(6) == b"\x93NUMPY":  # whatever its name
                    self._arrays = {"": self.path}
        if self._arrays:
            for name, path in self._arrays.items():
                with open(path, "rb") as file:
                    headers[name] = _read_header(file)[:2]
            return headers
        with zipfile.ZipFile(self.path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    headers[name.removesuffix(".npy")] = _read_header(file)[:2]
        return headers

    def blocks(
        self, rows: int = READ_ROWS, used: np.ndarray | None = None
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield (start, ids (m, k) int64 or float64, sims (m, k) float32 or None) in order.

        used: (n,) bool, the lists that matter; what the others hold is not looked at. Raises InputError when the file
        turns out to be damaged, and for a similarity that is not finite.
        """
        try:
            for start, ids, sims in self._blocks(rows):
                if sims is None:
                    yield start, ids, sims
                    continue
                finite = np.isfinite(sims).all(axis=1)
                if used is not None:
                    finite |= ~used[start : start + len(sims)]
                if not finite.all():
                    face = start + int(np.argmin(finite))
                    raise InputError(
                        f"{self.path}: face {face} has a similarity that is not a finite number; make the lists again."
                    )
                yield start, ids, sims
        except InputError:
            raise
        except DAMAGED as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> InputError:
        return InputError(f"{self.path}: is not a readable .npz or .npy file ({reason_of(error)}).")

    def _blocks(self, rows: int) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        if self._form == "stacked":
            for start, block in self._rows("data", rows):
                yield start, block[:, 0], (1 - block[:, 1]).astype(np.float32)
            return
        ids = self._rows(self._ids, rows)
        if not self.has_sims:
            for start, block in ids:
                yield start, block, None
            return
        for (start, block), (_, values) in zip(ids, self._rows(self._sims, rows), strict=True):
            sims = 1 - values if self._form == "distances" else values
            yield start, block, sims.astype(np.float32)

    def _rows(self, name: str, rows: int) -> Iterator[tuple[int, np.ndarray]]:
        if self._arrays:
            array = np.load(self._arrays[name], mmap_mode="r", allow_pickle=False)
            for start in range(0, len(array), rows):
                yield start, np.asarray(array[start : start + rows])
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            shape, dtype, fortran = _read_header(file)
            if fortran:  # rare; columns cannot be cut into rows without reading all
                # A compressed file of a few bytes may hold, or claim, any number of them.
                wanted = math.prod(shape) * dtype.itemsize
                if wanted > LARGEST_TRANSPOSED:
                    raise InputError(
                        f"{self.path}: '{name}' lies in column order and is too large to be transposed; write it again "
                        "from np.ascontiguousarray."
                    )
                data = file.read(wanted)
                if len(data) != wanted:
                    raise InputError(f"{self.path}: ends within '{name}'; it was cut short.")
                whole = np.frombuffer(data, dtype).reshape(shape[::-1]).T
                for start in range(0, len(whole), rows):
                    yield start, whole[start : start + rows]
                return
            size = int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize
            for start in range(0, shape[0], rows):
                want = min(rows, shape[0] - start) * size
                data = file.read(want)
                if len(data) != want:
                    raise InputError(f"{self.path}: ends within '{name}'; it was cut short.")
                yield start, np.frombuffer(data, dtype).reshape(-1, *shape[1:])


class RowsInOrder:
    """Rows of a file of lists by their numbers, each call's behind those of the call before it.

    rows: how many are read at a time; used: see ``ListsFile.blocks``. A call that failed may be made again, and for
    fewer rows.
    """

    def __init__(self, lists: ListsFile, rows: int, used: np.ndarray | None = None) -> None:
        self._lists, self._rows, self._used = lists, rows, used
        self._restart()

    def __call__(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return ids (m, k) and sims (m, k), or None where the file has none, of rows start..stop-1."""
        try:
            return self._read(start, stop)
        except BaseException:
            self._restart()  # a generator that has raised is at its end
            raise

    def _restart(self) -> None:
        self._blocks = self._lists.blocks(self._rows, self._used)
        self._held: tuple[int, np.ndarray, np.ndarray | None] = (0, np.empty((0, 0)), None)

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray | None]:
        ids, sims = [], []
        while start < stop:
            first, held_ids, held_sims = self._held
            if start >= first + len(held_ids):  # a resumed run passes over the blocks behind it
                self._held = next(self._blocks)
                continue
            end = min(stop, first + len(held_ids))
            ids.append(held_ids[start - first : end - first])
            if held_sims is not None:
                sims.append(held_sims[start - first : end - first])
            start = end
        return np.concatenate(ids), np.concatenate(sims) if sims else None


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    version = np.lib.format.read_magic(file)
    lengths = file.read(2 if version == (1, 0) else 4)
    length = int.from_bytes(lengths, "little")
    if (
        length > LONGEST_HEADER
    ):  # NumPy would read it first, which in a compressed file may be any number of bytes
        raise ValueError(f"a header of {length:,} bytes")
    file = io.BytesIO(lengths + file.read(length))
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if any(length < 0 for length in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, dtype, fortran


def check_lists(ids: np.ndarray, start: int, n: int, where: str) -> np.ndarray:
    """Return the ids of a block of lists as int32, or raise InputError that names the first bad row.

    ids: (m, k) numbers, whole even where they are floats; rows are faces start..start+m-1 of n. Ids have to be
    in range and may not repeat in a row.
    """
    whole = np.isfinite(ids) & (ids == np.floor(ids)) if ids.dtype.kind == "f" else np.ones(ids.shape, bool)
    bad = ~whole | (ids < 0) | (ids >= n)
    if bad.any():
        row, column = (int(at[0]) for at in np.nonzero(bad))
        if ids[row, column] == -1:
            raise InputError(
                f"{where}: face {start + row} has the neighbor {ids[row, column]}, which stands for one that a search "
                "did not find; make full lists, or search with --knn ivf or exact."
            )
        raise InputError(
            f"{where}: face {start + row} has the neighbor {ids[row, column]}, which is not a face of 0..{n - 1}; "
            "the lists belong to other features."
        )
    checked = np.ascontiguousarray(ids, dtype=np.int32)
    repeats = _first_repeat(checked)
    if repeats >= 0:
        raise InputError(
            f"{where}: face {start + repeats} has the same neighbor twice; make the lists again."
        )
    return checked


def mostly_without_self(ids: np.ndarray) -> bool:
    """Tell whether most of the lists ``ids`` (n, k) lack the face that they are of; a sample of them is looked at.

    Copies of one face may push some faces out of their own lists; lists made for another convention lack all.
    """
    faces = np.linspace(0, len(ids) - 1, min(len(ids), SAMPLE)).astype(np.int64)
    return bool((ids[faces] == faces[:, None]).any(axis=1).mean() < 0.5)


@njit(cache=True, nogil=True)
def _first_repeat(ids: np.ndarray) -> int:
    for row in range(len(ids)):
        ordered = np.sort(ids[row])
        for p in range(1, len(ordered)):
            if ordered[p] == ordered[p - 1]:
                return row
    return -1
