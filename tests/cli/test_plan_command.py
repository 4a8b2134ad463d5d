"""What ``fcdeploy plan`` promises is what a run then makes."""

import json
from pathlib import Path

import numpy as np
import pytest

FACES = "dev/data/features.bin"


@pytest.mark.parametrize("inference", ["exact", "layerwise"])
def test_planned_files_are_those_of_the_run(fcdeploy, bundle, golden, tmp_path, inference):
    """Kept files have the planned bytes, but for a few hundred of headers."""
    options = ("--engine", bundle, "--inference", inference, "--run-dir", tmp_path / "run")
    planned = json.loads(fcdeploy("plan", golden / FACES, *options, "--json").out)
    assert not (tmp_path / "run").exists()
    outcome = fcdeploy("cluster", golden / FACES, *options, "-o", tmp_path / "pred_labels.meta", "--quiet")
    assert outcome.code == 0, outcome
    kept = {name: fields["bytes"] for name, fields in planned["files"].items() if fields["kept"]}
    assert kept.keys() == {"knn.npz", "reranked.npz", "refined.npy", "refined_knn.npz"}
    for name, size in kept.items():
        assert 0 < (tmp_path / "run" / name).stat().st_size - size < 1000


def test_memory_is_the_budget_once_the_products_do_not_fit(fcdeploy, bundle, tmp_path):
    """A sparse file stands for half a million faces: nothing of it is read."""
    faces = 500_000
    big = tmp_path / "big.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (faces, 32)}
    with open(big, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + faces * 32 * 4)
    small = json.loads(fcdeploy("plan", big, "--engine", bundle, "--memory", "1G", "--json").out)
    large = json.loads(fcdeploy("plan", big, "--engine", bundle, "--memory", "100G", "--json").out)
    total = sum(fields["bytes"] for fields in small["files"].values())
    assert large["in_memory"]
    assert not small["in_memory"]
    assert large["memory_bytes"] > total
    assert small["memory_bytes"] < total
    assert small["memory_bytes"] >= 1 << 30
    assert small["seconds"]["total"] == pytest.approx(
        sum(v for k, v in small["seconds"].items() if k != "total")
    )


def test_plan_refuses_what_a_run_would_refuse(fcdeploy, bundle, golden, tmp_path: Path):
    outcome = fcdeploy("plan", golden / FACES, "--engine", bundle, "--knn", tmp_path / "missing.npz")
    assert outcome.code == 2
    assert "missing.npz: no such file" in outcome.err
