import dataclasses
import json
import shutil

import nsr_case
import numpy as np
import oracles
import oracles_nsr
import pytest
from run_folders import load_artifact

import fcdeploy
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.errors import InputError
from fcdeploy.graph.links import NO_LINK
from fcdeploy.graph.transition import add_received, link_to_peaks, shares, transition_distances
from fcdeploy.systems.nsr_fc import flow
from fcdeploy.systems.nsr_fc.decode import distance
from fcdeploy.systems.nsr_fc.inputs import position_code

torch = pytest.importorskip("torch")
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.systems.nsr_fc.network import NETWORKS  # noqa: E402

N, TOLERANCE = 1283, 1e-5
TAUS = (0.7, 0.5, 0.3, 0.15)


@pytest.fixture(scope="module")
def lists(golden):
    """The golden kNN lists' ids (n, 20) int32."""
    return np.load(golden / "dev/data/faiss_k_20.npz")["data"][:, 0].astype(np.int32)


@pytest.fixture(scope="module")
def refined(golden):
    return np.load(golden / "dev/pse/cluster_feature.npz")["feature"]


@pytest.fixture(scope="module")
def rescored(golden):
    return dict(np.load(golden / "dev/nsr/rescore.npz"))


@pytest.fixture(scope="module")
def peaks(golden):
    return dict(np.load(golden / "dev/nsr/density_peaks.npz"))


@pytest.fixture(scope="module")
def pairs(golden):
    return dict(np.load(golden / "dev/nsr/pairs.npz"))


@pytest.fixture(scope="module")
def chain(nsr_bundle, cut_bundle, tmp_path_factory):
    """The whole chain with the published batches."""
    folder = tmp_path_factory.mktemp("chain") / "nsr.onnx"
    return cut_bundle(nsr_bundle, tuple(nsr_bundle.weights), folder, rescore={"batch": 512})


@pytest.fixture(scope="module")
def live(exported):
    """The re-scoring alone, of weights whose attention is alive; its input is 64-d."""
    return exported(nsr_case.LIVE)


@pytest.fixture(scope="module")
def run_chain(golden, tmp_path_factory):
    """Run the golden features from the authors' kNN and re-ranked lists: labels and the run folder."""
    ranked = tmp_path_factory.mktemp("lists") / "reranking_knn.npy"
    np.save(ranked, np.load(golden / "dev/pse/reranking.npz")["knn"])

    def run(bundle, folder, **options):
        labels = fcdeploy.cluster(
            golden / "dev/data/features.bin",
            engine=bundle.path,
            knn=golden / "dev/data/faiss_k_20.npz",
            reranked=ranked,
            run_dir=folder,
            **options,
        )
        return labels, folder

    return run


@pytest.fixture(scope="module")
def by_pairs(chain, run_chain, tmp_path_factory):
    return run_chain(chain, tmp_path_factory.mktemp("pairs") / "run")


@pytest.fixture(scope="module")
def by_peaks(chain, run_chain, tmp_path_factory):
    return run_chain(chain, tmp_path_factory.mktemp("peaks") / "run", link="density-peaks")


def run_live(golden, bundle, refined, folder, **options):
    fcdeploy.cluster(
        refined, engine=bundle.path, knn=golden / "dev/data/faiss_k_20.npz", run_dir=folder, **options
    )
    return np.load(folder / "rescored/dists.npy")


def network(checkpoint, name, kind):
    return NETWORKS[kind].from_state_dict(load_state_dict(checkpoint(name)))


def sorted_lists(lists, dists):
    order = np.argsort(dists, axis=1, kind="stable")
    return np.take_along_axis(lists, order, axis=1), np.take_along_axis(dists, order, axis=1)


# Re-scoring


def test_the_plain_network_gives_the_authors_scores_batch_by_batch(checkpoint, lists, refined, rescored):
    """Both checkpoints, batches of 512 in the order of the file with the last one short; and a batch of 64."""
    code = torch.from_numpy(position_code(20, 64))
    table = torch.from_numpy(refined / np.linalg.norm(refined, axis=1, keepdims=True))
    for name in ("checkpoint", "checkpoint_live"):
        net = network(checkpoint, f"nsr/{name}.tar", "rescore")
        with torch.inference_mode():
            found = np.concatenate([net(table[lists[at : at + 512]], code).numpy() for at in (0, 512, 1024)])
            first = net(table[lists[:64]], code).numpy()
        if name == "checkpoint":
            assert np.abs(distance(found) - rescored["dists"]).max() < TOLERANCE
            assert np.abs(1 - distance(first) - rescored["sigmoid_batch64"][:64]).max() < TOLERANCE
        else:
            scale = np.abs(rescored["live_logits"]).max()
            assert np.abs(found - rescored["live_logits"]).max() < TOLERANCE * scale
            assert np.abs(first - rescored["live_logits_batch64_first"]).max() < TOLERANCE * scale
            # That the batch matters shows in these weights.
            assert np.abs(found[:64] - first).max() > 1e-3


def test_the_engine_gives_the_authors_scores_of_live_attention(golden, live, refined, rescored, tmp_path):
    found = run_live(golden, live, refined, tmp_path / "run")
    assert np.abs(found - distance(rescored["live_logits"])).max() < TOLERANCE


def test_the_runtime_s_blocks_change_nothing_and_the_recipe_s_batch_does(
    golden, live, refined, rescored, cut_bundle, tmp_path, monkeypatch
):
    """To the byte: positions a call, blocks, threads and --batch; a batch of 64 gives the authors' scores of one."""
    expected = run_live(golden, live, refined, tmp_path / "run")
    for name, block in (("small", 7), ("large", 1100)):
        monkeypatch.setattr(flow, "RESCORE_BLOCK", block)
        monkeypatch.setattr(flow, "LINK_BLOCK", 2 * block)
        again = run_live(golden, live, refined, tmp_path / name, batch=3, threads=1)
        assert np.array_equal(again, expected)
        for product in ("transitions", "links"):
            mine, first = (load_artifact(tmp_path / run / product) for run in (name, "run"))
            assert all(np.array_equal(mine[part], first[part]) for part in first)
    monkeypatch.setattr(flow, "positions_a_call", lambda batch: 3)
    assert np.abs(run_live(golden, live, refined, tmp_path / "positions") - expected).max() < 1e-6
    other = cut_bundle(live, ("rescore",), tmp_path / "other.onnx", rescore={"batch": 64})
    found = run_live(golden, other, refined, tmp_path / "64")
    assert np.abs(found[:64] - distance(rescored["live_logits_batch64_first"])).max() < TOLERANCE
    assert np.abs(found - expected).max() > 1e-4


def test_an_interrupted_run_goes_on_at_a_batch_boundary(golden, live, refined, tmp_path, monkeypatch):
    """The engine fails in the third batch; the two before it are not computed again, and the scores are the same."""
    expected = run_live(golden, live, refined, tmp_path / "whole")
    straight, seen = OnnxRuntimeEngine.run, []

    def run(self, feeds):
        if self.spec.name == "rescore_first":
            seen.append(len(feeds["features"]))
            if len(seen) == 3:
                raise OSError("the machine went away")
        return straight(self, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    with pytest.raises(OSError, match="went away"):
        run_live(golden, live, refined, tmp_path / "run")
    monkeypatch.setattr(flow, "RESCORE_BLOCK", 2000)  # a later version may have other blocks
    assert np.array_equal(run_live(golden, live, refined, tmp_path / "run"), expected)
    assert seen == [512, 512, 259, 259]


def test_across_neighbors_no_other_face_and_no_batch_matters(
    golden, live, checkpoint, lists, refined, cut_bundle, tmp_path
):
    settings = {"attention": "neighbors"}
    bundle = cut_bundle(live, ("rescore",), tmp_path / "a.onnx", rescore=settings)
    found = run_live(golden, bundle, refined, tmp_path / "run")
    net = network(checkpoint, "nsr/checkpoint_live.tar", "rescore")
    with torch.inference_mode():
        code = torch.from_numpy(position_code(20, 64))
        expected = net(torch.from_numpy(refined[lists]), code, across_neighbors=True).numpy()
    assert np.abs(found - distance(expected)).max() < TOLERANCE
    assert np.abs(found - run_live(golden, live, refined, tmp_path / "batch")).max() > 1e-3
    other = cut_bundle(live, ("rescore",), tmp_path / "b.onnx", rescore={**settings, "batch": 50})
    written = (tmp_path / "run/rescored/dists.npy").stat().st_mtime_ns
    assert np.array_equal(run_live(golden, other, refined, tmp_path / "run"), found)
    assert (tmp_path / "run/rescored/dists.npy").stat().st_mtime_ns == written  # the batch did not make it


# Density peaks


def test_densities_and_transition_distances_are_the_authors(lists, rescored, peaks):
    """Densities to the bit, transition distances within one rounding of float32."""
    ids, dists = sorted_lists(lists, rescored["dists"])
    density = np.zeros(N)
    add_received(ids, shares(dists, 0.5), density)
    assert np.array_equal(density, peaks["density"])
    found = transition_distances(ids, np.sqrt(shares(dists, 0.05)), np.arange(N, dtype=np.int32))
    assert np.abs(found - peaks["TPDi"]).max() < 2e-7


@pytest.mark.parametrize("kind", ["tpdi", "dist"])
def test_peaks_and_their_distances_are_the_authors_and_so_are_labels_for_every_tau(
    kind, lists, rescored, peaks
):
    ids, dists = sorted_lists(lists, rescored["dists"])
    near = peaks["TPDi"] if kind == "tpdi" else dists
    found, reached = (rows[:, 0] for rows in link_to_peaks(ids, near, peaks["density"], 0, 1))
    assert np.array_equal(found, peaks[f"peak_{kind}"])
    linked = found != NO_LINK
    assert np.array_equal(reached[linked], peaks[f"dist2peak_{kind}"][linked])
    for tau in TAUS:
        kept = np.flatnonzero(linked & (reached < np.float32(tau)))
        labels = oracles.components(N, np.stack([kept, found[kept]], axis=1).tolist())
        assert oracles.partition(labels) == oracles.partition(peaks[f"labels_{kind}_tau_{tau}"])


def test_the_whole_run_gives_the_authors_distances_densities_and_clusters(by_peaks, rescored, peaks):
    labels, folder = by_peaks
    assert np.abs(np.load(folder / "rescored/dists.npy") - rescored["dists"]).max() < TOLERANCE
    links, transitions = load_artifact(folder / "links"), load_artifact(folder / "transitions")
    assert np.abs(links["density"] - peaks["density"]).max() < TOLERANCE
    assert np.abs(transitions["dists"] - peaks["TPDi"]).max() < TOLERANCE
    faces, to = links["ids"].T
    assert np.array_equal(to, peaks["peak_tpdi"][faces])
    assert oracles.partition(labels) == oracles.partition(peaks["labels_tpdi_tau_0.7"])


@pytest.mark.parametrize("kind", ["tpdi", "dist"])
def test_whole_runs_give_the_authors_clusters_for_every_tau(
    kind, chain, cut_bundle, run_chain, by_peaks, peaks, tmp_path
):
    """With transition_sigma = 0, links are by the re-scored distances themselves."""
    bundle = chain
    if kind == "dist":
        bundle = cut_bundle(
            chain, tuple(chain.weights), tmp_path / "b.onnx", density_peaks={"transition_sigma": 0.0}
        )
    again = shutil.copytree(by_peaks[1], tmp_path / "run")
    for tau in TAUS:
        labels, _ = run_chain(bundle, again, link="density-peaks", tau=tau)
        assert oracles.partition(labels) == oracles.partition(peaks[f"labels_{kind}_tau_{tau}"])


def test_more_links_a_face_join_more(chain, cut_bundle, run_chain, by_peaks, tmp_path):
    bundle = cut_bundle(
        chain, ("refine", "rescore"), tmp_path / "b.onnx", density_peaks={"max_links": 3, "tau": 0.5}
    )
    labels, folder = run_chain(bundle, shutil.copytree(by_peaks[1], tmp_path / "run"))
    transitions = load_artifact(folder / "transitions")
    density = load_artifact(folder / "links")["density"]
    expected = oracles_nsr.peaks(transitions["ids"], transitions["dists"].tolist(), density, 3)
    links = [(i, j) for i, row in enumerate(expected) for j, d in row if d < 0.5]
    assert load_artifact(folder / "links")["ids"].tolist() == [list(link) for link in links]
    assert labels.tolist() == oracles.components(N, links)


# Pair networks


def test_the_whole_run_gives_the_authors_probabilities_links_and_clusters(by_pairs, pairs):
    """LCENet, density, E_d, E_s and its threshold, PCENet, clusters; links exactly."""
    labels, folder = by_pairs
    assert (
        np.abs(np.load(folder / "connectivity/probability.npy") - pairs["lce_probability"]).max() < TOLERANCE
    )
    found = load_artifact(folder / "candidates")
    assert np.abs(found["density"] - pairs["density"]).max() < 2 * TOLERANCE
    certain = load_artifact(folder / "certain")
    assert abs(certain["threshold"][0] - pairs["sim_threshold"]) < 1e-6
    faces = np.flatnonzero(found["ids"] != NO_LINK)
    assert np.array_equal(np.stack([faces, found["ids"][faces]], axis=1), pairs["E_d"])
    assert np.array_equal(certain["ids"], pairs["E_s"])
    confirmed = np.load(folder / "confirmed/probability.npy")
    assert np.abs(confirmed[faces] - pairs["pce_probability"]).max() < TOLERANCE
    assert not np.delete(confirmed, faces).any()
    links = load_artifact(folder / "links")
    kept = pairs["E_d"][pairs["pce_probability"] > 0.5]
    assert np.array_equal(links["ids"], np.concatenate([kept, pairs["E_s"]]))
    assert links["certain"].tolist() == [False] * len(kept) + [True] * len(pairs["E_s"])
    assert oracles.partition(labels) == oracles.partition(pairs["labels"])


def test_from_the_authors_distances_and_probabilities_densities_are_theirs_to_rounding(
    lists, rescored, pairs
):
    """The dense definition ties the oracle, and so every test against it, to the authors' own run."""
    ids, sims = lists[:, :16], (1 - rescored["dists"])[:, :16]
    density, candidates, certain, threshold = oracles_nsr.pair_links(
        ids, sims, pairs["lce_probability"], (0.1, 0.2, 0.7)
    )
    assert np.abs(density - pairs["density"]).max() < 1e-12
    assert (
        sorted(candidates.items()) == pairs["E_d"].tolist()
        or [list(pair) for pair in sorted(candidates.items())] == pairs["E_d"].tolist()
    )
    assert sorted(certain) == [tuple(pair) for pair in pairs["E_s"].tolist()]
    assert abs(threshold - pairs["sim_threshold"]) < 1e-12


def test_without_certain_links_the_clusters_are_the_authors_without_them(
    chain, cut_bundle, run_chain, pairs, tmp_path
):
    bundle = cut_bundle(chain, tuple(chain.weights), tmp_path / "b.onnx", pairs={"certain_weights": []})
    labels, folder = run_chain(bundle, tmp_path / "run")
    assert not load_artifact(folder / "links")["certain"].any()
    assert len(load_artifact(folder / "certain")["ids"]) == 0
    assert oracles.partition(labels) == oracles.partition(pairs["labels_without_E_s"])


def test_other_certain_links_do_not_ask_the_networks_again(chain, cut_bundle, run_chain, by_pairs, tmp_path):
    """As `tune` tries them: what PCENet is asked about does not depend on them."""
    folder = by_pairs[1]
    again = shutil.copytree(folder, tmp_path / "run")
    before = json.loads((again / "run.json").read_text())["artifacts"]
    bundle = cut_bundle(chain, tuple(chain.weights), tmp_path / "b.onnx", pairs={"certain_weights": [1.0]})
    found, _ = run_chain(bundle, again)
    after = json.loads((again / "run.json").read_text())["artifacts"]
    changed = {name for name in before if before[name]["key"] != after[name]["key"]}
    assert changed >= {"certain", "links"}
    assert not changed & {"knn", "connectivity", "candidates", "confirmed"}
    alone, _ = run_chain(bundle, tmp_path / "alone")
    assert np.array_equal(found, alone)
    ends = [load_artifact(run / "certain")["ids"].tolist() for run in (folder, again, tmp_path / "alone")]
    assert ends[0] != ends[1] == ends[2]


def test_a_least_probability_keeps_the_links_above_it(chain, run_chain, by_pairs, tmp_path):
    everything = load_artifact(by_pairs[1] / "links")
    asked = everything["ids"][~everything["certain"]]
    probabilities = everything["probability"][~everything["certain"]]
    least = float(np.median(probabilities))
    again = shutil.copytree(by_pairs[1], tmp_path / "run")
    labels, folder = run_chain(chain, again, min_probability=least)
    kept = asked[probabilities > np.float32(least)]
    assert 0 < len(kept) < len(asked)
    certain = everything["ids"][everything["certain"]]
    assert np.array_equal(load_artifact(folder / "links")["ids"], np.concatenate([kept, certain]))
    assert labels.tolist() == oracles.components(N, np.concatenate([kept, certain]).tolist())


def test_blocks_batches_and_threads_change_no_product(chain, run_chain, by_pairs, tmp_path, monkeypatch):
    for name, block in (("CONNECT_BLOCK", 300), ("CONFIRM_BLOCK", 170), ("LINK_BLOCK", 200)):
        monkeypatch.setattr(flow, name, block)
    labels, folder = run_chain(chain, tmp_path / "run", batch=5, threads=1)
    assert np.array_equal(labels, by_pairs[0])
    for name in ("candidates", "certain", "links"):
        mine, first = load_artifact(folder / name), load_artifact(by_pairs[1] / name)
        assert np.array_equal(mine["ids"], first["ids"])


def test_lists_too_short_for_the_pair_networks_get_no_advice_that_would_be_refused(
    nsr_bundle, golden, tmp_path
):
    """Their weights are for k = 16: no smaller --k helps. Density peaks can do with less."""
    lists = np.load(golden / "dev/data/faiss_k_20.npz")["data"][:, 0].astype(np.int64)
    np.save(tmp_path / "knn.npy", lists[:, :5])
    given = {"engine": nsr_bundle.path, "knn": tmp_path / "knn.npy"}
    features = golden / "dev/data/features.bin"
    with pytest.raises(InputError, match="holds 5 neighbors per face, and 20 are needed; make longer lists"):
        fcdeploy.cluster(features, **given)
    with pytest.raises(InputError, match="give k=5 or less"):
        fcdeploy.cluster(features, link="density-peaks", **given)


def test_pair_networks_alone_use_cosine_similarities_and_their_plain_mean(
    golden, nsr_bundle, cut_bundle, checkpoint, lists, pairs, tmp_path
):
    """LCE-PCENet as published: no refinement, no re-scoring; probabilities are those of the whole chain."""
    weights = {"certain_weights": [1.0, 1.0, 1.0]}
    bundle = cut_bundle(nsr_bundle, ("lce", "pce"), tmp_path / "b.onnx", pairs=weights)
    knn = golden / "dev/data/faiss_k_20.npz"
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin", engine=bundle.path, knn=knn, run_dir=tmp_path / "run"
    )
    scores = np.load(tmp_path / "run/connectivity/probability.npy")
    assert np.abs(scores - pairs["lce_probability"]).max() < TOLERANCE
    sims = load_artifact(tmp_path / "run/knn")["sims"]
    assert np.array_equal(sims, (1 - np.load(knn)["data"][:, 1, :16]).astype(np.float32))
    density, candidates, certain, threshold = oracles_nsr.pair_links(lists[:, :16], sims, scores, (1, 1, 1))
    found = load_artifact(tmp_path / "run/candidates")
    assert np.abs(found["density"] - density).max() < 1e-12
    sure = load_artifact(tmp_path / "run/certain")
    assert abs(sure["threshold"][0] - sims[:, 1:4].astype(np.float64).mean()) < 1e-6
    assert abs(threshold - sure["threshold"][0]) < 1e-9
    assert {i: int(j) for i, j in enumerate(found["ids"]) if j != NO_LINK} == candidates
    assert {tuple(pair) for pair in sure["ids"].tolist()} == certain
    vectors = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(N, 32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    net = network(checkpoint, "nsr/PCENet.pth.xz", "pce")
    confirmed = np.load(tmp_path / "run/confirmed/probability.npy")
    faces = sorted(candidates)[::25]
    both = np.concatenate([lists[faces, :16], lists[[candidates[i] for i in faces], :16]], axis=1)
    with torch.inference_mode():
        expected = torch.softmax(net(torch.from_numpy(vectors[both])), dim=1)[:, 1].numpy()
    assert np.abs(confirmed[faces] - expected).max() < TOLERANCE
    kept = [(i, j) for i, j in candidates.items() if confirmed[i] > 0.5]
    assert labels.tolist() == oracles.components(N, [*kept, *certain])


def test_lists_in_another_order_give_the_same(golden, nsr_bundle, cut_bundle, lists, tmp_path):
    """Sorted by similarity before they are cut, as published."""
    bundle = cut_bundle(nsr_bundle, ("lce", "pce"), tmp_path / "b.onnx")
    data = np.load(golden / "dev/data/faiss_k_20.npz")["data"]
    order = np.random.default_rng(0).permuted(np.tile(np.arange(20), (N, 1)), axis=1)
    shuffled = {"ids": lists, "sims": (1 - data[:, 1]).astype(np.float32)}
    shuffled = {name: np.take_along_axis(rows, order, axis=1) for name, rows in shuffled.items()}
    np.savez(tmp_path / "lists.npz", **shuffled)
    for name, knn in (("a", golden / "dev/data/faiss_k_20.npz"), ("b", tmp_path / "lists.npz")):
        fcdeploy.cluster(
            golden / "dev/data/features.bin", engine=bundle.path, knn=knn, run_dir=tmp_path / name
        )
    for product in ("knn", "links"):
        first, second = (load_artifact(tmp_path / run / product) for run in "ab")
        assert all(np.array_equal(first[part], second[part]) for part in first)


def test_options_that_do_not_fit_the_engine_are_refused_before_anything_is_written(
    golden, nsr_bundle, cut_bundle, tmp_path
):
    alone = cut_bundle(nsr_bundle, ("lce", "pce"), tmp_path / "b.onnx")
    for bundle, options, words in (
        (nsr_bundle, {"tau": 0.5}, "tau: is for link='density-peaks'"),
        (nsr_bundle, {"link": "peaks"}, "link = peaks: is neither 'density-peaks' nor 'pairs'"),
        (nsr_bundle, {"k": 10}, "k = 10: the pair networks' weights are for k = 16"),
        (alone, {"inference": "layerwise"}, "this engine can be evaluated as exact"),
        (alone, {"link": "density-peaks"}, "the engine has no re-scoring network"),
        (alone, {"hops": (5, 2)}, "hops: the engine has no refinement network"),
    ):
        with pytest.raises(InputError) as refused:
            fcdeploy.cluster(
                golden / "dev/data/features.bin", engine=bundle.path, run_dir=tmp_path / "run", **options
            )
        assert words in str(refused.value)
        assert "\n" not in str(refused.value)
        assert not (tmp_path / "run").exists()


def test_without_refinement_many_faces_are_exact_all_the_same(nsr_bundle, cut_bundle, tmp_path):
    from fcdeploy.runtime.prepare import choose_inference
    from fcdeploy.systems import get_system

    alone, system = cut_bundle(nsr_bundle, ("lce", "pce"), tmp_path / "b.onnx"), get_system("nsr-fc")
    assert choose_inference(system, "auto", 10**6, alone.passes) == "exact"
    assert choose_inference(system, "auto", 10**6, nsr_bundle.passes) == "layerwise"


def test_re_scoring_reads_layer_wise_refined_features_where_these_are_asked_for(
    golden, chain, cut_bundle, checkpoint, by_peaks, tmp_path
):
    """Another function of the same weights: what is re-scored is what was refined, and not what exact inference is."""
    bundle = cut_bundle(chain, ("refine", "rescore"), tmp_path / "b.onnx")
    fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle.path,
        knn=golden / "dev/data/faiss_k_20.npz",
        inference="layerwise",
        run_dir=tmp_path / "run",
    )
    table = torch.from_numpy(np.load(tmp_path / "run/refined/refined.npy"))
    ids, found = load_artifact(tmp_path / "run/knn")["ids"], np.load(tmp_path / "run/rescored/dists.npy")
    net, code = network(checkpoint, "nsr/checkpoint.tar", "rescore"), torch.from_numpy(position_code(20, 64))
    with torch.inference_mode():
        expected = net(table[ids[:512]], code).numpy()
    assert np.abs(found[:512] - distance(expected)).max() < TOLERANCE
    assert np.abs(found - np.load(by_peaks[1] / "rescored/dists.npy")).max() > 0.01


def test_every_network_was_exported_within_tolerance(chain, live):
    for bundle in (chain, live):
        for name, fields in bundle.manifest["networks"].items():
            parity = fields["parity"]
            assert parity["within_tolerance"]
            assert (parity["nan"], parity["flipped"]) == (0, 0)
            assert 0 < parity["max_error"] < 1e-5, name
    assert chain.manifest["networks"]["lce"]["parity"]["edges"] == 27 * 16


def test_parity_sees_networks_that_are_another_function(chain, checkpoint):
    """Faces of a link exchanged, attention across the neighbors for that across the batch: not within tolerance."""
    from fcdeploy.deploy.parity import measure_parity
    from fcdeploy.systems import get_system
    from fcdeploy.systems.settings import settings_from_dict

    recipe = settings_from_dict(dict(chain.manifest["recipe"]), "manifest")

    class Exchanged(type(network(checkpoint, "nsr/PCENet.pth.xz", "pce"))):
        def forward(self, features):
            return super().forward(torch.cat([features[:, self.k :], features[:, : self.k]], dim=1))

    wrong = network(checkpoint, "nsr/PCENet.pth.xz", "pce")
    wrong.__class__ = Exchanged
    found = measure_parity(get_system("nsr-fc"), "pce", chain.weights["pce"], wrong, chain.path, recipe)
    assert found.max_error > 1e-3
    assert not found.within_tolerance
    live = network(checkpoint, "nsr/checkpoint_live.tar", "rescore")
    found = measure_parity(
        get_system("nsr-fc"), "rescore", chain.weights["rescore"], live, chain.path, recipe
    )
    assert not found.within_tolerance


def test_tolerances_are_absolute_for_the_refinement_and_relative_for_logits(chain):
    from fcdeploy.systems import get_system
    from fcdeploy.systems.settings import settings_from_dict

    recipe = settings_from_dict(dict(chain.manifest["recipe"]), "manifest")
    allowed = dataclasses.replace(
        recipe, tolerance=dataclasses.replace(recipe.tolerance, refined=2e-5, logits=3e-5, flipped_edges=4)
    )
    system = get_system("nsr-fc")
    found = [dataclasses.astuple(system.tolerance(allowed, name)) for name in system.networks]
    assert found == [(2e-5, 4, False), *[(3e-5, 0, True)] * 3]
