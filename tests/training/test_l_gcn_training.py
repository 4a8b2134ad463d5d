"""L-GCN's batches and loss against the published network on sub-graphs made one by one."""

import numpy as np
import pytest

from fcdeploy.graph.subgraphs import gather_subgraphs, own_positions
from fcdeploy.systems import get_system

torch = pytest.importorskip("torch")
from fcdeploy.clustering.metrics import evaluate  # noqa: E402
from fcdeploy.data.features import features_from_array  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.run.features import read_features  # noqa: E402
from fcdeploy.run.options import Options  # noqa: E402
from fcdeploy.run.store import MemoryStore  # noqa: E402
from fcdeploy.systems.l_gcn.network import LGcn, padded_subgraphs  # noqa: E402
from fcdeploy.systems.l_gcn.training import Settings, dense_subgraphs, loss, task  # noqa: E402
from fcdeploy.training.live import live_run, renew  # noqa: E402
from fcdeploy.training.sweep import best_trial, curve_through, sweep  # noqa: E402


@pytest.fixture(scope="module")
def run(people, vectors):
    recipe = load_recipe(people / "l-gcn.toml")
    weights = {"links": {"dim": 16}}
    device = torch.device("cpu")
    return live_run(
        get_system("l-gcn"),
        features_from_array(vectors),
        recipe,
        weights,
        Options(threads=1),
        MemoryStore(),
        device,
    )


@pytest.fixture(scope="module")
def lists(run):
    """The 12 nearest of each face by brute force, itself first."""
    sims = read_features(run).array @ read_features(run).array.T
    np.fill_diagonal(sims, 2)
    return np.argsort(-sims, axis=1, kind="stable")[:, :13].astype(np.int32)


def test_means_are_over_connected_faces(lists):
    """Entry by entry: 1 / m for each of m connected faces, nothing for others and in padding."""
    own = own_positions(lists, np.arange(len(lists), dtype=np.int32))
    graphs = gather_subgraphs(lists, own, np.array([3, 77, 200], np.int32), (5, 2), 3)
    members, adj = dense_subgraphs(graphs)
    assert len(set((members >= 0).sum(1).tolist())) > 1  # some are padded
    for g in range(3):
        faces = members[g, members[g] >= 0].tolist()
        assert faces == graphs.faces[g, : len(faces)].tolist()
        for at, row in enumerate(adj[g]):
            linked = [
                place
                for place, other in enumerate(faces)
                if at < len(faces)
                and at != place
                and (other in lists[faces[at]][1:4] or faces[at] in lists[other][1:4])
            ]
            wanted = np.zeros(len(row))
            if at < graphs.within[g, 3]:
                wanted[linked] = 1 / len(linked)
            assert row == pytest.approx(wanted, abs=1e-7)


@pytest.mark.parametrize("settings", [Settings(), Settings(one=12, two=2, active=4)])
def test_the_loss_is_that_of_the_published_network(settings, run, lists, identities):
    """Cross entropy in float64 over all links; in training, bn0 takes mean and variance of the batch's faces."""
    labels = np.where(identities == -1, 10_000 + np.arange(400), identities)
    one, two, active = settings.one or 9, settings.two or 3, settings.active or 5
    items = np.array([5, 18, 120, 301, 399])
    batch = task(run, labels, settings).batch(items, np.random.default_rng(0))
    tensors = {key: torch.from_numpy(array) for key, array in batch.items()}
    torch.manual_seed(1)
    net = LGcn(16)
    found, said = loss(net, tensors)
    seen = batch["features"][batch["real"]].astype(np.float64)
    plain = LGcn(16)
    plain.load_state_dict(net.state_dict())
    plain.double().eval()
    plain.bn0.running_mean = torch.from_numpy(seen.mean(0))
    plain.bn0.running_var = torch.from_numpy(seen.var(0))
    logits = plain(
        *padded_subgraphs(read_features(run).array.astype(np.float64), lists, items, (one, two), active)
    ).detach()
    same = labels[lists[items, 1 : one + 1]] == labels[items][:, None]
    assert 0 < same.mean() < 1
    shares = torch.log_softmax(logits, dim=-1).numpy()
    wanted = -np.where(same, shares[..., 1], shares[..., 0]).mean()
    assert float(found.detach()) == pytest.approx(wanted, abs=1e-5)
    assert said.detach().numpy() == pytest.approx((logits[..., 1] - logits[..., 0]).numpy().ravel(), abs=1e-4)
    # What later inference reads: statistics moved a tenth of the way, the variance over n - 1.
    assert net.bn0.running_var.numpy() == pytest.approx(0.9 + 0.1 * seen.var(0, ddof=1), abs=1e-5)
    found.backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


def test_of_two_settings_the_first_is_tried_over_its_whole_range_with_the_best_second(run, identities):
    """Also where the best second one lies between those tried at first."""
    system = get_system("l-gcn")
    torch.manual_seed(3)
    renew(run, "x", {"links": LGcn(16)})
    tunables = system.tunable({"links": {"dim": 16}}, run.options)

    def score(trial):  # best between the values of either
        return -abs(trial.values["propagation.step"] - 0.3625) - abs(
            trial.values["propagation.max_size"] - 60
        )

    trials = sweep(run, lambda labels: evaluate(labels, identities), tunables, score)
    best = best_trial(trials, tunables, score)
    assert best.values["propagation.step"] not in tunables[1].values
    curve = curve_through(trials, best, "propagation.max_size")
    assert set(tunables[0].values) <= {trial.values["propagation.max_size"] for trial in curve}
    assert len({tuple(trial.values.values()) for trial in trials}) == len(trials)
    assert best.values["propagation.max_size"] not in tunables[0].values
