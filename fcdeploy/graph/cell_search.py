"""kNN lists of unit vectors by products of whole cells, in integers.

Each face is compared with the faces of its nearest cells, by the scores of their codes (see ``codes``). The faces of a
call that visit the same cell are multiplied with it in one product. Scores are exact, so that which faces become
candidates does not depend on how calls, threads or products were cut, nor on the processor; the similarities of
candidates are then computed from the vectors, as everywhere (``order_candidates``).
"""

import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numba
import numpy as np

from fcdeploy.data.atomic import no_space_left, open_own
from fcdeploy.errors import InputError
from fcdeploy.graph.best_scores import BestScores, Lists
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.codes import code_scale, codes_of_faces, codes_of_rows
from fcdeploy.graph.knn import order_candidates
from fcdeploy.graph.partition import all_cells, ranked_cells
from fcdeploy.graph.products import Products, quickest_products, workers

SPARE = 32  # candidates beyond k: scores of codes are less precise than similarities
REACH = 16  # cells that a face is compared with where nothing else is asked for
RECALL = 0.98
SAMPLE = 500
SEED = 77
ROWS = 65536
TASK = 4096  # rows of a task at most
TASK_BYTES = 2**26  # that the keys of a task take at most
EVERY_ROWS = 64  # faces that are compared with all others at a time


@dataclass(frozen=True)
class Reach:
    """How many cells a face is compared with, and the share of true neighbors that are in them, on a sample."""

    cells: int
    recall: float
    sample: int


class CellSearch:
    """Finds neighbors among ``vectors`` (n, d) float32, C-contiguous unit rows (a memory map will do).

    cells: their partition. reach: how many cells each face is compared with, the most similar ones; None for as many
    as give RECALL at the first search's k. lists_file: keeps the codes, n d bytes, in this file instead of memory,
    where they are held twice. products: what multiplies them, by default what is quickest here. As many threads are
    used as numba is set to.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        cells: Cells,
        *,
        reach: int | None = REACH,
        lists_file: Path | None = None,
        products: Products | None = None,
    ) -> None:
        self.vectors = vectors
        self.cells = cells
        self.reach = None if reach is None else min(max(1, reach), cells.count)
        self.products = products or quickest_products()
        self.scale = code_scale(vectors)
        self._every_cell = all_cells(codes_of_rows(cells.centroids, self.scale), self.products)
        order = cells.order()
        first = np.zeros(cells.count + 1, dtype=np.int64)
        np.cumsum(np.bincount(cells.cell, minlength=cells.count), out=first[1:])
        self._place = np.empty(len(order), dtype=np.int32)
        self._place[order] = np.arange(len(order), dtype=np.int32)
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

        Quickest for thousands of faces in the order of cells; lists do not depend on which faces share a call.
        """
        if self.reach is None:
            self.reach = self.reach_for(k).cells
        n = len(self.vectors)
        wide = min(n, k + SPARE)
        found, held = self._candidates(faces, self.nearest_cells(faces, self.reach), wide)
        short = np.flatnonzero(held < wide)
        if len(short):  # their cells hold fewer faces than were asked for
            found[short] = self._all_pairs(faces[short], wide)
        return order_candidates(self.vectors, found, faces, k)

    def nearest_cells(self, faces: np.ndarray, count: int) -> np.ndarray:
        """Return the ``count`` cells (m, count) int32 most similar to each of ``faces``, the most similar first."""
        kept = self.cells.nearest
        if kept is not None and kept.shape[1] >= count:
            return np.ascontiguousarray(kept[faces, :count])
        return ranked_cells(self._codes_at(faces), self._every_cell, count, self.products)

    def reach_for(self, k: int, recall: float = RECALL, sample: int = SAMPLE) -> Reach:
        """Return how many cells hold the share ``recall`` of the k neighbors of each of ``sample`` seeded faces.

        Their neighbors are found among all faces, and looked up in the cells of the face in order of similarity: the
        same on every machine.
        """
        if not 0 < recall <= 1:
            raise InputError(f"recall: expected a share above 0 and at most 1, found {recall}.")
        n, count = len(self.vectors), self.cells.count
        k = min(k, n)
        faces = np.sort(np.random.default_rng(SEED).choice(n, min(n, sample), replace=False)).astype(np.int32)
        wide = min(n, k + SPARE)
        ids, _ = order_candidates(self.vectors, self._all_pairs(faces, wide), faces, k)
        ranks = np.empty((len(faces), count), dtype=np.int32)
        ranked = ranked_cells(self._codes_at(faces), self._every_cell, count, self.products)
        np.put_along_axis(ranks, ranked, np.arange(count, dtype=np.int32)[None], axis=1)
        needed = np.take_along_axis(ranks, self.cells.cell[ids], axis=1)
        within = np.cumsum(np.bincount(needed.ravel(), minlength=count))
        cells = min(int(np.searchsorted(within, np.ceil(recall * ids.size))) + 1, count)
        return Reach(cells, float(within[cells - 1] / ids.size), len(faces))

    def _codes_at(self, faces: np.ndarray) -> np.ndarray:
        return self.lists.codes[self._place[faces]]

    def _all_pairs(self, faces: np.ndarray, wide: int) -> np.ndarray:
        """Return the best ``wide`` (m, wide) int32 among all faces."""
        every = np.arange(self.cells.count, dtype=np.int32)
        found = np.empty((len(faces), wide), dtype=np.int32)
        step = EVERY_ROWS * numba.get_num_threads()
        for start in range(0, len(faces), step):
            some = faces[start : start + step]
            visited = np.broadcast_to(every, (len(some), len(every)))
            found[start : start + step] = self._candidates(some, visited, wide)[0]
        return found

    def _candidates(self, faces: np.ndarray, visited: np.ndarray, wide: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the best ``wide`` (m, wide) int32 in the cells ``visited`` (m, p), and how many there are (m,)."""
        found = np.empty((len(faces), wide), dtype=np.int32)
        held = np.empty(len(faces), dtype=np.int64)
        threads = numba.get_num_threads()
        size = min(TASK, -(-len(faces) // threads), TASK_BYTES // (16 * wide))
        size = max(1, size)

        def task(start: int) -> None:
            these = slice(start, start + size)
            best = BestScores(self.products, self._codes_at(faces[these]), wide)
            # The nearest cell apart: what it holds lets nearly all else be passed over.
            best.visit(self.lists, visited[these, :1])
            best.raise_floors()
            best.visit(self.lists, visited[these, 1:])
            found[these], held[these] = best.found()

        with workers() as run:
            run(task, range(0, len(faces), size))
        return found, held

    def _codes(self, order: np.ndarray, file: Path | None) -> np.ndarray:
        """Return the codes (n, d) int8 in the order of cells, in memory or in a file that is mapped."""
        if file is None:
            return codes_of_faces(self.vectors, order, self.scale)
        handle = open_own(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        with no_space_left(file), os.fdopen(handle, "wb") as opened:
            for start in range(0, len(order), ROWS):
                opened.write(codes_of_faces(self.vectors, order[start : start + ROWS], self.scale).data)
        mapped: Any = np.memmap(file, dtype=np.int8, mode="r", shape=self.vectors.shape)
        return np.asarray(mapped)
