"""PSE-GCN's batches and loss against definitions too simple to be wrong."""

import numpy as np
import pytest

from fcdeploy.data.features import features_from_array
from fcdeploy.graph.marks import new_scratch
from fcdeploy.run.features import read_features
from fcdeploy.run.options import Options
from fcdeploy.run.store import MemoryStore
from fcdeploy.systems import get_system
from fcdeploy.training.identities import identities_of

torch = pytest.importorskip("torch")
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.systems.pse_gcn.training import (  # noqa: E402
    LOOK_ALIKES,
    Settings,
    fill_neighborhoods,
    loss,
    multi_similarity_loss,
    nearest_identities,
    task,
)
from fcdeploy.training.live import live_run  # noqa: E402


def test_an_identity_looks_most_like_those_of_nearest_mean(vectors):
    rng = np.random.default_rng(1)
    identity = rng.permutation(np.concatenate([np.arange(50), rng.integers(0, 50, 350)])).astype(np.int32)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = nearest_identities(unit, identity)
    means = np.stack([unit[identity == i].astype(np.float64).mean(0) for i in range(50)])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert found.shape == (50, LOOK_ALIKES)
    for i in range(50):
        order = np.argsort(-(means @ means[i]))
        assert found[i].tolist() == [j for j in order if j != i][:LOOK_ALIKES]
    assert nearest_identities(unit[:3], np.array([0, 1, 0], np.int32)).tolist() == [[1], [0]]
    assert nearest_identities(unit[:2], np.zeros(2, np.int32)).shape == (1, 0)


@pytest.mark.parametrize(("cap", "faces"), [(3, 40), (12, 40), (39, 40), (40, 40)])
def test_neighborhoods_are_cut_or_filled_with_look_alikes_in_turn(cap, faces):
    """Step by step in Python: the neighborhood, then look-alikes member by member, then faces as they come."""
    rng = np.random.default_rng(cap)
    identity = rng.permutation(np.arange(faces) % 7).astype(np.int32)
    members = np.argsort(identity, kind="stable").astype(np.int32)
    starts = np.searchsorted(identity[members], np.arange(8)).astype(np.int64)
    look_alikes = np.stack([rng.permutation([j for j in range(7) if j != i])[:3] for i in range(7)])
    look_alikes = look_alikes.astype(np.int32)
    found = np.full((9, 10), -1, np.int32)
    sizes = rng.integers(1, 11, 9).astype(np.int32)
    for row, size in enumerate(sizes):
        found[row, :size] = rng.permutation(faces)[:size]
    turns = rng.integers(0, 1000, (9, LOOK_ALIKES))
    scratch = new_scratch(faces)
    filled = fill_neighborhoods(found, sizes, cap, identity, look_alikes, starts, members, turns, scratch)
    assert not scratch.any()
    for row in range(9):
        wanted = found[row, : sizes[row]].tolist()
        for t, other in enumerate(look_alikes[identity[found[row, 0]]]):
            theirs = np.flatnonzero(identity == other)
            wanted += np.roll(theirs, -(turns[row, t] % len(theirs))).tolist()
        wanted += [(found[row, 0] + step) % faces for step in range(1, faces)]
        assert filled[row].tolist() == list(dict.fromkeys(wanted))[:cap]


@pytest.mark.parametrize("margin", [0.9, 0.6])
def test_the_loss_is_the_published_one(margin):
    """Node by node in float64: the least similar of the same, the most similar of another; means over nodes."""
    rng = np.random.default_rng(4)
    outputs = rng.standard_normal((3, 6, 8))
    outputs /= np.linalg.norm(outputs, axis=2, keepdims=True)
    identity = rng.integers(0, 3, (3, 6))
    identity[2] = 5  # a neighborhood that meets nobody else
    between, apart, together = [], [], []
    for b in range(3):
        for i in range(6):
            sims = outputs[b] @ outputs[b, i]
            p = min(sims[j] for j in range(6) if identity[b, j] == identity[b, i])
            together.append(max(0, margin - p))
            others = [sims[j] for j in range(6) if identity[b, j] != identity[b, i]]
            if others:
                q = max(others)
                between.append(max(0, (1 - p) - (1 - q) + 2 * margin - 1))
                apart.append(max(0, q - (1 - margin)))
    wanted = np.mean(between) + np.mean(apart) + np.mean(together)
    batch = {
        "features": torch.from_numpy(outputs),
        "adj": torch.zeros(3, 6, 6),
        "identity": torch.from_numpy(identity),
    }
    found, said = loss(lambda features, adj, mask: features, batch, margin)
    assert float(found) == pytest.approx(wanted, abs=1e-6)
    assert said.shape == (15,)


def test_the_multi_similarity_loss_weighs_every_pair():
    """Node by node in float64, as the paper's equation 11 reads; nobody is compared with himself."""
    rng = np.random.default_rng(5)
    outputs = rng.standard_normal((3, 6, 8))
    outputs /= np.linalg.norm(outputs, axis=2, keepdims=True)
    identity = rng.integers(0, 3, (3, 6))
    identity[1] = np.arange(6)  # everybody alone
    identity[2] = 5  # a neighborhood that meets nobody else
    losses = []
    for b in range(3):
        for i in range(6):
            sims = outputs[b] @ outputs[b, i]
            one = [
                np.exp(-4 * (sims[j] - 0.5)) for j in range(6) if identity[b, j] == identity[b, i] and j != i
            ]
            two = [np.exp(30 * (sims[j] - 0.5)) for j in range(6) if identity[b, j] != identity[b, i]]
            losses.append(np.log1p(sum(one)) / 4 + np.log1p(sum(two)) / 30)
    batch = {
        "features": torch.from_numpy(outputs).requires_grad_(),
        "adj": torch.zeros(3, 6, 6),
        "identity": torch.from_numpy(identity),
    }
    found, said = multi_similarity_loss(lambda features, adj, mask: features, batch)
    assert float(found.detach()) == pytest.approx(np.mean(losses), abs=1e-6)
    assert said.shape == (15,)
    found.backward()
    assert torch.isfinite(batch["features"].grad).all()


def test_mirrored_neighborhoods_have_the_graphs_people_and_similarities_of_those_that_are_not(
    people, vectors, identities
):
    device = torch.device("cpu")
    system, recipe = get_system("pse-gcn"), load_recipe(people / "pse-gcn.toml")
    run = live_run(
        *(system, features_from_array(vectors), recipe, {"refine": {"dim": 16}}, Options(threads=1)),
        *(MemoryStore(), device),
    )
    before = read_features(run).array.copy()
    batches = [
        task(run, identities_of(identities), Settings(nodes=24, flips=flips)).batch(
            np.arange(0, 400, 50), np.random.default_rng(9)
        )
        for flips in (0.0, 0.5)
    ]
    plain, mirrored = batches
    assert np.array_equal(plain["adj"], mirrored["adj"])
    assert np.array_equal(plain["identity"], mirrored["identity"])
    assert np.array_equal(abs(plain["features"]), abs(mirrored["features"]))
    assert not np.array_equal(plain["features"], mirrored["features"])
    sims = [batch["features"] @ batch["features"].transpose(0, 2, 1) for batch in batches]
    assert np.allclose(*sims, atol=1e-6)
    moved = task(run, identities_of(identities), Settings(nodes=24, noise=0.3)).batch(
        np.arange(0, 400, 50), np.random.default_rng(9)
    )
    assert np.array_equal(plain["adj"], moved["adj"])
    assert np.array_equal(plain["identity"], moved["identity"])
    assert 0.9 < (plain["features"] * moved["features"]).sum(-1).mean() < 0.99
    assert np.array_equal(read_features(run).array, before)
