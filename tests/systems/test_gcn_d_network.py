import contextlib
import functools
import itertools
import json
import shutil

import numpy as np
import oracles_gcn_d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_folders import load_artifact

import fcdeploy
from fcdeploy.cli import main
from fcdeploy.data.features import Features
from fcdeploy.data.labels import renumber
from fcdeploy.deploy.recognise import recognise
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.errors import InputError
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.run.options import Options
from fcdeploy.runtime.survey import survey
from fcdeploy.systems import describe, get_system
from fcdeploy.systems.gcn_d.decode import labels_from_scores
from fcdeploy.systems.gcn_d.inputs import Graphs, Proposals, padded_sizes, proposal_graphs, seeds_of
from fcdeploy.systems.gcn_d.parity import parity_sizes, random_batch
from fcdeploy.systems.gcn_d.spec import (
    NetworkSettings,
    OverlapSettings,
    Recipe,
    SegmentSettings,
    checkpoint_shapes_of,
)
from fcdeploy.systems.settings import settings_as_dict, settings_from_dict

torch = pytest.importorskip("torch")
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint  # noqa: E402
from fcdeploy.deploy.recipe import built_in_names, load_recipe  # noqa: E402
from fcdeploy.systems.gcn_d.network import (  # noqa: E402
    Dsgcn,
    network_from_state_dict,
    passes_from_network,
    plain_outputs,
    settle,
)
from fcdeploy.training.live import LiveEngines  # noqa: E402

D = 9
FORMS = [((6, 4), "max"), ((6, 4), "mean"), ((6, 4), "sum"), ((5,), "max"), ((7, 6, 5), "mean")]


@functools.cache
def random_network(hidden=(6, 4), outputs=1, dim=D, seed=0):
    """A network in float64 with random weights."""
    generator = torch.Generator().manual_seed(seed)
    net = Dsgcn(dim, hidden, outputs).double()
    for tensor in net.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=torch.float64) / 2)
    return net.eval()


def as_arrays(net):
    return {name: tensor.numpy() for name, tensor in net.state_dict().items()}


def settled(net, **network):
    settle(net, Recipe(network=NetworkSettings(**network)))
    return net


def batch_of(b, n, seed, dim=D):
    """Graphs as parity is measured on, in float64, and how many nodes each has."""
    batch = random_batch(dim, b, n, np.random.default_rng(seed))
    batch = {name: array.astype(np.float64) for name, array in batch.items()}
    return batch, (batch["adj"].sum(axis=2) > 0).sum(axis=1)


def by_passes(net, batch, name="detect", dtype=torch.float64):
    """What the exported modules give for a padded batch."""
    passes = passes_from_network(name, net, dtype)
    features, adj = (torch.from_numpy(batch[key]).to(dtype) for key in ("features", "adj"))
    with torch.inference_mode():
        nodes = passes[f"{name}_faces"](features) if f"{name}_faces" in passes else features
        return passes[name](nodes, adj).numpy()


@pytest.mark.parametrize(("hidden", "reduce"), FORMS)
def test_the_plain_network_is_the_published_equations(hidden, reduce):
    """1e-12 in float64, one graph at a time without padding."""
    net = settled(random_network(hidden), reduce=reduce)
    batch, sizes = batch_of(6, 12, 1)
    for x, adj, n in zip(batch["features"], batch["adj"], sizes, strict=True):
        with torch.inference_mode():
            found = float(net(torch.from_numpy(x[None, :n]), torch.from_numpy(adj[None, :n, :n])))
        assert abs(found - oracles_gcn_d.score(as_arrays(net), x[:n], adj[:n, :n], reduce)) < 1e-12


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(FORMS), st.integers(1, 6), st.integers(2, 20), st.integers(0, 2**32 - 1))
def test_products_once_a_face_and_padded_groups_give_the_plain_network_s_scores(form, b, n, seed):
    net = settled(random_network(form[0]), reduce=form[1])
    batch, _ = batch_of(b, n, seed)
    assert np.abs(by_passes(net, batch) - plain_outputs(net, batch)[0]["score"]).max() < 1e-12


@pytest.mark.parametrize("reduce", ["max", "mean", "sum"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_network_that_only_propagates(reduce, times):
    """Its features are negative, too: padding must not win the maximum there."""
    net = settled(random_network(()), reduce=reduce, propagate_only=times)
    batch, sizes = batch_of(7, 11, 3)
    batch["features"][0] = -np.abs(batch["features"][0])
    found = by_passes(net, batch)
    for score, x, adj, n in zip(found, batch["features"], batch["adj"], sizes, strict=True):
        expected = oracles_gcn_d.propagated_score(as_arrays(net), x[:n], adj[:n, :n], times, reduce)
        assert abs(score - expected) < 1e-12
    assert np.abs(found - plain_outputs(net, batch)[0]["score"]).max() < 1e-12


def padded(batch, more, junk):
    """The same graphs with ``more`` rows of padding, whose features are ``junk``."""
    features = np.pad(batch["features"], ((0, 0), (0, more), (0, 0)), constant_values=junk)
    return {"features": features, "adj": np.pad(batch["adj"], ((0, 0), (0, more), (0, more)))}


@pytest.mark.parametrize("junk", [0.0, 1e6, -1e6])
@pytest.mark.parametrize(("hidden", "reduce"), [*FORMS, ((), "max"), ((), "mean"), ((), "sum")])
def test_padding_neither_wins_a_maximum_nor_enters_a_mean_or_a_sum(hidden, reduce, junk):
    """Whatever padded rows hold: their row of adj is 0, and so are the sums that reach the relu."""
    net = settled(random_network(hidden), reduce=reduce, propagate_only=0 if hidden else 2)
    batch, _ = batch_of(5, 10, 4)
    found = by_passes(net, padded(batch, 6, junk))
    assert np.abs(found - plain_outputs(net, batch)[0]["score"]).max() < 1e-12


def test_a_maximum_below_zero_is_what_padding_could_have_won():
    """By hand: one face alone, whose relu outputs are (0, 0) and whose own features are below 0."""
    net = Dsgcn(2, (2,)).double()
    net.layers[0].gc.weight.data = torch.eye(2, dtype=torch.float64)
    net.classifier.weight.data = torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    net.classifier.bias.data.zero_()
    batch = {"features": np.array([[[-1.0, 2.0]]]), "adj": np.ones((1, 1, 1))}
    assert by_passes(net, padded(batch, 3, 0.0)).tolist() == [
        20.0
    ]  # relu(-1) = 0: no padding can be above it
    lone = settled(Dsgcn(2, ()).double(), propagate_only=1)
    lone.classifier.weight.data = torch.tensor([[1.0, 10.0]], dtype=torch.float64)
    lone.classifier.bias.data.zero_()
    assert by_passes(lone, padded(batch, 3, 0.0)).tolist() == [19.0]  # without a relu 0 would beat -1


def test_a_graph_divided_twice_by_its_row_sums_is_as_published():
    """A graph that is not normalised is divided once; one that is, by 1 again; other sums show."""
    net = settled(random_network(), reduce="max")
    batch, _ = batch_of(4, 8, 5)
    raw = {**batch, "adj": batch["adj"] * np.array([2.0, 3.0, 0.5, 7.0])[:, None, None]}
    assert np.abs(by_passes(net, raw) - by_passes(net, batch)).max() < 1e-12


def test_the_other_network_of_the_same_names_is_told_by_its_shape():
    for outputs, network in ((1, "detect"), (2, "segment")):
        for dim, hidden in itertools.product((1, 32), ((8,), (512, 64), (7, 6, 5, 4))):
            shapes = checkpoint_shapes_of(outputs, dim, hidden)
            net = Dsgcn(dim, hidden, outputs)
            assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == shapes
            checkpoints = {"a.pth": shapes}
            if network == "segment":
                with pytest.raises(InputError, match=r"a\.pth: holds a segmentation network only"):
                    recognise(checkpoints)
                checkpoints = {"a.pth": shapes, "b.pth": checkpoint_shapes_of(1, dim, (8,))}
            system, networks, weights = recognise(checkpoints)
            assert (system.name, networks["a.pth"]) == ("gcn-d", network)
            assert weights[network] == {"dim": dim, "hidden": hidden}


def test_a_second_detection_network_predicts_iop_and_needs_a_segmentation():
    det, seg = checkpoint_shapes_of(1, 4, (3,)), checkpoint_shapes_of(2, 5, (3,))
    _, networks, weights = recognise({"iou.pth": det, "iop.pth": det, "seg.pth": seg})
    assert networks == {"iou.pth": "detect", "iop.pth": "purity", "seg.pth": "segment"}
    assert Recipe.for_weights(weights).segment.select == "iop"
    with pytest.raises(InputError, match="hold two detection networks"):
        recognise({"iou.pth": det, "iop.pth": det})
    with pytest.raises(InputError, match=r"c\.pth: holds GCN-D weights of 'detect', as a\.pth does"):
        recognise({"a.pth": det, "b.pth": det, "seg.pth": seg, "c.pth": det})


def test_damaged_checkpoints_are_refused_by_tensor():
    shapes = checkpoint_shapes_of(1, 32, (8, 4))
    with pytest.raises(InputError, match=r"layers\.1\.gc\.weight has shape \(9, 4\) instead of \(8, 4\)"):
        recognise({"x.pth": {**shapes, "layers.1.gc.weight": (9, 4)}})
    with pytest.raises(InputError, match=r"classifier\.bias \(1,\) is missing"):
        recognise({"x.pth": {name: shape for name, shape in shapes.items() if name != "classifier.bias"}})


def test_widths_are_described_with_all_layers():
    assert describe({"detect": {"dim": 32, "hidden": (8, 4)}}) == "32-d features and hidden = (8, 4)"


@pytest.mark.parametrize(
    ("network", "widths", "words"),
    [
        ({}, {"dim": 31, "hidden": (8,)}, "32-d features"),
        ({"featureless": True}, {"dim": 32, "hidden": (8,)}, "ones"),
        ({"propagate_only": 2}, {"dim": 32, "hidden": (8,)}, "propagate_only = 2 and no layers"),
        ({}, {"dim": 32, "hidden": ()}, "layers"),
        ({"stage": "seg"}, {"dim": 32, "hidden": (8,)}, "a segmentation network, too"),
    ],
    ids=str,
)
def test_a_recipe_for_other_weights_says_what_it_is_for(network, widths, words):
    recipe = Recipe(feature_dim=32, network=NetworkSettings(**network))
    assert words in (recipe.mismatch({"detect": widths}) or "")


def test_a_segmentation_network_needs_the_column_that_the_recipe_says():
    weights = {"detect": {"dim": 32, "hidden": (8,)}, "segment": {"dim": 33, "hidden": (8,)}}
    recipe = Recipe.for_weights(weights)
    assert recipe.mismatch(weights) is None
    assert recipe.segment.seed == "degree"
    without = {**weights, "segment": {"dim": 32, "hidden": (8,)}}
    assert "the column of a seed (segment)" in (recipe.mismatch(without) or "")
    assert Recipe.for_weights(without).segment.seed == "none"
    assert Recipe.for_weights(without).mismatch(without) is None


def test_without_layers_a_recipe_has_to_say_how_often_it_propagates():
    with pytest.raises(InputError, match=r"no layers.*\[network\] propagate_only = 2"):
        Recipe.for_weights({"detect": {"dim": 32, "hidden": ()}})
    assert [NetworkSettings(propagate_only=times).depth for times in (False, True, 0, 3)] == [0, 4, 0, 3]


def test_published_recipes_have_as_many_proposal_sets_as_their_names_say():
    counts = {}
    for name in built_in_names():
        if name.startswith("gcn-d"):
            counts[name] = sum(level.keep for _, level in load_recipe(name).levels())
    assert counts == {
        "gcn-d-ms1m-2": 2,
        "gcn-d-ms1m-5": 5,
        "gcn-d-ms1m-8": 8,
        "gcn-d-ms1m-20": 20,
        "gcn-d-deepfashion-2": 2,
        "gcn-d-deepfashion-8": 9,  # as its test file lists them
    }
    assert load_recipe("gcn-d-ms1m-8") == Recipe()


def test_a_recipe_survives_the_manifest_with_merges_of_merges():
    table = {
        "system": "gcn-d",
        "proposals": [
            {"k": 10, "keep": False, "merge": [{"k": 2, "merge": [{"k": 4, "max_parts": 3}]}]},
            {"threshold": 0.5},
        ],
    }
    recipe = settings_from_dict(table, "x.toml")
    assert [name for name, _ in recipe.levels()] == [
        "proposals[0]",
        "proposals[0].merge[0]",
        "proposals[0].merge[0].merge[0]",
        "proposals[1]",
    ]
    assert settings_from_dict(settings_as_dict(recipe), "manifest") == recipe


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"proposals": []}, "there are no [[proposals]]"),
        ({"proposals": [{"keep": False}]}, "has keep = true"),
        ({"proposals": [{"threshold": 1.5}]}, "proposals[0]: threshold = 1.5 is no similarity"),
        ({"proposals": [{"merge": [{"min_parts": 1}]}]}, "proposals[0].merge[0]: min_parts = 1"),
        ({"proposals": [{"step": 0.0}]}, "proposals[0]: step = 0.0"),
        ({"proposals": [{"min_size": 9, "max_size": 8}]}, "2 <= min_size <= max_size"),
        ({"proposals": [{"sv_minsz": 1}]}, "unknown key 'proposals[0].sv_minsz'"),
        ({"proposals": {"k": 3}}, "proposals should be a list"),
        ({"graph": {"edge_weights": "cosine"}}, "graph.edge_weights = 'cosine' is none of unit, similarity"),
        ({"network": {"reduce": "median"}}, "network.reduce = 'median' is none of max, mean, sum"),
        ({"network": {"propagate_only": "yes"}}, "should be true, false or a whole number"),
        ({"network": {"stage": "both"}}, "network.stage = 'both'"),
        ({"segment": {"th_outlier": 2.0}}, "segment.th_outlier = 2.0 is not a probability"),
        ({"segment": {"min_iop": 0.9, "max_iop": 0.1}}, "no range in 0..1"),
        ({"overlap": {"max_iou": -0.1}}, "overlap.max_iou = -0.1 is negative"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_with_key_and_value(table, words):
    with pytest.raises(InputError) as refused:
        settings_from_dict({"system": "gcn-d", **table}, "x.toml")
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_k_of_a_run_replaces_that_of_every_base_and_no_list_is_longer_than_the_faces():
    recipe, notes = Recipe().for_run(100, k=12)
    assert ([base.k for base in recipe.proposals], notes) == ([12, 12, 12], [])
    recipe, notes = Recipe().for_run(40)
    assert [base.k for base in recipe.proposals] == [40, 40, 40]
    assert notes == ["k = 80 is more than the number of faces, 40; k = 40 is used."]
    assert recipe.proposals[0].merge == Recipe().proposals[0].merge


@settings(deadline=None)
@given(st.lists(st.integers(2, 700), min_size=1))
def test_a_graph_is_padded_by_its_own_size_only_and_not_by_much(sizes):
    padded_to = padded_sizes(np.array(sizes))
    assert padded_to.tolist() == [padded_sizes(np.array([size]))[0] for size in sizes]
    for size, width in zip(sizes, padded_to.tolist(), strict=True):
        assert size <= width <= max(size + 3, 1.25 * size)


def some_proposals(count, n, k, seed):
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    sims = rng.random((n, k), dtype=np.float32)
    members = [np.sort(rng.permutation(n)[: rng.integers(2, 50)]) for _ in range(count)]
    offsets = np.cumsum([0, *map(len, members)]).astype(np.int64)
    ks = rng.integers(3, k + 1, count).astype(np.int32)
    proposals = Proposals(offsets, np.concatenate(members).astype(np.int32), ks, np.zeros(count, np.int32))
    return proposals, KnnGraph(ids, sims)


@pytest.mark.parametrize(("rows", "most"), [(100_000, 1000), (128, 1000), (1, 1), (100_000, 3)])
def test_every_proposal_comes_once_with_its_own_graph(rows, most):
    proposals, knn = some_proposals(60, 80, 9, 0)
    chosen = np.arange(1, 60, 2, dtype=np.int32)
    seen = []
    for graphs in proposal_graphs(proposals, chosen, knn, True, rows=rows, most=most):
        b, w = graphs.members.shape
        assert b <= most
        assert b * w <= rows or b == 1
        for row, p in enumerate(graphs.at.tolist()):
            faces = proposals.nodes[proposals.offsets[p] : proposals.offsets[p + 1]].tolist()
            assert graphs.members[row].tolist() == faces + [-1] * (w - len(faces))
            expected, _ = oracles_gcn_d.adjacency(faces, proposals.ks[p], knn.ids, knn.sims, True)
            assert np.array_equal(graphs.adj[row, : len(faces), : len(faces)], expected.astype(np.float32))
        seen += graphs.at.tolist()
    assert sorted(seen) == chosen.tolist()


def test_seeds_are_the_node_of_largest_degree_or_one_that_the_faces_decide_on():
    members = np.array([[3, 5, 9, -1], [0, 1, 2, 4]], dtype=np.int32)
    degrees = np.array([[1.0, 2.0, 2.0, 0.0], [1.0, 1.0, 1.0, 4.0]])
    graphs = Graphs(np.arange(2), members, np.zeros((2, 4, 4), np.float32), degrees)
    assert seeds_of(graphs, "degree").tolist() == [1, 3]
    drawn = np.concatenate(
        [
            seeds_of(Graphs(np.arange(1), members[:1] + 7 * at, graphs.adj[:1], degrees[:1]), "random")
            for at in range(1, 60)
        ]
    )
    assert set(drawn.tolist()) == {0, 1, 2, 3}  # all nodes are real there
    first = seeds_of(graphs, "random")
    assert first.tolist() == seeds_of(graphs, "random").tolist()
    assert first[0] < 3


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sets(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=12),
    st.booleans(),
    st.sampled_from([1.0, 0.5]),
    st.integers(0, 2**32 - 1),
)
def test_outliers_leave_their_proposal_and_are_ranked_last_if_kept(sets, keep_outlier, max_iou, seed):
    rng = np.random.default_rng(seed)
    lists = [sorted(faces) for faces in sets]
    scores = rng.permutation(len(lists)).astype(np.float32)
    probabilities = [rng.choice([0.2, 0.5, 0.75], len(faces)).astype(np.float32) for faces in lists]
    proposals = Proposals(
        np.cumsum([0, *map(len, lists)]).astype(np.int64),
        np.concatenate(lists).astype(np.int32),
        np.zeros(len(lists), np.int32),
        np.zeros(len(lists), np.int32),
    )
    recipe = Recipe(
        segment=SegmentSettings(keep_outlier=keep_outlier), overlap=OverlapSettings(max_iou=max_iou)
    )
    found = labels_from_scores(10, proposals, scores, np.concatenate(probabilities), recipe, "drop")
    ranked = oracles_gcn_d.without_outliers(lists, scores, probabilities, 0.5, keep_outlier)
    kept = oracles_gcn_d.suppress(ranked, max_iou) if max_iou < 1 else range(len(ranked))
    owners = oracles_gcn_d.owner_of_faces(10, [ranked[at] for at in kept])
    assert found.tolist() == renumber(np.array(owners)).tolist()


def test_without_suppression_kept_outliers_only_label_faces_that_nobody_was_sure_of():
    """By hand: face 2 is an outlier of the better proposal and a member of the other; face 5 is nobody's member."""
    proposals = Proposals(
        np.array([0, 3, 6]),
        np.array([0, 1, 2, 2, 3, 5], np.int32),
        np.zeros(2, np.int32),
        np.zeros(2, np.int32),
    )
    scores = np.array([0.9, 0.1], np.float32)
    probability = np.array([0.9, 0.9, 0.1, 0.8, 0.8, 0.2], np.float32)
    kept = labels_from_scores(6, proposals, scores, probability, Recipe(), "singleton")
    assert kept.tolist() == [0, 0, 1, 1, 2, 3]
    recipe = Recipe(segment=SegmentSettings(keep_outlier=False))
    assert labels_from_scores(6, proposals, scores, probability, recipe, "drop").tolist() == [
        0,
        0,
        1,
        1,
        -1,
        -1,
    ]


def test_parity_is_measured_on_few_and_many_nodes_and_on_padding():
    assert max(n for _, n in parity_sizes(Recipe())) == 500
    batch = random_batch(16, 40, 10, np.random.default_rng(0))
    sums = batch["adj"].sum(axis=2)
    assert np.abs(sums[sums > 0] - 1).max() < 1e-6
    assert 0.2 < (sums == 0).mean() < 0.8
    assert np.array_equal(sums == 0, ~batch["features"].any(axis=2))


# Whole runs with networks of every form


RECIPE = """
system = "gcn-d"
feature_dim = 32

[[proposals]]
k = 20
threshold = 0.6
max_size = 60

[[proposals.merge]]
k = 3
max_parts = 5
max_size = 100

"""


@pytest.fixture(scope="module")
def faces(golden):
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:300]


def export(folder, more, *networks):
    """Export networks with RECIPE and ``more``; the bundle and the recipe."""
    paths = []
    for at, net in enumerate(networks):
        paths.append(folder / f"{at}.pth")
        torch.save({name: tensor.float() for name, tensor in net.state_dict().items()}, paths[-1])
    (folder / "recipe.toml").write_text(RECIPE + more)
    recipe = load_recipe(folder / "recipe.toml")
    return export_checkpoint(paths, folder / "gcn-d.onnx", recipe)[0], recipe


@pytest.fixture(scope="module")
def two_networks(tmp_path_factory):
    """A detection and a segmentation network in a bundle."""
    networks = random_network((6, 4), dim=32, seed=1), random_network((5, 4), outputs=2, dim=33, seed=2)
    return export(tmp_path_factory.mktemp("two"), "", *networks)[0], *networks


def with_recipe(bundle, folder, changes):
    """A copy of a bundle whose recipe has these sections instead."""
    shutil.copytree(bundle.path, folder / "changed.onnx")
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    manifest["recipe"] |= changes
    (folder / "changed.onnx/manifest.json").write_text(json.dumps(manifest))
    return folder / "changed.onnx"


def products(folder):
    """Proposals as lists of faces, in order, and all other arrays of a run folder."""
    arrays = {}
    for name in ("knn", "proposals", "scores", "members"):
        arrays |= load_artifact(folder / name)
    arrays["lists"] = [arrays["nodes"][a:b].tolist() for a, b in itertools.pairwise(arrays["offsets"])]
    return arrays


def unit_rows(faces):
    return faces / np.linalg.norm(faces, axis=1, keepdims=True)


def seeded(x, at):
    """Features with the column that marks node ``at``."""
    return np.hstack([x, np.arange(len(x))[:, None] == at])


@pytest.mark.parametrize(
    ("more", "hidden", "dim"),
    [
        ('[network]\nreduce = "mean"', (6, 4), 32),
        ('[network]\nfeatureless = true\nreduce = "sum"\n[graph]\nedge_weights = "similarity"', (6,), 1),
        ("[network]\npropagate_only = 2", (), 32),
        ('[network]\npropagate_only = true\nfeatureless = true\nreduce = "sum"', (), 1),
    ],
    ids=["mean", "featureless", "propagating", "propagating ones"],
)
def test_a_run_scores_proposals_by_the_equations_of_its_network(faces, tmp_path, more, hidden, dim):
    net = random_network(hidden, dim=dim, seed=3)
    bundle, recipe = export(tmp_path, more, net)
    fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "run")
    made, network = products(tmp_path / "run"), recipe.network
    weighted = recipe.graph.edge_weights == "similarity"
    for p in range(0, len(made["lists"]), 5):
        members = made["lists"][p]
        adj, _ = oracles_gcn_d.adjacency(members, 20, made["ids"], made["sims"], weighted)
        x = np.ones((len(members), 1)) if network.featureless else unit_rows(faces)[members]
        if hidden:
            expected = oracles_gcn_d.score(as_arrays(net), x, adj, network.reduce)
        else:
            expected = oracles_gcn_d.propagated_score(as_arrays(net), x, adj, network.depth, network.reduce)
        assert made["score"][p] == pytest.approx(expected, abs=1e-4 if network.reduce == "sum" else 1e-5)


@pytest.mark.parametrize("seed", ["degree", "random"])
def test_a_run_segments_proposals_from_a_seed(two_networks, faces, tmp_path, seed):
    bundle, _, segment = two_networks
    assert list(bundle.passes) == ["detect_faces", "detect", "segment_faces", "segment"]
    assert bundle.manifest["networks"]["segment"]["parity"]["edges"] > 1000
    engine = with_recipe(bundle, tmp_path, {"segment": {"seed": seed}})
    labels = fcdeploy.cluster(faces, engine=engine, run_dir=tmp_path / "run", batch=4)
    made = products(tmp_path / "run")
    probabilities = np.split(made["probability"], made["offsets"][1:-1])
    for members, found in zip(made["lists"], probabilities, strict=True):
        adj, degrees = oracles_gcn_d.adjacency(members, 20, made["ids"], made["sims"], False)
        x = unit_rows(faces)[members]
        seeds = [int(np.argmax(degrees))] if seed == "degree" else range(len(members))
        options = [oracles_gcn_d.score(as_arrays(segment), seeded(x, at), adj) for at in seeds]
        assert min(np.abs(found - option).max() for option in options) < 1e-5
    ranked = oracles_gcn_d.without_outliers(made["lists"], made["score"], probabilities, 0.5, True)
    owners = np.array(oracles_gcn_d.owner_of_faces(len(faces), ranked))
    owners[owners < 0] = len(ranked) + np.arange((owners < 0).sum())
    assert np.array_equal(labels, renumber(owners))
    assert 0.02 < (made["probability"] <= 0.5).mean() < 0.98


def test_only_proposals_of_a_doubtful_predicted_iop_are_segmented(faces, tmp_path):
    """And here the segmentation's input has no column for a seed."""
    detect, purity = (random_network((6, 4), dim=32, seed=seed) for seed in (1, 4))
    segment = random_network((5, 4), outputs=2, dim=32, seed=2)
    more = '[segment]\nseed = "none"\nselect = "iop"\nmin_iop = 0.0\nmax_iop = 1.0\n'
    bundle, _ = export(tmp_path, more, detect, purity, segment)
    assert set(bundle.weights) == {"detect", "purity", "segment"}
    fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "all")
    low, high = (
        float(edge) for edge in np.quantile(products(tmp_path / "all")["iop"].clip(0, 1), [0.3, 0.7])
    )
    sections = {"segment": {"seed": "none", "select": "iop", "min_iop": low, "max_iop": high}}
    engine = with_recipe(bundle, tmp_path, sections)
    fcdeploy.cluster(faces, engine=engine, run_dir=tmp_path / "run")
    made = products(tmp_path / "run")
    doubtful = (made["iop"] >= low) & (made["iop"] <= high)
    parts = np.split(made["probability"], made["offsets"][1:-1])
    assert np.array_equal([np.all(part == 1) for part in parts], ~doubtful)
    assert 0 < doubtful.sum() < len(doubtful)
    for p in (0, int(np.argmax(doubtful))):
        members = made["lists"][p]
        adj, _ = oracles_gcn_d.adjacency(members, 20, made["ids"], made["sims"], False)
        x = unit_rows(faces)[members]
        assert made["iop"][p] == pytest.approx(oracles_gcn_d.score(as_arrays(purity), x, adj), abs=1e-5)
    assert np.abs(parts[p] - oracles_gcn_d.score(as_arrays(segment), x, adj)).max() < 1e-5


def test_a_stage_may_be_left_out_by_the_recipe(two_networks, faces, tmp_path):
    engine = with_recipe(two_networks[0], tmp_path, {"network": {"stage": "det"}})
    fcdeploy.cluster(faces, engine=engine, run_dir=tmp_path / "run")
    assert not (tmp_path / "run/members").exists()


@pytest.mark.parametrize("block", [5, 1])
def test_a_segmentation_is_resumed_within_its_artifact(two_networks, faces, tmp_path, monkeypatch, block):
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
    from fcdeploy.systems.gcn_d import flow

    bundle = two_networks[0]
    expected = fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "straight")
    monkeypatch.setattr(flow, "PROPOSAL_BLOCK", block)
    straight, seen = OnnxRuntimeEngine.run, []

    def run(self, feeds):
        if self.spec.name == "segment":
            seen.append(len(feeds["adj"]))
            if sum(seen) > 12:
                raise OSError("the machine went away")
        return straight(self, feeds)

    with monkeypatch.context() as patched:
        patched.setattr(OnnxRuntimeEngine, "run", run)
        with pytest.raises(OSError, match="went away"):
            fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "run")
    assert np.array_equal(fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "run"), expected)
    again, made = products(tmp_path / "run"), products(tmp_path / "straight")
    assert np.abs(again["probability"] - made["probability"]).max() < 1e-6


def linked_by_definition(parts, vectors, k, threshold):
    """Labels of parts: linked is who is among the k largest inner products of means, the part itself among them."""
    means = np.stack([vectors[members].mean(axis=0) for members in parts]).astype(np.float64)
    products = means @ means.T
    labels = list(range(len(parts)))
    for part in range(len(parts)):
        for other in np.argsort(-products[part], kind="stable")[:k].tolist():
            if other != part and products[part, other] >= threshold:
                old, new = labels[part], labels[other]
                labels = [new if label == old else label for label in labels]
    return labels


def test_merges_of_merges_take_the_parts_of_the_level_below(two_networks, faces, tmp_path):
    """Level 2 of a run against level 1's groups, and every face that they leave alone, merged by definition."""
    second = {"k": 2, "threshold": 0.3, "max_parts": 300, "max_size": 300}
    first = {"k": 3, "max_parts": 5, "min_size": 2, "max_size": 300, "merge": [second]}
    sections = {"proposals": [{"k": 20, "threshold": 0.6, "max_size": 60, "merge": [first]}]}
    engine = with_recipe(two_networks[0], tmp_path, sections)
    fcdeploy.cluster(faces, engine=engine, run_dir=tmp_path / "run")
    made = products(tmp_path / "run")
    level = [
        [faces for faces, of in zip(made["lists"], made["set"], strict=True) if of == at] for at in range(3)
    ]
    alone = sorted(set(range(len(faces))) - set(itertools.chain(*level[1])))
    parts = level[1] + [[face] for face in alone]
    labels = linked_by_definition(parts, unit_rows(faces).astype(np.float32), 2, 0.3)
    groups = [[p for p in range(len(parts)) if labels[p] == label] for label in set(labels)]
    merged = {frozenset(itertools.chain(*(parts[p] for p in group))) for group in groups if len(group) > 1}
    known = {frozenset(faces) for faces in level[0] + level[1]}
    assert {frozenset(faces) for faces in level[2]} == {group for group in merged if len(group) >= 3} - known
    assert len(level[2]) > 3
    kept = {
        "knn",
        "proposals",
        "scores",
        "members",
        "evidence",
        "run.json",
        "run.lock",
        "summary.json",
        "state.json",
        "labels",
        "vectors",
    }
    assert {path.name for path in (tmp_path / "run").iterdir()} == kept  # scratch of every level is gone


def test_artifacts_of_merges_of_merges_are_planned_for():
    deep = {"k": 2, "merge": [{"k": 5}]}
    base = {"k": 20, "merge": [{"k": 3, "merge": [deep, {"k": 7}]}, {"k": 4}]}
    recipe = settings_from_dict({"system": "gcn-d", "feature_dim": 32, "proposals": [base]}, "test")
    system, weights = get_system("gcn-d"), {"detect": {"dim": 32, "hidden": (6, 4)}}
    faces = Features(np.broadcast_to(np.zeros(1, np.float32), (100, 32)), "faces")
    engines = LiveEngines(system, weights, torch.device("cpu"))
    made = {artifact.name: artifact for artifact in survey(system, faces, engines, recipe, Options())}
    wide = {name: one.shapes["ids"][0][1] for name, one in made.items() if name.startswith("parts")}
    assert wide == {"parts0": 5, "parts0-0": 8, "parts0-0-0": 6}
    assert {name for name in made if name.startswith("means")} == {"means0", "means0-0", "means0-0-0"}


def test_a_base_may_be_there_for_its_merges_only(two_networks, faces, tmp_path):
    found = {}
    for keep in (True, False):
        (tmp_path / str(keep)).mkdir()
        base = {"k": 20, "threshold": 0.6, "keep": keep, "merge": [{"k": 2}, {"k": 3, "max_parts": 5}]}
        sections = {"proposals": [base, {"k": 20}], "network": {"stage": "det"}}
        engine = with_recipe(two_networks[0], tmp_path / str(keep), sections)
        fcdeploy.cluster(faces, engine=engine, run_dir=tmp_path / str(keep) / "run")
        made = products(tmp_path / str(keep) / "run")
        found[keep] = {(int(of), tuple(group)) for of, group in zip(made["set"], made["lists"], strict=True)}
    assert {of for of, _ in found[True]} == {0, 1, 2, 3}
    assert {of for of, _ in found[False]} == {1, 2, 3}
    groups = {keep: {group for _, group in pairs} for keep, pairs in found.items()}
    assert groups[False] < groups[True]


def test_inspect_shows_proposal_sets(two_networks, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fcdeploy", "inspect", str(two_networks[0].path)])
    with contextlib.suppress(SystemExit):
        main()
    out = " ".join(capsys.readouterr().out.split())
    assert "[[proposals]] k = 20, threshold = 0.6" in out
    assert "[[proposals.merge]] k = 3, threshold = 0.4" in out


def test_a_plan_tells_of_proposals_and_detection(two_networks, faces, tmp_path, capsys, monkeypatch):
    np.save(tmp_path / "faces.npy", faces)
    arguments = ["estimate", str(tmp_path / "faces.npy"), "--engine", str(two_networks[0].path), "--json"]
    monkeypatch.setattr("sys.argv", ["fcdeploy", *arguments])
    with contextlib.suppress(SystemExit):
        main()
    plan = json.loads(capsys.readouterr().out)
    assert plan["files"]["detect_faces"] == {"bytes": 300 * 6 * 4, "kept": False}
    assert plan["files"]["knn"] == {"bytes": 300 * 20 * 8, "kept": True}
    assert {"features", "knn", "proposals", "detect"} <= plan["seconds"].keys()


def test_weights_and_passes_of_a_bundle_are_those_of_its_networks(two_networks):
    weights = read_bundle(two_networks[0].path).weights
    assert weights == {"detect": {"dim": 32, "hidden": (6, 4)}, "segment": {"dim": 33, "hidden": (5, 4)}}
    assert get_system("gcn-d").passes(weights) == two_networks[0].passes


def test_the_network_is_built_from_a_state_dict_alone():
    net = random_network((7, 6, 5), outputs=2)
    again = network_from_state_dict({name: tensor.float() for name, tensor in net.state_dict().items()})
    assert [tuple(layer.gc.weight.shape) for layer in again.layers] == [(9, 7), (7, 6), (6, 5)]
    assert again.classifier.out_features == 2
