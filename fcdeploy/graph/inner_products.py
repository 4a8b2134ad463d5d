"""Inner products of float32 rows in one order of additions, whatever the processor.

Lane l of 32 adds the products of the components l, l + 32, l + 64, ... one after the other; then lanes l and l + 16 are
added, l and l + 8, and so on. No product is fused with an addition. Processors without vectors of that width do the
same in several steps, and a warp of a GPU with a thread for each lane (``search.cu``).
"""

from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.base import BaseContext
from numba.core.typing import Signature
from numba.extending import intrinsic

LANES = 32
Intrinsic: TypeAlias = tuple[object, Callable[..., ir.Value]]  # its signature, and what writes its code


def _inner_product(typingctx: object, one: types.Type, other: types.Type) -> Intrinsic:
    for row in (one, other):
        fits = isinstance(row, types.Array) and (row.ndim, row.dtype, row.layout) == (1, types.float32, "C")
        if not fits:
            raise TypeError(f"inner_product: expected contiguous rows of float32, found {row}")

    def code(
        context: BaseContext, builder: ir.IRBuilder, signature: Signature, arguments: Sequence[ir.Value]
    ) -> ir.Value:
        pairs = zip(signature.args, arguments, strict=True)
        rows = [context.make_array(kind)(context, builder, value) for kind, value in pairs]
        count = cgutils.unpack_tuple(builder, rows[0].shape)[0]
        return _code(builder, rows[0].data, rows[1].data, count)

    return types.float32(one, other), code


def _code(builder: ir.IRBuilder, one: ir.Value, other: ir.Value, count: ir.Value) -> ir.Value:
    """Write the loop over ``count`` components at two addresses; returns the sum."""
    number, whole = ir.FloatType(), count.type
    lanes = ir.VectorType(number, LANES)
    sums = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * LANES))
    rest = builder.srem(count, whole(LANES))
    full = builder.sub(count, rest)
    with cgutils.for_range_slice(builder, whole(0), full, whole(LANES)) as (at, _):
        products = builder.fmul(*(_vector(builder, builder.gep(row, [at]), lanes) for row in (one, other)))
        builder.store(builder.fadd(builder.load(sums), products), sums)
    with builder.if_then(builder.icmp_signed(">", rest, whole(0)), likely=False):
        # In memory of its own: the sums of the loop above stay in registers.
        spilled = cgutils.alloca_once(builder, lanes)
        builder.store(builder.load(sums), spilled)
        lane = builder.bitcast(spilled, number.as_pointer())
        with cgutils.for_range(builder, rest) as loop:
            at = builder.add(full, loop.index)
            product = builder.fmul(*(builder.load(builder.gep(row, [at])) for row in (one, other)))
            place = builder.gep(lane, [loop.index])
            builder.store(builder.fadd(builder.load(place), product), place)
        builder.store(builder.load(spilled), sums)
    total, width = builder.load(sums), LANES
    while width > 1:
        width //= 2
        halves = [builder.shuffle_vector(total, total, _indices(start, width)) for start in (0, width)]
        total = builder.fadd(*halves)
    return builder.extract_element(total, ir.IntType(32)(0))


def _vector(builder: ir.IRBuilder, address: ir.Value, lanes: ir.Type) -> ir.Value:
    return builder.load(builder.bitcast(address, lanes.as_pointer()), align=4)


def _indices(start: int, count: int) -> ir.Constant:
    vector = ir.VectorType(ir.IntType(32), count)
    return ir.Constant(vector, [ir.IntType(32)(at) for at in range(start, start + count)])


# In kernels: the inner product, float32, of two contiguous rows (d,) float32.
inner_product = cast(Callable[[np.ndarray, np.ndarray], np.float32], intrinsic(_inner_product))
