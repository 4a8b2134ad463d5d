"""Labels and neighbor lists as people have them, and those of other faces.

Labels N x 1 are the layout of github.com/Zhongdao/gcn_clustering's README; labels as floats: Ada-NETS #17; names:
face_recognition_framework #1, learn-to-cluster #88; tables: insightface #80; unknown identities: learn-to-cluster #41,
facenet #845. Lists of other faces (F .888 became .013), a precision that nothing reaches, and a width that follows from
labels of other faces were found by trying.
"""

import json

import numpy as np
import pytest

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.errors import InputError

pytest.importorskip("onnxscript")

FACES = 300


@pytest.fixture(scope="module")
def rows(golden):
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:FACES]


@pytest.fixture(scope="module")
def truth(golden):
    return np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)[:FACES]


@pytest.fixture
def here(rows, truth, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("f.npy", rows)
    np.savetxt("t.meta", truth, fmt="%d")
    return tmp_path


@pytest.mark.parametrize("form", ["n1.npy", "floats.npy", "names.txt", "t.csv", "t.lst"])
def test_evaluate_gives_the_same_figures_whatever_form_the_truth_has(form, here, truth, fcdeploy):
    np.save("n1.npy", truth[:, None])
    np.save("floats.npy", truth.astype(np.float64))
    (here / "names.txt").write_text("".join(f"person {label}\n" for label in truth))
    (here / "t.csv").write_text("id,label\n" + "".join(f"{i},{label}\n" for i, label in enumerate(truth)))
    (here / "t.lst").write_text("".join(f"{i}\t{label}.000000\ta/{i}.jpg\n" for i, label in enumerate(truth)))
    np.save("pred.npy", truth // 2)
    column = ("--label-column", "label") if form == "t.csv" else ()
    done = fcdeploy("evaluate", "pred.npy", form, *column, "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == evaluate(truth // 2, truth).as_dict()


def test_unknown_identities_leave_every_figure(here, truth, fcdeploy):
    """A perfect clustering stays perfect; what is left is measured as if there was nothing else."""
    unknown = np.random.default_rng(0).random(FACES) < 0.5
    np.save("half.npy", np.where(unknown, np.nan, truth))
    done = fcdeploy("evaluate", "t.meta", "half.npy", "--json")
    found = json.loads(done.out)
    assert (found["pairwise"]["f"], found["bcubed"]["f"], found["nmi"]) == (1, 1, 1)
    assert (found["faces"], found["unknown"]) == (int((~unknown).sum()), int(unknown.sum()))
    pred = np.arange(FACES) // 7
    np.save("pred.npy", pred)
    found = json.loads(fcdeploy("evaluate", "pred.npy", "half.npy", "--json").out)
    rest = evaluate(pred[~unknown], truth[~unknown]).as_dict()
    assert {**found, "unknown": None} == {**rest, "unknown": None}
    alone = fcdeploy("evaluate", "pred.npy", "half.npy", "--unknown", "singleton", "--json")
    apart = np.where(unknown, 10_000 + np.arange(FACES), truth)
    assert json.loads(alone.out) == evaluate(pred, apart).as_dict()
    np.save("none.npy", np.full(FACES, np.nan))
    for options in ((), ("--json",)):
        done = fcdeploy("evaluate", "pred.npy", "none.npy", *options)
        assert (done.code, done.out) == (2, "")
        assert "none.npy: all 300 labels are unknown" in done.err


def test_cluster_and_tune_leave_unknown_identities_out_of_the_figures(pse_bundle, here, truth, fcdeploy):
    half = truth.copy()
    half[::2] = -1
    np.savetxt("half.meta", half, fmt="%d")
    done = fcdeploy(
        *("cluster", "f.npy", "--engine", pse_bundle.path, "--labels", "half.meta", "--json", "-o", "o.npy")
    )
    assert done.code == 0, done.err
    labels = np.load("o.npy")
    assert len(labels) == FACES
    assert json.loads(done.out)["quality"] == evaluate(labels, half).as_dict()
    done = fcdeploy(
        "tune", "--engine", pse_bundle.path, "--features", "f.npy", "--labels", "half.meta", "--json"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["unknown"] == FACES // 2


def test_a_precision_that_only_faces_alone_reach_is_refused_with_the_highest(pse_bundle, here, fcdeploy):
    """Two identities at random: whatever is joined is as often wrong as right."""
    np.savetxt("two.meta", np.random.default_rng(0).integers(0, 2, FACES), fmt="%d")
    for objective in ("pairwise", "bcubed"):
        done = fcdeploy(
            *("tune", "--engine", pse_bundle.path, "--features", "f.npy", "--labels", "two.meta"),
            *("--objective", objective, "--min-precision", 1, "-o", "t.toml"),
        )
        assert (done.code, done.out) == (2, "")
        assert f"reaches {objective} precision 1.0: the highest is 0.".lower() in done.err.lower()
        assert "with links.tau = " in done.err
        assert not (here / "t.toml").exists()
        assert not (here / "t.png").exists()


def lists_of(rows, k=30):
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    sims = unit @ unit.T
    np.fill_diagonal(sims, 2)
    ids = np.argsort(-sims, axis=1, kind="stable")[:, :k]
    return ids, np.minimum(np.take_along_axis(sims, ids, axis=1), 1)


@pytest.mark.parametrize("option", ["--knn", "--reranked"])
def test_lists_of_other_faces_are_refused_before_anything_is_made(option, pse_bundle, rows, here, fcdeploy):
    order = np.random.default_rng(0).permutation(FACES)
    ids, sims = lists_of(rows[order])
    np.savez("lists.npz", data=np.stack([ids, 1 - sims], axis=1))
    before = sorted(path.name for path in here.iterdir())
    arguments = ("--engine", pse_bundle.path, "--k", 20, "--hops", "10,5", option, "lists.npz")
    for verb in (("cluster", "f.npy", "-o", "o.meta", "--run-dir", "run"), ("estimate", "f.npy")):
        done = fcdeploy(*verb, *arguments)
        assert (done.code, done.out) == (2, ""), done
        assert "Error: lists.npz: " in done.err
        assert "other faces" in done.err
        assert sorted(path.name for path in here.iterdir()) == before
    ids, sims = lists_of(rows)
    np.savez("lists.npz", data=np.stack([ids, 1 - sims], axis=1))
    assert fcdeploy("cluster", "f.npy", "-o", "o.meta", *arguments).code == 0


def test_lists_of_other_faces_are_refused_from_python(pse_bundle, rows, here):
    import fcdeploy

    ids, _ = lists_of(rows[::-1])
    np.save("lists.npy", ids)
    for option in ("knn", "reranked"):
        with pytest.raises(InputError, match=r"lists\.npy: "):
            fcdeploy.cluster(rows, engine=pse_bundle.path, k=20, hops=(10, 5), **{option: "lists.npy"})
