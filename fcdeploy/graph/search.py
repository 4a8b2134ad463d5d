"""Ways to find nearest neighbors, behind one interface; a new one is an entry in ``SEARCHES``."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fcdeploy.graph.cells import Cells
from fcdeploy.graph.knn import EXACT_LIMIT, PROBES, KnnSearch

Find = Callable[
    [np.ndarray], tuple[np.ndarray, np.ndarray]
]  # faces (m,) -> ids (m, k) int32, sims (m, k) float32
INDEX_SHARE = 3  # an index larger than a third of the memory budget keeps its lists on disk


@dataclass(frozen=True)
class Room:
    """What a search may use: memory in bytes, whether a GPU and how many bytes of it (0: all), and a scratch file.

    file: gives its place, None where there is none.
    """

    memory: int
    gpu: bool = False
    vram: int = 0
    file: Callable[[], Path | None] = lambda: None


class Search(Protocol):
    """One way to find neighbors.

    name: in keys and summaries. in_cells: whether it needs a partition of the rows, visits them cell by cell and is not
    exact, so that its recall is measured.
    """

    name: str
    in_cells: bool

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, Any]:
        """Return what else a summary says of a search among the rows of a partition."""

    def open(
        self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room
    ) -> AbstractContextManager[Find]:
        """Prepare to find the k nearest rows of ``vectors`` (n, d) of some of them, each itself first."""


class Exact:
    """Compares all pairs."""

    name, in_cells = "exact", False

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, Any]:
        return {}

    @contextlib.contextmanager
    def open(self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room) -> Iterator[Find]:
        search = KnnSearch(vectors, gpu=room.gpu, vram=room.vram)
        yield lambda faces: search.search(faces, k)


class Ivf:
    """Compares with the rows in the cells nearest to a face, by faiss."""

    name, in_cells = "ivf", True

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, Any]:
        count = cells().count
        return {"cells": count, "probes": min(PROBES, count)}

    @contextlib.contextmanager
    def open(self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room) -> Iterator[Find]:
        file = room.file() if vectors.nbytes // 2 > room.memory // INDEX_SHARE else None
        search = KnnSearch(vectors, cells, lists_file=file, gpu=room.gpu and file is None, vram=room.vram)
        try:
            yield lambda faces: search.search(faces, k)
        finally:
            if file is not None:
                del search
                file.unlink(missing_ok=True)


SEARCHES: Mapping[str, Search] = {search.name: search for search in (Exact(), Ivf())}


def search_named(name: str, n: int) -> Search:
    """Return a search by its name; "auto" compares all pairs up to EXACT_LIMIT rows."""
    if name == "auto":
        name = "exact" if n <= EXACT_LIMIT else "ivf"
    return SEARCHES[name]
