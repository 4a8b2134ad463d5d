"""Cells by k-means in integers: the same on every machine, for any number of threads.

Rows and centroids are codes (see ``codes``): the scores that decide between centroids are exact, and so are the sums
of the rows of a cell. What is left in floating point is one division and one square root per number, which IEEE 754
defines to the last bit.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import numpy as np

from fcdeploy.data.mapped import release_pages
from fcdeploy.graph.best_scores import rank_columns
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.codes import CodeScale, code_scale, codes_of_faces, codes_of_rows
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.products import Products, quickest_products, workers

SEED = 1234
SAMPLE_PER_CELL = 40
FEW = 4  # one of so many rows of the sample goes through the first iterations
ITERATIONS = 8  # of k-means
FEW_ITERATIONS = 2  # the first ones, of few rows; in the next one, all rows are compared with all centroids
NEAR = 16  # centroids that a row is compared with afterwards: the nearest in that iteration
NEAREST = 32  # cells of a face that are kept with it
ROWS = 2048  # of a task
SCORES = 2**17  # of one product
LEAST_ROWS = 32  # of one product, however many centroids there are


@runtime_checkable
class Ranks(Protocol):
    """Products that never leave a device, where centroids are ranked by them."""

    def ranked(self, codes: np.ndarray, centroids: np.ndarray, nearest: int) -> np.ndarray:
        """Return what ``ranked_cells`` does."""


def make_cells(
    vectors: np.ndarray, count: int, *, products: Products | Ranks | None = None, nearest: int = NEAREST
) -> Cells:
    """Divide ``vectors`` (n, d) float32 unit rows into ``count`` cells, those of similar faces side by side.

    nearest: how many cells are kept with each face, the most similar first.
    """
    products = products or quickest_products()
    scale = code_scale(vectors)
    centroids = trained_centroids(vectors, count, scale, products)
    probes = nearest_cells(vectors, centroids, min(nearest, count), scale, products)
    return Cells(centroids, np.ascontiguousarray(probes[:, 0]), probes)


def trained_centroids(
    vectors: np.ndarray, count: int, scale: CodeScale, products: Products | Ranks
) -> np.ndarray:
    """Return ``count`` centroids (count, d) float32 unit rows of a seeded sample of ``vectors`` (n, d)."""
    n = len(vectors)
    if count == 1:
        return np.ascontiguousarray(vectors[:1], dtype=np.float32)
    chosen = np.sort(np.random.default_rng(SEED).choice(n, min(n, SAMPLE_PER_CELL * count), replace=False))
    codes = codes_of_faces(vectors, chosen, scale)
    centroids = kmeans(codes, count, scale, products)
    groups = max(1, int(np.sqrt(count)))
    if groups > 1:  # similar cells side by side
        codes = codes_of_rows(centroids, scale)
        where = nearest_rows(codes, codes_of_rows(kmeans(codes, groups, scale, products), scale), products)
        centroids = np.ascontiguousarray(centroids[np.argsort(where, kind="stable")])
    return centroids


def kmeans(codes: np.ndarray, count: int, scale: CodeScale, products: Products | Ranks) -> np.ndarray:
    """Return ``count`` centroids (count, d) float32 unit rows of ``codes`` (m, d) int8, of which there are more.

    The first iterations, in which centroids move far, need few of the rows; the last ones look at near centroids only.
    """
    starts = np.sort(np.random.default_rng(SEED).choice(len(codes), count, replace=False))
    centroids = _unit_rows(codes[starts].astype(np.int64))
    few = np.ascontiguousarray(codes[::FEW]) if len(codes) >= FEW * count else codes
    for at in range(ITERATIONS):
        own = codes_of_rows(centroids, scale)
        rows = few if at < FEW_ITERATIONS else codes
        if at < FEW_ITERATIONS:
            cell = nearest_rows(rows, own, products)
        elif at == FEW_ITERATIONS:
            near = ranked_cells(rows, own, min(NEAR, count), products)
            cell = near[:, 0]
        else:
            cell = _nearest_of(rows, own, near)
        centroids = _unit_rows(_filled(_sums(rows, cell, count), rows, cell))
    return centroids


def nearest_rows(codes: np.ndarray, centroids: np.ndarray, products: Products | Ranks) -> np.ndarray:
    """Return which of ``centroids`` (c, d) int8 scores highest for each of ``codes`` (m, d) int8: (m,) int32.

    The first of those with equal scores.
    """
    if isinstance(products, Ranks):
        return np.ascontiguousarray(products.ranked(codes, centroids, 1)[:, 0])
    found = np.empty(len(codes), dtype=np.int32)
    _for_scores(codes, centroids, products, lambda scores, rows: _first_best(scores, found[rows]))
    return found


def ranked_cells(
    codes: np.ndarray, centroids: np.ndarray, nearest: int, products: Products | Ranks
) -> np.ndarray:
    """Return which ``nearest`` of ``centroids`` (c, d) int8 score highest for each of ``codes`` (m, d) int8.

    (m, nearest) int32, the best first, of those with equal scores the first.
    """
    if isinstance(products, Ranks):
        return products.ranked(codes, centroids, nearest)
    found = np.empty((len(codes), nearest), dtype=np.int32)
    _for_scores(codes, centroids, products, lambda scores, rows: rank_columns(scores, found[rows]))
    return found


def _for_scores(
    codes: np.ndarray,
    centroids: np.ndarray,
    products: Products,
    use: Callable[[np.ndarray, slice], None],
) -> None:
    """Call ``use`` with the scores (rows, c) of some rows of ``codes``, and a slice that says which they are."""
    packed = products.packed(centroids)
    count, step = len(centroids), max(LEAST_ROWS, SCORES // len(centroids))

    def task(start: int) -> None:
        scores: np.ndarray = np.empty(step * count, dtype=products.scores)
        stop = min(start + ROWS, len(codes))
        for at in range(start, stop, step):
            rows = slice(at, min(at + step, stop))
            made = scores[: (rows.stop - at) * count]
            products.multiply(codes[rows].astype(products.rows, copy=False), packed, made)
            use(made.reshape(-1, count), rows)

    with workers() as run:
        run(task, range(0, len(codes), ROWS))


def nearest_cells(
    vectors: np.ndarray, centroids: np.ndarray, nearest: int, scale: CodeScale, products: Products | Ranks
) -> np.ndarray:
    """Return the ``nearest`` cells (n, nearest) int32 of each of ``vectors`` (n, d), the most similar first.

    Of cells that are equally similar, the one with the lower number comes first.
    """
    own = codes_of_rows(centroids, scale)
    found = np.empty((len(vectors), nearest), dtype=np.int32)
    step = 32 * ROWS
    for start in range(0, len(vectors), step):
        codes = codes_of_rows(np.ascontiguousarray(vectors[start : start + step]), scale)
        found[start : start + step] = ranked_cells(codes, own, nearest, products)
        release_pages(vectors)
    return found


@njit(cache=True, nogil=True)
def dot(one: np.ndarray, other: np.ndarray) -> np.int32:
    """Return the product of two rows of codes (d,) int8."""
    total = np.int32(0)
    for j in range(one.shape[0]):
        total += np.int32(one[j]) * np.int32(other[j])
    return total


@njit(cache=True, nogil=True, parallel=True)
def _nearest_of(codes: np.ndarray, centroids: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return which of ``near`` (m, p) scores highest for each of ``codes`` (m, d), the lowest of equal ones."""
    found = np.empty(codes.shape[0], dtype=np.int32)
    for i in prange(codes.shape[0]):
        where = near[i, 0]
        best = dot(codes[i], centroids[where])
        for p in range(1, near.shape[1]):
            score = dot(codes[i], centroids[near[i, p]])
            if score > best or (score == best and near[i, p] < where):
                best, where = score, near[i, p]
        found[i] = where
    return found


@njit(cache=True, nogil=True)
def _first_best(scores: np.ndarray, out: np.ndarray) -> None:
    chunk = 64
    for i in range(scores.shape[0]):
        best, where = scores[i, 0], 0
        for start in range(0, scores.shape[1], chunk):
            part = scores[i, start : min(start + chunk, scores.shape[1])]
            better = False
            for j in range(part.shape[0]):
                better |= part[j] > best
            if better:
                for j in range(part.shape[0]):
                    if part[j] > best:
                        best, where = part[j], start + j
        out[i] = where


@njit(cache=True, nogil=True)
def _sums(codes: np.ndarray, cell: np.ndarray, count: int) -> np.ndarray:
    sums = np.zeros((count, codes.shape[1]), dtype=np.int64)
    for i in range(codes.shape[0]):
        of = sums[cell[i]]
        for j in range(codes.shape[1]):
            of[j] += codes[i, j]
    return sums


def _filled(sums: np.ndarray, codes: np.ndarray, cell: np.ndarray) -> np.ndarray:
    """Give empty cells, or such whose rows cancel out, a row each: the first rows of the largest cells."""
    sizes = np.bincount(cell, minlength=len(sums))
    empty = np.flatnonzero((sizes == 0) | ~sums.any(axis=1))
    largest = np.argsort(-sizes, kind="stable")[: len(empty)]
    first = np.full(len(sums), len(cell), dtype=np.int64)
    np.minimum.at(first, cell, np.arange(len(cell)))
    for one, large in zip(empty, largest, strict=True):
        sums[one] = codes[first[large] if first[large] < len(cell) else 0]
    return sums


def _unit_rows(sums: np.ndarray) -> np.ndarray:
    """Return (c, d) float32 unit rows in the directions of ``sums`` (c, d) int64; rows of zeros stay."""
    norms = np.sqrt((sums * sums).sum(axis=1).astype(np.float64))
    norms[norms == 0] = 1
    return (sums / norms[:, None]).astype(np.float32)
