"""Which arrays are features: real numbers, two axes once those of length 1 are dropped."""

import math

import numpy as np

from fcdeploy.errors import InputError

REAL = ("float16", "float32", "float64", "int8", "int16", "int32", "uint8", "uint16", "bool", "bfloat16")


def is_real(dtype: np.dtype) -> bool:
    """Tell whether a dtype's values can be features; wider integers are ids or labels."""
    return dtype.newbyteorder("=").name in REAL


def two_axes(shape: tuple[int, ...], dim: int | None = None) -> tuple[int, int] | None:
    """Return a shape of more than two axes without those of length 1, or None where that leaves other than two.

    dim: the width that is expected, which tells (1, 1, d) from (n, 1, 1).
    """
    if len(shape) < 2 or 0 in shape:
        return None
    if len(shape) == 2:
        return shape[0], shape[1]
    longer = [length for length in shape if length != 1]
    if len(longer) == 2:
        return longer[0], longer[1]
    if len(longer) > 2:
        return None
    size = math.prod(shape)
    if dim is not None:
        return (size // dim, dim) if dim in (1, size) else (1, size)
    return (1, size) if shape[-1] == size else (size, 1)


def as_rows(array: np.ndarray, name: str, dim: int | None = None, *, from_memory: bool = False) -> np.ndarray:
    """Return an array (n, d), without axes of length 1 beyond two; nothing is copied.

    Raises InputError, saying what was expected and found, for other shapes and dtypes and for another width than
    ``dim``. from_memory: any integers will do, as lists of Python's are int64.
    """
    wanted = f"(n, {dim})" if dim is not None else "an (n, d) array"
    found = f"found {array.shape} {array.dtype}"
    usual = is_real(array.dtype) or (from_memory and array.dtype.kind in "iub")
    if not usual:
        if array.dtype.kind == "c":
            advice = "features are real; give x.real, or both parts behind each other"
        elif array.dtype.kind in "iu":
            advice = (
                "integers this wide are ids or labels; if they are features, save x.astype(numpy.float32)"
            )
        elif array.dtype.kind == "O":
            advice = "objects are no numbers; give numpy.stack(rows).astype(numpy.float32)"
        else:
            advice = "give x.astype(numpy.float32)"
        raise InputError(f"{name}: expected {wanted} of real numbers, {found}; {advice}.")
    shape = two_axes(array.shape, dim)
    if shape is None:
        raise InputError(
            f"{name}: expected {wanted} of floats with n, d >= 1, {found}; give one row of values per face."
        )
    if dim is not None and shape[1] != dim:
        turned = f"; are these the columns of {shape[1]:,} faces? give x.T" if shape[0] == dim else ""
        raise InputError(f"{name}: expected (n, {dim}) features, {found}{turned}.")
    return array.reshape(shape)
