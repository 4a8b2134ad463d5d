"""Rows that go with another one: which of them a run computes on, and labels for all of them."""

from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.data.labels import renumber


@dataclass(frozen=True)
class Copies:
    """Faces that are copies of others.

    source: (n,) int32, the face that each one goes with: itself, or the first of its group. chosen: (m,) int64,
    ascending: the faces that a run computes on, every first one among them.
    """

    source: np.ndarray
    chosen: np.ndarray

    @property
    def together(self) -> bool:
        """Whether the run computes on copies, too, whose labels have to be joined."""
        return bool((self.source[self.chosen] != self.chosen).any())

    def joined(self, leader: np.ndarray) -> "Copies":
        """Let computed faces go with others: leader (m,) integers, places in ``chosen``; chosen stays as it is."""
        of = np.arange(len(self.source), dtype=np.int32)
        of[self.chosen] = self.chosen[leader]
        return Copies(of[self.source], self.chosen)

    def keep(self, most: int) -> "Copies":
        """Compute on the first ``most`` faces of every group."""
        order = np.argsort(self.source, kind="stable")
        of = self.source[order]
        starts = np.flatnonzero(np.concatenate([[True], of[1:] != of[:-1]]))
        sizes = np.diff(np.append(starts, len(order)))
        rank = np.arange(len(order)) - np.repeat(starts, sizes)
        return Copies(self.source, np.sort(order[rank < most]).astype(np.int64))

    def largest(self) -> int:
        """Return the size of the largest group."""
        return int(np.bincount(self.source).max())

    def labels_of_all(self, labels: np.ndarray) -> np.ndarray:
        """Give every face the label of the one that it goes with: (m,) -> (n,) int64, by first appearance.

        Copies that were computed on are joined: their clusters become one. Where one of them is in no cluster (-1) it
        takes the label of another.
        """
        labels = joined_labels(labels, np.searchsorted(self.chosen, self.source[self.chosen]))
        of_all = np.full(len(self.source), -1, dtype=np.int64)
        of_all[self.chosen] = labels
        return renumber(of_all[self.source])


def copies_from(source: np.ndarray) -> Copies:
    """Take ``source`` (n,) int32 as it is; only the first of every group is computed on."""
    return Copies(source, np.flatnonzero(source == np.arange(len(source))))


def joined_labels(labels: np.ndarray, source: np.ndarray) -> np.ndarray:
    """Make one cluster of the clusters of faces that go together: (m,) int64, renumbered; -1 only where all are.

    source: (m,) integers, the face that each one goes with.
    """
    extra = np.flatnonzero(source != np.arange(len(source)))
    if not len(extra):
        return labels
    count = int(labels.max(initial=-1)) + 1
    best = np.where(labels < 0, count, labels)
    np.minimum.at(best, source[extra], best[extra])
    forest = new_forest(count + 1)
    known = extra[(labels[extra] >= 0) & (best[source[extra]] < count)]
    join(forest, best[source[known]], labels[known])
    first = np.flatnonzero((labels >= 0) & (best != labels))
    join(forest, best[first], labels[first])
    found = labels_from_forest(forest)[best[source]]
    found[best[source] == count] = -1
    return renumber(found)
