"""L-GCN against the outputs of both published releases."""

import hashlib
import json
import shutil
import warnings

import numpy as np
import oracles
import oracles_lgcn as oracle
import pytest
from run_folders import load_artifact

import fcdeploy
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.graph.subgraphs import gather_subgraphs, own_positions
from fcdeploy.systems.l_gcn.decode import score_links
from fcdeploy.systems.settings import settings_as_dict

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.systems.l_gcn.network import network_from_state_dict, padded_subgraphs  # noqa: E402

pytestmark = [  # the caps are smaller than some persons, or as large as all faces of a test together
    pytest.mark.filterwarnings("ignore:propagation.max_size = .* cut"),
    pytest.mark.filterwarnings("ignore:.* faces are in components of at most propagation.max_size"),
]
TOLERANCE = 1e-5  # of the logits' scale; replaying the authors' classes moves their own logits by 1.2e-7
N = 1283
RECIPE = """system = "l-gcn"
feature_dim = {dim}

[neighborhood]
hops = [{one}, 5]
active = 5

[propagation]
max_size = {max_size}
step = {step}
pooling = "{pooling}"
max_rounds = {max_rounds}
"""
POOLINGS = {  # in the goldens' names: as each release has it
    "avg": {"l2c": "mean", "zhongdao": "running-mean"},
    "max": {"l2c": "max", "zhongdao": "max"},
    "None": {"l2c": "last", "zhongdao": "last"},
}
EDGES = {"l2c": "lgcn_edges.npz", "zhongdao": "zhongdao_edges.npz"}
FEEDER = {"l2c": "lgcn_feeder.npz", "zhongdao": "zhongdao_feeder.npz"}


def recipe_of(folder, release, max_size=300, step=0.6, pooling="avg", one=19):
    (folder / "golden.toml").write_text(
        RECIPE.format(
            dim={"l2c": 32, "zhongdao": 512}[release],
            one=one,
            max_size=max_size,
            step=step,
            pooling=POOLINGS[pooling][release],
            max_rounds={"l2c": 100, "zhongdao": 0}[release],
        )
    )
    return load_recipe(folder / "golden.toml")


def wider(state):
    """The 512-d checkpoint of the first release, made from the 32-d one as zhongdao_state_dict.json tells."""
    wide = dict(state)
    wide["bn0.running_mean"] = torch.cat([state["bn0.running_mean"], torch.zeros(480)])
    wide["bn0.running_var"] = torch.cat([state["bn0.running_var"], torch.ones(480)])
    weight = torch.zeros(1024, 512)
    weight[:32], weight[512:544] = state["conv1.weight"][:32], state["conv1.weight"][32:]
    wide["conv1.weight"] = weight
    return wide


@pytest.fixture(scope="module")
def dev(golden):
    return golden / "dev/lgcn"


@pytest.fixture(scope="module")
def ids(golden):
    return np.load(golden / "dev/data/faiss_k_20.npz")["data"][:, 0].astype(np.int32)


@pytest.fixture(scope="module")
def checkpoints(dev, tmp_path_factory):
    """Both releases' checkpoints, each wrapped as its release writes it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    state = load_state_dict(dev / "checkpoint.pth")
    torch.save({"meta": {"epoch": 1, "iter": 140}, "state_dict": state}, folder / "l2c.pth")
    torch.save({"state_dict": wider(state), "epoch": 4}, folder / "zhongdao.ckpt")
    return {"l2c": folder / "l2c.pth", "zhongdao": folder / "zhongdao.ckpt"}


@pytest.fixture(scope="module", params=["l2c", "zhongdao"])
def release(request):
    return request.param


@pytest.fixture(scope="module")
def features(golden):
    """Features of both releases as files hold them: not normalised; 32-d and padded to 512-d."""
    rows = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)
    return {"l2c": rows, "zhongdao": np.hstack([rows, np.zeros((N, 480), np.float32)])}


@pytest.fixture(scope="module")
def bundles(checkpoints, tmp_path_factory):
    """The bundle of each release's checkpoint, and how exact its export says it is."""
    folder = tmp_path_factory.mktemp("bundle")
    return {
        name: export_checkpoint(path, folder / f"{name}.onnx", recipe_of(folder, name))
        for name, path in checkpoints.items()
    }


@pytest.fixture(scope="module")
def bundle(release, bundles):
    return bundles[release]


def with_recipe(bundle, path, recipe):
    """A copy of a bundle that was exported with another recipe; the graphs are the same."""
    shutil.copytree(bundle.path, path)
    manifest = {**bundle.manifest, "recipe": settings_as_dict(recipe)}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path


@pytest.fixture(scope="module")
def run(release, bundle, golden, features, tmp_path_factory):
    """Labels and the run folder of a whole run from the authors' kNN lists."""
    folder = tmp_path_factory.mktemp("run") / "run"
    labels = fcdeploy.cluster(
        features[release], engine=bundle[0].path, knn=golden / "dev/data/faiss_k_20.npz", run_dir=folder
    )
    return labels, folder


def test_the_first_release_s_checkpoint_is_the_one_described(dev):
    described = json.loads((dev / "zhongdao_state_dict.json").read_text())["keys"]
    wide = wider(load_state_dict(dev / "checkpoint.pth"))
    assert wide.keys() == described.keys()
    for name, tensor in wide.items():
        assert list(tensor.shape) == described[name]["shape"]
        assert hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16] == described[name]["sha256_16"]


def test_neighborhoods_and_adjacency_are_the_authors(release, dev, ids):
    feeder = np.load(dev / FEEDER[release])
    own = own_positions(ids, np.arange(N, dtype=np.int32))
    graphs = gather_subgraphs(ids, own, feeder["centres"], (19, 5), 5)
    for g, centre in enumerate(feeder["centres"]):
        # learn-to-cluster says how many of the padded rows are faces; in the first release they have connections.
        count = int(feeder["num_nodes"][g]) if release == "l2c" else int(feeder["A"][g].any(axis=1).sum())
        theirs = feeder["node_list"][g][:count].astype(int).tolist()
        one_hop, faces, pairs = oracle.subgraph(ids, int(centre), (19, 5), 5)
        seen = graphs.within[g, -1]
        assert set(theirs) == faces == set(graphs.faces[g, :seen].tolist())
        assert {theirs[at] for at in feeder["one_hop_idcs"][g]} == set(one_hop)
        assert graphs.faces[g, :19].tolist() == one_hop
        adj = np.zeros((count, count), dtype=np.float32)
        place = [theirs.index(face) for face in graphs.faces[g, :seen]]
        for at in range(graphs.within[g, 3]):
            connected = graphs.connected[g, graphs.starts[g, at] : graphs.starts[g, at + 1]]
            adj[place[at], [place[to] for to in connected]] = np.float32(1) / np.float32(len(connected))
        assert np.array_equal(adj, feeder["A"][g][:count, :count])
        assert np.allclose(oracle.adjacency(theirs, pairs), adj, rtol=1e-7)


def test_the_plain_network_and_the_passes_give_the_authors_logits(dev, golden, ids, checkpoints, bundles):
    feeder = np.load(dev / "lgcn_feeder.npz")
    scale = np.abs(feeder["logits"]).max()
    net = network_from_state_dict(load_state_dict(checkpoints["l2c"]))
    tensors = [torch.from_numpy(feeder[name]) for name in ("feat", "A")]
    with torch.inference_mode():
        found = net(*tensors, torch.from_numpy(feeder["one_hop_idcs"].astype(np.int64))).numpy()
    assert np.abs(found - feeder["logits"]).max() < TOLERANCE * scale

    vectors = open_features(golden / "dev/data/features.bin", 32).rows(0, N)
    mine = padded_subgraphs(vectors, ids, feeder["centres"], (19, 5), 5, 121)
    assert np.array_equal(np.sort(mine[0].numpy().sum(axis=2)), np.sort(feeder["feat"].sum(axis=2)))
    bundle, parities = bundles["l2c"]
    assert 0 < parities["links"].max_error < TOLERANCE
    with bundle.open("encode") as encode, bundle.open("convolve") as convolve, bundle.open("score") as score:
        tables = encode.run({"features": vectors})
        origin = encode.run({"features": np.zeros((1, 32), np.float32)})
        own = own_positions(ids, np.arange(N, dtype=np.int32))
        graphs = gather_subgraphs(ids, own, feeder["centres"], (19, 5), 5)
        ((_, ours),) = score_links({"convolve": convolve, "score": score}, tables, origin, [(None, graphs)])
    for g in range(len(feeder["centres"])):
        theirs = dict(
            zip(feeder["node_list"][g][feeder["one_hop_idcs"][g]], feeder["logits"][g], strict=True)
        )
        for at, face in enumerate(graphs.faces[g, :19]):
            assert np.abs(ours[g, at] - theirs[face]).max() < TOLERANCE * scale


def test_links_and_scores_are_the_authors(release, dev, run):
    """Every link in both directions where lists are mutual, those of a face in a row."""
    links, theirs = load_artifact(run[1] / "links"), np.load(dev / EDGES[release])
    assert links["ids"].dtype == np.int32
    assert links["probability"].dtype == np.float32
    assert links["ids"].shape == links["probability"].shape == (N, 19)
    ours = {
        (face, int(other)): float(score)
        for face in range(N)
        for other, score in zip(links["ids"][face], links["probability"][face], strict=True)
    }
    known = {
        (int(a), int(b)): float(score)
        for (a, b), score in zip(theirs["edges"], theirs["scores"], strict=True)
    }
    assert ours.keys() == known.keys()
    assert max(abs(ours[pair] - known[pair]) for pair in known) < TOLERANCE


def golden_settings(dev, release):
    for name in np.load(dev / "labels.npz").files:
        if name.startswith(release):
            cap, step, pooling = name.removeprefix(f"{release}_labels_max").replace("_step", "_").split("_")
            yield name, int(cap), float(step), pooling


def test_clusters_and_measures_are_the_authors(release, bundle, dev, golden, features, run, tmp_path):
    """Whole runs with every published setting of propagation, on the links of one run folder."""
    labels, measures = np.load(dev / "labels.npz"), json.loads((dev / "metrics.json").read_text())["metrics"]
    truth = read_labels(golden / "dev/data/labels.meta")
    written = (run[1] / "links/ids.npy").stat().st_mtime_ns
    tried = 0
    for name, *settings in golden_settings(dev, release):
        engine = with_recipe(bundle[0], tmp_path / name, recipe_of(tmp_path, release, *settings))
        found = fcdeploy.cluster(
            features[release], engine=engine, knn=golden / "dev/data/faiss_k_20.npz", run_dir=run[1]
        )
        assert oracles.partition(found) == oracles.partition(labels[name]), name
        assert (run[1] / "links/ids.npy").stat().st_mtime_ns == written, "the links were scored again"
        theirs, ours = measures[name.replace("_labels", "")], evaluate(found, truth).as_dict()
        assert ("pairwise" in theirs) == (release == "l2c")
        for measure in theirs.keys() & {"pairwise", "bcubed"}:
            assert list(ours[measure].values()) == pytest.approx(theirs[measure], rel=1e-9)
        assert ours["nmi"] == pytest.approx(theirs["nmi"], rel=1e-9)
        assert ours["clusters"] == theirs["n_clusters"]
        tried += 1
    assert tried == 9


def test_our_own_neighbors_give_the_authors_clusters(release, bundle, features, run):
    """faiss on the features finds the golden lists: there are no ties in them."""
    found = fcdeploy.cluster(features[release], engine=bundle[0].path)
    assert oracles.partition(found) == oracles.partition(run[0])


@pytest.fixture(scope="module")
def few(bundles, features, tmp_path_factory):
    """300 faces, their labels and run folder, and a way to cluster them otherwise."""
    faces, folder = features["l2c"][:300], tmp_path_factory.mktemp("few") / "run"

    def cluster(**options):
        return fcdeploy.cluster(faces, engine=bundles["l2c"][0].path, **options)

    return cluster(run_dir=folder), folder, cluster


def test_the_first_release_s_own_lists_are_read(few, tmp_path):
    """N x (k + 1) integers, the face itself in column 0; more columns than hops need are cut."""
    labels, folder, cluster = few
    ids = load_artifact(folder / "knn")["ids"]
    others = np.stack([np.setdiff1d(np.arange(300), row)[:3] for row in ids])
    np.save(tmp_path / "knn.graph.npy", np.hstack([ids, others]).astype(np.int64))
    assert np.array_equal(cluster(knn=tmp_path / "knn.graph.npy"), labels)


def test_ids_alone_have_to_be_sorted_and_lists_with_similarities_get_sorted(few, tmp_path):
    """As each release reads its own form. Turned round, ids make other sub-graphs; similarities put them right."""
    labels, folder, cluster = few
    lists = load_artifact(folder / "knn")
    turned = np.hstack([lists["ids"][:, :1], lists["ids"][:, :0:-1]])
    np.save(tmp_path / "turned.npy", turned)
    with pytest.raises(InputError, match=r"turned\.npy: is not sorted by similarity"):
        cluster(knn=tmp_path / "turned.npy", run_dir=tmp_path / "run")
    some = lists["ids"].copy()
    some[:, [3, 4]] = some[:, [4, 3]]  # as an approximate search may have it
    np.save(tmp_path / "some.npy", some)
    cluster(knn=tmp_path / "some.npy", run_dir=tmp_path / "run")
    assert np.array_equal(load_artifact(tmp_path / "run/links")["ids"], some[:, 1:])
    np.savez(tmp_path / "turned.npz", **{name: lists[name][:, ::-1] for name in lists})
    assert np.array_equal(cluster(knn=tmp_path / "turned.npz", run_dir=tmp_path / "run"), labels)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 3, "threads": 1}, {"threads": 2}], ids=str)
def test_batch_and_threads_do_not_change_the_labels(few, options):
    assert np.array_equal(few[2](**options), few[0])


def test_lists_shorter_than_hops_are_used_as_far_as_they_go_and_said_so(
    golden, bundles, features, dev, tmp_path
):
    """k_at_hop [20, 5] on lists of 20, as learn-to-cluster was run: 19 one-hop neighbors."""
    engine = with_recipe(bundles["l2c"][0], tmp_path / "x.onnx", recipe_of(tmp_path, "l2c", one=20))
    with pytest.warns(
        FcdeployWarning, match=r"faiss_k_20.npz: lists hold 19 neighbors besides the face itself; hops 19,5"
    ):
        found = fcdeploy.cluster(features["l2c"], engine=engine, knn=golden / "dev/data/faiss_k_20.npz")
    expected = np.load(dev / "labels.npz")["l2c_labels_max300_step0.6_avg"]
    assert oracles.partition(found) == oracles.partition(expected)


def test_features_that_are_not_normalised_are_searched_by_cosine_and_scored_as_they_are(
    checkpoints, bundles, features, tmp_path
):
    """Lengths of rows change scores and no list."""
    text = RECIPE.format(dim=32, one=19, max_size=300, step=0.6, pooling="mean", max_rounds=100)
    (tmp_path / "as_is.toml").write_text(f"{text}\n[features]\nnormalize = false\n")
    engine = with_recipe(bundles["l2c"][0], tmp_path / "x.onnx", load_recipe(tmp_path / "as_is.toml"))
    rows = features["l2c"][:300] / np.linalg.norm(features["l2c"][:300], axis=1, keepdims=True)
    lengths = np.random.default_rng(0).uniform(0.5, 2, (300, 1)).astype(np.float32)
    fcdeploy.cluster(rows * lengths, engine=engine, run_dir=tmp_path / "long")
    fcdeploy.cluster(rows, engine=engine, run_dir=tmp_path / "unit")
    long, unit = (
        {name: load_artifact(tmp_path / run / name) for name in ("knn", "links")} for run in ("long", "unit")
    )
    assert np.array_equal(long["knn"]["ids"], unit["knn"]["ids"])
    assert np.abs(long["links"]["probability"] - unit["links"]["probability"]).max() > 0.1
    state = load_state_dict(checkpoints["l2c"])
    theirs = oracle.logits(state, rows * lengths, unit["knn"]["ids"], 7, (19, 5), 5)
    found = long["links"]["probability"][7]
    assert np.abs(found - 1 / (1 + np.exp(theirs[:, 0] - theirs[:, 1]))).max() < TOLERANCE
    rows[7] = 0
    fcdeploy.cluster(rows, engine=engine, run_dir=tmp_path / "zero")
    lists = load_artifact(tmp_path / "zero" / "knn")
    assert not lists["sims"][7].any(), "a row of zeros is similar to nobody"
    assert lists["ids"][7, 0] == 7
    other = ~(unit["knn"]["ids"] == 7).any(axis=1)
    assert np.array_equal(lists["ids"][other], unit["knn"]["ids"][other])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tau": 0.5}, ("tau does not apply to L-GCN", "PSE-GCN")),
        ({"reranked": "lists.npy"}, ("reranked does not apply to L-GCN",)),
        ({"min_probability": 0.5}, ("min_probability does not apply to L-GCN", "SEPFL")),
        ({"inference": "layerwise"}, ("inference = layerwise", "L-GCN", "exact")),
        ({"k": 1}, ("k = 1",)),
        ({"hops": (0, 5)}, ("hops[0]",)),
    ],
    ids=str,
)
def test_options_that_do_not_apply_are_refused_in_one_sentence(bundles, features, options, words):
    with pytest.raises(InputError) as refused:
        fcdeploy.cluster(features["l2c"], engine=bundles["l2c"][0].path, **options)
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("n", [1, 2, 3, 25])
def test_few_faces(bundles, features, n, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        for run_dir in (None, tmp_path / "run", tmp_path / "run"):
            labels = fcdeploy.cluster(features["l2c"][:n], engine=bundles["l2c"][0].path, run_dir=run_dir)
            assert labels.shape == (n,)
            assert labels[0] == 0


def test_hundred_copies_of_one_face_are_one_cluster(bundles, features):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        labels = fcdeploy.cluster(np.repeat(features["l2c"][:1], 100, axis=0), engine=bundles["l2c"][0].path)
    assert not labels.any()


def test_names_left_by_data_parallel_give_the_same_graphs(checkpoints, bundles, tmp_path):
    state = load_state_dict(checkpoints["l2c"])
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "other.pth")
    again, _ = export_checkpoint(tmp_path / "other.pth", tmp_path / "x.onnx", recipe_of(tmp_path, "l2c"))
    assert again.digest() == bundles["l2c"][0].digest()


@pytest.mark.parametrize("name", ["l-gcn-ijbb", "l-gcn-ms1m", "l-gcn-deepfashion"])
def test_published_recipes_say_which_release_they_are_of(name):
    recipe = load_recipe(name)
    first = name == "l-gcn-ijbb"
    assert recipe.feature_dim == (512 if first else 256)
    assert recipe.features.normalize is not first
    assert recipe.propagation.pooling == ("running-mean" if first else "mean")
    assert recipe.propagation.max_rounds == (0 if first else 100)
    assert recipe.neighborhood.k == {"l-gcn-ijbb": 21, "l-gcn-ms1m": 80, "l-gcn-deepfashion": 5}[name]
