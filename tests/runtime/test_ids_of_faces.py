"""Ids that came with the features name the faces in every file that a run folder leads to, and are understood there."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcdeploy
from fcdeploy.data.ids import packed_ids, unpacked_ids
from fcdeploy.errors import InputError
from fcdeploy.report.decisions import DecisionLog
from fcdeploy.report.opened import open_run
from fcdeploy.runtime.evidence import read_placed

IDS = np.array([f"album {row % 7}/é{row:03}, left.jpg" for row in range(400)])
COLUMNS = ("--column", "x", "--id-column", "ids")


@pytest.fixture
def rows(golden: Path) -> np.ndarray:
    found = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)
    return found[np.random.default_rng(3).permutation(len(found))[:400]]


@pytest.fixture
def command(fcdeploy: Any) -> Any:
    def call(*args: object) -> str:
        done = fcdeploy(*args)
        assert done.code == 0, done.err
        return done.out

    return call


@pytest.fixture
def clustered(rows: np.ndarray, pse_bundle: Any, command: Any, tmp_path: Path) -> Path:
    """The run folder of the first 300 faces, which have ids."""
    np.savez(tmp_path / "old.npz", x=rows[:300], ids=IDS[:300])
    np.savez(tmp_path / "new.npz", x=rows[300:], ids=IDS[300:])
    args = (
        "--engine",
        pse_bundle.path,
        "--column",
        "x",
        "--id-column",
        "ids",
        "--run-dir",
        tmp_path / "run",
        "--quiet",
    )
    command("cluster", tmp_path / "old.npz", *args, "-o", tmp_path / "labels.csv")
    return tmp_path / "run"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "ids", [IDS, np.arange(5, 50, 3), np.array(["", "a", "\n", "日本"]), np.array([], dtype=str)], ids=len
)
def test_ids_come_back_as_they_were(ids: np.ndarray) -> None:
    packed = packed_ids(ids)
    assert all(array.dtype != object for array in packed.values())
    assert unpacked_ids(packed).tolist() == ids.tolist()


def test_pairs_drawn_of_a_run_are_those_that_cluster_takes(clustered: Path, command: Any) -> None:
    folder = clustered.parent
    command("pairs", clustered, "-n", 20, "-o", folder / "pairs.csv", "--quiet")
    drawn = table(folder / "pairs.csv")
    label = {line["id"]: line["label"] for line in table(folder / "labels.csv")}
    assert label.keys() == set(IDS[:300])
    inside = [line for line in drawn if label[line["a"]] == label[line["b"]]]
    assert inside
    one = inside[0]["a"], inside[0]["b"]
    with open(folder / "answers.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("a", "b", "answer"), (*one, "different")])
    engine = json.loads((clustered / "state.json").read_text())["engine"]
    args = (
        "--engine",
        engine,
        "--column",
        "x",
        "--id-column",
        "ids",
        "--pairs",
        folder / "answers.csv",
        "--quiet",
    )
    command("cluster", folder / "old.npz", *args, "-o", folder / "again.csv")
    now = {line["id"]: line["label"] for line in table(folder / "again.csv")}
    assert now[one[0]] != now[one[1]]


def test_exports_and_the_page_name_faces_by_their_ids(clustered: Path, command: Any) -> None:
    folder = clustered.parent
    labels = {line["id"]: line["label"] for line in table(folder / "labels.csv")}
    command("export-clusters", clustered, "--to", "csv", "-o", folder / "faces.csv")
    assert {line["id"]: line["cluster"] for line in table(folder / "faces.csv")} == labels
    command("export-clusters", clustered, "--to", "jsonl", "-o", folder / "faces.jsonl")
    lines = (folder / "faces.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == IDS[:300].tolist()
    command("report", clustered, "-o", folder / "report", "--quiet")
    page = (folder / "report/index.html").read_text()
    largest = max(set(labels.values()), key=list(labels.values()).count)
    assert any(name in page for name, label in labels.items() if label == largest)
    assert (
        IDS[299]
        in json.loads((folder / "report/data.js").read_text()[len("window.fcdeployData=") : -2])["ids"]
    )


def test_what_a_person_decides_is_written_by_id(clustered: Path, tmp_path: Path) -> None:
    run = open_run(clustered)
    log = DecisionLog(tmp_path / "decisions.csv", run.n, run.ids)
    log.append(0, "same", [(3, 250, "same")], [3, 250])
    log.append(1, "split", [(7, 9, "different")], [7])
    live = log.live()
    log.close()
    assert [(line["a"], line["b"]) for line in table(tmp_path / "decisions.csv")] == [
        (IDS[3], IDS[250]),
        (IDS[7], IDS[9]),
    ]
    again = DecisionLog(tmp_path / "decisions.csv", run.n, run.ids)
    assert again.live() == live
    again.close()
    with pytest.raises(InputError, match="another run"):
        DecisionLog(tmp_path / "decisions.csv", run.n - 1, run.ids[:-1][::-1][:200])


def test_faces_come_and_go_by_their_ids(clustered: Path, command: Any) -> None:
    folder = clustered.parent
    (folder / "gone.txt").write_text(f"{IDS[10]}\n{IDS[200]}\n")
    args = (
        "--add",
        folder / "new.npz",
        "--column",
        "x",
        "--id-column",
        "ids",
        "--remove",
        folder / "gone.txt",
        "--quiet",
    )
    command("update", clustered, *args, "-o", folder / "updated.csv")
    there = [name for name in IDS if name not in (IDS[10], IDS[200])]
    updated = {line["id"]: int(line["label"]) for line in table(folder / "updated.csv")}
    assert list(updated) == there
    assert read_placed(clustered).ids.tolist() == there
    went = {line["face"] for line in table(clustered / "history.csv") if line["new"] == ""}
    assert went == {IDS[10], IDS[200]}
    # Pairs go by ids, too, and those of faces that went are passed over.
    one, other = (name for name in there[:2])
    pairs = [(str(one), str(other), "different"), (str(IDS[10]), str(one), "same")]
    found = fcdeploy.update(clustered, remove=[str(IDS[399])], pairs=pairs)
    label = dict(zip(found.ids.tolist(), found.labels.tolist(), strict=True))
    assert label[one] != label[other]
    assert IDS[399] not in label
    with pytest.raises(InputError, match="do not exist"):
        fcdeploy.update(clustered, remove=["nobody"])


def test_an_id_that_two_faces_would_have_is_refused(clustered: Path, rows: np.ndarray, command: Any) -> None:
    np.savez(clustered.parent / "twice.npz", x=rows[300:302], ids=np.array(["fresh", IDS[4]]))
    before = read_placed(clustered).labels.copy()
    with pytest.raises(InputError, match="id of two faces"):
        fcdeploy.update(clustered, add=clustered.parent / "twice.npz", column="x", id_column="ids")
    assert np.array_equal(read_placed(clustered).labels, before)
    found = fcdeploy.update(clustered, add=rows[300:302])
    assert found.ids[-2:].tolist() == ["300", "301"]
