"""Sub-graphs round a centre that are seen from its neighbors: L-GCN's, which score the links to them.

nbr(i) is the kNN list of face i without i itself. With hops (k1, k2), the sub-graph of centre c holds its one-hop
neighbors nbr(c)[:k1], nbr(h)[:k2] of each of these h, and c. Two of its faces are connected when one is among the
first ``active`` of the other's nbr. Outputs are wanted at the one-hop neighbors only: a layer of a graph network needs
the faces one connection further out than the layer behind it. So faces stand in the order of their distance from the
one-hop neighbors, and what a layer needs is a beginning of this order.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.hashing import FREE, find_slot, new_table
from fcdeploy.graph.kernels import njit, prange

LAYERS = 4  # as far as distances count: a face further than this from all one-hop neighbors is not seen


@dataclass(frozen=True)
class Subgraphs:
    """The sub-graphs of m centres, each with k1 one-hop neighbors.

    faces: (m, widest) int32, by distance from the one-hop neighbors, which come first, in the order of the list;
    anything behind the last. within: (m, 5) int32, how many faces are at a distance of at most 0 (that is k1), 1, 2,
    3 and 4. connected: (m, most) int32, the places of connected faces, and starts: (m, widest + 1) int32, where those
    of each place begin; of faces at a distance of at most 3.
    """

    centres: np.ndarray
    faces: np.ndarray
    within: np.ndarray
    connected: np.ndarray
    starts: np.ndarray

    @property
    def k1(self) -> int:
        """How many one-hop neighbors a centre has."""
        return int(self.within[0, 0])

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        return self.centres, self.faces, self.within, self.connected, self.starts

    def __getitem__(self, part: slice) -> "Subgraphs":
        return Subgraphs(*(array[part] for array in self.arrays))


@njit(cache=True, nogil=True, parallel=True)
def own_positions(ids: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return where each of ``faces`` (m,) stands in its own list ``ids`` (m, k), (m,) int32.

    Position 0 where it is not in it: the first entry then takes the place of the face, as in the published code.
    """
    positions = np.zeros(len(faces), dtype=np.int32)
    for row in prange(len(faces)):
        for p in range(ids.shape[1]):
            if ids[row, p] == faces[row]:
                positions[row] = p
                break
    return positions


def gather_subgraphs(
    ids: np.ndarray, own: np.ndarray, centres: np.ndarray, hops: tuple[int, int], active: int
) -> Subgraphs:
    """Collect the sub-graphs of ``centres`` (m,) int32.

    ids: (n, k) int32 kNN lists, k > hops[0]; lists are used up to hops[0] neighbors, whatever hops[1] and active are.
    own: (n,) int32, see ``own_positions``.
    """
    k1 = hops[0]
    k2, active = min(hops[1], k1), min(active, k1)
    m, widest = len(centres), k1 * (k2 + 1) + 1
    faces = np.empty((m, widest), dtype=np.int32)
    within = np.empty((m, LAYERS + 1), dtype=np.int32)
    connected = np.empty((m, 2 * active * widest), dtype=np.int32)
    starts = np.empty((m, widest + 1), dtype=np.int32)
    _gather(ids, own, centres, k1, k2, active, faces, within, connected, starts)
    return Subgraphs(centres, faces, within, connected, starts)


@njit(cache=True, nogil=True, parallel=True)
def _gather(
    ids: np.ndarray,
    own: np.ndarray,
    centres: np.ndarray,
    k1: int,
    k2: int,
    active: int,
    faces: np.ndarray,
    within: np.ndarray,
    connected: np.ndarray,
    starts: np.ndarray,
) -> None:
    for row in prange(len(centres)):
        found, where, place = _members(ids, own, centres[row], k1, k2, faces.shape[1])
        near, counts = _connections(ids, own, found, where, place, active)
        order = _by_distance(near, counts, k1, within[row])
        rank = np.full(len(found), -1, dtype=np.int32)
        for at in range(len(order)):
            faces[row, at] = found[order[at]]
            rank[order[at]] = at
        filled = 0
        for at in range(within[row, LAYERS - 1]):
            starts[row, at] = filled
            for t in range(counts[order[at]], counts[order[at] + 1]):
                connected[row, filled] = rank[near[t]]
                filled += 1
        starts[row, within[row, LAYERS - 1]] = filled


@njit(cache=True, nogil=True)
def _members(
    ids: np.ndarray, own: np.ndarray, centre: int, k1: int, k2: int, widest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the faces of a sub-graph, one-hop neighbors first, and a table of where each of them stands."""
    where = new_table(widest)
    place = np.empty(len(where), dtype=np.int32)
    found = np.empty(widest, dtype=np.int32)
    count = 0
    for p in range(k1):
        count = _add(ids[centre, p + (p >= own[centre])], where, place, found, count)
    for p in range(k1):
        for q in range(k2):
            count = _add(ids[found[p], q + (q >= own[found[p]])], where, place, found, count)
    count = _add(centre, where, place, found, count)
    return found[:count], where, place


@njit(cache=True, nogil=True)
def _add(face: int, where: np.ndarray, place: np.ndarray, found: np.ndarray, count: int) -> int:
    slot = find_slot(where, face)
    if where[slot] == FREE:
        where[slot] = face
        place[slot] = count
        found[count] = face
        count += 1
    return count


@njit(cache=True, nogil=True)
def _connections(
    ids: np.ndarray, own: np.ndarray, found: np.ndarray, where: np.ndarray, place: np.ndarray, active: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the connected places of every place, and where those of each begin (one entry more than places)."""
    size = len(found)
    towards = np.full((size, active), -1, dtype=np.int32)  # as a face's own list has them
    starts = np.zeros(size + 1, dtype=np.int32)
    for u in range(size):
        for q in range(active):
            slot = find_slot(where, ids[found[u], q + (q >= own[found[u]])])
            if where[slot] != FREE:
                towards[u, q] = place[slot]
    for u in range(size):
        for v in towards[u]:
            if v >= 0 and (u < v or not _among(u, towards[v])):  # once for a pair in both lists
                starts[u + 1] += 1
                starts[v + 1] += 1
    for u in range(size):
        starts[u + 1] += starts[u]
    free = starts[:size].copy()
    near = np.empty(starts[size], dtype=np.int32)
    for u in range(size):
        for v in towards[u]:
            if v >= 0 and (u < v or not _among(u, towards[v])):
                near[free[u]] = v
                near[free[v]] = u
                free[u] += 1
                free[v] += 1
    return near, starts


@njit(cache=True, nogil=True)
def _among(place: int, places: np.ndarray) -> bool:
    for other in places:  # noqa: SIM110 - any() would not compile
        if other == place:
            return True
    return False


@njit(cache=True, nogil=True)
def _by_distance(near: np.ndarray, starts: np.ndarray, k1: int, within: np.ndarray) -> np.ndarray:
    """Return the places seen from 0..k1-1, nearest first, and fill in how many each distance reaches."""
    order = np.empty(len(starts) - 1, dtype=np.int32)
    seen = np.zeros(len(starts) - 1, dtype=np.bool_)
    order[:k1] = np.arange(k1)
    seen[:k1] = True
    begin, count = 0, k1
    within[0] = k1
    for distance in range(1, LAYERS + 1):
        end = count
        for at in range(begin, end):
            for t in range(starts[order[at]], starts[order[at] + 1]):
                if not seen[near[t]]:
                    seen[near[t]] = True
                    order[count] = near[t]
                    count += 1
        begin = end
        within[distance] = count
    return order[:count]
