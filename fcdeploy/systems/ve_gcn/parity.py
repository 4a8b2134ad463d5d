"""What exports of GCN-V and GCN-E are checked on: random faces with their lists, and the passes over them."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.ve_gcn.decode import score_candidates
from fcdeploy.systems.ve_gcn.edges import edges_of_lists, sum_over_edges
from fcdeploy.systems.ve_gcn.inputs import Candidates, graphs_among
from fcdeploy.systems.ve_gcn.spec import Recipe


def vertex_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (faces, neighbors) that GCN-V is checked on: a single face, few, and as many as lists hold."""
    k = recipe.graph.k
    return [(1, 1), (7, 2), (60, min(20, k)), (2 * k, k)]


def edge_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (centres, candidates) that GCN-E is checked on: one candidate, few, typical, and the most."""
    most = max(1, recipe.links.k - 1)
    return [(b, min(n, most)) for b, n in ((1, 1), (7, 2), (5, 20), (3, most))]


def _faces(dim: int, n: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw faces of a few people: features (n, d) unit rows, and exact lists of k, ids and sims, the face first."""
    people = rng.standard_normal((max(1, n // 12), dim))
    spread = rng.uniform(0.3, 1.2, (n, 1))
    features = people[rng.integers(0, len(people), n)] + spread * rng.standard_normal((n, dim))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    sims = np.clip(features @ features.T, 0, 1)
    np.fill_diagonal(sims, 2)
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    return {
        "features": features.astype(np.float32),
        "ids": ids.astype(np.int32),
        "sims": np.clip(np.take_along_axis(sims, ids, axis=1), 0, 1).astype(np.float32),
    }


def vertex_batch(dim: int, b: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b faces: features (b, d) unit rows, and their lists ids and sims (b, at most k), float32."""
    return _faces(dim, b, min(b, k), rng)


def edge_batch(dim: int, b: int, n: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw faces with their lists, b of them as centres (b,) int32, and n candidates of each from its list (b, n)."""
    faces = _faces(dim, 2 * n + 4 + b, 2 * n + 1, rng)
    centres = rng.permutation(len(faces["ids"]))[:b].astype(np.int32)
    chosen = np.sort([1 + rng.permutation(2 * n)[:n] for _ in range(b)], axis=1)
    candidates = np.take_along_axis(faces["ids"][centres], chosen, axis=1)
    return {**faces, "centres": centres, "candidates": candidates}


def run_vertex(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate GCN-V on all faces of a batch: confidence (b,) and hidden (b, h)."""
    features, ids = batch["features"], batch["ids"]
    edges = edges_of_lists(ids, batch["sims"], ids.shape[1], 0.0)
    connected = sum_over_edges(edges, np.arange(len(ids), dtype=np.int32), features)
    return engines["confidence"].run({"features": features, "connected": connected})


def run_edge(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate GCN-E on the candidates of a batch: logits (b, n, 2)."""
    features, ids, candidates = batch["features"], batch["ids"], batch["candidates"]
    encode = engines["encode"]
    tables = encode.run({"features": features})
    origin = encode.run({"features": np.zeros_like(features[:1])})
    b, n = candidates.shape
    flat = np.ascontiguousarray(candidates.ravel())
    chosen = Candidates(batch["centres"], np.arange(b + 1, dtype=np.int64) * n, flat, np.zeros_like(flat))
    graphs = graphs_among(edges_of_lists(ids, batch["sims"], ids.shape[1], 0.0), chosen)
    ((_, logits),) = score_candidates(engines, tables, origin, [(None, graphs)])
    return {"logits": logits.reshape(b, n, 2)}


PARITY = {
    "vertex": ParityInputs(vertex_sizes, "faces x neighbors", vertex_batch, run_vertex),
    "edge": ParityInputs(edge_sizes, "centres x candidates", edge_batch, run_edge),
}
