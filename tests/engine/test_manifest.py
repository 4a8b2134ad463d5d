"""Manifests as types: what is there is read as it is, what cannot be names its place, the value and what should be."""

import copy
from pathlib import Path
from typing import Any

import pytest

from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.manifest import AgreementRun, manifest_from_dict
from fcdeploy.engine.tensors import TensorSpec
from fcdeploy.errors import InputError

PASS = {
    "file": "near.onnx",
    "sha256": "0" * 64,
    "bytes": 12,
    "inputs": [{"name": "x", "axes": ["m", 4], "dtype": "float32"}],
    "outputs": [{"name": "y", "axes": ["m"], "dtype": "int64"}],
}
PARITY = {
    "backend": "onnxruntime",
    "tolerance": 1e-5,
    "sizes": [[2, 3], [4, 5]],
    "max_error": 0,
    "mean_error": float("nan"),
    "nan": 0,
    "edges": 10,
    "flipped": 1,
    "undecided": 0,
    "allowed_flips": 1,
}
WHOLE: dict[str, Any] = {
    "format": "fcdeploy-bundle",
    "format_version": 2,
    "system": "sepfl",
    "feature_dim": 4,
    "precision": "fp16",
    "recipe": {"system": "sepfl"},
    "passes": {"near": PASS},
    "networks": {
        "pairwise": {
            "widths": {"dim": 4, "hidden": [8, 2]},
            "checkpoint": {"file": "c.pth", "sha256": "1", "key": "ema"},
            "parity": PARITY,
        }
    },
    "versions": {"fcdeploy": "1"},
    "fp16": {
        "keep": "decisions",
        "products": {"near": {"fp16": 3, "fp32": 1}},
        "agreement": {
            "faces": 100,
            "source": "f.bin",
            "least": 0.5,
            "runs": [
                {"inference": "exact", "options": {}, "share": 1, "clusters": [3, 3]},
                {"inference": "exact", "options": {"tau": 0.75}, "share": 0.5, "clusters": [3, None]},
            ],
        },
    },
    "later": {"what a later version adds": True},
}
PLANS: dict[str, Any] = WHOLE | {
    "kind": "plan",
    "passes": {"near": PASS | {"profiles": [{"m": [1, 2, 3]}]}},
    "target": {
        "flavour": "tensorrt-rtx",
        "version": "1.4",
        "compute_capability": "8.6",
        "device": "",
        "profile": "rtx3090",
        "workspace": 0,
    },
    "source": {"bundle": "s.onnx", "digest": "2"},
}


def changed(table: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """The table with another value at a dotted place, or without it where that is ``changed`` itself."""
    table = copy.deepcopy(table)
    *before, last = place.split(".")
    at = table
    for key in before:
        at = at[int(key)] if isinstance(at, list) else at[key]
    if value is changed:
        del at[last]
    else:
        at[last] = value
    return table


def test_a_manifest_is_read_as_types() -> None:
    manifest = manifest_from_dict(WHOLE, "m")
    near, network = manifest.passes["near"], manifest.networks["pairwise"]
    assert (near.file, near.bytes, near.profiles) == ("near.onnx", 12, None)
    assert (near.inputs, near.outputs) == ((TensorSpec("x", ("m", 4)),), (TensorSpec("y", ("m",), "int64"),))
    assert network.widths == {"dim": 4, "hidden": (8, 2)}
    assert network.parity.sizes == ((2, 3), (4, 5))
    assert network.parity.within_tolerance
    assert manifest.fp16 is not None
    assert manifest.fp16.agreement.worst == AgreementRun("exact", {"tau": 0.75}, 0.5, (3, None))
    assert "at least 50.00% of 100 faces (f.bin)" in str(manifest.fp16.agreement)
    assert "(exact, tau = 0.75)" in str(manifest.fp16.agreement)
    assert (manifest.kind, manifest.target, manifest.recipe_from.source) == ("onnx", None, "")
    assert manifest.remake("x") == "export the bundle again"


def test_plans_say_how_to_build_them_again() -> None:
    manifest = manifest_from_dict(PLANS, "m")
    assert manifest.passes["near"].profiles == ({"m": (1, 2, 3)},)
    assert manifest.remake("x.plan") == "rebuild it with `fcdeploy build s.onnx -o x.plan --profile rtx3090`"
    assert Bundle(Path("x.plan"), PLANS).target.compute_capability == "8.6"


@pytest.mark.parametrize(
    ("table", "place", "value", "says"),
    [
        (WHOLE, "feature_dim", "4", "feature_dim should be a whole number, found '4'"),
        (WHOLE, "feature_dim", True, "feature_dim should be a whole number, found True"),
        (WHOLE, "recipe", [1], "recipe should be a table, found [1]"),
        (WHOLE, "versions", changed, "versions should be a table, and is missing"),
        (WHOLE, "passes", {}, "passes should be a table of passes, found {}"),
        (WHOLE, "passes.near.bytes", 1.5, "passes.near.bytes should be a whole number, found 1.5"),
        (WHOLE, "passes.near.inputs", [], "passes.near.inputs should be a list of tensors, found []"),
        (WHOLE, "passes.near.inputs.0.axes", ["m", 0], "passes.near.inputs[0].axes should be a list of names"),
        (WHOLE, "passes.near.outputs.0.dtype", "float31", "passes.near.outputs[0].dtype should be bool, uint8"),
        (WHOLE, "networks.pairwise.widths.dim", 0, "networks.pairwise.widths.dim should be a whole number"),
        (WHOLE, "networks.pairwise.widths.dim", changed, "networks.pairwise.widths.dim is missing"),
        (WHOLE, "networks.pairwise.checkpoint", "c.pth", "networks.pairwise.checkpoint should be a table"),
        (WHOLE, "networks.pairwise.parity.max_error", "0", "networks.pairwise.parity.max_error should be a number"),
        (WHOLE, "networks.pairwise.parity.nan", changed, "networks.pairwise.parity.nan should be a whole number"),
        (WHOLE, "fp16.agreement.runs.1.share", None, "fp16.agreement.runs[1].share should be a number, found None"),
        (WHOLE, "kind", "plans", "kind should be one of onnx, plan, found 'plans'"),
        (WHOLE, "format", "other", "format should be 'fcdeploy-bundle', found 'other'"),
        (PLANS, "target.flavour", "tensorrt-xtr", "target.flavour should be tensorrt or tensorrt-rtx"),
        (PLANS, "target.version", changed, "target.version should be a string, and is missing"),
        (PLANS, "passes.near.profiles", changed, "target, source or profiles of plans are missing"),
        (PLANS, "passes.near.profiles", [{"m": [1, 2]}], "passes.near.profiles[0].m should be a list of 3 values"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_a_manifest_cannot_say_is_refused_by_its_place(
    table: dict[str, Any], place: str, value: Any, says: str
) -> None:
    with pytest.raises(InputError) as refused:
        manifest_from_dict(changed(table, place, value), "x.onnx/manifest.json")
    assert str(refused.value).startswith(f"x.onnx/manifest.json: is not a bundle's manifest ({says}")
    assert str(refused.value).endswith("); export the bundle again.")
