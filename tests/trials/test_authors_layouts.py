"""Files in the layouts of the systems' own READMEs go in unchanged, and come out as the authors' files do.

L-GCN: github.com/Zhongdao/gcn_clustering (features N x D, labels N x 1, knn graph N x (k + 1), all ``.npy``); PSE-GCN,
SEPFL, NSR-FC: features/NAME.bin, labels/NAME.meta, knns/NAME/faiss_k_80.npz of github.com/yl-1993/learn-to-cluster, and
the re-ranked lists of github.com/Stalker-DAs/PSE-GCN; GCN-D: a list of face crops.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from embedders import pictures_of, write_embedder
from PIL import Image
from system_cases import CASES

from fcdeploy.data.labels import read_labels, renumber

DIM, K = 32, 20
Succeed = Callable[..., str]


@pytest.fixture
def succeed(fcdeploy: Command) -> Succeed:
    """Call ``fcdeploy ARGS`` in this process, which has to succeed; return what it printed."""

    def call(*args: object) -> str:
        done = fcdeploy(*args)
        assert done.code == 0, done.err
        return done.out

    return call


@pytest.fixture
def engine_of(exported: Any) -> Callable[[str], Path]:
    """The bundle of a system's golden checkpoints."""
    return lambda name: exported(next(c for c in CASES if c.name == name and not c.networks)).path


@pytest.fixture
def here(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The goldens' faces in both layouts."""
    monkeypatch.chdir(tmp_path)
    data = golden / "dev/data"
    for folder in ("features", "labels", "knns/part1_test"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(data / "features.bin", "features/part1_test.bin")
    shutil.copy(data / "labels.meta", "labels/part1_test.meta")
    shutil.copy(data / "faiss_k_20.npz", "knns/part1_test/faiss_k_80.npz")
    features = np.fromfile(data / "features.bin", "<f4").reshape(-1, DIM)
    np.save("features.npy", features)
    np.save("labels.npy", np.loadtxt(data / "labels.meta").reshape(-1, 1))  # float64, as np.loadtxt gives it
    with np.load(data / "faiss_k_20.npz") as lists:
        np.save("knn.graph.npy", lists["data"][:, 0].astype(np.int64))  # the face itself first
    return tmp_path


def same_clusters(one: Path | str, other: Path | str | np.ndarray) -> bool:
    labels = other if isinstance(other, np.ndarray) else read_labels(Path(other))
    return np.array_equal(renumber(read_labels(Path(one))), renumber(labels))


def test_l_gcn_s_own_layout_gives_the_authors_clusters(
    engine_of: Callable[[str], Path], succeed: Succeed, here: Path, golden: Path
) -> None:
    engine = engine_of("l-gcn")
    succeed("cluster", "features.npy", "--engine", engine, "--knn", "knn.graph.npy", "-o", "pred_labels.npy")
    with np.load(golden / "dev/lgcn/labels.npz") as labels:
        assert same_clusters("pred_labels.npy", labels["l2c_labels_max40_step0.6_avg"])
    measures = json.loads(succeed("evaluate", "pred_labels.npy", "labels.npy", "--json"))
    assert measures["faces"] == len(np.load("features.npy"))
    args = ("--features", "features.npy", "--labels", "labels.npy", "-o", "tuned.toml", "--json")
    tuned = json.loads(succeed("tune", "--engine", engine, *args))
    assert tuned["best"]["pairwise"]["f"] >= tuned["before"]["pairwise"]["f"] > 0


@pytest.mark.parametrize("system", ["pse-gcn", "sepfl"])
def test_learn_to_cluster_s_layout_gives_the_same_as_arrays(
    system: str, engine_of: Callable[[str], Path], succeed: Succeed, here: Path
) -> None:
    engine = ("--engine", engine_of(system))
    knn = ("--knn", "knns/part1_test/faiss_k_80.npz")
    summary = json.loads(
        succeed("cluster", "features/part1_test.bin", *engine, *knn, "-o", "pred_labels.txt", "--json")
    )
    assert summary["faces"] == 1283
    lines = Path("pred_labels.txt").read_text().split("\n")
    assert len(lines) == 1284  # line i is the cluster of face i
    succeed("cluster", "features.npy", *engine, *knn, "-o", "other.npy", "--quiet")
    assert same_clusters("pred_labels.txt", "other.npy")
    measures = json.loads(succeed("evaluate", "pred_labels.txt", "labels/part1_test.meta", "--json"))
    assert measures["pairwise"]["f"] > 0.5


def test_pse_gcn_s_reranked_lists_give_the_authors_clusters(
    engine_of: Callable[[str], Path], succeed: Succeed, here: Path, golden: Path
) -> None:
    with np.load(golden / "dev/pse/reranking.npz") as lists:
        np.save("reranking_knn_part1_test.npy", lists["knn"])
    knn = ("--knn", "knns/part1_test/faiss_k_80.npz", "--reranked", "reranking_knn_part1_test.npy")
    engine = ("--engine", engine_of("pse-gcn"))
    succeed("cluster", "features/part1_test.bin", *engine, *knn, "-o", "pred_labels.meta", "--quiet")
    with np.load(golden / "dev/pse/clustering.npz") as authors:
        (labels,) = (authors[name] for name in authors if name.startswith("labels_") and name.endswith("0.8"))
        assert same_clusters("pred_labels.meta", labels)


def test_nsr_fc_s_lists_of_deepfashion_are_those_of_the_other_form(
    engine_of: Callable[[str], Path], succeed: Succeed, here: Path
) -> None:
    with np.load("knns/part1_test/faiss_k_80.npz") as lists:
        np.savez("deepfashion.npz", knns=lists["data"][:, 0].astype(np.int32), dists=lists["data"][:, 1])
    engine = ("--engine", engine_of("nsr-fc"))
    for lists, output in (("deepfashion.npz", "a.meta"), ("knns/part1_test/faiss_k_80.npz", "b.meta")):
        succeed("cluster", "features/part1_test.bin", *engine, "--knn", lists, "-o", output, "--quiet")
    assert same_clusters("a.meta", "b.meta")


def test_gcn_d_s_list_of_crops_gives_clusters_of_its_lines(
    engine_of: Callable[[str], Path], succeed: Succeed, here: Path
) -> None:
    Path("crops").mkdir()
    for at, picture in enumerate(pictures_of(60, people=6)):
        Image.fromarray(picture).save(f"crops/{at:02}.jpg", quality=95)
    Path("filelist.txt").write_text("".join(f"crops/{at:02}.jpg\n" for at in range(60)))
    embedder = write_embedder(here / "embedder.onnx")
    engine = engine_of("gcn-d")
    succeed(
        "cluster", "filelist.txt", "--engine", engine, "--embedder", embedder, "-o", "clusters.txt", "--quiet"
    )
    succeed("embed", "filelist.txt", "--model", embedder, "-o", "feature.bin", "--quiet")
    succeed("cluster", "feature.bin", "--engine", engine, "-o", "again.txt", "--quiet")
    assert Path("clusters.txt").read_text() == Path("again.txt").read_text()
    ids = [int(number) for number in Path("clusters.txt").read_text().split()]
    assert sorted(ids) == list(range(60))
