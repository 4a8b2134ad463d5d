"""The demo's figures: real faces through the built-in recipe, from checkpoint to quality."""

from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.runtime.pipeline import run_clustering

DEMO = Path(__file__).parent.parent / "benchmarks/demo"


def test_the_demo_clusters_real_faces_as_well_as_its_card_says(tmp_path: Path) -> None:
    """The card says 0.857 and 0.866; components on the raw features, thresholded at their best, 0.815 and 0.829."""
    recipe = load_recipe("pse-gcn-demo")
    bundle, parities = export_checkpoint(DEMO / "pse-gcn-128.pth", tmp_path / "pse.onnx", recipe)
    assert parities["refine"].within_tolerance
    truth = read_labels(DEMO / "labels.meta")
    result = run_clustering(open_features(DEMO / "features.bin", bundle.feature_dim), bundle, truth=truth)
    quality = evaluate(result.labels, truth)
    assert quality.pairwise.f > 0.84
    assert quality.bcubed.f > 0.855
    assert result.summary["quality"] == quality.as_dict()


def test_the_pair_networks_cluster_them_better_as_their_card_says(tmp_path: Path) -> None:
    """The card says 0.888 and 0.889; the checkpoints are in half precision."""
    recipe = load_recipe("lce-pcenet-demo")
    checkpoints = [DEMO / "lce-128.pth", DEMO / "pce-128.pth"]
    bundle, parities = export_checkpoint(checkpoints, tmp_path / "lce-pcenet.onnx", recipe)
    assert all(parities[name].within_tolerance for name in ("lce", "pce"))
    truth = read_labels(DEMO / "labels.meta")
    result = run_clustering(open_features(DEMO / "features.bin", bundle.feature_dim), bundle, truth=truth)
    quality = evaluate(result.labels, truth)
    assert quality.pairwise.f > 0.875
    assert quality.bcubed.f > 0.88


def test_the_demo_is_what_its_card_says() -> None:
    truth = read_labels(DEMO / "labels.meta")
    sizes = np.bincount(np.unique(truth, return_inverse=True)[1])
    assert (len(truth), len(sizes)) == (2670, 360)
    assert open_features(DEMO / "features.bin", 128).n == 2670
