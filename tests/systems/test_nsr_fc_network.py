import functools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.deploy.recognise import recognise
from fcdeploy.errors import InputError
from fcdeploy.graph.connectivity import candidates_and_certain, symmetric_scores
from fcdeploy.graph.entering import Entering
from fcdeploy.graph.links import NO_LINK
from fcdeploy.run.options import Options
from fcdeploy.systems import describe, get_system
from fcdeploy.systems.nsr_fc import spec
from fcdeploy.systems.nsr_fc.decode import distance, place_of_link, probability
from fcdeploy.systems.nsr_fc.flow import strongest_links
from fcdeploy.systems.nsr_fc.inputs import list_batches, position_batches, position_code
from fcdeploy.systems.nsr_fc.parity import PARITY, pce_batch, rescore_batch
from fcdeploy.systems.nsr_fc.spec import NETWORKS, Recipe, link_of, problem, refusal

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from fcdeploy.systems.nsr_fc import network  # noqa: E402

D, K, FF = 16, 8, 24  # D + K and D + 2 K are multiples of the 8 heads


def randomised(net, seed):
    """The network in float64 with random weights, norms near 1, whose attention is alive."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in net.double().state_dict().items():
        scale = 2 * tensor.shape[-1] ** -0.5 if tensor.ndim == 2 else 0.3
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
        if "norm" in name and name.endswith("weight"):
            tensor.add_(1)
    return net.eval()


@functools.cache
def random_network(name, seed=0):
    makers = {
        "rescore": lambda: network.Rescore(D, FF, 1),
        "rescore_pre": lambda: network.Rescore(D, FF, 2, final=True),
        "lce": lambda: network.Lce(D, K, FF, 3),
        "pce": lambda: network.Pce(D, K, FF, 3, 40),
    }
    return randomised(makers[name](), seed)


def features_of(b, rows, seed):
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal((b, rows, D)))
    return drawn / drawn.norm(dim=-1, keepdim=True)


def torch_encoder(net):
    """PyTorch's own pre-norm encoder with the same weights, which load under the same names."""
    first = net.encoder.layers[0]
    width, ff = first.linear1.in_features, first.linear1.out_features
    layer = nn.TransformerEncoderLayer(width, 8, ff, batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, len(net.encoder.layers), enable_nested_tensor=False).double()
    encoder.load_state_dict(net.encoder.state_dict())
    return encoder.eval()


def gram(x):
    return torch.cat([x, torch.einsum("bid,bjd->bij", x, x)], dim=-1)


class TorchRescore:
    """The published network with PyTorch's own attention, sequence first as it takes it by default."""

    def __init__(self, net):
        self.net = net
        self.attention = []
        for layer in net.encoder.layers:
            attention = nn.MultiheadAttention(D, 8).double()
            attention.load_state_dict(layer.self_attn.state_dict())
            self.attention.append(attention.eval())

    def __call__(self, x, code):
        """x (s, t, d) attended along s, code (1, t, d) or (s, 1, d) -> logits of pairs along axis 1."""
        pre = self.net.encoder.norm is not None
        for attention, layer in zip(self.attention, self.net.encoder.layers, strict=True):
            value = layer.norm1(x) if pre else x
            x = x + attention(value + code, value + code, value)[0]
            if pre:
                x = x + layer.linear2(torch.relu(layer.linear1(layer.norm2(x))))
            else:
                x = layer.norm1(x)
                x = layer.norm2(x + layer.linear2(torch.relu(layer.linear1(x))))
        return self.net.encoder.norm(x) if pre else x


def rescored_by_torch(net, x, code, across_neighbors=False):
    encoder = TorchRescore(net)
    if across_neighbors:
        y = encoder(x.transpose(0, 1), code[:, None]).transpose(0, 1)
    else:
        y = encoder(x, code[None])
    anchor = y[:, 0].unsqueeze(1).repeat(1, y.shape[1], 1)
    return net.clf(torch.cat([anchor, y], 2)).squeeze(2)


@pytest.mark.parametrize("name", ["rescore", "rescore_pre"])
@pytest.mark.parametrize("across_neighbors", [False, True])
def test_re_scoring_is_pytorch_s_attention_along_the_batch_or_the_neighbors(name, across_neighbors):
    """1e-12 in float64, with the norms behind (as published) and in front."""
    net, x = random_network(name), features_of(9, 5, 1)
    code = torch.from_numpy(position_code(5, D)).double()
    with torch.inference_mode():
        expected = rescored_by_torch(net, x, code, across_neighbors)
        assert (net(x, code, across_neighbors) - expected).abs().max() < 1e-12
        other = net(x, code, not across_neighbors)
    assert (other - expected).abs().median() > 1e-3


def test_in_batches_other_faces_count_and_across_neighbors_they_do_not():
    net, x = random_network("rescore"), features_of(9, 5, 2)
    code = torch.from_numpy(position_code(5, D)).double()
    with torch.inference_mode():
        whole, part = net(x, code), net(x[:4], code)
        assert (whole[:4] - part).abs().median() > 1e-4
        whole, part = net(x, code, True), net(x[:4], code, True)
    assert (whole[:4] - part).abs().max() < 1e-12


def test_the_code_moves_query_and_key_but_not_the_value():
    """Added to the features instead, or not at all, the scores are others."""
    net, x = random_network("rescore"), features_of(9, 5, 3)
    code = torch.from_numpy(position_code(5, D)).double()
    with torch.inference_mode():
        right, without, to_all = net(x, code, True), net(x, 0 * code, True), net(x + code, 0 * code, True)
    assert (right - without).abs().median() > 1e-4
    assert (right - to_all).abs().median() > 1e-4


def test_the_position_code_is_the_published_one():
    """By hand: position 0 is 0, 1, 0, 1, ...; the first pair turns by one radian a position, the last hardly."""
    code = position_code(3, 4)
    assert code[0].tolist() == [0, 1, 0, 1]
    assert np.abs(code[2] - [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)]).max() < 1e-6
    whole = position_code(80, 512)
    exact = np.arange(80)[:, None] * 10000.0 ** (-np.arange(0, 512, 2) / 512)
    assert np.abs(whole[:, 0::2] - np.sin(exact)).max() < 1e-5
    assert np.abs(whole[:, 1::2] - np.cos(exact)).max() < 1e-5


@pytest.mark.parametrize("name", ["rescore", "rescore_pre"])
@pytest.mark.parametrize("most", [1, 3, 5])
def test_the_passes_give_the_batch_s_logits_a_few_positions_at_a_time(name, most):
    net = random_network(name)
    passes = network.rescore_passes(net, torch.float64)
    table = features_of(1, 30, 4)[0]
    ids = np.random.default_rng(0).integers(0, 30, (7, 5)).astype(np.int32)
    code = position_code(5, D)
    with torch.inference_mode():
        expected = net(table[ids], torch.from_numpy(code).double())
        first = passes["rescore_first"](table[ids[:, 0]])
        found = np.empty((7, 5))
        for part, feeds in position_batches(table.numpy().astype(np.float32), ids, code, most):
            gathered = table[np.ascontiguousarray(ids[:, part].T)]
            assert np.abs(feeds["features"] - gathered.numpy()).max() < 1e-7
            code_at = torch.from_numpy(feeds["code"]).double()
            found[:, part] = passes["rescore"](gathered, code_at, first).numpy().T
        assert np.abs(found - expected.numpy()).max() < 1e-12
        across = passes["rescore_neighbors"](table[ids], torch.from_numpy(code).double())
        expected = net(table[ids], torch.from_numpy(code).double(), across_neighbors=True)
        assert (across - expected).abs().max() < 1e-12


def test_lcenet_is_pytorch_s_encoder_over_features_and_gram_matrix():
    net, x = random_network("lce"), features_of(6, K, 5)
    with torch.inference_mode():
        y = torch_encoder(net)(gram(x))
        expected = net.classifier(torch.cat([y[:, :1].repeat(1, K, 1), y], dim=-1))
        assert (net(x) - expected).abs().max() < 1e-11
        assert (network.lce_passes(net, torch.float64)["connect"](x) - expected).abs().max() < 1e-11


def test_pcenet_is_pytorch_s_encoder_and_its_head_on_two_rows():
    net, x = random_network("pce"), features_of(6, 2 * K, 6)
    with torch.inference_mode():
        y = net.adjust_dim(torch_encoder(net)(gram(x))[:, [0, K]])
        expected = net.classifier(torch.cat([x[:, 0], y[:, 0], x[:, K], y[:, 1]], dim=-1))
        assert (net(x) - expected).abs().max() < 1e-11
        assert (network.pce_passes(net, torch.float64)["confirm"](x) - expected).abs().max() < 1e-11
        swapped = net(torch.cat([x[:, K:], x[:, :K]], dim=1))
    assert (swapped - expected).abs().median() > 1e-3


@pytest.mark.parametrize("name", ["rescore", "rescore_pre", "lce", "pce"])
def test_a_checkpoint_s_keys_and_shapes_say_what_it_is_and_load_unchanged(name):
    state = {key: tensor.float() for key, tensor in random_network(name).state_dict().items()}
    shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
    kind = name.removesuffix("_pre")
    widths = NETWORKS[kind].widths_from_shapes(shapes)
    assert NETWORKS[kind].checkpoint_shapes(**widths) == shapes
    assert widths["dim"] == D
    again = network.NETWORKS[kind].from_state_dict(state)
    assert not again.training
    assert all(torch.equal(again.state_dict()[key], tensor) for key, tensor in state.items())
    if kind == "rescore":
        system, network_of, weights = recognise({"x.tar": shapes})
        assert (system.name, network_of) == ("nsr-fc", {"x.tar": "rescore"})
        assert describe(weights).startswith("16-d features and ff = 24")


def shapes_of(**networks):
    """Checkpoints of networks with some widths: name -> shapes."""
    widths = {
        "refine": {"dim": 16},
        "rescore": {"dim": 32, "ff": 24, "layers": 1, "norms": 2},
        "lce": {"dim": 16, "k": 8, "ff": 24, "layers": 3},
        "pce": {"dim": 16, "k": 8, "ff": 24, "layers": 3, "hidden": 40},
    }
    return {
        name: NETWORKS[name].checkpoint_shapes(**(widths[name] | more)) for name, more in networks.items()
    }


def test_every_run_of_neighbors_of_the_chain_is_recognised():
    raw = {"rescore": {"dim": 16}}
    for networks, name in (
        ({"refine": {}}, "pse-gcn"),
        ({"rescore": {}}, "nsr-fc"),
        ({"lce": {}, "pce": {}}, "nsr-fc"),
        ({"refine": {}, "rescore": {}}, "nsr-fc"),
        ({**raw, "lce": {}, "pce": {}}, "nsr-fc"),
        ({"pce": {}, "refine": {}, "lce": {}, "rescore": {}}, "nsr-fc"),
    ):
        system, network_of, weights = recognise(shapes_of(**networks))
        assert system.name == name
        assert network_of == {network: network for network in networks}
        assert list(weights) == [network for network in NETWORKS if network in networks]
        assert system.recipe.for_weights(weights).mismatch(weights) is None
        assert system.recipe.for_weights(weights).problem() is None


@pytest.mark.parametrize(
    ("networks", "words"),
    [
        ({"lce": {}}, "LCENet works together with PCENet only; give PCENet's checkpoint"),
        ({"rescore": {}, "pce": {}}, "PCENet works together with LCENet only"),
        ({"refine": {}, "lce": {}, "pce": {}}, "after the re-scoring, not directly after the refinement"),
        ({"refine": {}, "rescore": {"dim": 16}}, "for 16-d features, and the refinement gives 32-d ones"),
        (
            {"rescore": {}, "lce": {}, "pce": {}},
            "for 16-d input features, the networks before them for 32-d ones",
        ),
        ({"lce": {}, "pce": {"k": 16}}, r"LCENet is for .* k = 8, PCENet for .* k = 16; give two that"),
    ],
    ids=str,
)
def test_other_parts_of_the_chain_are_refused_in_one_sentence(networks, words):
    with pytest.raises(InputError, match=words) as refused:
        recognise(shapes_of(**networks))
    assert "\n" not in str(refused.value)
    assert all(name in str(refused.value) for name in networks)


def test_a_damaged_pair_network_is_told_by_the_tensor():
    shapes = shapes_of(pce={})["pce"]
    with pytest.raises(
        InputError, match=r"looks like NSR-FC with 16-d .*, but classifier.4.bias \(2,\) is missing"
    ):
        recognise({"x.pth": {name: shape for name, shape in shapes.items() if name != "classifier.4.bias"}})
    shapes = shapes_of(lce={})["lce"] | {"classifier.2.weight": (3, 16)}
    with pytest.raises(InputError, match=r"NSR-FC .*, but classifier.2.weight has shape \(3, 16\)"):
        recognise({"x.pth": shapes})


WEIGHTS = {name: NETWORKS[name].widths_from_shapes(shapes) for name, shapes in shapes_of(
    refine={}, rescore={}, lce={}, pce={}).items()}  # fmt: skip


def part(*names):
    return {name: WEIGHTS[name] for name in names}


def test_pairs_link_where_both_pair_networks_are_there_and_else_density_peaks():
    assert link_of(WEIGHTS, None) == link_of(part("lce", "pce"), None) == "pairs"
    assert link_of(part("refine", "rescore"), None) == link_of(part("rescore"), None) == "density-peaks"
    assert link_of(WEIGHTS, "density-peaks") == "density-peaks"


@pytest.mark.parametrize(
    ("names", "options", "words"),
    [
        (("rescore",), {"link": "pairs"}, "--link pairs: the engine has no LCENet and PCENet"),
        (("lce", "pce"), {"link": "density-peaks"}, "--link density-peaks: the engine has no re-scoring"),
        (("rescore",), {"hops": (5, 2)}, "--hops: the engine has no refinement"),
        (("lce", "pce"), {"reranked": "x.npy"}, "--reranked: the engine has no refinement"),
        (("lce", "pce"), {"tau": 0.5}, "--tau: is for --link density-peaks"),
        (("refine", "rescore"), {"min_probability": 0.5}, "--min-probability: is for --link pairs"),
    ],
    ids=str,
)
def test_options_that_these_networks_do_not_have_are_refused(names, options, words):
    assert words in refusal(part(*names), Options(**options))
    assert refusal(WEIGHTS, Options()) is None


def test_k_is_that_of_the_weights_where_pairs_link_and_free_elsewhere():
    recipe = Recipe.for_weights(WEIGHTS)
    assert (recipe.pairs.k, recipe.pairs.certain_weights) == (8, (0.1, 0.2, 0.7))
    assert Recipe.for_weights(part("lce", "pce")).pairs.certain_weights == (1, 1, 1)
    settings, notes = recipe.for_run(1000, weights=WEIGHTS, k=40)
    assert (settings.neighborhood.k, settings.rescore.k, settings.pairs.k) == (40, 40, 8)
    assert (settings.neighborhood.hops, notes) == ((40, 10), [])
    with pytest.raises(InputError, match=r"k = 5: the pair networks' weights are for k = 8"):
        recipe.for_run(1000, weights=WEIGHTS, k=5)
    with pytest.raises(InputError, match=r"k = 9: the pair networks' weights"):
        recipe.for_run(1000, weights=part("lce", "pce"), k=9)
    settings, _ = recipe.for_run(1000, weights=WEIGHTS, k=5, link="density-peaks")
    assert settings.rescore.k == 5
    with pytest.raises(InputError, match=r"k = 8 .* only 7 faces"):
        recipe.for_run(7, weights=WEIGHTS)
    settings, notes = recipe.for_run(7, weights=part("refine", "rescore"))
    assert (settings.neighborhood.k, settings.rescore.k, len(notes)) == (7, 7, 1)
    settings, notes = recipe.for_run(1000, weights=part("refine", "rescore"), k=6, hops=(6, 2))
    assert (settings.neighborhood.hops, settings.neighborhood.active, notes) == ((6, 2), 6, [])
    with pytest.raises(InputError, match=r"density_peaks.tau = -0.5 is no distance"):
        recipe.for_run(1000, weights=part("rescore"), tau=-0.5)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 80])
@pytest.mark.parametrize("names", [("refine", "rescore", "lce", "pce"), ("lce", "pce")], ids="+".join)
def test_published_weights_of_certain_links_fit_lists_of_any_length(names, k):
    """The largest similarities count where there are fewer than three."""
    weights = {name: {**WEIGHTS[name], "k": k} if name in ("lce", "pce") else WEIGHTS[name] for name in names}
    recipe = Recipe.for_weights(weights)
    assert recipe.problem() is None
    published = (0.1, 0.2, 0.7) if "rescore" in names else (1, 1, 1)
    assert recipe.pairs.certain_weights == (published[-(k - 1) :] if k > 1 else ())
    assert spec.tunable(weights, Options())[1].values == ((), recipe.pairs.certain_weights)


@pytest.mark.parametrize("seed", range(4))
def test_a_face_reaches_the_strength_of_its_candidate(seed):
    """In lists that begin with a copy of the face, too, which stands for the face there."""
    rng = np.random.default_rng(seed)
    n, k = 9, 5
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    sims, scores = rng.random((2, n, k)).astype(np.float32)
    density = rng.integers(0, 4, n).astype(float)
    run = SimpleNamespace(n=n, settings=SimpleNamespace(pairs=SimpleNamespace(k=k)))
    found = strongest_links(run, {"ids": ids, "sims": sims}, None, {"probability": scores}, density)
    strengths = symmetric_scores(ids, scores, np.arange(n, dtype=np.int32)) * sims
    chosen, _ = candidates_and_certain(ids, strengths, density, np.inf)
    wanted = np.where(ids == chosen[:, None], strengths, 0).max(axis=1)
    assert np.array_equal(found, wanted)
    assert 0 < np.count_nonzero(wanted) < n


@pytest.mark.parametrize(
    ("table", "values", "words"),
    [
        ("rescore", {"batch": 0}, "rescore.batch = 0 is not positive"),
        ("rescore", {"attention": "faces"}, "neither 'batch' nor 'neighbors'"),
        ("density_peaks", {"sigma": 0.0}, "density_peaks.sigma"),
        ("density_peaks", {"transition_sigma": float("nan")}, "density_peaks.transition_sigma"),
        ("density_peaks", {"max_links": 0}, "density_peaks.max_links"),
        ("pairs", {"certain_weights": (1.0, -1.0)}, "pairs.certain_weights"),
        ("pairs", {"k": 3}, "pairs.certain_weights has 3 values, and pairs.k = 3 leaves 2"),
        ("pairs", {"min_probability": 1.5}, "pairs.min_probability"),
        ("neighborhood", {"active": 81}, "neighborhood.active"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_told(table, values, words):
    from dataclasses import replace

    recipe = Recipe()
    assert recipe.problem() is None
    assert words in replace(recipe, **{table: replace(getattr(recipe, table), **values)}).problem()


def test_a_recipe_of_other_weights_says_what_it_is_for():
    recipe = Recipe.for_weights(WEIGHTS)
    assert recipe.mismatch(part("refine", "rescore")) is None
    assert Recipe().mismatch(WEIGHTS) == "256-d features"
    other = dict(WEIGHTS, lce={**WEIGHTS["lce"], "k": 16})
    assert recipe.mismatch(other) == "16-d features and pairs.k = 8"
    assert problem(other) is not None


@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_distances_and_probabilities_are_those_of_a_sigmoid(values):
    logits = np.array(values, dtype=np.float32)
    expected = [1 / (1 + np.exp(-x)) for x in logits.astype(np.float64)]
    assert np.abs(1 - distance(logits) - expected).max() < 1e-6
    pairs = np.stack([np.zeros_like(logits), logits], axis=-1)
    assert np.abs(probability(pairs) - expected).max() < 1e-6
    assert distance(logits).dtype == probability(pairs).dtype == np.float32


@pytest.mark.parametrize("most", [1, 4, 100])
def test_lists_are_gathered_once_each(most):
    rng = np.random.default_rng(0)
    table = rng.standard_normal((30, 6)).astype(np.float32)
    ids = rng.integers(0, 30, (11, 5)).astype(np.int32)
    seen = []
    for part_, feeds in list_batches(table, ids, most):
        features = feeds["features"]
        assert np.array_equal(np.asarray(features), table[ids[part_]])
        assert features.shape[0] <= most
        seen += range(11)[part_]
    assert seen == list(range(11))


def test_parity_batches_are_unit_rows_and_links_of_both_kinds():
    batch = rescore_batch(D, 3, 5, np.random.default_rng(0))
    assert batch["features"].shape == (3, 5, D)
    assert np.array_equal(batch["code"], position_code(5, D))
    links = pce_batch(D, 4, K, np.random.default_rng(0))["features"]
    assert np.allclose(np.linalg.norm(links, axis=-1), 1, atol=1e-6)
    assert {row.tobytes() for row in links[0, :K]} == {row.tobytes() for row in links[0, K:]}
    assert PARITY.keys() == NETWORKS.keys() == network.NETWORKS.keys()


def test_positions_a_call_keep_attention_weights_small():
    assert spec.positions_a_call(512) == 4
    assert spec.positions_a_call(100_000) == 1
    assert spec.positions_a_call(1) == spec.positions_a_call(60) == 8


def test_a_plan_knows_which_passes_a_run_uses():
    load = get_system("nsr-fc").workload
    recipe = Recipe.for_weights(WEIGHTS)
    used = load(recipe, WEIGHTS, Options(inference="exact"))
    assert list(used) == ["encode", "neighborhood", "rescore_first", "rescore", "connect", "confirm"]
    assert abs(used["rescore"].calls * 512 * used["rescore"].lengths["p"] - recipe.rescore.k) < 1e-9
    used = load(recipe, part("refine", "rescore"), Options(inference="layerwise"))
    assert list(used) == ["near1", "similar1", "block1", "similar2", "block2", "rescore_first", "rescore"]


def test_a_new_face_goes_by_its_own_link_then_a_certain_one_then_who_would_link_to_it():
    """And PCENet is asked only where its answer may matter: row 1 has a certain link into the same cluster."""
    clusters = np.tile([7, 1, 2, 3, 1], (6, 1))
    strengths = np.tile([1, 0.9, 0.8, 0.7, 0.6], (6, 1))
    denser, certain, followers = (np.zeros((6, 5), bool) for _ in range(3))
    denser[:4, 1] = True
    certain[1, 4] = True
    certain[2, [2, 4]] = True  # the stronger one leads elsewhere
    followers[:5, [3, 4]] = True
    said = {1: [0.6, np.nan, 0.4, 0.3], 3: [np.nan, np.nan, np.nan, 0.8, 0.2], 4: [np.nan] * 4 + [0.7]}
    asked = []

    def ask(place, follows):
        asked.append((place.tolist(), follows))
        return np.array([said[at][row] if at != NO_LINK else np.nan for row, at in enumerate(place.tolist())])

    found = place_of_link(Entering(denser, certain, followers), strengths, clusters, np.float32(0.5), ask)
    none = NO_LINK
    assert asked == [
        ([1, none, 1, 1, none, none], False),
        ([none, none, none, 3, 3, none], True),
        ([none, none, none, none, 4, none], True),  # of row 4, whose strongest follower is refused
    ]
    assert found[0].tolist() == [1, 4, 2, 3, 4, none]
    np.testing.assert_allclose(found[1], [0.6, 1, 1, 0.8, 0.7, np.nan])
