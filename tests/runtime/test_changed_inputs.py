"""What a run folder holds of other inputs is never used; what it holds of others is never touched."""

import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying_run import KEPT
from run_folders import bytes_of, load_artifact

from fcdeploy.data.digests import sha256_of

N = 600
FIELDS = (
    {},
    {"k": 15, "hops": (12, 4)},
    {"hops": (10, 3)},
    {"tau": 0.6},
    {"inference": "layerwise"},
    {"inference": "layerwise", "hops": (10, 3)},
    {"knn": "ivf"},
    {"k": 21},
    {},
)


@pytest.fixture
def rows(many: Callable[[int], Path]) -> np.ndarray:
    """600 faces with norms from 8 to 30, (600, 32) float32."""
    return np.fromfile(many(N), "<f4").reshape(-1, 32)


def arrays_in(run: Path) -> dict[str, np.ndarray]:
    return {f"{name}/{part}": array for name in KEPT for part, array in load_artifact(run / name).items()}


def assert_as_fresh(cluster: Any, tmp_path: Path, *args: Any, **options: Any) -> np.ndarray:
    """A run in the used folder leaves the arrays and gives the labels of one in a new folder."""
    used, fresh = tmp_path / "used", tmp_path / f"fresh {len(list(tmp_path.iterdir()))}"
    found = cluster(*args, run_dir=used, **options).labels
    wanted = cluster(*args, run_dir=fresh, **options).labels
    assert np.array_equal(found, wanted)
    for name, array in arrays_in(fresh).items():
        assert arrays_in(used)[name].tobytes() == array.tobytes(), name
    return found


def test_other_options_use_nothing_of_the_old(cluster: Any, rows: np.ndarray, tmp_path: Path) -> None:
    seen = {}
    for options in FIELDS:
        labels = assert_as_fresh(cluster, tmp_path, rows, **options)
        seen[json.dumps(options)] = labels.tobytes()
    assert len(set(seen.values())) >= 5  # or the options would not have been seen to matter


@pytest.mark.filterwarnings("ignore:.*equal to an earlier one:fcdeploy.errors.FcdeployWarning")
def test_other_features_use_nothing_of_the_old(cluster: Any, rows: np.ndarray, tmp_path: Path) -> None:
    """Even when one number of one face is another, and when only the lengths of rows are."""
    labels = assert_as_fresh(cluster, tmp_path, rows)
    other = rows.copy()
    other[17] = rows[400]
    assert not np.array_equal(assert_as_fresh(cluster, tmp_path, other), labels)
    assert_as_fresh(cluster, tmp_path, rows[:-1])
    assert_as_fresh(cluster, tmp_path, rows * np.float32(3))
    assert np.array_equal(assert_as_fresh(cluster, tmp_path, rows), labels)


@pytest.fixture
def changed(bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of the bundle with something else in its manifest, or in the graph of one pass."""

    def change(edit: Callable[[dict[str, Any]], None], graph: str = "") -> Path:
        path = tmp_path / "changed.onnx"
        shutil.copytree(bundle, path)
        manifest = json.loads((path / "manifest.json").read_text())
        edit(manifest)
        if graph:
            onnx = pytest.importorskip("onnx")
            model = onnx.load(path / f"{graph}.onnx")
            for tensor in model.graph.initializer:
                values = onnx.numpy_helper.to_array(tensor)
                if values.ndim == 2:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32(0.7), tensor.name))
            onnx.save(model, path / f"{graph}.onnx")
            manifest["passes"][graph]["sha256"] = sha256_of(path / f"{graph}.onnx")
        (path / "manifest.json").write_text(json.dumps(manifest))
        return path

    return change


def test_another_engine_uses_nothing_of_the_old(
    cluster: Any, changed: Callable[..., Path], bundle: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    other = changed(lambda manifest: None, "neighborhood")
    labels = assert_as_fresh(cluster, tmp_path, rows, engine=bundle)
    assert not np.array_equal(assert_as_fresh(cluster, tmp_path, rows, engine=other), labels)
    assert np.array_equal(assert_as_fresh(cluster, tmp_path, rows, engine=bundle), labels)


def test_another_normalisation_uses_nothing_of_the_old(
    cluster: Any, changed: Callable[..., Path], bundle: Path, rows: np.ndarray, tmp_path: Path
) -> None:
    """With the same graphs, and with lists from files, normalisation decides the refined features all the same.

    The lists have no similarities: these are computed from the features as they are then."""
    cluster(rows, run_dir=tmp_path / "lists")
    ids = load_artifact(tmp_path / "lists/knn")["ids"]
    np.save(tmp_path / "lists.npy", ids)
    given = {"knn": str(tmp_path / "lists.npy"), "reranked": tmp_path / "lists.npy"}
    nearly = rows / np.linalg.norm(rows, axis=1, keepdims=True) * 1.008  # others would be refused as they are
    as_they_are = changed(lambda manifest: manifest["recipe"]["features"].update(normalize=False))
    assert_as_fresh(cluster, tmp_path, nearly, engine=bundle, **given)
    assert_as_fresh(cluster, tmp_path, nearly, engine=as_they_are, **given)


def test_other_lists_under_the_same_name_use_nothing_of_the_old(
    cluster: Any, rows: np.ndarray, tmp_path: Path
) -> None:
    cluster(rows, run_dir=tmp_path / "lists")
    ids = load_artifact(tmp_path / "lists/knn")["ids"]
    ranked = load_artifact(tmp_path / "lists/reranked")["ids"]
    order = [0, 4, 3, 2, 1, 8, 7, 6, 5, 12, 11, 10, 9, 16, 15, 14, 13, 19, 18, 17]  # sorted well enough
    labels = []
    for _ in range(2):
        np.save(tmp_path / "knn.npy", ids)
        np.save(tmp_path / "ranked.npy", ranked)
        given = {"knn": str(tmp_path / "knn.npy"), "reranked": tmp_path / "ranked.npy"}
        labels.append(assert_as_fresh(cluster, tmp_path, rows, **given))
        ids, ranked = ids[:, order], ids
    assert not np.array_equal(*labels)


@pytest.mark.parametrize("then", [{"inference": "layerwise"}, {"k": 12, "hops": (12, 4)}, {}], ids=str)
def test_a_killed_run_leaves_nothing_to_one_with_other_options(
    command: Any, undisturbed: Any, cluster: Any, tmp_path: Path, then: dict[str, Any]
) -> None:
    """Killed in the refinement, whose tables are the largest that a run makes: they go, too."""
    used = tmp_path / "used"
    wanted = undisturbed(3000)
    line = (wanted.features, used, tmp_path / "pred.meta", "--quiet")
    at = [i for i, name in enumerate(wanted.moments, 1) if name == "after commit"][25]
    assert command.finished(*line, moment=at).returncode == -signal.SIGKILL
    assert (used / "tables.scratch").is_dir()
    assert (used / "refined.part").is_dir()
    found = cluster(wanted.features, run_dir=used, **then).labels
    assert np.array_equal(found, cluster(wanted.features, **then).labels)
    assert {path.name for path in used.iterdir()} == {
        *KEPT,
        "run.json",
        "run.lock",
        "summary.json",
        "state.json",
        "labels",
        "vectors",
    }


def test_a_second_process_on_the_same_folder_says_so_and_leaves_the_first_alone(
    command: Any, undisturbed: Any, tmp_path: Path
) -> None:
    wanted = undisturbed(3000)
    line = (wanted.features, tmp_path / "run", tmp_path / "pred.meta", "--quiet")
    first = command.start(*line)
    first.send_signal(signal.SIGSTOP)
    try:
        second = subprocess.run(
            command.line(wanted.features, tmp_path / "run", tmp_path / "second.meta", "--quiet"),
            capture_output=True,
            text=True,
        )
    finally:
        first.send_signal(signal.SIGCONT)
    assert second.returncode == 2
    assert second.stderr.startswith(f"Error: {tmp_path}/run: another run is using this folder")
    assert f"process {first.pid}" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    assert first.communicate()[1] == ""
    assert first.returncode == 0
    assert not (tmp_path / "second.meta").exists()
    for name in KEPT:
        assert bytes_of(tmp_path / "run" / name) == wanted.results[name]
    assert (tmp_path / "pred.meta").read_bytes() == wanted.results["pred.meta"]


@pytest.mark.parametrize("inference", ["exact", "layerwise"])
def test_files_and_folders_of_somebody_else_are_left_alone(
    cluster: Any, rows: np.ndarray, tmp_path: Path, inference: str
) -> None:
    """Even those that have the names of a run's artifacts; put into a folder that a run has made its own."""
    run = tmp_path / "run"
    cluster(rows[:40], run_dir=run, inference=inference)
    theirs = [
        *(
            f"{name}/theirs.npy"
            for name in ("vectors", "tables", "placed", "mutual", "cells", "refined_cells", "near1")
        ),
        *(
            "knn/theirs.npy",
            "links/notes.txt",
            "photos/1.jpg",
            "notes.txt",
            ".hidden",
            "knn.bak",
            "song.part",
        ),
    ]
    for name in theirs:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(b"theirs")
    before = {name: (run / name).stat().st_mtime_ns for name in theirs}
    for _ in range(2):
        labels = cluster(rows, run_dir=run, inference=inference, knn="ivf", memory=1).labels
        assert np.array_equal(labels, cluster(rows, inference=inference, knn="ivf").labels)
    assert {name: (run / name).stat().st_mtime_ns for name in theirs} == before
    assert all((run / name).read_bytes() == b"theirs" for name in theirs)
    ours = {*KEPT, "run.json", "run.lock", "summary.json", "state.json", "labels", "vectors"}
    assert {path.name for path in run.iterdir()} == {name.split("/")[0] for name in theirs} | ours
