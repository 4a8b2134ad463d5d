"""Batches for SEPFL's passes: random links for parity, and faces gathered with their neighbors for a run."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fcdeploy.engine.batching import Rows
from fcdeploy.systems import ParityInputs
from fcdeploy.systems.sepfl.decode import run_passes
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


def face_batches(
    vectors: np.ndarray, near: np.ndarray, ids: np.ndarray, faces: np.ndarray, most: int
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Yield ``faces`` (m,) with their neighbors, up to ``most`` at a time, ready for the engine.

    vectors: (n, d) float32; near: (n, 4d) float32, the near pass's output; ids: (n, k) int32. Yields (where in
    faces, feeds), in order.
    """
    for start in range(0, len(faces), most):
        part = slice(start, min(start + most, len(faces)))
        lists = np.ascontiguousarray(ids[faces[part]])
        yield (
            part,
            {
                "features": vectors[faces[part]],
                "neighbors": Rows(vectors, lists),
                "near": Rows(near, lists),
            },
        )


PARITY = {"pairwise": ParityInputs(parity_sizes, "links x neighbors", random_batch, run_passes)}
