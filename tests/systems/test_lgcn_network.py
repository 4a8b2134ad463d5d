import functools
from types import SimpleNamespace

import numpy as np
import oracles_lgcn as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.deploy.recognise import recognise
from fcdeploy.errors import InputError
from fcdeploy.graph.subgraphs import gather_subgraphs, own_positions
from fcdeploy.systems import describe, get_system
from fcdeploy.systems.l_gcn import flow
from fcdeploy.systems.l_gcn.decode import probability, score_links
from fcdeploy.systems.l_gcn.inputs import subgraph_batches
from fcdeploy.systems.l_gcn.parity import parity_sizes, random_batch, run_passes
from fcdeploy.systems.l_gcn.spec import NeighborhoodSettings, PropagationSettings, Recipe, checkpoint_shapes

torch = pytest.importorskip("torch")
from fcdeploy.systems.l_gcn.network import (  # noqa: E402
    LGcn,
    network_from_state_dict,
    padded_subgraphs,
    passes_from_network,
    plain_outputs,
)

D = 8


@functools.cache
def random_network(seed, dim=D):
    """L-GCN in float64 with random weights; bn0 neither trivial nor small."""
    generator = torch.Generator().manual_seed(seed)
    net = LGcn(dim).double()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point():
            scale = tensor.shape[0] ** -0.5 if name.startswith("conv") and tensor.ndim == 2 else 0.2
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    net.bn0.running_var.copy_(0.01 + torch.rand(dim, generator=generator, dtype=torch.float64))
    return net.eval()


class ModuleEngine:
    """A pass as a PyTorch module, in the place of an engine."""

    def __init__(self, module, outputs):
        self.module, self.outputs = module, outputs

    def run_each(self, batches):
        return ((key, self.run(feeds)) for key, feeds in batches)

    def run(self, feeds):
        with torch.inference_mode():
            found = self.module(*(torch.from_numpy(array) for array in feeds.values()))
        found = found if isinstance(found, tuple) else (found,)
        return dict(zip(self.outputs, (tensor.numpy() for tensor in found), strict=True))


def engines_of(net, dtype=torch.float64):
    outputs = {"encode": ("own", "near"), "convolve": ("own", "near"), "score": ("logits",)}
    return {
        name: ModuleEngine(module, outputs[name]) for name, module in passes_from_network(net, dtype).items()
    }


def logits_of(engines, tables, origin, graphs):
    ((_, logits),) = score_links(engines, tables, origin, [("key", graphs)])
    return logits


def batch_of(b, k1, seed, dim=D, dtype=np.float64):
    batch = random_batch(dim, b, k1, np.random.default_rng(seed))
    return {**batch, "features": batch["features"].astype(dtype)}


@pytest.mark.parametrize(
    ("seed", "hops", "active"), [(0, (6, 3), 3), (1, (3, 0), 1), (2, (5, 8), 2), (3, (1, 1), 9)]
)
def test_the_plain_network_is_the_published_equations(seed, hops, active):
    """1e-12 of the scale in float64, padding and all."""
    net, batch = random_network(seed), batch_of(4, hops[0], seed)
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    inputs = padded_subgraphs(batch["features"], batch["ids"], batch["centres"], hops, active, 60)
    with torch.inference_mode():
        found = net(*inputs).numpy()
    for at, centre in enumerate(batch["centres"]):
        expected = oracle.logits(state, batch["features"], batch["ids"], centre, hops, active)
        assert np.abs(found[at] - expected).max() < 1e-12 * np.abs(expected).max()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 6),
    st.integers(1, 12),
    st.integers(0, 12),
    st.integers(1, 12),
    st.sampled_from([(0, 8), (1, 8), (2, 3)]),
    st.integers(0, 2**32 - 1),
)
def test_the_passes_give_the_plain_network_s_logits(b, k1, k2, active, network, seed):
    """1e-12 of the scale in float64: what moves is the rounding.

    Few connections make faces without any, and two-hop faces that no output sees: both happen among these.
    """
    net, batch = random_network(*network), batch_of(b, k1, seed, network[1])
    batch["hops"] = np.array([k1, min(k2, k1), min(active, k1)])
    expected = plain_outputs(net, batch)[0]["logits"]
    found = run_passes(engines_of(net), batch)["logits"]
    assert found.dtype == np.float64
    assert np.abs(found - expected).max() < 1e-12 * np.abs(expected).max()


def test_the_passes_are_within_a_few_roundings_in_float32():
    net, batch = random_network(1), batch_of(20, 30, 1, dtype=np.float32)
    expected = plain_outputs(net, batch)[0]["logits"]
    found = run_passes(engines_of(net, torch.float32), batch)["logits"]
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 3e-6 * np.abs(expected).max()


def test_faces_connected_to_nobody_have_finite_logits_those_of_a_mean_of_nobody():
    """One-hop faces 1 and 2 of centre 0 are nearest to faces that are not there; the row of 2 in A is zeros."""
    ids = np.int32([[0, 1, 2], [1, 3, 4], [2, 4, 3], [3, 1, 4], [4, 2, 3]])
    net, features = random_network(0), np.random.default_rng(0).standard_normal((5, D))
    batch = {"features": features, "ids": ids, "centres": np.int32([0]), "hops": np.array([2, 0, 1])}
    found = run_passes(engines_of(net), batch)["logits"]
    state = {name: tensor.numpy() for name, tensor in net.state_dict().items()}
    expected = oracle.logits(state, features, ids, 0, (2, 0), 1)
    assert np.isfinite(expected).all()
    assert np.abs(found[0] - expected).max() < 1e-12 * np.abs(expected).max()


def test_only_what_one_hop_faces_see_is_convolved():
    """With one active connection and hops (6, 6), most two-hop faces are further than two connections away."""
    batch = batch_of(20, 6, 3)
    own = own_positions(batch["ids"], np.arange(len(batch["ids"]), dtype=np.int32))
    graphs = gather_subgraphs(batch["ids"], own, batch["centres"], (6, 6), 1)
    rows = []

    class Counting(ModuleEngine):
        def run(self, feeds):
            rows.append(len(next(iter(feeds.values()))))
            return super().run(feeds)

    engines = engines_of(random_network(0))
    encode = engines["encode"]
    counting = {name: Counting(engine.module, engine.outputs) for name, engine in engines.items()}
    tables = encode.run({"features": batch["features"]})
    origin = encode.run({"features": np.zeros((1, D))})
    logits_of(counting, tables, origin, graphs)
    assert rows == [int(graphs.within[:, 2].sum()), 20 * 6]
    members = sum(len(oracle.subgraph(batch["ids"], c, (6, 6), 1)[1]) for c in batch["centres"])
    assert rows[0] < members


def test_an_uncentred_row_or_a_forgotten_origin_would_show():
    """The proof above can fail: without f(0) or with another centre the logits are others."""
    net, batch = random_network(0), batch_of(3, 5, 0)
    engines = engines_of(net)
    tables = engines["encode"].run({"features": batch["features"]})
    origin = engines["encode"].run({"features": np.zeros((1, D))})
    own = own_positions(batch["ids"], np.arange(len(batch["ids"]), dtype=np.int32))
    graphs = gather_subgraphs(batch["ids"], own, batch["centres"], (5, 5), 5)
    expected = plain_outputs(net, batch)[0]["logits"]
    scale = np.abs(expected).max()
    nothing = {name: np.zeros_like(row) for name, row in origin.items()}
    assert np.abs(logits_of(engines, tables, origin, graphs) - expected).max() < 1e-12 * scale
    assert np.abs(logits_of(engines, tables, nothing, graphs) - expected).max() > 1e-3 * scale


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 150), st.integers(1, 400), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_portions_hold_every_subgraph_once_in_order_within_the_rows(m, rows, most, seed):
    batch = random_batch(4, 1, 7, np.random.default_rng(seed))
    ids, n = batch["ids"], len(batch["ids"])
    own = own_positions(ids, np.arange(n, dtype=np.int32))
    faces = np.random.default_rng(seed).integers(0, n, m).astype(np.int32)
    near = NeighborhoodSettings((7, 3), 4)
    at = 0
    for part, graphs in subgraph_batches(ids, own, faces, near, rows=rows, most=most):
        assert part.start == at
        assert graphs.centres.tolist() == faces[part].tolist()
        count = part.stop - part.start
        assert 1 <= count <= most
        assert count == 1 or graphs.within[:, 2].sum() <= rows
        at = part.stop
    assert at == m


def test_probability_is_the_softmax_without_overflow():
    logits = np.float32([[0, 0], [1, 3], [0, 2000], [2000, 0], [0, -20]])
    found = probability(logits)
    assert found.dtype == np.float32
    assert found[0] == 0.5
    assert found[1] == pytest.approx(np.exp(3) / (np.exp(1) + np.exp(3)), rel=1e-7)
    assert found[2:4].tolist() == [1, 0]
    assert found[4] == pytest.approx(np.exp(-20), rel=1e-6)


def test_a_checkpoint_s_keys_and_shapes_are_the_network_s_and_say_its_width():
    state = LGcn(D).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == checkpoint_shapes(D)
    system, network_of, weights = recognise({"x.pth": shapes})
    assert (system.name, network_of) == ("l-gcn", {"x.pth": "links"})
    assert describe(weights) == f"{D}-d features"
    assert network_from_state_dict(state).feature_dim == D
    shapes["conv4.weight"] = (512, 128)
    with pytest.raises(InputError, match=r"looks like L-GCN with 8-d features, but conv4.weight has shape"):
        recognise({"x.pth": shapes})


@pytest.mark.parametrize(
    ("given", "hops", "k", "notes"),
    [
        ({}, (79, 10), 80, 0),
        ({"k": 30}, (29, 10), 30, 0),
        ({"hops": (20, 5)}, (20, 5), 21, 0),
        ({"hops": (20, 5), "k": 20}, (19, 5), 20, 1),
        ({"hops": (20, 5), "k": 50}, (20, 5), 21, 0),
        ({"n": 50}, (49, 10), 50, 1),
        ({"n": 1}, (0, 10), 1, 1),
    ],
    ids=str,
)
def test_k_counts_the_face_itself_and_goes_with_hops(given, hops, k, notes):
    recipe, said = Recipe().for_run(**{"n": 1000, **given})
    assert (recipe.neighborhood.hops, recipe.neighborhood.k) == (hops, k)
    assert len(said) == notes


def test_settings_that_make_no_sense_are_refused_in_a_sentence():
    for wrong, words in (
        (Recipe(neighborhood=NeighborhoodSettings((0, 5))), "hops[0]"),
        (Recipe(neighborhood=NeighborhoodSettings((5, -1))), "hops[1]"),
        (Recipe(neighborhood=NeighborhoodSettings(active=0)), "active"),
        (Recipe(propagation=PropagationSettings(max_size=0)), "max_size"),
        (Recipe(propagation=PropagationSettings(step=0)), "step"),
        (Recipe(propagation=PropagationSettings(step=1.5)), "step"),
        (
            Recipe(propagation=PropagationSettings(pooling="avg")),
            "'avg' is none of mean, running-mean, max, last",
        ),
        (Recipe(propagation=PropagationSettings(max_rounds=-1)), "max_rounds"),
    ):
        assert words in (wrong.problem() or "")
    with pytest.raises(InputError, match="k = 1"):
        Recipe().for_run(10, k=1)
    with pytest.raises(InputError, match=r"hops\[0\]"):
        Recipe().for_run(10, hops=(0, 3))


def test_parity_is_measured_up_to_the_recipe_s_hops():
    assert parity_sizes(Recipe()) == [(1, 1), (7, 2), (5, 20), (3, 79)]
    assert parity_sizes(Recipe(neighborhood=NeighborhoodSettings((4, 5)))) == [(1, 1), (7, 2), (5, 4), (3, 4)]


def test_the_system_s_passes_are_all_over_rows():
    passes = get_system("l-gcn").passes({"links": {"dim": D}})
    assert list(passes) == ["encode", "convolve", "score"]
    assert {tensor.axes[0] for spec in passes.values() for tensor in (*spec.inputs, *spec.outputs)} == {"m"}


def test_where_faces_stand_in_their_lists_is_looked_up_a_block_at_a_time(monkeypatch):
    """Never for all lists at once, which are as large as they."""
    asked = []

    def counted(ids, faces):
        asked.append(len(ids))
        return own_positions(ids, faces)

    monkeypatch.setattr(flow, "OWN_BLOCK", 7)
    monkeypatch.setattr(flow, "own_positions", counted)
    ids = np.random.default_rng(0).integers(0, 40, (40, 6)).astype(np.int32)
    run = SimpleNamespace(n=40, collect=lambda name, make, **_: make())
    found = flow.own_places(run, {"ids": ids})["own"]
    assert np.array_equal(found, own_positions(ids, np.arange(40, dtype=np.int32)))
    assert found.any()
    assert max(asked) == 7
