"""SEPFL's training links, and links that a recipe is content with."""

import json

import numpy as np
import pytest

import fcdeploy
from fcdeploy.errors import InputError

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint  # noqa: E402
from fcdeploy.systems.sepfl.spec import LinkSettings, Recipe  # noqa: E402
from fcdeploy.systems.sepfl.training import drawn_links  # noqa: E402


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


def test_a_recipe_may_be_content_with_links_that_the_network_refuses(golden, tmp_path):
    """Probability by probability: one half is what the network accepts, and the user's option asks for more only."""
    features = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:300]
    recipe = Recipe(feature_dim=32, links=LinkSettings(20, 0.6))
    path = export_checkpoint(golden / "dev/sepfl/checkpoint.pth", tmp_path / "sepfl.onnx", recipe)[0].path
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
