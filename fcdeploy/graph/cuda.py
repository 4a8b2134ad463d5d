"""What kernels on a GPU need: CuPy, our own CUDA source compiled, and copies of arrays that stay on the device."""

import contextlib
import re
import sys
import threading
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from importlib import resources
from types import ModuleType, TracebackType
from typing import Protocol, Self

import numpy as np

from fcdeploy.errors import FcdeployError, MissingDependencyError
from fcdeploy.packages import import_package


class Memory(Protocol):
    """Where a ``DeviceArray`` lies."""

    ptr: int


class DeviceArray(Protocol):
    """What is used here of CuPy's arrays; CuPy has no types."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    @property
    def size(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def data(self) -> Memory: ...

    def __len__(self) -> int: ...

    def __getitem__(self, at: object) -> Self: ...

    def __setitem__(self, at: object, values: object) -> None: ...

    def get(self) -> np.ndarray: ...

    def set(self, array: np.ndarray) -> None: ...


class RawModule(Protocol):
    """Compiled kernels; CuPy's, too."""

    def get_function(self, name: str) -> Callable[..., None]: ...


class Stream(Protocol):
    """Takes what is computed inside a ``with``, in order; CuPy's, too."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def synchronize(self) -> None: ...


Key = tuple[int, tuple[int, ...], tuple[int, ...], str]  # address, shape, strides, dtype
UPLOAD_ROWS = 65536
RESIDENT_SHARE = 8  # of the device memory, for arrays that stay from stage to stage
_compiling = threading.Lock()
_modules: dict[tuple[int, str], RawModule] = {}


def import_cupy() -> ModuleType:
    """Import CuPy, which running on a GPU needs; raises MissingDependencyError, see ``import_package``."""
    return import_package("cupy", "CuPy, which running on a GPU needs,", "pip install 'fcdeploy[gpu]'")


def kernel(cupy: ModuleType, name: str, file: str = "kernels.cu") -> Callable[..., None]:
    """Return a function of ``file``, which the CUDA driver's compiler takes once a process."""
    with _compiling:
        if (id(cupy), file) not in _modules:
            _modules[id(cupy), file] = cupy.RawModule(code=source_of(file))
        return _modules[id(cupy), file].get_function(name)


def source_of(file: str) -> str:
    """Return the source of kernels with what it includes in its place: the driver's compiler sees no folders."""
    folder = resources.files("fcdeploy.graph")
    text = (folder / file).read_text(encoding="utf-8")
    return re.sub(r'#include "(.*)"', lambda line: source_of(line[1]), text)


@dataclass
class Copied:
    """How many bytes this process has copied to the device and from it."""

    there: int = 0
    back: int = 0


copied = Copied()


def upload(cupy: ModuleType, array: np.ndarray, dtype: type[np.generic] | None = None) -> DeviceArray:
    """Return a copy of ``array`` on the device, on the current stream."""
    array = np.ascontiguousarray(array, dtype)
    copy: DeviceArray = cupy.empty(array.shape, array.dtype)
    if array.size:
        copy.set(array)
    copied.there += array.nbytes
    return copy


def download(array: DeviceArray) -> np.ndarray:
    """Return a copy of ``array`` on the host, when the current stream has computed it."""
    copied.back += int(array.nbytes)
    return array.get()


@contextlib.contextmanager
def device_errors(cupy: ModuleType, what: str) -> Iterator[None]:
    """Raise FcdeployError, which says that ``what`` failed, where CUDA does in the block, or its memory runs out."""
    try:
        yield
    except cupy.cuda.memory.OutOfMemoryError as error:
        raise FcdeployError(
            f"{what}: the GPU memory is full; end other programs that use the GPU, give a smaller --vram, or --device "
            "cpu."
        ) from error
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise FcdeployError(f"{what}: CUDA failed ({error}).") from error


@contextlib.contextmanager
def on_device(cupy: ModuleType, what: str) -> Iterator[None]:
    """Give memory that nobody holds back to the device when the block ends; raises what ``device_errors`` does."""
    try:
        with device_errors(cupy, what):
            yield
    finally:
        free_all(cupy)


def free_all(cupy: ModuleType) -> None:
    """Give memory that nobody holds any more back to the device."""
    cupy.get_default_memory_pool().free_all_blocks()


def device_budget(cupy: ModuleType, vram: int, resident: "DeviceArrays | None" = None) -> int:
    """Return how many bytes of device memory may be taken: of ``vram``, or most of what is free where that is 0.

    resident: what lies there already.
    """
    if vram:
        return vram - (resident.nbytes if resident is not None else 0)
    free_all(cupy)
    return int(cupy.cuda.runtime.memGetInfo()[0]) * 9 // 10


def resident_arrays(*, gpu: bool, vram: int) -> "DeviceArrays | None":
    """Return what keeps copies of arrays on the GPU from stage to stage; None without ``gpu`` or CuPy.

    They take RESIDENT_SHARE of the memory at most.
    """
    try:
        cupy = import_cupy() if gpu else None
    except MissingDependencyError:  # stages say so themselves
        return None
    if cupy is None:
        return None
    return DeviceArrays(cupy, device_budget(cupy, vram) // RESIDENT_SHARE)


def release_device_memory() -> None:
    """Give memory that CuPy keeps for later, and nobody holds, back to the device: others ask for theirs there."""
    if "cupy" in sys.modules:
        free_all(sys.modules["cupy"])


class DeviceArrays:
    """Copies of host arrays on the device, made at first use or there, kept while they are alive and there is room.

    budget: bytes that all of them may take together. wait: is called before one is let go, to wait for whatever may
    still be reading it.
    """

    def __init__(self, cupy: ModuleType, budget: int, wait: Callable[[], None] = lambda: None) -> None:
        self._cupy = cupy
        self._budget = budget
        self._wait = wait
        # In the order of use, the last used last; an array is known by its memory, which views of it share.
        self._held: dict[Key, tuple[weakref.ref[np.ndarray], DeviceArray]] = {}

    def get(self, *arrays: np.ndarray) -> list[DeviceArray] | None:
        """Return the copies of ``arrays``, which must not change; None when they do not fit together."""
        self._drop_orphans()
        wanted = {_key(array): array for array in arrays}
        if sum(array.nbytes for array in wanted.values()) > self._budget:
            return None
        for key, array in wanted.items():
            entry = self._held.pop(key, None)
            if entry is None:
                self._make_room(array.nbytes, wanted)
                entry = (weakref.ref(_owner(array)), self._upload(array))
            self._held[key] = entry
        return [self._held[_key(array)][1] for array in arrays]

    def fits(self, size: int) -> bool:
        """Tell whether a copy of ``size`` bytes can be kept, if others go."""
        return size <= self._budget

    def adopt(self, array: np.ndarray, copy: DeviceArray) -> None:
        """Keep ``copy``, which was made on the device and is complete, as that of ``array``, if it fits."""
        assert (copy.shape, copy.dtype) == (array.shape, array.dtype)
        if not self.fits(array.nbytes):
            return
        self._drop_orphans()
        key = _key(array)
        self._held.pop(key, None)
        self._make_room(array.nbytes, (key,))
        self._held[key] = (weakref.ref(_owner(array)), copy)

    @property
    def nbytes(self) -> int:
        """The bytes that the copies take."""
        return sum(int(copy.nbytes) for _, copy in self._held.values())

    def clear(self) -> None:
        """Let all copies go."""
        self._held.clear()

    def _drop_orphans(self) -> None:
        for key, (owner, _) in list(self._held.items()):
            if owner() is None:
                self._drop(key)

    def _make_room(self, size: int, wanted: Collection[Key]) -> None:
        held = self.nbytes
        for key in [key for key in self._held if key not in wanted]:
            if held + size <= self._budget:
                return
            held -= self._drop(key)

    def _drop(self, key: Key) -> int:
        self._wait()
        return int(self._held.pop(key)[1].nbytes)

    def _upload(self, array: np.ndarray) -> DeviceArray:
        copy: DeviceArray = self._cupy.empty(array.shape, array.dtype)
        for start in range(0, len(array), UPLOAD_ROWS):  # memory-mapped ones are read bit by bit
            part = np.ascontiguousarray(array[start : start + UPLOAD_ROWS])
            copy[start : start + UPLOAD_ROWS].set(part)
            copied.there += part.nbytes
        self._cupy.cuda.get_current_stream().synchronize()  # other streams do not wait for this one
        return copy


def _key(array: np.ndarray) -> Key:
    return (array.ctypes.data, array.shape, array.strides, array.dtype.str)


def _owner(array: np.ndarray) -> np.ndarray:
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array
