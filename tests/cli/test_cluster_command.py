"""What the commands do when all is well: cluster and its run folder, export, inspect, recipe, doctor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.base
from run_folders import load_artifact, made

from fcdeploy import FaceClusterer, cluster
from fcdeploy.data.labels import read_labels, renumber
from fcdeploy.errors import FcdeployWarning

STAGES = {"features", "knn", "rerank", "refine", "refined_knn", "links", "clusters"}
KEPT = ("knn", "reranked", "refined", "refined_knn", "links", "evidence")

Labels = Callable[..., np.ndarray]


@pytest.fixture
def labels_of(fcdeploy: Any, bundle: Path, tmp_path: Path) -> Labels:
    """Run ``fcdeploy cluster FEATURES OPTIONS --quiet`` and read the labels it wrote."""

    def run(features: Path, *options: object, note: str | None = None) -> np.ndarray:
        output = tmp_path / "pred_labels.meta"
        outcome = fcdeploy("cluster", features, "--engine", bundle, "-o", output, "--quiet", *options)
        assert outcome.code == 0, outcome
        assert outcome.out == ""
        assert outcome.err == (f"Note: {note}\n" if note else "")
        labels = read_labels(output)
        output.unlink()
        return labels

    return run


@pytest.fixture
def features(tmp_path: Path, few: np.ndarray) -> Path:
    """200 faces; float16 holds them exactly, so every float dtype does."""
    few.astype(np.float16).astype("<f4").tofile(tmp_path / "features.bin")
    return tmp_path / "features.bin"


def rows_of(features: Path) -> np.ndarray:
    return np.fromfile(features, "<f4").reshape(-1, 32)


def times(run_dir: Path) -> dict[str, int]:
    """When the arrays of each artifact in a run folder were written."""
    return {name: max(when for _, when in made(run_dir / name).values()) for name in KEPT}


# The summary


def test_json_holds_exactly_what_is_documented(
    fcdeploy: Any, bundle: Path, golden: Path, tmp_path: Path
) -> None:
    data = golden / "dev/data"
    args = ("cluster", data / "features.bin", "--engine", bundle, "-o", tmp_path / "pred.meta", "--json")
    outcome = fcdeploy(*args)
    note = f"Note: {data}/features.bin: read as 1,283 rows of 32 float32 (raw).\n"
    assert (outcome.code, outcome.err) == (0, note)
    summary = json.loads(outcome.out)
    assert summary.keys() == {
        *("faces", "clusters", "singletons", "peak_bytes", "stages", "computed", "duplicates")
    }
    assert summary["stages"].keys() == STAGES
    for stage in summary["stages"].values():
        assert stage.keys() == {"seconds", "faces_per_s"}
        assert stage["seconds"] >= 0
    sizes = np.bincount(read_labels(tmp_path / "pred.meta"))
    assert summary["faces"] == 1283 == sizes.sum()
    assert summary["clusters"] == len(sizes)
    assert summary["singletons"] == (sizes == 1).sum()
    assert 1e7 < summary["peak_bytes"] < 1e11

    outcome = fcdeploy(*args, "--labels", data / "labels.meta")
    with_quality = json.loads(outcome.out)
    assert with_quality.keys() == summary.keys() | {"quality"}
    evaluated = fcdeploy("evaluate", tmp_path / "pred.meta", data / "labels.meta", "--json")
    assert with_quality["quality"] == json.loads(evaluated.out)


def test_without_options_the_summary_is_on_stdout_and_the_talk_on_stderr(
    fcdeploy: Any, bundle: Path, features: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = fcdeploy("cluster", features, "--engine", bundle)
    assert outcome.code == 0
    assert "200 faces in" in outcome.out
    assert "labels in pred_labels.meta" in outcome.out
    assert "refinement: 200 faces" in outcome.err
    assert (tmp_path / "pred_labels.meta").is_file()


def test_quiet_prints_nothing_and_leaves_nothing_but_the_labels(
    fcdeploy: Any, bundle: Path, features: Path, tmp_path: Path
) -> None:
    outcome = fcdeploy("cluster", features, "--engine", bundle, "-o", tmp_path / "pred.meta", "--quiet")
    assert outcome == type(outcome)(0, "", "")
    assert {path.name for path in tmp_path.iterdir()} == {"features.bin", "pred.meta"}


def test_the_published_lists_give_the_published_clusters(
    labels_of: Labels, golden: Path, tmp_path: Path
) -> None:
    """PSE-GCN's own clustering.py on the same lists, at each of its eight thresholds."""
    published = np.load(golden / "dev/pse/clustering.npz")
    np.save(tmp_path / "ranked.npy", np.load(golden / "dev/pse/reranking.npz")["knn"])
    taus = [name.removeprefix("labels_") for name in published.files if name.startswith("labels_")]
    assert len(taus) == 8
    for tau in taus:
        data = golden / "dev/data"
        options = ("--knn", data / "faiss_k_20.npz", "--reranked", tmp_path / "ranked.npy")
        found = labels_of(data / "features.bin", *options, "--run-dir", tmp_path / "run", "--tau", tau)
        assert np.array_equal(found, renumber(published[f"labels_{tau}"]))


# Run folders


def test_a_run_folder_keeps_what_every_stage_made(labels_of: Labels, features: Path, tmp_path: Path) -> None:
    labels = labels_of(features, "--run-dir", tmp_path / "run")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *KEPT,
        "labels",
        "vectors",
        "state.json",
        "summary.json",
        "run.json",
        "run.lock",
    }
    arrays = {
        f"{name}/{part}": array
        for name in KEPT
        if name != "evidence"
        for part, array in load_artifact(tmp_path / "run" / name).items()
    }
    m = len(arrays["links/ids"])
    assert {name: (array.shape, array.dtype.name) for name, array in arrays.items()} == {
        "knn/ids": ((200, 20), "int32"),
        "knn/sims": ((200, 20), "float32"),
        "reranked/ids": ((200, 20), "int32"),
        "reranked/sims": ((200, 20), "float32"),
        "refined_knn/ids": ((200, 20), "int32"),
        "refined_knn/sims": ((200, 20), "float32"),
        "links/ids": ((m, 2), "int32"),
        "links/sims": ((m,), "float32"),
        "refined/refined": ((200, 64), "float32"),
    }
    refined = np.load(tmp_path / "run/refined/refined.npy")
    assert (refined.shape, refined.dtype) == ((200, 64), np.float32)
    np.testing.assert_allclose(np.linalg.norm(refined, axis=1), 1, atol=1e-5)  # float32 rounding
    assert json.loads((tmp_path / "run/summary.json").read_text())["clusters"] == labels.max() + 1
    # A forest: every link joins two clusters, so there are as many clusters as faces without a link.
    assert labels.max() + 1 == 200 - m
    sims = (refined[arrays["links/ids"][:, 0]] * refined[arrays["links/ids"][:, 1]]).sum(axis=1)
    np.testing.assert_allclose(arrays["links/sims"], sims, atol=1e-5)  # float32 rounding
    assert (arrays["links/sims"] >= np.float32(0.8)).all()


def test_the_same_command_again_takes_what_is_there(
    labels_of: Labels, features: Path, tmp_path: Path
) -> None:
    labels = labels_of(features, "--run-dir", tmp_path / "run")
    before = times(tmp_path / "run")
    assert np.array_equal(labels_of(features, "--run-dir", tmp_path / "run"), labels)
    assert times(tmp_path / "run") == before


def test_another_tau_makes_only_the_links_again(labels_of: Labels, features: Path, tmp_path: Path) -> None:
    labels = labels_of(features, "--run-dir", tmp_path / "run")
    before = times(tmp_path / "run")
    looser = labels_of(features, "--run-dir", tmp_path / "run", "--tau", "0.5")
    assert looser.max() < labels.max()
    assert np.array_equal(looser, labels_of(features, "--tau", "0.5"))
    after = times(tmp_path / "run")
    assert {name for name in KEPT if after[name] != before[name]} == {"links", "evidence"}


def test_changed_features_make_everything_again(labels_of: Labels, features: Path, tmp_path: Path) -> None:
    labels_of(features, "--run-dir", tmp_path / "run")
    before = times(tmp_path / "run")
    rows_of(features)[::-1].tofile(features)
    assert np.array_equal(labels_of(features, "--run-dir", tmp_path / "run"), labels_of(features))
    after = times(tmp_path / "run")
    assert all(after[name] != before[name] for name in KEPT)


# Few faces


@pytest.mark.parametrize("n", [1, 2, 3])
def test_a_handful_of_faces_is_clustered_with_a_shorter_k(
    labels_of: Labels, features: Path, tmp_path: Path, n: int
) -> None:
    rows_of(features)[:n].tofile(tmp_path / "handful.bin")
    note = f"k = 20 is more than the number of faces, {n}; k = {n} is used."
    labels = labels_of(tmp_path / "handful.bin", note=note)
    assert np.array_equal(labels, renumber(labels))
    assert labels.shape == (n,)


def test_one_face_twice_is_one_cluster_and_as_published_two(
    labels_of: Labels, bundle: Path, features: Path, tmp_path: Path
) -> None:
    """As published two equal faces are equally dense, and equal densities do not link."""
    np.repeat(rows_of(features)[:1], 2, axis=0).tofile(tmp_path / "twins.bin")
    short = "k = 20 is more than the number of faces, 2; k = 2 is used."
    labels = labels_of(tmp_path / "twins.bin", "--duplicates", "as-published", note=short)
    assert labels.tolist() == [0, 1]
    with pytest.warns(FcdeployWarning, match="1 of 2 rows is equal to an earlier one"):
        joined = cluster(tmp_path / "twins.bin", engine=bundle, k=1)
    assert joined.tolist() == [0, 0]


def test_a_given_k_beyond_the_number_of_faces_becomes_it(labels_of: Labels, features: Path) -> None:
    labels = labels_of(
        features, "--k", "500", note="k = 500 is more than the number of faces, 200; k = 200 is used."
    )
    assert np.array_equal(labels, labels_of(features, "--k", "200"))


# Laws: what must not change the clusters


@pytest.mark.parametrize(
    "form",
    [
        lambda rows: rows,
        lambda rows: rows.astype(np.float64),
        lambda rows: rows.astype(np.float16),
        lambda rows: np.asfortranarray(rows),
        lambda rows: rows.astype(">f4"),
        lambda rows: np.asfortranarray(rows.astype(">f8")),
    ],
    ids=["float32", "float64", "float16", "Fortran", "big-endian", "big-endian Fortran"],
)
def test_any_form_of_the_same_numbers_gives_the_same_labels(
    labels_of: Labels, features: Path, tmp_path: Path, form: Callable[[np.ndarray], np.ndarray]
) -> None:
    np.save(tmp_path / "features.npy", form(rows_of(features)))
    assert np.array_equal(labels_of(tmp_path / "features.npy"), labels_of(features))


def test_any_length_of_rows_gives_the_same_labels(labels_of: Labels, features: Path, tmp_path: Path) -> None:
    """Rows are normalised after reading; powers of two scale without rounding."""
    scale = 2.0 ** np.random.default_rng(3).integers(-20, 20, 200)
    (rows_of(features) * scale[:, None]).astype("<f4").tofile(tmp_path / "scaled.bin")
    assert np.array_equal(labels_of(tmp_path / "scaled.bin"), labels_of(features))


@pytest.mark.parametrize("options", [("--threads", 1), ("--threads", 2), ("--batch", 1), ("--batch", 3)])
def test_threads_and_batches_do_not_change_the_labels(
    labels_of: Labels, golden: Path, options: tuple[object, ...]
) -> None:
    features = golden / "dev/data/features.bin"
    assert np.array_equal(labels_of(features, *options), labels_of(features))


@pytest.mark.parametrize("seed", range(3))
def test_faces_in_another_order_give_the_same_partition(
    labels_of: Labels, golden: Path, faces: np.ndarray, tmp_path: Path, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(faces))
    faces[order].tofile(tmp_path / "shuffled.bin")
    labels = labels_of(golden / "dev/data/features.bin", "--knn", "exact")
    shuffled = labels_of(tmp_path / "shuffled.bin", "--knn", "exact")
    assert np.array_equal(shuffled, renumber(labels[order]))


def test_lists_of_another_run_given_as_folders_give_the_same_labels(
    labels_of: Labels, features: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    labels = labels_of(features, "--run-dir", run)
    options = ("--knn", run / "knn", "--reranked", run / "reranked")
    assert np.array_equal(labels_of(features, *options), labels)


def test_every_form_of_output_holds_the_same_clusters(
    fcdeploy: Any, bundle: Path, features: Path, tmp_path: Path
) -> None:
    forms = [tmp_path / name for name in ("a.meta", "a.npy", "clusters.txt", "pred_labels.txt")]
    for output in forms:
        assert fcdeploy("cluster", features, "--engine", bundle, "-o", output, "--quiet").code == 0
    lines, array, clusters, text = (read_labels(output, 200) for output in forms)
    assert np.array_equal(lines, array)
    assert np.array_equal(lines, clusters)
    assert np.array_equal(lines, text)
    assert forms[0].read_bytes() == forms[3].read_bytes()


# From Python


def test_the_python_interface_gives_the_labels_of_the_command(
    labels_of: Labels, bundle: Path, features: Path
) -> None:
    labels = labels_of(features)
    rows = rows_of(features)
    for given in (rows, rows.astype(np.float64), rows.tolist(), features, str(features)):
        found = cluster(given, engine=bundle)
        assert found.dtype == np.int64
        assert np.array_equal(found, labels)
    fewer = cluster(rows, engine=bundle, k=8, hops=(8, 5))  # less than the recipe's 10 active connections
    assert np.array_equal(fewer, labels_of(features, "--k", "8"))
    looser = cluster(rows, engine=str(bundle), tau=0.5, hops=(10, 3), k=15)
    assert np.array_equal(looser, labels_of(features, "--tau", "0.5", "--hops", "10,3", "--k", "15"))


def test_python_is_told_of_a_shorter_k_by_a_warning(bundle: Path, features: Path) -> None:
    with pytest.warns(FcdeployWarning, match="k = 3 is used"):
        cluster(rows_of(features)[:3], engine=bundle)


def test_the_clusterer_has_the_habits_of_scikit_learn(
    labels_of: Labels, bundle: Path, features: Path
) -> None:
    clusterer = FaceClusterer(engine=bundle, tau=0.5)
    assert clusterer.get_params()["tau"] == 0.5
    found = clusterer.fit_predict(rows_of(features))
    assert found is clusterer.labels_
    assert np.array_equal(found, labels_of(features, "--tau", "0.5"))
    assert clusterer.n_features_in_ == 32
    assert clusterer.summary_["faces"] == 200

    copy = sklearn.base.clone(clusterer)
    assert copy.get_params() == clusterer.get_params()
    assert not hasattr(copy, "labels_")
    assert copy.set_params(tau=None, hops=(10, 3)) is copy
    assert np.array_equal(copy.fit(rows_of(features)).labels_, labels_of(features, "--hops", "10,3"))
    with pytest.raises(ValueError, match="no parameter 'taux'"):
        copy.set_params(taux=0.5)


# Export


def test_every_wrapping_of_a_state_dict_is_the_same_weights(golden: Path, tmp_path: Path) -> None:
    """Weights, not graphs, are compared: an export takes seconds and is a function of them."""
    import torch

    from fcdeploy.deploy.checkpoint import load_state_dict

    plain = torch.load(golden / "dev/pse/checkpoint.pth", weights_only=True)
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in plain.items()}
    prefixed = {f"module.{name}": tensor for name, tensor in plain.items()}
    rounded = {name: tensor.to(plain[name].dtype) for name, tensor in half.items()}
    double = {
        name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in plain.items()
    }
    for saved, expected in (
        (plain, plain),
        ({"state_dict": plain, "epoch": 3}, plain),
        ({"net": plain}, plain),
        (prefixed, plain),
        ({"state_dict": prefixed, "optimizer": {"lr": 0.1}}, plain),
        ({name: torch.nn.Parameter(t) if t.is_floating_point() else t for name, t in plain.items()}, plain),
        (half, rounded),
        (double, plain),
    ):
        torch.save(saved, tmp_path / "saved.pth")
        loaded = load_state_dict(tmp_path / "saved.pth")
        assert loaded.keys() == expected.keys()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())
        assert all(loaded[name].dtype == tensor.dtype for name, tensor in expected.items())


def test_a_missed_tolerance_is_exit_code_3_and_writes_nothing_unless_it_is_allowed(
    fcdeploy: Any, golden: Path, tmp_path: Path
) -> None:
    links = "[links]\nk = 20\nrho = 0.6\n"
    (tmp_path / "strict.toml").write_text(
        f'system = "sepfl"\nfeature_dim = 32\n{links}[tolerance]\nlogits = 1e-12\n'
    )
    args = ("export", "--ckpt", golden / "dev/sepfl/checkpoint.pth", "--recipe", tmp_path / "strict.toml")
    outcome = fcdeploy(*args, "-o", tmp_path / "sepfl.onnx")
    assert outcome.code == 3
    assert outcome.out == ""
    assert outcome.err.startswith("Error: ")
    assert outcome.err.count("\n") == 1
    assert "miss the tolerance" in outcome.err
    assert "--allow-mismatch" in outcome.err
    assert {path.name for path in tmp_path.iterdir()} == {"strict.toml"}

    outcome = fcdeploy(*args, "-o", tmp_path / "sepfl.onnx", "--allow-mismatch")
    assert (outcome.code, outcome.err) == (0, "")
    parity = json.loads((tmp_path / "sepfl.onnx/manifest.json").read_text())["networks"]["pairwise"]["parity"]
    assert parity["within_tolerance"] is False
    assert parity["max_error"] > parity["tolerance"] == 1e-12
    assert {path.name for path in tmp_path.iterdir()} == {"strict.toml", "sepfl.onnx"}


# The small commands


def test_inspect_prints_the_manifest(fcdeploy: Any, bundle: Path) -> None:
    outcome = fcdeploy("inspect", bundle, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    manifest = json.loads(outcome.out)
    assert manifest == json.loads((bundle / "manifest.json").read_text())
    assert (manifest["system"], manifest["feature_dim"]) == ("pse-gcn", 32)
    parity = manifest["networks"]["refine"]["parity"]
    assert parity["within_tolerance"] is True
    assert parity["flipped"] == parity["nan"] == 0

    said = fcdeploy("inspect", bundle / "encode.onnx")  # a file in the bundle will do
    assert (said.code, said.err) == (0, "")
    for words in ("pse-gcn, 32-d", "pass encode", "pass neighborhood", "tau = 0.8", "checkpoint.pth"):
        assert words in said.out


def test_doctor_tells_that_this_machine_can_cluster_and_export(fcdeploy: Any) -> None:
    outcome = fcdeploy("doctor", "--json")
    assert (outcome.code, outcome.err) == (0, "")
    findings = json.loads(outcome.out)
    assert findings["abilities"]["cluster"]["missing"] == []
    assert findings["abilities"]["export"]["missing"] == []
    assert findings["providers"]["CPUExecutionProvider"] == "works"
    said = fcdeploy("doctor")
    assert (said.code, said.err) == (0, "")
    assert "cluster: ready" in said.out


def test_the_recipes_beside_the_code_are_the_built_in_ones(fcdeploy: Any, golden: Path) -> None:
    files = sorted((golden.parent.parent / "export").glob("*.toml"))
    assert fcdeploy("recipe").out.splitlines() == [file.stem for file in files]
    for file in files:
        outcome = fcdeploy("recipe", file.stem)
        assert (outcome.code, outcome.err) == (0, "")
        assert outcome.out == file.read_text()
