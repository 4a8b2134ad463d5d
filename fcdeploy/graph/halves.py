"""Tables of half-precision numbers for numba kernels, which have no such type on the CPU.

A kernel is given the bits of a float16 table (``bits_of``) and reads each entry with ``as_float32``; processors of the
last decade convert eight at a time.
"""

from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fcdeploy.graph.kernels import njit, prange

Intrinsic = tuple[object, Callable[..., ir.Value]]  # its signature, and what writes its code
LARGEST = float(np.finfo(np.float16).max)  # 65,504


def _as_float32(typingctx: object, number: types.Type) -> Intrinsic:
    def from_bits(
        context: object, builder: ir.IRBuilder, signature: object, args: Sequence[ir.Value]
    ) -> ir.Value:
        return builder.fpext(builder.bitcast(args[0], ir.HalfType()), ir.FloatType())

    if number == types.uint16:
        return types.float32(types.uint16), from_bits
    return types.float32(types.float32), lambda context, builder, signature, args: args[0]


def _as_half(typingctx: object, number: types.Type) -> Intrinsic:
    def to_bits(
        context: object, builder: ir.IRBuilder, signature: object, args: Sequence[ir.Value]
    ) -> ir.Value:
        return builder.bitcast(builder.fptrunc(args[0], ir.HalfType()), ir.IntType(16))

    return types.uint16(types.float32), to_bits


# In kernels: a float32 as it is, or the float32 that the uint16 bits of a float16 stand for.
as_float32 = cast(Callable[[np.generic], np.float32], intrinsic(_as_float32))
# In kernels: the uint16 bits of the float16 nearest to a float32.
_as_bits = cast(Callable[[np.generic], np.uint16], intrinsic(_as_half))


def bits_of(table: np.ndarray) -> np.ndarray:
    """Return a table as kernels take it: float16 as its bits, uint16, anything else unchanged; the same memory."""
    return table.view(np.uint16) if table.dtype == np.float16 else table


def halves_from_floats(rows: np.ndarray) -> np.ndarray:
    """Round ``rows`` (m, w) float32 to float16; beyond 65,504 that is infinite. Quicker than ``astype``."""
    halves = np.empty(rows.shape, dtype=np.float16)
    _to_bits(np.ascontiguousarray(rows), halves.view(np.uint16))
    return halves


def floats_from_halves(rows: np.ndarray) -> np.ndarray:
    """Return ``rows`` (m, w) float16 as float32, exactly; float32 rows as they are. Quicker than ``astype``."""
    if rows.dtype != np.float16:
        return rows
    floats = np.empty(rows.shape, dtype=np.float32)
    _to_floats(np.ascontiguousarray(rows).view(np.uint16), floats)
    return floats


@njit(cache=True, nogil=True, parallel=True)
def _to_bits(rows: np.ndarray, out: np.ndarray) -> None:
    for row in prange(len(rows)):
        for c in range(rows.shape[1]):
            out[row, c] = _as_bits(rows[row, c])


@njit(cache=True, nogil=True, parallel=True)
def _to_floats(rows: np.ndarray, out: np.ndarray) -> None:
    for row in prange(len(rows)):
        for c in range(rows.shape[1]):
            out[row, c] = as_float32(rows[row, c])
