"""Where the artifacts of a run are kept, and how one comes about block by block; here, in memory."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

Shape = tuple[int | None, ...]  # None, first: as many rows as its blocks append
Shapes = Mapping[str, tuple[Shape, npt.DTypeLike]]  # array name -> (shape, dtype)
Arrays = dict[str, np.ndarray]
Span = tuple[int, int]


class Partial(Protocol):
    """An artifact in the making: write the rows of a block into ``arrays``, then commit the block.

    key: of the artifact; finished: the blocks [start, stop) that were committed, by this run or an earlier one, in any
    order.
    """

    key: str

    arrays: Arrays
    finished: list[Span]

    def append(self, part: str, rows: np.ndarray) -> int: ...

    def commit(self, start: int, stop: int) -> None: ...

    def close(self) -> None: ...

    def finish(self) -> Arrays: ...


class Store(Protocol):
    """Keeps artifacts by name."""

    def load(self, name: str, key: str) -> Arrays | None: ...

    def begin(
        self,
        name: str,
        key: str,
        shapes: Shapes,
        visit: str = "",
        *,
        durable: bool = False,
        scratch: bool = False,
    ) -> Partial: ...

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]: ...

    def drop(self, name: str) -> None: ...

    def drop_scratch(self) -> None: ...

    def scratch_file(self, name: str) -> Path | None: ...

    def release_pages(self) -> None: ...

    def describe(self, computed: Mapping[str, object]) -> None: ...


class MemoryStore:
    """Artifacts as ordinary arrays, gone with the run; one asked for with another key is computed again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[str, Arrays]] = {}
        self._scratch: set[str] = set()

    def load(self, name: str, key: str) -> Arrays | None:
        kept, arrays = self._kept.get(name, ("", None))
        return arrays if kept == key else None

    def begin(
        self,
        name: str,
        key: str,
        shapes: Shapes,
        visit: str = "",
        *,
        durable: bool = False,
        scratch: bool = False,
    ) -> "MemoryPartial":
        self.drop(name)
        if scratch:
            self._scratch.add(name)
        return MemoryPartial(self._kept, name, key, shapes)

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]:
        """Nothing: what is in memory is of this run."""
        return []

    def drop(self, name: str) -> None:
        self._kept.pop(name, None)

    def drop_scratch(self) -> None:
        """Forget all scratch artifacts."""
        for name in self._scratch:
            self.drop(name)
        self._scratch.clear()

    def scratch_file(self, name: str) -> Path | None:
        return None

    def release_pages(self) -> None:
        """Do nothing: there is nowhere else to keep what is in memory."""

    def describe(self, computed: Mapping[str, object]) -> None:
        """Do nothing: artifacts in memory are of this run."""


class MemoryPartial:
    """See ``Partial``; nothing to commit to."""

    def __init__(self, kept: dict[str, tuple[str, Arrays]], name: str, key: str, shapes: Shapes) -> None:
        self._kept, self._name, self.key = kept, name, key
        self.finished: list[Span] = []
        self.arrays = {part: np.empty(shape, dtype) for part, (shape, dtype) in fixed(shapes).items()}
        self._pieces: dict[str, list[np.ndarray]] = {
            part: [np.empty((0, *(length or 0 for length in shape[1:])), np.dtype(dtype))]
            for part, (shape, dtype) in shapes.items()
            if None in shape
        }

    def append(self, part: str, rows: np.ndarray) -> int:
        """Add rows to an array that grows with every block; returns the number of rows before them."""
        pieces = self._pieces[part]
        before = sum(map(len, pieces))
        pieces.append(rows)
        return before

    def commit(self, start: int, stop: int) -> None:
        """Declare the rows of a block written; they do not outlive the process."""
        self.finished.append((start, stop))

    def close(self) -> None:
        """Do nothing: what is in memory is gone when nobody holds it."""

    def finish(self) -> Arrays:
        self.arrays |= {part: np.concatenate(pieces) for part, pieces in self._pieces.items()}
        for array in self.arrays.values():
            array.flags.writeable = False  # as maps of finished files are; numba compiles once for both
        self._kept[self._name] = self.key, self.arrays
        return self.arrays


def fixed(shapes: Shapes) -> dict[str, tuple[tuple[int, ...], npt.DTypeLike]]:
    """Return the arrays whose shapes are known beforehand."""
    found = {}
    for part, (shape, dtype) in shapes.items():
        lengths = tuple(length for length in shape if length is not None)
        if len(lengths) == len(shape):
            found[part] = lengths, dtype
    return found


def expected_bytes(shapes: Shapes, about: int = 0) -> int:
    """Return how many bytes arrays take; about: rows of those whose length is not known beforehand."""
    return sum(
        math.prod(about if length is None else length for length in shape) * np.dtype(dtype).itemsize
        for shape, dtype in shapes.values()
    )


def missing_blocks(finished: list[Span], rows: int) -> Iterator[Span]:
    """Yield the longest runs of rows below ``rows`` that no finished block holds, upwards."""
    at = 0
    for start, stop in sorted(finished):
        if start > at:
            yield at, start
        at = max(at, stop)
    if at < rows:
        yield at, rows
