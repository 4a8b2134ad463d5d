"""Every system with ONNX Runtime's CUDA provider: what it computes, and that the clusters are the CPU's."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from system_cases import CASES

import fcdeploy
from fcdeploy.cli import cli
from fcdeploy.clustering.metrics import share_in_same_cluster
from fcdeploy.engine.bundle import Bundle
from fcdeploy.runtime.bench import BenchOptions, lengths_for, random_feeds

pytestmark = pytest.mark.gpu
pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(case, exported, cut_bundle, tmp_path_factory) -> Bundle:
    whole = exported(case)
    if not case.networks:
        return whole
    return cut_bundle(whole, case.networks, tmp_path_factory.mktemp("cut") / "bundle.onnx")


@pytest.fixture(scope="module")
def faces(golden):
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)


@pytest.fixture
def features(faces, tmp_path):
    np.save(tmp_path / "features.npy", faces)
    return tmp_path / "features.npy"


def test_every_pass_computes_what_it_does_on_the_cpu(bundle):
    """Random rows; errors in parts of the largest output, and nothing rounded to TensorFloat-32, which errs by 1e-3."""
    for name, spec in bundle.passes.items():
        feeds = random_feeds(spec, lengths_for(bundle, spec, BenchOptions(batch=8, nodes=24)))
        with bundle.open(name, device="cuda") as engine:
            found = engine.run(feeds)
            timed, timing = engine.timed_run(feeds)
        with bundle.open(name, device="cpu") as engine:
            wanted = engine.run(feeds)
        assert min(timing.copies, timing.compute) > 0
        for output, array in wanted.items():
            scale = np.abs(array).max() or 1
            assert np.abs(found[output] - array).max() <= 2e-5 * scale, (name, output)
            assert np.abs(timed[output] - array).max() <= 2e-5 * scale, (name, output)


def test_clusters_are_those_of_the_cpu(case, bundle, features, tmp_path):
    expected = fcdeploy.cluster(features, engine=bundle.path, device="cpu")
    assert 1 < expected.max() + 1 < len(expected)
    found = fcdeploy.cluster(features, engine=bundle.path, device="cuda", run_dir=tmp_path / "run")
    assert np.array_equal(found, expected)
    assert np.array_equal(fcdeploy.cluster(features, engine=bundle.path, device="cuda"), expected)
    assert np.array_equal(
        fcdeploy.cluster(features, engine=bundle.path, device="cuda", vram=1 << 30), expected
    )
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert tuple(summary["stages"]) == case.stages


@pytest.mark.parametrize("tables", ["float32", "float16"])
def test_layer_wise_clusters_are_those_of_the_cpu(exported, features, tables):
    """The sums of neighborhoods are computed on the GPU, too, and in another order."""
    bundle = exported(CASES[0])
    options = {"engine": bundle.path, "inference": "layerwise", "tables": tables}
    found, expected = (fcdeploy.cluster(features, device=device, **options) for device in ("cuda", "cpu"))
    if tables == "float32":
        assert np.array_equal(found, expected)
    assert share_in_same_cluster(found, expected) >= 0.99


def test_plans_give_the_clusters_of_the_graphs(bundle, features, tmp_path, monkeypatch):
    """A stand-in for TensorRT on real device memory, streams and events; tables stay there, rows are gathered there."""
    import fake_gpu

    def profiles(spec):
        axes = {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
        return [{axis: (1, 8, 64 if axis in ("m", "b") else 4096) for axis in axes}]

    trt = fake_gpu.install(monkeypatch, pytest.importorskip("cupy"))
    plans = fake_gpu.write_fake_bundle(bundle.path, tmp_path / "bundle.plan", profiles)
    for options in ({}, {"vram": 2 << 30}):
        found = fcdeploy.cluster(features, engine=plans.path, **options)
        assert np.array_equal(found, fcdeploy.cluster(features, engine=bundle.path, device="cpu"))
    assert len(trt.calls) > 2 * len(np.load(features)) // 64


def test_the_commands_say_which_gpu_there_is(exported):
    bundle = exported(CASES[0])
    args = ["bench", str(bundle.path), "--device", "cuda", "--seconds", "0.2", "--faces", "300", "--json"]
    for command in (args, ["doctor", "--json"]):
        done = CliRunner().invoke(cli, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        assert "NVIDIA" in json.dumps(json.loads(done.stdout))  # and no words of ONNX Runtime's before it
