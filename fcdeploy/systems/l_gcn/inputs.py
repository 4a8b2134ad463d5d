"""Batches for L-GCN's passes: random faces for parity, and sub-graphs in portions for a run."""

from collections.abc import Iterator

import numpy as np

from fcdeploy.graph.subgraphs import Subgraphs, gather_subgraphs
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.l_gcn.decode import run_passes
from fcdeploy.systems.l_gcn.spec import NeighborhoodSettings, Recipe

GATHERED = 64  # sub-graphs gathered at a time


def parity_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (centres, one-hop neighbors) that an export is checked on: one link, few, typical, and the most."""
    most = recipe.neighborhood.hops[0]
    return [(b, min(k1, most)) for b, k1 in ((1, 1), (7, 2), (5, 20), (3, most))]


def random_batch(dim: int, b: int, k1: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw faces of a few people, and b of them as centres with k1 one-hop neighbors.

    Returns features (n, d) float32 unit rows, ids (n, k1 + 1) int32, the exact kNN lists with the face itself first,
    centres (b,) int32, and hops (3,) int64: hops and active connections.
    """
    n = 4 * k1 + 4 + b
    people = rng.standard_normal((max(1, n // 12), dim))
    features = people[rng.integers(0, len(people), n)] + rng.uniform(0.3, 1.2, (n, 1)) * rng.standard_normal(
        (n, dim)
    )
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    sims = features @ features.T
    np.fill_diagonal(sims, 2)
    return {
        "features": features.astype(np.float32),
        "ids": np.argsort(-sims, axis=1, kind="stable")[:, : k1 + 1].astype(np.int32),
        "centres": rng.permutation(n)[:b].astype(np.int32),
        "hops": np.array([k1, min(k1, 10), min(k1, 10)]),
    }


def subgraph_batches(
    ids: np.ndarray, own: np.ndarray, faces: np.ndarray, near: NeighborhoodSettings, *, rows: int, most: int
) -> Iterator[tuple[slice, Subgraphs]]:
    """Yield the sub-graphs of ``faces`` (m,) int32 in portions for the engine: (where in faces, sub-graphs), in order.

    ids: (n, k) int32 kNN lists; own: (n,) int32, see ``own_positions``; rows: of an engine call at most (or those of a
    single sub-graph); most: sub-graphs a portion at most.
    """
    for start in range(0, len(faces), GATHERED):
        graphs = gather_subgraphs(ids, own, faces[start : start + GATHERED], near.hops, near.active)
        sizes = graphs.within[:, 2]
        begin = 0
        while begin < len(sizes):
            fits = max(1, int(np.searchsorted(np.cumsum(sizes[begin:]), rows, side="right")))
            end = min(begin + min(fits, most), len(sizes))
            yield slice(start + begin, start + end), graphs[begin:end]
            begin = end


PARITY = {"links": ParityInputs(parity_sizes, "centres x one-hop neighbors", random_batch, run_passes)}
