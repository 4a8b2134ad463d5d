"""GCN-V's and GCN-E's targets, batches and losses against the authors' output and the plain networks."""

import numpy as np
import oracles_ve_gcn as oracle
import pytest
from run_folders import load_artifact

from fcdeploy.systems import get_system

torch = pytest.importorskip("torch")
from fcdeploy.data.features import features_from_array  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.run.features import read_features  # noqa: E402
from fcdeploy.run.options import Options  # noqa: E402
from fcdeploy.run.store import MemoryStore  # noqa: E402
from fcdeploy.systems.settings import with_settings  # noqa: E402
from fcdeploy.systems.ve_gcn import flow  # noqa: E402
from fcdeploy.systems.ve_gcn.network import GcnE, GcnV  # noqa: E402
from fcdeploy.systems.ve_gcn.spec import Recipe  # noqa: E402
from fcdeploy.systems.ve_gcn.training import (  # noqa: E402
    EdgeSettings,
    VertexSettings,
    edge_loss,
    edge_network,
    edge_task,
    fitted_odds,
    purity,
    start_from_similarity,
    vertex_loss,
    vertex_task,
)
from fcdeploy.training.choices import Choices  # noqa: E402
from fcdeploy.training.identities import alike_shots, deal_faces, identities_of  # noqa: E402
from fcdeploy.training.live import live_run, renew  # noqa: E402
from fcdeploy.training.train import train  # noqa: E402

WEIGHTS = {"vertex": {"dim": 16, "hidden": 24}}


def random_vertex():
    torch.manual_seed(3)
    return GcnV(16, 24)


@pytest.fixture(scope="module", params=["input", "transformed"])
def run(request, people, vectors):
    """A run of a random GCN-V, with links among its features or the input's."""
    recipe = with_settings(load_recipe(people / "ve-gcn.toml"), {"links.features": request.param})
    faces, options = features_from_array(vectors), Options(threads=1)
    made = live_run(get_system("ve-gcn"), faces, recipe, WEIGHTS, options, MemoryStore(), torch.device("cpu"))
    renew(made, "x", {"vertex": random_vertex()})
    return made


@pytest.fixture(scope="module")
def labels(identities):
    return np.where(identities == -1, 10_000 + np.arange(400), identities)


def arrays_of(net):
    return {name: tensor.detach().double().numpy() for name, tensor in net.state_dict().items()}


def test_what_gcn_v_learns_is_the_authors_to_the_bit(golden):
    data = np.load(golden / "dev/data/faiss_k_20.npz")["data"]
    truth = np.loadtxt(golden / "dev/data/labels.meta", dtype=np.int64)
    ids, sims = data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32)
    wanted = np.load(golden / "dev/vegcn/gcn_v.npz")["gt_confidence"]
    assert np.array_equal(purity(ids, sims, truth), wanted)
    assert np.array_equal(purity(ids[:1] * 0, sims[:1] * 0, truth[:1]), [0])  # nobody is similar to anybody


def test_gcn_v_s_loss_is_that_of_the_plain_network(run, labels):
    items = np.array([5, 18, 120, 301, 399])
    batch = vertex_task(run, labels, VertexSettings()).batch(items, np.random.default_rng(0))
    torch.manual_seed(1)
    net = GcnV(16, 24)
    found, said = vertex_loss(net, {key: torch.from_numpy(array) for key, array in batch.items()})
    lists = flow.neighbors(run)
    graph = oracle.similarity_graph(lists["ids"], lists["sims"], 10, 0.0)
    features = read_features(run).array.astype(np.float64)
    confidence, _ = oracle.confidence(arrays_of(net), features, graph)
    wanted = purity(lists["ids"][:, :10], lists["sims"][:, :10], labels)
    assert said.detach().numpy() == pytest.approx(confidence[items], abs=1e-5)
    assert float(found.detach()) == pytest.approx(((confidence - wanted)[items] ** 2).mean(), abs=1e-5)
    found.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@pytest.mark.parametrize("hidden", [128, 100])
def test_a_start_from_similarity_finds_faces_as_pure_as_they_are_similar_to_their_neighbors(hidden):
    rng = np.random.default_rng(4)
    face, other = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 600, 64))
    )
    near = (rng.uniform(0, 1, (600, 1)) * face + 0.3 * other).astype(np.float32)
    rows = np.concatenate([face, near], axis=1).astype(np.float32)
    wanted = ((face * near).sum(axis=1) - 0.2).astype(np.float32)

    def said(net):
        connected = torch.from_numpy(near)
        batch = {
            "features": torch.from_numpy(rows[:, :64]),
            "connected": connected,
            "purity": connected[:, 0],
        }
        return vertex_loss(net, batch)[1].detach().numpy()

    torch.manual_seed(0)
    net = GcnV(64, hidden)
    assert abs(np.corrcoef(said(net), wanted)[0, 1]) < 0.5
    start_from_similarity(net, rows, wanted)
    assert np.corrcoef(said(net), wanted)[0, 1] > 0.9
    assert said(net).mean() == pytest.approx(wanted.mean(), abs=0.05)
    assert ((said(net) - wanted) ** 2).mean() < 0.25 * wanted.var()
    start_from_similarity(net, rows, np.full(600, 0.25, np.float32))  # nothing to fit a scale on
    assert np.isfinite(said(net)).all()
    assert said(net).std() > 0


def test_only_who_asks_for_it_starts_from_similarity(run, labels):
    assert vertex_task(run, labels, VertexSettings()).start is None
    task = vertex_task(run, labels, VertexSettings(start="similarity"))
    batch = task.batch(np.arange(run.n), np.random.default_rng(0))
    net, wanted = random_vertex(), random_vertex()
    task.start(net)
    start_from_similarity(
        wanted, np.concatenate([batch["features"], batch["connected"]], axis=1), batch["purity"]
    )
    for one, two in zip(net.state_dict().values(), wanted.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_gcn_e_s_loss_is_that_of_the_plain_network(run, labels):
    """A mean over candidates, then over faces: those with few candidates weigh as much."""
    made = edge_task(run, labels, EdgeSettings(ignore_ratio=0.5))
    torch.manual_seed(2)
    net = GcnE(24 if run.settings.transforms else 16, 8)
    items = np.arange(0, made.size, 9)
    batch = made.batch(items, np.random.default_rng(0))
    found, said = edge_loss(net, {key: torch.from_numpy(array) for key, array in batch.items()})

    vectors = read_features(run)
    knn = flow.neighbors(run)
    graph = oracle.similarity_graph(knn["ids"], knn["sims"], 10, 0.0)
    vertex = arrays_of(random_vertex())
    confidence, hidden = oracle.confidence(vertex, vectors.array.astype(np.float64), graph)
    seen, ids, sims = vectors.array.astype(np.float64), knn["ids"], knn["sims"]
    if run.settings.transforms:
        seen = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        similar = seen @ seen.T
        np.fill_diagonal(similar, 2)
        ids = np.argsort(-similar, axis=1, kind="stable")[:, :12]
        sims = np.minimum(np.take_along_axis(similar, ids, axis=1), 1)
    graph = oracle.similarity_graph(ids, sims, 12, 0.0)
    ignored = set(np.argsort(confidence, kind="stable")[:200].tolist())
    asked = [i for i in range(400) if i not in ignored and len(oracle.higher(ids[i], confidence, i)) > 1]
    assert made.size == len(asked)
    losses, odds = [], []
    for centre in np.array(asked)[items]:
        members = oracle.higher(ids[centre], confidence, centre)
        z = oracle.logits(arrays_of(net), seen, graph, centre, members)
        chosen = z[np.arange(len(members)), (labels[members] == labels[centre]).astype(int)]
        losses.append((np.logaddexp(z[:, 0], z[:, 1]) - chosen).mean())
        odds += (z[:, 1] - z[:, 0]).tolist()
    assert len(set(batch["counts"].tolist())) > 1
    assert len(batch["features"]) == batch["counts"].sum()  # nothing is padded
    assert said.detach().numpy() == pytest.approx(np.array(odds), abs=1e-5)
    assert float(found.detach()) == pytest.approx(np.mean(losses), abs=1e-5)
    found.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_a_start_from_distance_finds_candidates_the_likelier_the_nearer_they_are(run, labels):
    """Those of one's own person are nearer: the odds tell them from others, where random weights tell nothing."""
    made = edge_task(run, labels, EdgeSettings(ignore_ratio=0.0, start="similarity"))
    batch = made.batch(np.arange(made.size), np.random.default_rng(0))
    tensors = {key: torch.from_numpy(array) for key, array in batch.items()}
    same, lengths = batch["same"] == 1, np.linalg.norm(batch["features"], axis=1)
    torch.manual_seed(2)
    net = GcnE(batch["features"].shape[1], 64)
    random, _ = edge_loss(net, tensors)
    made.start(net)
    loss, odds = edge_loss(net, tensors)
    odds = odds.detach().numpy()
    share = batch["same"].mean()
    assert float(loss.detach()) < float(random.detach())
    assert np.corrcoef(odds, -lengths)[0, 1] > 0.7
    assert odds[same].mean() - odds[~same].mean() > 0.3
    assert (1 / (1 + np.exp(-odds))).mean() == pytest.approx(share, abs=0.1)


def test_log_odds_are_fitted_as_they_were_drawn():
    """Of 20,000 draws whose log odds are 3 x - 1; nothing is fitted where there is nothing to tell apart."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=20_000)
    same = torch.from_numpy((rng.random(20_000) < 1 / (1 + np.exp(1 - 3 * x))).astype(np.int64))
    assert fitted_odds(torch.from_numpy(x), same) == pytest.approx((3, -1), abs=0.1)
    assert fitted_odds(torch.from_numpy(x), torch.ones_like(same)) == (1, 0)
    assert fitted_odds(torch.ones(20_000), same) == (1, 0)
    assert fitted_odds(torch.from_numpy(-x), same) == (1, 0)  # farther is likelier: not what it begins with


@pytest.mark.parametrize("settings", [VertexSettings(start="cosine"), EdgeSettings(start="cosine")])
def test_a_start_that_there_is_not_is_refused(settings):
    assert "start = cosine" in settings.problem(Recipe(), 100)


def test_gcn_e_takes_what_the_recipe_gives_it():
    recipe = Recipe(feature_dim=16)
    assert edge_network(recipe, WEIGHTS).conv1.weight.shape[0] == 2 * 16
    assert edge_network(with_settings(recipe, {"links.features": "transformed"}), WEIGHTS).conv1.weight.shape[
        0
    ] == (2 * 24)


@pytest.mark.parametrize("ratio", [-0.1, 1.0])
def test_a_share_of_ignored_faces_that_leaves_none_is_refused(ratio):
    assert f"ignore_ratio = {ratio}" in EdgeSettings(ratio).problem(Recipe(), 100)
    assert EdgeSettings(0.5).problem(Recipe(), 100) is None


def test_albums_hold_for_the_lists_of_transformed_features_too(people, vectors, identities, tmp_path):
    """No candidate is of another album than its face, and no neighbor either."""
    recipe = with_settings(load_recipe(people / "ve-gcn.toml"), {"links.features": "transformed"})
    choices = Choices(steps=2, batch=32, lr=0.1, threads=1, splits=3, validation=0.0)
    known = (vectors[:-5], identities[:-5])
    faces = features_from_array(known[0]), known[1]
    vertex = train(
        get_system("ve-gcn"), *faces, tmp_path / "v.pth", network="vertex", recipe=recipe, choices=choices
    )
    edge = train(
        get_system("ve-gcn"),
        *faces,
        tmp_path / "e.pth",
        network="edge",
        recipe=recipe,
        checkpoints=[vertex.checkpoint],
        choices=choices,
    )
    identity = identities_of(known[1])
    shots = alike_shots(faces[0], identity)
    albums = deal_faces(identity, 3, choices.seed, shots, choices.singletons)
    seen = load_artifact(edge.run_dir / "faces/transformed_knn")["ids"]
    assert (albums[seen] == albums[:, None]).all()
