"""Training on lists made elsewhere, and on raw features whose width follows from the labels."""

import numpy as np
import pytest
from run_folders import load_artifact

from fcdeploy.data.features import Features, features_from_array
from fcdeploy.data.forms import spool
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.errors import InputError
from fcdeploy.graph.knn import KnnSearch
from fcdeploy.systems import get_system
from fcdeploy.training.choices import Choices
from fcdeploy.training.train import train
from fcdeploy.training.width import check_width

torch = pytest.importorskip("torch")

FEW = ("--steps", 2, "--batch", 2, "--threads", 1, "--quiet")


@pytest.fixture(scope="module")
def lists(vectors, tmp_path_factory):
    """Exact lists of all 400 faces, 60 neighbors each, as our own search makes them."""
    unit = features_from_array(vectors).rows(0, 400)
    ids, sims = KnnSearch(unit).search(np.arange(400, dtype=np.int32), 60)
    path = tmp_path_factory.mktemp("lists") / "knn.npz"
    np.savez(path, ids=ids, sims=np.clip(sims, 0, 1))
    return path


def weights_of(people, vectors, labels, output, system="pse-gcn", validation=0.1, **given):
    """Train two steps; return the weights and the lists of the training faces."""
    choices = Choices(steps=2, batch=2, threads=1, validation=validation, settings={})
    recipe = load_recipe(people / f"{system}.toml")
    done = train(
        get_system(system),
        features_from_array(vectors),
        labels,
        output,
        recipe=recipe,
        choices=choices,
        **given,
    )
    kept = load_artifact(done.run_dir / "faces/knn")
    return torch.load(done.checkpoint, weights_only=True), kept["ids"], kept["sims"]


@pytest.mark.parametrize("validation", [0.1, 0])
@pytest.mark.parametrize("system", ["pse-gcn", "l-gcn", "sepfl"])
def test_exact_lists_of_all_faces_train_as_a_search_does(
    system, validation, lists, people, vectors, identities, tmp_path
):
    """Faces kept apart and unknown ones leave the lists, and where too few are left faces are searched again: what
    remains is what a search among the training faces finds, bit for bit."""
    arguments = (people, vectors, identities)
    straight, ids, sims = weights_of(*arguments, tmp_path / "a.pth", system, validation)
    given, their_ids, their_sims = weights_of(*arguments, tmp_path / "b.pth", system, validation, knn=lists)
    assert np.array_equal(ids, their_ids)
    assert np.array_equal(sims, their_sims)
    assert all(torch.equal(straight[key], given[key]) for key in straight)


def test_re_ranked_lists_are_taken_for_all_faces_and_refused_where_too_few_remain(
    lists, people, vectors, identities, tmp_path
):
    ids = np.load(lists)["ids"]
    np.save(tmp_path / "ranked.npy", ids[:, :12])
    known = np.arange(len(identities))[identities != -1]
    unit = features_from_array(vectors[known]).rows(0, len(known))
    found, _ = KnnSearch(unit).search(np.arange(len(known), dtype=np.int32), 12)
    np.save(tmp_path / "own.npy", found)
    weights_of(
        *(people, vectors[known], identities[known], tmp_path / "a.pth"),
        validation=0,
        reranked=tmp_path / "own.npy",
    )
    remedy = r"longer lists.*smaller hops in the \[neighborhood\] of a --recipe\.$"
    with pytest.raises(
        InputError, match=r"ranked\.npy: its lists of \d+ neighbors are too short for hops .*" + remedy
    ) as said:
        weights_of(people, vectors, identities, tmp_path / "b.pth", reranked=tmp_path / "ranked.npy")
    assert "give" not in str(said.value).partition("give longer lists")[0]  # which `train` does not have
    np.save(tmp_path / "shorter.npy", ids[:, :5])
    with pytest.raises(InputError, match=r"shorter\.npy: its lists of 5 neighbors are too short.*" + remedy):
        weights_of(people, vectors, identities, tmp_path / "c.pth", reranked=tmp_path / "shorter.npy")


def test_lists_that_cannot_be_used_are_refused_and_nothing_is_written(
    lists, people, vectors, fcdeploy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    whole = np.load(lists)
    np.savez("turned.npz", ids=whole["ids"][::-1], sims=whole["sims"][::-1])
    np.savez("fewer.npz", ids=whole["ids"][:399, :5], sims=whole["sims"][:399, :5])
    np.savez("shorter.npz", ids=whole["ids"][:, :3], sims=whole["sims"][:, :3])
    np.savez("distances.npz", ids=whole["ids"], sims=1 - whole["sims"])
    before = sorted(path.name for path in tmp_path.iterdir())
    data = (
        "--features",
        people / "f.bin",
        "--labels",
        people / "f.meta",
        "--recipe",
        people / "pse-gcn.toml",
    )
    for options, says in (
        (("--knn", "turned.npz"), "turned.npz: row "),
        (("--knn", "fewer.npz"), "fewer.npz: holds lists of 399 faces"),
        (("--knn", "shorter.npz"), "shorter.npz: holds 3 neighbors per face"),
        (("--knn", "distances.npz"), "distances.npz: holds distances 1 - cosine where cosine similarities"),
        (("--knn", "none.npz"), "none.npz: no such file of neighbor lists"),
        (("--knn", lists, "--splits", 2), "cannot be combined with --splits 2"),
        (("--reranked", "turned.npz"), "turned.npz: "),
    ):
        done = fcdeploy("train", "pse-gcn", *data, *FEW, *options, "-o", "c.pth")
        assert (done.code, done.out) == (2, ""), (options, done)
        assert says in done.err, (options, done.err)
        assert sorted(path.name for path in tmp_path.iterdir()) == before, options
    other = ("--features", people / "f.bin", "--labels", people / "f.meta", "--recipe", people / "sepfl.toml")
    done = fcdeploy("train", "sepfl", *other, *FEW, "--reranked", lists, "-o", "c.pth")
    assert done.code == 2
    assert "--reranked does not apply to SEPFL" in done.err


def test_a_run_goes_on_only_with_the_lists_that_it_began_with(lists, people, fcdeploy, tmp_path):
    data = (
        "--features",
        people / "f.bin",
        "--labels",
        people / "f.meta",
        "--recipe",
        people / "pse-gcn.toml",
    )
    line = ("train", "pse-gcn", *data, *FEW, "-o", tmp_path / "c.pth")
    assert fcdeploy(*line, "--knn", lists).code == 0
    done = fcdeploy(*line)
    assert done.code == 2
    assert "other settings (--knn)" in done.err


def test_features_that_are_unpacked_go_where_scratch_says(people, fcdeploy, tmp_path, monkeypatch):
    """Large compressed features are unpacked beside the output, unless a folder is given."""
    opened = []
    monkeypatch.setattr(spool, "IN_MEMORY", 0)
    straight = spool.nameless_file
    monkeypatch.setattr(spool, "nameless_file", lambda place: opened.append(place) or straight(place))
    np.savez_compressed(tmp_path / "f.npz", np.fromfile(people / "f.bin", "<f4").reshape(400, -1))
    (tmp_path / "room").mkdir()
    data = ("--features", tmp_path / "f.npz", "--labels", people / "f.meta")
    line = ("train", "sepfl", *data, "--recipe", people / "sepfl.toml", *FEW, "-o", tmp_path / "c.pth")
    done = fcdeploy(*line, "--scratch", tmp_path / "none")
    assert (done.code, done.err) == (
        2,
        f"Error: --scratch {tmp_path}/none: is not a folder; create it or choose another.\n",
    )
    assert fcdeploy(*line, "--scratch", tmp_path / "room").code == 0
    assert opened == [tmp_path / "room"]
    assert not list((tmp_path / "room").iterdir())


@pytest.mark.parametrize("order", ["by person", "mixed"])
@pytest.mark.parametrize("times", [2, 4, 0.5, 0.25])
def test_a_width_from_labels_of_another_number_is_refused(times, order, vectors, identities):
    """Half the labels make rows of twice the width: whether faces are sorted by person or not, that is noticed."""
    labels = np.where(identities == -1, 0, identities)
    by = (
        np.argsort(labels, kind="stable")
        if order == "by person"
        else np.random.default_rng(0).permutation(400)
    )
    rows, labels = vectors[by], labels[by]
    check_width(Features(rows, "f.bin"), labels, "f.meta")
    n = int(400 * times)
    wrong = np.resize(labels, n) if times > 1 else labels[:n]
    with pytest.raises(InputError, match=rf"f\.bin: by the {n:,} labels of f\.meta .*--dim"):
        check_width(Features(rows.reshape(n, -1), "f.bin"), wrong, "f.meta")


def test_train_asks_for_the_width_where_the_labels_are_of_other_faces(people, vectors, fcdeploy, tmp_path):
    labels = (people / "f.meta").read_text().splitlines()
    (tmp_path / "half.meta").write_text("\n".join(labels[:200]) + "\n")
    data = (
        "--features",
        people / "f.bin",
        "--labels",
        tmp_path / "half.meta",
        "--recipe",
        people / "pse-gcn.toml",
    )
    done = fcdeploy("train", "pse-gcn", *data, *FEW, "-o", tmp_path / "c.pth")
    assert done.code == 2
    assert "half.meta" in done.err
    assert "--dim" in done.err
    assert not (tmp_path / "c.pth").exists()
    done = fcdeploy("train", "pse-gcn", *data, *FEW, "--dim", 16, "-o", tmp_path / "c.pth")
    assert done.code == 2
    assert "200 labels for 400 faces" in done.err
