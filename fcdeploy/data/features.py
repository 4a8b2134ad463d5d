"""Face embeddings on disk or in memory: opened, checked, normalised and handed out in blocks.

What a file is, its bytes say (``forms.content``); each form's reader gives rows that are mapped in place, or
unpacked once. Shards stand behind each other as one.
"""

import dataclasses
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from fcdeploy.data.arrays import array_from
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.forms.content import HEAD, READ, content_of, conversion
from fcdeploy.data.forms.files import feature_files, is_pipe
from fcdeploy.data.forms.numpy_files import read_npy, read_npz
from fcdeploy.data.forms.raw import open_raw, width_doubted
from fcdeploy.data.forms.spool import spooled_bytes
from fcdeploy.data.forms.tensors import read_safetensors, read_torch
from fcdeploy.data.forms.vecs import VECS, is_bigann, is_vecs, read_bigann, read_vecs
from fcdeploy.data.rows import Rows, Shards
from fcdeploy.data.sidecar import Sidecar, check_hash, check_size, read_sidecar
from fcdeploy.errors import InputError, counted

BLOCK_ROWS = 16384
SHOWN_ROWS = 5
UNIT = 0.01  # how far from 1 the norms of rows are that pass for unit vectors


@dataclass(frozen=True)
class Features:
    """The embeddings of n faces, read as float32 rows of unit length (or as they are).

    array: (given, d) of any real dtype, an array or what can be indexed like one; a memory map when it came from a
    file, so nothing is read until a block is asked for. ``name`` is what error messages call it. ``normalize``
    divides every row by its 2-norm. files: those that they came from. chosen: (n,) int64, ascending: the rows of
    ``array`` that are faces here; None for all. ids: (given,) text or integers, of an id column. read_as: how the
    rows were understood, as in "2,670 rows of 128 float32 (raw)"; note: the sentence that says so where the file
    does not say it of itself; doubted: whether it also says why they may be something else. sidecar: what
    `fcdeploy embed` noted of the file. source: how another process opens the same, where it can.
    """

    array: Rows
    name: str
    normalize: bool = True
    files: tuple[Path, ...] = ()
    chosen: np.ndarray | None = None
    ids: np.ndarray | None = None
    read_as: str = ""
    note: str = ""
    sidecar: Sidecar | None = None
    doubted: bool = False
    source: "Source | None" = None

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


@dataclass(frozen=True)
class Source:
    """Files of features, by their whole paths, and how they are read; see ``open_features``."""

    paths: tuple[str, ...]
    dim: int | None = None
    column: str | None = None
    sure: bool = False

    def open(self, scratch: Path | None = None) -> Features:
        """Open the features again."""
        return open_features(self.paths, self.dim, column=self.column, scratch=scratch, sure=self.sure)


@dataclass(frozen=True)
class _Part:
    """One file, opened: its rows, how it was understood ("raw", ".npy", ".npz, 'x'"), ids and its sidecar."""

    rows: Rows
    form: str
    ids: np.ndarray | None = None
    doubt: str = ""
    sidecar: Sidecar | None = None


def open_features(
    path: Path | str | Sequence[Path | str],
    dim: int | None = None,
    *,
    normalize: bool = True,
    column: str | None = None,
    id_column: str | None = None,
    scratch: Path | None = None,
    sure: bool = False,
) -> Features:
    """Open features without reading them all.

    path: a file of any form that docs/reference/files.md lists, told by its content and then by its name; a folder, a
    list (.txt) or a pattern of such files, or several of them, whose rows follow each other; "-" or any pipe. dim: the
    width that rows have to have; raw float32 rows have no other. column: of an archive, a file of tensors or a table,
    which array holds the features; id_column: which holds ids. scratch: the folder for what has to be unpacked (pipes,
    compressed files), if it is large. sure: ``dim`` was given by the user, and is believed where a raw file's values
    speak against it.

    Raises InputError when a file is missing, empty, of another form, which it names with what to do, of another width
    or contradicts itself.
    """
    if isinstance(path, str) and not path:
        raise InputError("features: the name of the file is empty.")
    if isinstance(path, (str, os.PathLike)):
        files, name = feature_files(Path(path)), str(path)
    else:
        files = [file for each in path for file in feature_files(Path(each))]
        if not files:
            raise InputError("features: a list of no files.")
        name = f"{files[0]} and {len(files) - 1:,} more" if len(files) > 1 else str(files[0])
    parts: list[_Part] = []
    for file in files:
        width = dim if dim is not None else (parts[0].rows.shape[1] if parts else None)
        parts.append(_open_one(file, width, column, id_column, scratch, sure))
        if len(parts) == 1 and len(files) == 1:
            name = str(file)
    rows: Rows = parts[0].rows if len(parts) == 1 else Shards([part.rows for part in parts])
    ids = None
    if id_column is not None:
        ids = np.concatenate([part.ids for part in parts if part.ids is not None])
    form = parts[0].form if len(parts) == 1 else f"{len(parts):,} files, {parts[0].form}"
    read_as = (
        f"{counted(rows.shape[0], 'row')} of {rows.shape[1]:,} {rows.dtype.newbyteorder('=').name} ({form})"
    )
    told = all(part.form != "raw" or part.sidecar is not None for part in parts)
    doubts = next((part.doubt for part in parts if part.doubt), "")
    note = "" if told else f"{name}: read as {read_as}{doubts}."
    regular = tuple(file for file in files if not is_pipe(file))
    sidecar = parts[0].sidecar if len(parts) == 1 else None
    source = None
    if len(regular) == len(files):
        source = Source(tuple(str(file.absolute()) for file in files), dim, column, sure)
    return Features(rows, name, normalize, regular, None, ids, read_as, note, sidecar, bool(doubts), source)


def needs_width(path: Path | str) -> bool:
    """Tell whether nothing but ``dim`` says how wide the rows of a file (or of shards) are."""
    file = feature_files(Path(path))[0]
    return not is_pipe(file) and _kind(file, str(file)) == "raw" and read_sidecar(file) is None


def features_from_array(array: object, dim: int | None = None, *, normalize: bool = True) -> Features:
    """Take features from memory: an (n, d) array-like of real numbers, tensors, columns of rows, tables.

    Float arrays of NumPy are not copied. Raises InputError when it is not two-dimensional (axes of length 1 apart), is
    empty, ragged or masked, does not hold real numbers or has another width than ``dim``.
    """
    rows = array_from(array, "features", dim)
    read_as = (
        f"{counted(rows.shape[0], 'row')} of {rows.shape[1]:,} {rows.dtype.newbyteorder('=').name} (array)"
    )
    return Features(rows, "features", normalize, read_as=read_as)


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
            f"{features.name}: {broken.count:,} of {features.n:,} rows {'holds' if broken.count == 1 else 'hold'} NaN, "
            f"infinite or overflowing values ({broken}); remove or recompute these faces."
        )
    if zero.count and features.normalize:
        raise InputError(
            f"{features.name}: {zero.count:,} of {features.n:,} rows {'is' if zero.count == 1 else 'are'} all zero "
            f"({zero}); remove or recompute these faces."
        )


def check_unit_rows(features: Features, title: str) -> None:
    """Raise InputError when rows that are taken as they are, ``normalize = false``, are no unit vectors.

    title: the system, whose similarities are inner products. Rows of zeros and broken ones are not looked at.
    """
    low, high = np.inf, 0.0
    for start in range(0, features.n, BLOCK_ROWS):
        with np.errstate(over="ignore", invalid="ignore"):
            norms = np.linalg.norm(features.raw(start, min(start + BLOCK_ROWS, features.n)), axis=1)
        norms = norms[np.isfinite(norms) & (norms > 0)]
        low, high = min(low, float(norms.min(initial=np.inf))), max(high, float(norms.max(initial=0)))
    if high and (low < 1 - UNIT or high > 1 + UNIT):
        raise InputError(
            f"{features.name}: rows have norms from {low:.4g} to {high:.4g}, and {title} takes unit vectors: its "
            "similarities are inner products, clipped to 0..1. The engine's recipe says `normalize = false` under "
            "[features]; export again with `normalize = true`, or divide each row by its norm."
        )


def stamp_of(features: Features) -> tuple[int, ...]:
    """Return what is another when a file of the features was changed or exchanged; nothing for arrays."""
    stamps: list[int] = []
    for file in features.files:
        try:
            found = os.stat(file)
        except OSError:
            stamps.append(0)
        else:
            stamps += (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    return tuple(stamps)


def hash_of(features: Features) -> str:
    """Return the SHA-256 of shape, dtype and bytes of all features, as they are on disk, and of which are chosen.

    Shards count as one. Raises InputError when what embed noted of the file says another one.
    """
    if features.chosen is not None:
        whole = hash_of(dataclasses.replace(features, chosen=None))
        return hashlib.sha256(whole.encode() + features.chosen.astype("<i8").tobytes()).hexdigest()
    state = new_hash(features.array.shape, features.array.dtype)
    for start in range(0, features.n, BLOCK_ROWS):
        state.update(np.ascontiguousarray(features.array[start : start + BLOCK_ROWS]).data)
    if features.sidecar is not None:
        check_hash(features.name, features.sidecar, state.hexdigest())
    return state.hexdigest()


def new_hash(shape: tuple[int, ...], dtype: DTypeLike) -> "hashlib._Hash":
    """Return the hash of features that are still to come, block by block."""
    return hashlib.sha256(str((shape, np.dtype(dtype))).encode())


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


def _open_one(
    file: Path, dim: int | None, column: str | None, id_column: str | None, scratch: Path | None, sure: bool
) -> _Part:
    """Open one file, or pipe, whatever form it is of."""
    name = str(file)
    with spooled_bytes(file, scratch) if is_pipe(file) else nullcontext(file) as path:
        try:
            return _read(path, name, _kind(path, name), dim, column, id_column, scratch, sure)
        except InputError:
            raise
        except DAMAGED as error:  # what readers do not say themselves, a failing disk for example
            raise InputError(f"{name}: cannot be read ({reason_of(error)}).") from error


def _kind(path: Path, name: str) -> str:
    """Return the form of a file, one of ``READ``; raises InputError, saying what to type, for anything else."""
    content = content_of(path, name)
    if content.kind != "raw" and not path.stat().st_size:
        raise InputError(f"{name}: is empty; expected a row of values per face.")
    if content.kind in READ:
        if content.kind == "raw" and path.stat().st_size:
            if is_vecs(path):
                return "vecs"
            if is_bigann(path):
                return "bigann"
        return content.kind
    with open(path, "rb") as opened:
        head = opened.read(HEAD)
    by_name = "" if content.told else ", by its name,"
    raise InputError(
        f"{name}: is{by_name} {content.kind} and not a form of features that can be read; "
        f"{conversion(content.kind, name, head)}."
    )


def _read(
    path: Path,
    name: str,
    kind: str,
    dim: int | None,
    column: str | None,
    id_column: str | None,
    scratch: Path | None,
    sure: bool,
) -> _Part:
    if column is not None and kind in ("npy", "raw", "vecs", "bigann"):
        raise InputError(f"{name}: holds a single array; leave out --column {column}.")
    if id_column is not None and kind not in ("npz", "parquet", "arrow"):
        raise InputError(f"{name}: has no columns, so no ids; leave out --id-column {id_column}.")
    if kind in ("parquet", "arrow"):
        from fcdeploy.data.forms.tables import read_table

        array, columns, ids = read_table(path, name, kind, dim, column, id_column, scratch)
        return _Part(array, f"{kind.capitalize()}, {columns}", ids)
    if kind == "npz":
        array, key = read_npz(path, name, dim, column, scratch)
        return _Part(array, f".npz, '{key}'", _ids_of_npz(path, name, id_column, len(array)))
    if kind in ("torch", "safetensors"):
        if kind == "torch":
            rows, key = read_torch(path, name, dim, column)
        else:
            rows, key = read_safetensors(path, name, dim, column)
        suffix = ".pt" if kind == "torch" else ".safetensors"
        return _Part(rows, f"{suffix}, '{key}'" if key else suffix)
    if kind == "vecs":
        suffix = Path(name).suffix.lower()
        return _Part(read_vecs(path, name, dim), suffix if suffix in VECS else ".fvecs")
    if kind == "bigann":
        return _Part(read_bigann(path, name, dim), "rows behind a head of two numbers")
    sidecar = read_sidecar(path)
    if sidecar is not None:
        check_size(path, name, sidecar, dim)
    if kind == "npy":
        return _Part(read_npy(path, name, dim), ".npy", sidecar=sidecar)
    if sidecar is not None:
        stored = np.memmap(path, "<f4", "r", shape=(sidecar.rows, sidecar.width))
        return _Part(stored, "raw", sidecar=sidecar)
    array = open_raw(path, name, dim)
    return _Part(array, "raw", doubt=_doubt(path, name, array.shape[1], sure))


def _doubt(path: Path, name: str, dim: int, sure: bool) -> str:
    """Return what makes the width of a raw file doubtful; raises InputError where another one is certain."""
    doubted = width_doubted(path, dim)
    if doubted is None:
        return ""
    width, certain = doubted
    if certain and not sure:
        raise InputError(
            f"{name}: rows of {width} values are all of unit length, rows of {dim} are not; these features seem to be "
            f"{width} wide. Give features of {dim} values per face (--dim {dim} to read them so anyway)."
        )
    why = "rows of that width are all of unit length" if certain else "values repeat with that period"
    return f"; they seem to be {width} wide ({why})"


def _ids_of_npz(path: Path, name: str, key: str | None, n: int) -> np.ndarray | None:
    if key is None:
        return None
    try:
        with np.load(path, allow_pickle=False) as archive:
            ids = archive[key]
    except DAMAGED as error:
        raise InputError(f"{name}: has no array '{key}' of ids (--id-column): {reason_of(error)}.") from error
    if ids.shape != (n,) or ids.dtype.kind not in "iuU":
        raise InputError(
            f"{name}: '{key}' (--id-column) should be {n:,} integers or texts, found {ids.shape} {ids.dtype}."
        )
    return ids
