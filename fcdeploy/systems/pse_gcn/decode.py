"""From batches through PSE-GCN's passes to refined features."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.systems.pse_gcn.spec import TABLES


def run_passes(
    engines: Mapping[str, OnnxRuntimeEngine], batch: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Evaluate whole neighborhoods from their features, as parity is measured.

    batch: features (b, n, d), adj (b, n, n), mask (b, n). Returns every output of the last pass: refined
    (b, 2d), and whatever else the engine was opened to give.
    """
    b, n, d = batch["features"].shape
    rows = engines["encode"].run({"features": batch["features"].reshape(b * n, d)})
    tables = {name: table.reshape(b, n, -1) for name, table in rows.items()}
    feeds = {name: tables[name] for name in TABLES}
    feeds["out"] = np.ascontiguousarray(tables["out"][:, 0])  # (b, n, 2d) -> (b, 2d)
    return engines["neighborhood"].run({**feeds, "adj": batch["adj"], "mask": batch["mask"]})
