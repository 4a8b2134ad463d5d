"""Triton reads what we write: its own protobuf definition parses every configuration."""

import json
import sys

import fake_gpu
import numpy as np
import pytest
import triton_proto

from fcdeploy.cli import main
from fcdeploy.deploy.triton import TYPES, config_text, write_model_repository
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import FcdeployWarning, InputError

pytest.importorskip("tritonclient")


@pytest.fixture(scope="session")
def model_config():
    return triton_proto.model_config_pb2()


@pytest.fixture
def command(monkeypatch, capsys):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["fcdeploy", *map(str, args)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def plan(write_bundle, tmp_path):
    """A bundle of plans with three profiles; they are not opened."""
    profiles = [{"m": [1, 8, 16]}, {"m": [17, 32, 64]}, {"m": [65, 128, 256]}]
    return fake_gpu.write_fake_bundle(write_bundle(), tmp_path / "small.plan", lambda spec: profiles).path


def test_axes_and_types_by_hand(model_config):
    spec = PassSpec(
        "pair",
        (TensorSpec("x", ("b", "n", 8)), TensorSpec("ids", ("b", 3), "int32")),
        (TensorSpec("score", ("b",), "float16"),),
    )
    config = triton_proto.parse(config_text("net_pair", spec, "onnxruntime_onnx"))
    assert (config.name, config.platform, config.max_batch_size) == ("net_pair", "onnxruntime_onnx", 0)
    assert [(tensor.name, list(tensor.dims)) for tensor in config.input] == [
        ("x", [-1, -1, 8]),
        ("ids", [-1, 3]),
    ]
    assert [tensor.data_type for tensor in config.input] == [model_config.TYPE_FP32, model_config.TYPE_INT32]
    assert [(t.name, list(t.dims), t.data_type) for t in config.output] == [
        ("score", [-1], model_config.TYPE_FP16)
    ]
    assert not config.instance_group


@pytest.mark.parametrize("dtype", TYPES)
def test_every_type_is_one_that_triton_has(model_config, dtype):
    np.dtype(dtype)
    spec = PassSpec("p", (TensorSpec("x", ("m",), dtype),), (TensorSpec("y", ("m",), dtype),))
    kind = triton_proto.parse(config_text("p", spec, "onnxruntime_onnx")).input[0].data_type
    assert model_config.DataType.Name(kind) == TYPES[dtype]


def test_plans_are_served_by_tensorrt_with_all_of_their_profiles(model_config, plan, tmp_path):
    models = write_model_repository(read_bundle(plan), tmp_path / "models")
    assert (models["near"] / "1/model.plan").read_bytes() == (plan / "near.plan").read_bytes()
    config = triton_proto.parse((models["near"] / "config.pbtxt").read_text())
    assert config.platform == "tensorrt_plan"
    (group,) = config.instance_group
    assert group.kind == model_config.ModelInstanceGroup.KIND_GPU
    assert list(group.profile) == ["0", "1", "2"]


def test_models_that_onnx_runtime_serves_say_how_its_telemetry_is_turned_off(write_bundle, plan, tmp_path):
    models = write_model_repository(read_bundle(write_bundle()), tmp_path / "models")
    assert "ORT_DISABLE_TELEMETRY=1" in (models["near"] / "config.pbtxt").read_text()
    models = write_model_repository(read_bundle(plan), tmp_path / "plans")
    assert "TELEMETRY" not in (models["near"] / "config.pbtxt").read_text()


def test_plans_that_triton_cannot_load_are_said_to_be_so(plan, tmp_path):
    manifest = json.loads((plan / "manifest.json").read_text())
    manifest["target"]["flavour"] = "tensorrt-rtx"
    (plan / "manifest.json").write_text(json.dumps(manifest))
    with pytest.warns(
        FcdeployWarning, match="holds plans of tensorrt-rtx; build it with a profile of flavour"
    ):
        write_model_repository(read_bundle(plan), tmp_path / "models")


def test_the_command_tells_the_models_and_writes_over_its_own_repository(write_bundle, command, tmp_path):
    source, output = write_bundle(), tmp_path / "models"
    assert command("triton", source, "-o", output) == (0, f"{output}: models sepfl_near\n", "")
    assert command("triton", source, "-o", output, "--prefix", "a.b-c", "--quiet") == (0, "", "")
    assert command("triton", source, "-o", output, "--prefix", "a.b-c", "--quiet") == (0, "", "")
    assert sorted(path.name for path in output.iterdir()) == ["a.b-c_near", "fcdeploy.json", "sepfl_near"]
    engines = json.loads((output / "fcdeploy.json").read_text())["engines"]
    assert {prefix: engine["models"] for prefix, engine in engines.items()} == {
        "sepfl": {"near": "sepfl_near"},
        "a.b-c": {"near": "a.b-c_near"},
    }


@pytest.mark.parametrize("fault", ["changed", "prefix", "foreign", "missing"])
def test_what_cannot_be_written_is_one_sentence_and_leaves_nothing(fault, write_bundle, command, tmp_path):
    source, output, options = write_bundle(), tmp_path / "models", []
    if fault == "changed":
        (source / "near.onnx").write_bytes(b"other")
    elif fault == "prefix":
        options = ["--prefix", "a/b"]
    elif fault == "foreign":
        output.mkdir()
        (output / "mine.txt").write_text("mine")
    else:
        source = tmp_path / "nothing.onnx"
    words = {
        "changed": "not the file that the manifest was written for",
        "prefix": "model names are made of",
        "foreign": "was not written by fcdeploy",
        "missing": "no such engine",
    }[fault]
    code, out, err = command("triton", source, "-o", output, *options)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert [path.name for path in output.rglob("*")] == (["mine.txt"] if fault == "foreign" else [])
    with pytest.raises(InputError):
        write_model_repository(read_bundle(source), output, *options[1:])
