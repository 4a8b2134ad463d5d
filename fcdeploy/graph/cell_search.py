"""kNN lists of unit vectors by products of whole cells, in integers.

Each face is compared with the faces of some cells, by the scores of their codes (see ``codes``): of its nearest few,
and of all others whose centroids score high enough beside the candidates from the first (see ``Reach``). The faces of
a call that visit the same cell are multiplied with it in one product. Scores are exact, so that which faces become
candidates does not depend on how calls, threads or products were cut, nor on the processor; the similarities of
candidates are then computed from the vectors, as everywhere (``order_candidates``).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numba
import numpy as np

from fcdeploy.data.atomic import no_space_left, open_own
from fcdeploy.errors import InputError
from fcdeploy.graph.best_scores import ID_BITS, NO_KEY, TILE, BestScores, Lists, pairs_by_list, rank_columns
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.codes import ROWS, code_scale, codes_of_faces, codes_of_rows
from fcdeploy.graph.kernels import njit
from fcdeploy.graph.knn import order_candidates
from fcdeploy.graph.partition import dot
from fcdeploy.graph.products import Products, quickest_products, workers

SPARE = 32  # candidates beyond k: scores of codes are less precise than similarities
FIRST = 4  # cells that every face is compared with, more where they hold fewer faces than are asked for
NEAREST = 32  # cells of a face that are looked at before it is compared with all centroids
CUT_BITS = 10  # a cut is a share in 1,024ths
MOST_CUT = 2**20
RECALL = 0.98
SAMPLE = 1000
SEED = 77
TASK = 32768  # rows of a task at most
TASK_BYTES = 2**26  # that the keys of a task take at most
PAIRS = 2**22  # of faces and cells that are listed at once, 32 bytes each with all that is made of them
LEAST_ROWS = 32  # of a product with all centroids, however many there are


@dataclass(frozen=True)
class Reach:
    """How far faces look for neighbors, and the share of the true ones that they find so, on a sample.

    cut: a face is compared with the cells whose centroids score at least cut / 1024 of what its (k + SPARE)th best
    candidate in the nearest cells does; 0 is all cells.
    """

    cut: int
    recall: float
    sample: int


class CellSearch:
    """Finds neighbors among ``vectors`` (n, d) float32, C-contiguous unit rows (a memory map will do).

    cells: their partition. cut: how far faces look, see ``Reach``; None for as far as finds the share RECALL at the
    k of the first search. lists_file: keeps the codes, n d bytes, in this file instead of memory, where they are
    held twice. products: what multiplies them, by default what is quickest here. As many threads are used as numba is
    set to.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        cells: Cells,
        *,
        cut: int | None = None,
        lists_file: Path | None = None,
        products: Products | None = None,
    ) -> None:
        self.vectors = vectors
        self.cells = cells
        self.cut = cut
        self.products = products or quickest_products()
        self.scale = code_scale(vectors)
        self._centroids = codes_of_rows(cells.centroids, self.scale)
        self._packed_centroids = self.products.packed(self._centroids)
        order, first, self._place = cells.layout()
        self._sizes = np.diff(first)
        codes = self._codes(order, lists_file)
        packed = None
        if lists_file is None and self.products.rows is np.int8:
            packed = [
                self.products.packed(codes[start:stop]) if stop > start else None
                for start, stop in pairwise(first)
            ]
        self.lists = Lists(codes, order, first, packed)

    def search(self, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (m, k) int32 and sims (m, k) float32 of ``faces`` (m,); k is at most n.

        Quickest for tens of thousands of faces in the order of cells; lists do not depend on which faces share a call.
        """
        if self.cut is None:
            self.cut = self.reach_for(k).cut
        cut = self.cut
        wide = min(len(self.vectors), k + SPARE)
        found = np.empty((len(faces), wide), dtype=np.int32)

        def candidates(rows: slice) -> None:
            best = BestScores(self.products, self._codes_at(faces[rows]), wide)
            near = self._near(faces[rows], best.rows, wide)
            count = self._visit_nearest(best, near)
            self._visit_others(best, near, count, cut)
            found[rows] = best.found()

        self._in_parts(candidates, len(faces), wide)
        return order_candidates(self.vectors, found, faces, k)

    def reach_for(self, k: int, recall: float = RECALL, sample: int = SAMPLE) -> Reach:
        """Return how far faces must look to find the share ``recall`` of the k neighbors of ``sample`` seeded faces.

        Their neighbors are found among all faces; what their cells score then says which cut reaches them. The same
        on every machine.
        """
        check_recall(recall)
        return reach_of(self.cuts_for(sampled_faces(len(self.vectors), sample), k), recall)

    def cuts_for(self, faces: np.ndarray, k: int) -> np.ndarray:
        """Return the highest cuts (m, k) int64 that reach each of the k neighbors of ``faces`` (m,) among all.

        k: at most n. The same for a face whichever others share the call.
        """
        n = len(self.vectors)
        k = min(k, n)
        wide = min(n, k + SPARE)
        found = np.empty((len(faces), wide), dtype=np.int32)
        cuts = np.empty((len(faces), k), dtype=np.int64)

        def compare_all(rows: slice) -> None:
            best = BestScores(self.products, self._codes_at(faces[rows]), wide)
            best.visit_all(self.lists)
            found[rows] = best.found()

        self._in_parts(compare_all, len(faces), wide)
        ids = order_candidates(self.vectors, found, faces, k)[0]

        def look_up(rows: slice) -> None:
            best = BestScores(self.products, self._codes_at(faces[rows]), wide)
            near = self._near(faces[rows], best.rows, wide)
            count = self._visit_nearest(best, near)
            where = self.cells.cell[ids[rows]]
            cuts_needed(best.rows, self._centroids, where, near, count, best.floor, cuts[rows])

        self._in_parts(look_up, len(faces), wide)
        return cuts

    def _near(self, faces: np.ndarray, codes: np.ndarray, wide: int) -> np.ndarray:
        """Return the nearest cells (m, p) int32 of faces, the most similar first; p depends on ``wide`` alone."""
        p = nearest_looked_at(len(self.vectors), self.cells.count, wide)
        kept = self.cells.nearest
        if kept is not None and kept.shape[1] >= p:
            return np.ascontiguousarray(kept[faces, :p])
        near = np.empty((len(faces), p), dtype=np.int32)
        every = np.arange(len(faces))
        self._for_centroid_scores(codes, every, lambda scores, rows: rank_columns(scores, near[rows]))
        return near

    def _for_centroid_scores(
        self, codes: np.ndarray, which: np.ndarray, use: Callable[[np.ndarray, slice], None]
    ) -> None:
        """Call ``use`` with the scores (rows, cells) of some of the rows ``which``, and the slice of these."""
        count = self.cells.count
        step = max(LEAST_ROWS, TILE // count)
        scores: np.ndarray = np.empty(step * count, dtype=self.products.scores)
        for start in range(0, len(which), step):
            rows = slice(start, min(start + step, len(which)))
            made = scores[: (rows.stop - start) * count]
            self.products.multiply(
                codes[which[rows]].astype(self.products.rows), self._packed_centroids, made
            )
            use(made.reshape(-1, count), rows)

    def _visit_nearest(self, best: BestScores, near: np.ndarray) -> np.ndarray:
        """Compare rows with the first few of ``near`` (m, p), which hold what is asked for; return how many (m,)."""
        count = first_cells(near, self._sizes, best.wide, FIRST)
        lists, rows = first_pairs(near, count)
        best.visit(self.lists, *pairs_by_list(lists, rows, self.cells.count))
        best.raise_floors()
        return count

    def _visit_others(self, best: BestScores, near: np.ndarray, count: np.ndarray, cut: int) -> None:
        """Compare rows with all other cells that score high enough; ``count`` (m,) of ``near`` are done."""
        limits = limits_of(best.floor, cut)
        last = _last_cells(best.rows, self._centroids, near, count, limits)
        far = np.flatnonzero(last == BEYOND)
        parts = [_pairs_between(near, count, last)]

        def visit() -> None:
            lists, rows = (np.concatenate(pairs) for pairs in zip(*parts, strict=True))
            parts.clear()
            best.visit(self.lists, *pairs_by_list(lists, rows, self.cells.count))

        def look_at_all(scores: np.ndarray, some: slice) -> None:
            parts.append(_pairs_above(scores, far[some], near, count, limits))
            if sum(len(lists) for lists, _ in parts) > PAIRS:
                visit()

        self._for_centroid_scores(best.rows, far, look_at_all)
        if parts:
            visit()

    def _codes_at(self, faces: np.ndarray) -> np.ndarray:
        return self.lists.codes[self._place[faces]]

    def _in_parts(self, task: Callable[[slice], None], count: int, wide: int) -> None:
        """Call ``task`` for parts of ``count`` rows, on several threads."""
        size = max(1, min(TASK, -(-count // numba.get_num_threads()), TASK_BYTES // (16 * wide)))
        with workers() as run:
            run(task, [slice(start, min(start + size, count)) for start in range(0, count, size)])

    def _codes(self, order: np.ndarray, file: Path | None) -> np.ndarray:
        """Return the codes (n, d) int8 in the order of cells, in memory or in a file that is mapped."""
        if file is None:
            return codes_of_faces(self.vectors, order, self.scale)
        handle = open_own(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with no_space_left(file), os.fdopen(handle, "wb") as opened:
            for start in range(0, len(order), ROWS):
                opened.write(codes_of_faces(self.vectors, order[start : start + ROWS], self.scale).data)
        mapped = np.memmap(file, dtype=np.int8, mode="r", shape=self.vectors.shape)
        return np.asarray(mapped)


def check_recall(recall: float) -> None:
    """Raise InputError for a recall that is no share."""
    if not 0 < recall <= 1:
        raise InputError(f"recall: expected a share above 0 and at most 1, found {recall}.")


def sampled_faces(n: int, sample: int) -> np.ndarray:
    """Return the faces (m,) int32, ascending, that tell how far all n must look."""
    chosen = np.random.default_rng(SEED).choice(n, min(n, sample), replace=False)
    return np.sort(chosen).astype(np.int32)


def reach_of(cuts: np.ndarray, recall: float) -> Reach:
    """Return the highest cut that reaches the share ``recall`` of the neighbors of a sample, cuts (sample, k)."""
    needed = np.sort(cuts, axis=None)[::-1]
    cut = min(int(needed[int(np.ceil(recall * len(needed))) - 1]), MOST_CUT)
    return Reach(cut, float((needed >= cut).mean()), len(cuts))


def nearest_looked_at(n: int, cells: int, wide: int) -> int:
    """Return how many of its nearest cells a face looks at before all of them."""
    size = -(-2 * wide * cells // n)
    return min(cells, max(NEAREST, FIRST + size))


BEYOND = -1  # a face whose nearest cells all score high enough, so that others may, too


@njit(cache=True, nogil=True)
def first_cells(near: np.ndarray, sizes: np.ndarray, wide: int, least: int) -> np.ndarray:
    """Return how many of the nearest cells (m, p) hold ``wide`` faces, at least ``least``, at most p."""
    count = np.empty(near.shape[0], dtype=np.int64)
    for i in range(near.shape[0]):
        held, p = 0, 0
        while p < near.shape[1] and (p < least or held < wide):
            held += sizes[near[i, p]]
            p += 1
        count[i] = p
    return count


@njit(cache=True, nogil=True)
def first_pairs(near: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return _pairs_between(near, np.zeros_like(count), count)


@njit(cache=True, nogil=True)
def _pairs_between(near: np.ndarray, start: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells near[i, start[i]:stop[i]] of all rows i, and these rows; none of a row BEYOND."""
    lists = np.empty(np.maximum(stop - start, 0).sum(), dtype=np.int32)
    rows = np.empty(len(lists), dtype=np.int64)
    at = 0
    for i in range(near.shape[0]):
        for p in range(start[i], stop[i]):
            lists[at] = near[i, p]
            rows[at] = i
            at += 1
    return lists, rows


@njit(cache=True, nogil=True)
def limits_of(floor: np.ndarray, cut: int) -> np.ndarray:
    """Return what the scores of cells, times 1024, must reach; a row that holds too few reaches all of them."""
    limits = np.full(len(floor), NO_KEY, dtype=np.int64)
    for i in range(len(floor)):
        if floor[i] != NO_KEY and cut > 0:
            limits[i] = cut * max(floor[i] >> ID_BITS, 0)
    return limits


@njit(cache=True, nogil=True)
def _last_cells(
    codes: np.ndarray, centroids: np.ndarray, near: np.ndarray, count: np.ndarray, limits: np.ndarray
) -> np.ndarray:
    """Return how many of the nearest cells of each row score high enough, or BEYOND."""
    last = np.empty(near.shape[0], dtype=np.int64)
    for i in range(near.shape[0]):
        p = count[i]
        while p < near.shape[1] and (np.int64(dot(codes[i], centroids[near[i, p]])) << CUT_BITS) >= limits[i]:
            p += 1
        last[i] = BEYOND if p == near.shape[1] and p < len(centroids) else p
    return last


@njit(cache=True, nogil=True)
def _pairs_above(
    scores: np.ndarray, which: np.ndarray, near: np.ndarray, count: np.ndarray, limits: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that score high enough and were not visited, and their rows.

    scores: (m, cells) of the rows ``which`` (m,).
    """
    wanted = np.zeros(scores.shape[1], dtype=np.bool_)
    total = 0
    for fill in (False, True):
        lists = np.empty(total if fill else 0, dtype=np.int32)
        rows = np.empty(total if fill else 0, dtype=np.int64)
        total = 0
        for i in range(len(which)):
            row = which[i]
            for c in range(scores.shape[1]):
                wanted[c] = np.int64(scores[i, c]) << CUT_BITS >= limits[row]
            for p in range(count[row]):
                wanted[near[row, p]] = False
            if not fill:
                total += wanted.sum()
                continue
            for c in range(scores.shape[1]):
                if wanted[c]:
                    lists[total] = c
                    rows[total] = row
                    total += 1
    return lists, rows


@njit(cache=True, nogil=True)
def cuts_needed(
    codes: np.ndarray,
    centroids: np.ndarray,
    where: np.ndarray,
    near: np.ndarray,
    count: np.ndarray,
    floor: np.ndarray,
    cuts: np.ndarray,
) -> None:
    """Write the highest cut with which each row visits the cells ``where`` (m, k) to ``cuts`` (m, k)."""
    for i in range(where.shape[0]):
        for j in range(where.shape[1]):
            visited = floor[i] == NO_KEY
            for p in range(count[i]):
                visited |= near[i, p] == where[i, j]
            if visited:
                cuts[i, j] = MOST_CUT
                continue
            score = np.int64(dot(codes[i], centroids[where[i, j]])) << CUT_BITS
            least = floor[i] >> ID_BITS
            if least > 0:
                cuts[i, j] = min(max(score // least, 0), MOST_CUT)
            else:
                cuts[i, j] = MOST_CUT if score >= 0 else 0
