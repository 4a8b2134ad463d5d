"""Lists, features and labels in the layouts of the systems' own READMEs train a network, from the command line.

L-GCN: github.com/Zhongdao/gcn_clustering (features n x d, labels n x 1, knn graph n x (k + 1), all ``.npy``); PSE-GCN,
SEPFL, NSR-FC, GCN-D: features/NAME.bin, labels/NAME.meta and knns/NAME/faiss_k_80.npz of
github.com/yl-1993/learn-to-cluster, and the re-ranked lists of github.com/Stalker-DAs/PSE-GCN.
"""

from pathlib import Path

import numpy as np
import pytest

from fcdeploy.data.features import features_from_array
from fcdeploy.graph.knn import KnnSearch

torch = pytest.importorskip("torch")

FEW = ("--steps", 2, "--batch", 2, "--threads", 1, "--quiet")
K = 40
BIN = ("--features", "features/part0_train.bin", "--labels", "labels/part0_train.meta")
NPZ = "knns/part0_train/faiss_k_80.npz"


@pytest.fixture
def here(people, vectors, identities, tmp_path, monkeypatch) -> Path:
    """Generated faces in both layouts, with exact lists of all of them."""
    monkeypatch.chdir(tmp_path)
    for folder in ("features", "labels", "knns/part0_train"):
        Path(folder).mkdir(parents=True)
    vectors.tofile("features/part0_train.bin")
    Path("labels/part0_train.meta").write_text("".join(f"{label}\n" for label in identities))
    np.save("features.npy", vectors)
    np.save("labels.npy", identities.reshape(-1, 1).astype(np.float64))  # as np.loadtxt gives them
    n = len(vectors)
    ids, sims = KnnSearch(features_from_array(vectors).rows(0, n)).search(np.arange(n, dtype=np.int32), K + 1)
    assert (ids[:, 0] == np.arange(n)).all()
    sims = np.clip(sims, 0, 1)
    np.save("knn.graph.npy", ids.astype(np.int64))  # the face itself first
    np.savez(NPZ, data=np.stack([ids, 1 - sims.astype(np.float64)], axis=1))  # (n, 2, k): ids, 1 - cosine
    np.savez("deepfashion.npz", knns=ids, dists=1 - sims)
    np.save("reranking_knn_part0_train.npy", ids)
    return tmp_path


@pytest.fixture
def weights(fcdeploy, people, here):
    """Train a system two steps; returns its weights, and the lists of the training faces."""

    def train(system: str, *options: object) -> tuple[dict[str, torch.Tensor], dict[str, np.ndarray]]:
        recipe = ("--recipe", people / f"{system}.toml")
        output = Path(f"{len(list(here.glob('*.pth')))}.pth")
        done = fcdeploy("train", system, *recipe, *FEW, *options, "-o", output)
        assert (done.code, done.err) == (0, ""), done
        kept = output.with_suffix(".run") / "faces/knn"
        lists = {name: np.load(kept / f"{name}.npy") for name in ("ids", "sims")}
        return torch.load(output, weights_only=True), lists

    return train


def assert_same(one, other) -> None:
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        assert all(np.array_equal(first[key], second[key]) for key in first)


def test_l_gcn_s_own_layout_trains_as_a_search_does(weights):
    """Ids alone, so that similarities come from the features; labels are n x 1, of whole floats."""
    data = ("--features", "features.npy", "--labels", "labels.npy")
    assert_same(weights("l-gcn", *data, "--knn", "knn.graph.npy"), weights("l-gcn", *BIN))


@pytest.mark.parametrize(
    ("system", "options"),
    [
        ("pse-gcn", ()),
        ("sepfl", ()),
        ("gcn-d", ("--network", "detect")),
        ("nsr-fc", ("--network", "lce")),
    ],
)
def test_learn_to_cluster_s_lists_train_as_a_search_does(system, options, weights):
    """The file holds distances in float64, of which the similarities are again those of the search."""
    assert_same(weights(system, *BIN, *options, "--knn", NPZ), weights(system, *BIN, *options))


def test_nsr_fc_s_lists_of_deepfashion_train_as_the_other_form(weights):
    given = [weights("nsr-fc", *BIN, "--network", "lce", "--knn", file) for file in ("deepfashion.npz", NPZ)]
    assert np.array_equal(given[0][1]["ids"], given[1][1]["ids"])
    np.testing.assert_allclose(given[0][1]["sims"], given[1][1]["sims"], atol=1e-6)  # float32 distances


@pytest.mark.parametrize("system", ["pse-gcn", "nsr-fc"])
def test_re_ranked_lists_in_the_authors_layout_are_those_that_are_trained_on(system, weights):
    """In another order, they give other neighborhoods and other weights: they are not passed over."""
    reranked = "reranking_knn_part0_train.npy"
    ids = np.load(reranked)
    np.save("others.npy", np.concatenate([ids[:, :1], np.roll(ids[:, 1:], 3, axis=1)], axis=1))
    options = ()
    if system == "nsr-fc":  # its refinement is PSE-GCN's network
        weights("pse-gcn", *BIN)
        options = ("--network", "rescore", "--ckpt", "0.pth")
    given, others = (
        weights(system, *BIN, *options, "--knn", NPZ, "--reranked", file) for file in (reranked, "others.npy")
    )
    assert_same(given[1:], others[1:])
    assert any(not torch.equal(given[0][key], others[0][key]) for key in given[0])
