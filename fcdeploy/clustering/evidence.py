"""What a run's clusters rest on, alike for every system: links, how strong each is, and neighbor lists."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.forest import Links
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.knn import KnnGraph

SIMILARITY, PROBABILITY = "similarity", "probability"  # what the strength of a link is


@dataclass(frozen=True)
class Accepted:
    """The links among which a system chose, in blocks: ids (m, 2) and strength (m,), larger is stronger.

    Those that it accepted are inside its clusters, the others, which a looser threshold would accept, between them. A
    system without links gives those that its lists hold. strength: what that is, SIMILARITY or PROBABILITY; lists: the
    artifact of neighbor lists that links were chosen from.
    """

    links: Callable[[], Iterable[Links]]
    strength: str
    lists: str


@dataclass(frozen=True)
class Evidence:
    """What the clusters of n faces rest on.

    links: (f, 2) int32 and strength: (f,) float32, a maximum spanning forest whose components are the clusters,
    strongest first; beyond: (g, 2) int32 and beyond_strength: (g,) float32, one of the links between clusters, which
    would be accepted next; name: what strength is. lists: neighbor lists of the faces, most similar first. within: (n,)
    float32, the mean cosine of a face and the others of its cluster, NaN where it is alone; near: (n,) float32, the
    cosine of a face and the nearest of all others. dim: of the vectors that these are of.
    """

    links: np.ndarray
    strength: np.ndarray
    beyond: np.ndarray
    beyond_strength: np.ndarray
    name: str
    lists: KnnGraph
    within: np.ndarray
    near: np.ndarray
    dim: int


def links_from(chosen: np.ndarray, strength: np.ndarray) -> Iterable[Links]:
    """Yield the link of each face to the one chosen for it, (n,) int32, negative for none, with its strength (n,)."""
    linked = np.flatnonzero(chosen >= 0)
    yield np.stack([linked, chosen[linked]], axis=1).astype(np.int32), strength[linked]


def links_of_lists(lists: KnnGraph, block: int = 65536) -> Iterable[Links]:
    """Yield the entries of neighbor lists as links, with their similarities."""
    for start in range(0, len(lists.ids), block):
        ids = np.asarray(lists.ids[start : start + block])
        faces = np.repeat(np.arange(start, start + len(ids), dtype=np.int32), ids.shape[1])
        yield np.stack([faces, ids.ravel()], axis=1), np.asarray(lists.sims[start : start + block]).ravel()


def similarity_within(vectors: np.ndarray, labels: np.ndarray, block: int = 65536) -> np.ndarray:
    """Return the mean cosine (n,) float32 of each face and the others of its cluster, NaN where there are none.

    vectors: (n, d) float32, rows of any length but 0; labels: (n,) int64, -1 in no cluster. A cluster's unit vectors
    are summed once, in float64 and in the order of the faces, and each face is compared with the sum: all pairs count.
    """
    n = len(labels)
    placed = np.flatnonzero(labels >= 0)
    order = placed[np.argsort(labels[placed], kind="stable")]
    of = labels[order]
    starts = np.flatnonzero(np.concatenate([[True], of[1:] != of[:-1]])) if len(of) else np.empty(0, np.int64)
    ends = np.append(starts[1:], len(order))
    within = np.full(n, np.nan, np.float32)
    several = np.flatnonzero(ends - starts > 1)
    for at in range(0, len(several), block):
        chosen = several[at : at + block]
        _compare_with_sums(vectors, order, starts[chosen], ends[chosen], within)
    return within


@njit(cache=True, nogil=True, parallel=True)
def _compare_with_sums(
    vectors: np.ndarray, order: np.ndarray, starts: np.ndarray, ends: np.ndarray, within: np.ndarray
) -> None:
    """Fill within[order[starts[g]:ends[g]]] of groups g of faces, two or more each."""
    d = vectors.shape[1]
    for group in prange(len(starts)):
        total = np.zeros(d, np.float64)
        norms = np.empty(ends[group] - starts[group], np.float64)
        for at in range(starts[group], ends[group]):
            face = order[at]
            square = 0.0
            for c in range(d):
                square += np.float64(vectors[face, c]) * np.float64(vectors[face, c])
            norm = max(np.sqrt(square), 1e-300)
            norms[at - starts[group]] = norm
            for c in range(d):
                total[c] += vectors[face, c] / norm
        for at in range(starts[group], ends[group]):
            face = order[at]
            both = 0.0
            for c in range(d):
                both += total[c] * vectors[face, c]
            both /= norms[at - starts[group]]
            within[face] = (both - 1.0) / (ends[group] - starts[group] - 1)
