"""The script for a machine with a GPU, as far as it goes without one."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import create_autospec

import cuda_on_cpu
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import bench_gpu
import gpu_carry

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks/gpu_check.sh"


def test_all_steps_together_take_less_than_six_minutes():
    listed = subprocess.run(["bash", SCRIPT, "--list"], capture_output=True, text=True, check=True).stdout
    limits = dict(line.split("\t") for line in listed.splitlines())
    assert {"tests", "gpu", "scale", "latency", "memcheck", "racecheck"} < limits.keys()
    assert sum(map(int, limits.values())) < 360


def test_a_step_that_fails_is_told_and_the_others_run_all_the_same(tmp_path):
    """In a copy, with a Python that does nothing but write the report, and fails in the benchmark of whole runs."""
    (tmp_path / "benchmarks").mkdir()
    for name in ("gpu_check.sh", "gpu_report.py", "report.py"):
        (tmp_path / "benchmarks" / name).write_text((ROOT / "benchmarks" / name).read_text())
    wheels = tmp_path / "build/gpu/wheels"
    wheels.mkdir(parents=True)
    (wheels / "large.whl").write_bytes(bytes(range(250)))
    gpu_carry.cut(wheels / "large.whl", 100)
    assert [file.name[-8:] for file in sorted(wheels.iterdir())] == [f".part-a{letter}" for letter in "abc"]
    stub = tmp_path / "python"
    stub.write_text(
        f'#!/bin/sh\necho "$@" >>"{tmp_path}/calls"\ncase "$*" in *gpu_report*) exec "{sys.executable}" "$@";; '
        "*bench_scale*) exit 3;; esac\n"
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
    outcomes = {row["step"]: row["outcome"] for row in rows}
    assert outcomes.pop("scale") == "failed with exit code 3"
    checkers = {outcomes.pop("memcheck"), outcomes.pop("racecheck")}  # compute-sanitizer is not there
    assert checkers == {"failed with exit code 127"}
    assert set(outcomes.values()) == {"passed"}
    assert (wheels / "large.whl").read_bytes() == bytes(range(250))
    assert "-m pytest -q -m gpu tests" in (tmp_path / "calls").read_text()


def test_what_the_other_machine_lacks_is_collected(tmp_path, monkeypatch):
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
    options = ["--there", "numpy", "--dim", "8", "--part", "6", "-o", str(tmp_path)]
    done = CliRunner().invoke(gpu_carry.main, options, catch_exceptions=False)
    assert done.exit_code == 0
    assert "cupy-cuda12x" in asked
    assert "numpy" not in asked
    assert [file.name for file in sorted((tmp_path / "wheels").iterdir())] == [
        "cupy.whl.part-aa",
        "cupy.whl.part-ab",
    ]
    engine = SCRIPT.read_text().partition("ENGINE=build/gpu/")[2].split()[0]
    assert (tmp_path / engine / "manifest.json").read_text() == "pse-gcn 8"
    assert not (tmp_path / "checkpoint.pth").exists()


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


def test_the_benchmark_counts_what_it_did(cupy, tmp_path, monkeypatch):
    monkeypatch.setattr(bench_gpu, "WARM_UP", 60)
    options = ["--faces", "200", "--dim", "16", "--k", "8", "--side", "32", "--copy", "4096"]
    done = CliRunner().invoke(bench_gpu.main, [*options, "--folder", str(tmp_path)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "gpu.json").read_text())
    rows = {row["step"]: row for row in report["rows"]}
    assert list(rows) == ["cells", "kNN in cells", "re-ranking", "kNN among all pairs"]
    pairs = rows["kNN among all pairs"]
    assert pairs["scores_per_face"] == 200
    # 200 vectors and their ids there, three numbers per row and tile; lists and similarities of 8 back.
    assert pairs["from_device_gb"] == pytest.approx(200 * 8 * 8 / 1e9)
    assert pairs["to_device_gb"] * 1e9 == pytest.approx(200 * (16 * 4 + 4), rel=0.5)
    operations = pairs["of_arithmetic"] * pairs["seconds"] * report["arguments"]["float16_tflop_per_s"] * 1e12
    assert operations == pytest.approx(2 * 200 * 200 * 16)
    assert rows["re-ranking"]["scores_per_face"] == 0
