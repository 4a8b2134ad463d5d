"""Batches for SEPFL's passes: faces gathered with their neighbors."""

from collections.abc import Iterator

import numpy as np

from fcdeploy.engine.batching import Rows


def face_batches(
    vectors: np.ndarray, near: np.ndarray, ids: np.ndarray, faces: np.ndarray, most: int
) -> Iterator[tuple[slice, dict[str, np.ndarray | Rows]]]:
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
