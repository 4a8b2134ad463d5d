"""Products of codes as exact integers: by NumKong's int8 kernels, or by NumPy's BLAS in single precision.

Both give the same integers (see ``codes``); which is used decides nothing but speed.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Protocol, TypeAlias, TypeVar

import numba
import numpy as np

from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph.threads import blas_limited
from fcdeploy.packages import import_package, tell_if_broken

Packed: TypeAlias = object  # what ``packed`` of the same products returns, and nobody else looks into
Task = TypeVar("Task")

# With one of these instructions, int8 products are quicker than single precision.
INT8_UNITS = (
    "icelake",
    "alder",
    "sierra",
    "sapphireamx",
    "graniteamx",
    "diamond",
    "neonsdot",
    "svesdot",
    "sme",
    "rvv",
)


class ForEach(Protocol):
    """Calls a function for each of some tasks."""

    def __call__(self, task: Callable[[Task], None], tasks: Iterable[Task]) -> None: ...


class Products(Protocol):
    """Multiplies rows of codes; ``rows`` and ``scores`` are the dtypes of what it takes and gives."""

    name: str
    rows: type[np.generic]
    scores: type[np.generic]

    def packed(self, codes: np.ndarray) -> Packed:
        """Return ``codes`` (s, d) int8 as ``multiply`` wants them."""

    def multiply(self, rows: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        """Write the products of ``rows`` (m, d) and packed codes (s, d) to ``out`` (m * s,)."""


class Int8Products:
    """Products by NumKong, which uses AMX, VNNI or the dot products of Arm where there are any."""

    name = "int8"
    rows: type[np.generic] = np.int8
    scores: type[np.generic] = np.int32

    def __init__(self) -> None:
        self._numkong = import_numkong()

    def packed(self, codes: np.ndarray) -> Packed:
        return self._numkong.dots_pack(codes, "int8")

    def multiply(self, rows: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        shape = len(rows), len(out) // len(rows)
        self._numkong.dots_packed(
            rows, packed, out=self._numkong.from_pointer(out.ctypes.data, shape, "int32", owner=out)
        )


class FloatProducts:
    """Products by NumPy, in single precision."""

    name = "float32"
    rows: type[np.generic] = np.float32
    scores: type[np.generic] = np.float32

    def packed(self, codes: np.ndarray) -> Packed:
        return codes.astype(np.float32).T

    def multiply(self, rows: np.ndarray, packed: Packed, out: np.ndarray) -> None:
        assert isinstance(packed, np.ndarray)
        np.matmul(rows, packed, out=out.reshape(len(rows), -1))


def import_numkong() -> ModuleType:
    """Import NumKong; raises MissingDependencyError, see ``import_package``."""
    return import_package("numkong", "numkong", "pip install 'fcdeploy[fast]")


def quickest_products() -> Products:
    """Return NumKong's products where it is installed and has instructions for them, else NumPy's."""
    try:
        found = import_numkong().get_capabilities()
    except MissingDependencyError as error:
        tell_if_broken(error, "neighbors are searched in single precision")
        return FloatProducts()
    return Int8Products() if any(found.get(unit) for unit in INT8_UNITS) else FloatProducts()


@contextlib.contextmanager
def workers() -> Iterator[ForEach]:
    """Give a function that calls another for each of some tasks, on as many threads as numba is set to.

    The BLAS of NumPy, whose threads belong to the whole process, computes with one for each of ours meanwhile.
    """
    threads = numba.get_num_threads()
    with contextlib.ExitStack() as stack:
        stack.enter_context(blas_limited(1))
        if threads == 1:

            def run(task: Callable[[Task], None], tasks: Iterable[Task]) -> None:
                for one in tasks:
                    task(one)
        else:
            pool = stack.enter_context(ThreadPoolExecutor(threads))

            def run(task: Callable[[Task], None], tasks: Iterable[Task]) -> None:
                for _ in pool.map(task, tasks):
                    pass

        yield run
