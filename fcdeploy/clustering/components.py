"""Connected components of links by union-find; labels numbered by first appearance."""

import numpy as np

from fcdeploy.graph.kernels import njit


def new_forest(n: int) -> np.ndarray:
    """Return n faces, each a component of its own: parents (n,) int32."""
    return np.arange(n, dtype=np.int32)


@njit(cache=True, nogil=True)
def find_root(parents: np.ndarray, face: int) -> int:
    """Return the face that stands for the component of ``face``."""
    while parents[face] != face:
        parents[face] = parents[parents[face]]  # path halving
        face = parents[face]
    return face


@njit(cache=True, nogil=True)
def join_two(parents: np.ndarray, a: int, b: int) -> None:
    """Join the components of two faces, in place; the smaller root becomes the parent."""
    x = find_root(parents, a)
    y = find_root(parents, b)
    if x < y:
        parents[y] = x
    elif y < x:
        parents[x] = y


@njit(cache=True, nogil=True)
def join(parents: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Join the components of a[t] and b[t] for every t, in place; a, b: (m,) integers.

    The smaller root becomes the parent, so the root of a component is its first face whatever the order of links.
    """
    for t in range(len(a)):
        join_two(parents, a[t], b[t])


@njit(cache=True, nogil=True)
def labels_from_forest(parents: np.ndarray) -> np.ndarray:
    """Return each face's label (n,) int64: components numbered 0, 1, ... by their first face."""
    labels = np.empty(len(parents), dtype=np.int64)
    count = 0
    for face in range(len(parents)):
        root = find_root(parents, face)
        if root == face:
            labels[face] = count
            count += 1
        else:
            labels[face] = labels[root]
    return labels
