"""VE-GCN's graph, candidates, passes and flow against their definition; which checkpoints are its networks."""

import functools

import numpy as np
import oracles_ve_gcn as oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcdeploy
from fcdeploy.deploy.recognise import recognise
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.systems import check_recipe, get_system
from fcdeploy.systems.l_gcn.spec import checkpoint_shapes as lgcn_shapes
from fcdeploy.systems.ve_gcn.decode import best_candidates, score_candidates
from fcdeploy.systems.ve_gcn.edges import edges_of_lists, edges_of_rows, sum_over_edges
from fcdeploy.systems.ve_gcn.inputs import candidate_batches, candidates_of, graphs_among, ignored_faces
from fcdeploy.systems.ve_gcn.parity import edge_batch, run_edge, run_vertex, vertex_batch
from fcdeploy.systems.ve_gcn.spec import (
    EdgeSettings,
    GraphSettings,
    LinkSettings,
    Recipe,
    edge_shapes,
    vertex_shapes,
)

torch = pytest.importorskip("torch")
from fcdeploy.systems.ve_gcn.network import (  # noqa: E402
    GcnE,
    GcnV,
    edge_from_state_dict,
    edge_passes,
    plain_edge,
    plain_vertex,
    vertex_from_state_dict,
    vertex_passes,
)

D, H = 8, 12
EDGE_TH_SIM = 0.9
SYSTEM = get_system("ve-gcn")
OUTPUTS = {
    "confidence": ("confidence", "hidden"),
    "encode": ("own", "near"),
    "convolve": ("own", "near"),
    "score": ("logits",),
}


@functools.cache
def random_network(kind, seed, dim=D, hidden=H):
    """A network in float64 with random weights and biases."""
    generator = torch.Generator().manual_seed(seed)
    net = kind(dim, hidden).double()
    for tensor in net.state_dict().values():
        scale = tensor.shape[0] ** -0.5 if tensor.ndim == 2 else 0.3
        tensor.copy_(scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64))
    return net.eval()


def arrays_of(net):
    return {name: tensor.double().numpy() for name, tensor in net.state_dict().items()}


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


def engines_of(modules):
    return {name: ModuleEngine(module, OUTPUTS[name]) for name, module in modules.items()}


def random_lists(n, k, rng, *, without_self=0.0):
    """Lists with the face itself anywhere, or not at all, and similarities of both signs, most similar first."""
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    for i in range(n):
        if i not in ids[i] and rng.random() >= without_self:
            ids[i, rng.integers(k)] = i
    sims = -np.sort(-rng.uniform(-0.4, 1, (n, k)), axis=1).astype(np.float32)
    return ids, sims


def dense(edges, n):
    graph = np.zeros((n, n))
    for i in range(n):
        row = slice(edges.starts[i], edges.starts[i] + edges.counts[i])
        assert (np.diff(edges.ids[row]) > 0).all()
        graph[i, edges.ids[row]] = edges.sims[row]
    return graph


# The graph


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 25),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([0.0, 0.3, 0.7, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_the_graph_is_the_published_one_to_the_bit(n, k, cut, th_sim, seed):
    """Whatever stands where: the face itself, negative similarities, edges of one direction, lists cut to k."""
    k, cut = min(k, n), min(cut, k, n)
    ids, sims = random_lists(n, k, np.random.default_rng(seed), without_self=0.5)
    edges = edges_of_lists(ids, sims, cut, th_sim)
    assert np.array_equal(dense(edges, n), oracle.similarity_graph(ids, sims, cut, th_sim))


@pytest.mark.parametrize("block", [1, 7, 30])
def test_rows_do_not_depend_on_how_faces_are_cut_into_blocks(block):
    ids, sims = random_lists(30, 6, np.random.default_rng(3))
    whole = edges_of_rows(ids, sims, 0, 30, 6, 0.2)
    parts = [edges_of_rows(ids, sims, at, min(at + block, 30), 6, 0.2) for at in range(0, 30, block)]
    for array, pieces in zip(whole, zip(*parts, strict=True), strict=True):
        assert np.array_equal(array, np.concatenate(pieces))


def test_a_weight_of_exactly_th_sim_is_an_edge_and_a_similarity_below_zero_is_none():
    """Face 0 lists 1 with 0.5 and 2 with -0.25; at th_sim 0.5 and 0 the first is an edge, the second never."""
    ids = np.int32([[0, 1, 2], [1, 0, 2], [2, 0, 1]])
    sims = np.float32([[1, 0.5, -0.25], [1, 0.25, -0.25], [1, -0.25, -0.25]])
    for th_sim, weight in ((0.5, 0.5), (0.0, 0.5), (np.nextafter(0.5, 1), 0.0)):
        graph = dense(edges_of_lists(ids, sims, 3, th_sim), 3)
        assert np.array_equal(graph, [[1, weight, 0], [weight, 1, 0], [0, 0, 1]])


def test_sums_over_edges_are_those_of_the_normalised_graph():
    rng = np.random.default_rng(1)
    ids, sims = random_lists(40, 7, rng)
    table = rng.standard_normal((40, 5))
    edges = edges_of_lists(ids, sims, 7, 0.0)
    expected = oracle.row_normalised(oracle.similarity_graph(ids, sims, 7, 0.0)) @ table
    faces = rng.permutation(40).astype(np.int32)[:23]
    assert np.abs(sum_over_edges(edges, faces, table) - expected[faces]).max() < 1e-14
    single = sum_over_edges(edges, faces, table.astype(np.float32))
    assert single.dtype == np.float32
    assert np.abs(single - expected[faces]).max() < 1e-6


# Candidates


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 8), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_candidates_are_the_neighbors_of_strictly_higher_confidence_in_their_order(n, k, levels, seed):
    rng = np.random.default_rng(seed)
    ids, _ = random_lists(n, min(k, n), rng)
    confidence = rng.integers(0, levels, n).astype(np.float32)  # many are equal
    centres = rng.permutation(n).astype(np.int32)
    found = candidates_of(ids, confidence, centres)
    for g, centre in enumerate(centres):
        rows = slice(found.starts[g], found.starts[g + 1])
        assert found.faces[rows].tolist() == oracle.higher(ids[centre], confidence, centre)
        assert np.array_equal(ids[centre, found.places[rows]], found.faces[rows])


def test_the_graph_among_candidates_is_cut_out_and_normalised():
    rng = np.random.default_rng(2)
    ids, sims = random_lists(30, 9, rng)
    confidence = rng.standard_normal(30).astype(np.float32)
    candidates = candidates_of(ids, confidence, np.arange(30, dtype=np.int32))
    graphs = graphs_among(edges_of_lists(ids, sims, 9, 0.1), candidates)
    graph = oracle.similarity_graph(ids, sims, 9, 0.1)
    seen = 0
    for g in range(30):
        members = candidates.faces[candidates.starts[g] : candidates.starts[g + 1]]
        block = graphs.shares[graphs.offsets[g] : graphs.offsets[g + 1]].reshape(len(members), len(members))
        expected = oracle.row_normalised(graph[np.ix_(members, members)])
        assert np.abs(block - expected).max(initial=0) < 1e-15
        seen += len(members)
    assert seen > 60


@pytest.mark.parametrize(("rows", "most"), [(1, 100), (7, 100), (20, 2), (10**6, 10**6)])
def test_portions_hold_every_centre_once_and_no_more_rows_than_asked(rows, most):
    rng = np.random.default_rng(4)
    ids, sims = random_lists(50, 8, rng)
    candidates = candidates_of(ids, rng.standard_normal(50).astype(np.float32), np.arange(50, dtype=np.int32))
    edges = edges_of_lists(ids, sims, 8, 0.0)
    end = 0
    for part, graphs in candidate_batches(edges, candidates, rows=rows, most=most):
        assert part.start == end
        end = part.stop
        size = part.stop - part.start
        assert size == 1 or (len(graphs.candidates.faces) <= rows and size <= most)
        assert np.array_equal(graphs.candidates.centres, candidates.centres[part])
        inside = slice(candidates.starts[part.start], candidates.starts[part.stop])
        assert np.array_equal(graphs.candidates.faces, candidates.faces[inside])
    assert end == 50


def test_the_faces_of_lowest_confidence_are_ignored_equal_ones_by_number():
    """floor(5 x 0.5) = 2: face 3, the lowest, and of the equal 0, 2 and 4 the first."""
    confidence = np.float32([0.5, 0.9, 0.5, 0.1, 0.5])
    assert ignored_faces(confidence, 0.5).tolist() == [True, False, False, True, False]
    assert ignored_faces(confidence, 0.7).sum() == 3  # of 3.5
    assert not ignored_faces(confidence, 0.0).any()
    assert ignored_faces(confidence, 1.0).all()


def test_of_equally_good_candidates_the_nearest_is_taken_and_large_odds_do_not_saturate():
    """In float32 log-softmax is 0 at a difference of 20 and of 30 alike."""
    logits = np.float32([[0, 1], [0, 1], [1, 0], [0, 20], [0, 30]])
    assert best_candidates(logits, np.int64([0, 3, 5])).tolist() == [0, 4]


# The networks


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 40), st.integers(1, 12), st.sampled_from([(8, 12), (3, 7)]), st.integers(0, 2**32 - 1))
def test_gcn_v_s_pass_gives_the_plain_network_and_that_the_equations(n, k, widths, seed):
    """1e-12 in float64: what moves is the rounding."""
    net = random_network(GcnV, 0, *widths)
    batch = vertex_batch(widths[0], n, k, np.random.default_rng(seed))
    batch["features"] = batch["features"].astype(np.float64)
    plain, _ = plain_vertex(net, batch)
    found = run_vertex(engines_of(vertex_passes(net, torch.float64)), batch)
    graph = oracle.similarity_graph(batch["ids"], batch["sims"], k, 0.0)
    expected = oracle.confidence(arrays_of(net), batch["features"], graph)
    for name, array in zip(("confidence", "hidden"), expected, strict=True):
        assert plain[name].shape == found[name].shape == array.shape
        assert np.abs(plain[name] - array).max() < 1e-12
        assert np.abs(found[name] - array).max() < 1e-12


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 6), st.integers(1, 15), st.sampled_from([(8, 12), (3, 7)]), st.integers(0, 2**32 - 1))
def test_gcn_e_s_passes_give_the_plain_network_and_that_the_equations(b, n, widths, seed):
    """1e-12 of the scale in float64; candidates connected to nobody are among these."""
    net = random_network(GcnE, 1, *widths)
    batch = edge_batch(widths[0], b, n, np.random.default_rng(seed))
    batch["features"] = batch["features"].astype(np.float64)
    plain = plain_edge(net, batch)[0]["logits"]
    found = run_edge(engines_of(edge_passes(net, torch.float64)), batch)["logits"]
    graph = oracle.similarity_graph(batch["ids"], batch["sims"], 10**6, 0.0)
    for at, (centre, members) in enumerate(zip(batch["centres"], batch["candidates"], strict=True)):
        expected = oracle.logits(arrays_of(net), batch["features"], graph, centre, members)
        scale = np.abs(expected).max()
        assert np.abs(plain[at] - expected).max() < 1e-12 * scale
        assert np.abs(found[at] - expected).max() < 1e-12 * scale


def test_a_candidate_whose_values_are_not_finite_makes_its_centre_s_logits_nan():
    """A maximum with zero would hide it; the logits of other centres stay."""
    net, batch = random_network(GcnE, 1), edge_batch(D, 3, 4, np.random.default_rng(0))
    batch["features"] = batch["features"].astype(np.float64)
    engines = engines_of(edge_passes(net, torch.float64))
    expected = run_edge(engines, batch)["logits"]

    class Broken(ModuleEngine):
        def run(self, feeds):
            outputs = super().run(feeds)
            outputs["near"][5] = np.nan  # of the second centre
            return outputs

    engines["convolve"] = Broken(engines["convolve"].module, OUTPUTS["convolve"])
    found = run_edge(engines, batch)["logits"]
    assert np.isnan(found[1]).all()
    assert np.array_equal(found[[0, 2]], expected[[0, 2]])


def test_batches_of_any_size_give_the_same_logits():
    rng = np.random.default_rng(5)
    net = random_network(GcnE, 1)
    engines = engines_of(edge_passes(net, torch.float64))
    ids, sims = random_lists(60, 9, rng)
    candidates = candidates_of(ids, rng.standard_normal(60).astype(np.float32), np.arange(60, dtype=np.int32))
    edges = edges_of_lists(ids, sims, 9, 0.0)
    tables = engines["encode"].run({"features": rng.standard_normal((60, D))})
    origin = engines["encode"].run({"features": np.zeros((1, D))})

    def scored(rows, most):
        batches = candidate_batches(edges, candidates, rows=rows, most=most)
        return np.concatenate([found for _, found in score_candidates(engines, tables, origin, batches)])

    whole = scored(10**6, 10**6)
    assert len(whole) == len(candidates.faces)
    for rows, most in ((1, 1), (17, 5)):
        assert np.abs(scored(rows, most) - whole).max() < 1e-13 * np.abs(whole).max()


# The flow


@pytest.fixture(scope="module")
def engines(tmp_path_factory):
    """Bundles of random GCN-V and GCN-E, by what their links are between; H differs from D."""
    pytest.importorskip("onnxscript")
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    folder = tmp_path_factory.mktemp("ve")
    torch.save(random_network(GcnV, 2).float().state_dict(), folder / "v.pth")
    for features, dim in (("transformed", H), ("input", D)):
        torch.save(random_network(GcnE, 3, dim, 16).float().state_dict(), folder / f"{features}.pth")
    made = {}
    for features in ("transformed", "input"):
        recipe = Recipe(
            feature_dim=D,
            graph=GraphSettings(k=9, th_sim=0.1),
            links=LinkSettings(features, 12, 0.4),
            edge=EdgeSettings(th_sim=EDGE_TH_SIM, ignore_ratio=0.4),
        )
        for name, networks in (("v", ("v",)), ("ve", ("v", features))):
            paths = [folder / f"{network}.pth" for network in networks]
            made[name, features] = export_checkpoint(paths, folder / f"{name}-{features}.onnx", recipe)[0]
    return made


@pytest.mark.parametrize("features", ["input", "transformed"])
@pytest.mark.parametrize("networks", ["v", "ve"])
def test_a_run_links_whom_the_equations_link(networks, features, engines, tmp_path):
    """From the run's own confidences and lists: which links there are does not hang on rounding."""
    from run_folders import load_artifact

    rng = np.random.default_rng(8)
    people = rng.standard_normal((12, D))
    faces = (people[rng.integers(0, 12, 150)] + 0.5 * rng.standard_normal((150, D))).astype(np.float32)
    folder = tmp_path / "run"
    labels = fcdeploy.cluster(faces, engine=engines[networks, features].path, run_dir=folder)
    knn, vertex = load_artifact(folder / "knn"), load_artifact(folder / "confidence")
    unit = (faces / np.linalg.norm(faces, axis=1, keepdims=True)).astype(np.float64)
    assert knn["ids"].shape == (150, 9 if features == "transformed" else 12)
    graph = oracle.similarity_graph(knn["ids"], knn["sims"], 9, 0.1)
    conf, hidden = oracle.confidence(arrays_of(random_network(GcnV, 2)), unit, graph)
    assert np.abs(vertex["confidence"] - conf).max() < 1e-5
    lists, seen = knn, unit
    if features == "transformed":
        assert np.abs(vertex["hidden"] - hidden).max() < 1e-5
        lists = load_artifact(folder / "transformed_knn")
        seen = hidden / np.linalg.norm(hidden, axis=1, keepdims=True)
        exact = (seen @ seen.T)[np.arange(150)[:, None], lists["ids"]]
        assert np.abs(exact - lists["sims"]).max() < 1e-5
    ignored = set(np.argsort(vertex["confidence"], kind="stable")[:60].tolist())
    edges = oracle.similarity_graph(lists["ids"], lists["sims"], 12, EDGE_TH_SIM)
    net = arrays_of(random_network(GcnE, 3, H if features == "transformed" else D, 16))
    peaks = oracle.peaks(
        lists["ids"],
        vertex["confidence"],
        set(range(150)) if networks == "v" else ignored,
        lambda i, members: oracle.logits(net, seen, edges, i, members),
    )
    found = load_artifact(folder / "links")
    links = {tuple(pair) for pair in found["ids"].tolist()}
    near = {
        (i, int(j)): s for i in range(150) for j, s in zip(lists["ids"][i], lists["sims"][i], strict=True)
    }
    wanted = {
        (i, int(peaks[i]))
        for i in range(150)
        if peaks[i] >= 0 and float(np.float32(1) - near[i, int(peaks[i])]) < 1 - 0.4
    }
    assert links == wanted
    assert 10 < len(links) < 150
    assert (labels[found["ids"][:, 0]] == labels[found["ids"][:, 1]]).all()
    if networks == "ve":
        nearest = oracle.peaks(lists["ids"], vertex["confidence"], set(range(150)), None)
        assert (peaks != nearest).sum() > 5
        whole = oracle.similarity_graph(lists["ids"], lists["sims"], 12, 0.0)
        otherwise = oracle.peaks(
            lists["ids"],
            vertex["confidence"],
            ignored,
            lambda i, members: oracle.logits(net, seen, whole, i, members),
        )
        assert (peaks != otherwise).any()  # edges that th_sim cuts matter


def test_with_nobody_to_ask_about_the_second_network_changes_nothing(engines):
    """ignore_ratio 1 is GCN-V alone on the same lists."""
    faces = np.random.default_rng(9).standard_normal((80, D)).astype(np.float32)
    alone, both = engines["v", "transformed"].path, engines["ve", "transformed"].path
    expected = fcdeploy.cluster(faces, engine=alone, tau=0.93)
    assert 1 < expected.max() < 79
    ignored = {"edge.ignore_ratio": 1.0}
    assert np.array_equal(fcdeploy.cluster(faces, engine=both, tau=0.93, settings=ignored), expected)
    assert not np.array_equal(fcdeploy.cluster(faces, engine=both, tau=0.93), expected)


def test_a_link_has_to_be_shorter_than_one_minus_tau_not_as_short(engines):
    """Two faces at a right angle to a third, 0.5 similar to each other: tau 0.5 cuts them, just below it does not."""
    faces = np.zeros((3, D), dtype=np.float32)
    faces[0, 0] = faces[2, 7] = 1
    faces[1, :4] = 0.5
    engine = engines["v", "input"].path
    with pytest.warns(FcdeployWarning, match="k = 12 is more"):
        cut = fcdeploy.cluster(faces, engine=engine, tau=0.5)
    with pytest.warns(FcdeployWarning, match="k = 12 is more"):
        kept = fcdeploy.cluster(faces, engine=engine, tau=0.499)
    assert (cut.tolist(), kept.tolist()) == ([0, 1, 2], [0, 0, 1])


def test_a_face_whose_transformed_feature_is_zero_is_clustered(tmp_path):
    """conv1's bias of -1 and weights of 0 leave no face a hidden feature: no similarity, no link."""
    pytest.importorskip("onnxscript")
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    net = GcnV(D, H)
    net.conv1.weight.data.zero_()
    net.conv1.bias.data.fill_(-1)
    torch.save(net.state_dict(), tmp_path / "v.pth")
    recipe = Recipe(feature_dim=D, graph=GraphSettings(4), links=LinkSettings("transformed", 4, 0.5))
    bundle, _ = export_checkpoint(tmp_path / "v.pth", tmp_path / "v.onnx", recipe)
    faces = np.random.default_rng(1).standard_normal((20, D)).astype(np.float32)
    assert np.array_equal(fcdeploy.cluster(faces, engine=bundle.path), np.arange(20))


@pytest.mark.parametrize("output", ["confidence", "hidden", "own"])
def test_values_that_are_not_finite_stop_the_run(output, engines, monkeypatch):
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine

    straight = OnnxRuntimeEngine.run

    def run(self, feeds):
        outputs = straight(self, feeds)
        if output in outputs:
            outputs[output] = np.full_like(outputs[output], np.inf)
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    faces = np.random.default_rng(9).standard_normal((80, D)).astype(np.float32)
    with pytest.raises(FcdeployError, match="not finite"):
        fcdeploy.cluster(faces, engine=engines["ve", "transformed"].path)


# Checkpoints


def test_a_checkpoint_s_names_and_shapes_are_those_of_the_module():
    for net, shapes in (
        (GcnV(5, 6), vertex_shapes(5, 6)),
        (GcnE(5, 6), edge_shapes(5, 6)),
        (GcnE(5, 7), edge_shapes(5, 7)),
    ):
        assert {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()} == shapes
    vertex, edge = GcnV(5, 6), GcnE(5, 6)
    assert vertex_from_state_dict(vertex.state_dict()).conv1.weight.equal(vertex.conv1.weight)
    assert edge_from_state_dict(edge.state_dict()).conv4.weight.equal(edge.conv4.weight)


def test_only_bn0_tells_gcn_e_from_l_gcn():
    """At 512 hidden features all other names and shapes are the same."""
    vertex, edge, lgcn = vertex_shapes(256, 512), edge_shapes(512, 512), lgcn_shapes(512)
    assert {name: shape for name, shape in lgcn.items() if not name.startswith("bn0")} == edge
    system, networks, weights = recognise({"v": vertex, "e": edge})
    assert (system.name, networks) == ("ve-gcn", {"v": "vertex", "e": "edge"})
    assert weights == {"vertex": {"dim": 256, "hidden": 512}, "edge": {"dim": 512, "hidden": 512}}
    assert recognise({"v": vertex})[0].name == "ve-gcn"
    assert recognise({"l": lgcn})[0].name == "l-gcn"
    old = {name: shape for name, shape in lgcn.items() if name != "bn0.num_batches_tracked"}
    assert recognise({"l": old})[0].name == "l-gcn"


@pytest.mark.parametrize(
    ("checkpoints", "words"),
    [
        ({"e": edge_shapes(512, 512)}, "give GCN-V's checkpoint, too"),
        ({"v": vertex_shapes(256, 512), "e": edge_shapes(128, 512)}, "GCN-E is for 128-d features, GCN-V takes 256-d"),
        ({"e": {**edge_shapes(512, 512), "classifier.2.weight": (1, 256)}}, r"2.weight has shape \(1, 256\) instead"),
        ({"v": {**vertex_shapes(256, 512), "classifier.2.weight": (2, 512)}}, r"has shape \(2, 512\) instead"),
        ({"v": vertex_shapes(256, 512), "l": lgcn_shapes(512)}, "v holds VE-GCN weights; l holds L-GCN weights"),
        ({"v": vertex_shapes(256, 512), "w": vertex_shapes(256, 512)}, "holds VE-GCN weights of 'vertex', as v does"),
    ],
    ids=["edge alone", "other widths", "regressor", "two outputs", "two systems", "two of one"],
)  # fmt: skip
def test_checkpoints_that_make_no_system_are_refused_in_one_sentence(checkpoints, words):
    with pytest.raises(InputError, match=words):
        recognise(checkpoints)


# Recipes


def test_weights_without_a_recipe_have_the_published_settings():
    vertex = {"vertex": {"dim": 128, "hidden": 512}}
    assert SYSTEM.recipe.for_weights(vertex) == Recipe(feature_dim=128)
    both = SYSTEM.recipe.for_weights({**vertex, "edge": {"dim": 512, "hidden": 512}})
    assert both == Recipe(feature_dim=128, links=LinkSettings("transformed", 160, 0.8))
    on_input = SYSTEM.recipe.for_weights({**vertex, "edge": {"dim": 128, "hidden": 512}})
    assert on_input.links.features == "input"


def test_a_recipe_says_what_gcn_e_is_given():
    weights = {"vertex": {"dim": 16, "hidden": 8}, "edge": {"dim": 8, "hidden": 8}}
    check_recipe(SYSTEM, Recipe(feature_dim=16, links=LinkSettings("transformed")), weights, "r")
    with pytest.raises(InputError, match="a GCN-E of input features, 16-d ones"):
        check_recipe(SYSTEM, Recipe(feature_dim=16), weights, "r")
    with pytest.raises(InputError, match="256-d features"):
        check_recipe(SYSTEM, Recipe(), weights, "r")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"graph": GraphSettings(k=0)}, "must be positive"),
        ({"links": LinkSettings(features="raw")}, "links.features = 'raw'"),
        ({"links": LinkSettings(tau=1.5)}, "links.tau = 1.5"),
        ({"graph": GraphSettings(th_sim=-0.1)}, "graph.th_sim = -0.1"),
        ({"edge": EdgeSettings(ignore_ratio=1.1)}, "edge.ignore_ratio = 1.1"),
        ({"edge": EdgeSettings(th_sim=2)}, "edge.th_sim = 2"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(changed, words):
    assert words in Recipe(**changed).problem()


def test_k_sets_both_lists_and_is_no_more_than_there_are_faces():
    weights = {"vertex": {"dim": 16, "hidden": 8}}
    recipe, notes = Recipe().for_run(1000, weights=weights, k=30, tau=0.7)
    assert (recipe.graph.k, recipe.links.k, recipe.links.tau, notes) == (30, 30, 0.7, [])
    recipe, notes = Recipe(links=LinkSettings(k=160)).for_run(100, weights=weights)
    assert (recipe.graph.k, recipe.links.k) == (80, 100)
    assert notes == ["k = 160 is more than the number of faces, 100; k = 100 is used."]
    with pytest.raises(InputError, match="do not fit together"):
        Recipe().for_run(100, weights=weights, k=0)


def test_an_estimate_counts_the_search_among_transformed_features_only_where_there_is_one():
    assert SYSTEM.searches(Recipe()) == {}
    assert SYSTEM.searches(Recipe(links=LinkSettings("transformed"))) == {"transformed_knn": 1}
