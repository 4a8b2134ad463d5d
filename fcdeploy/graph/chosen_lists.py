"""Neighbor lists that were made for more rows than a run has faces: bad rows are left out of them."""

import numpy as np

from fcdeploy.errors import InputError
from fcdeploy.graph.lists import ListsFile, RowsInOrder, check_lists


class ChosenLists:
    """Lists of a file, for those of its rows that are faces of a run.

    chosen: (n,) int64, ascending, the rows that are faces. rows: how many are read at a time.
    """

    def __init__(self, lists: ListsFile, chosen: np.ndarray, rows: int) -> None:
        self.chosen, self._lists, self._rows = chosen, lists, rows
        self.place = np.full(lists.n, -1, np.int32)  # which face each row is
        self.place[chosen] = np.arange(len(chosen), dtype=np.int32)
        self._read = RowsInOrder(lists, rows, self.place >= 0)

    def __call__(self, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Return the lists of ``faces`` (m,), which follow each other, without the rows that are no faces.

        Returns ids (m, w) int32, numbered as faces, what is left in the order of the file; sims (m, w) or None; and
        which entries are none, (m, w) bool, behind the others. Raises InputError, which names the row, where fewer than
        k are left in a list.
        """
        ids, sims, none = self._rest(faces)
        left = ids.shape[1] - none.sum(axis=1)
        if left.min() < k:
            short = int(np.argmin(left))
            raise InputError(
                f"{self._lists.path}: without bad rows, the list of row {self.chosen[faces[short]]} holds "
                f"{left[short]} neighbors, and {k} are needed; give a smaller --k, or make lists of the good rows only."
            )
        return ids, sims, none

    def shortest(self) -> int:
        """Return how many faces the shortest list holds."""
        found = self._lists.k
        for start in range(0, len(self.chosen), self._rows):
            faces = np.arange(start, min(start + self._rows, len(self.chosen)))
            found = min(found, int((~self._rest(faces)[2]).sum(axis=1).min()))
        return found

    def _rest(self, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        rows = self.chosen[faces]
        first = int(rows[0])
        ids, sims = self._read(first, int(rows[-1]) + 1)
        checked = np.empty((len(rows), ids.shape[1]), np.int32)
        starts = np.flatnonzero(np.diff(rows, prepend=first - 2) > 1)  # of rows that follow each other
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            at = int(rows[start])
            block = ids[at - first : at - first + stop - start]
            checked[start:stop] = check_lists(block, at, self._lists.n, str(self._lists.path))
        found = self.place[checked]
        order = np.argsort(found < 0, axis=1, kind="stable")
        found = np.take_along_axis(found, order, axis=1)
        none = found < 0
        found[none] = 0  # any face
        if sims is not None:
            sims = np.take_along_axis(sims[rows - first], order, axis=1)
        return found, sims, none
