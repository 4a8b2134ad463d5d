"""The best of many scores on a GPU: ``BestScores`` with products, keys and selection in device memory."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
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


class Scratch:
    """Device memory for scores, and rows beside them, that the steps of a part use one after the other.

    room: bytes that there are at most; a step that needs more gets more.
    """

    def __init__(self, cupy: ModuleType, room: int) -> None:
        self._cupy, self.room = cupy, room
        self._held: DeviceArray | None = None

    def place(self, size: int) -> int:
        """Return the address of ``size`` bytes, where those of earlier steps may lie."""
        if self._held is None or self._held.nbytes < size:
            self._held = None  # let go before more is asked for
            # Few sizes, so that what is let go serves again.
            rounded = max(size, min(self.room, 1 << (size - 1).bit_length()))
            made: DeviceArray = self._cupy.empty((-(-rounded // FOUR),), np.float32)
            self._held = made
        return address(self._held)


class DeviceBest:
    """The ``wide`` best members of lists for each of ``rows`` (m, stride), which lie on the device."""

    def __init__(
        self, cupy: ModuleType, products: DeviceProducts, rows: DeviceArray, wide: int, scratch: Scratch
    ) -> None:
        assert 0 < wide <= WIDEST
        self._cupy, self._products = cupy, products
        self.rows, self.wide, self.scratch = rows, wide, scratch
        self.m = int(rows.shape[0])
        self.keys = cupy.empty((self.m, wide), np.int64)
        self.held = cupy.empty((self.m,), np.int32)
        self.floors = cupy.empty((self.m,), np.int64)
        launch(cupy, "clear_keys", -(-self.m // THREADS), (self.held, self.floors, np.int32(self.m)))

    def visit(self, table: Table, lists: np.ndarray, rows: np.ndarray) -> None:
        """Compare rows with lists, none with a list that it was compared with before.

        lists: (pairs,) int32 and rows: (pairs,) int64, ascending.
        """
        sizes = np.diff(table.first)
        some = sizes[lists] > 0
        lists, rows = lists[some], rows[some]
        costs = padded_sizes(sizes)[lists] * FOUR + table.row_bytes
        for start, stop in _cuts(rows, costs, self.scratch.room):
            self._visit_some(table, lists[start:stop], rows[start:stop])

    def visit_all(self, table: Table, first: int = 0) -> None:
        """Compare all rows with the whole table; first: the row of it around which the best are likely."""
        n, stride = int(table.rows.shape[0]), table.stride
        if not self.m:
            return
        tall = min(self.m, TILE_ROWS)
        across = max(FOUR, min(padded(n, FOUR), self.scratch.room // (FOUR * tall) // FOUR * FOUR))
        tiles = -(-n // across)
        bounds = upload(self._cupy, np.minimum(np.arange(tiles + 1) * across, n), np.int32)
        scores = self.scratch.place(FOUR * tall * across)
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
                    *(scores, across),
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
        gathered = self.scratch.place(pairs * table.row_bytes + FOUR * int(ends[-1]))
        scores = gathered + pairs * table.row_bytes
        copy_rows(cupy, self.rows, upload(cupy, rows[order], np.int32), np.uint64(gathered), pairs)
        starts, bounds, offsets = begin.tolist(), table.first.tolist(), ends.tolist()
        for one in np.flatnonzero(np.diff(begin)).tolist():
            members = bounds[one + 1] - bounds[one]
            self._products.multiply(
                *(gathered + starts[one] * table.row_bytes, starts[one + 1] - starts[one]),
                *(address(table.rows, bounds[one] * table.stride), members, table.stride, table.itemsize),
                *(scores + FOUR * offsets[one], padded(members, FOUR)),
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
        scores: int,
        at: DeviceArray,
        lists: DeviceArray,
        segments: DeviceArray,
        first: DeviceArray,
    ) -> None:
        capacity = keys_for(self.wide + ROUND)
        arguments = (
            *(np.uint64(scores), at, lists, segments, first, table.ids),
            *(np.int32(self.wide), np.int32(capacity)),
            *(self.keys[start : start + rows], self.held[start : start + rows]),
            self.floors[start : start + rows],
        )
        name = "keep_integers" if table.itemsize == 2 else "keep_floats"
        launch(self._cupy, name, rows, arguments, shared=capacity * KEY)


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
    cupy: ModuleType, source: DeviceArray, which: DeviceArray, out: DeviceArray | np.uint64, count: int
) -> None:
    """Copy rows ``which`` (count,) int32 of ``source`` to ``out``, or this address; rows take multiples of 16 bytes."""
    width = int(source.shape[1]) * int(source.dtype.itemsize) // 16
    blocks = min(BLOCKS, -(-count * width // THREADS))
    launch(cupy, "copy_rows", blocks, (source, which, out, np.int64(count), np.int32(width)))


class DeviceStreams:
    """Streams, and a thread for each that puts work on it; both stay for all of a search.

    CuPy keeps what a stream let go for this stream alone, so that new streams would take new memory every time, and
    cuBLAS has a handle per thread.
    """

    def __init__(self, cupy: ModuleType) -> None:
        self._free: SimpleQueue[Stream] = SimpleQueue()
        for _ in range(STREAMS):
            self._free.put(cupy.cuda.Stream(non_blocking=True))
        self._threads = ThreadPoolExecutor(STREAMS)

    def run(self, task: Callable[[Part], None], parts: Iterable[Part]) -> None:
        """Call ``task`` for each of some parts, each on one of the streams; all is done when it returns."""

        def on_stream(part: Part) -> None:
            stream = self._free.get()
            try:
                with stream:
                    task(part)
                    stream.synchronize()
            finally:
                self._free.put(stream)

        calls = [self._threads.submit(on_stream, part) for part in parts]
        try:
            for call in calls:
                call.result()
        finally:
            for call in calls:
                call.cancel()
            wait(calls)

    def close(self) -> None:
        """End the threads, which have nothing to do any more."""
        self._threads.shutdown()

    def __enter__(self) -> "DeviceStreams":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


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
