"""Runs that find neighbors in cells: the same lists however they are made, and as many of the true ones as asked."""

import json

import numpy as np
import pytest
from run_folders import load_artifact

import fcdeploy
from fcdeploy.errors import FcdeployWarning

FACES = 6000  # several cells


@pytest.fixture(scope="module")
def faces():
    random = np.random.default_rng(3)
    centres = random.standard_normal((FACES // 20, 32), dtype=np.float32)
    return centres[random.integers(0, len(centres), FACES)] + 0.6 * random.standard_normal(
        (FACES, 32), dtype=np.float32
    )


@pytest.fixture(scope="module")
def in_cells(faces, pse_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("cells") / "run"
    return fcdeploy.cluster(faces, engine=pse_bundle.path, knn="cells", run_dir=folder), folder


@pytest.mark.parametrize("options", [{"threads": 1}, {"memory": 1}, {"batch": 3, "memory": 1}], ids=str)
def test_threads_memory_and_batches_change_no_label(faces, pse_bundle, in_cells, options):
    found = fcdeploy.cluster(faces, engine=pse_bundle.path, knn="cells", **options)
    assert np.array_equal(found, in_cells[0])


def test_all_true_neighbors_are_found_when_all_are_asked_for(faces, pse_bundle, in_cells, tmp_path):
    lists = {}
    for knn, options in (("exact", {}), ("cells", {"recall": 1.0})):
        fcdeploy.cluster(faces, engine=pse_bundle.path, knn=knn, run_dir=tmp_path / knn, **options)
        lists[knn] = load_artifact(tmp_path / knn / "knn")
    usual = load_artifact(in_cells[1] / "knn")
    found = (lists["cells"]["ids"] == lists["exact"]["ids"]).mean()
    assert found > 0.999  # on a sample all were found
    assert np.array_equal(lists["cells"]["sims"][:, 0], lists["exact"]["sims"][:, 0])
    assert 0.9 < (usual["ids"][:, :, None] == lists["exact"]["ids"][:, None]).any(1).mean() <= 1


def test_another_recall_computes_the_lists_again_and_the_same_finds_them(faces, pse_bundle, in_cells):
    engine, folder = pse_bundle.path, in_cells[1]
    written = (folder / "knn/ids.npy").stat().st_mtime_ns
    fcdeploy.cluster(faces, engine=engine, knn="cells", run_dir=folder)
    assert (folder / "knn/ids.npy").stat().st_mtime_ns == written
    fcdeploy.cluster(faces, engine=engine, knn="cells", recall=0.9, run_dir=folder)
    assert (folder / "knn/ids.npy").stat().st_mtime_ns != written


def test_refined_features_have_more_cells_than_features_but_not_in_an_ivf_index(faces, pse_bundle, tmp_path):
    cells = {}
    for knn in ("cells", "ivf"):
        fcdeploy.cluster(faces, engine=pse_bundle.path, knn=knn, run_dir=tmp_path / "run")
        searched = json.loads((tmp_path / "run/summary.json").read_text())["computed"]["search"]
        cells[knn] = [searched[name]["cells"] for name in ("knn", "refined_knn")]
    assert cells == {"cells": [309, 464], "ivf": [309, 309]}  # 4 and 6 times the root of 6,000


def test_recall_that_changes_nothing_is_said(faces, pse_bundle):
    with pytest.warns(FcdeployWarning, match="recall = 0.9 has no effect: neighbors are found by exact"):
        fcdeploy.cluster(faces[:300], engine=pse_bundle.path, recall=0.9)
