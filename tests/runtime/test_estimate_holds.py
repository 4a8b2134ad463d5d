"""What ``fcdeploy estimate`` says of a run beside what the run then takes, within the factor that it promises."""

import json
import subprocess
import sys

import numpy as np
import pytest

FACES, FACTOR = 30_000, 2.5  # "within a factor of two or so"


@pytest.mark.slow
@pytest.mark.parametrize("memory", ["8G", "600M"], ids=["in memory", "on disk"])
@pytest.mark.parametrize("inference", ["layerwise", "exact"])
def test_files_memory_and_time_are_as_estimated(pse_bundle, tmp_path, inference, memory):
    """Sizes to the byte but for headers; memory and time within the factor, in one run after the other."""
    random = np.random.default_rng(5)
    centres = random.standard_normal((FACES // 30, 32), dtype=np.float32)
    faces = centres[random.integers(0, len(centres), FACES)]
    np.save(tmp_path / "faces.npy", faces + 0.5 * random.standard_normal(faces.shape, dtype=np.float32))
    options = ("--engine", pse_bundle.path, "--inference", inference, "--memory", memory, "--knn", "cells")

    def told(verb, *more):
        line = [sys.executable, "-m", "fcdeploy", verb, "faces.npy", *options, *more, "--json"]
        done = subprocess.run(list(map(str, line)), cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    told("cluster", "-o", "warm.meta")  # kernels are compiled, pages are read
    run_dir = ("--run-dir", "run") if memory == "600M" else ()
    estimated = told("estimate", *run_dir)
    taken = told("cluster", "-o", "labels.meta", *run_dir)
    for name, file in estimated["files"].items() if run_dir else ():
        if file["kept"]:
            size = sum(one.stat().st_size for one in (tmp_path / "run" / name).iterdir())
            assert 0 < size - file["bytes"] < 1000
    assert 1 / FACTOR < taken["peak_bytes"] / estimated["memory_bytes"] < FACTOR
    seconds = {name: stage["seconds"] for name, stage in taken["stages"].items()}
    assert 1 / FACTOR < sum(seconds.values()) / estimated["seconds"]["total"] < FACTOR, (seconds, estimated)
