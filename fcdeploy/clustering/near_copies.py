"""Near-copies of a face that fill neighbor lists: an image that was stored, compressed or embedded again and again.

A list that holds little but copies of its face says nothing of the person's other photographs, which then come apart
from it. Faces of ordinary data have no such lists: among 20,376 faces, shots of photographs that were turned, shrunk
and compressed again, the nearest neighbor is never more similar than .9931, the second never than .9713 and the tenth
never than .8993. Hence SIMILARITY.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.components import find_root, join_two, new_forest
from fcdeploy.graph.kernels import njit
from fcdeploy.graph.knn import KnnGraph

SIMILARITY = 0.99  # of near-copies, where faces of different people have nothing in common
PAIRS = 4096  # random ones, which tell what faces of different people have in common
UNLIKE = 0.01  # quantile of their similarities that counts as that
BLOCK = 65536


@dataclass(frozen=True)
class NearCopies:
    """leader: (n,) int32, the face that each one is a near-copy of, mostly itself; filled: how many lists were so."""

    leader: np.ndarray
    filled: int


def find_near_copies(vectors: np.ndarray, knn: KnnGraph) -> NearCopies | None:
    """Find the near-copies that fill half of a list or more; None where there is no such list.

    vectors: (n, d) float32, what the networks take; knn: nearest neighbors by cosine similarity, sorted, each list
    behind the face itself. Near-copies hang together over the lists that they fill. The first face of those that do is
    the leader of all that are as similar to it as near-copies are; then the first of those that are left, and so on,
    so that no chain leads from face to face. No block size and no number of threads changes the outcome.
    """
    n, k = knn.ids.shape
    half = max(1, k // 2)
    if k < 2 or k >= n:  # a list of all faces leaves nobody out
        return None
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    if not any((knn.sims[block, half] >= SIMILARITY).any() for block in blocks):
        return None
    least = near_copy_similarity(vectors)
    forest, filled = new_forest(n), 0
    for block in blocks:
        ids, sims = np.asarray(knn.ids[block]), np.asarray(knn.sims[block])
        filled += _join_filled(vectors, ids, sims, block.start, half, least, forest)
    if not filled:
        return None
    leader = np.arange(n, dtype=np.int32)
    _lead(vectors, *_groups(forest), least, leader)
    return NearCopies(leader, filled)


def near_copy_similarity(vectors: np.ndarray) -> float:
    """Return how similar near-copies are at least: SIMILARITY, or more where all faces are alike.

    vectors: (n, d). Embeddings that were not centred have much in common: what is left between that and 1 counts.
    """
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(vectors), (2, PAIRS))
    one, other = (vectors[rows].astype(np.float64) for rows in pairs[:, pairs[0] != pairs[1]])
    cosines = (one * other).sum(axis=1) / np.sqrt((one**2).sum(axis=1) * (other**2).sum(axis=1))
    common = max(0.0, float(np.quantile(cosines, UNLIKE)))
    return 1 - (1 - SIMILARITY) * (1 - common)


@njit(cache=True, nogil=True)
def _near(vectors: np.ndarray, a: int, b: int, least: float) -> bool:
    """Tell whether two rows have one direction, and one length, as near-copies do."""
    both, one, other = 0.0, 0.0, 0.0
    for c in range(vectors.shape[1]):
        x, y = np.float64(vectors[a, c]), np.float64(vectors[b, c])
        both += x * y
        one += x * x
        other += y * y
    return bool(both >= least * np.sqrt(one * other) and min(one, other) >= least * least * max(one, other))


@njit(cache=True, nogil=True)
def _join_filled(
    vectors: np.ndarray,
    ids: np.ndarray,
    sims: np.ndarray,
    start: int,
    half: int,
    least: float,
    forest: np.ndarray,
) -> int:
    """Join faces with the near-copies that fill their lists, in place; returns how many lists are filled."""
    filled = 0
    found = np.empty(ids.shape[1], np.int32)
    for row in range(ids.shape[0]):
        if sims[row, half] < SIMILARITY:
            continue
        count = 0
        for p in range(ids.shape[1]):
            if sims[row, p] < SIMILARITY:
                break
            other = ids[row, p]
            if other != start + row and _near(vectors, start + row, other, least):
                found[count] = other
                count += 1
        if count >= half:
            filled += 1
            for p in range(count):
                join_two(forest, start + row, found[p])
    return filled


@njit(cache=True, nogil=True)
def _groups(forest: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the faces that hang together with others, ascending in each group, and where groups start, and end."""
    n = len(forest)
    sizes = np.zeros(n, np.int64)
    for face in range(n):
        sizes[find_root(forest, face)] += 1
    at = np.empty(n, np.int64)
    count, total = 0, 0
    for root in range(n):
        at[root] = total
        if sizes[root] > 1:
            count += 1
            total += sizes[root]
    members, starts = np.empty(total, np.int32), np.empty(count + 1, np.int64)
    starts[count] = total
    count = 0
    for face in range(n):
        root = find_root(forest, face)
        if sizes[root] < 2:
            continue
        if face == root:  # the first of its group
            starts[count] = at[root]
            count += 1
        members[at[root]] = face
        at[root] += 1
    return members, starts


@njit(cache=True, nogil=True)
def _lead(
    vectors: np.ndarray, members: np.ndarray, starts: np.ndarray, least: float, leader: np.ndarray
) -> None:
    """Give each member of a group its leader: the first leader it is near to, else itself."""
    for group in range(len(starts) - 1):
        leaders = np.empty(starts[group + 1] - starts[group], np.int32)
        count = 0
        for at in range(starts[group], starts[group + 1]):
            face = members[at]
            for p in range(count):
                if _near(vectors, leaders[p], face, least):
                    leader[face] = leaders[p]
                    break
            else:
                leaders[count] = face
                count += 1
