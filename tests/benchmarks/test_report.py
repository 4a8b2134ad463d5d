"""The reports of the benchmarks say where and how they were measured."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import report

BENCHMARKS = Path(report.__file__).parent


def test_a_report_round_trips(tmp_path, capsys):
    rows = [
        {"step": "knn", "seconds": np.float64(1.5), "faces": np.int64(20)},
        {"step": "links", "note": "new"},
    ]
    path = report.write_report(
        "small", rows, {"faces": 20, "folder": Path("here")}, folder=tmp_path / "results"
    )
    assert path == tmp_path / "results" / "small.json"
    read = json.loads(path.read_text())
    assert list(read) == ["benchmark", "date", "machine", "arguments", "rows"]
    assert read["benchmark"] == "small"
    assert read["machine"] == report.machine()
    assert read["arguments"] == {"faces": 20, "folder": "here"}
    assert read["rows"] == [{"step": "knn", "seconds": 1.5, "faces": 20}, {"step": "links", "note": "new"}]
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("small", "seconds", "knn", "1.5", "links", "new"))


def test_the_machine_is_described_without_importing_torch():
    before = "torch" in sys.modules
    described = report.machine()
    assert ("torch" in sys.modules) == before
    assert described["cores"] >= 1
    assert described["memory_bytes"] > 1e8
    assert described["numpy"] == np.__version__
    assert {"cpu", "gpu", "os", "python", "numba", "faiss", "onnxruntime", "torch"} <= set(described)


def test_the_median_leaves_the_warm_up_out(monkeypatch):
    """Calls of 9 (warm-up), 1, 5 and 2 seconds: median 2, least 1, most 5."""
    clock = 0.0
    lengths = iter([9.0, 1.0, 5.0, 2.0])

    def call() -> None:
        nonlocal clock
        clock += next(lengths)

    monkeypatch.setattr(report.time, "perf_counter", lambda: clock)
    assert report.median_seconds(call, repeats=3, warmup=1) == {"median": 2, "min": 1, "max": 5, "repeats": 3}


def test_the_peak_is_in_bytes_and_counts_what_was_freed():
    """A process that held 200 MB and let go of it still says so; what its parent held is not its own."""
    parents = np.ones(75_000_000)
    program = "import numpy, report; numpy.ones(25_000_000); print(report.peak_bytes())"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=BENCHMARKS, capture_output=True, text=True, check=True
    )
    assert 200e6 < int(done.stdout) < parents.nbytes
