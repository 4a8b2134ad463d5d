"""From logits to distances, probabilities and decisions."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine


def distance(logits: np.ndarray) -> np.ndarray:
    """Return 1 - sigmoid(logits), float32 like the published one: 0 for "surely the same person"."""
    return np.float32(1) - _sigmoid(logits.astype(np.float64))


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of ``logits`` (..., 2) at class 1, float32."""
    return _sigmoid(logits[..., 1].astype(np.float64) - logits[..., 0])


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return ((1 + np.tanh(x / 2)) / 2).astype(np.float32)


def run_rescore(
    engines: Mapping[str, OnnxRuntimeEngine], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Evaluate one batch of faces in both ways to attend, as parity is measured.

    batch: features (b, k, d) and code (k, d). Returns logits and logits_neighbors, (b, k) each.
    """
    features, code = batch["features"], batch["code"]
    first = engines["rescore_first"].run({"features": np.ascontiguousarray(features[:, 0])})["first"]
    by_position = np.ascontiguousarray(features.transpose(1, 0, 2))
    feeds = {"features": by_position, "code": code, "first": first}
    return {
        "logits": engines["rescore"].run(feeds)["logits"].T,
        "logits_neighbors": engines["rescore_neighbors"].run({"features": features, "code": code})["logits"],
    }


def run_lce(
    engines: Mapping[str, OnnxRuntimeEngine], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Evaluate LCENet on features (b, k, d): logits (b, k, 2) and what they decide, ``edges.connected`` (b, k)."""
    logits = engines["connect"].run(batch)["logits"]
    return {"logits": logits, "edges.connected": logits[..., 1] >= logits[..., 0]}


def run_pce(
    engines: Mapping[str, OnnxRuntimeEngine], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Evaluate PCENet on features (b, 2k, d): logits (b, 2) and what they decide, ``edges.confirmed`` (b,)."""
    logits = engines["confirm"].run(batch)["logits"]
    return {"logits": logits, "edges.confirmed": logits[:, 1] >= logits[:, 0]}
