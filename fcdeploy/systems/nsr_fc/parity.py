"""What an export of NSR-FC's networks is checked on: random lists of neighbors, and the passes over them."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.nsr_fc.inputs import position_code
from fcdeploy.systems.nsr_fc.spec import Recipe
from fcdeploy.systems.pse_gcn.parity import PARITY as PSE_PARITY


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


def run_rescore(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate one batch of faces in both ways to attend, as parity is measured.

    batch: features (b, k, d) and code (k, d). Returns logits and logits_neighbors, (b, k) each.
    """
    features, code = batch["features"], batch["code"]
    first = engines["rescore_first"].run({"features": np.ascontiguousarray(features[:, 0])})["first"]
    by_position = np.ascontiguousarray(features.transpose(1, 0, 2))
    feeds = {"features": by_position, "code": code, "first": first}
    return {
        "logits": engines["rescore"].run(feeds)["logits"].T,
        "logits_neighbors": engines["rescore_neighbors"].run({"features": features, "code": code})["logits"],
    }


def run_lce(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate LCENet on features (b, k, d): logits (b, k, 2) and what they decide, ``edges.connected`` (b, k)."""
    logits = engines["connect"].run(batch)["logits"]
    return {"logits": logits, "edges.connected": logits[..., 1] >= logits[..., 0]}


def run_pce(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate PCENet on features (b, 2k, d): logits (b, 2) and what they decide, ``edges.confirmed`` (b,)."""
    logits = engines["confirm"].run(batch)["logits"]
    return {"logits": logits, "edges.confirmed": logits[:, 1] >= logits[:, 0]}


PARITY = {
    "refine": PSE_PARITY["refine"],
    "rescore": ParityInputs(rescore_sizes, "faces x neighbors", rescore_batch, run_rescore),
    "lce": ParityInputs(lce_sizes, "faces x neighbors", lce_batch, run_lce),
    "pce": ParityInputs(pce_sizes, "links x neighbors of either face", pce_batch, run_pce),
}
