"""The partition of rows into cells, and the order in which a run visits them: neighbors one after the other."""

import hashlib
from functools import cached_property

import numpy as np

from fcdeploy.graph.cells import Cells
from fcdeploy.run.artifact import Artifact


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
