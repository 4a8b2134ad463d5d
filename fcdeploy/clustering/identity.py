"""Clusters that keep their numbers when faces come and go, and what became of them: merges and splits.

A new cluster takes the number of the old one with which it shares the most faces, the largest overlaps first, equal
ones by the lowest number; no number is given twice, and none that was ever given is given again.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.components import find_root, join_two
from fcdeploy.graph.kernels import njit

MERGE, SPLIT = "merge", "split"
ROUNDS = 20


@dataclass(frozen=True)
class Change:
    """What became of an old cluster: ``faces`` of it are in a cluster with another number, ``new``.

    kind: MERGE, when most of it is there and that one was there before; else SPLIT.
    """

    old: int
    new: int
    faces: int
    kind: str


Decide = Callable[[Change], bool]


@dataclass(frozen=True)
class Named:
    """labels: (n,) int64, -1 in no cluster; changes: what became of old clusters that are not just larger or smaller.

    refused: those that somebody decided against, and that are not in the labels.
    """

    labels: np.ndarray
    changes: list[Change]
    refused: list[Change]


def overlaps(old: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs of clusters that share faces and how many, the most first; equal ones by their numbers.

    old, new: (n,) int64, -1 in no cluster.
    """
    both = (old >= 0) & (new >= 0)
    pairs, counts = np.unique(np.stack([old[both], new[both]], axis=1), axis=0, return_counts=True)
    order = np.lexsort((pairs[:, 1], pairs[:, 0], -counts))
    return pairs[order, 0], pairs[order, 1], counts[order]


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
    names = _matched(*overlaps(old, new)[:2], count, max(first, int(old.max(initial=-1)) + 1))
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
    numbers, clusters, counts = overlaps(old, labels)
    own = numbers != clusters  # of equal parts the one that has the number is the main one
    order = np.lexsort((clusters, own, numbers, -counts))
    numbers, clusters, counts = numbers[order], clusters[order], counts[order]
    most: dict[int, int] = {}
    for number, cluster in zip(numbers.tolist(), clusters.tolist(), strict=True):
        most.setdefault(number, cluster)
    found = []
    for number, cluster, faces in zip(numbers.tolist(), clusters.tolist(), counts.tolist(), strict=True):
        if number != cluster:
            merged = most[number] == cluster and cluster in most
            found.append(Change(number, cluster, faces, MERGE if merged else SPLIT))
    return sorted(found, key=lambda one: (one.kind, one.old, one.new))


def named(
    old: np.ndarray,
    new: np.ndarray,
    links: tuple[np.ndarray, np.ndarray],
    first: int,
    *,
    merges: Decide,
    splits: Decide,
) -> Named:
    """Give clusters their numbers, and let somebody decide on every merge and split of old ones.

    old, new: (n,) int64, as in ``keep_numbers``. links: (m, 2) int32 and strengths (m,), those that made the new
    clusters, where they are known: new faces between two clusters that stay apart go where the stronger ones lead.
    """
    asked: dict[Change, bool] = {}

    def refused(labels: np.ndarray, kind: str, decide: Decide) -> list[Change]:
        changes = [one for one in changes_between(old, labels) if one.kind == kind]
        for one in changes:
            if one not in asked:
                asked[one] = decide(one)
        return [one for one in changes if not asked[one]]

    labels = keep_numbers(old, new, first)
    for _ in range(ROUNDS):  # undoing one change may be another
        undone = False
        if some := refused(labels, SPLIT, splits):
            labels, undone = keep_numbers(old, _together(old, labels, some), first), True
        if some := refused(labels, MERGE, merges):
            labels, undone = keep_numbers(old, _apart(old, labels, some, links), first), True
        if not undone:
            break
    made = changes_between(old, labels)
    return Named(labels, made, [one for one, yes in asked.items() if not yes and one not in made])


def _together(old: np.ndarray, labels: np.ndarray, splits: list[Change]) -> np.ndarray:
    """Undo splits: what has a number of its own goes back as a whole, from another old cluster the faces go back."""
    labels, known = labels.copy(), set(old[old >= 0].tolist())
    for one in splits:
        of = (labels == one.new) if one.new not in known else (labels == one.new) & (old == one.old)
        home = labels[(old == one.old) & ~of]
        labels[of] = np.bincount(home[home >= 0]).argmax() if (home >= 0).any() else one.new
    return np.unique(labels, return_inverse=True)[1].astype(np.int64) - int((labels < 0).any())


def _apart(
    old: np.ndarray, labels: np.ndarray, merges: list[Change], links: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Undo merges: old faces go back to their clusters, new ones to those that their strongest links lead to."""
    part = np.where(old >= 0, labels, -1)  # -1: of a new face, which goes where links lead
    for one in merges:
        part[(labels == one.new) & (old == one.old)] = one.old
    part[labels < 0] = -1
    touched = np.isin(labels, np.unique([one.new for one in merges]))
    pairs, strengths = links
    inside = np.flatnonzero(touched[pairs[:, 0]] & (labels[pairs[:, 0]] == labels[pairs[:, 1]]))
    order = inside[np.argsort(-strengths[inside], kind="stable")]
    where = _lead(part, pairs[order])
    found = np.where(touched, np.where(where >= 0, where, labels), labels)
    return np.unique(found, return_inverse=True)[1].astype(np.int64) - int((found < 0).any())


@njit(cache=True, nogil=True)
def _lead(part: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the part that each face belongs to, by links in their order that never join two parts."""
    parents, of = np.arange(len(part)), part.copy()
    for t in range(len(pairs)):
        a, b = find_root(parents, pairs[t, 0]), find_root(parents, pairs[t, 1])
        if a != b and (of[a] == of[b] or of[a] < 0 or of[b] < 0):
            both = max(of[a], of[b])
            join_two(parents, a, b)
            of[find_root(parents, a)] = both
    found = np.empty(len(part), dtype=np.int64)
    for face in range(len(part)):
        found[face] = of[find_root(parents, face)]
    return found
