"""Links, strongest first, as a dendrogram: which faces each link brings together."""

from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit


@dataclass(frozen=True)
class Dendrogram:
    """Faces in an order in which every link joins two runs next to each other.

    order: (n,) int32; of link t, begin, middle, end (f,) int64: it joins order[begin:middle] and order[middle:end].
    strength: (f,) float32, as given.
    """

    order: np.ndarray
    begin: np.ndarray
    middle: np.ndarray
    end: np.ndarray
    strength: np.ndarray

    @property
    def pairs(self) -> np.ndarray:
        """How many pairs of faces each link brings together, (f,) int64."""
        return (self.middle - self.begin) * (self.end - self.middle)


def dendrogram_of(n: int, links: np.ndarray, strength: np.ndarray) -> Dendrogram:
    """Join n faces link by link: links (f, 2) int32, a forest, in the order in which they are taken."""
    order, begin, middle, end = _arrange(n, links)
    return Dendrogram(order, begin, middle, end, strength)


@njit(cache=True, nogil=True)
def _arrange(n: int, links: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    f = len(links)
    parent = np.full(n + f, -1, np.int64)  # of faces and, behind them, of links
    top = np.arange(n + f)  # shortcuts to the last link above
    size = np.ones(n + f, np.int64)
    first, second = np.empty(f, np.int64), np.empty(f, np.int64)
    for t in range(f):
        ends = (links[t, 0], links[t, 1])
        found = np.empty(2, np.int64)
        for side in range(2):
            node = np.int64(ends[side])
            while top[node] != node:
                top[node] = top[top[node]]
                node = top[node]
            found[side] = node
        first[t], second[t] = found[0], found[1]
        for side in range(2):
            parent[found[side]] = n + t
            top[found[side]] = n + t
        size[n + t] = size[found[0]] + size[found[1]]
    begin = np.empty(n + f, np.int64)
    free = 0
    for above in range(n + f - 1, -1, -1):
        if parent[above] < 0:
            begin[above] = free
            free += size[above]
        if above >= n:
            begin[first[above - n]] = begin[above]
            begin[second[above - n]] = begin[above] + size[first[above - n]]
    order = np.empty(n, np.int32)
    for face in range(n):
        order[begin[face]] = face
    starts = begin[n:].copy()
    return order, starts, starts + size[first], starts + size[n:]
