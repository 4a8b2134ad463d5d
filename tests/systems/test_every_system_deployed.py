"""Every system's bundle measured, and as models of Triton Inference Server."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import triton_proto
from test_every_system import CASES as ALL_CASES

from fcdeploy.cli import main
from fcdeploy.deploy.triton import TYPES, write_model_repository
from fcdeploy.engine.cuda import Gpu
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.runtime import bench
from fcdeploy.runtime.bench import BenchOptions, bench_bundles, free_axes, lengths_for, random_feeds
from fcdeploy.systems import get_system

pytest.importorskip("torch")

CASES = [case for case in ALL_CASES if not case.networks]


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def bundle(case, exported):
    return exported(case)


def test_triton_is_told_names_axes_and_types_of_every_pass(bundle, tmp_path):
    pytest.importorskip("tritonclient")
    types = triton_proto.model_config_pb2().DataType
    models = write_model_repository(bundle, tmp_path / "models")
    assert {path.name for path in (tmp_path / "models").iterdir()} == {
        "fcdeploy.json",
        *(path.name for path in models.values()),
    }
    assert models.keys() == bundle.passes.keys()
    for name, spec in bundle.passes.items():
        folder = models[name]
        assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
            "1/model.onnx",
            "config.pbtxt",
        ]
        assert (folder / "1/model.onnx").read_bytes() == bundle.file(name).read_bytes()
        config = triton_proto.parse((folder / "config.pbtxt").read_text())
        assert (config.name, config.platform) == (folder.name, "onnxruntime_onnx")
        assert config.max_batch_size == 0
        for described, tensors in ((config.input, spec.inputs), (config.output, spec.outputs)):
            assert [tensor.name for tensor in described] == [tensor.name for tensor in tensors]
            for tensor, wanted in zip(described, tensors, strict=True):
                assert list(tensor.dims) == [-1 if isinstance(axis, str) else axis for axis in wanted.axes]
                assert types.Name(tensor.data_type) == TYPES[wanted.dtype]


def test_every_pass_takes_the_inputs_that_it_is_measured_on_and_gives_what_a_run_gets(bundle):
    """The evaluation that is timed step by step has the outputs of the one that is not."""
    for name, spec in bundle.passes.items():
        lengths = lengths_for(bundle, spec, BenchOptions(batch=3, nodes=5))
        assert list(lengths) == free_axes(spec)
        feeds = random_feeds(spec, lengths)
        with bundle.open(name) as engine:
            expected = engine.run(feeds)
            found, timing = engine.timed_run(feeds)
        assert min(timing.host, timing.copies, timing.compute) > 0
        assert found.keys() == expected.keys()
        assert all(np.array_equal(found[output], expected[output], equal_nan=True) for output in expected)


@pytest.fixture(scope="module")
def measured(bundle):
    nodes = 6 if any(len(free_axes(spec)) > 1 for spec in bundle.passes.values()) else None
    options = BenchOptions(batch=4, nodes=nodes, faces=60, seconds=0, threads=1)
    return bench_bundles([bundle], options)[0]


def test_every_pass_and_every_way_of_inference_is_measured(case, bundle, measured):
    runs = [f"run, {inference}" for inference in get_system(case.name).inferences]
    assert [row.what for row in measured.rows] == [*bundle.passes, *runs]
    assert (measured.opened, measured.device) == ("CPUExecutionProvider", "cpu")
    for row in measured.rows:
        assert 0 < row.percentile(50) <= row.percentile(90) <= row.percentile(99)
        assert row.parts.total == pytest.approx(row.percentile(50), rel=1)
        if row.stages:
            assert tuple(row.stages) == case.stages
            assert row.size == {"faces": 60}
            assert sum(row.stages.values()) < max(row.seconds)
            assert 0 < row.parts.compute < row.percentile(99)
        else:
            lengths = list(row.size.values())
            assert lengths == [4, 6, 6][: len(lengths)]
            assert row.per_second == pytest.approx(4 / row.percentile(50))


def test_the_engine_time_of_a_run_is_that_of_its_calls(case, bundle, monkeypatch):
    """An engine slowed down by 5 ms a call makes a run's compute longer by that, and nothing else of it."""
    import time

    calls = []
    straight = OnnxRuntimeEngine.timed_run

    def slow(self, feeds):
        outputs, timing = straight(self, feeds)
        time.sleep(0.005)
        calls.append(self.spec.name)
        return outputs, type(timing)(timing.host, timing.copies, timing.compute + 0.005)

    monkeypatch.setattr(OnnxRuntimeEngine, "timed_run", slow)
    options = BenchOptions(faces=60, seconds=0, passes=(next(iter(bundle.passes)),))
    (_, *runs) = bench_bundles([bundle], options)[0].rows
    inferences = get_system(case.name).inferences
    for row, passes in zip(runs, inferences.values(), strict=True):
        of_run = [name for name in calls if name in (passes or bundle.passes)]
        assert row.parts.compute > 0.005 * len(passes or bundle.passes) * 0.9
        assert set(of_run) == set(passes or bundle.passes)


def test_plans_are_measured_by_what_the_engine_does_not_tell_apart(case, bundle, tmp_path, monkeypatch):
    """On stand-ins for TensorRT and CuPy: whole runs give every batch, and copies are measured alone."""
    import fake_gpu

    trt = fake_gpu.install(monkeypatch)
    monkeypatch.setattr(bench, "import_cupy", lambda: fake_gpu.fake_cupy(trt.memory))
    monkeypatch.setattr(bench, "find_gpu", lambda who, advice: Gpu("Fake GPU", "8.6", 24 << 30))
    plans = fake_gpu.write_fake_bundle(
        bundle.path, tmp_path / "bundle.plan", lambda spec: [dict.fromkeys(free_axes(spec), (1, 64, 2000))]
    )
    report = bench_bundles([plans], BenchOptions(batch=3, faces=60, seconds=0))[0]
    assert (report.opened, report.device) == (f"tensorrt {fake_gpu.VERSION} on Fake GPU", "cuda")
    assert [row.what for row in report.rows][: len(bundle.passes)] == list(bundle.passes)
    for row in report.rows:
        assert row.parts.compute > 0
        assert row.stages or min(row.parts.host, row.parts.copies) > 0


def test_the_command_prints_a_table_or_json_and_compares_bundles(bundle, monkeypatch, capsys):
    def call(*args):
        monkeypatch.setattr(sys, "argv", ["fcdeploy", "bench", *map(str, args)])
        main()
        return capsys.readouterr()

    first = next(iter(bundle.passes))
    options = ("--pass", first, "--batch", 2, "--faces", 0, "--seconds", 0)
    out, _ = call(bundle.path, *options, "--json")
    (report,) = json.loads(out)
    (row,) = report["rows"]
    assert (report["system"], report["precision"], report["opened"]) == (
        bundle.system,
        "fp32",
        "CPUExecutionProvider",
    )
    assert row["what"] == first
    assert row["latency_ms"].keys() == {"p50", "p90", "p99"}
    assert row["parts_ms"].keys() == {"host", "copies", "compute"}
    out, err = call(bundle.path, bundle.path, *options)
    assert f"pass {first}" in err
    lines = [line.split() for line in out.splitlines()]
    rows = [line for line in lines if line and line[0] == first]
    assert rows[0][-1] == "1.00x"
    assert len(rows) == 2
    assert out.count("CPUExecutionProvider") == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batch", "0"], "--batch"),
        (["--nodes", "x"], "--nodes"),
        (["--nodes", "5"], "--nodes: no pass has a second free axis"),
        (["--pass", "far"], "--pass far: there is no such pass, only near, encode, pair"),
        (["--device", "tpu"], "'tpu' is not one of"),
        (["--device", "cuda"], "CUDAExecutionProvider was asked for but ONNX Runtime opened"),
        (["--faces", "19"], "there are only 19 faces"),
        (["--seconds", "-1"], "--seconds"),
    ],
    ids=str,
)
def test_options_that_cannot_be_measured_are_refused_in_one_sentence(
    options, words, exported, monkeypatch, capsys
):
    bundle = exported(next(case for case in CASES if case.name == "sepfl"))
    args = ["bench", str(bundle.path), "--seconds", "0", "--pass", "near", "--batch", "1", *options]
    monkeypatch.setattr(sys, "argv", ["fcdeploy", *args])
    with pytest.raises(SystemExit) as stopped:
        main()
    out, err = capsys.readouterr()
    assert out == ""
    assert stopped.value.code == (1 if "cuda" in options else 2)
    assert words in err.splitlines()[-1]


def test_the_benchmark_of_latency_writes_figures_and_a_plot(bundle, tmp_path):
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    import bench_latency

    args = ["--engine", bundle.path, "--batches", "1,2", "--nodes", "3", "--faces", "60", "--seconds", "0"]
    bench_latency.main.main([*map(str, args), "--folder", str(tmp_path)], standalone_mode=False)
    report = json.loads((tmp_path / "latency.json").read_text())
    for name, spec in bundle.passes.items():
        axis, *others = free_axes(spec)
        rows = [row for row in report["rows"] if row["what"] == name]
        assert [row[axis] for row in rows] == [1, 2]
        assert all(row[other] == 3 for row in rows for other in others)
    runs = [row for row in report["rows"] if "faces" in row]
    assert len(runs) == len(get_system(bundle.system).inferences)
    assert all(row["opened"] == "CPUExecutionProvider" and row["p50_ms"] > 0 for row in report["rows"])
    assert (tmp_path / "latency.png").read_bytes().startswith(b"\x89PNG")
