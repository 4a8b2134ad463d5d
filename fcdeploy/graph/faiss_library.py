"""faiss: importing it, with install instructions if it is missing, and copying its indexes to a GPU."""

from types import ModuleType
from typing import Protocol

import numpy as np

from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph.cuda import import_cupy
from fcdeploy.packages import import_package, tell_if_broken


class Index(Protocol):
    """What is used here of faiss's indexes; faiss has no types."""

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]: ...


class InvertedLists(Index, Protocol):
    """One that holds its vectors in lists."""

    nprobe: int
    ntotal: int

    @property
    def code_size(self) -> int: ...

    def train(self, vectors: np.ndarray) -> None: ...

    def add_core(self, n: int, rows: object, ids: object, cells: object) -> None: ...

    def replace_invlists(self, lists: object, own: bool) -> None: ...


UPLOAD_ROWS = 65536
SHARE = 2  # of the device memory, the half is for an index
TEMPORARY_SHARE = 8


def import_faiss() -> ModuleType:
    """Import faiss; raises MissingDependencyError, see ``import_package``."""
    return import_package("faiss", "faiss", "pip install 'fcdeploy[cpu]'` (or `[gpu]")


def gpus(faiss: ModuleType) -> int:
    """Return how many GPUs faiss can use."""
    # Some builds of faiss-cpu have no such function.
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def copied_to_gpu(faiss: ModuleType, vectors: np.ndarray, index: Index | None, vram: int) -> Index | None:
    """Copy an index to the GPU; returns None if there is no GPU, or not enough free memory as far as is known.

    index: an IVF index of float16 vectors, or None for a flat index of ``vectors`` (n, d) float32. vram: device memory
    budget in bytes, 0 for all that is free.
    """
    if not gpus(faiss):
        return None
    try:
        budget = vram or import_cupy().cuda.runtime.memGetInfo()[0]
    except MissingDependencyError as error:
        # Nobody knows how much is free; ONNX Runtime and faiss work without CuPy.
        tell_if_broken(error, "neighbors are searched on the CPU")
        return None
    if (vectors.nbytes if index is None else vectors.nbytes // 2) > budget // SHARE:
        return None
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(budget // TEMPORARY_SHARE)
    if index is None:
        flat = faiss.GpuIndexFlatIP(resources, vectors.shape[1])
        for start in range(0, len(vectors), UPLOAD_ROWS):
            flat.add(np.ascontiguousarray(vectors[start : start + UPLOAD_ROWS]))
        found: Index = flat
        return found
    options = faiss.GpuClonerOptions()
    options.use_cuvs = False  # which has no lists of halves
    copied: Index = faiss.index_cpu_to_gpu(resources, 0, index, options)
    return copied
