"""Non-maximum suppression: of boxes that overlap, the best one."""

import numpy as np


def suppress(boxes: np.ndarray, scores: np.ndarray, threshold: float, top_k: int) -> np.ndarray:
    """Return which boxes stay, (m,) int64, best score first; equal scores in the order given.

    boxes: (n, 4), left, top, right, bottom; scores: (n,). Only the ``top_k`` best are looked at. A box goes when its
    intersection over union with a better one that stays is above ``threshold``.
    """
    order = np.argsort(-scores, kind="stable")[:top_k]
    boxes = boxes[order].astype(np.float64)
    areas = area_of(boxes)
    left = np.arange(len(order))
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        shared = intersection(boxes[best], boxes[left])
        union = areas[best] + areas[left] - shared
        left = left[shared <= threshold * union]
    return order[np.array(kept, np.int64)]


def overlaps(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the intersection over union of each box (n, 4) with each of ``others`` (m, 4): (n, m)."""
    shared = intersection(boxes[:, None], others[None])
    union = area_of(boxes)[:, None] + area_of(others)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def area_of(boxes: np.ndarray) -> np.ndarray:
    """Return the areas of boxes (..., 4)."""
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1)


def intersection(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the areas that boxes (..., 4) share, pair by pair."""
    low = np.maximum(boxes[..., :2], others[..., :2])
    high = np.minimum(boxes[..., 2:], others[..., 2:])
    return np.prod(np.maximum(high - low, 0), axis=-1)
