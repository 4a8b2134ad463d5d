import numpy as np
import oracles
import pytest

import fcdeploy
from fcdeploy.data.features import open_features
from fcdeploy.graph.marks import new_scratch
from fcdeploy.graph.neighborhoods import connect_neighborhoods, gather_neighborhoods
from fcdeploy.systems.pse_gcn.parity import run_passes

torch = pytest.importorskip("torch")
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.systems.pse_gcn.network import network_from_state_dict, plain_outputs  # noqa: E402

TAUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.87, 0.9)
TOLERANCE = 1e-5  # of unit rows: the authors' own output moves by 2.7e-7 when nodes change places


@pytest.fixture(scope="module")
def vectors(golden):
    return open_features(golden / "dev/data/features.bin", 32).rows(0, 1283)


@pytest.fixture(scope="module")
def subgraphs(golden):
    return dict(np.load(golden / "dev/pse/subgraphs.npz"))


@pytest.fixture(scope="module")
def reranked(golden, tmp_path_factory):
    """The authors' re-ranked lists as a user would hand them over."""
    path = tmp_path_factory.mktemp("lists") / "reranking_knn.npy"
    np.save(path, np.load(golden / "dev/pse/reranking.npz")["knn"])
    return path


def their_batch(subgraphs, vectors):
    """The authors' 200 neighborhoods in the authors' order of nodes."""
    nodes = subgraphs["node_list"]
    mask = (nodes >= 0).astype(np.float32)
    return {"features": vectors[nodes] * mask[:, :, None], "adj": subgraphs["adj_local"], "mask": mask}


def centre_first(batch, centre_idx):
    """The same neighborhoods with the centre as node 0."""
    b, n = batch["mask"].shape
    order = np.stack([[c, *(u for u in range(n) if u != c)] for c in centre_idx])
    rows = np.arange(b)[:, None]
    return {
        "features": batch["features"][rows, order],
        "adj": batch["adj"][rows[:, :, None], order[:, :, None], order[:, None, :]],
        "mask": batch["mask"][rows, order],
    }


def test_the_plain_network_gives_the_golden_outputs_in_the_authors_order_of_nodes(golden, subgraphs, vectors):
    net = network_from_state_dict(load_state_dict(golden / "dev/pse/checkpoint.pth"))
    batch = {name: torch.from_numpy(array) for name, array in their_batch(subgraphs, vectors).items()}
    with torch.inference_mode():
        mask = batch["mask"]
        rows = net(batch["features"], batch["adj"], mask[:, :, None] * mask[:, None, :]).numpy()
    found = rows[np.arange(200), subgraphs["center_idx"]]
    assert np.abs(found - subgraphs["anchor"]).max() < TOLERANCE


def test_the_equations_give_the_golden_outputs(golden, subgraphs, vectors):
    """Ties the oracle, and so every test against it, to the authors' own run."""
    state = load_state_dict(golden / "dev/pse/checkpoint.pth")
    for row in range(0, 200, 10):
        size = subgraphs["num_nodes"][row]
        nodes = subgraphs["node_list"][row, :size]
        found = oracles.pse_gcn(state, vectors[nodes], subgraphs["adj_local"][row, :size, :size])
        assert np.abs(found[subgraphs["center_idx"][row]] - subgraphs["anchor"][row]).max() < TOLERANCE


def test_the_exported_passes_give_the_golden_outputs(pse_bundle, subgraphs, vectors):
    batch = centre_first(their_batch(subgraphs, vectors), subgraphs["center_idx"])
    with pse_bundle.open("encode") as encode, pse_bundle.open("neighborhood") as neighborhood:
        found = run_passes({"encode": encode, "neighborhood": neighborhood}, batch)["refined"]
    assert found.dtype == np.float32
    assert np.abs(found - subgraphs["anchor"]).max() < TOLERANCE


def test_the_exported_passes_are_nearer_to_float64_than_the_tolerance_on_our_own_neighborhoods(
    golden, pse_bundle, vectors
):
    """Real neighborhoods in the order in which a run builds them, held against the plain form in float64."""
    net = network_from_state_dict(load_state_dict(golden / "dev/pse/checkpoint.pth"))
    data = np.load(golden / "dev/data/faiss_k_20.npz")["data"]
    ids, sims = data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32)
    ranked = np.load(golden / "dev/pse/reranking.npz")["knn"].astype(np.int32)
    nodes, sizes = gather_neighborhoods(ranked, np.arange(0, 1283, 13), 20, 5, new_scratch(1283))
    nodes = np.ascontiguousarray(nodes[:, : sizes.max()])
    adj = np.empty((*nodes.shape, nodes.shape[1]), dtype=np.float32)
    connect_neighborhoods(nodes, sizes, ids, sims, 10, adj)
    mask = (nodes >= 0).astype(np.float32)
    batch = {"features": vectors[nodes] * mask[:, :, None], "adj": adj, "mask": mask}
    with pse_bundle.open("encode") as encode, pse_bundle.open("neighborhood") as neighborhood:
        found = run_passes({"encode": encode, "neighborhood": neighborhood}, batch)["refined"]
    assert np.abs(found - plain_outputs(net, batch)[0]["refined"]).max() < TOLERANCE


def test_the_export_measured_itself_within_tolerance(pse_bundle):
    parity = pse_bundle.manifest["networks"]["refine"]["parity"]
    assert parity["within_tolerance"]
    assert parity["tolerance"] == 1e-5
    assert 0 < parity["max_error"] < 1e-5
    assert (parity["nan"], parity["flipped"]) == (0, 0)
    assert parity["edges"] > 1000
    assert parity["rows"] == sum(b for b, _ in parity["sizes"])
    assert pse_bundle.feature_dim == 32


@pytest.fixture(scope="module")
def labels(golden, pse_bundle, reranked, tmp_path_factory):
    """tau -> labels of the whole run, from the authors' lists; and where its products are kept."""
    folder = tmp_path_factory.mktemp("golden") / "run"
    found = {
        tau: fcdeploy.cluster(
            golden / "dev/data/features.bin",
            engine=pse_bundle.path,
            knn=golden / "dev/data/faiss_k_20.npz",
            reranked=reranked,
            k=20,
            hops=(20, 5),
            tau=tau,
            run_dir=folder,
        )
        for tau in TAUS
    }
    return found, folder


def test_the_whole_run_refines_every_face_as_the_authors_did(golden, labels):
    """All 1,283 faces; neighborhoods, batches, padding, tables and both passes."""
    refined = np.load(labels[1] / "refined/refined.npy")
    expected = np.load(golden / "dev/pse/cluster_feature.npz")["feature"]
    assert refined.shape == expected.shape
    assert np.abs(refined - expected).max() < TOLERANCE


@pytest.mark.parametrize("tau", TAUS)
def test_the_whole_run_gives_the_authors_clusters(golden, labels, tau):
    """Exactly, as partitions: the authors' similarities are no nearer to a tau than our differences."""
    expected = np.load(golden / "dev/pse/clustering.npz")[f"labels_{tau}"]
    assert oracles.partition(labels[0][tau]) == oracles.partition(expected)


def test_labels_are_numbered_by_first_appearance(labels):
    for found in labels[0].values():
        assert found.dtype == np.int64
        _, firsts = np.unique(found, return_index=True)
        assert (np.diff(firsts) > 0).all()


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 5, "threads": 1}, {"threads": 2}], ids=str)
def test_batch_and_threads_do_not_change_the_labels(golden, pse_bundle, reranked, labels, options):
    found = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=pse_bundle.path,
        knn=golden / "dev/data/faiss_k_20.npz",
        reranked=reranked,
        k=20,
        hops=(20, 5),
        tau=0.8,
        **options,
    )
    assert np.array_equal(found, labels[0][0.8])
