"""From logits to accepted links."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine


def accepted(logits: np.ndarray) -> np.ndarray:
    """Tell which links (m,) bool are accepted: class 1 is strictly above class 0 in ``logits`` (m, 2)."""
    return logits[:, 1] > logits[:, 0]


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of ``logits`` (m, 2) at class 1, (m,) float32; 0.5 and more where a link is accepted."""
    margin = logits[:, 1].astype(np.float64) - logits[:, 0]
    return ((1 + np.tanh(margin / 2)) / 2).astype(np.float32)


def run_passes(
    engines: Mapping[str, OnnxRuntimeEngine], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Evaluate links from the features of both faces, as parity is measured.

    batch: features (2, b, d) and neighbors (2, b, k, d), see ``inputs.random_batch``. Returns logits (b, 2) and what
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
