"""SEPFL's training links, and links that a recipe is content with."""

import json
import shutil

import numpy as np
import pytest
from run_folders import load_artifact
from system_cases import CASES

import fcdeploy
from fcdeploy.data.features import features_from_array
from fcdeploy.errors import InputError
from fcdeploy.run.features import read_features
from fcdeploy.run.options import Options
from fcdeploy.run.store import MemoryStore
from fcdeploy.systems import get_system
from fcdeploy.systems.sepfl.flow import neighbors
from fcdeploy.training.identities import identities_of

torch = pytest.importorskip("torch")
from fcdeploy.deploy.recipe import load_recipe  # noqa: E402
from fcdeploy.systems.sepfl.network import Sepfl  # noqa: E402
from fcdeploy.systems.sepfl.training import (  # noqa: E402
    Settings,
    drawn_links,
    links_among,
    loss_of_groups,
    start_from_similarity,
    task,
)
from fcdeploy.training.live import live_run  # noqa: E402

SEPFL = next(case for case in CASES if case.name == "sepfl")


def new_run(people, vectors):
    """A run over the generated people, with their recipe: lists of 8."""
    system, recipe = get_system("sepfl"), load_recipe(people / "sepfl.toml")
    weights = {"pairwise": {"dim": 16, "k": 8}}
    features, options = features_from_array(vectors), Options(threads=1)
    return live_run(system, features, recipe, weights, options, MemoryStore(), torch.device("cpu"))


def test_as_many_links_within_persons_as_between_them_each_once():
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(60)[:9] for _ in range(60)]).astype(np.int32)
    labels = rng.integers(0, 6, 60)
    within = [(i, j) for i in range(60) for j in ids[i] if i != j and labels[i] == labels[j]]
    for most in (1000, 20):
        faces, others = drawn_links(ids, labels, most)
        links = list(zip(faces.tolist(), others.tolist(), strict=True))
        count = min(most, len(within))
        assert len(set(links)) == len(links) == 2 * count
        assert all(j in ids[i] and i != j for i, j in links)
        assert sum(labels[i] == labels[j] for i, j in links) == count
        assert most < len(within) or set(within) <= set(links)
    with pytest.raises(InputError, match="two persons"):
        drawn_links(ids, np.zeros(60, int), 10)
    with pytest.raises(InputError, match="one person"):
        drawn_links(ids, np.arange(60), 10)


def test_a_recipe_may_be_content_with_links_that_the_network_refuses(golden, exported, tmp_path):
    """Probability by probability: one half is what the network accepts, and the user's option asks for more only."""
    features = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:300]
    path = shutil.copytree(exported(SEPFL).path, tmp_path / "sepfl.onnx")
    manifest = json.loads((path / "manifest.json").read_text())
    links = {}
    for least in (0.5, 0.2, 0.0, 0.9):
        manifest["recipe"]["links"]["min_probability"] = least
        (path / "manifest.json").write_text(json.dumps(manifest))
        for asked in (None, 0.3):
            run = tmp_path / f"{least}-{asked}"
            fcdeploy.cluster(features, engine=path, run_dir=run, threads=1, min_probability=asked)
            links[least, asked] = load_artifact(run / "links")["probability"]
        logits = load_artifact(run / "candidates")["logits"]
    candidates = (load_artifact(run / "candidates")["ids"] >= 0) & (np.array(logits) != 0).any(1)
    probable = 1 / (1 + np.exp(logits[:, 0] - logits[:, 1]))[candidates]
    for least in (0.5, 0.2, 0.0, 0.9):
        assert len(links[least, None]) == (probable >= least).sum()
        assert len(links[least, 0.3]) == (probable >= 0.5).sum()
    assert len(links[0.0, None]) > len(links[0.2, None]) > len(links[0.5, None]) > len(links[0.9, None]) > 0


def test_links_among_faces_are_all_that_lists_hold_of_them():
    rng = np.random.default_rng(5)
    faces = np.unique(rng.integers(0, 80, 30))
    near = np.stack([rng.permutation(80)[:20] for _ in faces])
    near[3, 4] = faces[3]  # itself, behind its first place
    found = links_among(faces, near)
    wanted = [
        (a, b) for a, i in enumerate(faces) for j in near[a] for b in np.flatnonzero(faces == j) if i != j
    ]
    assert sorted(map(tuple, found.tolist())) == sorted(wanted)
    assert len(wanted) > 50


def test_faces_encoded_once_have_the_logits_and_the_gradients_of_links_one_by_one():
    """In evaluation mode, where no link sees the others of its batch; classes weigh the same."""
    torch.manual_seed(1)
    net = Sepfl(6, 4).double().eval()
    for name, buffer in net.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    features = torch.randn(20, 6).double()
    faces, neighbors = torch.randperm(20)[:7], torch.randint(0, 20, (7, 4))
    x, xk = features[faces], features[neighbors]
    links = torch.tensor([[0, 1], [1, 0], [2, 5], [6, 3], [4, 0]])
    for same in ([1, 0, 1, 1, 0], [1, 1, 1, 1, 1]):
        same = torch.tensor(same)
        a, b = links[:, 0], links[:, 1]
        logits = net(x[a], xk[a], x[b], xk[b])
        each = torch.nn.functional.cross_entropy(logits.float(), same, reduction="none")
        wanted = torch.stack([each[same == kind].mean() for kind in same.unique()]).mean()
        batch = {"features": features, "faces": faces, "neighbors": neighbors, "links": links, "same": same}
        loss, accepted = loss_of_groups(net, batch)
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(accepted, (logits[:, 1] - logits[:, 0]).float())
        parameters = list(net.parameters())
        for one, two in zip(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)


def test_groups_are_a_face_and_its_nearest_with_all_links_between_them(people, vectors, identities):
    """Group by group; a face that is in two of them is two."""
    run, labels = new_run(people, vectors), identities_of(identities)
    knn = neighbors(run).lists
    items = np.array([3, 80, 11, int(knn.ids[3, 1]), 390])
    batch = task(run, labels, Settings(group=5, reach=6)).batch(items, np.random.default_rng(0))
    wanted = [
        (*read_features(run).array[[i, j]].ravel(), labels[i] == labels[j])
        for members in knn.ids[items, :5]
        for i in members
        for j in members
        if i != j and j in knn.ids[i, 1:7]
    ]
    ends = batch["features"][batch["faces"]][batch["links"]].reshape(len(batch["links"]), -1)
    found = [(*link, same) for link, same in zip(ends, batch["same"].astype(bool), strict=True)]
    assert sorted(found) == sorted(wanted)
    assert 20 < len(found) < 5 * 4 * 5
    assert 0 < batch["same"].sum() < len(found)
    number = {row.tobytes(): at for at, row in enumerate(read_features(run).array)}
    of = np.array([number[row.tobytes()] for row in batch["features"]])
    assert np.array_equal(of[batch["neighbors"]], knn.ids[of[batch["faces"]]])
    assert len(batch["faces"]) == 25 > len(np.unique(of[batch["faces"]]))


def test_mirrored_groups_have_the_links_and_the_similarities_of_those_that_are_not(
    people, vectors, identities
):
    run = new_run(people, vectors)
    before = read_features(run).array.copy()
    plain, mirrored, moved = (
        task(run, identities_of(identities), Settings(group=5, flips=flips, noise=noise)).batch(
            np.arange(0, 400, 50), np.random.default_rng(9)
        )
        for flips, noise in ((0.0, 0.0), (0.5, 0.0), (0.0, 0.3))
    )
    for other in (mirrored, moved):
        assert all(np.array_equal(plain[name], other[name]) for name in plain if name != "features")
    assert np.array_equal(abs(plain["features"]), abs(mirrored["features"]))
    turned = np.sign(plain["features"]) * np.sign(mirrored["features"])
    assert len(np.unique(turned, axis=0)) == 8  # one mirror a group
    for name in ("links", "neighbors"):
        sims = []
        for features in (plain["features"], mirrored["features"]):
            x = features[plain["faces"]]
            ends = (
                (x[plain["links"][:, 0]], x[plain["links"][:, 1]])
                if name == "links"
                else (x[:, None], features[plain["neighbors"]])
            )
            sims.append((ends[0] * ends[1]).sum(-1))
        assert np.allclose(*sims, atol=1e-6)
    assert 0.9 < (plain["features"] * moved["features"]).sum(-1).mean() < 0.99
    assert np.array_equal(read_features(run).array, before)


def test_a_start_from_similarity_finds_links_as_probable_as_their_faces_are_similar():
    """Behind BatchNorm with the statistics of these links, at unlike widths of the coordinates."""
    rng = np.random.default_rng(4)
    d, k, n = 32, 6, 400
    wide = np.geomspace(1, 0.05, d)
    face = rng.normal(0.2, 1, (n, d)) * wide
    other = face + rng.uniform(0.1, 2, (n, 1)) * rng.normal(0, 1, (n, d)) * wide
    face, other, near = (
        (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)
        for x in (face, other, rng.normal(0, 1, (n, k, d)) * wide)
    )
    truth = (face * other).sum(-1).argsort().argsort()

    def agreement(net):
        with torch.no_grad():
            logits = net(*map(torch.from_numpy, (face, near, other, near))).numpy()
        said = logits[:, 1] - logits[:, 0]
        return np.corrcoef(truth, said.argsort().argsort())[0, 1], (said > 0).mean()

    torch.manual_seed(0)
    net = Sepfl(d, k)
    for module in net.modules():
        module.train(isinstance(module, torch.nn.BatchNorm1d))
    assert abs(agreement(net)[0]) < 0.5
    start_from_similarity(net, np.concatenate([face, other]).var(axis=0, dtype=np.float64))
    alike, accepted = agreement(net)
    assert alike > 0.9
    assert 0.25 < accepted < 0.75


@pytest.mark.parametrize("group", [0, 5])
def test_only_who_asks_for_it_starts_from_similarity(people, vectors, identities, group):
    run, labels = new_run(people, vectors), identities_of(identities)
    assert task(run, labels, Settings(group=group)).start is None
    begun = task(run, labels, Settings(group=group, start="similarity"))
    torch.manual_seed(0)
    net, wanted = Sepfl(16, 8), Sepfl(16, 8)
    wanted.load_state_dict(net.state_dict())
    begun.start(net)
    start_from_similarity(wanted, read_features(run).array.var(axis=0, dtype=np.float64))
    for one, two in zip(net.state_dict().values(), wanted.state_dict().values(), strict=True):
        assert torch.equal(one, two)
    assert Settings(start="cosine").problem(get_system("sepfl").recipe(), 100)
