"""From logits to distances, probabilities and decisions."""

import numpy as np


def distance(logits: np.ndarray) -> np.ndarray:
    """Return 1 - sigmoid(logits), float32 like the published one: 0 for "surely the same person"."""
    return np.float32(1) - _sigmoid(logits.astype(np.float64))


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of ``logits`` (..., 2) at class 1, float32."""
    return _sigmoid(logits[..., 1].astype(np.float64) - logits[..., 0])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return ((1 + np.tanh(x / 2)) / 2).astype(np.float32)
