"""NSR-FC's losses against the published forms, its training links link by link, and its chain of networks."""

import json
import shutil

import numpy as np
import pytest

from fcdeploy.graph.links import NO_LINK

torch = pytest.importorskip("torch")
from fcdeploy.systems.nsr_fc import training  # noqa: E402
from fcdeploy.systems.nsr_fc.inputs import position_code  # noqa: E402
from fcdeploy.systems.nsr_fc.network import Lce, Pce, Rescore  # noqa: E402


@pytest.fixture
def features():
    rng = np.random.default_rng(6)
    rows = rng.standard_normal((5, 8, 16)).astype(np.float32)
    return torch.from_numpy(rows / np.linalg.norm(rows, axis=-1, keepdims=True))


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("across_neighbors", [False, True])
def test_the_re_scoring_learns_who_is_the_person_of_the_face(features, across_neighbors, final):
    """Binary cross entropy in float64 on the network's own logits, averaged over all neighbors."""
    torch.manual_seed(2)
    net = Rescore(16, 32, 2, final)
    code = torch.from_numpy(position_code(8, 16))
    same = torch.from_numpy(np.random.default_rng(1).integers(0, 2, (5, 8)).astype(np.float32))
    batch = {"features": features, "code": code, "same": same}
    loss, said = training.rescore_loss(net, batch, across_neighbors, 0.0)
    logits = net.double()(features.double(), code.double(), across_neighbors).detach().numpy()
    p = 1 / (1 + np.exp(-logits))
    wanted = -np.where(same.numpy() == 1, np.log(p), np.log(1 - p)).mean()
    assert float(loss.detach()) == pytest.approx(wanted, abs=1e-6)
    assert said.detach().numpy() == pytest.approx(logits.ravel(), abs=1e-5)


def test_the_pair_networks_learn_which_are_one_person(features):
    """Cross entropy in float64 on the networks' own logits."""
    torch.manual_seed(3)
    rng = np.random.default_rng(4)
    lce, pce = Lce(16, 8, 32, 3), Pce(16, 4, 32, 3, 24)
    for net, loss, same in (
        (lce, training.lce_loss, rng.integers(0, 2, (5, 8))),
        (pce, training.pce_loss, rng.integers(0, 2, 5)),
    ):
        value, said = loss(net, {"features": features, "same": torch.from_numpy(same)}, 0.0)
        logits = net.double()(features.double()).detach().numpy()
        shares = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        wanted = -np.where(same == 1, shares[..., 1], shares[..., 0]).mean()
        assert float(value.detach()) == pytest.approx(wanted, abs=1e-6)
        assert said.detach().numpy() == pytest.approx((logits[..., 1] - logits[..., 0]).ravel(), abs=1e-5)


@pytest.mark.parametrize("norm_first", [False, True])
def test_dropout_is_where_pytorch_has_it(norm_first):
    """Means over many draws against PyTorch's own layers with the same weights; at inference there is none."""
    torch.manual_seed(0)
    net = training.Encoder(16, 32, 2, norm_first=norm_first)
    layer = torch.nn.TransformerEncoderLayer(
        16, training.HEADS, 32, dropout=0.4, batch_first=True, norm_first=norm_first
    )
    plain = torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    plain.load_state_dict(net.state_dict())
    x = torch.randn(1, 6, 16).expand(4000, 6, 16)
    with torch.no_grad():
        ours, theirs = training.encoded(net, x, 0.4), plain(x)
        assert (ours.std(0) > 0.05).all()
        for moment in (torch.mean, torch.std):
            assert torch.allclose(moment(ours, 0), moment(theirs, 0), atol=0.06)
        net.eval()
        plain.eval()
        assert torch.allclose(training.encoded(net, x[:2], 0.4), plain(x[:2]), atol=1e-5)


def test_links_of_two_persons_are_the_strongest_to_denser_neighbors():
    """Face by face: all denser neighbors of others with any strength, sorted."""
    rng = np.random.default_rng(9)
    n, k, most = 50, 9, 3
    ids = np.stack([np.r_[i, rng.permutation(np.delete(np.arange(n), i))[: k - 1]] for i in range(n)])
    strengths = rng.integers(0, 6, (n, k)) / 5
    density, labels = rng.integers(0, 20, n) / 20, rng.integers(0, 3, n)
    faces = rng.permutation(n)[:30]
    found = training.strongest_of_others(
        ids[faces].astype(np.int32), strengths[faces], density, labels, faces, most
    )
    for row, i in zip(found, faces, strict=True):
        able = [
            p
            for p in range(1, k)
            if density[ids[i, p]] > density[i] and labels[ids[i, p]] != labels[i] and strengths[i, p] > 0
        ]
        wanted = [ids[i, p] for p in sorted(able, key=lambda p: -strengths[i, p])][:most]
        assert row.tolist() == wanted + [NO_LINK] * (most - len(wanted))


@pytest.fixture
def chain(people, fcdeploy, tmp_path, monkeypatch):
    """The options of four networks, each trained behind those before it: PSE-GCN's checkpoint refines."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(people, tmp_path, dirs_exist_ok=True)
    data = ("--features", "f.bin", "--labels", "f.meta", "--threads", 1)
    short = ("--steps", 6, "--batch", 32, "--lr", 1e-3, "--splits", 2, "--validation", 0.4)
    done = fcdeploy(
        *("train", "pse-gcn", *data, "--recipe", "pse-gcn.toml", "-o", "refine.pth"),
        *("--steps", 2, "--batch", 4, "--set", "nodes=12"),
    )
    assert done.code == 0, done.err
    for network, needed in (("rescore", ["refine"]), ("lce", []), ("pce", ["refine", "rescore", "lce"])):
        ckpts = [part for name in needed for part in ("--ckpt", f"{name}.pth")]
        done = fcdeploy(
            *("train", "nsr-fc", *data, "--network", network, "--recipe", "nsr-fc.toml", *ckpts, *short),
            *("-o", f"{network}.pth"),
        )
        assert done.code == 0, done.err
        assert (f"{network} of NSR-FC, after {' and '.join(needed)}:" in done.err) == bool(needed)
    return (
        data,
        short,
        [part for name in ("refine", "rescore", "lce", "pce") for part in ("--ckpt", f"{name}.pth")],
    )


def test_a_re_scoring_behind_a_refinement_is_of_no_use_for_raw_features(chain, fcdeploy):
    data, short, _ = chain
    done = fcdeploy(
        *("train", "nsr-fc", *data, "--network", "pce", "--recipe", "nsr-fc.toml", *short, "-o", "x.pth"),
        *("--ckpt", "lce.pth", "--ckpt", "rescore.pth"),
    )
    assert done.code == 2
    assert "LCENet and PCENet are for 16-d input features" in done.err


@pytest.mark.slow
def test_a_chain_that_was_trained_is_exported_tuned_and_clusters(chain, fcdeploy, tmp_path):
    """Slow for the export of four networks; those of the goldens are exported by many tests."""
    from fcdeploy.deploy.recipe import load_recipe
    from fcdeploy.systems.settings import settings_as_dict

    data, _, ckpts = chain
    done = fcdeploy("export", *ckpts, "--recipe", "pce.toml", "-o", "n.onnx")
    assert done.code == 0, done.err
    manifest = tmp_path / "n.onnx/manifest.json"
    for link, key in (("pairs", "pairs.min_probability"), ("density-peaks", "density_peaks.tau")):
        tuned = fcdeploy("tune", "--engine", "n.onnx", *data, "--link", link, "-o", f"{link}.toml")
        assert tuned.code == 0, tuned.err
        assert f"* chosen: {key}" in tuned.out
        fields = json.loads(manifest.read_text())
        fields["recipe"] = settings_as_dict(load_recipe(f"{link}.toml"))
        manifest.write_text(json.dumps(fields))
        clustered = fcdeploy(
            *("cluster", "f.bin", "--engine", "n.onnx", "--link", link, "--labels", "f.meta", "--threads", 1)
        )
        f = tuned.out.partition("* chosen: ")[2].partition("pairwise F ")[2][:6]
        assert f"pairwise F {f}" in clustered.out
    assert load_recipe("pairs.toml").pairs.certain_weights in ((), (0.1, 0.2, 0.7))
