"""Copies, bad rows, lists of images and flagged clusters: rows keep their numbers in all that is said of clusters."""

import numpy as np
import pytest

import fcdeploy
from fcdeploy.clustering.flags import FLAGS, Confidence
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.errors import InputError
from fcdeploy.runtime.evidence import read_placed
from fcdeploy.runtime.review import measured_rows, without_flagged

pytest.importorskip("onnxscript")
FACES = 120


@pytest.fixture(scope="module")
def faces(golden):
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:FACES]


@pytest.fixture
def run(faces, pse_bundle, tmp_path):
    labels = fcdeploy.cluster(faces, engine=pse_bundle.path, run_dir=tmp_path / "run")
    return labels, read_placed(tmp_path / "run")


@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")
def test_copies_and_bad_rows_have_their_places(faces, pse_bundle, tmp_path):
    rows = np.concatenate([faces, faces[:30]])
    rows[40] = np.nan
    labels = fcdeploy.cluster(
        rows, engine=pse_bundle.path, on_bad="skip", run_dir=tmp_path / "run", table=tmp_path / "t.csv"
    )
    placed = read_placed(tmp_path / "run")
    assert np.array_equal(placed.labels, labels)
    assert placed.face[40] == -1
    assert np.array_equal(placed.face[FACES:], placed.face[:30])
    confidence = fcdeploy.confidence(tmp_path / "run")
    assert np.array_equal(confidence.clusters.size, np.bincount(labels[labels >= 0]))
    assert np.array_equal(
        confidence.faces.confidence[FACES:], confidence.faces.confidence[:30], equal_nan=True
    )
    assert np.isnan(confidence.faces.confidence[40])
    lines = (tmp_path / "t.csv").read_text().splitlines()
    assert len(lines) == 1 + len(rows)
    assert lines[41].startswith("40,-1,")


@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")
def test_copies_cannot_be_different_persons(faces, pse_bundle):
    rows = np.concatenate([faces, faces[:1]])
    with pytest.raises(InputError, match="copies of one face"):
        fcdeploy.cluster(rows, engine=pse_bundle.path, pairs=[(0, FACES, "different")])
    labels = fcdeploy.cluster(
        rows, engine=pse_bundle.path, pairs=[(0, FACES, "different")], duplicates="as-published"
    )
    assert labels[0] != labels[FACES]


@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")
def test_a_bad_row_goes_where_a_person_puts_it(faces, pse_bundle):
    rows = faces.copy()
    rows[7] = 0
    labels = fcdeploy.cluster(rows, engine=pse_bundle.path, on_bad="skip", pairs=[(7, 9, "same")])
    assert labels[7] == labels[9] >= 0
    others = np.delete(np.arange(FACES), 7)
    before = fcdeploy.cluster(rows, engine=pse_bundle.path, on_bad="skip")
    assert evaluate(labels[others], before[others]).ari == 1


def test_flagged_clusters_come_apart_and_the_flag_stays(run):
    labels, placed = run
    confidence = measured_rows(placed)
    largest = int(np.bincount(labels).argmax())
    confidence.clusters.flags[:] = 0
    confidence.clusters.flags[largest] = FLAGS["garbage"]
    changed, figures = without_flagged(placed, confidence, ["garbage"])
    rows = labels == largest
    assert figures == {"garbage": {"clusters": 1, "rows": int(rows.sum())}}
    sizes = np.bincount(changed.labels)
    assert (sizes[changed.labels[rows]] == 1).all()
    rest = evaluate(changed.labels[~rows], labels[~rows])
    assert rest.ari == 1
    after: Confidence = measured_rows(changed)
    assert (after.faces.flags[rows] & FLAGS["garbage"]).all()
    assert np.isnan(after.faces.confidence[rows]).all()
    assert len(changed.evidence.links) == FACES - len(sizes)


def test_contradictions_are_named_with_their_lines(faces, pse_bundle, tmp_path):
    (tmp_path / "pairs.csv").write_text("a,b,answer\n3,4,same\n4,5,same\n8,9,different\n5,3,different\n")
    with pytest.raises(
        InputError, match="line 5 says that rows 5 and 3 are different persons, lines 2 and 3 say"
    ):
        fcdeploy.cluster(faces, engine=pse_bundle.path, pairs=tmp_path / "pairs.csv")
    with pytest.raises(InputError, match="drop_flagged = rubbish: is none of garbage"):
        fcdeploy.cluster(faces, engine=pse_bundle.path, drop_flagged=("rubbish",))


@pytest.mark.parametrize("what", ["nothing", "no run", "stopped"])
def test_a_folder_without_a_finished_run_says_so(what, run, tmp_path):
    folder = tmp_path / {"nothing": "none", "no run": "", "stopped": "run"}[what]
    if what == "stopped":
        (folder / "evidence/links.npy").unlink()
    with pytest.raises(
        InputError,
        match={"nothing": "no such", "no run": "holds no", "stopped": "missing or incomplete"}[what],
    ):
        fcdeploy.confidence(folder)


def test_what_a_table_has_for_unknown_says_nothing_of_photos(faces, pse_bundle):
    usual = fcdeploy.cluster(faces, engine=pse_bundle.path)
    for unknown in (float("nan"), None, ""):
        labels = fcdeploy.cluster(faces, engine=pse_bundle.path, same_photo=[unknown] * FACES)
        assert np.array_equal(labels, usual)
    apart = fcdeploy.cluster(faces, engine=pse_bundle.path, same_photo=np.ones(FACES))
    assert apart.max() == FACES - 1


def test_pairs_in_python_say_what_pairs_in_a_file_may_say(faces, pse_bundle):
    said = [(0, 1, "Same"), (2, 3, "?"), (2, 3, None), (4, 5, " different ")]
    labels = fcdeploy.cluster(faces, engine=pse_bundle.path, pairs=said)
    assert np.array_equal(
        labels, fcdeploy.cluster(faces, engine=pse_bundle.path, pairs=[(0, 1, "same"), (4, 5, "different")])
    )
    assert labels[0] == labels[1]
    for wrong in (5, "no such file", [(0, 1, 1)], [(0, 1, [])]):
        with pytest.raises(InputError):
            fcdeploy.cluster(faces, engine=pse_bundle.path, pairs=wrong)


def test_one_flag_is_given_by_its_name(faces, pse_bundle):
    dropped = fcdeploy.cluster(faces, engine=pse_bundle.path, drop_flagged="garbage")
    assert np.array_equal(dropped, fcdeploy.cluster(faces, engine=pse_bundle.path, drop_flagged=["garbage"]))
