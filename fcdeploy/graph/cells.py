"""A coarse k-means partition of the faces: the cells of an IVF index, and the order in which runs visit faces.

Faces of one cell have most of their neighbors in common. A run that visits them together finds the rows that it
gathers in the cache, or in the pages of a map that are already there.
"""

from dataclasses import dataclass

import numpy as np

CELL = 192  # faces of a cell at most, on average
PER_ROOT = 4  # cells for sqrt(n) faces
REFINED_PER_ROOT = 6  # likewise, of refined features, whose neighbors lie in more cells
ONE_CELL = 4096  # up to this many faces, order does not matter


@dataclass(frozen=True)
class Cells:
    """centroids: (c, d) float32 unit rows; cell: (n,) int32, the most similar centroid of each face.

    nearest: (n, p) int32, the p most similar centroids of each face, where they were kept (see ``partition``).
    """

    centroids: np.ndarray
    cell: np.ndarray
    nearest: np.ndarray | None = None

    @property
    def count(self) -> int:
        return len(self.centroids)

    def order(self) -> np.ndarray:
        """Return the faces (n,) int32 sorted by cell, within a cell by id."""
        return np.argsort(self.cell, kind="stable").astype(np.int32)

    def layout(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ``order``, where each cell begins in it, (c + 1,) int64, and where each face stands, (n,) int32."""
        order, first = self.order(), np.zeros(self.count + 1, dtype=np.int64)
        np.cumsum(np.bincount(self.cell, minlength=self.count), out=first[1:])
        place = np.empty(len(order), dtype=np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        return order, first, place


def cell_count(n: int, per_root: int = PER_ROOT) -> int:
    """Return how many cells n faces get: ``per_root`` sqrt(n), so that a search looks at O(sqrt(n)) faces.

    More where cells would have over CELL faces on average. People do not get more faces where there are more people: in
    larger cells, faces are with strangers, their centroids say little about them, and what is near a face lies in
    hundreds of cells.
    """
    return 1 if n <= ONE_CELL else max(int(per_root * np.sqrt(n)), n // CELL)
