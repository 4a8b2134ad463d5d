"""Training faces that are not as they were given: a network that meets few people learns these by heart otherwise."""

import numpy as np


def mirrors(count: int, dim: int, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return the signs of the coordinates of each group of faces, (count, dim) float32, a ``share`` of them negative.

    All faces of a group are mirrored alike: similarities stay as they are, and with them its graph, and yet its
    people are where none of the training set is.
    """
    return np.where(rng.random((count, dim)) < share, np.float32(-1), np.float32(1))


def noisy(features: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """Return unit features (..., d) float32 moved by Gaussian noise of about this length, and of unit length again.

    Each face is moved by itself, while its graph is that of the features as they are: what tells one person's faces
    from another's has then to be where several of them agree.
    """
    spread = np.float32(length / np.sqrt(features.shape[-1]))
    moved = features + spread * rng.standard_normal(features.shape, dtype=np.float32)
    return moved / np.linalg.norm(moved, axis=-1, keepdims=True)


def problem(flips: float, noise: float) -> str | None:
    """Return what is wrong with the settings ``flips`` and ``noise`` of a training, or None."""
    if not 0 <= flips <= 1:
        return f"flips = {flips} should be a share of the coordinates, 0 to 1"
    if not 0 <= noise <= 10:
        return f"noise = {noise} should be a length, 0 to 10; features are of length 1"
    return None
