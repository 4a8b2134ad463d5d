import functools

import numpy as np
import oracles_sepfl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.deploy.recognise import recognise
from fcdeploy.errors import InputError
from fcdeploy.systems import describe, get_system
from fcdeploy.systems.sepfl.decode import accepted, probability
from fcdeploy.systems.sepfl.inputs import face_batches
from fcdeploy.systems.sepfl.parity import parity_sizes, random_batch
from fcdeploy.systems.sepfl.spec import LinkSettings, Recipe, checkpoint_shapes

torch = pytest.importorskip("torch")
from fcdeploy.systems.sepfl.network import (  # noqa: E402
    Sepfl,
    network_from_state_dict,
    passes_from_network,
    plain_outputs,
)

D, K = 12, 9


@functools.cache
def random_network(seed, dim=D, k=K):
    """SEPFL in float64 with random weights, and BatchNorms that have seen links like those tested."""
    generator = torch.Generator().manual_seed(seed)
    net = Sepfl(dim, k).double()
    for name, tensor in net.state_dict().items():
        if tensor.is_floating_point() and not name.endswith("running_var"):
            scale = tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.2
            tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    for norm in (module for module in net.modules() if isinstance(module, torch.nn.BatchNorm1d)):
        norm.weight.data.add_(1)
        norm.momentum = None  # statistics over all that it sees
    plain(net.train(), batch_of(40, 100 + seed, dim, k))
    return net.eval()


def as_arrays(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def batch_of(b, seed, dim=D, k=K, dtype=np.float64):
    """Links as parity is measured on."""
    batch = random_batch(dim, b, k, np.random.default_rng(seed))
    return {name: array.astype(dtype) for name, array in batch.items()}


def plain(net, batch):
    """Logits (b, 2) of the published form, both faces of every link."""
    features, neighbors = (torch.from_numpy(batch[name]) for name in ("features", "neighbors"))
    with torch.inference_mode():
        return net(features[0], neighbors[0], features[1], neighbors[1]).numpy()


def split(net, batch, dtype=torch.float64, swap=False):
    """Logits (b, 2) by the three passes, each face once; swap: with the faces of every link exchanged."""
    passes = passes_from_network(net, dtype)
    features, neighbors = (torch.from_numpy(batch[name]) for name in ("features", "neighbors"))
    with torch.inference_mode():
        face, denser = (
            passes["encode"](x, xk, passes["near"](xk.reshape(-1, xk.shape[-1])).reshape(*xk.shape[:2], -1))
            for x, xk in zip(features, neighbors, strict=True)
        )
        return passes["pair"](*((denser, face) if swap else (face, denser))).numpy()


@pytest.mark.parametrize("seed", range(4))
def test_the_plain_network_is_the_published_equations(seed):
    """1e-12 in float64: which layer mixes what, where the norms stand, and that weights have no softmax."""
    net = random_network(seed)
    batch = batch_of(6, seed)
    found = plain(net, batch)
    for at in range(6):
        faces = [(batch["features"][side, at], batch["neighbors"][side, at]) for side in (0, 1)]
        assert np.abs(found[at] - oracles_sepfl.logits(as_arrays(net), *faces)).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.sampled_from([(4, 1), (4, 2), (12, 9), (7, 30)]), st.integers(0, 2**32 - 1))
def test_a_face_encoded_once_gives_the_plain_network_s_logits(b, widths, seed):
    """1e-12 in float64, whose rounding is 1e-16: folding BatchNorms and Linears moves rounding, nothing else."""
    net = random_network(seed % 3, *widths)
    batch = batch_of(b, seed, *widths)
    assert np.abs(split(net, batch) - plain(net, batch)).max() < 1e-12


def test_a_face_encoded_once_gives_the_plain_network_s_logits_in_float32():
    """1e-6 of the logits' scale, about eight roundings."""
    net = random_network(5)
    batch = batch_of(50, 5, dtype=np.float32)
    expected = plain_outputs(net, batch)[0]["logits"]
    found = split(net, batch, torch.float32)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()


def test_exchanged_faces_are_another_link():
    """Not a matter of rounding: most logits move by a hundredth of their scale and more."""
    net = random_network(1)
    batch = batch_of(60, 1)
    expected = plain(net, batch)
    moved = np.abs(split(net, batch, swap=True) - expected).max(axis=1)
    assert np.median(moved) > 0.01 * np.abs(expected).max()


def test_the_order_of_neighbors_counts():
    net = random_network(2)
    batch = batch_of(20, 2)
    shuffled = {**batch, "neighbors": batch["neighbors"][:, :, ::-1].copy()}
    assert np.abs(split(net, shuffled) - plain(net, shuffled)).max() < 1e-12
    assert np.abs(split(net, shuffled) - plain(net, batch)).max() > 1e-3


def test_a_checkpoint_s_keys_and_shapes_are_the_network_s_and_say_its_widths():
    state = Sepfl(D, K).state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert shapes == checkpoint_shapes(D, K)
    system, network_of, weights = recognise({"x.pth": shapes})
    assert (system.name, network_of) == ("sepfl", {"x.pth": "pairwise"})
    assert weights == {"pairwise": {"dim": D, "k": K}}
    assert describe(weights) == "12-d features and k = 9"
    recipe = get_system("sepfl").recipe.for_weights(weights)
    assert (recipe.feature_dim, recipe.links.k, recipe.mismatch(weights)) == (D, K, None)
    assert recipe.mismatch({"pairwise": {"dim": D, "k": K + 1}}) == "12-d features and k = 9"


def test_checkpoints_that_do_not_run_together_are_named():
    shapes = checkpoint_shapes(D, K)
    with pytest.raises(
        InputError, match=r"^b.pth: holds SEPFL weights of 'pairwise', as a.pth does; give one"
    ):
        recognise({"a.pth": shapes, "b.pth": shapes})
    refine = get_system("pse-gcn").networks["refine"].checkpoint_shapes(dim=D)
    with pytest.raises(
        InputError, match=r"a.pth holds SEPFL weights; b.pth holds PSE-GCN weights: no system"
    ):
        recognise({"a.pth": shapes, "b.pth": refine})


def test_weights_of_another_k_in_one_layer_are_refused():
    shapes = checkpoint_shapes(D, K) | {"token_mix.3.weight": (K + 1, 2 * K)}
    with pytest.raises(
        InputError, match=r"SEPFL with 12-d features and k = 9, but token_mix.3.weight has shape"
    ):
        recognise({"x.pth": shapes})


def test_a_checkpoint_without_batch_counters_gives_the_same_network():
    net = random_network(3)
    state = {name: tensor.float() for name, tensor in net.state_dict().items() if "num_batches" not in name}
    again = network_from_state_dict(state)
    assert not again.training
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("most", [1, 7, 10**6])
def test_batches_hold_every_face_once_with_its_own_neighbors(most):
    rng = np.random.default_rng(0)
    n, k = 60, 5
    vectors, near = (rng.standard_normal((n, width)).astype(np.float32) for width in (4, 16))
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    faces = rng.permutation(n)[:25].astype(np.int32)
    positions = []
    for part, feeds in face_batches(vectors, near, ids, faces, most):
        positions += range(25)[part]
        assert len(feeds["features"]) <= most
        assert np.array_equal(feeds["features"], vectors[faces[part]])
        assert np.array_equal(feeds["neighbors"], vectors[ids[faces[part]]])
        assert np.array_equal(feeds["near"], near[ids[faces[part]]])
    assert positions == list(range(25))


def test_a_link_is_accepted_when_logit_1_is_strictly_larger():
    """By hand; the softmax of (0, log 3) at class 1 is 3 / 4, and logits far apart do not overflow."""
    logits = np.array([[0, np.log(3)], [2, 2], [1, 0], [-5000, 5000], [5000, -5000]], dtype=np.float32)
    assert accepted(logits).tolist() == [True, False, False, True, False]
    assert np.abs(probability(logits) - [0.75, 0.5, 1 / (1 + np.e), 1, 0]).max() < 1e-7


def test_parity_is_measured_on_links_of_both_kinds():
    assert all(k == 80 for _, k in parity_sizes(Recipe()))
    assert sum(b for b, _ in parity_sizes(Recipe())) > 100
    batch = random_batch(16, 40, 10, np.random.default_rng(0))
    x, y = batch["features"]
    assert np.allclose(np.linalg.norm(batch["neighbors"], axis=-1), 1, atol=1e-6)
    assert np.array_equal(batch["neighbors"][:, :, 0], batch["features"])
    assert (x * y).sum(axis=1)[::2].mean() > 0.5 + (x * y).sum(axis=1)[1::2].mean()


def test_the_k_of_a_run_is_that_of_the_weights():
    recipe = Recipe(links=LinkSettings(k=20))
    assert recipe.for_run(20, k=20) == (recipe, [])
    with pytest.raises(InputError, match=r"k = 10: the engine's weights are for k = 20"):
        recipe.for_run(100, k=10)
    with pytest.raises(InputError, match=r"weights are for k = 20 .* only 19 faces"):
        recipe.for_run(19)
