"""What ``fcdeploy estimate`` promises is what a run then makes."""

import json
from pathlib import Path

import numpy as np
import pytest

FACES = "dev/data/features.bin"


@pytest.mark.parametrize("inference", ["exact", "layerwise"])
def test_planned_files_are_those_of_the_run(fcdeploy, bundle, golden, tmp_path, inference):
    """Kept files have the planned bytes, but for a few hundred of headers."""
    options = ("--engine", bundle, "--inference", inference, "--run-dir", tmp_path / "run")
    planned = json.loads(fcdeploy("estimate", golden / FACES, *options, "--json").out)
    assert not (tmp_path / "run").exists()
    outcome = fcdeploy("cluster", golden / FACES, *options, "-o", tmp_path / "pred_labels.meta", "--quiet")
    assert outcome.code == 0, outcome
    kept = {name: fields["bytes"] for name, fields in planned["files"].items() if fields["kept"]}
    assert kept.keys() == {"vectors", "knn", "reranked", "refined", "refined_knn"}
    for name, size in kept.items():
        files = list((tmp_path / "run" / name).iterdir())
        assert 0 < sum(file.stat().st_size for file in files) - size < 1000


def test_memory_is_the_budget_once_the_products_do_not_fit(fcdeploy, bundle, tmp_path):
    """A sparse file stands for half a million faces: nothing of it is read."""
    faces = 500_000
    big = tmp_path / "big.npy"
    header = {"descr": "<f4", "fortran_order": False, "shape": (faces, 32)}
    with open(big, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + faces * 32 * 4)
    small = json.loads(fcdeploy("estimate", big, "--engine", bundle, "--memory", "1G", "--json").out)
    large = json.loads(fcdeploy("estimate", big, "--engine", bundle, "--memory", "100G", "--json").out)
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
    outcome = fcdeploy("estimate", golden / FACES, "--engine", bundle, "--knn", tmp_path / "missing.npz")
    assert outcome.code == 2
    assert "missing.npz: no such file" in outcome.err


def test_plan_refuses_the_run_folders_that_a_run_would_refuse(fcdeploy, bundle, few, tmp_path: Path):
    np.save(tmp_path / "f.npy", few)
    (tmp_path / "run").mkdir()
    np.save(tmp_path / "run/refined.npy", few)
    np.savez(tmp_path / "run/knn.npz", ids=np.stack([np.roll(np.arange(200), -i)[:20] for i in range(200)]))
    before = sorted(tmp_path.rglob("*"))
    for features, *options in (
        ("f.npy", "--run-dir", tmp_path / "no/run"),
        ("f.npy", "--run-dir", tmp_path / "f.npy"),
        ("f.npy", "--run-dir", tmp_path / "run", "--knn", tmp_path / "run/knn.npz"),
        ("run/refined.npy", "--run-dir", tmp_path / "run"),
    ):
        told = [
            fcdeploy(verb, tmp_path / features, "--engine", bundle, *options, *more)
            for verb, *more in (("estimate",), ("cluster", "-o", tmp_path / "x.meta"))
        ]
        assert [outcome.code for outcome in told] == [2, 2], told
        assert "choose another --run-dir" in told[0].err
        assert told[0].err == told[1].err
        assert sorted(tmp_path.rglob("*")) == before


def test_plan_and_run_give_the_same_notes(fcdeploy, bundle, few, tmp_path: Path):
    np.save(tmp_path / "f.npy", few[:15])
    options = (tmp_path / "f.npy", "--engine", bundle, "--vram", "1G", "--tables", "float16")
    notes = fcdeploy("estimate", *options).err
    assert fcdeploy("cluster", *options, "--quiet", "-o", tmp_path / "x.meta").err == notes
    said = ("k = 20 is more than", "--tables float16 has no effect", "--vram has no effect")
    assert all(text in notes for text in said)
    assert notes.count("Note: ") == len(said)


def test_lists_without_the_faces_themselves_are_noted(fcdeploy, bundle, few, tmp_path: Path):
    """Most similar first: with the face in front, nothing is said; without it, the run goes on with a note."""
    np.save(tmp_path / "f.npy", few)
    sims = few @ few.T / np.linalg.norm(few, axis=1) / np.linalg.norm(few, axis=1)[:, None]
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :21]
    for first, notes in ((0, 0), (1, 1)):
        np.save(tmp_path / "knn.npy", ids[:, first : first + 20])
        options = ("--engine", bundle, "--knn", tmp_path / "knn.npy", "-o", tmp_path / "x.meta", "--quiet")
        told = fcdeploy("cluster", tmp_path / "f.npy", *options)
        assert told.code == 0
        assert told.err.count("knn.npy: most lists do not hold the face itself") == notes
