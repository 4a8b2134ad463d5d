"""The script for a machine with a GPU, as far as it goes without one."""

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import create_autospec

import cuda_on_cpu
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bench_gpu
import gpu_carry
import gpu_report
import report as bench_report

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu_check.sh"


@pytest.mark.parametrize(
    ("more", "steps", "seconds"),
    [
        ([], {"install", "tests", "gpu", "scale", "latency", "memcheck", "racecheck"}, 360),
        (["--more"], {"install", "vram", "host", "large"}, 600),
    ],
)
def test_all_steps_together_take_less_than_six_minutes_and_further_ones_ten(more, steps, seconds):
    listed = subprocess.run(["bash", SCRIPT, *more, "--list"], capture_output=True, text=True, check=True)
    limits = dict(line.split("\t") for line in listed.stdout.splitlines())
    assert limits.keys() | {"install"} == steps
    assert sum(map(int, limits.values())) + 40 * ("install" not in limits) < seconds
    refused = subprocess.run(["bash", SCRIPT, "--lots"], capture_output=True, text=True, check=False)
    assert (refused.returncode, "--lots" in refused.stderr) == (2, True)


def test_a_step_that_fails_is_told_and_the_others_run_all_the_same(tmp_path):
    """In a copy, with a Python that does nothing but write the report, and fails in the benchmark of whole runs.

    When latencies are measured, what was before is reported: the script may be ended at any time.
    """
    (tmp_path / "benchmarks").mkdir()
    for name in ("gpu_check.sh", "gpu_report.py", "report.py"):
        (tmp_path / "benchmarks" / name).write_text((ROOT / "benchmarks" / name).read_text())
    (tmp_path / "tests").mkdir()
    for name, text in (
        ("test_gpu.py", "@pytest.mark.gpu\n"),
        ("test_other.py", "import what_is_not_there\n"),
    ):
        (tmp_path / "tests" / name).write_text(text)
    wheels = tmp_path / "build/gpu/wheels"
    wheels.mkdir(parents=True)
    (wheels / "large.whl").write_bytes(bytes(range(250)))
    gpu_carry.cut(wheels / "large.whl", 100)
    assert [file.name[-8:] for file in sorted(wheels.iterdir())] == [f".part-a{letter}" for letter in "abc"]
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\ncase "$*" in *gpu_report*) exec "{sys.executable}" "$@";; '
        "*bench_scale*) exit 3;; "
        f'*bench_latency*) cp benchmarks/results/gpu_check.json "{tmp_path}/so-far.json";; esac\n'
    )
    stub.chmod(0o755)
    environment = {**os.environ, "GPU_CHECK_PYTHON": str(stub), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", tmp_path / "benchmarks/gpu_check.sh"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    rows = json.loads((tmp_path / "benchmarks/results/gpu_check.json").read_text())["rows"]
    so_far = json.loads((tmp_path / "so-far.json").read_text())["rows"]
    assert (
        [row["step"] for row in so_far]
        == ["install", "tests", "gpu", "scale"]
        == [row["step"] for row in rows[:4]]
    )
    outcomes = {row["step"]: row["outcome"] for row in rows}
    assert outcomes.pop("scale") == "failed with exit code 3"
    checkers = {outcomes.pop("memcheck"), outcomes.pop("racecheck")}  # compute-sanitizer is not there
    assert checkers == {"failed with exit code 127"}
    assert set(outcomes.values()) == {"passed"}
    assert (wheels / "large.whl").read_bytes() == bytes(range(250))
    assert "-m gpu tests/test_gpu.py\n" in (tmp_path / "calls").read_text()


@pytest.mark.parametrize(
    ("cuda", "expected"),
    [
        ("12", {"cupy-cuda12x", "onnxruntime-gpu<1.27"}),
        ("13", {"cupy-cuda13x", "onnxruntime-gpu>=1.27"}),
    ],
)
def test_what_the_other_machine_lacks_is_collected(tmp_path, monkeypatch, cuda, expected):
    """Without the network: pip leaves a wheel, and the engine is a folder; both say what they were asked for."""
    asked = []

    def download(command, check):
        asked.extend(command)
        (Path(command[command.index("-d") + 1]) / "cupy.whl").write_bytes(b"1234567890")

    def bundle(system, dim, place):
        (place / "checkpoint.pth").touch()
        (place / "engine.onnx").mkdir()
        (place / "engine.onnx/manifest.json").write_text(f"{system} {dim}")
        return place / "engine.onnx"

    monkeypatch.setattr(gpu_carry.subprocess, "run", download)
    monkeypatch.setattr(
        gpu_carry, "random_bundle", create_autospec(gpu_carry.random_bundle, side_effect=bundle)
    )
    (tmp_path / "wheels").mkdir()
    for old in ("cupy-1.whl", "cupy-0.whl.part-aa"):
        (tmp_path / "wheels" / old).touch()
    options = ["--there", "numpy", "--cuda", cuda, "--dim", "8", "--part", "6", "-o", str(tmp_path)]
    done = CliRunner().invoke(gpu_carry.main, options, catch_exceptions=False)
    assert done.exit_code == 0
    assert {one for one in asked if "cupy" in one or "onnxruntime" in one} == expected
    assert "numpy" not in asked
    assert [file.name for file in sorted((tmp_path / "wheels").iterdir())] == [
        "cupy.whl.part-aa",
        "cupy.whl.part-ab",
    ]
    engine = SCRIPT.read_text().partition("ENGINE=build/gpu/")[2].split()[0]
    assert (tmp_path / engine / "manifest.json").read_text() == "pse-gcn 8"
    assert {file.name for file in tmp_path.iterdir()} == {"wheels", engine}


@pytest.fixture
def cupy(tmp_path, monkeypatch):
    from fcdeploy.graph import best_cuda, cell_search_cuda, cuda, products_cuda, rerank_cuda

    fake = cuda_on_cpu.Cupy(cuda_on_cpu.compile_kernels(tmp_path))
    for module in (bench_gpu, cell_search_cuda, rerank_cuda):
        monkeypatch.setattr(module, "import_cupy", lambda: fake)
    monkeypatch.setattr(products_cuda, "import_cublas", lambda: fake.cublas)
    monkeypatch.setattr(cuda, "_modules", {})
    for module in (best_cuda, cell_search_cuda, rerank_cuda):
        monkeypatch.setattr(module, "THREADS", 32)
    return fake


def test_the_benchmark_counts_what_it_did(cupy, tmp_path, monkeypatch, pse_bundle):
    monkeypatch.setattr(bench_gpu, "WARM_UP", 60)
    monkeypatch.setattr(bench_gpu, "DEVICE", "cpu")
    options = ["--faces", "200", "--dim", "32", "--k", "12", "--side", "32", "--copy", "4096"]
    options += ["--engine", str(pse_bundle.path), "--folder", str(tmp_path)]
    done = CliRunner().invoke(bench_gpu.main, options, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["step"]: row for row in report["rows"]}
    assert list(rows) == ["cells", "kNN in cells", "re-ranking", "layers", "kNN among all pairs"]
    pairs = rows["kNN among all pairs"]
    assert pairs["scores_per_face"] == 200
    # 200 vectors and their ids there, three numbers per row and tile; lists and similarities of 12 back.
    assert pairs["from_device_gb"] == pytest.approx(200 * 12 * 8 / 1e9)
    assert pairs["to_device_gb"] * 1e9 == pytest.approx(200 * (32 * 4 + 4), rel=0.5)
    of_float32 = report["arguments"]["float32_tflop_per_s"] * 1e12
    operations = pairs["of_arithmetic"] * pairs["seconds"] * of_float32
    assert operations == pytest.approx(2 * 200 * 200 * 32)
    assert rows["re-ranking"]["scores_per_face"] == 0
    layers = rows["layers"]
    # Refined features of 64 numbers come back, and a flag of each of six tables.
    assert layers["from_device_gb"] == pytest.approx((200 * 64 * 4 + 6 * 4) / 1e9)
    # Products with weights of 64 rows or more, some of them several to a pass.
    per_face = layers["of_arithmetic"] * layers["seconds"] * of_float32 / 200
    assert per_face == pytest.approx(bench_gpu.operations_of(pse_bundle, bench_gpu.PASSES))
    assert per_face > 5 * 2 * 32 * 64


def test_labels_are_compared_where_the_steps_passed(tmp_path):
    for name, labels in (("scale_gpu", "ab"), ("scale_gpu_vram", "ab"), ("scale_gpu_host", "cd")):
        rows = [{"faces": 9, "stage": "knn"}, {"faces": 9, "stage": "whole command", "labels": labels}]
        (tmp_path / f"{name}.json").write_text(json.dumps({"rows": rows}))
    assert gpu_report.labels_of(tmp_path, {"scale", "vram"}) == {
        "9": {"scale": "ab", "vram": "ab", "equal": True}
    }
    assert not gpu_report.labels_of(tmp_path, {"scale", "host"})["9"]["equal"]
    assert gpu_report.labels_of(tmp_path, set()) == {}


def test_the_most_memory_that_the_driver_told_of(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor used in 120 4096 5; do echo $used; done\nexec sleep 60\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with bench_report.GpuMemory() as gpu:
        while not select.select([gpu._tool.stdout], [], [], 0.05)[0]:
            pass
        time.sleep(0.05)
    assert gpu.peak == 4096 << 20
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    with bench_report.GpuMemory() as gpu:
        pass
    assert gpu.peak is None
