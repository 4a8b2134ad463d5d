import copy
import functools

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.marks import new_scratch
from fcdeploy.systems.pse_gcn.inputs import neighborhood_batches
from fcdeploy.systems.pse_gcn.parity import parity_sizes, random_batch
from fcdeploy.systems.pse_gcn.spec import TABLES, NeighborhoodSettings, Recipe, checkpoint_shapes

torch = pytest.importorskip("torch")
from fcdeploy.systems.pse_gcn.network import (  # noqa: E402
    PseGcn,
    network_from_state_dict,
    passes_from_network,
    plain_outputs,
)

D = 12


@functools.cache
def random_network(seed, dim=D):
    """PSE-GCN in float64 with random weights, and BatchNorms that have seen neighborhoods like those tested."""
    generator = torch.Generator().manual_seed(seed)
    net = PseGcn(dim).double()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("running_var"):
            scale = tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.2
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm1d)):
        norm.weight.data.add_(1)
        norm.momentum = None  # statistics over all that it sees
    plain(net.train(), batch_of(8, 30, 100 + seed, dim))
    return net.eval()


def as_arrays(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def batch_of(b, n, seed, dim=D):
    """Neighborhoods as parity is measured on, in float64."""
    batch = random_batch(dim, b, n, np.random.default_rng(seed))
    return {name: array.astype(np.float64) for name, array in batch.items()}


def plain(net, batch):
    """All rows of the published form (b, n, 2d)."""
    features, adj, mask = (torch.from_numpy(batch[name]) for name in ("features", "adj", "mask"))
    with torch.inference_mode():
        return net(features, adj, mask[:, :, None] * mask[:, None, :]).numpy()


def split(net, batch):
    """The centres' rows (b, 2d) by the two passes, in float64."""
    passes = passes_from_network(net, torch.float64)
    features, adj, mask = (torch.from_numpy(batch[name]) for name in ("features", "adj", "mask"))
    b, n, d = features.shape
    with torch.inference_mode():
        *nodes, out = (table.reshape(b, n, -1) for table in passes["encode"](features.reshape(b * n, d)))
        return passes["neighborhood"](*nodes, out[:, 0], adj, mask).numpy()


def assert_redrawn_graphs_are_neither_empty_nor_full(net, batch):
    """The threshold has to decide something, and nothing so near to it that rounding decides."""
    for sims in plain_outputs(net, batch)[1]:
        inside = sims[(sims != 0) & (np.abs(sims) < 1 - 1e-9)]
        assert (inside >= 0.5).any()
        assert (inside < 0.5).any()
        assert np.abs(inside - 0.5).min() > 1e-10


@pytest.mark.parametrize("seed", range(4))
def test_the_plain_network_is_the_published_equations(seed):
    """1e-12 in float64; readings without the 1e-5, or with adj normalised once, are 10,000 times further away.

    The second moves nothing but similarities, and those of one node or two hardly: it takes more nodes to see it.
    """
    net = random_network(seed)
    for n in (1, 2, 17, 60):
        batch = batch_of(1, n, seed)
        state, features, adj = as_arrays(net), batch["features"][0], batch["adj"][0]
        found = plain(net, batch)[0]
        assert np.abs(found - oracles.pse_gcn(state, features, adj)).max() < 1e-12
        if n >= 17:
            assert np.abs(found - oracles.pse_gcn(state, features, adj, normalised=1)).max() > 1e-8
            assert np.abs(found - oracles.pse_gcn(state, features, adj, sum_eps=0)).max() > 1e-8


@pytest.mark.parametrize("seed", range(4))
def test_the_two_passes_are_the_plain_network_at_the_centre(seed):
    """1e-12 in float64, whose rounding is 1e-16: folding BatchNorms and Linears moves rounding, nothing else."""
    net = random_network(seed)
    for b, n in [(1, 1), (3, 2), (4, 17), (2, 80)]:
        batch = batch_of(b, n, seed)
        if n > 2:
            assert_redrawn_graphs_are_neither_empty_nor_full(net, batch)
        assert np.abs(split(net, batch) - plain(net, batch)[:, 0]).max() < 1e-12


def test_the_two_passes_in_float64_meet_the_published_equations_too():
    net = random_network(11)
    batch = batch_of(1, 40, 11)
    expected = oracles.pse_gcn(as_arrays(net), batch["features"][0], batch["adj"][0])[0]
    assert np.abs(split(net, batch)[0] - expected).max() < 1e-12


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 30), st.integers(0, 40), st.integers(0, 2**32 - 1))
def test_padding_is_neutral(n, padding, seed):
    """Whatever stands in padded rows of the features; adj and mask are zero there."""
    net = random_network(seed % 3)
    batch = batch_of(1, n, seed)
    rng = np.random.default_rng(seed)
    padded = {
        "features": np.pad(batch["features"], ((0, 0), (0, padding), (0, 0))),
        "adj": np.pad(batch["adj"], ((0, 0), (0, padding), (0, padding))),
        "mask": np.pad(batch["mask"], ((0, 0), (0, padding))),
    }
    padded["features"][:, n:] = rng.standard_normal((1, padding, D))
    assert np.abs(plain(net, padded)[:, :n] - plain(net, batch)).max() < 1e-12
    assert np.abs(split(net, padded) - split(net, batch)).max() < 1e-12


def test_padding_is_neutral_where_it_has_no_direction():
    """Without biases a padded row is zero throughout and its unit length is 0 / 0."""
    net = copy.deepcopy(random_network(2))
    for name, tensor in net.state_dict().items():
        if name.endswith((".bias", "running_mean")):
            tensor.zero_()
    batch = batch_of(1, 20, 2)
    padded = {
        "features": np.pad(batch["features"], ((0, 0), (0, 9), (0, 0))),
        "adj": np.pad(batch["adj"], ((0, 0), (0, 9), (0, 9))),
        "mask": np.pad(batch["mask"], ((0, 0), (0, 9))),
    }
    expected = oracles.pse_gcn(as_arrays(net), batch["features"][0], batch["adj"][0])[0]
    assert np.abs(split(net, padded)[0] - expected).max() < 1e-12


@settings(max_examples=10, deadline=None)
@given(st.integers(2, 30), st.integers(0, 2**32 - 1))
def test_the_order_of_nodes_is_neutral(n, seed):
    net = random_network(seed % 3)
    batch = batch_of(1, n, seed)
    order = np.random.default_rng(seed).permutation(n)
    moved = {
        "features": batch["features"][:, order],
        "adj": batch["adj"][:, order][:, :, order],
        "mask": batch["mask"][:, order],
    }
    assert np.abs(plain(net, moved) - plain(net, batch)[:, order]).max() < 1e-12
    order = np.array([0, *(1 + np.random.default_rng(seed).permutation(n - 1))])  # the centre stays node 0
    moved = {
        "features": batch["features"][:, order],
        "adj": batch["adj"][:, order][:, :, order],
        "mask": batch["mask"][:, order],
    }
    assert np.abs(split(net, moved) - split(net, batch)).max() < 1e-12


def test_the_thresholds_that_parity_compares_are_those_of_the_forward_pass():
    """Held against h h^T from the equations: block 1 whole, block 2 the centre's row; 0.5 itself is kept."""
    net = random_network(1)
    batch = batch_of(2, 9, 1)
    outputs, (first, second) = plain_outputs(net, batch)
    assert first.shape == (2, 9, 9)
    assert second.shape == (2, 1, 9)
    assert np.abs(outputs["refined"] - plain(net, batch)[:, 0]).max() < 1e-12
    real = batch["mask"].astype(bool)
    assert np.abs(np.diagonal(first, axis1=1, axis2=2)[real] - 1).max() < 1e-12
    assert (np.diagonal(first, axis1=1, axis2=2)[~real] == 0).all()
    sims = torch.tensor([[0.5, 0.5 - 1e-12, -1.0]], dtype=torch.float64)
    assert net.redraw1(sims).tolist() == [[0.5 / (0.5 + 1e-5), 0, 0]]


def test_a_checkpoint_s_keys_and_shapes_are_the_network_s():
    net = PseGcn(D)
    assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == checkpoint_shapes(D)


def test_a_checkpoint_without_batch_counters_gives_the_same_network():
    net = random_network(3)
    state = {name: tensor.float() for name, tensor in net.state_dict().items() if "num_batches" not in name}
    again = network_from_state_dict(state)
    assert not again.training
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("rows", [1, 40, 10**6])
@pytest.mark.parametrize("most", [1, 3, 10**6])
def test_batches_hold_every_neighborhood_once_with_its_own_tables(rows, most):
    """Held against the tables, one neighborhood at a time; padding is zero in every feed."""
    rng = np.random.default_rng(0)
    n, k, hops, active = 60, 8, (6, 3), 4
    ids, ranked = (np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32) for _ in range(2))
    sims = rng.random((n, k), dtype=np.float32)
    tables = {name: rng.standard_normal((n, 10)).astype(np.float32) for name in (*TABLES, "out")}
    known = tables["skip"][:, 0].tolist()  # tells which face a row is
    centres = rng.permutation(n)[:25]
    near = NeighborhoodSettings(k=k, hops=hops, active=active)
    positions, scratch = [], new_scratch(n)
    for group, feeds in neighborhood_batches(
        tables, ranked, KnnGraph(ids, sims), centres, near, scratch, rows=rows, most=most
    ):
        positions += group.tolist()
        feeds = {name: np.asarray(rows_or_array) for name, rows_or_array in feeds.items()}
        b, width = feeds["mask"].shape
        assert b <= most
        assert b == 1 or b * width <= rows
        for row, centre in enumerate(centres[group].tolist()):
            expected = oracles.neighborhood(ranked, centre, *hops)
            size = len(expected)
            assert feeds["mask"][row].tolist() == [1] * size + [0] * (width - size)
            assert np.array_equal(feeds["out"][row], tables["out"][centre])
            assert np.array_equal(feeds["skip"][row, 0], tables["skip"][centre])
            faces = [known.index(value) for value in feeds["skip"][row, :size, 0].tolist()]
            assert set(faces) == expected
            for name in TABLES:
                assert np.array_equal(feeds[name][row, :size], tables[name][faces])
                assert not feeds[name][row, size:].any()
            graph = oracles.fixed_graph(ids, sims, faces, active)
            assert np.array_equal(feeds["adj"][row, :size, :size], graph)
            assert not feeds["adj"][row, size:].any()
            assert not feeds["adj"][row, :, size:].any()
    assert sorted(positions) == list(range(25))
    assert not scratch.any()


def test_parity_is_measured_on_single_nodes_and_on_the_largest_neighborhood():
    sizes = parity_sizes(Recipe())
    assert (1, 1) in sizes
    assert (1, 79 * 11 + 2) in sizes
    small = parity_sizes(Recipe(feature_dim=4, neighborhood=NeighborhoodSettings(k=2, hops=(2, 1), active=2)))
    assert max(n for _, n in small) == 4


def test_random_neighborhoods_look_like_real_ones():
    batch = random_batch(16, 6, 40, np.random.default_rng(0))
    features, adj, mask = batch["features"], batch["adj"], batch["mask"]
    assert mask.sum(axis=1).max() == 40
    assert mask.sum(axis=1).min() < 40
    assert (mask[:, 0] == 1).all()
    assert np.array_equal(adj, adj.transpose(0, 2, 1))
    assert np.array_equal(np.diagonal(adj, axis1=1, axis2=2), mask)
    assert np.allclose(np.linalg.norm(features, axis=2), mask, atol=1e-6)
