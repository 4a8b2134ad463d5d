"""A run folder to which faces come and from which they go: clusters as of all together, with the numbers they had."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import load_artifact
from stored_runs import files_of, same_pairs
from system_cases import CASES, Case

import fcdeploy
from fcdeploy.errors import InputError
from fcdeploy.run.carried import CarriedBlocks
from fcdeploy.run.stage import Stage
from fcdeploy.runtime.evidence import read_placed
from fcdeploy.runtime.update import read_ids
from fcdeploy.systems.pse_gcn.layers import Layers

PSE = CASES[0]
LINKED = ("pse-gcn", "sepfl", "gcn-d", "l-gcn")  # by similarity, by probability, by lists alone, and pooled
AGREES = {"ve-gcn": 0.6}  # golden networks decide at random on such few faces


@pytest.fixture
def faces(faces_in_parts: Any) -> tuple[np.ndarray, np.ndarray]:
    return faces_in_parts


@pytest.fixture
def runs(stored_run: Any) -> Any:
    return stored_run


@pytest.fixture
def folder(runs: Any, tmp_path: Path) -> Any:
    """Give a run folder of a case that may be written to."""

    def copy(case: Case = PSE) -> Path:
        return Path(shutil.copytree(runs(case)[1], tmp_path / "run"))

    return copy


@pytest.mark.parametrize("case", [case for case in CASES if case.name != "l-gcn"], ids=str)
def test_added_faces_are_clustered_with_the_others_and_numbers_stay(
    case: Case, runs: Any, folder: Any, faces: Any
) -> None:
    rows, new = faces
    engine, _, old = runs(case)
    run = folder(case)
    found = fcdeploy.update(run, add=rows[new], merges="apply", splits="apply")  # as clustering all does
    assert found.faces.tolist() == list(range(len(rows)))
    ordered = np.concatenate([rows[~new], rows[new]])
    assert same_pairs(found.labels, fcdeploy.cluster(ordered, engine=engine)) > AGREES.get(case.name, 0.8)
    same = (found.labels[: len(old)] == old).mean()
    moved = sum(change.faces for change in found.changes)
    assert same == pytest.approx(1 - moved / len(old))
    assert same > 0.5
    assert (found.labels[len(old) :] >= 0).any()
    sure = fcdeploy.confidence(run)  # what clusters rest on is kept, too
    sizes = np.bincount(found.labels[found.labels >= 0])
    assert np.array_equal(sure.clusters.size, sizes)
    assert len(sure.faces.confidence) == len(rows)
    again = fcdeploy.assign(rows[new][:20], run_dir=run)
    assert np.array_equal(again.labels, found.labels[len(old) : len(old) + 20])
    assert np.array_equal(read_placed(run).labels, found.labels)
    sizes = np.bincount(found.labels[found.labels >= 0])
    assert np.array_equal(fcdeploy.confidence(run).clusters.size, sizes)


def test_a_layerwise_update_computes_only_what_new_faces_read(
    runs: Any, faces: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tables of the faces around, and the refined features that tables of all faces give."""
    rows, engine = faces[0], runs(PSE)[0]
    run = tmp_path / "run"
    fcdeploy.cluster(rows[:-2], engine=engine, run_dir=run, inference="layerwise", hops=(3, 2))
    whole = Path(shutil.copytree(run, tmp_path / "whole"))
    computed: dict[str, int] = {}
    original = CarriedBlocks._compute_some

    def watched(self: CarriedBlocks, stage: Stage, some: np.ndarray, *args: Any) -> None:
        computed[stage.name] = len(some)
        original(self, stage, some, *args)

    monkeypatch.setattr(CarriedBlocks, "_compute_some", watched)
    found = fcdeploy.update(run, add=rows[-2:])
    assert 2 <= computed["similar2"] <= computed["block1"] < len(rows)
    assert computed["refined"] == 2
    computed.clear()
    monkeypatch.setattr(
        Layers, "_read_for_new", lambda self, moved, reach: np.arange(self.run.n, dtype=np.int32)
    )
    wanted = fcdeploy.update(whole, add=rows[-2:])
    assert "block1" not in computed
    refined, all_of_it = (load_artifact(folder / "refined")["refined"] for folder in (run, whole))
    np.testing.assert_allclose(refined, all_of_it, atol=1e-6)
    assert np.array_equal(found.labels, wanted.labels)


def test_the_lists_are_those_of_a_run_over_all(runs: Any, folder: Any, faces: Any, tmp_path: Path) -> None:
    """What is compared by similarity alone is what clustering all together compares, byte for byte."""
    rows, new = faces
    run = folder()
    fcdeploy.update(run, add=rows[new])
    ordered = np.concatenate([rows[~new], rows[new]])
    fcdeploy.cluster(ordered, engine=runs(PSE)[0], run_dir=tmp_path / "all")
    for name in ("vectors", "knn"):
        found, wanted = load_artifact(run / name), load_artifact(tmp_path / "all" / name)
        assert all(np.array_equal(found[part], wanted[part]) for part in wanted), name


def test_who_is_removed_is_gone_and_who_comes_back_finds_his_cluster(
    folder: Any, faces: Any, runs: Any
) -> None:
    rows, new = faces
    old = runs(PSE)[2]
    run = folder()
    gone = np.arange(0, len(old), 7)
    stay = np.setdiff1d(np.arange(len(old)), gone)
    less = fcdeploy.update(run, remove=gone)
    assert np.array_equal(less.faces, stay)
    assert same_pairs(less.labels, old[stay]) > 0.9
    back = fcdeploy.update(run, add=rows[~new][gone])
    assert np.array_equal(back.faces, np.concatenate([stay, len(old) + np.arange(len(gone))]))
    assert same_pairs(back.labels, np.concatenate([old[stay], old[gone]])) > 0.9
    with pytest.raises(InputError, match=r"2 of the faces to remove do not exist \(0, 7\)"):
        fcdeploy.update(run, remove=[0, 1, 7])


def test_removing_and_adding_at_once(folder: Any, faces: Any, runs: Any) -> None:
    rows, new = faces
    old = runs(PSE)[2]
    run = folder()
    found = fcdeploy.update(run, add=rows[new], remove=np.arange(50))
    now = np.concatenate([rows[~new][50:], rows[new]])
    assert np.array_equal(
        found.faces, np.concatenate([np.arange(50, len(old)), len(old) + np.arange(new.sum())])
    )
    assert same_pairs(found.labels, fcdeploy.cluster(now, engine=runs(PSE)[0])) > 0.85
    assert (found.summary["added"], found.summary["removed"]) == (new.sum(), 50)


@pytest.mark.parametrize("case", [PSE, CASES[2]], ids=str)
def test_nothing_is_merged_or_split_that_is_not_to_be(case: Case, folder: Any, faces: Any, runs: Any) -> None:
    rows, new = faces
    old = runs(case)[2]
    asked = []

    def ask(change: Any) -> bool:
        asked.append(change)
        return False

    found = fcdeploy.update(folder(case), add=rows[new], merges=ask, splits="never")
    assert np.array_equal(found.labels[: len(old)], old)
    assert found.changes == []
    assert [change for change in found.refused if change.kind == "merge"] == asked


@pytest.mark.parametrize("case", [case for case in CASES if case.name in LINKED], ids=str)
def test_adding_faces_splits_no_cluster_and_merges_few(
    case: Case, folder: Any, faces: Any, runs: Any
) -> None:
    """What is not clear is listed as not made, and would be made by whoever asks for all of it."""
    rows, new = faces
    old = runs(case)[2]
    run = folder(case)
    everything = fcdeploy.update(
        Path(shutil.copytree(run, run.parent / "all")), add=rows[new], merges="apply", splits="apply"
    )
    found = fcdeploy.update(run, add=rows[new])
    kept = found.labels[: len(old)]
    together = kept[:, None] == kept
    assert together[(old[:, None] == old) & (old >= 0)].all()
    assert {change.kind for change in found.changes} <= {"merge"}
    merges = [change for change in everything.changes if change.kind == "merge"]
    assert len(found.changes) <= len(merges)
    assert everything.refused == []
    splits = len(everything.changes) - len(merges)
    listed = list(csv.DictReader((run / "changes.csv").open()))
    assert [line["kind"] for line in listed if line["made"] == "yes"] == ["merge"] * len(found.changes)
    assert sum(line["kind"] == "split" and line["made"] == "no" for line in listed) >= bool(splits)
    numbers = {"", *map(str, kept.tolist()), *map(str, old.tolist())}
    assert {line["new"] for line in listed} <= numbers  # and none that another cluster has now


@pytest.mark.parametrize("splits", ["clear", "never"])
def test_a_cluster_falls_apart_when_what_held_it_together_is_removed(
    splits: str, folder: Any, runs: Any
) -> None:
    """Of the largest cluster the two faces that are least alike are left."""
    old, run = runs(PSE)[2], folder()
    largest = np.flatnonzero(old == np.bincount(old).argmax())
    vectors = load_artifact(run / "vectors")["vectors"][largest]
    left = largest[list(np.unravel_index((vectors @ vectors.T).argmin(), (len(largest),) * 2))]
    found = fcdeploy.update(run, remove=np.setdiff1d(largest, left), splits=splits)
    labels = found.labels[np.isin(found.faces, left)]
    assert (labels[0] == labels[1]) == (splits == "never")


def test_what_a_person_knows_holds_whatever_merges_and_splits_are(folder: Any, faces: Any, runs: Any) -> None:
    rows, new = faces
    old = runs(PSE)[2]
    first, second = np.flatnonzero(old == np.bincount(old).argmax())[[0, -1]].tolist()
    third, fourth = (int(np.flatnonzero(old == at)[0]) for at in np.unique(old[old != old[first]])[:2])
    pairs = [(first, second, "different"), (third, fourth, "same")]
    run = folder()
    found = fcdeploy.update(run, add=rows[new], pairs=pairs, merges="never", splits="never")
    assert found.labels[first] != found.labels[second]
    assert found.labels[third] == found.labels[fourth]
    assert {change.kind for change in found.changes} == {"merge", "split"}
    again = fcdeploy.update(run, remove=[found.faces[-1]], merges="never", splits="never")
    assert np.array_equal(again.labels, found.labels[:-1])


def test_a_cluster_all_of_whose_faces_are_removed_is_gone_and_its_number_with_it(
    folder: Any, faces: Any, runs: Any
) -> None:
    rows, new = faces
    old = runs(PSE)[2]
    last = int(old.max())
    run = folder()
    less = fcdeploy.update(run, remove=np.flatnonzero(old == last))
    assert last not in less.labels
    assert np.array_equal(less.labels, old[old != last])
    more = fcdeploy.update(run, add=rows[new])
    assert last not in more.labels
    with pytest.raises(InputError, match=r"fewer than the \d+ neighbors"):
        fcdeploy.update(run, remove=more.faces)


def test_history_tells_who_had_which_number(folder: Any, faces: Any, runs: Any) -> None:
    """Undone from its end, it gives the labels of the first run."""
    rows, new = faces
    old = runs(PSE)[2]
    run, more = folder(), rows[new]
    for part in (more[:6], more[6:12]):
        fcdeploy.update(run, add=part)
    last = fcdeploy.update(run, add=more[12:], remove=[3, 4, len(old) + 5])
    labels = {face: str(label) for face, label in zip(last.faces.tolist(), last.labels.tolist(), strict=True)}
    with open(run / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert [row["update"] for row in history] == sorted(row["update"] for row in history)
    for row in reversed(history):
        assert labels.get(int(row["face"]), "") == row["new"]
        labels[int(row["face"])] = row["old"]
    assert {face: label for face, label in labels.items() if label} == {
        at: str(one) for at, one in enumerate(old)
    }
    assert json.loads((run / "state.json").read_text())["updates"] == 3


def test_copies_count_once_also_when_they_come_later_and_the_first_of_them_goes(
    folder: Any, faces: Any, runs: Any
) -> None:
    rows, new = faces
    old = runs(PSE)[2]
    run = folder()
    more = np.concatenate([rows[~new][:3], rows[new][:10], rows[new][:2]])
    found = fcdeploy.update(run, add=more)
    n = len(old)
    assert np.array_equal(found.labels[n : n + 3], found.labels[:3])
    assert np.array_equal(found.labels[n + 13 :], found.labels[n + 3 : n + 5])
    assert len(load_artifact(run / "vectors")["vectors"]) == n + 10
    less = fcdeploy.update(run, remove=[0, 1])
    assert len(load_artifact(run / "vectors")["vectors"]) == n + 10
    assert np.array_equal(less.labels, found.labels[2:])


def test_bad_rows_stay_in_no_cluster(folder: Any, faces: Any) -> None:
    rows, new = faces
    more = rows[new][:10].copy()
    more[4, 3] = np.nan
    run = folder()
    before = files_of(run)
    with pytest.raises(InputError, match=r"row 4, counted from 0\)"):
        fcdeploy.update(run, add=more)
    assert files_of(run) == before
    with pytest.warns(fcdeploy.FcdeployWarning, match="they are in no cluster"):
        found = fcdeploy.update(run, add=more, on_bad="skip")
    assert found.labels[-6] == -1
    assert (np.delete(found.labels[-10:], 4) >= 0).all()
    with pytest.warns(fcdeploy.FcdeployWarning):
        fcdeploy.update(run, add=more[:5], on_bad="skip")


def test_a_failure_leaves_the_folder_as_it_was(
    folder: Any, faces: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fcdeploy.runtime import update

    run = folder()
    (run / "mine.txt").write_text("mine")
    before = files_of(run)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("now")

    with monkeypatch.context() as patch:
        patch.setattr(update, "keep_state", fail)
        with pytest.raises(RuntimeError, match="now"):
            fcdeploy.update(run, add=faces[0][faces[1]])
    assert files_of(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    fcdeploy.update(run, add=faces[0][faces[1]])
    assert (run / "mine.txt").read_text() == "mine"


def test_a_run_over_all_faces_in_the_folder_computes_anew(folder: Any, faces: Any, runs: Any) -> None:
    """What an update took over is no result of a whole run, and is not taken for one."""
    rows, new = faces
    engine = runs(PSE)[0]
    run = folder()
    fcdeploy.update(run, add=rows[new])
    ordered = np.concatenate([rows[~new], rows[new]])
    wanted = fcdeploy.cluster(ordered, engine=engine)
    assert np.array_equal(fcdeploy.cluster(ordered, engine=engine, run_dir=run), wanted)


def test_the_command(folder: Any, faces: Any, tmp_path: Path, fcdeploy: Any) -> None:
    rows, new = faces
    rows[new].astype("<f4").tofile(tmp_path / "new.bin")
    (tmp_path / "ids.txt").write_text("3\n\n5\n")
    run, out = folder(), tmp_path / "updated.csv"
    args = ("update", run, "--add", tmp_path / "new.bin", "--remove", tmp_path / "ids.txt", "-o", out)
    code, _, errors = fcdeploy(*args)
    assert code == 0, errors
    assert len(out.read_text().splitlines()) == 1 + len(rows) - 2
    assert (run / "changes.csv").read_text().startswith("old,new,faces,kind,made\n")
    assert fcdeploy("update", run, "-o", out)[0] == 2
    assert "nothing to add" in fcdeploy("update", run, "-o", out)[2]
    (tmp_path / "ids.txt").write_text("3\nfive\n")
    assert "line 2 is 'five'" in fcdeploy("update", run, "--remove", tmp_path / "ids.txt", "-o", out)[2]
    assert "--merges ask" in fcdeploy("update", run, *args[2:4], "--merges", "ask", "-o", out)[2]


def test_pairs_hold_in_an_update_too(folder: Any, faces: Any, tmp_path: Path) -> None:
    rows, new = faces
    run = folder()
    old = read_placed(run).labels
    first, second = np.flatnonzero(old == np.bincount(old).argmax())[[0, -1]].tolist()
    third = int(np.flatnonzero(old != old[first])[0])
    added = len(old)  # the number of the first new face
    (tmp_path / "pairs.csv").write_text(f"{first},{second},different\n{third},{added},same\n")
    found = fcdeploy.update(run, add=rows[new], pairs=tmp_path / "pairs.csv")
    assert found.labels[first] != found.labels[second]
    assert found.labels[third] == found.labels[added]
    assert np.array_equal(read_placed(run).labels, found.labels)
    (tmp_path / "pairs.csv").write_text(f"{first},{10**6},same\n")
    before = files_of(run)
    with pytest.raises(InputError, match="the id of no face"):
        fcdeploy.update(run, remove=[0], pairs=tmp_path / "pairs.csv")
    assert files_of(run) == before


def test_pairs_of_removed_faces_are_passed_over_and_others_go_by_number(folder: Any, faces: Any) -> None:
    """Removed faces leave gaps, so that a number is no row any more."""
    run = folder()
    old = read_placed(run).labels
    first, second = np.flatnonzero(old == np.bincount(old).argmax())[[-2, -1]].tolist()
    assert first > 0
    fcdeploy.update(run, remove=[0])
    found = fcdeploy.update(run, add=faces[0][faces[1]], pairs=[(0, 5, "same"), (first, second, "different")])
    of = dict(zip(found.faces.tolist(), found.labels.tolist(), strict=True))
    assert of[first] != of[second]
    before = files_of(run)
    for pairs in ([(5, 10**6, "same")], [(5, 5, "same")], 5, [(5, 6, "same"), (6, 5, "different")]):
        with pytest.raises(InputError, match="pairs"):
            fcdeploy.update(run, remove=[1], pairs=pairs)
    assert files_of(run) == before


def test_drawn_pairs_of_an_updated_folder_go_by_number(folder: Any) -> None:
    run = folder()
    drawn = fcdeploy.pairs(run, 10**4).ids
    found = fcdeploy.update(run, remove=list(range(50)))
    again = fcdeploy.pairs(run, 10**4)
    assert again.ids.min() >= 50
    of = dict(zip(found.faces.tolist(), found.labels.tolist(), strict=True))
    together = [of[a] == of[b] for a, b in again.ids.tolist()]
    assert np.array_equal(together, again.together)
    assert drawn.min() < 50


@pytest.mark.parametrize(
    "wrong",
    [
        {"merges": "some"},
        {"splits": "ask"},
        {"on_bad": "zero"},
        {"threads": -1},
        {"memory": -1},
        {"device": "gpu"},
    ],
    ids=str,
)
def test_values_that_an_update_has_not(wrong: dict[str, Any], folder: Any, faces: Any) -> None:
    run = folder()
    before = files_of(run)
    with pytest.raises(InputError, match=next(iter(wrong))):
        fcdeploy.update(run, add=faces[0][faces[1]], **wrong)
    assert files_of(run) == before


@pytest.mark.parametrize("name", ["history.csv", "changes.csv", "labels/labels.csv", "own.csv"])
def test_an_output_replaces_nothing_of_the_run(
    name: str, folder: Any, faces: Any, tmp_path: Path, fcdeploy: Any
) -> None:
    run, (rows, new) = folder(), faces
    np.save(tmp_path / "new.npy", rows[new][:3])
    (tmp_path / "link").symlink_to(run)
    before = files_of(run)
    for command in (
        ("assign", tmp_path / "new.npy", "--run-dir", run),
        ("update", run, "--add", tmp_path / "new.npy"),
        ("pairs", run),
    ):
        done = fcdeploy(*command, "-o", tmp_path / "link" / name, "--quiet")
        assert done[0] == (0 if name == "own.csv" else 2), done
        if name != "own.csv":
            assert "belongs to the run" in done[2]
            assert files_of(run) == before


def test_faces_found_in_photos_stay_in_the_folder(folder: Any) -> None:
    """As `fcdeploy cluster` for photos, and `fcdeploy faces` into a folder of runs, leave them there."""
    run = folder()
    record = json.loads((run / "run.json").read_bytes())
    record["names"] = [*record["names"], "crops", "faces", "faces.csv"]
    (run / "run.json").write_text(json.dumps(record))
    kept = {"crops/faces/1f/a_0.jpg": b"1", "crops/run.json": b"{}", "faces/2.jpg": b"2", "faces.csv": b"id"}
    for name, content in kept.items():
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_bytes(content)
    for face in (0, 1):
        fcdeploy.update(run, remove=[face])
        assert {name: (run / name).read_bytes() for name in kept} == kept
        assert {"crops", "faces", "faces.csv"} <= set(json.loads((run / "run.json").read_bytes())["names"])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_numbers_of_faces_in_files_as_spreadsheets_write_them(encoding: str, tmp_path: Path) -> None:
    (tmp_path / "ids.txt").write_bytes("17\r\n\r\n 3 \r\n".encode(encoding))
    assert read_ids(tmp_path / "ids.txt").tolist() == [17, 3]
    (tmp_path / "bytes.txt").write_bytes(b"\xff\n")
    for name in ("bytes.txt", "none.txt", "."):
        with pytest.raises(InputError, match=name.replace(".", "[.]")):
            read_ids(tmp_path / name)
