"""Limits that cut say so, and so do embeddings that tell nobody apart.

Reported at learn-to-cluster #69 (a person of more faces than max_size comes apart), facerecognition #730 (one person in
many clusters), MagFace #8, InsightFace-tensorflow #48 and frigate PR #23712 (faces that are all alike).
"""

import json
import shutil
import warnings

import numpy as np
import pytest
from embedders import write_embedder
from PIL import Image
from system_cases import CASES

import fcdeploy
from fcdeploy.clustering.propagation import Cuts
from fcdeploy.data.features import features_from_array
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.graph.alike import random_pairs
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import run_clustering
from fcdeploy.systems.limits import persons_divided
from fcdeploy.training.tune import tune

WHOLE = {case.name: case for case in CASES if not case.networks}
D = 32


@pytest.fixture
def changed(exported, tmp_path):
    """Give a system's golden bundle with another recipe: a function of its tables."""

    def change(name, edit):
        bundle = exported(WHOLE[name])
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}.onnx"
        shutil.copytree(bundle.path, folder)
        manifest = json.loads((folder / "manifest.json").read_text())
        edit(manifest["recipe"])
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return read_bundle(folder)

    return change


def capped(name, cap):
    """Return what sets a system's max_size."""

    def edit(recipe):
        for table in [recipe["propagation"]] if name == "l-gcn" else recipe["proposals"]:
            table["max_size"] = cap

    return edit


def person(golden, n, noise, others=0, seed=0):
    """Features of one person, around a face of the goldens, and of others that nothing joins."""
    draw = np.random.default_rng(seed)
    face = np.fromfile(golden / "dev/data/features.bin", "<f4")[:D]
    face /= np.linalg.norm(face)
    one = face + noise * draw.standard_normal((n, D))
    return np.concatenate([one, draw.standard_normal((others, D))]).astype(np.float32)


def told(features, bundle, **options):
    """Run, and return the summary; every note was a warning, too.

    Its persons are of faces so alike that they would count once.
    """
    options = {"duplicates": "as-published", **options}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = options.pop("run_dir", None)
        found = run_clustering(features_from_array(features), bundle, Options(**options), run_dir=run)
    said = [str(each.message) for each in caught if issubclass(each.category, fcdeploy.FcdeployWarning)]
    assert said == found.summary.get("notes", [])
    return found, said


@pytest.mark.parametrize(
    ("name", "key"), [("l-gcn", "propagation.max_size"), ("gcn-d", "proposals.max_size")]
)
def test_a_person_of_more_faces_than_max_size_is_told(name, key, golden, changed, tmp_path):
    features, bundle = person(golden, 150, 0.02, others=120), changed(name, capped(name, 40))
    found, said = told(features, bundle, run_dir=tmp_path / "run")
    (sentence,) = [one for one in said if "max_size" in one]
    figure = found.summary["max_size"]
    clusters = len(set(found.labels[:150].tolist()))
    assert clusters > 3
    assert (figure["limit"], figure["components_cut"]) == (40, 1)
    assert 40 < figure["faces"] <= 150
    assert figure["faces"] == figure["largest"]
    assert f"{key} = 40 cut 1 component" in sentence
    assert f"{figure['clusters']:,} clusters" in sentence
    assert "--recipe" in sentence
    if figure["faces"] == 150:
        assert figure["clusters"] == clusters
    # A run that finds everything made says the same.
    again, repeated = told(features, bundle, run_dir=tmp_path / "run")
    assert (again.summary["max_size"], repeated) == (figure, said)
    assert np.array_equal(again.labels, found.labels)
    # What to type helps.
    whole, said = told(features, changed(name, capped(name, 200)))
    assert "max_size" not in whole.summary


def test_two_persons_that_a_cap_cuts_are_two_components(golden, changed):
    features = np.concatenate([person(golden, 100, 0.02), -person(golden, 70, 0.02, others=80, seed=1)])
    found, said = told(features, changed("gcn-d", capped("gcn-d", 30)))
    assert found.summary["max_size"]["components_cut"] == 2
    assert any("cut 2 components" in one and "each of one person" in one for one in said)


def test_chains_of_persons_are_what_a_cap_is_for(golden):
    """Ten persons of ten faces in one component: no two in three of its pairs are alike. One of a hundred: all are."""
    draw = np.random.default_rng(2)
    centres = np.eye(D, dtype=np.float32)[:10]
    chain = np.repeat(centres, 10, axis=0) + 0.05 * draw.standard_normal((100, D)).astype(np.float32)
    one = np.tile(centres[:1], (100, 1)) + 0.1 * draw.standard_normal((100, D)).astype(np.float32)
    vectors = np.concatenate([chain, one, draw.standard_normal((300, D)).astype(np.float32)])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    sims = vectors @ vectors.T
    np.fill_diagonal(sims, -1)
    component = np.full(500, -1, dtype=np.int32)
    component[:100], component[100:200] = 0, 1
    (found,) = persons_divided(Cuts(component, 0, False, 0), vectors, sims.max(axis=1))
    assert found.tolist() == list(range(100, 200))
    # What was never divided is no cut.
    assert persons_divided(Cuts(component, 2, True, 0), vectors, sims.max(axis=1)) == []


def test_fewer_faces_than_max_size_become_one_cluster_in_l_gcn_and_it_says_so(golden, changed):
    features = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, D)[:120]
    found, said = told(features, changed("l-gcn", capped("l-gcn", 300)))
    assert found.summary["clustered_unasked"] == np.bincount(found.labels).max() > 60
    assert any("propagation.max_size = 300" in one and "whatever the network says" in one for one in said)
    asked, said = told(features, changed("l-gcn", capped("l-gcn", 30)))
    assert "clustered_unasked" not in asked.summary
    assert asked.labels.max() > found.labels.max()


def test_components_that_no_round_divides_and_become_one_are_told(golden, changed):
    """Persons of equal rows: their links have the highest score, which every threshold lets through."""

    def edit(recipe):
        recipe["proposals"] = [{**recipe["proposals"][0], "max_size": 20, "merge": []}]

    features = np.concatenate(
        [np.repeat(np.eye(D, dtype=np.float32)[:2], 30, axis=0), person(golden, 20, 0.5)]
    )
    bundle = changed("gcn-d", edit)
    found, said = told(features, bundle)
    if "united" not in found.summary:  # similarities may round to a bit below 1
        pytest.skip("no similarity is exactly 1 here")
    assert found.summary["united"] == {"components": 2, "faces": 60}
    assert any("2 components of 60 faces" in one for one in said)


@pytest.mark.parametrize("name", WHOLE)
def test_random_pairs_that_are_alike_are_told_by_every_system(name, exported, golden, tmp_path):
    draw = np.random.default_rng(0)
    alike = (1 + 0.05 * draw.standard_normal((150, D))).astype(np.float32)
    found, said = told(alike, exported(WHOLE[name]))
    assert found.summary["random_pairs_cosine"] == pytest.approx(random_pairs(alike).median)
    assert found.summary["random_pairs_cosine"] > 0.9
    (sentence,) = [one for one in said if "random pairs" in one]
    for word in ("1.00", "preprocessing", "channels", "mean", "scale", "alignment"):
        assert word in sentence
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, D)[:400]
    _, said = told(faces, exported(WHOLE[name]))
    assert not [one for one in said if "random pairs" in one]


def test_few_faces_say_nothing_of_random_pairs(exported):
    alike = np.ones((20, D), np.float32) + 0.01 * np.arange(D, dtype=np.float32)
    found, said = told(alike, exported(WHOLE["pse-gcn"]))
    assert said == [one for one in said if "random" not in one]
    assert "random_pairs_cosine" not in found.summary


def test_embeddings_that_are_alike_are_told_where_they_are_made(tmp_path):
    write_embedder(tmp_path / "e.onnx", dim=D)
    (tmp_path / "e.toml").write_text('channels = "rgb"\nmean = 0\nscale = 255\n')
    draw = np.random.default_rng(0)
    for at in range(60):  # a mean that is far from zero swamps what tells pictures apart
        pixels = 200 + 10 * draw.standard_normal((16, 16, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{at}.png")
    images = [tmp_path / f"{at}.png" for at in range(60)]
    with pytest.warns(fcdeploy.FcdeployWarning, match="random pairs of faces are similar"):
        fcdeploy.embed(images, model=tmp_path / "e.onnx")


def test_random_pairs_by_hand():
    """Half of the faces point up, half down: half of the pairs are at 1, half at -1; scale and dtype do not matter."""
    rows = np.concatenate([np.ones((50, 3)), -np.ones((50, 3))]).astype(np.float16) * np.float16(7)
    assert random_pairs(rows).quarter == pytest.approx(-1)
    assert random_pairs(rows, np.arange(50)).tenth == pytest.approx(1)
    assert random_pairs(rows) == random_pairs(rows)


def test_all_faces_alone_or_most_in_one_cluster_are_told(exported, golden):
    faces = np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, D)[:400]
    bundle = exported(WHOLE["pse-gcn"])
    found, said = told(faces, bundle, tau=1.0)
    if found.labels.max() + 1 == len(faces):
        assert found.summary["largest_cluster"] == 1
        assert any("all 400 faces are alone" in one and "links.tau = 1.0" in one for one in said)
    found, said = told(person(golden, 150, 0.05, others=40), bundle, tau=-1.0)
    largest = int(np.bincount(found.labels).max())
    assert largest > 95
    assert found.summary["largest_cluster"] == largest
    assert any(f"{largest} of 190 faces" in one and "fcdeploy tune" in one for one in said)
    _, said = told(faces, bundle)
    assert said == []


def test_tuning_says_it_once_and_nothing_of_what_it_tries(changed, golden):
    data = golden / "dev/data"
    faces = np.fromfile(data / "features.bin", "<f4").reshape(-1, D)[:300]
    truth = np.loadtxt(data / "labels.meta", dtype=np.int64)[:300]
    bundle = changed("pse-gcn", lambda recipe: recipe["links"].update(tau=0.3))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tune(features_from_array(faces + 50), bundle, truth)
    said = [str(one.message) for one in caught if issubclass(one.category, fcdeploy.FcdeployWarning)]
    assert len([one for one in said if "random pairs" in one]) == 1
    assert not [one for one in said if "cluster" in one or "alone" in one]
