"""Ways to find nearest neighbors, behind one interface; a new one is an entry in ``search_named``."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from fcdeploy.graph.cell_search import RECALL, CellSearch
from fcdeploy.graph.cell_search_cuda import PART, TILED_PART, cells_on_device, pairs_on_device
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.cuda import DeviceArrays
from fcdeploy.graph.knn import EXACT_LIMIT, PROBES, KnnSearch

Find = Callable[
    [np.ndarray], tuple[np.ndarray, np.ndarray]
]  # faces (m,) -> ids (m, k) int32, sims (m, k) float32
INDEX_SHARE = 3  # an index larger than a third of the memory budget keeps its lists on disk


@dataclass(frozen=True)
class Room:
    """What a search may use: memory in bytes, whether a GPU and how many bytes of it (0: all), and a scratch file.

    file: gives its place, None where there is none. resident: what stays on the GPU from stage to stage.
    """

    memory: int
    gpu: bool = False
    vram: int = 0
    file: Callable[[], Path | None] = lambda: None
    resident: DeviceArrays | None = None


class Search(Protocol):
    """One way to find neighbors.

    name: in summaries. in_cells: whether it needs a partition of the rows, visits them cell by cell and is not exact,
    so that its recall is measured. settings: what else decides its lists. block: faces that are best searched together,
    gpu_block: on a GPU, whose streams have several parts of them.
    """

    name: str
    in_cells: bool
    settings: Mapping[str, object]
    block: int
    gpu_block: int

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, object]:
        """Return what else a summary says of a search among the rows of a partition."""

    def open(
        self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room
    ) -> AbstractContextManager[Find]:
        """Prepare to find the k nearest rows of ``vectors`` (n, d) of some of them, each itself first."""


class Exact:
    """Compares all pairs: on a GPU with CuPy or, without it, with faiss-gpu; else by faiss."""

    name, in_cells, block, gpu_block = "exact", False, 8192, 4 * TILED_PART
    settings: Mapping[str, object] = {}

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, object]:
        return {}

    @contextlib.contextmanager
    def open(self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room) -> Iterator[Find]:
        with (
            pairs_on_device(vectors, k, room.vram, room.resident)
            if room.gpu
            else contextlib.nullcontext() as device
        ):
            search = device or KnnSearch(vectors, gpu=room.gpu, vram=room.vram)
            yield lambda faces: search.search(faces, k)


class Ivf:
    """Compares with the rows in the cells nearest to a face, by faiss, or faiss-gpu where it is installed."""

    name, in_cells, block, gpu_block = "ivf", True, 8192, 8192
    settings: Mapping[str, object] = {}

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, object]:
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


class InCells:
    """Compares with the rows of near cells by integer products, so many that the share ``recall`` is found.

    On a GPU with CuPy, where that has room; the lists are the same.
    """

    name, in_cells, block, gpu_block = "cells", True, PART, 8 * PART

    def __init__(self, recall: float = RECALL) -> None:
        self.recall = recall
        self.settings: Mapping[str, object] = {"recall": recall}

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, object]:
        return {"cells": cells().count, "recall_asked": self.recall}

    @contextlib.contextmanager
    def open(self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room) -> Iterator[Find]:
        assert cells is not None
        with (
            cells_on_device(vectors, cells, k, room.vram, room.resident)
            if room.gpu
            else contextlib.nullcontext() as device
        ):
            if device is not None:
                device.cut = device.reach_for(k, self.recall).cut
                yield lambda faces: device.search(faces, k)
                return
        with self.unreached(vectors, cells, room) as search:
            search.cut = search.reach_for(k, self.recall).cut
            yield lambda faces: search.search(faces, k)

    @contextlib.contextmanager
    def unreached(self, vectors: np.ndarray, cells: Cells, room: Room) -> Iterator[CellSearch]:
        """Prepare a search that is to be told how far faces look, on the CPU."""
        file = room.file() if 2 * vectors.nbytes // 4 > room.memory // INDEX_SHARE else None
        search = CellSearch(vectors, cells, lists_file=file)
        try:
            yield search
        finally:
            if file is not None:
                del search
                file.unlink(missing_ok=True)


def search_named(name: str, n: int, *, recall: float | None = None) -> Search:
    """Return a search by its name; "auto" compares all pairs up to EXACT_LIMIT rows, and is in cells beyond.

    recall: the share of true neighbors that a search in cells has to find, RECALL where nobody asks.
    """
    if name == "auto":
        name = "exact" if n <= EXACT_LIMIT else "cells"
    searches: dict[str, Callable[[], Search]] = {
        "exact": Exact,
        "ivf": Ivf,
        "cells": lambda: InCells(RECALL if recall is None else recall),
    }
    return searches[name]()
