"""The sums of ``aggregation`` on a GPU: the same neighborhoods and weights, added in another order."""

import contextlib
from collections.abc import Iterator
from types import ModuleType
from typing import Protocol

import numpy as np

from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph import aggregation
from fcdeploy.graph.cuda import (
    DeviceArray,
    DeviceArrays,
    device_budget,
    download,
    free_all,
    import_cupy,
    kernel,
    upload,
)
from fcdeploy.graph.neighborhoods import largest_neighborhood
from fcdeploy.packages import tell_if_broken

THREADS = 128  # a block, which does one face; a multiple of 32
SHARED_BYTES = 48 << 10  # that a block has on every GPU
SHARE = 2  # of the free device memory, the half is for tables


class Sums(Protocol):
    """The sums of layer-wise inference; see ``aggregation``, which is one."""

    def sum_connected(
        self,
        ranked: np.ndarray,
        ids: np.ndarray,
        sims: np.ndarray,
        faces: np.ndarray,
        hops: tuple[int, int],
        active: int,
        times: int,
        table: np.ndarray,
        scratch: np.ndarray,
    ) -> np.ndarray: ...

    def sum_similar(
        self,
        ranked: np.ndarray,
        faces: np.ndarray,
        hops: tuple[int, int],
        directions: np.ndarray,
        table: np.ndarray,
        scratch: np.ndarray,
    ) -> np.ndarray: ...


@contextlib.contextmanager
def sums_on(*, gpu: bool, vram: int = 0, resident: DeviceArrays | None = None) -> Iterator[Sums]:
    """Open an object with the functions ``sum_connected`` and ``sum_similar``.

    It is a ``DeviceSums`` if ``gpu`` is set and CuPy is installed, else the module ``aggregation``. Device memory is
    freed when the block ends. resident: what lies there already.
    """
    try:
        sums = DeviceSums(vram, resident) if gpu else None
    except MissingDependencyError as error:  # ONNX Runtime's CUDA provider works without CuPy
        tell_if_broken(error, "sums are made on the CPU")
        sums = None
    if sums is None:
        yield aggregation
        return
    try:
        yield sums
    finally:
        sums.close()


class DeviceSums:
    """Sums on the GPU, with lists and tables kept in device memory; what does not fit is summed on the CPU.

    vram: device memory budget in bytes, 0 for all that is free; resident: what takes some of it already. Arguments and
    results are those of ``aggregation``. Blocks of about 4,096 faces per call work well.
    """

    def __init__(self, vram: int = 0, resident: DeviceArrays | None = None) -> None:
        self._cupy = import_cupy()
        self._arrays = DeviceArrays(self._cupy, device_budget(self._cupy, vram, resident) // SHARE)

    def sum_connected(
        self,
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
        """Add up the rows of those members that the fixed graph connects to each of ``faces``."""
        slots = slots_for(hops)
        held = self._arrays.get(ranked, ids, sims, table) if slots else None
        if held is None:
            return aggregation.sum_connected(ranked, ids, sims, faces, hops, active, times, table, scratch)
        out = self._out(faces, table)
        on_device, near, weights, rows = held
        launch_sum_connected(
            self._cupy, on_device, near, weights, rows, self._faces(faces), hops, active, times, out
        )
        return download(out)

    def sum_similar(
        self,
        ranked: np.ndarray,
        faces: np.ndarray,
        hops: tuple[int, int],
        directions: np.ndarray,
        table: np.ndarray,
        scratch: np.ndarray,
    ) -> np.ndarray:
        """Add up the rows of those members that are similar to each of ``faces``, weighted by similarity."""
        slots = slots_for(hops) if directions.dtype == table.dtype else 0
        held = self._arrays.get(ranked, directions, table) if slots else None
        if held is None:
            return aggregation.sum_similar(ranked, faces, hops, directions, table, scratch)
        out = self._out(faces, table)
        on_device, across, rows = held
        launch_sum_similar(self._cupy, on_device, across, rows, self._faces(faces), hops, out)
        return download(out)

    def close(self) -> None:
        """Free the device memory."""
        self._arrays.clear()
        free_all(self._cupy)

    def _faces(self, faces: np.ndarray) -> DeviceArray:
        return upload(self._cupy, faces, np.int32)

    def _out(self, faces: np.ndarray, table: np.ndarray) -> DeviceArray:
        return self._cupy.empty((len(faces), table.shape[1]), np.float32)


def launch_sum_connected(
    cupy: ModuleType,
    ranked: DeviceArray,
    ids: DeviceArray,
    sims: DeviceArray,
    table: DeviceArray,
    faces: DeviceArray,
    hops: tuple[int, int],
    active: int,
    times: int,
    out: DeviceArray,
) -> None:
    """Put ``DeviceSums.sum_connected`` on the current stream; all arrays are on the device."""
    slots = slots_for(hops)
    arguments = (
        *(ranked, np.int32(ranked.shape[1]), ids, sims, np.int32(ids.shape[1]), np.int32(active)),
        *(faces, np.int32(hops[0]), np.int32(hops[1]), np.int32(slots), np.int32(times)),
        *(aggregation.SUM_EPS, table, np.int32(table.shape[1]), out),
    )
    _launch(cupy, f"sum_connected_{_kind(table)}", len_of(faces), hops, slots, arguments)


def launch_sum_similar(
    cupy: ModuleType,
    ranked: DeviceArray,
    directions: DeviceArray,
    table: DeviceArray,
    faces: DeviceArray,
    hops: tuple[int, int],
    out: DeviceArray,
) -> None:
    """Put ``DeviceSums.sum_similar`` on the current stream; all arrays are on the device."""
    slots = slots_for(hops)
    arguments = (
        *(ranked, np.int32(ranked.shape[1]), faces, np.int32(hops[0]), np.int32(hops[1])),
        *(np.int32(slots), aggregation.THRESHOLD, aggregation.SUM_EPS),
        *(directions, np.int32(directions.shape[1]), table, np.int32(table.shape[1]), out),
    )
    _launch(cupy, f"sum_similar_{_kind(table)}", len_of(faces), hops, slots, arguments)


def _launch(
    cupy: ModuleType, name: str, faces: int, hops: tuple[int, int], slots: int, arguments: tuple[object, ...]
) -> None:
    if faces:
        kernel(cupy, name)((faces,), (THREADS,), arguments, shared_mem=_shared_bytes(hops, slots))


def len_of(array: DeviceArray) -> int:
    """Return how many rows an array on the device has."""
    return int(array.shape[0])


def slots_for(hops: tuple[int, int]) -> int:
    """Return the size of a thread block's hash table; 0 if a neighborhood does not fit into shared memory."""
    slots = 1 << int(largest_neighborhood(hops)).bit_length()
    return slots if _shared_bytes(hops, slots) <= SHARED_BYTES else 0


def _shared_bytes(hops: tuple[int, int], slots: int) -> int:
    return 8 * (int(largest_neighborhood(hops)) + slots)


def _kind(table: DeviceArray) -> str:
    return "float16" if table.dtype == np.uint16 else "float32"
