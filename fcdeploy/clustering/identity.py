"""Clusters that keep their numbers when faces come and go, and what became of them: merges and splits.

A new cluster takes the number of the old one with which it shares the most faces, the largest overlaps first, equal
ones by the lowest number; no number is given twice, and none that was ever given is given again.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit

MERGE, SPLIT = "merge", "split"
NO_NUMBER = -1


@dataclass(frozen=True)
class Change:
    """What became of an old cluster: ``faces`` of it are in a cluster with another number, ``new``.

    kind: MERGE, when most of it is there and that one was there before; else SPLIT. Of a split that was not made
    ``new`` is NO_NUMBER where no other old cluster has it.
    """

    old: int
    new: int
    faces: int
    kind: str


@dataclass(frozen=True)
class Parts:
    """The parts of old clusters that are together now, by old cluster, and by where they are.

    of: (n,) int64, the part of each face, -1 for one that is new or in no cluster. Of each part, (p,) int64: old, its
    old cluster; label, its cluster now; faces, how many it has; first, the first of them.
    """

    of: np.ndarray
    old: np.ndarray
    label: np.ndarray
    faces: np.ndarray
    first: np.ndarray

    def largest(self) -> np.ndarray:
        """Tell which parts (p,) bool are the largest of their old clusters; of equal ones that which has the number."""
        order = np.lexsort((self.label, self.label != self.old, -self.faces, self.old))
        found = np.zeros(len(order), bool)
        found[order[np.unique(self.old[order], return_index=True)[1]]] = True
        return found


def parts_of(old: np.ndarray, labels: np.ndarray) -> Parts:
    """Return the parts of old clusters; both (n,) int64, -1 in no cluster, or not there before."""
    both = np.flatnonzero((old >= 0) & (labels >= 0))
    width = int(labels.max(initial=0)) + 1
    keys, first, of, counts = np.unique(
        old[both] * width + labels[both], return_index=True, return_inverse=True, return_counts=True
    )
    part = np.full(len(old), -1, np.int64)
    part[both] = of
    return Parts(part, keys // width, keys % width, counts, both[first])


@njit(cache=True, nogil=True)
def _matched(old: np.ndarray, new: np.ndarray, count: int, most: int) -> np.ndarray:
    names = np.full(count, -1, dtype=np.int64)
    taken = np.zeros(most, dtype=np.bool_)
    for t in range(len(old)):
        if not taken[old[t]] and names[new[t]] < 0:
            taken[old[t]] = True
            names[new[t]] = old[t]
    return names


def keep_numbers(old: np.ndarray, new: np.ndarray, first: int) -> np.ndarray:
    """Return the labels (n,) int64 of the clusters ``new`` by the numbers that they had, new ones from ``first`` on.

    old, new: (n,) int64, -1 in no cluster, or not there before; first: above every number ever given.
    """
    count = int(new.max(initial=-1)) + 1
    parts = parts_of(old, new)
    order = np.lexsort((parts.label, parts.old, -parts.faces))
    names = _matched(parts.old[order], parts.label[order], count, max(first, int(old.max(initial=-1)) + 1))
    nameless = np.flatnonzero(names < 0)
    # In the order of their first faces.
    placed = np.flatnonzero(new >= 0)
    numbers, at = np.unique(new[placed], return_index=True)
    nameless = nameless[np.isin(nameless, numbers)]
    begins = np.full(count, len(new), dtype=np.int64)
    begins[numbers] = placed[at]
    names[nameless[np.argsort(begins[nameless], kind="stable")]] = first + np.arange(len(nameless))
    return np.where(new >= 0, np.append(names, -1)[new], -1)


def changes_between(old: np.ndarray, labels: np.ndarray) -> list[Change]:
    """Return what became of old clusters; both (n,) int64 by the same numbers, see ``keep_numbers``.

    An old cluster is merged when most of it is in one that has the number of another; whatever else is in a cluster of
    another number was split off.
    """
    return [change for change, _ in changes_of(parts_of(old, labels))]


def changes_of(parts: Parts) -> list[tuple[Change, int]]:
    """Return what became of old clusters, see ``changes_between``, and which part each change is of."""
    main = parts.largest()
    other = np.flatnonzero(parts.old != parts.label)
    merged = main[other] & np.isin(parts.label[other], parts.old)
    found = [
        (Change(old, label, faces, MERGE if merge else SPLIT), part)
        for old, label, faces, merge, part in zip(
            parts.old[other].tolist(),
            parts.label[other].tolist(),
            parts.faces[other].tolist(),
            merged.tolist(),
            other.tolist(),
            strict=True,
        )
    ]
    return sorted(found, key=lambda one: (one[0].kind, one[0].old, one[0].new))
