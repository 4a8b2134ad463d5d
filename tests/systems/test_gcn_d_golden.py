import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import oracles_gcn_d
import pytest
from run_folders import load_artifact

import fcdeploy
from fcdeploy.clustering.groups import groups_from_labels, mean_rows, number_parts
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.clustering.propagation import propagate
from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels, renumber
from fcdeploy.errors import InputError
from fcdeploy.graph.knn import KnnGraph, KnnSearch
from fcdeploy.graph.pairs import connect_members, first_neighbors, similar_pairs
from fcdeploy.systems.gcn_d.decode import labels_from_scores
from fcdeploy.systems.gcn_d.flow import ROUNDS, in_string_order
from fcdeploy.systems.gcn_d.inputs import Proposals
from fcdeploy.systems.gcn_d.spec import OverlapSettings, Recipe

torch = pytest.importorskip("torch")
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.systems.gcn_d.network import network_from_state_dict  # noqa: E402

N, K = 1283, 20
TOLERANCE = 1e-5  # of the scores' scale
RECIPE = """
system = "gcn-d"
feature_dim = 32

[graph]
edge_weights = "similarity"

[[proposals]]
k = 20
threshold = 0.6
step = 0.05
min_size = 3
max_size = 60

[[proposals.merge]]
k = 3
threshold = 0.4
step = 0.05
min_parts = 2
max_parts = 5
min_size = 3
max_size = 100

[[proposals]]
k = 20
threshold = 0.7
step = 0.05
min_size = 3
max_size = 60
"""


@pytest.fixture(scope="module")
def theirs(golden):
    """Their proposals in their order, and all that they say of them."""
    arrays = {}
    for name in ("proposals", "adjacency", "gcnd", "super_vertex"):
        arrays |= dict(np.load(golden / f"dev/gcnd/{name}.npz"))
    offsets = arrays["nodes_off"]
    arrays["sets"] = [frozenset(arrays["nodes"][a:b].tolist()) for a, b in itertools.pairwise(offsets)]
    return arrays


@pytest.fixture(scope="module")
def lists(golden):
    data = np.load(golden / "dev/data/faiss_k_20.npz")["data"]
    return KnnGraph(data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32))


@pytest.fixture(scope="module")
def vectors(golden):
    return open_features(golden / "dev/data/features.bin", 32).rows(0, N)


@pytest.fixture(scope="module")
def bundle(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gcn-d")
    (folder / "golden.toml").write_text(RECIPE)
    return export_checkpoint(
        golden / "dev/gcnd/checkpoint.pth", folder / "gcn-d.onnx", load_recipe(folder / "golden.toml")
    )


@pytest.fixture(scope="module")
def run_folder(golden, bundle, tmp_path_factory):
    """The products of a run from the authors' kNN lists, and its labels."""
    folder = tmp_path_factory.mktemp("run") / "run"
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=golden / "dev/data/faiss_k_20.npz",
        run_dir=folder,
    )
    return folder, labels


@pytest.fixture(scope="module")
def ours(run_folder):
    """Our proposals as sets, in order, with the parameter set and score of each."""
    arrays = dict(load_artifact(run_folder[0] / "proposals"))
    offsets = arrays["offsets"]
    arrays["sets"] = [frozenset(arrays["nodes"][a:b].tolist()) for a, b in itertools.pairwise(offsets)]
    arrays["score"] = load_artifact(run_folder[0] / "scores")["score"]
    return arrays


def test_proposals_of_both_levels_are_the_authors(theirs, ours):
    assert set(ours["sets"]) == set(theirs["sets"])
    assert len(ours["sets"]) == len(set(ours["sets"])) == 123  # of their 129, which hold six twice
    for at in range(3):
        new = {p for p, folder in zip(theirs["sets"], theirs["folder"], strict=True) if folder == at}
        seen = {p for p, folder in zip(theirs["sets"], theirs["folder"], strict=True) if folder < at}
        assert {p for p, place in zip(ours["sets"], ours["set"], strict=True) if place == at} == new - seen


def test_every_component_is_the_authors_before_sizes_are_looked_at(lists, theirs):
    for at, threshold in ((0, 0.6), (2, 0.7)):
        links = similar_pairs(lists.ids, lists.sims, K, threshold)
        labels = propagate(N, *links, max_size=60, step=0.05, max_rounds=ROUNDS)
        parts, _ = number_parts(labels)
        assert np.array_equal(parts, renumber(theirs[f"pred_labels_{at}"]))


def test_mean_features_and_their_neighbors_are_the_authors(lists, vectors, theirs):
    """Their lists of k = 3 hold a component itself only where it is among its three nearest; ours are without it."""
    labels = propagate(
        N, *similar_pairs(lists.ids, lists.sims, K, 0.6), max_size=60, step=0.05, max_rounds=ROUNDS
    )
    parts, count = number_parts(labels)
    means = mean_rows(*groups_from_labels(parts.astype(np.int64), 1), np.arange(count), vectors)
    ids, sims = KnnSearch(means).search(np.arange(count), 4)
    found = first_neighbors(ids, sims, 3)
    expected, distances = theirs["iter1_knn"][:, 0].astype(int), theirs["iter1_knn"][:, 1]
    assert count == len(expected)
    for part in range(count):
        others = expected[part] != part
        assert found[part][found[part] >= 0].tolist() == expected[part][others].tolist()
        ours = 1 - np.clip(sims[part, 1 : 1 + others.sum()], 0, 1)
        assert np.abs(ours - distances[part][others]).max() < 1e-6


def test_on_real_faces_components_are_the_authors(shared):
    expected = np.load(shared / "golden/lfw/super_vertex.npz")
    data = np.load(shared / "golden/lfw/data/faiss_k_20.npz")["data"]
    ids, sims = data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32)
    assert len(expected.files) == 6
    for name in expected.files:
        threshold, cap = (float(word.strip("thmax")) for word in name.split("_"))
        links = similar_pairs(ids, sims, K, threshold)
        labels = propagate(len(ids), *links, max_size=int(cap), step=0.05, max_rounds=ROUNDS)
        assert np.array_equal(renumber(labels), renumber(expected[name]))


def test_adjacency_is_the_authors(lists, theirs):
    for proposal, size, adj in zip(theirs["proposal"], theirs["size"], theirs["adj"], strict=True):
        begin = theirs["nodes_off"][proposal]
        members = theirs["nodes"][begin : begin + size]  # in their own order
        order = np.argsort(members)
        found = np.empty((1, size, size), dtype=np.float32)
        degrees = np.empty((1, size))
        connect_members(
            members[order].astype(np.int32)[None],
            np.array([size]),
            np.array([K], dtype=np.int32),
            lists.ids,
            lists.sims,
            True,
            found,
            degrees,
        )
        assert np.abs(found[0] - adj[np.ix_(order, order)]).max() < 1e-6


def test_the_plain_network_gives_the_golden_scores(golden, vectors, lists, theirs):
    net = network_from_state_dict(load_state_dict(golden / "dev/gcnd/checkpoint.pth"))
    found = []
    for faces in theirs["sets"]:
        members = sorted(faces)
        adj, _ = oracles_gcn_d.adjacency(members, K, lists.ids, lists.sims, True)
        with torch.inference_mode():
            x, connections = torch.from_numpy(vectors[members]), torch.from_numpy(adj.astype(np.float32))
            found.append(float(net(x[None], connections[None])))
    assert np.abs(found - theirs["scores"]).max() < TOLERANCE * np.abs(theirs["scores"]).max()


def test_the_engine_gives_the_golden_scores(theirs, ours):
    expected = dict(zip(theirs["sets"], theirs["scores"], strict=True))
    scale = np.abs(theirs["scores"]).max()
    errors = [abs(score - expected[p]) for p, score in zip(ours["sets"], ours["score"], strict=True)]
    assert max(errors) < TOLERANCE * scale
    assert np.ptp(theirs["scores"]) > 0.3 * scale  # a constant would not do


def as_proposals(theirs):
    return Proposals(
        theirs["nodes_off"].astype(np.int64),
        theirs["nodes"],
        np.full(len(theirs["sets"]), K, np.int32),
        theirs["folder"].astype(np.int32),
    )


@pytest.mark.parametrize("min_score", [-1, 0.5])
@pytest.mark.parametrize("max_iou", [1, 0.5])
def test_labels_and_measures_are_the_authors(
    golden, bundle, run_folder, theirs, min_score, max_iou, tmp_path
):
    """From their scores with their repeated proposals, and from ours through a whole run."""
    expected = renumber(theirs[f"labels_iou{max_iou}_pos{min_score}"])
    overlap = OverlapSettings(min_score=float(min_score), max_iou=float(max_iou))
    settings = replace(Recipe(), overlap=overlap)
    found = labels_from_scores(N, as_proposals(theirs), theirs["scores"], None, settings, "singleton")
    assert np.array_equal(found, expected)

    changed = tmp_path / "gcn-d.onnx"
    shutil.copytree(bundle[0].path, changed)
    manifest = json.loads((changed / "manifest.json").read_text())
    manifest["recipe"]["overlap"] = {"min_score": float(min_score), "max_iou": float(max_iou)}
    (changed / "manifest.json").write_text(json.dumps(manifest))
    shutil.copytree(run_folder[0], tmp_path / "run")
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=changed,
        knn=golden / "dev/data/faiss_k_20.npz",
        run_dir=tmp_path / "run",
    )
    assert np.array_equal(labels, expected)

    metrics = json.loads((golden / "dev/gcnd/metrics.json").read_text())["metrics"]
    metrics = metrics[f"th_iou={max_iou},th_pos={min_score}"]
    measured = evaluate(labels, read_labels(golden / "dev/data/labels.meta"))
    for name in ("pairwise", "bcubed"):
        one = getattr(measured, name)
        assert [one.precision, one.recall, one.f] == pytest.approx(metrics[name], abs=1e-9)
    assert measured.nmi == pytest.approx(metrics["nmi"], abs=1e-9)
    assert measured.clusters == metrics["n_clusters"]


def test_faces_in_no_proposal_are_dropped_when_asked(golden, bundle, run_folder, ours, tmp_path):
    shutil.copytree(run_folder[0], tmp_path / "run")
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=golden / "dev/data/faiss_k_20.npz",
        run_dir=tmp_path / "run",
        uncovered="drop",
    )
    covered = np.zeros(N, dtype=bool)
    covered[list(frozenset.union(*ours["sets"]))] = True
    assert np.array_equal(labels >= 0, covered)
    assert np.array_equal(renumber(labels[covered]), renumber(run_folder[1][covered]))
    assert 10 < (~covered).sum() < N - 10


def test_our_own_lists_give_the_authors_labels(golden, bundle, run_folder):
    """The golden lists are of the same features: searched here, they lead to the same clusters."""
    assert np.array_equal(
        fcdeploy.cluster(golden / "dev/data/features.bin", engine=bundle[0].path), run_folder[1]
    )


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 7, "threads": 1}])
def test_batches_and_threads_change_no_label(golden, bundle, run_folder, options):
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=golden / "dev/data/faiss_k_20.npz",
        **options,
    )
    assert np.array_equal(labels, run_folder[1])


def test_proposals_stand_in_the_string_order_of_their_numbers(theirs):
    """Their folders: 0, 10, 11, ..., 19, 1, 20, ...; so with an underscore behind the number."""
    first = theirs["file_id"][theirs["folder"] == 0]
    offsets = np.arange(len(first) + 1, dtype=np.int64)
    assert in_string_order(offsets, np.arange(len(first), dtype=np.int32))[1].tolist() == first.tolist()


def test_k_is_that_of_the_proposals_and_cannot_exceed_the_lists(golden, bundle):
    with pytest.raises(InputError, match="holds 20 neighbors per face, and 30 are needed; give k=20 or less"):
        fcdeploy.cluster(
            golden / "dev/data/features.bin",
            engine=bundle[0].path,
            knn=golden / "dev/data/faiss_k_20.npz",
            k=30,
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 0.5}, "tau does not apply to GCN-D"),
        ({"inference": "layerwise"}, "GCN-D can be evaluated as exact"),
        ({"uncovered": "keep"}, "uncovered = keep: is neither 'singleton' nor 'drop'"),
    ],
    ids=str,
)
def test_options_that_do_not_apply_are_refused_in_one_sentence(golden, bundle, options, words):
    with pytest.raises(InputError, match=words):
        fcdeploy.cluster(golden / "dev/data/features.bin", engine=bundle[0].path, **options)


@pytest.mark.filterwarnings("ignore:k = 20 is more than the number of faces")
def test_faces_of_which_no_two_are_alike_are_clusters_of_one(bundle):
    """No pair is similar, so that nothing is proposed."""
    faces = np.eye(32, dtype=np.float32)[:5]
    assert fcdeploy.cluster(faces, engine=bundle[0].path).tolist() == [0, 1, 2, 3, 4]
    assert fcdeploy.cluster(faces[:1], engine=bundle[0].path, uncovered="drop").tolist() == [-1]
