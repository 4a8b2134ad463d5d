"""GCN-V and GCN-E against the outputs of the authors' code (learn-to-cluster, vegcn)."""

import json

import numpy as np
import oracles
import pytest
from run_folders import load_artifact

import fcdeploy
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.labels import read_labels
from fcdeploy.systems.ve_gcn.decode import best_candidates, score_candidates
from fcdeploy.systems.ve_gcn.edges import edges_of_lists
from fcdeploy.systems.ve_gcn.inputs import candidate_batches, candidates_of, ignored_faces

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.deploy.recipe import load_recipe

N, K = 1283, 20
TAUS_0 = (0.5, 0.55, 0.6, 0.65, 0.7)
TAUS = (0.5, 0.65, 0.8, 0.9)
# Rounding of the authors' own: float64 instead of float32 moves confidences by 4.5e-7, logits by 2.6e-6.
TOLERANCE = 1e-5
RECIPE = """system = "ve-gcn"
feature_dim = 32
[graph]
k = 20
[links]
features = "{features}"
k = 20
tau = 0.65
[edge]
ignore_ratio = 0.3
"""


@pytest.fixture(scope="module")
def dev(golden):
    return golden / "dev/vegcn"


@pytest.fixture(scope="module")
def vertex(dev):
    return dict(np.load(dev / "gcn_v.npz"))


@pytest.fixture(scope="module")
def edge(dev):
    return dict(np.load(dev / "gcn_e.npz"))


@pytest.fixture(scope="module")
def knn_file(golden):
    return golden / "dev/data/faiss_k_20.npz"


@pytest.fixture(scope="module")
def features(golden):
    return golden / "dev/data/features.bin"


@pytest.fixture(scope="module")
def bundles(dev, tmp_path_factory):
    """Each result's bundle: GCN-V on input features and on its own, and with GCN-E."""
    folder = tmp_path_factory.mktemp("bundles")
    v, e = dev / "gcn_v_checkpoint.pth", dev / "gcn_e_checkpoint.pth"
    made = {}
    for name, paths, of in (
        ("raw", [v], "input"),
        ("transformed", [v], "transformed"),
        ("both", [e, v], "transformed"),
    ):
        (folder / f"{name}.toml").write_text(RECIPE.format(features=of))
        recipe = load_recipe(folder / f"{name}.toml")
        made[name] = export_checkpoint(paths, folder / f"{name}.onnx", recipe)
    return made


@pytest.fixture(scope="module")
def engines(bundles):
    return {name: bundle.path for name, (bundle, _) in bundles.items()}


@pytest.fixture(scope="module")
def run(engines, features, knn_file, tmp_path_factory):
    """The run folder of both networks from the authors' lists."""
    folder = tmp_path_factory.mktemp("run") / "run"
    fcdeploy.cluster(features, engine=engines["both"], knn=knn_file, run_dir=folder)
    return folder


def same_partition(one, other):
    return oracles.partition(one) == oracles.partition(other)


def test_the_exported_graphs_are_the_plain_networks(bundles):
    for _, parities in bundles.values():
        assert all(parity.max_error < 1e-6 and parity.nan == 0 for parity in parities.values())


def test_the_lists_and_the_graph_are_the_authors_to_the_bit(run, vertex):
    knn = load_artifact(run / "knn")
    assert np.array_equal(knn["ids"], vertex["nbrs"])
    assert np.array_equal(1 - knn["sims"].astype(np.float64), vertex["dists"])
    edges = edges_of_lists(knn["ids"], knn["sims"], K, 0.0)
    assert np.array_equal(edges.ids, vertex["adj_indices"])
    assert np.array_equal(np.append(edges.starts, len(edges.ids)), vertex["adj_indptr"])
    for i in range(N):
        row = slice(edges.starts[i], edges.starts[i] + edges.counts[i])
        weights = edges.sims[row].astype(np.float64)
        total = np.float64(0)
        for weight in weights:  # one after the other: NumPy's own sum rounds otherwise
            total += weight
        assert np.array_equal(weights * (1 / total), vertex["adj_data"][row])


def test_confidence_and_hidden_features_are_the_authors(run, vertex):
    found = load_artifact(run / "confidence")
    assert np.abs(found["confidence"] - vertex["pred_conf"]).max() < TOLERANCE
    assert np.abs(found["hidden"] - vertex["gcn_feat"]).max() < TOLERANCE


def test_the_lists_of_transformed_features_are_the_authors_but_for_equally_near_neighbors(run, vertex):
    """Distances within 1e-6, and where ids differ, those of neighbors that are within 1e-6 of each other."""
    found = load_artifact(run / "transformed_knn")
    ids, dists = vertex["gcnfeat_knn"][:, 0].astype(int), vertex["gcnfeat_knn"][:, 1]
    ours = 1 - found["sims"].astype(np.float64)
    assert np.abs(np.sort(ours, axis=1) - np.sort(dists, axis=1)).max() < 1e-6
    row, at = np.nonzero(found["ids"] != ids)
    assert len(row) <= 4
    assert np.abs(ours[row, at] - dists[row, at]).max(initial=0) < 1e-6


@pytest.mark.parametrize("tau", TAUS_0)
@pytest.mark.parametrize("lists", ["the authors'", "ours"])
def test_links_and_clusters_of_input_features_are_the_authors(
    tau, lists, engines, features, knn_file, vertex, tmp_path
):
    given = {"knn": knn_file} if lists == "the authors'" else {}
    labels = fcdeploy.cluster(features, engine=engines["raw"], tau=tau, run_dir=tmp_path / "run", **given)
    assert same_partition(labels, vertex[f"labels_tau0_{tau}"])
    linked = np.flatnonzero((vertex["peak"] >= 0) & (vertex["dist2peak"] < 1 - tau))
    links = load_artifact(tmp_path / "run/links")
    assert np.array_equal(links["ids"], np.stack([linked, vertex["peak"][linked]], axis=1))
    assert np.abs(1 - links["sims"] - vertex["dist2peak"][linked]).max() < 1e-6


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("lists", ["the authors'", "ours"])
def test_links_and_clusters_of_transformed_features_are_the_authors(
    tau, lists, engines, features, knn_file, vertex, tmp_path
):
    given = {"knn": knn_file} if lists == "the authors'" else {}
    engine = engines["transformed"]
    labels = fcdeploy.cluster(features, engine=engine, tau=tau, run_dir=tmp_path / "run", **given)
    assert same_partition(labels, vertex[f"labels_gcnfeat_tau_{tau}"])
    links = load_artifact(tmp_path / "run/links")["ids"]
    assert (vertex["gcnfeat_peak"][links[:, 0]] == links[:, 1]).all()


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("lists", ["the authors'", "ours"])
def test_clusters_of_both_networks_are_the_authors(tau, lists, engines, features, knn_file, edge):
    given = {"knn": knn_file} if lists == "the authors'" else {}
    labels = fcdeploy.cluster(features, engine=engines["both"], tau=tau, **given)
    assert same_partition(labels, edge[f"labels_tau_{tau}"])


def test_whom_every_face_links_to_is_whom_the_authors_chose(run, edge):
    """Before tau; where two candidates are within 1e-5 of each other, either may be chosen."""
    found = load_artifact(run / "connected")["ids"]
    chosen = {int(face): at for at, face in enumerate(edge["subset_idxs"])}
    for face in np.flatnonzero(found != edge["peak_after"]):
        at = chosen[int(face)]
        rows = slice(edge["subset_off"][at], edge["subset_off"][at + 1])
        odds = dict(zip(edge["subset_nbrs"][rows], edge["logprob"][rows, 1], strict=True))
        assert odds[edge["peak_after"][face]] - odds[found[face]] < TOLERANCE
    assert (found != edge["peak_after"]).sum() < 15


def test_candidates_and_their_scores_are_the_authors(bundles, vertex, edge):
    """From the authors' own confidences and lists: sets to the bit, log-probabilities within 1e-5 of their size."""
    ids = vertex["gcnfeat_knn"][:, 0].astype(np.int32)
    dists = vertex["gcnfeat_knn"][:, 1].astype(np.float32)
    order = np.argsort(dists, axis=1, kind="stable")
    ids, dists = np.take_along_axis(ids, order, axis=1), np.take_along_axis(dists, order, axis=1)
    confidence = vertex["pred_conf"]
    ignored = ignored_faces(confidence, 0.3)
    assert np.array_equal(np.flatnonzero(ignored), edge["ignore_set"])
    everyone = candidates_of(ids, confidence, np.arange(N, dtype=np.int32))
    asked = np.flatnonzero((everyone.counts > 1) & ~ignored).astype(np.int32)
    assert np.array_equal(asked, edge["subset_idxs"])
    candidates = candidates_of(ids, confidence, asked)
    assert np.array_equal(candidates.starts, edge["subset_off"])
    assert np.array_equal(candidates.faces, edge["subset_nbrs"])
    near = dists[np.repeat(asked, candidates.counts), candidates.places]
    assert np.array_equal(near, edge["subset_dists"].astype(np.float32))

    hidden = vertex["gcn_feat"]
    unit = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
    edges = edges_of_lists(ids, np.float32(1) - dists, K, 0.0)
    bundle = bundles["both"][0]
    with bundle.open("encode") as encode, bundle.open("convolve") as convolve, bundle.open("score") as score:
        tables, origin = encode.run({"features": unit}), encode.run({"features": np.zeros_like(unit[:1])})
        batches = candidate_batches(edges, candidates, rows=500, most=100)
        opened = {"convolve": convolve, "score": score}
        logits = np.concatenate([z for _, z in score_candidates(opened, tables, origin, batches)])
    z = logits.astype(np.float64)
    logprob = z - np.logaddexp(z[:, 0], z[:, 1])[:, None]
    assert (np.abs(logprob - edge["logprob"]) < TOLERANCE * np.maximum(1, np.abs(edge["logprob"]))).all()
    best = best_candidates(logits, candidates.starts)
    theirs = edge["pred_conns"][:, 0] + candidates.starts[:-1]
    lost = edge["logprob"][theirs, 1] - edge["logprob"][best, 1]
    assert lost.max() < TOLERANCE
    assert (best != theirs).sum() < 15


def test_quality_is_what_the_authors_measured(dev, golden, engines, features, knn_file):
    """Pairwise and BCubed F of each result at each tau, of the authors' own evaluation."""
    truth = read_labels(golden / "dev/data/labels.meta")
    metrics = json.loads((dev / "metrics.json").read_text())["metrics"]
    for name, engine in (("gcn_v gcn_feat", "transformed"), ("gcn_e", "both")):
        for tau in (0.65, 0.8):
            labels = fcdeploy.cluster(features, engine=engines[engine], knn=knn_file, tau=tau)
            found = evaluate(labels, truth)
            wanted = metrics[f"{name} tau={tau}"]
            assert found.pairwise.f == pytest.approx(wanted["pairwise"][2], abs=1e-9)
            assert found.bcubed.f == pytest.approx(wanted["bcubed"][2], abs=1e-9)
            assert labels.max() + 1 == wanted["n_clusters"]
