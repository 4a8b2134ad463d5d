"""What an export of GCN-D is checked on: random graphs, and the passes over them."""

import functools
from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.gcn_d.spec import DETECT, PURITY, SEGMENT, Recipe

HALF = 0.5


def parity_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (graphs, nodes) that an export is checked on: few and many, small and large."""
    largest = max(settings.max_size for _, settings in recipe.levels())
    return [(b, min(n, largest)) for b, n in ((1, 2), (40, 3), (20, 17), (5, 64), (2, 300), (1, largest))]


def random_batch(dim: int, b: int, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b graphs of up to n nodes (one of them full) that look like those of proposals.

    Returns features (b, n, d) unit rows around a few centres and adj (b, n, n), rows divided by their sums; float32,
    padding comes last and is zero. Every second graph has unit weights, the others similarities.
    """
    people = rng.standard_normal((b, max(1, n // 12), dim))
    person = rng.integers(0, people.shape[1], (b, n))
    spread = rng.uniform(0.3, 1.2, (b, n, 1))
    features = people[np.arange(b)[:, None], person] + spread * rng.standard_normal((b, n, dim))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    sizes = rng.integers(min(2, n), n + 1, b)
    sizes[rng.integers(b)] = n
    real = np.arange(n) < sizes[:, None]
    sims = np.clip(features @ features.transpose(0, 2, 1), 0, 1)
    sims[::2] = 1
    edge = np.triu(rng.random((b, n, n)) < min(1.0, 20 / n), 1)
    adj = np.where(edge | edge.transpose(0, 2, 1), sims, 0)
    adj[:, np.arange(n), np.arange(n)] = 1
    adj *= real[:, :, None] & real[:, None, :]
    adj /= np.maximum(adj.sum(axis=2, keepdims=True), np.finfo(np.float64).tiny)
    return {"features": (features * real[:, :, None]).astype(np.float32), "adj": adj.astype(np.float32)}


def run_passes(
    network: str, engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Evaluate graphs with the passes of one network, as parity is measured.

    batch: features (b, n, d) and adj (b, n, n), see ``random_batch``. Returns score (b,), or probability (b, n)
    and what it decides, ``edges.members`` (b, n) bool.
    """
    features, adj = batch["features"], batch["adj"]
    if f"{network}_faces" in engines:
        b, n, d = features.shape
        weighted = engines[f"{network}_faces"].run({"features": features.reshape(b * n, d)})["weighted"]
        outputs = engines[network].run({"weighted": weighted.reshape(b, n, -1), "adj": adj})
    else:
        outputs = engines[network].run({"features": features, "adj": adj})
    if network == SEGMENT:
        outputs["edges.members"] = outputs["probability"] >= HALF
    return outputs


PARITY = {
    name: ParityInputs(parity_sizes, "graphs x nodes", random_batch, functools.partial(run_passes, name))
    for name in (DETECT, PURITY, SEGMENT)
}
