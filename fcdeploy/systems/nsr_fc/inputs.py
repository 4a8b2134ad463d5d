"""Batches for NSR-FC's passes, gathered by ids."""

from collections.abc import Iterator

import numpy as np

from fcdeploy.engine.batching import Rows


def position_code(k: int, dim: int) -> np.ndarray:
    """Return the sinusoidal code of positions 0..k-1, (k, d) float32: sines in even, cosines in odd columns.

    In float32 throughout, as published: at position 79 rounding the product moves a sine by up to 4e-6.
    """
    steps = np.arange(0, dim, 2, dtype=np.float32) * np.float32(-np.log(10000.0) / dim)
    angles = np.arange(k, dtype=np.float32)[:, None] * np.exp(steps)
    code = np.empty((k, dim), dtype=np.float32)
    code[:, 0::2] = np.sin(angles)
    code[:, 1::2] = np.cos(angles[:, : dim // 2])
    return code


def position_batches(
    table: np.ndarray, ids: np.ndarray, code: np.ndarray, most: int
) -> Iterator[tuple[slice, dict[str, np.ndarray | Rows]]]:
    """Yield a batch of faces at up to ``most`` positions of their lists at a time.

    table: (n, d) float32; ids: (b, k) int32, the lists of the batch; code: (k, d). Yields (which positions, feeds
    features (p, b, d) and code (p, d)).
    """
    for start in range(0, ids.shape[1], most):
        part = slice(start, min(start + most, ids.shape[1]))
        yield part, {"features": Rows(table, np.ascontiguousarray(ids[:, part].T)), "code": code[part]}


def list_batches(
    table: np.ndarray, ids: np.ndarray, most: int
) -> Iterator[tuple[slice, dict[str, np.ndarray | Rows]]]:
    """Yield lists with their features, up to ``most`` lists at a time.

    table: (n, d) float32; ids: (m, w) int32. Yields (which lists, feeds features (b, w, d)).
    """
    for start in range(0, len(ids), most):
        part = slice(start, min(start + most, len(ids)))
        yield part, {"features": Rows(table, np.ascontiguousarray(ids[part]))}
