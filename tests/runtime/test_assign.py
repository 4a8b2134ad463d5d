"""New faces get clusters of a run by each system's link rule, and nothing that was stored changes."""

import fcntl
import json
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stored_runs import files_of, same_pairs
from system_cases import CASES, Case

import fcdeploy
from fcdeploy.data.features import features_from_array
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.run.extended import Offers
from fcdeploy.runtime.assign import assigned_from_offers
from fcdeploy.runtime.assign_workers import stage_of_assigning

# Pairs of old and new faces together as when all are clustered at once, F. Faces are few and people small here, so that
# one cluster more or less counts; real faces are measured in benchmarks/notes/new-faces.md.
AGREES = {"gcn-d": 0.5, "l-gcn": 0.5, "ve-gcn": 0.5}


@pytest.fixture
def faces(faces_in_parts: Any) -> tuple[np.ndarray, np.ndarray]:
    return faces_in_parts


@pytest.fixture
def runs(stored_run: Any) -> Any:
    return stored_run


@pytest.mark.parametrize("case", CASES, ids=str)
def test_new_faces_get_the_clusters_that_clustering_all_gives_and_the_folder_stays(
    case: Case, runs: Any, faces: Any
) -> None:
    engine, folder, old = runs(case)
    rows, new = faces
    before = files_of(folder)
    found = fcdeploy.assign(rows[new], run_dir=folder)
    assert files_of(folder) == before
    assert found.labels.shape == found.similarity.shape == found.margin.shape == (new.sum(),)
    assert set(found.labels.tolist()) <= set(old.tolist()) | {-1}
    assert (found.labels >= 0).mean() > 0.3
    together = np.empty(len(rows), np.int64)
    together[~new], together[new] = old, found.labels
    wanted = fcdeploy.cluster(rows, engine=engine)
    assert same_pairs(together, wanted) > AGREES.get(case.name, 0.8)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_said_of_a_face_does_not_depend_on_who_comes_with_it(
    case: Case, runs: Any, faces: Any
) -> None:
    """But for batch-wise re-scoring, where it does as published."""
    if "rescored" in case.kept:
        pytest.skip("faces of a batch attend to each other")
    folder = runs(case)[1]
    rows, new = faces
    some = rows[new][:20]
    with fcdeploy.Assigner(folder) as assigner:
        together = assigner.assign(some)
        back = assigner.assign(some[::-1])
        alone = [assigner.assign(row[None]) for row in some]
    assert np.array_equal(together.labels, [one.labels[0] for one in alone])
    assert np.array_equal(together.labels, back.labels[::-1])
    np.testing.assert_allclose(together.similarity, [one.similarity[0] for one in alone], atol=1e-5)
    np.testing.assert_allclose(together.margin, back.margin[::-1], atol=1e-5)


def test_a_stored_face_again_gets_its_own_cluster(runs: Any, faces: Any) -> None:
    for case in CASES:
        _, folder, old = runs(case)
        rows, new = faces
        found = fcdeploy.assign(rows[~new][:100], run_dir=folder)
        assert np.array_equal(found.labels, old[:100]), case
        assert (found.similarity == 1).all()


def test_threads_take_turns(runs: Any, faces: Any) -> None:
    rows, new = faces
    folder = runs(CASES[0])[1]
    with fcdeploy.Assigner(folder, threads=1) as assigner:
        wanted = assigner.assign(rows[new]).labels
        parts = np.array_split(rows[new], 8)
        with ThreadPoolExecutor(4) as pool:
            found = np.concatenate([one.labels for one in pool.map(assigner.assign, parts)])
    assert np.array_equal(found, wanted)
    with pytest.raises(FcdeployError, match="is closed"):
        assigner.assign(rows[new])


def test_a_worker_process_gets_an_assigner_of_its_own(
    runs: Any, faces: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a path that holds wherever the worker stands; what was closed is no good to anybody."""
    rows, new = faces
    folder = runs(CASES[0])[1]
    monkeypatch.chdir(folder.parent)
    with fcdeploy.Assigner(folder.name, threads=1) as assigner:
        wanted = assigner.assign(rows[new])
        sent = pickle.dumps(assigner)
    monkeypatch.chdir(tmp_path)
    with pickle.loads(sent) as there:
        found = there.assign(rows[new])
    for name in ("labels", "similarity", "margin"):
        assert np.array_equal(getattr(found, name), getattr(wanted, name), equal_nan=True), name
    with pytest.raises(FcdeployError, match="closed"):
        pickle.dumps(assigner)


def test_unmatched_faces_may_get_a_number_each(runs: Any, faces: Any) -> None:
    rows, new = faces
    _, folder, old = runs(CASES[0])
    found = fcdeploy.assign(rows[new], run_dir=folder)
    named = fcdeploy.assign(rows[new], run_dir=folder, unmatched="singleton")
    none = found.labels < 0
    assert none.any()
    assert np.array_equal(named.labels[none], old.max() + 1 + np.arange(none.sum()))
    assert np.array_equal(named.labels[~none], found.labels[~none])
    assert named.matched == found.matched == (~none).sum()


def test_the_margin_is_to_the_strongest_face_of_another_cluster() -> None:
    """By hand: faces 0, 1 of cluster 7, 2 of cluster 9, 3 of none; the third new face is near nobody else."""
    labels = np.array([7, 7, 9, -1])
    ids = np.array([[-1, 1, 2, 3], [-1, 2, 0, 1], [-1, 0, 1, 3], [-1, 3, 2, 0]], np.int32)
    strengths = np.array([[1, 0.9, 0.8, 0.7], [1, 0.6, 0.5, 0.4], [1, 0.9, 0.8, 0.7], [1, 0.9, 0.5, 0.3]])
    place = np.array([1, 2, 1, -1])
    value = np.array([0.9, 0.5, 0.9, np.nan])
    found = assigned_from_offers(Offers(ids, strengths, place, value), labels)
    assert found.labels.tolist() == [7, 7, 7, -1]
    np.testing.assert_allclose(found.similarity, [0.9, 0.5, 0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(found.margin, [0.1, -0.1, np.nan, np.nan], rtol=1e-5)


def test_copies_and_bad_rows_of_the_stored_run(exported: Any, faces: Any, tmp_path: Path) -> None:
    rows, new = faces
    old = np.concatenate([rows[~new][:150], rows[~new][:30], np.full((1, 32), np.nan, np.float32)])
    engine = exported(CASES[0]).path
    with pytest.warns(fcdeploy.FcdeployWarning):
        labels = fcdeploy.cluster(old, engine=engine, run_dir=tmp_path / "run", on_bad="skip")
    found = fcdeploy.assign(old[150:180], run_dir=tmp_path / "run")
    assert np.array_equal(found.labels, labels[150:180])
    assert np.array_equal(found.labels, labels[:30])


def test_predict_assigns_to_what_was_fitted(runs: Any, faces: Any, tmp_path: Path) -> None:
    rows, new = faces
    engine, folder, old = runs(CASES[0])
    clusterer = fcdeploy.FaceClusterer(engine, run_dir=tmp_path / "run")
    with pytest.raises(InputError, match="nothing was fitted"):
        clusterer.predict(rows[new])
    assert np.array_equal(clusterer.fit(rows[~new]).labels_, old)
    assert np.array_equal(clusterer.predict(rows[new]), fcdeploy.assign(rows[new], run_dir=folder).labels)
    with pytest.raises(InputError, match="construct FaceClusterer with run_dir"):
        fcdeploy.FaceClusterer(engine).fit(rows[:100]).predict(rows[new])


def test_predict_computes_where_and_by_as_many_threads_as_fit(
    runs: Any, faces: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.runtime import assigning

    given: dict[str, Any] = {}
    original = assigning.Assigner

    def watched(*args: Any, **kwargs: Any) -> Any:
        given.update(kwargs)
        return original(*args, **kwargs)

    monkeypatch.setattr(assigning, "Assigner", watched)
    rows, new = faces
    limits = {"threads": 1, "device": "cpu", "memory": 2**30}
    fitted = fcdeploy.FaceClusterer(runs(CASES[0])[0], run_dir=tmp_path / "run", **limits).fit(rows[~new])
    fitted.predict(rows[new][:3])
    assert {name: given[name] for name in limits} == limits


def test_predict_refuses_clusters_of_another_fit(runs: Any, faces: Any, tmp_path: Path) -> None:
    rows, new = faces
    clusterer = fcdeploy.FaceClusterer(runs(CASES[0])[0], run_dir=tmp_path / "run").fit(rows[~new])
    fcdeploy.FaceClusterer(runs(CASES[0])[0], run_dir=tmp_path / "run", tau=0.99).fit(rows[~new])
    with pytest.raises(InputError, match="clusters of a later run, not those of fit"):
        clusterer.predict(rows[new])
    fcdeploy.update(tmp_path / "run", remove=[0])
    kept = fcdeploy.FaceClusterer(runs(CASES[0])[0], run_dir=tmp_path / "other").fit(rows[~new])
    fcdeploy.update(tmp_path / "other", remove=[0], merges="never", splits="never")  # which keeps the numbers
    assert np.array_equal(kept.predict(rows[~new][1:20]), kept.labels_[1:20])


@pytest.mark.parametrize(
    "wrong", [{"threads": -1}, {"threads": "2"}, {"memory": -1}, {"device": "gpu"}], ids=str
)
def test_values_that_an_assigner_has_not(wrong: dict[str, Any], runs: Any) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        fcdeploy.Assigner(runs(CASES[0])[1], **wrong)


@pytest.mark.parametrize(("n", "seed"), [(1.5, 0), (0, 0), (10, -1), (10, "a")])
def test_pairs_are_drawn_by_whole_numbers(n: Any, seed: Any, runs: Any) -> None:
    with pytest.raises(InputError, match="give a whole number"):
        fcdeploy.pairs(runs(CASES[0])[1], n, seed=seed)


def test_the_command_writes_a_table(runs: Any, faces: Any, tmp_path: Path, fcdeploy: Any) -> None:
    rows, new = faces
    folder = runs(CASES[0])[1]
    rows[new].astype("<f4").tofile(tmp_path / "new.bin")
    done = fcdeploy("assign", tmp_path / "new.bin", "--run-dir", folder, "-o", tmp_path / "assigned.csv")
    assert done[0] == 0, done
    lines = (tmp_path / "assigned.csv").read_text().splitlines()
    assert lines[0] == "id,cluster,similarity,margin"
    assert len(lines) == 1 + new.sum()
    from fcdeploy.runtime.api import assign

    found = assign(rows[new], run_dir=folder)
    assert [int(line.split(",")[1]) for line in lines[1:]] == found.labels.tolist()


def refused(folder: Path, rows: np.ndarray, says: str, **how: Any) -> None:
    with pytest.raises(InputError, match=says):
        fcdeploy.assign(rows, run_dir=folder, **how)


def test_what_is_wrong_with_a_folder_is_said(runs: Any, faces: Any, exported: Any, tmp_path: Path) -> None:
    rows, new = faces
    _, whole, _ = runs(CASES[0])
    refused(tmp_path / "none", rows, "no such folder")
    refused(tmp_path, rows, "it is not a run folder")
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    with open(folder / "run.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused(folder, rows, "a run is using this folder")
    refused(folder, rows, "is not the engine that", engine=exported(CASES[4]).path)
    refused(folder, rows[:, :31], "expected")
    refused(folder, np.full((2, 32), np.nan, np.float32), "row 0, counted from 0, holds NaN")
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "engine": str(tmp_path / "gone.onnx")}))
    refused(folder, rows, "gone.onnx.*Give engine")
    assert len(fcdeploy.assign(rows[new], run_dir=folder, engine=runs(CASES[0])[0]).labels) == new.sum()
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "refined" / "refined.npy").unlink()
    refused(folder, rows, "'refined' is missing")
    (folder / "state.json").unlink()
    refused(folder, rows, "has not finished")
    (folder / "state.json").write_text('{"format_version": 99}')
    refused(folder, rows, "newer version")


def test_a_run_that_begins_anew_takes_the_state_away(exported: Any, faces: Any, tmp_path: Path) -> None:
    """A folder whose artifacts are about to change has no clusters until the run has ended."""
    engine, folder = exported(CASES[0]).path, tmp_path / "run"
    fcdeploy.cluster(faces[0][:100], engine=engine, run_dir=folder)
    before = (folder / "state.json").read_text()
    seen: list[bool] = []
    from fcdeploy.runtime import pipeline

    original = pipeline.begin_run

    def watched(*args: Any, **kwargs: Any) -> Any:
        seen.append((folder / "state.json").exists())
        return original(*args, **kwargs)

    pipeline.begin_run = watched  # type: ignore[assignment]
    try:
        fcdeploy.cluster(faces[0][:100], engine=engine, run_dir=folder)
    finally:
        pipeline.begin_run = original
    assert seen == [False]
    assert (folder / "state.json").read_text() == before


def test_an_open_assigner_outlives_a_run_in_its_folder(exported: Any, faces: Any, tmp_path: Path) -> None:
    engine, folder, rows = exported(CASES[0]).path, tmp_path / "run", faces[0]
    fcdeploy.cluster(rows[:200], engine=engine, run_dir=folder)
    with fcdeploy.Assigner(folder) as assigner:
        wanted = assigner.assign(rows[200:250])
        worker = threading.Thread(
            target=lambda: fcdeploy.cluster(rows[100:250], engine=engine, run_dir=folder)
        )
        worker.start()
        worker.join()
        again = assigner.assign(rows[200:250])
    assert np.array_equal(wanted.labels, again.labels)


@pytest.mark.parametrize("case", [CASES[0]], ids=str)
def test_blocks_that_workers_compute_are_the_whole(case: Case, stored_run: Any, faces_in_parts: Any) -> None:
    """Each face by whoever is given its block: the numbers of one call over all."""
    rows, new = faces_in_parts
    many = np.concatenate([rows[new]] * 12) + np.linspace(0, 0.05, 12 * new.sum(), dtype=np.float32)[:, None]
    features = features_from_array(many, rows.shape[1])
    with fcdeploy.Assigner(stored_run(case)[1]) as assigner:
        wanted = assigner.assign_features(features)
        stage = stage_of_assigning(features, assigner)
        assert features.n > stage.whole
        starts = range(0, features.n, stage.whole)
        spans = [np.arange(at, min(at + stage.whole, features.n), dtype=np.int32) for at in starts]
        parts = [stage.block(span) for span in reversed(spans)][::-1]
    for name in ("labels", "similarity", "margin"):
        found = np.concatenate([part[name] for part in parts])
        assert np.array_equal(found, getattr(wanted, name), equal_nan=True), name


def test_rows_that_cannot_be_used_are_named_before_workers_are_asked(
    stored_run: Any, faces_in_parts: Any
) -> None:
    rows, _ = faces_in_parts
    wrong = rows[:5].copy()
    wrong[3, 7] = np.nan
    with pytest.raises(InputError, match="row 3, counted from 0, holds NaN"):
        fcdeploy.assign(wrong, run_dir=stored_run(CASES[0])[1], ray="local:1")
