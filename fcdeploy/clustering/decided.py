"""Which merges and splits of old clusters are made when faces come and go: clear ones, or those that somebody chose.

A change is clear where what is new speaks for it, and not only what networks say of a few links this time: old clusters
are merged by links as strong as those that hold clusters together, and fall apart where faces that held them together
are gone.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fcdeploy.clustering.components import find_root, join, join_two, labels_from_forest, new_forest
from fcdeploy.clustering.forest import UNSUPPORTED
from fcdeploy.clustering.identity import (
    MERGE,
    NO_NUMBER,
    SPLIT,
    Change,
    Parts,
    changes_between,
    changes_of,
    keep_numbers,
    parts_of,
)
from fcdeploy.graph.kernels import njit

ROUNDS = 20
Decide = Callable[[Change], bool]
# Of a change: old cluster, first face of the part, its faces, what it is merged into.
Key = tuple[int, int, int, int]


@dataclass(frozen=True)
class Named:
    """labels: (n,) int64, -1 in no cluster; changes: what became of old clusters that are not just larger or smaller.

    refused: those that were not made, and that are not in the labels.
    """

    labels: np.ndarray
    changes: list[Change]
    refused: list[Change]


@dataclass(frozen=True)
class Rests:
    """What clusters of n faces rest on, before and now.

    links: (m, 2) integers and strength: (m,) float, what holds the new clusters together, a spanning forest or more.
    held: (h, 2) integers, links that held old clusters together and both of whose faces are still there. least: from
    which strength on a link merges old clusters clearly, see ``usual_weakest``.
    """

    links: np.ndarray
    strength: np.ndarray
    held: np.ndarray
    least: float = -np.inf


def usual_weakest(links: np.ndarray, strength: np.ndarray, labels: np.ndarray) -> float:
    """Return what half of the clusters are at least as strong as, each by its weakest link; -inf where none has any.

    links (f, 2) and strength (f,): a spanning forest of the clusters ``labels`` (n,) int64, strongest links. Clusters
    that are held together by none are passed over.
    """
    weakest = np.full(int(labels.max(initial=-1)) + 1, np.inf, np.float32)
    np.minimum.at(weakest, labels[links[:, 0]], strength)
    linked = weakest[np.isfinite(weakest) & (weakest != UNSUPPORTED)]
    return float(np.median(linked)) if len(linked) else -np.inf


def named(
    old: np.ndarray,
    new: np.ndarray,
    rests: Rests,
    first: int,
    *,
    merges: Decide | None = None,
    splits: Decide | None = None,
) -> Named:
    """Give clusters their numbers, and decide on every merge and split of old ones.

    old, new: (n,) int64, as in ``keep_numbers``. merges, splits: who decides on changes of that kind, None for making
    those that are clear. New faces between two clusters that stay apart go where the stronger links lead.
    """
    made_or_not: dict[Key, tuple[Change, bool]] = {}
    labels = keep_numbers(old, new, first)
    for _ in range(ROUNDS):  # undoing one change may be another
        undone = False
        for kind, decide in ((SPLIT, splits), (MERGE, merges)):
            parts = parts_of(old, labels)
            changes = {key: change for key, change in _keyed(parts).items() if change.kind == kind}
            if decide is None:
                undo = _held_together if kind == SPLIT else _apart_unless_clear
                other = undo(parts, labels, rests)
            else:
                made_or_not |= {
                    key: (change, decide(change)) for key, change in changes.items() if key not in made_or_not
                }
                refused = [key for key in changes if not made_or_not[key][1]]
                other = (_together if kind == SPLIT else _apart)(
                    parts, labels, _places(parts, refused), rests
                )
            if other is None:
                continue
            labels, undone = keep_numbers(old, other, first), True
            if decide is None:
                left = _keyed(parts_of(old, labels)).keys()
                made_or_not |= {key: (change, False) for key, change in changes.items() if key not in left}
        if not undone:
            break
    made = _keyed(parts_of(old, labels))
    there = set(old[old >= 0].tolist())
    refused_changes = [change for key, (change, yes) in made_or_not.items() if not yes and key not in made]
    return Named(
        labels,
        list(made.values()),
        [one if one.new in there else replace(one, new=NO_NUMBER) for one in refused_changes],
    )


def _keyed(parts: Parts) -> dict[Key, Change]:
    """Return what became of old clusters by keys, which stay the same when new clusters get other numbers."""
    found = {}
    for change, part in changes_of(parts):
        into = change.new if change.kind == MERGE else NO_NUMBER
        found[change.old, int(parts.first[part]), change.faces, into] = change
    return found


def _places(parts: Parts, keys: list[Key]) -> np.ndarray:
    """Return which parts (r,) these are the keys of."""
    return np.flatnonzero(np.isin(parts.first, np.array([key[1] for key in keys], np.int64)))


def named_again(old: np.ndarray, labels: np.ndarray, first: int, before: Named) -> Named:
    """Give clusters their numbers that were changed after it was decided on them, by what a person knows."""
    labels = keep_numbers(old, labels, first)
    made = changes_between(old, labels)
    return Named(labels, made, [change for change in before.refused if change not in made])


def _together(parts: Parts, labels: np.ndarray, refused: np.ndarray, rests: Rests) -> np.ndarray | None:
    """Undo splits, parts (r,) ``refused``: they go back to the largest other part of their clusters."""
    apart = np.zeros(len(parts.old), bool)
    apart[refused] = True
    order = np.lexsort((parts.label, parts.label != parts.old, -parts.faces, apart, parts.old))
    of, at = np.unique(parts.old[order], return_index=True)
    home = parts.label[order[at]][np.searchsorted(of, parts.old)]
    return _moved(parts, labels, np.where(apart, home, parts.label))


def _held_together(parts: Parts, labels: np.ndarray, rests: Rests) -> np.ndarray | None:
    """Undo splits that are not clear: parts that links still hold go where the largest of them is."""
    one, other = parts.of[rests.held[:, 0]], parts.of[rests.held[:, 1]]
    across = np.flatnonzero((one >= 0) & (other >= 0) & (one != other))
    across = across[parts.old[one[across]] == parts.old[other[across]]]
    forest = new_forest(len(parts.old))
    join(forest, one[across].astype(np.int32), other[across].astype(np.int32))
    held = labels_from_forest(forest)
    order = np.lexsort((parts.label, parts.label != parts.old, -parts.faces, held))
    home = parts.label[order[np.unique(held[order], return_index=True)[1]]]
    return _moved(parts, labels, home[held])


def _moved(parts: Parts, labels: np.ndarray, target: np.ndarray) -> np.ndarray | None:
    """Move parts to the clusters ``target`` (p,), and new faces along where no part stays; None if nothing moves."""
    moves = target != parts.label
    if not moves.any():
        return None
    count = int(labels.max()) + 1
    stays = np.zeros(count, bool)
    stays[parts.label[~moves]] = True
    largest_last = np.lexsort((-parts.old, parts.faces))
    along = np.arange(count)
    along[parts.label[largest_last]] = target[largest_last]
    moved = labels.copy()
    stored = parts.of >= 0
    moved[stored] = target[parts.of[stored]]
    fresh = np.flatnonzero(~stored & (labels >= 0))
    fresh = fresh[~stays[labels[fresh]]]
    moved[fresh] = along[labels[fresh]]
    return moved


def _apart(parts: Parts, labels: np.ndarray, refused: np.ndarray, rests: Rests) -> np.ndarray | None:
    """Undo merges, parts (r,) ``refused``: old faces go back to their clusters, new ones where links lead."""
    if not len(refused):
        return None
    number = parts.label.copy()
    number[refused] = parts.old[refused]
    touched = np.zeros(int(labels.max()) + 1, bool)
    touched[parts.label[refused]] = True
    return _led(parts, labels, touched, number, rests)


def _apart_unless_clear(parts: Parts, labels: np.ndarray, rests: Rests) -> np.ndarray | None:
    """Undo merges that are not clear: of those in one cluster only old ones that strong links join stay together."""
    main = parts.largest()
    faces = np.flatnonzero(parts.of >= 0)
    faces = faces[main[parts.of[faces]]]
    forest = new_forest(len(labels))
    join(forest, parts.first[parts.of[faces]].astype(np.int32), faces.astype(np.int32))
    strong = rests.links[rests.strength >= rests.least]
    strong = strong[(labels[strong[:, 0]] == labels[strong[:, 1]]) & (labels[strong[:, 0]] >= 0)]
    join(forest, strong[:, 0].astype(np.int32), strong[:, 1].astype(np.int32))
    joined = labels_from_forest(forest)
    count = int(labels.max(initial=-1)) + 1
    groups = np.unique(np.stack([parts.label[main], joined[parts.first[main]]], axis=1), axis=0)
    touched = np.bincount(groups[:, 0], minlength=count) > 1
    if not touched.any():
        return None
    number = np.where(main, count + joined[parts.first], -1)
    return _led(parts, labels, touched, number, rests)


def _led(
    parts: Parts, labels: np.ndarray, touched: np.ndarray, number: np.ndarray, rests: Rests
) -> np.ndarray:
    """Give parts in ``touched`` clusters (c,) their ``number`` (p,), -1 for none; other faces follow their links.

    Links are taken from the strongest on, and never join what has two numbers.
    """
    inside = (labels >= 0) & touched[labels]
    known = np.where(parts.of >= 0, number[parts.of], -1) if len(number) else parts.of
    pairs = rests.links
    chosen = np.flatnonzero(inside[pairs[:, 0]] & (labels[pairs[:, 0]] == labels[pairs[:, 1]]))
    order = chosen[np.argsort(-rests.strength[chosen], kind="stable")]
    where = _lead(np.where(inside, known, -1), pairs[order])
    return np.where(inside & (where >= 0), where, labels)


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
