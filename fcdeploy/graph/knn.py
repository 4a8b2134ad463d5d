"""kNN lists of unit vectors by faiss.

A list starts with the face itself; the others follow by similarity, equal ones by id. faiss finds candidates, a few
more than are asked for; their similarities are then computed again, one pair at a time and always in the same order
of additions, so that the result does not depend on how faiss cut the work into blocks and threads.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit, prange

from fcdeploy.errors import MissingDependencyError

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
        return self.faiss.knn(queries, self.vectors, k, metric=self.faiss.METRIC_INNER_PRODUCT)[1]

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


def order_candidates(
    vectors: np.ndarray, found: np.ndarray, start: int, k: int
) -> tuple[np.ndarray, np.ndarray]:
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
