"""Building plans for a GPU that is not there: what is written, and the one sentence for everything that goes wrong."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import fcdeploy.deploy.engine_from_onnx as building
import fcdeploy.engine.cuda as cuda
import fcdeploy.engine.tensorrt as running
from fcdeploy.cli import main
from fcdeploy.data.digests import sha256_of
from fcdeploy.deploy.build_profile import load_profile
from fcdeploy.deploy.engine_from_onnx import build_bundle
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.engine.cuda import Gpu
from fcdeploy.errors import FcdeployError, InputError

pytest.importorskip("onnx")
trt = pytest.importorskip("tensorrt_rtx")

RTX3090 = Gpu("NVIDIA GeForce RTX 3090", "8.6", 24 << 30)


@pytest.fixture
def source(write_bundle) -> Path:
    return write_bundle()


@pytest.fixture
def plan(source, tmp_path) -> Path:
    return build_bundle(source, tmp_path / "small.plan").path


@pytest.fixture
def on_gpu(monkeypatch) -> Callable[[Gpu], None]:
    """Let the machine have a GPU, as far as its driver tells."""

    def have(gpu: Gpu) -> None:
        for module in (running, building):
            monkeypatch.setattr(module, "find_gpu", lambda who, advice: gpu)

    return have


@pytest.fixture
def command(monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    def call(*args: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fcdeploy", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0  # type: ignore[assignment]
        return code, *capsys.readouterr()

    return call


def test_a_plan_bundle_keeps_what_its_source_says_and_adds_what_it_was_built_for(source, plan):
    before, after = read_bundle(source), read_bundle(plan)
    kept = ("system", "feature_dim", "precision", "recipe", "networks")
    assert {key: after.manifest[key] for key in kept} == {key: before.manifest[key] for key in kept}
    assert (before.kind, after.kind) == ("onnx", "plan")
    assert after.passes == before.passes
    assert after.manifest["target"] == {
        "flavour": "tensorrt-rtx",
        "version": trt.__version__,
        "compute_capability": "8.6",
        "device": "",
        "profile": "rtx3090",
        "workspace": 4 << 30,
    }
    assert after.manifest["source"] == {"bundle": "small.onnx", "digest": before.digest()}
    near = after.manifest["passes"]["near"]
    assert near["file"] == "near.plan"
    assert near["source"] == {"file": "near.onnx", "sha256": sha256_of(source / "near.onnx")}
    assert near["profiles"] == [{"m": [1, 4096, 16384]}]
    assert near["sha256"] == sha256_of(plan / "near.plan")
    assert after.manifest["versions"]["tensorrt-rtx"] == trt.__version__
    assert after.digest() != before.digest()
    after.check_files()


def test_the_plan_is_what_tensorrt_for_rtx_would_load_for_8_6(plan):
    """Its header, asked of TensorRT itself: without a GPU nothing is valid, but no plan at all is worse than that."""
    runtime = trt.Runtime(building.logger_of(trt))
    header = (plan / "near.plan").read_bytes()[: runtime.engine_header_size]
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    assert not runtime.get_engine_validity(header)[1] & malformed


def test_fp32_stays_fp32_and_the_network_is_strongly_typed(source, monkeypatch, tmp_path):
    """TF32, on by default, would round float32 products to ten bits."""
    seen = {}
    straight = building.parse_network

    def parse(*args):
        network = straight(*args)
        seen["typed"] = network.get_flag(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        return network

    class Config:
        """A builder's configuration that notes which flags were cleared."""

        def __init__(self, real):
            object.__setattr__(self, "real", real)

        def __getattr__(self, name):
            if name == "clear_flag":
                seen.setdefault("cleared", [])
                return lambda flag: (seen["cleared"].append(flag), self.real.clear_flag(flag))
            return getattr(self.real, name)

        def __setattr__(self, name, value):
            setattr(self.real, name, value)

    class Builder:
        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def create_builder_config(self):
            seen["config"] = Config(self.real.create_builder_config())
            return seen["config"]

        def build_serialized_network(self, network, config):
            seen["tf32"] = config.real.get_flag(trt.BuilderFlag.TF32)
            seen["workspace"] = config.real.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
            seen["capability"] = config.real.get_compute_capability(0)
            return self.real.build_serialized_network(network, config.real)

    straight_builder = building._builder

    def builder(*args):
        inner = straight_builder(*args)

        class Wrapped:
            def __enter__(self):
                return Builder(inner.__enter__())

            def __exit__(self, *error):
                return inner.__exit__(*error)

        return Wrapped()

    monkeypatch.setattr(building, "parse_network", parse)
    monkeypatch.setattr(building, "_builder", builder)
    build_bundle(source, tmp_path / "small.plan")
    assert seen["typed"]
    assert not seen["tf32"]
    assert seen["workspace"] == 4 << 30
    assert seen["capability"] == trt.ComputeCapability.SM86


@pytest.mark.parametrize("capability", ["8.0", "8.6", "8.9", "12.0"])
def test_other_gpus_by_their_compute_capability(source, command, tmp_path, capability):
    args = ("build", source, "-o", tmp_path / "x.plan", "--compute-capability", capability, "--quiet")
    assert command(*args) == (0, "", "")
    assert read_bundle(tmp_path / "x.plan").target.compute_capability == capability


@pytest.mark.skipif(
    tuple(map(int, trt.__version__.split(".")[:2])) < (1, 7), reason="compiles it, or says it otherwise"
)
def test_what_tensorrt_has_no_kernels_for_is_told_in_its_own_words(source, command, tmp_path):
    """TensorRT for RTX has no float32 matrix products for Turing."""
    args = ("build", source, "-o", tmp_path / "x.plan", "--compute-capability", "7.5")
    err = failure(command, tmp_path, *args, code=1)
    assert (
        "cannot build this graph (Cannot compile operation 'product' for Turing (SM75): FP32 GEMM is" in err
    )
    assert err.endswith("supported); see " + str(tmp_path / "x.plan.log") + ".\n")


def test_the_command_tells_what_it_built(source, command, tmp_path):
    code, out, err = command("build", source, "-o", tmp_path / "x.plan")
    assert code == 0
    assert "sepfl, fp32, passes near" in out
    assert f"for compute capability 8.6, by tensorrt-rtx {trt.__version__}" in out
    assert err.startswith("near: ")
    assert "== " in (tmp_path / "x.plan.log").read_text()
    code, out, _ = command("inspect", tmp_path / "x.plan")
    assert "built for compute capability 8.6" in out
    assert "m 1 to 16384 (typically 4096)" in out
    assert json.loads(command("inspect", tmp_path / "x.plan", "--json")[1])["kind"] == "plan"


def test_the_output_is_named_after_the_source_and_the_log_goes_where_it_is_told(
    source, command, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert command("build", "small.onnx", "--log-file", "x.txt", "--quiet")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"small.onnx", "small.plan", "x.txt"}


def failure(command: Any, folder: Path, *args: object, code: int = 2) -> str:
    """Run a command that has to fail in one line and to leave nothing but a log; return the line."""
    before = {path for path in folder.rglob("*") if path.suffix != ".log"}
    found, out, err = command(*args)
    assert (found, out) == (code, "")
    assert err.startswith("Error: ")
    assert err.count("\n") == 1
    assert {path for path in folder.rglob("*") if path.suffix != ".log"} == before
    return err


@pytest.mark.parametrize(("operator", "domain"), [("Det", ""), ("Mystery", "made.up")])
def test_an_operator_that_tensorrt_does_not_know_is_named(write_bundle, command, tmp_path, operator, domain):
    source = write_bundle(rows=(4,) if operator == "Det" else ("m",), operator=operator, domain=domain)
    err = failure(command, tmp_path, "build", source, "-o", tmp_path / "x.plan")
    assert operator in err  # in fcdeploy's words or, of older versions, in TensorRT's own
    assert "near.onnx: TensorRT for RTX" in err
    assert "x.plan.log" in err
    assert operator in (tmp_path / "x.plan.log").read_text()


def test_too_little_workspace_is_said_and_what_to_do(source, command, tmp_path):
    (tmp_path / "tight.toml").write_text(
        '[target]\nflavour = "tensorrt-rtx"\ncompute_capability = "8.6"\nworkspace = 1\n[axes]\nm = [1, 2, 999999]\n'
    )
    args = ("build", source, "-o", tmp_path / "x.plan", "--profile", tmp_path / "tight.toml")
    err = failure(command, tmp_path, *args, code=1)
    assert "cannot build this graph (" in err
    assert "workspace" in err
    assert "raise the profile's workspace; see " in err


def test_a_graph_cut_short_or_of_other_tensors_than_the_manifest_says(
    source, command, tmp_path, edit_manifest
):
    content = (source / "near.onnx").read_bytes()
    (source / "near.onnx").write_bytes(content[:100])
    err = failure(command, tmp_path, "build", source, "-o", tmp_path / "x.plan")
    assert "near.onnx: is not the file that the manifest was written for (it holds 100 of" in err
    edit_manifest(source, lambda m: m["passes"]["near"].update(sha256=sha256_of(source / "near.onnx")))
    err = failure(command, tmp_path, "build", source, "-o", tmp_path / "x.plan")
    assert "cannot read this graph" in err
    (source / "near.onnx").write_bytes(content)

    def other(manifest):
        manifest["passes"]["near"]["sha256"] = sha256_of(source / "near.onnx")
        manifest["passes"]["near"]["outputs"][0]["axes"] = ["m", 5]

    edit_manifest(source, other)
    err = failure(command, tmp_path, "build", source, "-o", tmp_path / "x.plan")
    assert (
        "the parsed outputs are not those of the manifest; expected y (m, 5) float32, found y (?, 4)" in err
    )


def test_what_cannot_be_built_from_or_to(source, plan, command, tmp_path):
    def fails(*args):
        return failure(command, tmp_path, "build", *args)

    assert "holds plans already" in fails(plan, "-o", tmp_path / "x.plan")
    assert "is the bundle to be built" in fails(source, "-o", source)
    assert "the folder " in fails(source, "-o", tmp_path / "no/x.plan")
    assert "no such engine" in fails(tmp_path / "no.onnx", "-o", tmp_path / "x.plan")
    assert "no such build profile" in fails(source, "-o", tmp_path / "x.plan", "--profile", "rtx1")
    assert "does not compile for compute capability 9.0, only for 7.5" in fails(
        source, "-o", tmp_path / "x.plan", "--compute-capability", "9.0"
    )
    assert "should be a compute capability" in fails(
        source, "-o", tmp_path / "x.plan", "--compute-capability", "sm86"
    )
    (tmp_path / "wrong.toml").write_text(
        '[target]\nflavour = "tensorrt-rtx"\ncompute_capability = "8.6"\n[systems.sepfl.far]\nm = [1, 2, 3]\n'
    )
    err = fails(source, "-o", tmp_path / "x.plan", "--profile", tmp_path / "wrong.toml")
    assert "systems.sepfl.far is not a pass of" in err


def test_a_failed_build_leaves_the_plans_of_an_earlier_one(write_bundle, plan, tmp_path):
    before = {path.name: path.read_bytes() for path in plan.iterdir()}
    with pytest.raises(InputError, match="Mystery"):
        build_bundle(write_bundle(operator="Mystery", domain="made.up"), plan)
    assert {path.name: path.read_bytes() for path in plan.iterdir()} == before


def test_a_flavour_that_is_not_installed_says_how_to_get_it(source, command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    err = failure(command, tmp_path, "build", source, "-o", tmp_path / "x.plan", "--profile", "h200")
    assert "TensorRT is not installed; install it with `pip install 'fcdeploy[tensorrt]'`" in err


def test_tensorrt_itself_builds_only_on_the_gpu_it_builds_for(source, command, tmp_path, monkeypatch, on_gpu):
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.13.0", __name__="tensorrt"))
    monkeypatch.setattr(cuda, "DRIVER", "libcuda-of-nobody.so")
    args = ("build", source, "-o", tmp_path / "x.plan", "--profile", "h200")
    assert "profile h200: TensorRT builds on the GPU itself and needs an NVIDIA GPU" in failure(
        command, tmp_path, *args
    )
    on_gpu(RTX3090)
    err = failure(command, tmp_path, *args)
    assert "is for compute capability 9.0" in err
    assert "RTX 3090 with 8.6; give --compute-capability 8.6" in err


def test_onnx_runtimes_own_optimised_graphs_give_the_same_numbers(source, tmp_path):
    import numpy as np

    built = build_bundle(source, tmp_path / "cpu.onnx", "cpu")
    assert built.kind == "onnx"
    x = np.random.default_rng(0).standard_normal((5, 4), dtype=np.float32)
    outputs = []
    for bundle in (read_bundle(source), built):
        with bundle.open("near") as engine:
            outputs.append(engine.run({"x": x})["y"])
    assert np.array_equal(*outputs)


@pytest.mark.parametrize("option", ["compute_capability", "log_file"])
def test_what_is_for_tensorrt_only_is_refused_for_onnx_runtime(source, tmp_path, option):
    given = {"compute_capability": "8.9", "log_file": tmp_path / "x.log"}[option]
    with pytest.raises(InputError, match=f"--{option.replace('_', '-')}: .*profile cpu.*leave it out"):
        build_bundle(source, tmp_path / "cpu.onnx", "cpu", **{option: given})
    assert not (tmp_path / "cpu.onnx").exists()


# Opening plans


def test_a_plan_runs_on_a_gpu_only(plan, command, golden, tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "DRIVER", "libcuda-of-nobody.so")
    with pytest.raises(InputError, match=r"run on a GPU only; leave device out, or give .* small.onnx"):
        read_bundle(plan).check_device("cpu")
    with pytest.raises(InputError, match="needs an NVIDIA GPU, and CUDA finds none on this machine"):
        read_bundle(plan).check_device()


def test_another_version_is_refused_with_both_named_and_the_command_that_rebuilds(
    plan, edit_manifest, on_gpu
):
    on_gpu(RTX3090)
    read_bundle(plan).check_device()
    edit_manifest(plan, lambda m: m["target"].update(version="1.6.0.1"))
    with pytest.raises(InputError) as refused:
        read_bundle(plan).check_device("cuda")
    assert str(refused.value) == (
        f"{plan}: was built by TensorRT for RTX 1.6.0.1, and {trt.__version__} is installed; rebuild it with "
        "`fcdeploy build small.onnx -o small.plan --profile rtx3090`, or install the other with "
        "`pip install 'tensorrt-rtx==1.6.0.1'`."
    )


def test_another_gpu_is_refused_with_both_named_and_the_command_that_rebuilds(plan, on_gpu, monkeypatch):
    """Before TensorRT is shown the file: it is not even read."""
    on_gpu(Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 << 30))
    bundle = read_bundle(plan)
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read"))
    with pytest.raises(InputError) as refused, bundle.open("near"):
        pass
    assert str(refused.value) == (
        f"{plan}/near.plan: was built for compute capability 8.6, and this machine has NVIDIA GeForce RTX 4090 "
        "(compute capability 8.9); rebuild it with `fcdeploy build small.onnx -o small.plan --profile rtx3090 "
        "--compute-capability 8.9`."
    )


def test_a_plan_measured_on_one_gpu_is_not_for_another_of_the_same_capability(plan, edit_manifest, on_gpu):
    edit_manifest(plan, lambda m: m["target"].update(device="NVIDIA A10"))
    on_gpu(RTX3090)
    with pytest.raises(
        InputError, match=r"built for NVIDIA A10 \(compute capability 8.6\), and this machine"
    ):
        read_bundle(plan).check_device()


@pytest.mark.parametrize("kept", [0, 100])
def test_a_plan_cut_short_is_refused_with_the_command_that_rebuilds(plan, command, kept, tmp_path):
    size = (plan / "near.plan").stat().st_size
    with open(plan / "near.plan", "r+b") as file:
        file.truncate(kept)
    err = failure(command, tmp_path, "inspect", plan)
    assert (
        f"is not the file that the manifest was written for (it holds {kept} of {size:,} bytes); rebuild"
        in err
    )
    assert "`fcdeploy build small.onnx -o small.plan --profile rtx3090`" in err


def test_a_changed_plan_is_refused_when_it_is_opened(plan, on_gpu):
    on_gpu(RTX3090)
    content = bytearray((plan / "near.plan").read_bytes())
    content[len(content) // 2] ^= 1
    (plan / "near.plan").write_bytes(content)
    with (
        pytest.raises(
            InputError, match=r"near.plan: is not the file that the manifest was written for; rebuild"
        ),
        read_bundle(plan).open("near"),
    ):
        pass


def test_a_missing_plan_is_named(plan):
    (plan / "near.plan").unlink()
    with pytest.raises(
        InputError, match=r"the file near.plan of pass near is missing; rebuild it with `fcdeploy"
    ):
        read_bundle(plan)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.pop("target"),
        lambda m: m["target"].pop("version"),
        lambda m: m["target"].update(version=1.7),
        lambda m: m["target"].update(flavour="tensorrt-xtr"),
        lambda m: m.pop("source"),
        lambda m: m["source"].update(bundle=3),
        lambda m: m.update(kind="plans"),
        lambda m: m["passes"]["near"].pop("profiles"),
        lambda m: m["passes"]["near"].update(profiles=[{"m": [1, 2]}]),
        lambda m: m["passes"]["near"].update(profiles=[{"m": "123"}]),
    ],
)
def test_a_damaged_manifest_of_plans_is_refused(plan, edit_manifest, change):
    edit_manifest(plan, change)
    with pytest.raises(InputError, match=r"manifest.json: is not a bundle's manifest"):
        read_bundle(plan)


def test_the_sentences_of_tensorrts_log_are_told_without_its_noise():
    from fcdeploy.engine.tensorrt_library import error_from_log

    noise = "[checkMacros.cpp::catchCudaError::250] Error Code 1: Cuda Runtime (In catchCudaError at x.cpp:1 (35))"
    real = (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([tactic.cpp:1676: enumerate_tactics] Tactic "
        "Selection: no tactics to implement the operation within workspace limit. In compileGraph at /a/b.cpp:2012)"
    )
    told = error_from_log([noise, real])
    assert "no tactics to implement the operation within workspace limit" in told
    assert ".cpp" not in told
    assert error_from_log([noise]) == "no reason given"
    module = "[cudamod.cpp:31: CUDAMod] CUDA error 209 loading a module"
    told = error_from_log(
        [
            f"ICudaEngine::createExecutionContext: Error Code 1: Myelin ({module}.; {module}. In A at /a/b.cpp:79)"
        ]
    )
    assert told == "CUDA error 209 loading a module"
    refused = (
        "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine cannot run on this GPU, which has "
        "compute capability 9.0. In throwUnlessComputeCapSupported at /_src/runtime/dispatch/runtime.cpp:84)"
    )
    assert error_from_log([refused]) == "The engine cannot run on this GPU, which has compute capability 9.0"


def test_asking_for_cuda_fails_when_onnx_runtime_did_not_open_it(source):
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("ONNX Runtime names the CUDA provider here")
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(FcdeployError, match="CUDAExecutionProvider was asked for but ONNX Runtime opened CPU"),
    ):
        read_bundle(source).check_device("cuda")


def test_profiles_reach_the_builder_by_axis_name(write_bundle):
    """Shortest, typical, longest of x (b, n, 4) with groups over b and n, and with ranges for each axis alone."""
    source = read_bundle(write_bundle(rows=("b", "n")))
    profile = load_profile("rtx3090")
    spec = source.passes["near"]
    groups = profile.ranges("sepfl", spec)
    builder = trt.Builder(building.logger_of(trt))
    shapes = [building.optimization_profile(builder, spec, group).get_shape("x") for group in groups]
    found = [tuple(tuple(shape) for shape in three) for three in shapes]
    assert found[0] == ((1, 1, 4), (256, 16, 4), (512, 32, 4))
    assert found[-1] == ((1, 1025, 4), (2, 1536, 4), (4, 2048, 4))
    assert len(found) == 7
