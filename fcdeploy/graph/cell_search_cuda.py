"""The searches of ``cell_search`` and of all pairs on a GPU, with CuPy and its cuBLAS alone.

In cells, faces are compared with the members of the same cells as on the CPU, by the same integers, and the same
candidates are ordered by the same similarities: the lists are those of ``CellSearch``, bit for bit. Among all pairs,
candidates are found by similarities in single precision, SPARE more than are asked for, and then ordered likewise: the
lists are those of ``KnnSearch`` but where rounding decides who is a candidate.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph import cell_search, knn
from fcdeploy.graph.best_cuda import (
    BLOCKS,
    KEY,
    STREAMS,
    THREADS,
    TILE_ROWS,
    WIDEST,
    DeviceBest,
    DeviceStreams,
    Scratch,
    Table,
    address,
    copy_rows,
    keys_for,
    launch,
    table_of,
)
from fcdeploy.graph.cell_search import FIRST, RECALL, SAMPLE, SPARE, Reach
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.codes import CodeScale, code_scale, codes_of_rows
from fcdeploy.graph.cuda import (
    UPLOAD_ROWS,
    DeviceArray,
    DeviceArrays,
    copied,
    device_budget,
    download,
    import_cupy,
    on_device,
    upload,
)
from fcdeploy.graph.products_cuda import EIGHT, FOUR, DeviceProducts, padded
from fcdeploy.packages import tell_if_broken

PART = 1 << 16  # faces whose candidates in cells are found together: the more there are, the fewer products
TILED_PART = 4 * TILE_ROWS  # rows that are compared with everything: their products are the same in any part
LEAST_ROOM = 64 << 20  # bytes for scores, below which nothing is gained
MOST_ROOM = 1 << 30
WARP = 32
HALVES = 2  # of what is left beside the rows: for scores, and for all else


@dataclass(frozen=True)
class DeviceRows:
    """The rows of all faces on the device: codes in the order of ids, and vectors where there is room for them.

    vectors: on the host; there: the same on the device, (n, d padded to FOUR), or None. room: bytes that each stream
    may use for scores.
    """

    cupy: ModuleType
    products: DeviceProducts
    streams: DeviceStreams
    vectors: np.ndarray
    there: DeviceArray | None
    room: int

    def ordered(self, best: DeviceBest, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best candidates of ``faces`` (m,), as ``order_candidates`` does."""
        if self.there is None:
            return knn.order_candidates(self.vectors, download(best.found()), faces, k)
        cupy, m = self.cupy, len(faces)
        ids, sims = cupy.empty((m, k), np.int32), cupy.empty((m, k), np.float32)
        asked = upload(cupy, faces, np.int32)
        launch(
            *(cupy, "order_candidates", m),
            (
                best.keys,
                np.int32(best.wide),
                self.there,
                np.int32(self.there.shape[1]),
                asked,
                np.int32(k),
                ids,
                sims,
            ),
            shared=keys_for(best.wide) * KEY,
        )
        return download(ids), download(sims)


@contextlib.contextmanager
def pairs_on_device(
    vectors: np.ndarray, k: int, vram: int, resident: DeviceArrays | None = None
) -> Iterator["DeviceSearch | None"]:
    """Open a search among all rows of ``vectors`` (n, d) float32 on the GPU; None if the CPU has to search."""
    with device_for(vectors, k, vram, resident, codes=False) as rows:
        yield None if rows is None else DeviceSearch(rows)


@contextlib.contextmanager
def cells_on_device(
    vectors: np.ndarray, cells: Cells, k: int, vram: int, resident: DeviceArrays | None = None
) -> Iterator["DeviceCellSearch | None"]:
    """Open a search in cells on the GPU; None if the CPU has to search."""
    kept = 0 if cells.nearest is None else cells.nearest.shape[1]
    wide = min(len(vectors), k + SPARE)
    looked_at = cell_search.nearest_looked_at(len(vectors), cells.count, wide)
    if kept < looked_at > WIDEST:
        yield None
        return
    with device_for(vectors, k, vram, resident, codes=True) as rows:
        yield None if rows is None else DeviceCellSearch(rows, cells)


@contextlib.contextmanager
def ranks_on(
    *, gpu: bool, vram: int = 0, resident: DeviceArrays | None = None
) -> Iterator["DeviceRanks | None"]:
    """Open what ranks centroids on the GPU; None without ``gpu`` or CuPy."""
    device = opened_device("cells are made on the CPU") if gpu else None
    if device is None:
        yield None
        return
    cupy, products = device
    with on_device(cupy, "neighbor search"), DeviceStreams(cupy) as streams:
        budget = device_budget(cupy, vram, resident)
        yield DeviceRanks(cupy, products, streams, min(MOST_ROOM, budget // HALVES // STREAMS))


def opened_device(instead: str) -> tuple[ModuleType, DeviceProducts] | None:
    """Return CuPy and its products; None if it is not installed, with a warning if it is broken."""
    try:
        cupy = import_cupy()
        return cupy, DeviceProducts(cupy)
    except MissingDependencyError as error:
        tell_if_broken(error, instead)
        return None


@contextlib.contextmanager
def device_for(
    vectors: np.ndarray, k: int, vram: int, resident: DeviceArrays | None = None, *, codes: bool
) -> Iterator[DeviceRows | None]:
    """Open the rows of ``vectors`` (n, d) float32 on the device; None if the CPU has to search.

    That is without CuPy, with too little device memory, or with more neighbors than a block can select. codes: whether
    codes are compared, so that there need be no room for vectors. resident: what stays on the device from stage to
    stage, where vectors are looked for and kept; it is let go where there is no room beside it.
    """
    fits = min(len(vectors), k + SPARE) <= WIDEST
    device = opened_device("neighbors are searched on the CPU") if fits else None
    if device is None:
        yield None
        return
    cupy, products = device
    with on_device(cupy, "neighbor search"), DeviceStreams(cupy) as streams:
        found = _placed(cupy, vectors, k, vram, resident, codes)
        if found is None and resident is not None and resident.nbytes:
            resident.clear()
            found = _placed(cupy, vectors, k, vram, None, codes)
        yield None if found is None else DeviceRows(cupy, products, streams, vectors, *found)


def _placed(
    cupy: ModuleType, vectors: np.ndarray, k: int, vram: int, resident: DeviceArrays | None, codes: bool
) -> tuple[DeviceArray | None, int] | None:
    """Return the vectors on the device, or None in their place, and the room for scores; None without room."""
    n, d = vectors.shape
    there = kept_rows(vectors, resident)
    budget = device_budget(cupy, vram, resident)
    rows = 0 if there is not None else FOUR * n * padded(d, FOUR)
    wide = min(n, k + SPARE)
    # Of the faces of a part: keys, candidates, codes, nearest cells.
    budget -= STREAMS * min(n, PART) * (KEY * wide + FOUR * (wide + d + cell_search.NEAREST))
    if codes:
        budget -= 2 * n * padded(d, EIGHT) + FOUR * n
    least = HALVES * max(LEAST_ROOM, FOUR * padded(n, FOUR))
    if budget - rows >= least:
        there = there if there is not None else rows_on_device(cupy, vectors)
        budget -= rows
    elif not codes or budget < least:
        return None
    return there, min(MOST_ROOM, budget // HALVES // STREAMS)


def kept_rows(vectors: np.ndarray, resident: DeviceArrays | None) -> DeviceArray | None:
    """Return the copy of ``vectors`` (n, d) that stays on the device, if there is one, or room for one.

    Rows that have to be padded are none.
    """
    if resident is None or vectors.shape[1] % FOUR:
        return None
    held = resident.get(vectors)
    return None if held is None else held[0]


def rows_on_device(cupy: ModuleType, vectors: np.ndarray) -> DeviceArray:
    """Return a copy of ``vectors`` (n, d) float32, whose rows are padded with zeros to multiples of 16 bytes."""
    n, d = vectors.shape
    width = padded(d, FOUR)
    there = cupy.empty((n, width), np.float32)
    for start in range(0, n, UPLOAD_ROWS):
        part = np.ascontiguousarray(vectors[start : start + UPLOAD_ROWS])
        if width > d:
            part = np.pad(part, ((0, 0), (0, width - d)))
        there[start : start + len(part)].set(part)
        copied.there += part.nbytes
    cupy.cuda.get_current_stream().synchronize()
    return there


class DeviceSearch:
    """Finds neighbors among all rows (n, d), by inner products in single precision."""

    def __init__(self, rows: DeviceRows) -> None:
        self._rows = rows
        n = len(rows.vectors)
        assert rows.there is not None, "without codes, vectors lie on the device"
        self._table = table_of(rows.cupy, rows.there, np.arange(n), np.array([0, n]))
        rows.cupy.cuda.get_current_stream().synchronize()  # other streams do not wait for this one

    def search(self, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (m, k) int32 and sims (m, k) float32 of ``faces`` (m,); k is at most n."""
        cupy, there = self._rows.cupy, self._table.rows
        wide = min(len(self._rows.vectors), k + SPARE)
        ids, sims = np.empty((len(faces), k), np.int32), np.empty((len(faces), k), np.float32)

        def task(part: slice) -> None:
            asked = faces[part]
            own = cupy.empty((len(asked), there.shape[1]), np.float32)
            copy_rows(cupy, there, upload(cupy, asked, np.int32), own, len(asked))
            best = DeviceBest(cupy, self._rows.products, own, wide, Scratch(cupy, self._rows.room))
            best.visit_all(self._table, int(asked[0]))
            ids[part], sims[part] = self._rows.ordered(best, asked, k)

        self._rows.streams.run(task, parts_of(len(faces), TILED_PART))
        return ids, sims


class DeviceCellSearch:
    """Finds neighbors among rows (n, d) like ``CellSearch``, whose arguments these are."""

    def __init__(self, rows: DeviceRows, cells: Cells, *, cut: int | None = None) -> None:
        self._rows, self.cells, self.cut = rows, cells, cut
        self._cupy = cupy = rows.cupy
        self._n = len(rows.vectors)
        self.scale = code_scale(rows.vectors)
        self._centroids = codes_of_rows(cells.centroids, self.scale)
        count = cells.count
        there = halves_of_codes(cupy, self._centroids)
        self._centroid_table = table_of(cupy, there, np.arange(count), np.array([0, count]))
        order, first, self._place = cells.layout()
        self._sizes = np.diff(first)
        self._table = table_of(cupy, codes_on_device(rows, self._place, self.scale), order, first)
        cupy.cuda.get_current_stream().synchronize()  # other streams do not wait for this one

    def search(self, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids (m, k) int32 and sims (m, k) float32 of ``faces`` (m,); k is at most n."""
        if self.cut is None:
            self.cut = self.reach_for(k).cut
        cut, wide = self.cut, min(self._n, k + SPARE)
        ids, sims = np.empty((len(faces), k), np.int32), np.empty((len(faces), k), np.float32)

        def task(part: slice) -> None:
            asked = faces[part]
            best = self._best(asked, wide)
            near = self._near(asked, best)
            count = self._visit_nearest(best, near)
            self._visit_others(best, near, count, cut)
            ids[part], sims[part] = self._rows.ordered(best, asked, k)

        self._rows.streams.run(task, parts_of(len(faces), PART))
        return ids, sims

    def reach_for(self, k: int, recall: float = RECALL, sample: int = SAMPLE) -> Reach:
        """Return what ``CellSearch.reach_for`` does."""
        cell_search.check_recall(recall)
        k = min(k, self._n)
        wide = min(self._n, k + SPARE)
        faces = cell_search.sampled_faces(self._n, sample)
        best = self._best(faces, wide)
        best.visit_all(self._table)
        ids = self._rows.ordered(best, faces, k)[0]
        best = self._best(faces, wide)
        near = self._near(faces, best)
        count = self._visit_nearest(best, near)
        cuts = np.empty((len(faces), k), dtype=np.int64)
        codes = codes_of_rows(np.ascontiguousarray(self._rows.vectors[faces]), self.scale)
        cell_search.cuts_needed(codes, self._centroids, self.cells.cell[ids], near, count, best.kept(), cuts)
        return cell_search.reach_of(cuts, recall)

    def _best(self, faces: np.ndarray, wide: int) -> DeviceBest:
        """Return what keeps the best of ``faces``, whose codes it takes along."""
        codes = self._cupy.empty((len(faces), self._table.stride), np.float16)
        places = upload(self._cupy, self._place[faces], np.int32)
        copy_rows(self._cupy, self._table.rows, places, codes, len(faces))
        scratch = Scratch(self._cupy, self._rows.room)
        return DeviceBest(self._cupy, self._rows.products, codes, wide, scratch)

    def _near(self, faces: np.ndarray, best: DeviceBest) -> np.ndarray:
        """Return the nearest cells (m, p) int32 of faces, the most similar first."""
        p = cell_search.nearest_looked_at(self._n, self.cells.count, best.wide)
        kept = self.cells.nearest
        if kept is not None and kept.shape[1] >= p:
            return np.ascontiguousarray(kept[faces, :p])
        cells = DeviceBest(self._cupy, self._rows.products, best.rows, p, best.scratch)
        cells.visit_all(self._centroid_table)
        return download(cells.found())

    def _visit_nearest(self, best: DeviceBest, near: np.ndarray) -> np.ndarray:
        """Compare rows with the first few of ``near`` (m, p), which hold what is asked for; return how many (m,)."""
        count = cell_search.first_cells(near, self._sizes, best.wide, FIRST)
        best.visit(self._table, *cell_search.first_pairs(near, count))
        return count

    def _visit_others(self, best: DeviceBest, near: np.ndarray, count: np.ndarray, cut: int) -> None:
        """Compare rows with all other cells that score high enough; ``count`` (m,) of ``near`` are done."""
        limits = cell_search.limits_of(best.kept(), cut)
        step = max(1, best.scratch.room // (FOUR * padded(self.cells.count, FOUR)))
        for start in range(0, best.m, step):
            some = slice(start, min(start + step, best.m))
            lists, rows = self._cells_above(best, some, near[some], count[some], limits[some])
            best.visit(self._table, lists, rows + start)

    def _cells_above(
        self, best: DeviceBest, some: slice, near: np.ndarray, count: np.ndarray, limits: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the cells that score high enough and were not visited, (pairs,) int32, and their rows, ascending.

        near, count, limits: of the rows ``some`` of ``best``, from which theirs are counted.
        """
        cupy, cells, m = self._cupy, self.cells.count, len(near)
        stride = padded(cells, FOUR)
        scores = best.scratch.place(FOUR * m * stride)
        multiply_rows(self._rows.products, best.rows[some], self._centroid_table, scores, stride)
        totals = cupy.empty((m,), np.int32)
        known = (
            *(
                np.uint64(scores),
                np.int32(stride),
                np.int32(cells),
                upload(cupy, near, np.int32),
                np.int32(near.shape[1]),
            ),
            *(upload(cupy, count, np.int32), upload(cupy, limits, np.int64)),
        )
        blocks = -(-m // (THREADS // WARP))
        nothing = np.uint64(0)
        launch(cupy, "cells_above", blocks, (*known, nothing, nothing, totals, np.int32(m)))
        ends = np.cumsum(download(totals), dtype=np.int64)
        lists = cupy.empty((int(ends[-1]),), np.int32)
        sizes = np.diff(ends, prepend=0)
        if len(lists_of_rows := np.repeat(np.arange(m), sizes)):
            starts = upload(cupy, ends - sizes, np.int64)
            launch(cupy, "cells_above", blocks, (*known, starts, lists, totals, np.int32(m)))
            return download(lists), lists_of_rows
        return np.empty(0, np.int32), lists_of_rows


class DeviceRanks:
    """Ranks centroids on the device, see ``partition.Ranks``; room: bytes for scores."""

    def __init__(self, cupy: ModuleType, products: DeviceProducts, streams: DeviceStreams, room: int) -> None:
        self._cupy, self._products, self._streams, self._room = cupy, products, streams, room

    def ranked(self, codes: np.ndarray, centroids: np.ndarray, nearest: int) -> np.ndarray:
        """Return which centroids (c, d) int8 score highest for each of ``codes`` (m, d) int8: (m, nearest) int32."""
        cupy, count = self._cupy, len(centroids)
        table = table_of(cupy, halves_of_codes(cupy, centroids), np.arange(count), np.array([0, count]))
        cupy.cuda.get_current_stream().synchronize()
        found = np.empty((len(codes), nearest), dtype=np.int32)

        def task(part: slice) -> None:
            rows = halves_of_codes(cupy, codes[part])
            best = DeviceBest(cupy, self._products, rows, nearest, Scratch(cupy, self._room))
            best.visit_all(table)
            found[part] = download(best.found())

        self._streams.run(task, parts_of(len(codes), TILED_PART))
        return found


def parts_of(count: int, size: int) -> list[slice]:
    """Cut ``count`` rows into parts of at most ``size``, one behind the other."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def multiply_rows(
    products: DeviceProducts, rows: DeviceArray, table: Table, out: int, out_stride: int
) -> None:
    """Write the products of rows (m, stride) with all of a table to the address ``out``, (m, out_stride) float32."""
    products.multiply(
        *(address(rows), int(rows.shape[0]), address(table.rows), int(table.rows.shape[0])),
        *(table.stride, table.itemsize, out, out_stride),
    )


def halves_of_codes(cupy: ModuleType, codes: np.ndarray) -> DeviceArray:
    """Return codes (m, d) int8 as rows of float16 on the device, padded with zeros to multiples of 16 bytes."""
    m, d = codes.shape
    stride = padded(d, EIGHT)
    halves = cupy.empty((m, stride), np.float16)
    arguments = (upload(cupy, codes, np.int8), halves, np.int64(m), np.int32(d), np.int32(stride))
    launch(cupy, "halves_of_codes", min(m, BLOCKS), arguments)
    return halves


def codes_on_device(rows: DeviceRows, places: np.ndarray, scale: CodeScale) -> DeviceArray:
    """Return the codes of all rows as float16 on the device, row r at places[r]; see ``codes_of_rows``."""
    cupy, (n, d) = rows.cupy, rows.vectors.shape
    stride = padded(d, EIGHT)
    codes, there = cupy.empty((n, stride), np.float16), upload(cupy, places, np.int32)
    for start in range(0, n, UPLOAD_ROWS):
        stop = min(start + UPLOAD_ROWS, n)
        if rows.there is None:
            source = rows_on_device(cupy, rows.vectors[start:stop])
        else:
            source = rows.there[start:stop]
        width = int(source.shape[1])
        arguments = (
            *(source, there[start:stop], codes, np.int64(stop - start), np.int32(width), np.int32(stride)),
            *(np.float32(scale.factor), np.float32(scale.limit)),
        )
        launch(cupy, "codes_of_rows", min(stop - start, BLOCKS), arguments)
    return codes
