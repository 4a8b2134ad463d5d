"""From logits to accepted links."""

import numpy as np


def accepted(logits: np.ndarray) -> np.ndarray:
    """Tell which links (m,) bool are accepted: class 1 is strictly above class 0 in ``logits`` (m, 2)."""
    return logits[:, 1] > logits[:, 0]


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of ``logits`` (m, 2) at class 1, (m,) float32; 0.5 and more where a link is accepted."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return ((1 + np.tanh(margin / 2)) / 2).astype(np.float32)
