"""Small bundles written by hand, which build in a tenth of a second."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdeploy.engine.bundle import new_bundle, write_manifest
from fcdeploy.engine.tensors import PassSpec, TensorSpec

DIM = 4
NETWORK = {
    "widths": {"dim": DIM, "k": 2},
    "checkpoint": {"file": "checkpoint.pth", "sha256": "0" * 64},
    "parity": {
        "backend": "onnxruntime",
        "tolerance": 1e-5,
        "allowed_flips": 0,
        "sizes": [[1, 2]],
        "rows": 1,
        "rows_apart": 0,
        "max_error": 1e-7,
        "mean_error": 1e-8,
        "nan": 0,
        "edges": 1,
        "flipped": 0,
        "undecided": 0,
        "within_tolerance": True,
    },
}


def linear_graph(
    path: Path, rows: tuple[str, ...] = ("m",), operator: str = "Relu", domain: str = ""
) -> None:
    """Write y = operator(x W + 1) for x (*rows, 4), W (4, 4) of 0 to 15; rows name free axes."""
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.arange(DIM * DIM, dtype=np.float32).reshape(DIM, DIM)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["xw"], name="product"),
            helper.make_node("Add", ["xw", "one"], ["z"], name="shift"),
            helper.make_node(operator, ["z"], ["y"], name="last", domain=domain),
        ],
        "linear",
        [helper.make_tensor_value_info("x", kind, [*rows, DIM])],
        [helper.make_tensor_value_info("y", kind, [*rows, DIM])],
        [
            onnx.numpy_helper.from_array(weights, "w"),
            onnx.numpy_helper.from_array(np.ones(1, np.float32), "one"),
        ],
    )
    opsets = [helper.make_opsetid("", 20), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(graph, opset_imports=opsets)
    model.ir_version = 10
    path.write_bytes(model.SerializeToString())


@pytest.fixture
def write_bundle(tmp_path: Path) -> Callable[..., Path]:
    """Write a bundle of one pass ``near``: y = relu(x W + 1), or with another operator at the end."""

    def write(
        rows: tuple[str, ...] = ("m",), operator: str = "Relu", domain: str = "", **fields: Any
    ) -> Path:
        path = tmp_path / "small.onnx"
        spec = PassSpec("near", (TensorSpec("x", (*rows, DIM)),), (TensorSpec("y", (*rows, DIM)),))
        with new_bundle(path) as folder:
            linear_graph(folder / "near.onnx", rows, operator, domain)
            described = {
                "system": "sepfl",
                "feature_dim": DIM,
                "precision": "fp32",
                "recipe": {"system": "sepfl", "feature_dim": DIM, "links": {"k": 2}},
                "networks": {"pairwise": NETWORK},
                "versions": {"onnx": "1"},
                **fields,
            }
            write_manifest(folder, {"near": spec}, described)
        return path

    return write


@pytest.fixture
def edit_manifest() -> Callable[[Path, Callable[[dict[str, Any]], None]], None]:
    """Change a bundle's manifest in place."""

    def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
        manifest = json.loads((path / "manifest.json").read_text())
        change(manifest)
        (path / "manifest.json").write_text(json.dumps(manifest))

    return edit
