import numpy as np
import oracles
import oracles_sepfl
import pytest
from run_folders import load_artifact

import fcdeploy
from fcdeploy.data.features import open_features
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.graph.density import density_from_sums_and_counts, sum_and_count_similarities
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.systems import get_system

torch = pytest.importorskip("torch")
from fcdeploy.deploy.checkpoint import load_state_dict  # noqa: E402
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint  # noqa: E402
from fcdeploy.deploy.parity import measure_parity  # noqa: E402
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.systems.sepfl.network import Sepfl, network_from_state_dict  # noqa: E402

TOLERANCE = 1e-5  # of the logits' scale; replaying the authors' classes moves their own logits by 1.2e-7
RECIPE = 'system = "sepfl"\nfeature_dim = 32\n\n[links]\nk = {k}\nrho = {rho}\n'


@pytest.fixture(scope="module")
def expected(golden):
    return dict(np.load(golden / "dev/sepfl/sepfl.npz"))


@pytest.fixture(scope="module")
def lists(golden):
    """The golden kNN lists: ids (n, k) int32 and sims (n, k) float32."""
    data = np.load(golden / "dev/data/faiss_k_20.npz")["data"]
    return data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32)


def densities(sims, rho):
    sums, counts = np.empty(len(sims), np.float32), np.empty(len(sims), np.int32)
    sum_and_count_similarities(sims, rho, sums, counts)
    return density_from_sums_and_counts(sums, counts)


def candidates(ids, sims, rho):
    """Candidate links (m, 2) in the order of faces."""
    denser, _ = link_to_denser(ids, sims, densities(sims, rho), 0)
    faces = np.flatnonzero(denser != NO_LINK)
    return np.stack([faces, denser[faces]], axis=1)


@pytest.fixture(scope="module")
def bundle(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sepfl")
    (folder / "golden.toml").write_text(RECIPE.format(k=20, rho=0.6))
    recipe = load_recipe(folder / "golden.toml")
    return export_checkpoint(golden / "dev/sepfl/checkpoint.pth", folder / "sepfl.onnx", recipe)


@pytest.fixture(scope="module")
def whole_run(golden, bundle, tmp_path_factory):
    """Labels of a run from the authors' kNN lists, and the folder of its products."""
    folder = tmp_path_factory.mktemp("run") / "run"
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=golden / "dev/data/faiss_k_20.npz",
        run_dir=folder,
    )
    return labels, folder


def test_densities_are_the_authors_to_the_bit(lists, expected):
    found = densities(lists[1], 0.6)
    assert found.dtype == np.float64
    assert np.array_equal(found, expected["confidence"])
    assert np.array_equal(oracles_sepfl.density(lists[1], 0.6), expected["confidence"])


def test_a_sum_in_float32_would_be_another_density(lists, expected):
    """The test above can fail: the sum's width shows in the goldens."""
    sums = np.cumsum(lists[1], axis=1, dtype=np.float32)[:, -1]
    counts = (lists[1].astype(np.float64) >= 0.6).sum(axis=1)
    assert (density_from_sums_and_counts(sums, counts) != expected["confidence"]).any()


def test_a_similarity_of_exactly_rho_counts_and_is_compared_in_float64():
    """By hand: sums 2, 1.5, 1; counts 2, 2, 1 at rho = 0.5. And float32's 0.7 is below float64's."""
    sims = np.array([[1.0, 1.0], [1.0, 0.5], [1.0, 0.0]], dtype=np.float32)
    assert densities(sims, 0.5).tolist() == [1, (0.75 + 1) / 2, (0.5 + 0.5) / 2]
    nearly = np.array([[1.0, 0.7], [1.0, 0.75]], dtype=np.float32)
    assert densities(nearly, 0.7)[0] == (float(np.float32(1.7) / np.float32(1.75)) + 1 / 2) / 2


def test_where_no_similarity_reaches_rho_the_counts_are_nothing():
    sims = np.array([[1.0, 0.5], [1.0, 0.25]], dtype=np.float32)
    assert densities(sims, 2.0).tolist() == [0.5, np.float32(1.25) / np.float32(1.5) / 2]


def test_candidate_links_are_the_authors(lists, expected):
    assert np.array_equal(candidates(*lists, 0.6), expected["candidate_edges"])


def test_on_real_faces_densities_and_candidate_links_are_the_authors(shared):
    theirs = np.load(shared / "golden/lfw/sepfl_confidence.npz")
    data = np.load(shared / "golden/lfw/data/faiss_k_20.npz")["data"]
    ids, sims = data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32)
    rho = float(theirs["threshold_rho"])
    assert np.array_equal(densities(sims, rho), theirs["confidence"])
    assert np.array_equal(candidates(ids, sims, rho), theirs["candidate_edges"])


def test_the_plain_network_gives_the_golden_logits_and_swapped_faces_do_not(golden, lists, expected):
    net = network_from_state_dict(load_state_dict(golden / "dev/sepfl/checkpoint.pth"))
    vectors = open_features(golden / "dev/data/features.bin", 32).rows(0, 1283)
    face, denser = (
        [torch.from_numpy(vectors[rows]) for rows in (faces, lists[0][faces])]
        for faces in expected["candidate_edges"].T
    )
    with torch.inference_mode():
        found, swapped = net(*face, *denser).numpy(), net(*denser, *face).numpy()
    scale = np.abs(expected["logits"]).max()
    assert np.abs(found - expected["logits"]).max() < TOLERANCE * scale
    assert np.abs(swapped - expected["logits"]).max() > 0.1 * scale
    flipped = (swapped[:, 1] > swapped[:, 0]) != (expected["logits"][:, 1] > expected["logits"][:, 0])
    assert flipped.mean() > 0.1


def test_the_equations_give_the_golden_logits(golden, lists, expected):
    """Ties the oracle, and so every test against it, to the authors' own run."""
    state = load_state_dict(golden / "dev/sepfl/checkpoint.pth")
    vectors = open_features(golden / "dev/data/features.bin", 32).rows(0, 1283)
    scale = np.abs(expected["logits"]).max()
    for at in range(0, len(expected["logits"]), 60):
        faces = [(vectors[face], vectors[lists[0][face]]) for face in expected["candidate_edges"][at]]
        found = oracles_sepfl.logits(state, *faces)
        assert np.abs(found - expected["logits"][at]).max() < TOLERANCE * scale


def test_the_whole_run_gives_the_authors_candidates_and_logits(whole_run, expected):
    found = load_artifact(whole_run[1] / "candidates")
    faces = np.flatnonzero(found["ids"] != NO_LINK)
    assert np.array_equal(np.stack([faces, found["ids"][faces]], axis=1), expected["candidate_edges"])
    scale = np.abs(expected["logits"]).max()
    assert np.abs(found["logits"][faces] - expected["logits"]).max() < TOLERANCE * scale
    assert not found["logits"][found["ids"] == NO_LINK].any()


def test_the_whole_run_accepts_the_authors_links(whole_run, lists, expected):
    """Exactly: no golden pair of logits is nearer to equal than 2.5e-3."""
    links = load_artifact(whole_run[1] / "links")
    assert np.array_equal(links["ids"], expected["kept_edges"])
    kept = expected["logits"][:, 1] > expected["logits"][:, 0]
    odds = np.exp(expected["logits"][kept, 0].astype(np.float64) - expected["logits"][kept, 1])
    assert np.abs(links["probability"] - 1 / (1 + odds)).max() < 1e-5
    for (face, denser), sim in zip(links["ids"][::50], links["sims"][::50], strict=True):
        assert sim == lists[1][face][lists[0][face] == denser]


def test_the_whole_run_gives_the_authors_clusters(whole_run, expected):
    assert oracles.partition(whole_run[0]) == oracles.partition(expected["labels"])


def test_our_own_neighbors_give_the_authors_clusters(golden, bundle, expected):
    """faiss on the features finds the golden lists: there are no ties in them."""
    found = fcdeploy.cluster(golden / "dev/data/features.bin", engine=bundle[0].path)
    assert oracles.partition(found) == oracles.partition(expected["labels"])


def test_lists_in_another_order_and_longer_ones_give_the_same(golden, bundle, lists, whole_run, tmp_path):
    """Sorted by similarity before they are cut to the k of the weights, as the authors do."""
    ids, sims = lists
    rng = np.random.default_rng(0)
    others = np.stack([np.setdiff1d(np.arange(1283), row)[:3] for row in ids])
    longer = np.hstack([ids, others])
    values = np.hstack([sims, np.zeros((1283, 3), np.float32)])
    order = rng.permuted(np.tile(np.arange(23), (1283, 1)), axis=1)
    shuffled = {
        "ids": np.take_along_axis(longer, order, axis=1),
        "sims": np.take_along_axis(values, order, axis=1),
    }
    np.savez(tmp_path / "lists.npz", **shuffled)
    fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=tmp_path / "lists.npz",
        run_dir=tmp_path / "run",
    )
    for name in ("knn", "candidates", "links"):
        found, known = load_artifact(tmp_path / "run" / name), load_artifact(whole_run[1] / name)
        assert all(np.array_equal(found[part], known[part]) for part in known)


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 5, "threads": 1}, {"threads": 2}], ids=str)
def test_batch_and_threads_do_not_change_the_labels(golden, bundle, whole_run, options):
    found = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=golden / "dev/data/faiss_k_20.npz",
        **options,
    )
    assert np.array_equal(found, whole_run[0])


def test_a_least_probability_keeps_exactly_the_links_that_have_it(golden, bundle, whole_run, tmp_path):
    all_links = load_artifact(whole_run[1] / "links")
    least = float(np.median(all_links["probability"]))
    labels = fcdeploy.cluster(
        golden / "dev/data/features.bin",
        engine=bundle[0].path,
        knn=golden / "dev/data/faiss_k_20.npz",
        min_probability=least,
        run_dir=tmp_path / "run",
    )
    kept = all_links["ids"][all_links["probability"] >= np.float32(least)]
    assert 0 < len(kept) < len(all_links["ids"])
    assert np.array_equal(load_artifact(tmp_path / "run/links")["ids"], kept)
    assert labels.tolist() == oracles.components(1283, kept.tolist())
    for low in (0.0, 0.4):  # below what being accepted takes: nothing changes
        again = fcdeploy.cluster(
            golden / "dev/data/features.bin",
            engine=bundle[0].path,
            knn=golden / "dev/data/faiss_k_20.npz",
            min_probability=low,
        )
        assert np.array_equal(again, whole_run[0])


def test_the_export_measured_itself_within_tolerance(bundle):
    read, parities = bundle
    parity = parities["pairwise"]
    assert parity.within_tolerance
    assert parity.tolerance == 1e-5
    assert 0 < parity.max_error < 1e-5
    assert (parity.nan, parity.flipped) == (0, 0)
    assert parity.edges == parity.rows == sum(b for b, _ in parity.sizes) > 100
    assert list(read.passes) == ["near", "encode", "pair"]
    assert read.manifest["networks"]["pairwise"]["parity"]["max_error"] == parity.max_error


def test_parity_sees_exchanged_faces(golden, bundle):
    """An export that took the faces of a link the other way round would not come within the tolerance."""

    class Exchanged(Sepfl):
        def forward(self, face, neighbors, denser, denser_neighbors):
            return super().forward(denser, denser_neighbors, face, neighbors)

    net = Exchanged(32, 20)
    net.load_state_dict(load_state_dict(golden / "dev/sepfl/checkpoint.pth"))
    recipe = load_recipe(bundle[0].path.parent / "golden.toml")
    parity = measure_parity(
        get_system("sepfl"), "pairwise", bundle[0].weights["pairwise"], net, bundle[0].path, recipe
    )
    assert not parity.within_tolerance
    assert parity.max_error > 0.1
    assert parity.flipped > 0


def test_an_old_and_wrapped_checkpoint_gives_the_same_graphs(golden, bundle, tmp_path):
    state = torch.load(golden / "dev/sepfl/checkpoint.pth", weights_only=True)
    recipe = load_recipe(bundle[0].path.parent / "golden.toml")
    old = {f"module.{name}": tensor for name, tensor in state.items() if "num_batches" not in name}
    torch.save({"state_dict": old}, tmp_path / "old.pth")
    again, _ = export_checkpoint(tmp_path / "old.pth", tmp_path / "old.onnx", recipe)
    assert again.digest() == bundle[0].digest()


def test_without_a_recipe_k_is_read_off_the_weights(golden, tmp_path):
    with pytest.warns(FcdeployWarning, match="the published settings of sepfl are used"):
        read, _ = export_checkpoint(golden / "dev/sepfl/checkpoint.pth", tmp_path / "sepfl.onnx")
    assert read.manifest["recipe"]["links"] == {"k": 20, "rho": 0.7, "min_probability": 0.5}


def test_a_recipe_of_another_k_is_refused_with_both(golden, tmp_path):
    (tmp_path / "other.toml").write_text(RECIPE.format(k=80, rho=0.7))
    with pytest.raises(InputError, match=r"for 32-d features and k = 80, .* for 32-d features and k = 20; "):
        export_checkpoint(
            golden / "dev/sepfl/checkpoint.pth", tmp_path / "x.onnx", load_recipe(tmp_path / "other.toml")
        )
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"k": 10}, ("k = 10", "k = 20")),
        ({"hops": (20, 5)}, ("hops does not apply to SEPFL", "PSE-GCN")),
        ({"tau": 0.5}, ("tau does not apply to SEPFL", "PSE-GCN")),
        ({"reranked": "lists.npy"}, ("reranked does not apply to SEPFL", "PSE-GCN")),
        ({"inference": "layerwise"}, ("inference = layerwise", "SEPFL")),
        ({"min_probability": 1.5}, ("min_probability = 1.5",)),
    ],
    ids=str,
)
def test_options_that_do_not_apply_are_refused_in_one_sentence(golden, bundle, options, words):
    with pytest.raises(InputError) as refused:
        fcdeploy.cluster(golden / "dev/data/features.bin", engine=bundle[0].path, **options)
    assert all(word in str(refused.value) for word in words)
    assert "\n" not in str(refused.value)


def test_a_least_probability_does_not_apply_to_pse_gcn(golden, pse_bundle):
    with pytest.raises(InputError, match=r"min_probability does not apply to PSE-GCN, only to .*SEPFL"):
        fcdeploy.cluster(golden / "dev/data/features.bin", engine=pse_bundle.path, min_probability=0.9)


def test_fewer_faces_or_neighbors_than_the_weights_want_are_refused(golden, bundle, lists, tmp_path):
    features = open_features(golden / "dev/data/features.bin", 32).rows(0, 1283)
    with pytest.raises(InputError, match=r"k = 20 .* only 19 faces"):
        fcdeploy.cluster(features[:19], engine=bundle[0].path)
    np.savez(tmp_path / "short.npz", ids=lists[0][:, :12], sims=lists[1][:, :12])
    with pytest.raises(
        InputError, match=r"holds 12 neighbors per face, and 20 are needed; make longer lists"
    ):
        fcdeploy.cluster(features, engine=bundle[0].path, knn=tmp_path / "short.npz")


def test_as_many_faces_as_neighbors_are_enough(golden, bundle):
    features = open_features(golden / "dev/data/features.bin", 32).rows(0, 20)
    labels = fcdeploy.cluster(features, engine=bundle[0].path)
    assert labels.shape == (20,)
    assert labels[0] == 0
