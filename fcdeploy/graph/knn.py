"""kNN lists of unit vectors by faiss, and the files that others write them in.

A list starts with the face itself; the others follow by similarity, equal ones by id. faiss finds candidates, a few
more than are asked for; their similarities are then computed again, one pair at a time and always in the same order
of additions, so that the result does not depend on how faiss cut the work into blocks and threads.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numba import njit, prange

from fcdeploy.errors import InputError, MissingDependencyError

EXACT_LIMIT = 50_000  # faces up to which --knn auto compares all pairs
SPARE = 8  # candidates beyond k, so that rounding inside faiss rarely decides who is k-th
READ_ROWS = 65536


@dataclass(frozen=True)
class KnnGraph:
    """The k nearest neighbors of n faces: ids (n, k) int32, sims (n, k) float32 cosine similarities."""

    ids: np.ndarray
    sims: np.ndarray

    @property
    def k(self) -> int:
        return int(self.ids.shape[1])


def choose_method(method: str, n: int) -> str:
    """Return 'exact' or 'ivf'; 'auto' compares all pairs up to EXACT_LIMIT faces."""
    if method != "auto":
        return method
    return "exact" if n <= EXACT_LIMIT else "ivf"


class KnnSearch:
    """Finds neighbors among ``vectors`` (n, d) float32, C-contiguous, unit rows (a memory map will do).

    method: 'exact' compares all pairs; 'ivf' looks into the cells of a k-means partition that lie nearest. threads:
    as many as faiss may use. Building an IVF index trains and fills it; both are seeded and repeatable.
    """

    def __init__(self, vectors: np.ndarray, method: str, *, threads: int = 0) -> None:
        self.faiss = import_faiss()
        if threads:
            self.faiss.omp_set_num_threads(threads)
        self.vectors = vectors
        self.method = method
        self.index = self._build_ivf() if method == "ivf" else None

    def search(self, start: int, stop: int, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (m, k) int32 and sims (m, k) float32 of faces start..stop-1; k is at most n."""
        n = len(self.vectors)
        wide = min(n, k + SPARE)
        queries = np.ascontiguousarray(self.vectors[start:stop])
        if self.index is None:
            found = self._search_exact(queries, wide)
        else:
            found = self.index.search(queries, wide)[1]
            short = np.flatnonzero((found < 0).any(axis=1))
            if len(short):  # the probed cells held fewer faces than were asked for
                found[short] = self._search_exact(queries[short], wide)
        return order_candidates(self.vectors, found, start, k)

    def _search_exact(self, queries: np.ndarray, k: int) -> np.ndarray:
        return self.faiss.knn(queries, self.vectors, k, metric=self.faiss.METRIC_INNER_PRODUCT)[1]  # type: ignore[no-any-return]

    def _build_ivf(self) -> Any:
        n, d = self.vectors.shape
        lists, probes = ivf_parameters(n)
        quantizer = self.faiss.IndexFlatIP(d)
        index = self.faiss.IndexIVFFlat(quantizer, d, lists, self.faiss.METRIC_INNER_PRODUCT)
        index.cp.seed = 1234
        index.cp.niter = 10
        index.cp.spherical = True
        rng = np.random.default_rng(1234)
        sample = np.sort(rng.choice(n, min(n, 64 * lists), replace=False))
        index.train(np.ascontiguousarray(self.vectors[sample]))
        for start in range(0, n, READ_ROWS):
            index.add(np.ascontiguousarray(self.vectors[start : start + READ_ROWS]))
        index.nprobe = probes
        return index


def ivf_parameters(n: int) -> tuple[int, int]:
    """Return how many cells an IVF index over n faces has, and how many of them a query looks into."""
    lists = max(1, min(int(4 * np.sqrt(n)), n // 39))
    return lists, min(lists, 16)


@njit(cache=True, nogil=True, parallel=True, fastmath={"reassoc", "contract"})
def _pair_similarities(vectors: np.ndarray, found: np.ndarray, start: int, sims: np.ndarray) -> None:
    for row in prange(found.shape[0]):
        own = vectors[start + row]
        for p in range(found.shape[1]):
            other = vectors[found[row, p]]
            total = np.float32(0)
            for c in range(vectors.shape[1]):
                total += own[c] * other[c]
            sims[row, p] = total


@njit(cache=True, nogil=True, parallel=True)
def _sort_rows(
    found: np.ndarray, sims: np.ndarray, start: int, k: int, out_ids: np.ndarray, out_sims: np.ndarray
) -> None:
    for row in prange(found.shape[0]):
        face = start + row
        order = np.argsort(found[row], kind="mergesort")
        order = order[np.argsort(-sims[row][order], kind="mergesort")]
        out_ids[row, 0] = face
        out_sims[row, 0] = 1
        count = 1
        for p in order:
            if found[row, p] == face:
                out_sims[row, 0] = sims[row, p]
            elif count < k:
                out_ids[row, count] = found[row, p]
                out_sims[row, count] = sims[row, p]
                count += 1


def order_candidates(vectors: np.ndarray, found: np.ndarray, start: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sort candidates by their true similarity: the face itself first, then downwards, equal ones by id.

    vectors: (n, d) float32 unit rows; found: (m, >= k) candidate ids of faces start..start+m-1, none twice in a
    row. Returns ids (m, k) int32 and sims (m, k) float32.
    """
    sims = np.empty(found.shape, dtype=np.float32)
    _pair_similarities(vectors, found, start, sims)
    out_ids = np.empty((len(found), k), dtype=np.int32)
    out_sims = np.empty((len(found), k), dtype=np.float32)
    _sort_rows(found, sims, start, k, out_ids, out_sims)
    return out_ids, out_sims


def similarities_of_lists(vectors: np.ndarray, ids: np.ndarray, start: int) -> np.ndarray:
    """Return the cosine similarities (m, k) float32 of lists that came without them, ids (m, k)."""
    sims = np.empty(ids.shape, dtype=np.float32)
    _pair_similarities(vectors, ids, start, sims)
    return sims


def import_faiss():  # type: ignore[no-untyped-def]
    """Import faiss, or raise MissingDependencyError with the command that installs it."""
    try:
        import faiss
    except ImportError as error:
        raise MissingDependencyError(
            "faiss is not installed; install it with `pip install 'fcdeploy[cpu]'` (or `[gpu]`)."
        ) from error
    return faiss


class ListsFile:
    """Neighbor lists that somebody else made, read block by block.

    Forms: ``.npz`` with ``data`` (n, 2, k), ids over distances 1 - cosine, as the published systems keep them;
    ``.npz`` with ``ids`` and perhaps ``sims``, as our run folders keep them; ``.npz`` with ``knns`` and ``dists``
    (NSR-FC); ``.npy`` (n, k) of integer ids. Raises InputError for anything else; object arrays are pickles and
    are never loaded.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise InputError(f"{path}: no such file of neighbor lists.")
        try:
            self._open()
        except InputError:
            raise
        except (ValueError, OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
            reason = (str(error).splitlines() or [""])[0].rstrip(".")
            raise InputError(f"{path}: is not a readable .npz or .npy file ({reason}).") from error

    def _open(self) -> None:
        headers = self._headers()
        for name, (shape, dtype) in headers.items():
            if dtype.hasobject:
                raise InputError(
                    f"{self.path}: '{name}' is an object array, a pickle that could run code, and is not loaded; "
                    "convert it where you trust it: data = np.load(file, allow_pickle=True)['data']; "
                    "np.savez(out, data=np.stack([np.stack(row) for row in data]))."
                )
        if "data" in headers and len(headers["data"][0]) == 3 and headers["data"][0][1] == 2:
            (self.n, _, self.k), self._form = headers["data"][0], "stacked"
        elif "ids" in headers or "" in headers:
            self._form, self._ids, self._sims = "pair", "ids" if "ids" in headers else "", "sims"
        elif "knns" in headers and "dists" in headers:
            self._form, self._ids, self._sims = "distances", "knns", "dists"
        else:
            found = ", ".join(f"{name or 'array'} {shape} {dtype}" for name, (shape, dtype) in headers.items())
            raise InputError(
                f"{self.path}: expected 'data' (n, 2, k), or 'ids' (n, k), or 'knns' and 'dists' (n, k); found {found}."
            )
        if self._form != "stacked":
            shape, dtype = headers[self._ids]
            if len(shape) != 2 or 0 in shape or dtype.kind not in "iu":
                raise InputError(f"{self.path}: expected (n, k) integer ids, found {shape} {dtype}.")
            self.n, self.k = shape
            if self._sims in headers and headers[self._sims][0] != shape:
                raise InputError(f"{self.path}: '{self._sims}' has shape {headers[self._sims][0]}, ids {shape}.")
        elif headers["data"][1].kind != "f":
            raise InputError(f"{self.path}: 'data' should be of floats, found {headers['data'][1]}.")
        self.has_sims = self._form == "stacked" or self._sims in headers

    def _headers(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        if self.path.suffix == ".npy":
            with open(self.path, "rb") as file:
                return {"": _read_header(file)[:2]}
        headers = {}
        with zipfile.ZipFile(self.path) as archive:
            for name in archive.namelist():
                with archive.open(name) as file:
                    headers[name.removesuffix(".npy")] = _read_header(file)[:2]
        return headers

    def blocks(self, rows: int = READ_ROWS) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Yield (start, ids (m, k) int64 or float64, sims (m, k) float32 or None) in order."""
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
        if self.path.suffix == ".npy":
            array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            for start in range(0, len(array), rows):
                yield start, np.asarray(array[start : start + rows])
            return
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as file:
            shape, dtype, fortran = _read_header(file)
            if fortran:  # rare; columns cannot be cut into rows without reading all
                whole = np.frombuffer(file.read(), dtype).reshape(shape[::-1]).T
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


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, bool]:
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
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
        raise InputError(
            f"{where}: face {start + row} has the neighbor {ids[row, column]}, which is no face of 0..{n - 1}; "
            "the lists belong to other features."
        )
    checked = np.ascontiguousarray(ids, dtype=np.int32)
    repeats = _first_repeat(checked)
    if repeats >= 0:
        raise InputError(f"{where}: face {start + repeats} has the same neighbor twice; make the lists again.")
    return checked


@njit(cache=True, nogil=True)
def _first_repeat(ids: np.ndarray) -> int:
    for row in range(len(ids)):
        ordered = np.sort(ids[row])
        for p in range(1, len(ordered)):
            if ordered[p] == ordered[p - 1]:
                return row
    return -1
