"""Comparing engines and methods without a network: known clusters, oracles, and the figures of whole runs."""

import json
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

import fcdeploy
from fcdeploy.clustering.metrics import evaluate, share_in_same_cluster
from fcdeploy.errors import FcdeployWarning, InputError, MissingDependencyError
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.systems.training_types import Tunable
from fcdeploy.training import baselines, comparison
from fcdeploy.training.baselines import METHODS, Method, nearest_neighbors

FACES = 240


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def crowd():
    """Unit rows (120, 16) of twelve people with ten faces each around directions of their own, and their identities."""
    rng = np.random.default_rng(5)
    people = np.repeat(np.arange(12), 10)
    return unit(np.eye(16)[people] + 0.12 * rng.standard_normal((120, 16))), people


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """Methods of scikit-learn try few settings."""
    for name, settings in (
        ("dbscan", (Tunable("eps", (0.1, 0.2, 0.3)), Tunable("min_samples", (2, 5)))),
        (
            "hdbscan",
            (Tunable("min_cluster_size", (2, 5)), Tunable("cluster_selection_method", ("eom", "leaf"))),
        ),
    ):
        one = METHODS[name]
        monkeypatch.setitem(METHODS, name, Method(name, one.title, settings, one.opened, one.most, one.bytes))


@pytest.fixture(scope="module")
def bundle(pse_bundle, cut_bundle, tmp_path_factory):
    return cut_bundle(
        pse_bundle, ("refine",), tmp_path_factory.mktemp("compare") / "pse.onnx", links={"tau": 0.3}
    )


@pytest.fixture(scope="module")
def faces(golden):
    features = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:FACES]
    return features, np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)[:FACES]


def test_people_who_lie_apart_are_found_by_every_method(crowd):
    pytest.importorskip("sklearn")
    found = fcdeploy.compare(*crowd, k=20, threads=1)
    assert [row.name for row in found.rows] == [
        "components",
        "links to denser faces",
        "DBSCAN",
        "HDBSCAN",
    ]
    by_name = {row.name: row for row in found.rows}
    for name in ("components", "DBSCAN", "HDBSCAN"):
        assert by_name[name].best.evaluation.pairwise.f == 1.0, name
        assert by_name[name].best.evaluation.clusters == 12, name
        assert by_name[name].own is None
    assert (found.faces, found.identities, found.skipped) == (120, 12, {})


def test_trials_are_the_clusters_of_their_settings(crowd):
    """Components at 0.9 by hand: faces are joined along all similarities of 0.9 or more."""
    features, truth = crowd
    lists = nearest_neighbors(features, 120, 1 << 30)
    labels = METHODS["components"].opened(lists)({"cosine": 0.9})
    near = features @ features.T >= 0.9
    reached = near
    for _ in range(8):
        reached = (reached.astype(float) @ reached.astype(float)) > 0
    assert share_in_same_cluster(labels, reached.argmax(axis=1)) == 1.0
    assert len(np.unique(labels)) > 12
    found = fcdeploy.compare(features, truth, methods="components", k=120, threads=1)
    trial = next(trial for trial in found.rows[0].curve if trial.values["cosine"] == 0.9)
    assert trial.evaluation == evaluate(labels, truth)
    assert found.rows[0].best.evaluation.pairwise.f == max(
        trial.evaluation.pairwise.f for trial in found.rows[0].curve
    )


@pytest.fixture(scope="module")
def noisy(crowd):
    """The crowd and thirty strangers (150, 16), lists that hold all of them, and the full matrix of distances."""
    rows = np.concatenate([crowd[0], unit(np.random.default_rng(1).standard_normal((30, 16)))])
    dense = np.maximum(1 - (rows @ rows.T).astype(np.float64), 0)
    np.fill_diagonal(dense, 0)
    return nearest_neighbors(rows, len(rows), 1 << 30), dense


def test_dbscan_on_whole_lists_is_that_on_all_distances(noisy):
    cluster = pytest.importorskip("sklearn.cluster")
    lists, dense = noisy
    noise = 0
    for values, labels, _ in METHODS["dbscan"].trials(lists):
        wanted = cluster.DBSCAN(**values, metric="precomputed").fit_predict(dense)
        noise += np.count_nonzero(wanted < 0)
        assert (np.bincount(labels)[labels[wanted < 0]] == 1).all(), values
        assert share_in_same_cluster(labels[wanted >= 0], wanted[wanted >= 0]) == 1.0, values
    assert noise


def test_hdbscan_on_whole_lists_has_the_tree_of_all_distances(noisy):
    """The heights of its tree are the same; of equally high edges any may be in it, so that a few labels differ."""
    cluster = pytest.importorskip("sklearn.cluster")
    lists, dense = noisy
    graph = baselines.connected(baselines.distances_of(lists))
    for samples in (1, 4):
        heights = [
            np.sort(
                cluster.HDBSCAN(min_samples=samples, metric="precomputed", copy=True)
                .fit(given)
                ._single_linkage_tree_["value"]
            )
            for given in (graph, dense)
        ]
        np.testing.assert_allclose(*heights, atol=1e-6)
    for values, labels, _ in METHODS["hdbscan"].trials(lists):
        wanted = cluster.HDBSCAN(**values, metric="precomputed", copy=True).fit_predict(dense)
        assert evaluate(labels, baselines.noise_singled_out(wanted)).ari > 0.9, values


def test_hdbscan_works_on_lists_that_fall_into_parts(crowd):
    pytest.importorskip("sklearn")
    features, truth = crowd
    lists = nearest_neighbors(features, 5, 1 << 30)  # no list leaves its person
    assert (truth[lists.ids] == truth[:, None]).all()
    for values, labels, _ in METHODS["hdbscan"].trials(lists):
        if values["min_cluster_size"] == 5 and values["cluster_selection_method"] == "eom":
            assert evaluate(labels, truth).pairwise.f > 0.9


def test_neighbors_found_in_cells_are_those_of_the_faces(monkeypatch):
    """Beyond EXACT_LIMIT faces are visited cell by cell, and every list stands in its face's place."""
    from fcdeploy.graph import search

    vectors = unit(np.random.default_rng(2).standard_normal((5000, 16)))
    monkeypatch.setattr(search, "EXACT_LIMIT", 100)
    done = []
    lists = nearest_neighbors(vectors, 5, 1 << 30, done.append)
    assert sum(done) == 5000
    assert (lists.ids[:, 0] == np.arange(5000)).all()
    exact = np.argsort(-(vectors @ vectors.T), axis=1)[:, 1]
    assert np.mean(lists.ids[:, 1] == exact) > 0.9
    assert np.allclose(lists.sims[:, 1], np.einsum("nd,nd->n", vectors, vectors[lists.ids[:, 1]]), atol=1e-5)


def test_an_engine_stands_at_its_own_threshold_and_at_its_best(bundle, faces):
    features, truth = faces
    found = fcdeploy.compare(features, truth, engines=bundle.path, methods=("denser",), threads=1)
    engine, denser = found.rows
    assert engine.name == "pse.onnx"
    for trial in (engine.own, engine.best):
        labels = fcdeploy.cluster(features, engine=bundle.path, tau=trial.values["links.tau"], threads=1)
        assert evaluate(labels, truth) == trial.evaluation
    assert engine.own.values == {"links.tau": 0.3}
    assert engine.best.evaluation.pairwise.f > engine.own.evaluation.pairwise.f
    assert engine.tried > 50
    assert engine.best in engine.curve
    assert engine.seconds > 0
    assert denser.best.evaluation.pairwise.f > 0


def test_an_engine_is_never_better_at_its_own_threshold_than_at_its_best(
    pse_bundle, cut_bundle, faces, tmp_path
):
    """Its own lies between the values that are tried: it counts as one of them."""
    features, truth = faces
    tuned = fcdeploy.compare(features, truth, engines=pse_bundle.path, methods=(), threads=1).rows[0]
    between = round(tuned.best.values["links.tau"] + 1e-5, 6)
    own = cut_bundle(pse_bundle, ("refine",), tmp_path / "own.onnx", links={"tau": between})
    row = fcdeploy.compare(features, truth, engines=[own.path], methods=(), threads=1).rows[0]
    assert row.best.evaluation.pairwise.f >= row.own.evaluation.pairwise.f
    assert row.own.values["links.tau"] == between


def test_the_command_prints_a_table_and_writes_figures_and_plots(
    bundle, faces, fcdeploy, tmp_path, monkeypatch
):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    faces[0].tofile("f.bin")
    truth = faces[1].copy()
    truth[:3] = -1
    np.savetxt("l.meta", truth, fmt="%d")
    data = ("compare", "f.bin", "l.meta", "--engine", bundle.path, "--methods", "components", "--threads", 1)
    done = fcdeploy(*data, "-o", "c.json", "--plot", "c.png")
    assert done.code == 0, done.err
    assert "links.tau = 0.3 (its own)" in done.out
    assert "in-sample" in done.out
    written = json.loads((tmp_path / "c.json").read_text())
    assert [row["name"] for row in written["rows"]] == ["pse.onnx", "components"]
    assert (written["faces"], written["unknown"], written["in_sample"]) == (FACES - 3, 3, True)
    best = written["rows"][1]["best"]
    assert f"{best['pairwise']['f']:.4f}" in done.out
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
    again = fcdeploy(*data, "--json", "--plot", "c.svg", "--objective", "bcubed")
    printed = json.loads(again.out)
    assert printed["rows"][1]["best"]["bcubed"]["f"] >= best["bcubed"]["f"]
    assert ElementTree.parse(tmp_path / "c.svg").getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--methods", "kmeans"), "--methods kmeans: is none of components, denser, dbscan, hdbscan"),
        (("--methods", "none"), "nothing to compare"),
        (("--methods", "denser,denser"), "--methods denser: is given twice"),
        (("--plot", "x.pdf"), "x.pdf: a plot is .png or .svg"),
        (("--plot", "none/x.png"), "the folder none does not exist"),
        (("-o", "l.meta"), "l.meta: is also an input"),
        (("-o", "x.png", "--plot", "x.png"), "give two names"),
        (("--k", "1"), "--k"),
        (("--engine", "none.onnx"), "none.onnx"),
    ],
)
def test_what_cannot_be_compared_is_one_sentence_and_writes_nothing(
    options, says, crowd, fcdeploy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    np.save("f.npy", crowd[0])
    np.savetxt("l.meta", crowd[1], fmt="%d")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    done = fcdeploy("compare", "f.npy", "l.meta", *options)
    assert (done.code, done.out) == (2, ""), done.err
    assert says in done.err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("truth", "says"),
    [
        (np.arange(120), "has no identity with two faces"),
        (np.zeros(119, np.int64), "119 labels for 120 faces"),
        (np.full(120, -1), "unknown"),
    ],
)
def test_labels_that_compare_nothing_are_refused(truth, says, crowd):
    with pytest.raises(InputError, match=says):
        fcdeploy.compare(crowd[0], truth, methods="components")


def test_engines_of_different_embedders_are_refused(bundle, cut_bundle, pse_bundle, faces, tmp_path):
    wide = cut_bundle(pse_bundle, ("refine",), tmp_path / "wide.onnx")
    manifest = json.loads((wide.path / "manifest.json").read_text())
    text = json.dumps(manifest).replace('"feature_dim": 32', '"feature_dim": 64')
    assert text != json.dumps(manifest)
    (wide.path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"wide\.onnx"):
        fcdeploy.compare(*faces, engines=[bundle.path, wide.path])
    with pytest.raises(InputError, match="is given twice"):
        fcdeploy.compare(*faces, engines=[bundle.path, bundle.path])


def test_what_is_missing_or_too_large_is_skipped_with_its_reason(crowd, monkeypatch):
    def missing(module):
        raise MissingDependencyError(
            "scikit-learn is not installed; install it with `pip install scikit-learn`."
        )

    monkeypatch.setattr(baselines, "scikit_learn", missing)
    with pytest.warns(FcdeployWarning, match="skipped") as told:
        found = fcdeploy.compare(*crowd, k=20, threads=1)
    assert [row.name for row in found.rows] == ["components", "links to denser faces"]
    assert set(found.skipped) == {"dbscan", "hdbscan"}
    assert "pip install scikit-learn" in found.skipped["dbscan"]
    assert len(told) == 2
    few_bytes = (
        120 * (4 * 16 + 20 * 16) + 1
    )  # what components need: of the others' graphs there is none to spare
    with pytest.warns(FcdeployWarning, match="--memory|memory"):
        found = fcdeploy.compare(*crowd, k=20, threads=1, memory=few_bytes)
    assert [row.name for row in found.rows] == ["components", "links to denser faces"]
    assert "GiB of memory for 120 faces with 20 neighbors" in found.skipped["hdbscan"]
    monkeypatch.setattr(comparison, "METHODS", METHODS)
    assert comparison.too_large(METHODS["dbscan"], 300_000, 128, 80, 1 << 50).startswith(
        "it would take too long"
    )
    assert not comparison.too_large(METHODS["dbscan"], 100_000, 512, 80, 4 << 30)


def test_copies_count_once_and_bad_rows_are_left_out(crowd):
    """Ten copies of one face would fill lists of ten, and join nothing else."""
    features, truth = crowd
    copies = np.repeat(features[:1], 30, axis=0)
    bad = np.full((2, 16), np.nan, np.float32)
    rows, people = np.concatenate([features, copies, bad]), np.concatenate([truth, np.zeros(30, int), [0, 1]])
    with pytest.raises(InputError, match="2 of 152 rows"):
        fcdeploy.compare(rows, people, methods="components", k=10, threads=1)
    with pytest.warns(FcdeployWarning, match="left out"):
        found = fcdeploy.compare(rows, people, methods="components", k=10, threads=1, on_bad="skip")
    assert found.faces == 150
    assert found.rows[0].best.evaluation.pairwise.f == 1.0


def test_lists_are_kept_as_graphs_without_losing_a_direction():
    lists = KnnGraph(
        np.array([[0, 1], [1, 2], [2, 1]], np.int32),
        np.array([[1, 0.75], [1, 0.5], [1, 0.5]], np.float32),
    )
    pytest.importorskip("scipy")
    dense = baselines.distances_of(lists).toarray()
    assert dense[0, 1] == dense[1, 0] == 0.25
    assert dense[1, 2] == dense[2, 1] == 0.5
    assert dense[0, 2] == 0


def test_the_plot_says_whose_f_is_the_highest(crowd):
    """Of methods alone the best of them; its F is the one of its row."""
    vectors, people = crowd
    found = fcdeploy.compare(vectors, people, methods=("components", "denser"), k=12)
    best = max(found.rows, key=lambda row: row.best.evaluation.pairwise.f)
    told = comparison.concluded(found)
    assert told == f"{best.name}: pairwise F {best.best.evaluation.pairwise.f:.3f}"
