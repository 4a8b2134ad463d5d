"""What an export of PSE-GCN is checked on: random neighborhoods, and the passes over whole ones."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.neighborhoods import largest_neighborhood
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.pse_gcn.spec import TABLES, Recipe


def parity_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (neighborhoods, nodes) that an export is checked on: one, few, typical, and the largest."""
    largest = int(largest_neighborhood(recipe.neighborhood.hops))
    sizes = [(1, 1), (7, 2), (1, 17), (5, 64), (2, 301), (1, largest)]
    return [(b, min(n, largest)) for b, n in sizes]


def random_batch(dim: int, b: int, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b neighborhoods of up to n nodes (one of them full) that look like real ones.

    Returns features (b, n, d) unit rows around a few centres, adj (b, n, n) symmetric with a unit diagonal, mask
    (b, n) of 0 and 1; float32. Node 0 is the centre, padding comes last and is zero.
    """
    people = rng.standard_normal((b, max(1, n // 12), dim))
    person = rng.integers(0, people.shape[1], (b, n))
    spread = rng.uniform(0.3, 1.2, (b, n, 1))
    features = people[np.arange(b)[:, None], person] + spread * rng.standard_normal((b, n, dim))
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    sizes = rng.integers(1, n + 1, b)
    sizes[rng.integers(b)] = n
    mask = (np.arange(n) < sizes[:, None]).astype(np.float32)
    sims = np.clip(features @ features.transpose(0, 2, 1), 0, 1)
    edge = np.triu(rng.random((b, n, n)) < min(1.0, 10 / n), 1)
    adj = np.where(edge | edge.transpose(0, 2, 1), sims, 0)
    adj[:, np.arange(n), np.arange(n)] = 1
    return {
        "features": (features * mask[:, :, None]).astype(np.float32),
        "adj": (adj * mask[:, :, None] * mask[:, None, :]).astype(np.float32),
        "mask": mask,
    }


def run_passes(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate whole neighborhoods from their features, as parity is measured.

    batch: features (b, n, d), adj (b, n, n), mask (b, n). Returns every output of the last pass: refined
    (b, 2d), and whatever else the engine was opened to give.
    """
    b, n, d = batch["features"].shape
    rows = engines["encode"].run({"features": batch["features"].reshape(b * n, d)})
    tables = {name: table.reshape(b, n, -1) for name, table in rows.items()}
    feeds = {name: tables[name] for name in TABLES}
    feeds["out"] = np.ascontiguousarray(tables["out"][:, 0])  # (b, n, 2d) -> (b, 2d)
    return engines["neighborhood"].run({**feeds, "adj": batch["adj"], "mask": batch["mask"]})


PARITY = {"refine": ParityInputs(parity_sizes, "neighborhoods x nodes", random_batch, run_passes)}
