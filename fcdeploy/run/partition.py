"""The partition of rows into cells, and the order in which a run visits them: neighbors one after the other."""

import hashlib
from functools import cached_property

import numpy as np

from fcdeploy.graph.cells import Cells
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.store import Shapes, expected_bytes

SLICE_BYTES = (
    4 << 30
)  # of an array that is written in any order: as many pages have to stay in memory meanwhile


class Partition:
    """Cells of the rows of vectors; computed, like the artifact behind them, when needed.

    artifact: ``centroids`` (c, d) float32, ``cell`` (n,) int32 and ``nearest`` (n, p) int32, see ``Cells``.
    """

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact

    @cached_property
    def cells(self) -> Cells:
        return Cells(
            np.ascontiguousarray(self.artifact["centroids"]),
            np.ascontiguousarray(self.artifact["cell"]),
            self.artifact["nearest"],
        )

    @cached_property
    def order(self) -> np.ndarray:
        """The rows (n,) int32 cell by cell."""
        return self.cells.order()

    @cached_property
    def place(self) -> np.ndarray:
        """Where each row stands in ``order``, (n,) int32."""
        places = np.empty(len(self.order), dtype=np.int32)
        places[self.order] = np.arange(len(self.order), dtype=np.int32)
        return places

    @cached_property
    def digest(self) -> str:
        """A hash of the order."""
        return hashlib.sha256(np.ascontiguousarray(self.order).data).hexdigest()


class InSlices(Partition):
    """Another order: slices of ``rows`` consecutive rows, one after the other, the rows of each cell by cell.

    For arrays that are written in the order of visits. Their rows lie anywhere in the file, and where it is larger than
    the memory that is left, pages are written out half full and read again for their other rows, one by one. Of a
    slice they all stay. The order follows from the sizes alone, not from the machine, as workers have to agree on it.
    """

    def __init__(self, cells: Partition, rows: int) -> None:
        super().__init__(cells.artifact)
        self._cells, self.rows = cells, rows

    @cached_property
    def order(self) -> np.ndarray:
        order = self._cells.order
        return order[np.argsort(order // self.rows, kind="stable")]


def visit_to_write(cells: Partition, rows: int, shapes: Shapes) -> Partition:
    """Return the order in which to visit rows whose results, arrays of these shapes, are written as they come."""
    slices = -(-expected_bytes(shapes) // SLICE_BYTES)
    return cells if slices <= 1 else InSlices(cells, -(-rows // slices))
