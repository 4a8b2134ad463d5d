"""Rows of numbers that are read when they are asked for: parts behind each other, and bfloat16."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

Key = slice | np.ndarray  # which rows: numbers of them, or whether each is one, (n,) bool


class Rows(Protocol):
    """What stands in for an (n, d) array: a slice, or an array of row numbers, gives these rows as an array."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, key: Key, /) -> np.ndarray: ...


class Bfloat16:
    """Rows of bfloat16, given as the float32 values that they stand for.

    stored: (n, d) uint16, the upper halves of the float32 values; usually a memory map.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, stored: np.ndarray) -> None:
        self.stored = stored
        self.shape: tuple[int, ...] = stored.shape

    def __getitem__(self, key: Key) -> np.ndarray:
        return (np.asarray(self.stored[key]).astype(np.uint32) << 16).view(np.float32)


class Shards:
    """Parts of one width behind each other: rows of part i follow those of part i - 1.

    parts: at least one, each (m, d). Values are given in the dtype that holds those of all parts.
    """

    def __init__(self, parts: Sequence[Rows]) -> None:
        self.parts = tuple(parts)
        self.starts = np.cumsum([0, *(part.shape[0] for part in parts)])
        self.shape: tuple[int, ...] = int(self.starts[-1]), parts[0].shape[1]
        self.dtype = np.result_type(*(part.dtype for part in parts))

    def __getitem__(self, key: Key) -> np.ndarray:
        if isinstance(key, slice) and key.step in (None, 1):
            start, stop, _ = key.indices(self.shape[0])
            return self._between(start, max(start, stop))
        rows = np.arange(self.shape[0])[key]  # negative numbers and masks as NumPy takes them
        flat = rows.ravel()
        out = np.empty((len(flat), self.shape[1]), self.dtype)
        of = np.searchsorted(self.starts, flat, side="right") - 1
        for at in np.unique(of).tolist():
            mine = of == at
            out[mine] = self.parts[at][flat[mine] - self.starts[at]]
        return out.reshape(*rows.shape, self.shape[1])

    def _between(self, start: int, stop: int) -> np.ndarray:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        blocks = []
        while first < len(self.parts) and self.starts[first] < stop:
            begin = int(self.starts[first])
            blocks.append(np.asarray(self.parts[first][max(0, start - begin) : stop - begin]))
            first += 1
        if len(blocks) == 1 and blocks[0].dtype == self.dtype:
            return blocks[0]
        empty = np.empty((0, self.shape[1]), self.dtype)
        return np.concatenate([empty, *blocks]).astype(self.dtype, copy=False)
