"""The best of many scores on a GPU: ``BestScores`` with products, keys and selection in device memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from types import ModuleType
from typing import TypeVar

import numpy as np

from fcdeploy.graph.best_scores import pairs_by_list
from fcdeploy.graph.cuda import DeviceArray, Stream, download, kernel, upload
from fcdeploy.graph.kernels import njit
from fcdeploy.graph.products_cuda import FOUR, DeviceProducts, padded

FILE = "search.cu"
THREADS = 128  # a block; a multiple of 32
KEY = 8  # bytes
MOST_KEYS = 4096  # in a block's 48 KB of shared memory, which every GPU has
ROUND = 1024  # scores between two looks at how full the buffer is, at least
WIDEST = MOST_KEYS - ROUND
BLOCKS = 1 << 16  # of kernels that go over all they are given, however many there are
STREAMS = 2  # that work on parts of their own: one computes while the other's next steps are planned
TILE_ROWS = 2048  # that are compared with everything in one product
Part = TypeVar("Part")


@dataclass(frozen=True)
class Table:
    """Rows on the device, cut into lists: list l holds rows first[l] up to first[l + 1], whose ids are ``ids``.

    rows: (n, stride) float16 codes, or float32; first: (lists + 1,) int64, on the host.
    """

    rows: DeviceArray
    ids: DeviceArray
    first: np.ndarray
    first_there: DeviceArray

    @property
    def stride(self) -> int:
        return int(self.rows.shape[1])

    @property
    def itemsize(self) -> int:
        return int(self.rows.dtype.itemsize)

    @property
    def row_bytes(self) -> int:
        return self.stride * self.itemsize


def table_of(cupy: ModuleType, rows: DeviceArray, ids: np.ndarray, first: np.ndarray) -> Table:
    """Return ``rows`` on the device as a table of lists, whose ids (n,) and bounds (lists + 1,) are on the host."""
    return Table(rows, upload(cupy, ids, np.int32), first, upload(cupy, first, np.int32))


class DeviceBest:
    """The ``wide`` best members of lists for each of ``rows`` (m, stride), which lie on the device.

    room: bytes for scores and rows beside them; where a single row needs more, it gets more.
    """

    def __init__(
        self, cupy: ModuleType, products: DeviceProducts, rows: DeviceArray, wide: int, room: int
    ) -> None:
        assert 0 < wide <= WIDEST
        self._cupy, self._products = cupy, products
        self.rows, self.wide, self._room = rows, wide, room
        self.m = int(rows.shape[0])
        self.keys = cupy.empty((self.m, wide), np.int64)
        self.held = cupy.empty((self.m,), np.int32)
        self.floors = cupy.empty((self.m,), np.int64)
        self._scores: DeviceArray | None = None
        self._gathered: DeviceArray | None = None
        launch(cupy, "clear_keys", -(-self.m // THREADS), (self.held, self.floors, np.int32(self.m)))

    def visit(self, table: Table, lists: np.ndarray, rows: np.ndarray) -> None:
        """Compare rows with lists, none with a list that it was compared with before.

        lists: (pairs,) int32 and rows: (pairs,) int64, ascending.
        """
        sizes = np.diff(table.first)
        some = sizes[lists] > 0
        lists, rows = lists[some], rows[some]
        costs = padded_sizes(sizes)[lists] * FOUR + table.row_bytes
        for start, stop in _cuts(rows, costs, self._room):
            self._visit_some(table, lists[start:stop], rows[start:stop])

    def visit_all(self, table: Table, first: int = 0) -> None:
        """Compare all rows with the whole table; first: the row of it around which the best are likely."""
        n, stride = int(table.rows.shape[0]), table.stride
        if not self.m:
            return
        tall = min(self.m, TILE_ROWS)
        across = max(FOUR, min(padded(n, FOUR), self._room // (FOUR * tall) // FOUR * FOUR))
        tiles = -(-n // across)
        bounds = upload(self._cupy, np.minimum(np.arange(tiles + 1) * across, n), np.int32)
        scores = self._scores_for(tall * across)
        segments = upload(self._cupy, np.arange(tall + 1), np.int32)
        at = upload(self._cupy, np.arange(tall) * across, np.int64)
        which = [upload(self._cupy, np.full(tall, tile), np.int32) for tile in range(tiles)]
        for start in range(0, self.m, tall):
            rows = min(tall, self.m - start)
            for turn in range(tiles):
                tile = (first // across + turn) % tiles
                members = min(across, n - tile * across)
                self._products.multiply(
                    *(address(self.rows, start * stride), rows),
                    *(address(table.rows, tile * across * stride), members, stride, table.itemsize),
                    *(address(scores), across),
                )
                self._keep(table, start, rows, scores, at, which[tile], segments, bounds)

    def kept(self) -> np.ndarray:
        """Return the floors (m,) int64, of rows that hold fewer than ``wide`` keys NO_KEY."""
        return download(self.floors)

    def found(self) -> DeviceArray:
        """Return the ids (m, wide) int32 of the best, the best first, on the device."""
        ids = self._cupy.empty((self.m, self.wide), np.int32)
        count = self.m * self.wide
        launch(
            self._cupy, "ids_of_keys", min(BLOCKS, -(-count // THREADS)), (self.keys, ids, np.int64(count))
        )
        return ids

    def _visit_some(self, table: Table, lists: np.ndarray, rows: np.ndarray) -> None:
        """The same for so few pairs that there is room for their scores and rows."""
        cupy, first_row, pairs = self._cupy, int(rows[0]), len(rows)
        count = int(rows[-1]) + 1 - first_row
        begin, order = pairs_by_list(lists, np.arange(pairs), len(table.first) - 1)
        at, ends = _places_of_scores(begin, order, padded_sizes(np.diff(table.first)))
        segments = np.searchsorted(rows, np.arange(first_row, first_row + count + 1))
        gathered = self._gathered_for(table, pairs)
        copy_rows(cupy, self.rows, upload(cupy, rows[order], np.int32), gathered, pairs)
        scores = self._scores_for(int(ends[-1]))
        starts, bounds, offsets = begin.tolist(), table.first.tolist(), ends.tolist()
        for one in np.flatnonzero(np.diff(begin)).tolist():
            members = bounds[one + 1] - bounds[one]
            self._products.multiply(
                *(address(gathered, starts[one] * table.stride), starts[one + 1] - starts[one]),
                *(address(table.rows, bounds[one] * table.stride), members, table.stride, table.itemsize),
                *(address(scores, offsets[one]), padded(members, FOUR)),
            )
        self._keep(
            *(table, first_row, count, scores, upload(cupy, at, np.int64), upload(cupy, lists, np.int32)),
            *(upload(cupy, segments, np.int32), table.first_there),
        )

    def _keep(
        self,
        table: Table,
        start: int,
        rows: int,
        scores: DeviceArray,
        at: DeviceArray,
        lists: DeviceArray,
        segments: DeviceArray,
        first: DeviceArray,
    ) -> None:
        capacity = keys_for(self.wide + ROUND)
        arguments = (
            *(scores, at, lists, segments, first, table.ids, np.int32(self.wide), np.int32(capacity)),
            *(self.keys[start : start + rows], self.held[start : start + rows]),
            self.floors[start : start + rows],
        )
        name = "keep_integers" if table.itemsize == 2 else "keep_floats"
        launch(self._cupy, name, rows, arguments, shared=capacity * KEY)

    def _scores_for(self, count: int) -> DeviceArray:
        if self._scores is None or self._scores.shape[0] < count:
            self._scores = None  # let go before more is asked for
            made: DeviceArray = self._cupy.empty((count,), np.float32)
            self._scores = made
        return self._scores

    def _gathered_for(self, table: Table, count: int) -> DeviceArray:
        if self._gathered is None or self._gathered.shape[0] < count:
            self._gathered = None
            made: DeviceArray = self._cupy.empty((count, table.stride), table.rows.dtype)
            self._gathered = made
        return self._gathered


def keys_for(count: int) -> int:
    """Return the size of a block's buffer for ``count`` keys: the next power of two."""
    return 1 << (count - 1).bit_length()


def padded_sizes(sizes: np.ndarray) -> np.ndarray:
    """Return how many scores rows of products with lists of these ``sizes`` take."""
    return -(-sizes // FOUR) * FOUR


def address(array: DeviceArray, numbers: int = 0) -> int:
    """Return the address of an array on the device, ``numbers`` entries behind its first."""
    return int(array.data.ptr) + numbers * int(array.dtype.itemsize)


def launch(
    cupy: ModuleType,
    name: str,
    blocks: int,
    arguments: tuple[object, ...],
    *,
    shared: int = 0,
    threads: int = 0,
) -> None:
    """Launch a kernel of ``search.cu`` on the current stream; nothing for no blocks."""
    if blocks:
        kernel(cupy, name, FILE)((blocks,), (threads or THREADS,), arguments, shared_mem=shared)


def copy_rows(
    cupy: ModuleType, source: DeviceArray, which: DeviceArray, out: DeviceArray, count: int
) -> None:
    """Copy rows ``which`` (count,) int32 of ``source`` to ``out``; rows take multiples of 16 bytes."""
    width = int(source.shape[1]) * int(source.dtype.itemsize) // 16
    blocks = min(BLOCKS, -(-count * width // THREADS))
    launch(cupy, "copy_rows", blocks, (source, which, out, np.int64(count), np.int32(width)))


def on_streams(cupy: ModuleType, task: Callable[[Part], None], parts: Iterable[Part]) -> None:
    """Call ``task`` for each of some parts, on streams of their own; all is done when it returns."""
    free: SimpleQueue[Stream] = SimpleQueue()
    for _ in range(STREAMS):
        free.put(cupy.cuda.Stream(non_blocking=True))

    def run(part: Part) -> None:
        stream = free.get()
        try:
            with stream:
                task(part)
                stream.synchronize()
        finally:
            free.put(stream)

    with ThreadPoolExecutor(STREAMS) as pool:
        for _ in pool.map(run, parts):
            pass


def _cuts(rows: np.ndarray, costs: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
    """Cut pairs into runs of whole rows that cost at most ``room`` bytes together, or are of one row."""
    if not len(rows):
        return
    ends = np.flatnonzero(np.diff(rows, append=rows[-1] + 1)) + 1  # of the pairs of each row that has any
    total = np.cumsum(costs)[ends - 1]
    start, spent, at = 0, 0, 0
    while at < len(ends):
        at = max(at + 1, int(np.searchsorted(total, spent + room, "right")))
        yield start, int(ends[at - 1])
        start, spent = int(ends[at - 1]), int(total[at - 1])


@njit(cache=True, nogil=True)
def _places_of_scores(
    begin: np.ndarray, order: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return where the scores of each pair begin, (pairs,) int64, and those of each list, (lists + 1,) int64.

    Pairs order[begin[l]:begin[l + 1]] are those of list l, of ``sizes`` scores each, one behind the other.
    """
    at = np.empty(len(order), dtype=np.int64)
    ends = np.zeros(len(begin), dtype=np.int64)
    for one in range(len(begin) - 1):
        for p in range(begin[one], begin[one + 1]):
            at[order[p]] = ends[one] + (p - begin[one]) * sizes[one]
        ends[one + 1] = ends[one] + (begin[one + 1] - begin[one]) * sizes[one]
    return at, ends
