"""Links as a maximum spanning forest: as few of the strongest links as hold every cluster together.

Links have a total order, the stronger one first, equal ones by their ends, so that there is one such forest, however
links are cut into blocks and in whatever order they come.
"""

import itertools
from collections.abc import Callable, Iterable

import numpy as np

from fcdeploy.clustering.components import find_root, join, join_two, labels_from_forest, new_forest
from fcdeploy.graph.kernels import njit

UNSUPPORTED = 0.0  # strength of a link that holds faces of one cluster together that no accepted link joins

Links = tuple[np.ndarray, np.ndarray]  # ids (m, 2) int32 and strength (m,) float32


def strongest_forest(n: int, blocks: Iterable[Links], labels: np.ndarray) -> Links:
    """Return the maximum spanning forest of links inside clusters, strongest first.

    blocks: links as ids (m, 2) integers below n and strength (m,) float, larger is stronger; those between clusters,
    and of a face to itself, are passed over. labels: (n,) int64, -1 in no cluster. Returns ids (f, 2) int32, smaller
    ends first, and strength (f,) float32; f < n, and memory for n links and a block's is all it takes.
    """
    return _strongest(blocks, labels, np.arange(n), lambda a, b: (a == b) & (a >= 0))


def strongest_between(blocks: Iterable[Links], labels: np.ndarray) -> Links:
    """Return the maximum spanning forest of links between clusters, strongest first: what would join clusters next.

    blocks, labels: as of ``strongest_forest``. Returns ids (g, 2) int32 of faces and strength (g,) float32, fewer than
    there are clusters.
    """
    return _strongest(blocks, labels, labels, lambda a, b: (a != b) & (a >= 0) & (b >= 0))


def _strongest(
    blocks: Iterable[Links],
    labels: np.ndarray,
    nodes: np.ndarray,
    counts: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> Links:
    """Return the maximum spanning forest over ``nodes`` (n,) of the links that count, by the labels of their ends."""
    ids, strength = np.empty((0, 2), np.int32), np.empty(0, np.float32)
    for more, of in blocks:
        chosen = np.flatnonzero(counts(labels[more[:, 0]], labels[more[:, 1]]) & (more[:, 0] != more[:, 1]))
        ids = np.concatenate([ids, np.sort(more[chosen], axis=1).astype(np.int32)])
        strength = np.concatenate([strength, of[chosen].astype(np.float32)])
        order = strongest_first(ids, strength)
        forest = new_forest(int(nodes.max(initial=-1)) + 1)
        chosen = order[_joining(forest, nodes[ids], order)]
        ids, strength = ids[chosen], strength[chosen]
    return ids, strength


def strongest_first(ids: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """Return the order (m,) of links ids (m, 2), smaller ends first: by strength (m,), equal ones by their ends."""
    return np.lexsort((ids[:, 1], ids[:, 0], -strength))


def without_faces(ids: np.ndarray, strength: np.ndarray, faces: np.ndarray) -> Links:
    """Take faces (m,) out of a forest, ids (f, 2) int32 and strength (f,) float32; what they held stays together.

    The neighbors of such a face are linked to each other, from the strongest to the weakest, each as weakly as the
    weaker of the two was linked to it. Returns links strongest first.
    """
    touched = np.isin(ids, faces).any(axis=1)
    near: dict[int, dict[int, float]] = {}
    for (a, b), value in zip(ids[touched].tolist(), strength[touched].tolist(), strict=True):
        near.setdefault(a, {})[b] = near.setdefault(b, {})[a] = value
    for face in faces.tolist():
        others = sorted(near.pop(face, {}).items(), key=lambda other: (-other[1], other[0]))
        for other, _ in others:
            del near[other][face]
        for (a, first), (b, second) in itertools.pairwise(others):
            near[a][b] = near[b][a] = min(first, second)
    more = sorted((a, b, value) for a, others in near.items() for b, value in others.items() if a < b)
    joined = np.concatenate([ids[~touched], np.array([one[:2] for one in more], np.int32).reshape(-1, 2)])
    values = np.concatenate([strength[~touched], np.array([one[2] for one in more], np.float32)])
    order = strongest_first(joined, values)
    return joined[order], values[order]


def completed(ids: np.ndarray, strength: np.ndarray, labels: np.ndarray) -> Links:
    """Add the links that a forest lacks to hold every cluster together; behind the others, of strength UNSUPPORTED.

    ids (f, 2) int32 and strength (f,) float32 inside clusters; labels: (n,) int64, -1 in no cluster. Of a cluster in
    several parts the first face of each is linked to the first face of the cluster.
    """
    forest = new_forest(len(labels))
    join(forest, ids[:, 0], ids[:, 1])
    parts = labels_from_forest(forest)
    first_of_part = np.unique(parts, return_index=True)[1]
    clusters, first_of_cluster = np.unique(labels, return_index=True)
    own = first_of_cluster[np.searchsorted(clusters, labels[first_of_part])]
    lacking = (labels[first_of_part] >= 0) & (own != first_of_part)
    more = np.stack([own[lacking], first_of_part[lacking]], axis=1).astype(np.int32)
    return (
        np.concatenate([ids, more]),
        np.concatenate([strength, np.full(len(more), UNSUPPORTED, np.float32)]),
    )


@njit(cache=True, nogil=True)
def _joining(forest: np.ndarray, ids: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Tell which links (m,) bool, taken in ``order``, join two components; ``forest`` becomes all of them joined."""
    joins = np.zeros(len(order), np.bool_)
    for at in range(len(order)):
        a, b = ids[order[at], 0], ids[order[at], 1]
        if find_root(forest, a) != find_root(forest, b):
            join_two(forest, a, b)
            joins[at] = True
    return joins
