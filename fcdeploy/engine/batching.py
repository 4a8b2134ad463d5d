"""Neighborhoods of many sizes to an engine that wants rectangles: grouped by size, padded to the group's largest."""

import queue
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import DTypeLike

from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.threads import settings_of_this_thread

T = TypeVar("T")


def groups_by_size(sizes: np.ndarray, rows: int, most: int) -> Iterator[np.ndarray]:
    """Cut neighborhoods into groups of nearly equal size.

    sizes: (m,) integers, at least 1. Yields arrays of positions in ``sizes``, largest first; a group has at most
    ``most`` members and fills at most ``rows`` rows when each is padded to its largest (or is a single member).
    Every position comes once.
    """
    order = np.argsort(-sizes, kind="stable")
    start = 0
    while start < len(order):
        fits = max(1, min(most, rows // int(sizes[order[start]])))
        yield order[start : start + fits]
        start += fits


@njit(cache=True, nogil=True, parallel=True)
def gather_rows(table: np.ndarray, nodes: np.ndarray, out: np.ndarray) -> None:
    """Copy table[nodes] into out, zero where a node is -1: table (n, h), nodes (b, w), out (b, w, h) float32."""
    width = nodes.shape[1]
    for at in prange(nodes.size):
        face = nodes[at // width, at % width]
        if face < 0:
            out[at // width, at % width] = 0
        else:
            out[at // width, at % width] = table[face]


@dataclass(frozen=True)
class Rows:
    """Rows of a table, as an engine's input: gathered where the engine computes.

    table: (n, h) float32, which does not change while engines use it; nodes: (b, w) int32, -1 where the row is zero.
    """

    table: np.ndarray
    nodes: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.nodes.shape, self.table.shape[1])

    @property
    def ndim(self) -> int:
        return self.nodes.ndim + 1

    @property
    def dtype(self) -> np.dtype:
        return self.table.dtype

    def __getitem__(self, part: slice) -> "Rows":
        return Rows(self.table, self.nodes[part])

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Be the rows themselves wherever NumPy is asked for an array."""
        return self.gather() if dtype is None else self.gather().astype(dtype)

    def gather(self, out: np.ndarray | None = None) -> np.ndarray:
        """Return the rows (b, w, h) float32, in ``out`` if it is given."""
        if out is None:
            out = np.empty(self.shape, dtype=np.float32)
        gather_rows(self.table, np.ascontiguousarray(self.nodes), out)
        return out


def gathered(feeds: Mapping[str, np.ndarray | Rows]) -> dict[str, np.ndarray]:
    """Return an engine's inputs with rows of tables gathered."""
    return {name: array.gather() if isinstance(array, Rows) else array for name, array in feeds.items()}


def prefetch(items: Iterable[T], depth: int = 2, *, threads: int = 0) -> Iterator[T]:
    """Iterate in a thread of its own, up to ``depth`` items ahead of whoever takes them.

    The order stays; an exception of ``items`` is raised here; leaving early stops the thread. Libraries use as many
    threads there as here. threads: that are to be used in all; with 1, this one does everything in turn.
    """
    if threads == 1:
        yield from items
        return
    use_as_many_threads = settings_of_this_thread()
    ready: queue.Queue[tuple[bool, T | BaseException | None]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(entry: tuple[bool, T | BaseException | None]) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            use_as_many_threads()
            for item in items:
                put((True, item))
                if stopped.is_set():
                    return
            put((False, None))
        except BaseException as error:  # carried over to the thread that waits
            put((False, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            more, item = ready.get()
            if more:
                yield item  # type: ignore[misc]
            elif item is not None:
                raise item  # type: ignore[misc]
            else:
                return
    finally:
        stopped.set()
        thread.join()
