"""The blocks of a stage, computed in this process."""

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployError
from fcdeploy.run.memory import resident_bytes
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Partial, Store, missing_blocks

OpenEngine = Callable[[str, int], contextlib.AbstractContextManager[Engine]]  # pass, share

RELEASE_AT = 0.8  # of the memory budget: the next block, and what it maps, has to fit, too


class Blocks(Protocol):
    """Who computes the blocks of a stage that an artifact in the making lacks."""

    def compute(
        self, stage: Stage, partial: Partial, open_engine: OpenEngine, store: Store, progress: Progress
    ) -> None: ...

    def making(self, name: str, key: str) -> contextlib.AbstractContextManager[None]:
        """Make an artifact in one go inside the block."""


class LocalBlocks:
    """This process, one block after the other, in the order of the visit.

    A block is written while the next one is computed. One for which there is no memory is computed in halves, and so
    are those after it. Raises FcdeployError where there is none for the smallest.
    """

    def __init__(self, options: Options) -> None:
        self._budget, self._alone = options.budget, options.cores == 1

    def making(self, name: str, key: str) -> contextlib.AbstractContextManager[None]:
        """Do nothing else: nobody needs to know."""
        return contextlib.nullcontext()

    def compute(
        self, stage: Stage, partial: Partial, open_engine: OpenEngine, store: Store, progress: Progress
    ) -> None:
        missing = list(missing_blocks(partial.finished, stage.count))
        left = sum(stop - start for start, stop in missing)

        def write(rows: np.ndarray, arrays: dict[str, np.ndarray], start: int, stop: int) -> None:
            write_block(stage, partial, rows, arrays)
            partial.commit(start, stop)

        with (
            opened(stage, open_engine) as resources,
            progress.bar(stage.text, stage.count, stage.count - left, stage.unit) as bar,
            Behind(write, alone=self._alone) as written,
        ):
            size = stage.size
            for first, end in missing:
                start = first
                while start < end:
                    stop = min(start + size, end)
                    rows = rows_of_block(stage, start, stop)
                    try:
                        arrays = stage.block(rows, *resources)
                    except MemoryError as error:
                        written.wait()
                        store.release_pages()
                        size = smaller(stage, stop - start, error)
                        continue
                    written(rows, arrays, start, stop)
                    bar.advance(stop - start)
                    start = stop
                    if resident_bytes() > RELEASE_AT * self._budget:
                        store.release_pages()


class Behind:
    """Calls a function in a thread of its own, each time when the last call is done; a ``with`` waits for the last.

    What the function raises is raised by the next call, or by ``wait``. alone: call it here and now instead.
    """

    def __init__(self, function: Callable[..., None], *, alone: bool = False) -> None:
        self._function = function
        self._pool = None if alone else ThreadPoolExecutor(1, thread_name_prefix="fcdeploy-write")
        self._last: Future[None] | None = None

    def __call__(self, *arguments: object) -> None:
        self.wait()
        if self._pool is None:
            self._function(*arguments)
        else:
            self._last = self._pool.submit(self._function, *arguments)

    def wait(self) -> None:
        """Return when all calls are done."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    def __enter__(self) -> "Behind":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown()
        if kind is None:
            self.wait()


def blocks_of(n: int, size: int) -> Iterator[slice]:
    """Yield n rows in blocks of at most ``size``, in order."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@contextlib.contextmanager
def opened(stage: Stage, open_engine: OpenEngine) -> Iterator[list[object]]:
    """Open what a stage's blocks are handed: its own resource, if there is one, and the engines of its passes."""
    share = len(stage.passes) if stage.share is None else stage.share
    with contextlib.ExitStack() as stack:
        own = [] if stage.opened is None else [stack.enter_context(stage.opened())]
        yield [*own, *(stack.enter_context(open_engine(name, share)) for name in stage.passes)]


def rows_of_block(stage: Stage, start: int, stop: int) -> np.ndarray:
    """Return the rows (m,) int32 of the block [start, stop) of a visit."""
    if stage.visit is None:
        return np.arange(start, stop, dtype=np.int32)
    return stage.visit.order[start:stop]


def write_block(stage: Stage, partial: Partial, rows: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """Write the arrays of a block to their places."""
    where: slice | np.ndarray = rows
    if isinstance(stage.rows, np.ndarray):  # no visit then
        where = slice(int(stage.rows[rows[0]]), int(stage.rows[rows[-1] + 1]))
    elif stage.visit is None:
        where = slice(int(rows[0]), int(rows[-1]) + 1)
    for part, made in arrays.items():
        if None not in stage.shapes[part][0]:
            partial.arrays[part][where] = made
            continue
        before = partial.append(part, made)
        partial.arrays["starts"][where] = before + np.cumsum(arrays["counts"]) - arrays["counts"]


def follows_rows(stage: Stage) -> bool:
    """Tell whether a block of the visit is one run of rows in all arrays of a stage."""
    grows = any(None in shape for shape, _ in stage.shapes.values())
    return stage.visit is None and isinstance(stage.rows, int) and not grows


def smaller(stage: Stage, rows: int, error: MemoryError) -> int:
    """Return half a block's rows, a multiple of ``whole``; raises FcdeployError where it cannot be less."""
    half = -(-rows // 2 // stage.whole) * stage.whole
    if half >= rows:
        some = "one face" if stage.whole == 1 else f"{stage.whole:,} faces, which belong together,"
        raise FcdeployError(
            f"{stage.text}: there is not enough memory for {some} at a time ({str(error) or 'out of memory'}); close "
            "other "
            "programs, or use a machine with more."
        ) from error
    return half
