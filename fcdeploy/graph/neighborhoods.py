"""The sub-graph that a network sees with a face: which faces are in it, and which of them are connected.

PSE-GCN's neighborhood of centre c with hops (K0, K1), from re-ranked lists r: r[c, 1..K0-1], then r[j, 1..K1] of
each of these j, r[c, 0], and c itself, as one set. Position 0 is skipped whatever face it holds. The centre
always comes first here; the published code leaves it out when it is not among these faces (K0 < k and another
face at position 0), a case in which its own output row does not exist.

Its fixed graph comes from the original kNN lists: faces i and j are connected when one is among the first
``active`` entries of the other (the face itself counts as an entry), by the larger of the two similarities;
every face is connected to itself by 1.
"""

import numpy as np

from fcdeploy.graph.hashing import FREE, find_slot, new_table
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.marks import unmark


@njit(cache=True, nogil=True)
def largest_neighborhood(hops: tuple[int, int]) -> int:
    """Return how many faces a neighborhood can hold at most, its centre included."""
    return (hops[0] - 1) * (hops[1] + 1) + 2


@njit(cache=True, nogil=True, parallel=True)
def gather_neighborhoods(
    ranked: np.ndarray, centres: np.ndarray, first_hop: int, second_hop: int, scratch: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Collect the faces in the neighborhoods of ``centres``.

    ranked: (n, k) int32, k >= first_hop and k > second_hop; centres: (m,) integers; scratch:
    ``new_scratch(n)``. Returns nodes
    (m, largest neighborhood) int32, the centre first and -1 behind the last node, and sizes (m,) int32.
    """
    m = len(centres)
    nodes = np.full((m, largest_neighborhood((first_hop, second_hop))), -1, dtype=np.int32)
    sizes = np.empty(m, dtype=np.int32)
    lanes = len(scratch)
    for lane in prange(lanes):
        marks = scratch[lane]
        for row in range(lane, m, lanes):
            sizes[row] = gather_one(ranked, centres[row], first_hop, second_hop, marks, nodes[row])
            unmark(marks, nodes[row, : sizes[row]])
    return nodes, sizes


@njit(cache=True, nogil=True)
def gather_one(
    ranked: np.ndarray, centre: int, first_hop: int, second_hop: int, marks: np.ndarray, out: np.ndarray
) -> int:
    """Write one neighborhood into ``out`` and return its size.

    marks: (n,) uint8, all zero before; 1 at the neighborhood's faces after, until ``unmark``.
    """
    marks[centre] = 1
    out[0] = centre
    count = 1
    for p in range(first_hop):  # position 0 joins without its own neighbors
        face = ranked[centre, p]
        if marks[face] == 0:
            marks[face] = 1
            out[count] = face
            count += 1
    for p in range(1, first_hop):
        theirs = ranked[ranked[centre, p]]
        for q in range(1, second_hop + 1):
            face = theirs[q]
            if marks[face] == 0:
                marks[face] = 1
                out[count] = face
                count += 1
    return count


@njit(cache=True, nogil=True, parallel=True)
def connect_neighborhoods(
    nodes: np.ndarray, sizes: np.ndarray, ids: np.ndarray, sims: np.ndarray, active: int, out: np.ndarray
) -> None:
    """Write the fixed graph of each neighborhood as a dense matrix.

    nodes: (m, >= width) int32 and sizes: (m,) as ``gather_neighborhoods`` gives them; ids: (n, k) int32 and
    sims: (n, k) float32 original kNN lists, k >= active. out: (m, width, width) float32, overwritten: symmetric,
    1 on the diagonal of real nodes, 0 in padding.
    """
    for row in prange(len(nodes)):
        size = sizes[row]
        out[row] = 0
        where = new_table(size)
        position = np.empty(len(where), dtype=np.int32)
        for u in range(size):
            slot = find_slot(where, nodes[row, u])
            where[slot] = nodes[row, u]
            position[slot] = u
        for u in range(size):
            face = nodes[row, u]
            out[row, u, u] = 1
            for q in range(active):
                slot = find_slot(where, ids[face, q])
                if where[slot] == FREE or ids[face, q] == face:
                    continue
                v = position[slot]
                if sims[face, q] > out[row, u, v]:
                    out[row, u, v] = sims[face, q]
                    out[row, v, u] = sims[face, q]
