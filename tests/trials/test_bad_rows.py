"""Some rows of real features are broken: they are listed, and the user says what becomes of them.

Reported at: immich #30274 and #18779 (one NaN embedding stops everything), faiss #244 (what a search does with NaN).
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from system_cases import CASES

import fcdeploy
from fcdeploy.cli import cli
from fcdeploy.data.bad_list import is_bad_list
from fcdeploy.errors import FcdeployWarning, InputError, speaking_flags

WHOLE = [case for case in CASES if not case.networks]
BAD = {3: "holds NaN", 9: "all zero", 70: "holds infinity", 71: "its norm overflows float32"}


@pytest.fixture
def faces(golden: Any) -> tuple[np.ndarray, np.ndarray]:
    rows = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)
    identities = np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)
    chosen = np.argsort(identities, kind="stable")[:120]
    return rows[chosen], identities[chosen]


@pytest.fixture
def here(faces: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with bad.npy and labels.meta, which is the current one."""
    rows = faces[0].copy()
    rows[3, 4], rows[9], rows[70, 0], rows[71] = np.nan, 0, -np.inf, 3e38
    np.save(tmp_path / "bad.npy", rows)
    np.savetxt(tmp_path / "labels.meta", faces[1], fmt="%d")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*args: Any, code: int = 0) -> str:
    """Call the command line; returns stdout, or the sentence of a refusal."""
    with warnings.catch_warnings(), speaking_flags():
        warnings.simplefilter("ignore", FcdeployWarning)
        done = CliRunner().invoke(cli, [*map(str, args)])
    if code:
        assert isinstance(done.exception, InputError), done.output
        return str(done.exception)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def check_list(file: Path) -> None:
    assert file.read_text() == "".join(f"{row}\t{why}\n" for row, why in BAD.items())


@pytest.mark.parametrize("case", WHOLE, ids=str)
@pytest.mark.parametrize("choice", ["skip", "zero"])
def test_good_rows_are_clustered_as_without_the_bad_ones(
    case: Any, choice: str, exported: Any, here: Path
) -> None:
    engine = exported(case).path
    told = ("--labels", "labels.meta", "--json", "--on-bad", choice)
    summary = json.loads(call("cluster", "bad.npy", "--engine", engine, "-o", "o.meta", *told))
    labels = np.loadtxt("o.meta", dtype=np.int64)
    good = np.setdiff1d(np.arange(120), list(BAD))
    np.save("good.npy", np.load("bad.npy")[good])
    call("cluster", "good.npy", "--engine", engine, "-o", "good.meta", "--quiet")
    alone = np.loadtxt("good.meta", dtype=np.int64)
    same = labels[good][:, None] == labels[good]
    assert np.array_equal(same, alone[:, None] == alone)
    check_list(here / "o.bad.txt")
    assert not Path("good.bad.txt").exists()
    assert (summary["rows"], summary["bad"]) == (120, 4)
    assert summary["reasons"] == {"nan": 1, "infinite": 1, "overflowing": 1, "all_zero": 1}
    assert summary["quality"]["faces"] == 120
    assert "uncovered" not in summary
    if choice == "skip":
        assert (labels[list(BAD)] == -1).all()
        assert summary["faces"] == 116
    else:
        assert all((labels == label).sum() == 1 for label in labels[list(BAD)])
        assert summary["faces"] == 120
    assert np.array_equal(labels[labels >= 0], fcdeploy_numbered(labels[labels >= 0]))


def fcdeploy_numbered(labels: np.ndarray) -> np.ndarray:
    """Number clusters by first appearance."""
    seen: dict[int, int] = {}
    return np.array([seen.setdefault(int(label), len(seen)) for label in labels])


@pytest.mark.parametrize("command", ["cluster", "tune", "train"])
def test_stop_lists_all_of_them_and_writes_nothing_else(command: str, pse_bundle: Any, here: Path) -> None:
    lines = {
        "cluster": ("cluster", "bad.npy", "--engine", pse_bundle.path, "-o", "out.meta"),
        "tune": (
            *("tune", "--engine", pse_bundle.path, "--features", "bad.npy", "--labels", "labels.meta"),
            *("-o", "out.toml"),
        ),
        "train": (
            *("train", "pse-gcn", "--features", "bad.npy", "--labels", "labels.meta", "-o", "out.pth"),
            *("--steps", "1"),
        ),
    }
    before = {path.name for path in here.iterdir()}
    said = call(*lines[command], code=2)
    for part in (
        "bad.npy",
        "3 of 120 rows hold NaN",
        "(rows 3, 70, 71,",
        "row 9,",
        "out.bad.txt",
        "--on-bad",
    ):
        assert part in said
    check_list(here / "out.bad.txt")
    assert {path.name for path in here.iterdir()} - before == {"out.bad.txt"}
    call(*lines[command], code=2)  # its own list is replaced


@pytest.mark.parametrize("choice", ["skip", "zero"])
def test_tune_and_train_leave_them_out_with_their_labels(choice: str, exported: Any, here: Path) -> None:
    pytest.importorskip("torch")
    case = next(case for case in WHOLE if case.name == "sepfl")
    good = np.setdiff1d(np.arange(120), list(BAD))
    np.save("good.npy", np.load("bad.npy")[good])
    np.savetxt("good.meta", np.loadtxt("labels.meta", dtype=np.int64)[good], fmt="%d")
    made = {}
    for name, labels in (("bad", "labels.meta"), ("good", "good.meta")):
        made[name] = json.loads(
            call(
                *("tune", "--engine", exported(case).path, "--features", f"{name}.npy", "--labels", labels),
                *("-o", f"{name}.toml", "--json", "--on-bad", choice),
            )
        )
        call(
            *("train", "sepfl", "--features", f"{name}.npy", "--labels", labels, "-o", f"{name}.pth"),
            *("--steps", "2", "--batch", "4", "--quiet", "--on-bad", choice, "--recipe", case_recipe(here)),
        )
    assert made["bad"]["best"] == made["good"]["best"]
    assert made["bad"]["trials"] == made["good"]["trials"]
    features = made["bad"]["computed"]["features"]
    assert (features["rows"], features["computed"]) == (120, 116)
    assert Path("bad.toml").read_text() == Path("good.toml").read_text()
    assert Path("bad.pth").read_bytes() == Path("good.pth").read_bytes()
    check_list(here / "bad.bad.txt")


def case_recipe(folder: Path) -> Path:
    file = folder / "small.toml"
    file.write_text('system = "sepfl"\nfeature_dim = 32\n\n[links]\nk = 5\nrho = 0.6\n')
    return file


def test_python_has_the_same_choices(pse_bundle: Any, here: Path) -> None:
    rows = np.load("bad.npy")
    with pytest.raises(InputError, match=r"3 of 120 rows hold NaN.* 1 of 120 rows is all zero \(row 9"):
        fcdeploy.cluster(rows, engine=pse_bundle.path)
    with pytest.warns(FcdeployWarning, match="in no cluster"):
        labels = fcdeploy.cluster(rows, engine=pse_bundle.path, on_bad="skip")
    assert np.flatnonzero(labels == -1).tolist() == list(BAD)
    with pytest.warns(FcdeployWarning, match="of its own"):
        fitted = fcdeploy.FaceClusterer(pse_bundle.path, on_bad="zero").fit(rows)
    assert (fitted.labels_ >= 0).all()
    with pytest.raises(InputError, match="on_bad = drop"):
        fcdeploy.cluster(rows, engine=pse_bundle.path, on_bad="drop")


@pytest.mark.parametrize("choice", ["skip", "zero"])
def test_nothing_but_bad_rows_is_refused(choice: str, pse_bundle: Any, here: Path) -> None:
    np.save("bad.npy", np.zeros((5, 32), np.float32))
    said = call("cluster", "bad.npy", "--engine", pse_bundle.path, "-o", "o.meta", "--on-bad", choice, code=2)
    assert "5 of 5 rows are all zero" in said
    assert not Path("o.meta").exists()


def test_a_file_of_the_users_is_not_taken_for_a_list(pse_bundle: Any, here: Path) -> None:
    Path("o.bad.txt").write_text("remember to buy milk\n")
    line = ("cluster", "bad.npy", "--engine", pse_bundle.path, "-o", "o.meta", "--on-bad", "skip")
    assert "o.bad.txt" in call(*line, code=2)
    assert Path("o.bad.txt").read_text() == "remember to buy milk\n"
    Path("o.bad.txt").write_text("7\tall zero\n")  # of an earlier run
    call(*line, "--quiet")
    check_list(here / "o.bad.txt")
    np.save("bad.npy", np.load("bad.npy")[10:70])
    call(*line, "--quiet")
    assert not Path("o.bad.txt").exists()
    assert not is_bad_list(here / "labels.meta")


@pytest.mark.parametrize("sims", [True, False])
def test_lists_lose_the_bad_rows(sims: bool, pse_bundle: Any, faces: Any, here: Path) -> None:
    """Lists made of all rows, by a search that does something with bad ones: 40 neighbors, of which 20 are needed."""
    from fcdeploy.graph.knn import KnnSearch

    rows = faces[0] / np.linalg.norm(faces[0], axis=1, keepdims=True)
    ids, found = KnnSearch(rows).search(np.arange(120, dtype=np.int32), 40)
    found[list(BAD)] = np.nan
    lists = {"ids": ids, "sims": np.clip(found, 0, 1)} if sims else {"ids": ids}
    np.savez("knn.npz", **lists)
    line = ("cluster", "bad.npy", "--engine", pse_bundle.path, "--on-bad", "skip", "--quiet")
    call(*line, "-o", "lists.meta", "--knn", "knn.npz")
    call(*line, "-o", "searched.meta", "--knn", "exact")
    assert Path("lists.meta").read_text() == Path("searched.meta").read_text()
    np.savez("short.npz", **{name: array[:, :20] for name, array in lists.items()})
    said = call(*line, "-o", "short.meta", "--knn", "short.npz", code=2)
    assert "short.npz: without bad rows, the list of row" in said
    assert "20 are needed" in said
