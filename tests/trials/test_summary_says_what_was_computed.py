"""The summary says how, from what and by which code labels were computed; found by reading."""

import json
import platform
import warnings

import faiss
import numba
import numpy as np
import onnxruntime
import pytest
from system_cases import CASES

import fcdeploy
from fcdeploy.cli import main
from fcdeploy.data.features import features_from_array
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.graph import knn, search
from fcdeploy.graph.knn import KnnSearch
from fcdeploy.runtime import pipeline, prepare

WHOLE = [case for case in CASES if not case.networks]


@pytest.fixture
def command(monkeypatch, capsys):
    """Call ``fcdeploy ARGS`` in this process and return what it printed, as JSON where it is."""

    def call(*args):
        monkeypatch.setattr("sys.argv", ["fcdeploy", *map(str, args)])
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            main()
        out, err = capsys.readouterr()
        return (json.loads(out) if "--json" in args else out), err

    return call


@pytest.fixture(scope="module")
def features(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "f.bin"
    np.fromfile(golden / "dev/data/features.bin", "<f4")[: 400 * 32].tofile(path)
    return path


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_every_system_says_what_it_computed(case, exported, features, command, tmp_path):
    bundle = exported(case)
    run = tmp_path / "run"
    args = ("cluster", features, "--engine", bundle.path, "-o", tmp_path / "o.meta", "--run-dir", run)
    summary, _ = command(*args, "--json", "--threads", 1)
    computed = summary["computed"]
    assert computed["system"] == bundle.system
    assert computed["inference"] == {"used": "exact", "asked": "auto"}
    assert computed["search"]["knn"]["method"] == "exact"
    assert computed["engine"] == {
        "path": str(bundle.path),
        "digest": bundle.digest(),
        "kind": "onnx",
        "precision": "fp32",
    }
    assert computed["device"] == {"device": "cpu", "provider": "CPUExecutionProvider"}
    assert computed["features"] == {
        "name": str(features),
        "rows": 400,
        "width": 32,
        "dtype": "float32",
        "normalized": bundle.manifest["recipe"]["features"]["normalize"],
        "read_as": "400 rows of 32 float32 (raw)",
        "computed": 400,
    }
    assert computed["limits"]["threads"] == 1
    assert computed["versions"] == {
        "fcdeploy": fcdeploy.__version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "numba": numba.__version__,
        "faiss": faiss.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
    for table, values in bundle.manifest["recipe"].items():
        if isinstance(values, dict) and table != "tolerance":
            for key, value in values.items():
                assert computed["settings"][f"{table}.{key}"] == value
    for file in ("summary.json", "run.json"):
        assert json.loads((run / file).read_text())["computed"] == computed
    # A run that finds everything made says the same.
    again, _ = command(*args, "--json", "--threads", 1)
    assert again["computed"] == computed


def test_thresholds_and_lists_are_those_that_were_used(pse_bundle, features, command, monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "EXACT_INFERENCE_LIMIT", 100)
    monkeypatch.setattr(knn, "PROBES", 1)
    monkeypatch.setattr(search, "PROBES", 1)
    args = ("cluster", features, "--engine", pse_bundle.path, "-o", tmp_path / "o.meta")
    summary, said = command(*args, "--k", 12, "--hops", "10,3", "--tau", 0.7, "--knn", "ivf", "--json")
    computed = summary["computed"]
    settings = computed["settings"]
    assert (settings["neighborhood.k"], settings["neighborhood.hops"], settings["links.tau"]) == (
        12,
        [10, 3],
        0.7,
    )
    assert computed["search"]["knn"] == {
        "method": "ivf",
        "k": 12,
        "cells": 1,
        "probes": 1,
        "recall": summary["recall"]["knn"]["all"],
    }
    # More faces than 100: "auto" is not the published function here, and says so.
    assert computed["inference"] == {"used": "layerwise", "asked": "auto"}
    assert "--inference exact" in said
    assert "--inference exact" in summary["notes"][0]
    np.savez(tmp_path / "lists.npz", **dict(zip(("ids", "sims"), lists_of(features, 20), strict=True)))
    summary, said = command(*args, "--knn", tmp_path / "lists.npz", "--inference", "exact", "--json")
    assert summary["computed"]["search"]["knn"] == {
        "method": "file",
        "file": str(tmp_path / "lists.npz"),
        "k": 20,
    }
    assert summary["computed"]["inference"] == {"used": "exact", "asked": "exact"}
    assert "inference" not in said


def lists_of(features, k):
    """Neighbor lists (n, k) int32 and similarities (n, k) float32."""
    rows = np.fromfile(features, "<f4").reshape(-1, 32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    search = knn.KnnSearch(rows)
    return search.search(np.arange(len(rows), dtype=np.int32), k)


def test_the_closing_summary_and_python_say_it_too(pse_bundle, features, command, tmp_path):
    out, _ = command(
        "cluster", features, "--engine", pse_bundle.path, "-o", tmp_path / "o.meta", "--tau", 0.75
    )
    for word in (
        "exact inference",
        "CPUExecutionProvider",
        "links.tau = 0.75",
        "400 rows of 32 float32",
        "fp32",
    ):
        assert word in out
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path, tau=0.75).fit(
        np.fromfile(features, "<f4").reshape(-1, 32)
    )
    assert clusterer.summary_["computed"]["settings"]["links.tau"] == 0.75
    assert clusterer.summary_["computed"]["features"]["dtype"] == "float32"


def test_the_provider_is_the_one_that_opened(pse_bundle, features, monkeypatch):
    straight = onnxruntime.InferenceSession.get_providers
    monkeypatch.setattr(
        onnxruntime.InferenceSession,
        "get_providers",
        lambda self: ["OtherExecutionProvider", *straight(self)],
    )
    rows = np.fromfile(features, "<f4").reshape(-1, 32)
    clusterer = fcdeploy.FaceClusterer(pse_bundle.path).fit(rows)
    assert clusterer.summary_["computed"]["device"]["provider"] == "OtherExecutionProvider"


def test_other_code_another_device_or_library_makes_stages_again(pse_bundle, features, monkeypatch, tmp_path):
    rows = np.fromfile(features, "<f4").reshape(-1, 32)
    bundle = read_bundle(pse_bundle.path)
    made = []
    straight = KnnSearch.search
    monkeypatch.setattr(KnnSearch, "search", lambda self, *args: made.append(1) or straight(self, *args))

    def makes_lists() -> bool:
        made.clear()
        pipeline.run_clustering(features_from_array(rows), bundle, run_dir=tmp_path / "run")
        return bool(made)

    assert makes_lists()
    assert not makes_lists()
    with monkeypatch.context() as patch:
        patch.setattr("fcdeploy.run.keys.code_digest", lambda: "other")
        assert makes_lists()
    with monkeypatch.context() as patch:
        patch.setattr(numba, "__version__", "0.0")
        assert makes_lists()
    with monkeypatch.context() as patch:
        patch.setattr(type(bundle), "provider", lambda self, asked=None: "CUDAExecutionProvider")
        assert makes_lists()
    assert makes_lists()
    assert not makes_lists()


def test_tuning_and_benchmarks_say_it_too(pse_bundle, golden, features, command, tmp_path):
    labels = (golden / "dev/data/labels.meta").read_text().split()[:400]
    (tmp_path / "t.meta").write_text("\n".join(labels) + "\n")
    known = ("--features", features, "--labels", tmp_path / "t.meta", "-o", tmp_path / "t.toml")
    tuned, _ = command("tune", "--engine", pse_bundle.path, *known, "--json")
    computed = tuned["computed"]
    assert computed["settings"]["links.tau"] == tuned["before"]["values"]["links.tau"]
    assert computed["device"]["provider"] == "CPUExecutionProvider"
    assert computed["engine"]["digest"] == pse_bundle.digest()
    small = ("--seconds", 0, "--batch", 2, "--nodes", 3, "--faces", 100)
    (report,), _ = command("bench", pse_bundle.path, *small, "--json")
    assert report["digest"] == pse_bundle.digest()
    assert report["opened"] == "CPUExecutionProvider"
    assert report["versions"].keys() == {"fcdeploy", "python", "numpy", "onnxruntime"}
