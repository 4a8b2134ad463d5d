"""What an export of SEPFL is checked on: random links, and the passes over both faces of each."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.sepfl.decode import accepted
from fcdeploy.systems.sepfl.spec import Recipe


def parity_sizes(recipe: Recipe) -> list[tuple[int, int]]:
    """Return the (links, neighbors) that an export is checked on: one link, few, and many."""
    return [(b, recipe.links.k) for b in (1, 7, 120)]


def random_batch(dim: int, b: int, k: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Draw b links between faces whose neighbors look like real ones; in every second link it is one person.

    Returns features (2, b, d) unit rows, of the faces and of their denser neighbors, and neighbors (2, b, k, d), the
    face itself first and the others most similar first; float32.
    """
    people = rng.standard_normal((2, b, 1, dim))
    people[1, ::2] = people[0, ::2]
    spread = np.sort(rng.uniform(0.2, 1.5, (2, b, k, 1)), axis=2)
    neighbors = people + spread * rng.standard_normal((2, b, k, dim))
    neighbors /= np.linalg.norm(neighbors, axis=-1, keepdims=True)
    neighbors = neighbors.astype(np.float32)
    return {"features": neighbors[:, :, 0].copy(), "neighbors": neighbors}


def run_passes(engines: Mapping[str, Engine], batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Evaluate links from the features of both faces, as parity is measured.

    batch: features (2, b, d) and neighbors (2, b, k, d), see ``random_batch``. Returns logits (b, 2) and what
    they decide, ``edges.accepted`` (b,) bool.
    """
    _, b, k, d = batch["neighbors"].shape
    near = engines["near"].run({"features": batch["neighbors"].reshape(2 * b * k, d)})["near"]
    feeds = {
        "features": batch["features"].reshape(2 * b, d),
        "neighbors": batch["neighbors"].reshape(2 * b, k, d),
        "near": near.reshape(2 * b, k, -1),
    }
    encoded = engines["encode"].run(feeds)["encoded"]
    logits = engines["pair"].run({"face": encoded[:b], "denser": encoded[b:]})["logits"]
    return {"logits": logits, "edges.accepted": accepted(logits)}


PARITY = {"pairwise": ParityInputs(parity_sizes, "links x neighbors", random_batch, run_passes)}
