"""Re-ranking on a GPU: the lists, their sets and what becomes of them are those of ``graph.rerank``, bit for bit.

Everything that a face looks up lies in device memory: the lists by place, R* of all faces, and their vectors.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph.best_cuda import BLOCKS, KEY, THREADS
from fcdeploy.graph.cell_search_cuda import kept_rows, rows_on_device
from fcdeploy.graph.cuda import (
    DeviceArray,
    DeviceArrays,
    device_budget,
    download,
    import_cupy,
    kernel,
    on_device,
    upload,
)
from fcdeploy.graph.marks import new_counters
from fcdeploy.graph.products_cuda import FOUR, padded
from fcdeploy.graph.rerank import CANDIDATE_REACH, Ragged, largest_set, rank_candidates, sets_and_holders
from fcdeploy.packages import tell_if_broken

FILE = "rerank.cu"
SHARED_BYTES = 48 << 10  # that a block has on every GPU
MOST_MEMBERS = 4095  # of a set, with which overlaps that differ have different keys
MEMBERS = 4  # of a set, in lists of k, that there has to be room for; generated faces have 2.4
CHUNK = 1 << 16  # faces of the sets built at a time


@dataclass(frozen=True)
class HostRanking:
    """Re-ranks lists by place on the CPU, with all sets in memory; see ``rank_candidates``."""

    ids: np.ndarray
    names: np.ndarray
    vectors: np.ndarray
    sets: Ragged
    holders: Ragged
    counters: np.ndarray

    def rank(self, places: np.ndarray, sims: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the k most similar candidates of the faces at ``places`` (m,) int32, as places, and the overlaps."""
        return rank_candidates(
            self.ids, sims, self.vectors, self.names, self.sets, self.holders, places, self.counters
        )


@dataclass(frozen=True)
class DeviceRanking:
    """Re-ranks lists by place on the device: all arrays lie there, see ``rank_candidates``. largest: set."""

    cupy: ModuleType
    ids: DeviceArray
    names: DeviceArray
    vectors: DeviceArray
    starts: DeviceArray
    counts: DeviceArray
    members: DeviceArray
    largest: int

    def rank(self, places: np.ndarray, sims: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the k most similar candidates of the faces at ``places`` (m,) int32, as places, and the overlaps."""
        cupy, m, k = self.cupy, len(places), int(self.ids.shape[1])
        ranked, overlaps = cupy.empty((m, k), np.int32), cupy.empty((m, k), np.float64)
        room = places_for(k)
        slots = ranking_slots(k, self.largest)
        arguments = (
            *(self.ids, np.int32(k), upload(cupy, sims, np.float32)),
            *(self.vectors, np.int32(self.vectors.shape[1])),
            *(self.names, self.starts, self.counts, self.members, upload(cupy, places, np.int32)),
            *(np.int32(room), np.int32(slots), ranked, overlaps),
        )
        _launch(cupy, "rank_candidates", m, arguments, shared=ranking_bytes(k, slots))
        return download(ranked), download(overlaps)


Ranking = HostRanking | DeviceRanking


def reranks_on_device(
    n: int, k: int, d: int, *, gpu: bool, vram: int, resident: DeviceArrays | None = None
) -> bool:
    """Tell whether lists (n, k) of vectors (n, d) are re-ranked on the GPU: CuPy is there, and has room for all."""
    if not gpu or expanding_bytes(k) > SHARED_BYTES or ranking_bytes(k, ranking_slots(k, 0)) > SHARED_BYTES:
        return False
    try:
        cupy = import_cupy()
    except MissingDependencyError as error:
        tell_if_broken(error, "lists are re-ranked on the CPU")
        return False
    # Lists by face beside those by place, for a moment; then marks, sets, and what says where they are.
    return n * (9 * k + 4 * MEMBERS * k + 20 + FOUR * padded(d, FOUR)) <= device_budget(cupy, vram, resident)


@contextlib.contextmanager
def ranking_on_device(
    lists: np.ndarray,
    k: int,
    order: np.ndarray,
    place: np.ndarray,
    vectors: np.ndarray,
    vram: int,
    resident: DeviceArrays | None = None,
) -> Iterator[Ranking]:
    """Open a ranking of ``lists`` (n, k or more) int32 by face; order, place (n,): of the faces.

    resident: what stays on the device from stage to stage, where the vectors may be. Sets that after all do not fit
    are held in memory and ranked on the CPU.
    """
    cupy = import_cupy()
    with on_device(cupy, "re-ranking"):
        device = _on_device(cupy, lists, k, order, place, vectors, vram, resident)
        yield device or _on_host(lists, k, order, place, vectors)


def _on_device(
    cupy: ModuleType,
    lists: np.ndarray,
    k: int,
    order: np.ndarray,
    place: np.ndarray,
    vectors: np.ndarray,
    vram: int,
    resident: DeviceArrays | None,
) -> DeviceRanking | None:
    n, kept = len(lists), kept_rows(vectors, resident)
    budget = device_budget(cupy, vram, resident)
    names = upload(cupy, order, np.int32)
    ids, where = cupy.empty((n, k), np.int32), upload(cupy, place, np.int32)
    by_face = upload(cupy, lists[:, :k], np.int32)
    arguments = (by_face, np.int32(k), names, where, ids, np.int32(k), np.int64(n * k))
    _launch(cupy, "lists_by_place", min(BLOCKS, -(-n * k // THREADS)), arguments)
    del by_face, where
    marks, slots = cupy.empty((n, k), np.uint8), slots_above(most_members(k))
    _launch(cupy, "mark_mutual", n, (ids, np.int32(k), marks))
    counts = cupy.empty((n,), np.int32)
    nothing = np.uint64(0)

    def expand(start: int, starts: object, members: object) -> None:
        stop = min(start + CHUNK, n)
        arguments = (
            *(ids, marks, np.int32(k), np.int32(start), np.int32(slots), counts[start:stop], starts, members),
        )
        _launch(cupy, "expand_reciprocal", stop - start, arguments, shared=expanding_bytes(k))

    for start in range(0, n, CHUNK):
        expand(start, nothing, nothing)
    sizes = download(counts)
    total, largest = int(sizes.sum(dtype=np.int64)), int(sizes.max())
    taken = n * (5 * k + 16 + FOUR * padded(vectors.shape[1], FOUR)) + 4 * total
    if largest > MOST_MEMBERS or ranking_bytes(k, ranking_slots(k, largest)) > SHARED_BYTES or taken > budget:
        return None
    starts = upload(cupy, np.cumsum(sizes, dtype=np.int64) - sizes, np.int64)
    members = cupy.empty((total,), np.int32)
    for start in range(0, n, CHUNK):
        expand(start, starts, members)
    there = kept if kept is not None else rows_on_device(cupy, vectors)
    return DeviceRanking(cupy, ids, names, there, starts, counts, members, largest)


def _on_host(
    lists: np.ndarray, k: int, order: np.ndarray, place: np.ndarray, vectors: np.ndarray
) -> HostRanking:
    ids = place[lists[order][:, :k]]
    counters = new_counters(len(lists), largest_set(k))
    return HostRanking(ids, order, vectors, *sets_and_holders(ids), counters)


def candidates_of(k: int) -> int:
    """Return how many candidates a face has at most."""
    return k * (min(CANDIDATE_REACH, k) + 1)


def most_members(k: int) -> int:
    """Return how many members R* has at most."""
    return k * (k // 2 + 1)


def slots_above(count: int) -> int:
    """Return the size of a hash table for ``count`` faces: a power of two above it."""
    return 1 << count.bit_length()


def ranking_slots(k: int, largest: int) -> int:
    """Return the size of the table of ``rank_candidates`` where sets have at most ``largest`` members."""
    return slots_above(max(largest, candidates_of(k)) * 5 // 4)


def places_for(k: int) -> int:
    """Return the places of a block's candidates: a power of two."""
    return 1 << (candidates_of(k) - 1).bit_length()


def expanding_bytes(k: int) -> int:
    """Return the shared memory of ``expand_reciprocal``: two numbers per slot, two per neighbor."""
    return 8 * (slots_above(most_members(k)) + k)


def ranking_bytes(k: int, slots: int) -> int:
    """Return the shared memory of ``rank_candidates``: a key and three numbers per place, one per slot."""
    return places_for(k) * (KEY + 12) + 4 * slots


def _launch(
    cupy: ModuleType, name: str, blocks: int, arguments: tuple[object, ...], *, shared: int = 0
) -> None:
    if blocks:
        kernel(cupy, name, FILE)((blocks,), (THREADS,), arguments, shared_mem=shared)
