"""Batches for NSR-FC's passes: random ones for parity, and those gathered by ids for a run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fcdeploy.engine.batching import Rows
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.nsr_fc.decode import run_lce, run_pce, run_rescore
from fcdeploy.systems.nsr_fc.spec import Recipe
from fcdeploy.systems.pse_gcn.inputs import PARITY as PSE_PARITY


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


def rescore_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (faces, neighbors) that the re-scoring is checked on: one of each, few, and a large batch."""
    return [(1, 1), (7, 2), (5, 17), (min(256, recipe.rescore.batch), 3)]


def rescore_batch(dim: int, b: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b faces with k neighbors: features (b, k, d) unit rows and the code (k, d), float32."""
    return {"features": _neighbors(dim, b, k, rng), "code": position_code(k, dim)}


def lce_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (faces, neighbors) that LCENet is checked on."""
    return [(b, recipe.pairs.k) for b in (1, 6, 20)]


def lce_batch(dim: int, b: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b faces with k neighbors: features (b, k, d) unit rows, float32."""
    return {"features": _neighbors(dim, b, k, rng)}


def pce_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (links, neighbors of either face) that PCENet is checked on."""
    return [(b, recipe.pairs.k) for b in (1, 6, 40)]


def pce_batch(dim: int, b: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b links, every second one within one person: features (b, 2k, d) unit rows, float32."""
    one, other = _neighbors(dim, b, k, rng), _neighbors(dim, b, k, rng)
    other[::2] = one[::2, rng.permutation(k)]
    return {"features": np.concatenate([one, other], axis=1)}


def _neighbors(dim: int, b: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draw lists that look like real ones: half of the neighbors are of the face's person, the rest of anybody."""
    people = np.broadcast_to(rng.standard_normal((b, 1, dim)), (b, k, dim)).copy()
    people[:, k // 2 + 1 :] = rng.standard_normal((b, max(0, k - k // 2 - 1), dim))
    spread = np.sort(rng.uniform(0.2, 1.5, (b, k, 1)), axis=1)
    neighbors = people + spread * rng.standard_normal((b, k, dim))
    return (neighbors / np.linalg.norm(neighbors, axis=-1, keepdims=True)).astype(np.float32)


def position_batches(
    table: np.ndarray, ids: np.ndarray, code: np.ndarray, most: int
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield a batch of faces at up to ``most`` positions of their lists at a time.

    table: (n, d) float32; ids: (b, k) int32, the lists of the batch; code: (k, d). Yields (which positions, feeds
    features (p, b, d) and code (p, d)).
    """
    for start in range(0, ids.shape[1], most):
        part = slice(start, min(start + most, ids.shape[1]))
        yield part, {"features": Rows(table, np.ascontiguousarray(ids[:, part].T)), "code": code[part]}


def list_batches(table: np.ndarray, ids: np.ndarray, most: int) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield lists with their features, up to ``most`` lists at a time.

    table: (n, d) float32; ids: (m, w) int32. Yields (which lists, feeds features (b, w, d)).
    """
    for start in range(0, len(ids), most):
        part = slice(start, min(start + most, len(ids)))
        yield part, {"features": Rows(table, np.ascontiguousarray(ids[part]))}


PARITY = {
    "refine": PSE_PARITY["refine"],
    "rescore": ParityInputs(rescore_sizes, "faces x neighbors", rescore_batch, run_rescore),
    "lce": ParityInputs(lce_sizes, "faces x neighbors", lce_batch, run_lce),
    "pce": ParityInputs(pce_sizes, "links x neighbors of either face", pce_batch, run_pce),
}
