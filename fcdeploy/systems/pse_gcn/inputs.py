"""Batches for PSE-GCN's passes: random ones for parity, and those gathered from tables for a run."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fcdeploy.engine.batching import Rows, groups_by_size
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.neighborhoods import connect_neighborhoods, gather_neighborhoods, largest_neighborhood
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.pse_gcn.decode import run_passes
from fcdeploy.systems.pse_gcn.spec import TABLES, NeighborhoodSettings, Recipe


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


def neighborhood_batches(
    tables: Mapping[str, np.ndarray],
    ranked: np.ndarray,
    knn: KnnGraph,
    centres: np.ndarray,
    near: NeighborhoodSettings,
    scratch: np.ndarray,
    *,
    rows: int,
    most: int,
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Yield the neighborhoods of ``centres`` in groups of nearly equal size, ready for the engine.

    tables: the encode pass's outputs, (n, 2d) each; ranked: (n, k) re-ranked ids; knn: the original lists;
    scratch: ``new_scratch(n)``; rows: nodes a group at most; most: neighborhoods a group at most.
    Yields (positions in centres, feeds); every position comes once, in no particular order.
    """
    nodes, sizes = gather_neighborhoods(ranked, centres, *near.hops, scratch)
    for group in groups_by_size(sizes, rows, most):
        width = int(sizes[group[0]])
        faces = np.ascontiguousarray(nodes[group, :width])
        feeds: dict[str, Any] = {name: Rows(tables[name], faces) for name in TABLES}
        feeds["out"] = tables["out"][faces[:, 0]]
        feeds["adj"] = np.empty((len(group), width, width), dtype=np.float32)
        connect_neighborhoods(faces, sizes[group], knn.ids, knn.sims, near.active, feeds["adj"])
        feeds["mask"] = (faces >= 0).astype(np.float32)
        yield group, feeds


PARITY = {"refine": ParityInputs(parity_sizes, "neighborhoods x nodes", random_batch, run_passes)}
