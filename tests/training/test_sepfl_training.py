"""SEPFL's training links, and links that a recipe is content with."""

import json
import shutil

import numpy as np
import pytest
from system_cases import CASES

import fcdeploy
from fcdeploy.errors import InputError

torch = pytest.importorskip("torch")
from fcdeploy.systems.sepfl.network import Sepfl  # noqa: E402
from fcdeploy.systems.sepfl.training import (  # noqa: E402
    drawn_links,
    links_among,
    loss_of_groups,
)

SEPFL = next(case for case in CASES if case.name == "sepfl")


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
            links[least, asked] = np.load(run / "links.npz")["probability"]
        logits = np.load(run / "candidates.npz")["logits"]
    candidates = (np.load(run / "candidates.npz")["ids"] >= 0) & (np.array(logits) != 0).any(1)
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
    x, xk = torch.randn(7, 6).double(), torch.randn(7, 4, 6).double()
    links = torch.tensor([[0, 1], [1, 0], [2, 5], [6, 3], [4, 0]])
    for same in ([1, 0, 1, 1, 0], [1, 1, 1, 1, 1]):
        same = torch.tensor(same)
        a, b = links[:, 0], links[:, 1]
        logits = net(x[a], xk[a], x[b], xk[b])
        each = torch.nn.functional.cross_entropy(logits.float(), same, reduction="none")
        wanted = torch.stack([each[same == kind].mean() for kind in same.unique()]).mean()
        loss, accepted = loss_of_groups(net, {"faces": x, "neighbors": xk, "links": links, "same": same})
        torch.testing.assert_close(loss, wanted)
        torch.testing.assert_close(accepted, (logits[:, 1] - logits[:, 0]).float())
        parameters = list(net.parameters())
        for one, two in zip(
            torch.autograd.grad(loss, parameters), torch.autograd.grad(wanted, parameters), strict=True
        ):
            torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-7)
