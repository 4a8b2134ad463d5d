"""Weighted sums over a face's own neighborhood: the sparse steps of layer-wise inference, one row a face.

Both kernels build the neighborhood of each face on the fly (see ``neighborhoods``), weight its members and add up
their rows of a table; nothing of the shape (faces, members, width) is ever made. Tables are float32, or the bits of
float16 (see ``halves``); sums are float32 either way.
"""

import numpy as np

from fcdeploy.graph.halves import as_float32
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.marks import unmark
from fcdeploy.graph.neighborhoods import gather_one, largest_neighborhood

SUM_EPS = np.float32(1e-5)  # in every row sum of the published network
THRESHOLD = np.float32(0.5)  # of its re-drawn graphs


@njit(cache=True, nogil=True, parallel=True)
def sum_connected(
    ranked: np.ndarray,
    ids: np.ndarray,
    sims: np.ndarray,
    faces: np.ndarray,
    hops: tuple[int, int],
    active: int,
    times: int,
    table: np.ndarray,
    scratch: np.ndarray,
) -> np.ndarray:
    """Add up the rows of those members that the fixed graph connects to each of ``faces`` (m,) int32.

    ranked: (n, k) int32 re-ranked lists; ids (n, k) int32 and sims (n, k) float32: original lists; table: (n, h)
    float32 or uint16; scratch: ``new_scratch(n)``. A weight is the edge's, divided by the sum of the face's edges plus
    1e-5, and that ``times`` times over (PSE-GCN normalises its fixed graph once for the first block and again for
    the second). Returns (m, h) float32.
    """
    cap = largest_neighborhood(hops)
    sums = np.zeros((len(faces), table.shape[1]), dtype=np.float32)
    lanes = len(scratch)
    for lane in prange(lanes):
        marks = scratch[lane]
        nodes = np.empty(cap, dtype=np.int32)
        near = np.empty(cap + active, dtype=np.int32)
        weights = np.empty(cap + active, dtype=np.float32)
        for row in range(lane, len(faces), lanes):
            size = gather_one(ranked, faces[row], hops[0], hops[1], marks, nodes)
            count = _connect_one(ids, sims, faces[row], active, nodes[:size], marks, near, weights)
            unmark(marks, nodes[:size])
            for _ in range(times):
                total = SUM_EPS
                for t in range(count):
                    total += weights[t]
                for t in range(count):
                    weights[t] /= total
            for t in range(count):
                _add_row(sums[row], weights[t], table[near[t]])
    return sums


@njit(cache=True, nogil=True)
def _connect_one(
    ids: np.ndarray,
    sims: np.ndarray,
    face: int,
    active: int,
    nodes: np.ndarray,
    marks: np.ndarray,
    near: np.ndarray,
    weights: np.ndarray,
) -> int:
    """Write whom the fixed graph connects to a face in its neighborhood, and how strongly; return how many."""
    near[0] = face
    weights[0] = 1
    count = 1
    for q in range(active):
        other = ids[face, q]
        if other != face and marks[other] and sims[face, q] > 0:
            near[count] = other
            weights[count] = sims[face, q]
            count += 1
    own = count
    for u in range(1, len(nodes)):
        other = nodes[u]
        for q in range(active):
            if ids[other, q] != face or not sims[other, q] > 0:
                continue
            at = 1
            while at < own and near[at] != other:
                at += 1
            if at < own:
                weights[at] = max(weights[at], sims[other, q])
            else:
                near[count] = other
                weights[count] = sims[other, q]
                count += 1
    return count


@njit(cache=True, nogil=True, fastmath={"contract"})
def _add_row(out: np.ndarray, weight: np.float32, values: np.ndarray) -> None:
    for c in range(len(out)):
        out[c] += weight * as_float32(values[c])


@njit(cache=True, nogil=True, parallel=True)
def sum_similar(
    ranked: np.ndarray,
    faces: np.ndarray,
    hops: tuple[int, int],
    directions: np.ndarray,
    table: np.ndarray,
    scratch: np.ndarray,
) -> np.ndarray:
    """Add up the rows of those members that are similar to each of ``faces`` (m,) int32, weighted by similarity.

    ranked: (n, k) int32 re-ranked lists; directions: (n, h) unit rows, between which the similarity is taken,
    and table: (n, h), float32 or uint16; scratch: ``new_scratch(n)``. Members with a similarity of at least 0.5 count,
    the face itself among them; the weights are divided by their sum plus 1e-5. Returns (m, h) float32.
    """
    cap = largest_neighborhood(hops)
    sums = np.zeros((len(faces), table.shape[1]), dtype=np.float32)
    lanes = len(scratch)
    for lane in prange(lanes):
        marks = scratch[lane]
        nodes = np.empty(cap, dtype=np.int32)
        for row in range(lane, len(faces), lanes):
            size = gather_one(ranked, faces[row], hops[0], hops[1], marks, nodes)
            unmark(marks, nodes[:size])
            own = directions[faces[row]]
            total = SUM_EPS
            for u in range(size):
                similarity = _dot(own, directions[nodes[u]])
                if similarity >= THRESHOLD:
                    total += similarity
                    _add_row(sums[row], similarity, table[nodes[u]])
            for c in range(table.shape[1]):
                sums[row, c] /= total
    return sums


@njit(cache=True, nogil=True, fastmath={"reassoc", "contract"})
def _dot(a: np.ndarray, b: np.ndarray) -> np.float32:
    total = np.float32(0)
    for c in range(len(a)):
        total += as_float32(a[c]) * as_float32(b[c])
    return total
