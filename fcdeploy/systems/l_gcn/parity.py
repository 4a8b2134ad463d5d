"""What an export of L-GCN is checked on: random faces, and the passes over the sub-graphs of some of them."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.subgraphs import gather_subgraphs, own_positions
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.l_gcn.decode import score_links
from fcdeploy.systems.l_gcn.spec import Recipe


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


def run_passes(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Score links from the features and lists of all faces, as parity is measured.

    batch: features (n, d), ids (n, k), centres (b,), hops (3,): hops and active; see ``random_batch``. Returns
    logits (b, hops[0], 2).
    """
    ids = batch["ids"]
    one, two, active = batch["hops"].tolist()
    encode = engines["encode"]
    tables = encode.run({"features": batch["features"]})
    origin = encode.run({"features": np.zeros_like(batch["features"][:1])})
    own = own_positions(ids, np.arange(len(ids), dtype=np.int32))
    graphs = gather_subgraphs(ids, own, batch["centres"], (one, two), active)
    ((_, logits),) = score_links(engines, tables, origin, [(None, graphs)])
    return {"logits": logits}


PARITY = {"links": ParityInputs(parity_sizes, "centres x one-hop neighbors", random_batch, run_passes)}
