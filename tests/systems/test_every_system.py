"""What every system does alike: from its golden checkpoint through the commands to labels."""

import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from build_ranges import GROUPS, RANGES
from run_folders import load_artifact, made
from system_cases import CASES

import fcdeploy
from fcdeploy.cli import main
from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.data.labels import read_labels
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import InputError
from fcdeploy.runtime import review
from fcdeploy.runtime.evidence import read_placed
from fcdeploy.runtime.review import placed_on
from fcdeploy.systems import NAMES, get_system
from fcdeploy.systems.settings import settings_from_dict

pytest.importorskip("torch")
pytest.importorskip("onnxscript")
from fcdeploy.deploy.recipe import load_recipe

FACES = 200
WITHOUT_TORCH = """
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "onnx", "onnxscript"):
            raise AssertionError(f"{name} was imported")

sys.meta_path.insert(0, Guard())
from fcdeploy.cli import main
from fcdeploy.clustering.components import join, labels_from_forest, new_forest
sys.argv[0] = "fcdeploy"
main()
"""


@pytest.fixture(scope="module", params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def whole(case, exported) -> Bundle:
    """The bundle of all checkpoints."""
    return exported(case)


@pytest.fixture(scope="module")
def bundle(case, whole, cut_bundle, tmp_path_factory) -> Bundle:
    if not case.networks:
        return whole
    return cut_bundle(whole, case.networks, tmp_path_factory.mktemp("cut") / "bundle.onnx")


@pytest.fixture(scope="module")
def faces(golden):
    """The first 200 faces of the goldens."""
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)[:FACES]


@pytest.fixture
def features(faces, tmp_path):
    np.save(tmp_path / "features.npy", faces)
    return tmp_path / "features.npy"


@pytest.fixture
def command(monkeypatch, capsys):
    """Call ``fcdeploy ARGS`` in this process: exit code, stdout, stderr."""

    def call(*args):
        monkeypatch.setattr(sys, "argv", ["fcdeploy", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        return code, *capsys.readouterr()

    return call


def test_every_known_system_is_tested_here():
    assert tuple(dict.fromkeys(case.name for case in CASES)) == NAMES


def test_the_command_exports_what_the_recipe_says(case, whole):
    out = (whole.path.parent / "export.txt").read_text()
    assert f"{case.name}, 32-d features, passes {', '.join(whole.passes)}" in out
    assert all(f"{name}: largest error" in out for name in whole.weights)
    recipe = load_recipe(whole.path.parent / "golden.toml")
    assert settings_from_dict(dict(whole.manifest["recipe"]), "manifest") == recipe
    assert len(whole.weights) == len(case.checkpoints)


def test_inspect_gives_the_manifest_and_says_what_parity_was_measured_on(case, bundle, command):
    code, out, err = command("inspect", bundle.path, "--json")
    assert (code, err) == (0, "")
    manifest = json.loads(out)
    assert manifest == bundle.manifest
    assert all(network["parity"]["within_tolerance"] for network in manifest["networks"].values())
    code, out, err = command("inspect", bundle.path)
    assert (code, err) == (0, "")
    checked_on = get_system(case.name).module("parity").PARITY
    assert all(checked_on[name].meaning in out for name in bundle.weights)
    assert all(f"pass {name}" in out for name in bundle.passes)


def test_cluster_tells_its_stages_and_writes_the_labels_of_python(
    case, bundle, faces, features, command, tmp_path
):
    output = tmp_path / "pred.meta"
    code, out, err = command("cluster", features, "--engine", bundle.path, "-o", output, "--json")
    assert (code, err) == (0, "")
    summary, labels = json.loads(out), read_labels(output)
    assert tuple(summary["stages"]) == case.stages
    assert (summary["faces"], summary["clusters"]) == (FACES, labels.max() + 1)
    assert 1 < summary["clusters"] < FACES
    assert np.array_equal(labels, fcdeploy.cluster(faces, engine=bundle.path))
    assert np.array_equal(labels, fcdeploy.FaceClusterer(engine=bundle.path).fit_predict(faces))


def test_a_run_folder_keeps_its_artifacts_and_continues_from_any_of_them(case, bundle, features, tmp_path):
    """Whichever results are missing, and with every scratch artifact gone, the same labels come out."""
    folder = tmp_path / "run"
    expected = fcdeploy.cluster(features, engine=bundle.path, run_dir=folder)
    names = {path.name for path in folder.iterdir()}
    assert names == {*case.kept, "run.json", "run.lock", "summary.json", "state.json", "labels", "vectors"}
    content = {name: load_artifact(folder / name) for name in case.kept}
    for lost in case.kept:
        shutil.rmtree(folder / lost)
        written = {name: made(folder / name) for name in case.kept if name != lost}
        again = fcdeploy.cluster(features, engine=bundle.path, run_dir=folder)
        assert np.array_equal(again, expected)
        assert written == {name: made(folder / name) for name in written}
        found = load_artifact(folder / lost)
        assert found.keys() == content[lost].keys()
        assert all(array.tobytes() == content[lost][part].tobytes() for part, array in found.items())
    assert {path.name for path in folder.iterdir()} == names


def test_an_interrupted_run_goes_on_within_an_artifact(case, bundle, faces, tmp_path, monkeypatch):
    """The engine fails in the middle of its third block; the two before it are not computed again."""
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine

    straight, seen = OnnxRuntimeEngine.run, []

    def run(self, feeds, fail_after):
        if self.spec.name == case.main_pass:
            seen.append(len(next(iter(feeds.values()))) // case.each)
            if sum(seen) > fail_after:
                raise OSError("the machine went away")
        return straight(self, feeds)

    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, feeds: run(self, feeds, np.inf))
    expected = fcdeploy.cluster(faces, engine=bundle.path)
    rows = sum(seen)  # faces, or what the main pass is over
    block = rows // 4
    flow = importlib.import_module(f"fcdeploy.systems.{case.name.replace('-', '_')}.flow")
    monkeypatch.setattr(flow, case.block, block)
    seen.clear()
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, feeds: run(self, feeds, 2.4 * block))
    with pytest.raises(OSError, match="went away"):
        fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "run")
    seen.clear()
    monkeypatch.setattr(OnnxRuntimeEngine, "run", lambda self, feeds: run(self, feeds, np.inf))
    assert np.array_equal(fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "run"), expected)
    assert sum(seen) == rows - 2 * block


@pytest.mark.parametrize("faults", ["nan", "zero", "width", "knn"])
def test_bad_input_is_refused_in_one_line_before_anything_is_written(
    faults, bundle, faces, features, command, tmp_path
):
    options: tuple[object, ...] = ()
    bad = faces.copy()
    if faults == "nan":
        bad[7, 3] = np.nan
    elif faults == "zero":
        bad[7] = 0
    elif faults == "width":
        bad = np.hstack([bad, bad])
    else:
        ids = np.stack([np.roll(np.arange(FACES - 1), -i)[:20] for i in range(FACES - 1)])
        np.save(tmp_path / "knn.npy", ids)
        options = ("--knn", tmp_path / "knn.npy")
    np.save(features, bad)
    words = {"nan": "7", "zero": "7", "width": "(200, 64)", "knn": "199 faces"}[faults]
    output = tmp_path / "pred.meta"
    code, out, err = command("cluster", features, "--engine", bundle.path, "-o", output, *options)
    assert (code, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_an_engine_that_gives_nan_stops_the_run(bundle, faces, monkeypatch):
    from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
    from fcdeploy.errors import FcdeployError

    straight = OnnxRuntimeEngine.run

    def run(self, feeds):
        outputs = straight(self, feeds)
        for name in ("refined", "encoded", "score", "confidence", "logits"):
            if name in outputs:
                outputs[name] = np.full_like(outputs[name], np.nan)
        return outputs

    monkeypatch.setattr(OnnxRuntimeEngine, "run", run)
    with pytest.raises(FcdeployError, match="not finite") as stopped:
        fcdeploy.cluster(faces, engine=bundle.path)
    assert not isinstance(stopped.value, InputError)


def test_clustering_never_imports_pytorch(bundle, features, tmp_path):
    args = ["cluster", str(features), "--engine", str(bundle.path), "-o", str(tmp_path / "pred.npy")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *args], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / "pred.npy"), fcdeploy.cluster(features, engine=bundle.path))


# Plans for a GPU that is not there


def test_every_pass_builds_for_an_rtx_3090_without_one(bundle, build_profile, tmp_path):
    check_build(bundle, build_profile, tmp_path / "bundle.plan")


def check_build(bundle: Bundle, profile: Path, output: Path) -> None:
    """Build a bundle and hold what is written against it."""
    from fcdeploy.deploy.engine_from_onnx import build_bundle
    from fcdeploy.engine.bundle import read_bundle

    pytest.importorskip("tensorrt_rtx")
    plans = build_bundle(bundle.path, output, profile)
    assert plans.kind == "plan"
    assert plans.target.compute_capability == "8.6"
    assert plans.passes == bundle.passes
    assert all(plans.file(name).stat().st_size > 1000 for name in plans.passes)
    inherited = bundle.manifest.keys() - {"kind", "passes", "versions"}
    assert {key: plans.manifest[key] for key in inherited} == {key: bundle.manifest[key] for key in inherited}
    for name, fields in bundle.manifest["passes"].items():
        assert plans.manifest["passes"][name]["source"]["sha256"] == fields["sha256"]
    read_bundle(plans.path).check_files()


def test_the_parsed_networks_and_their_profiles_are_those_of_the_spec(bundle, build_profile):
    """Every pass parsed by TensorRT itself: names, axes and types of its tensors, and the shapes of its profiles."""
    trt = pytest.importorskip("tensorrt_rtx")
    from fcdeploy.deploy.build_profile import load_profile
    from fcdeploy.deploy.engine_from_onnx import optimization_profile
    from fcdeploy.engine.tensorrt_library import logger_of

    types = {trt.float32: "float32", trt.int32: "int32", trt.int64: "int64", trt.bool: "bool"}
    for name, spec in bundle.passes.items():
        builder = trt.Builder(logger_of(trt))
        network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        assert trt.OnnxParser(network, logger_of(trt)).parse_from_file(str(bundle.file(name)))
        for count, get, specs in (
            (network.num_inputs, network.get_input, spec.inputs),
            (network.num_outputs, network.get_output, spec.outputs),
        ):
            found = {}
            for at in range(count):
                tensor = get(at)
                found[tensor.name] = ([*tensor.shape], types[tensor.dtype])
            assert found == {
                t.name: ([-1 if isinstance(axis, str) else axis for axis in t.axes], t.dtype) for t in specs
            }
        axes = {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
        single = {axis: RANGES.get(axis, RANGES["other"]) for axis in axes}
        wanted = [{**single, **group} for group in GROUPS] if {"b", "n"} <= axes else [single]
        groups = load_profile(build_profile).ranges(bundle.system, spec)
        assert groups == wanted
        for ranges in groups:
            shapes = optimization_profile(builder, spec, ranges)
            for tensor in spec.inputs:
                three = [tuple(shape) for shape in shapes.get_shape(tensor.name)]
                assert three == [
                    tuple(axis if isinstance(axis, int) else ranges[axis][which] for axis in tensor.axes)
                    for which in range(3)
                ]


def test_plans_give_the_clusters_of_the_graphs(case, bundle, faces, features, command, tmp_path, monkeypatch):
    """Run by stand-ins for TensorRT and CuPy: batches cut to short ranges, two on their way at a time."""
    import fake_gpu

    def profiles(spec):
        axes = {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
        return [{axis: (1, 8, 8 if axis in ("m", "b") else 4096) for axis in axes}]

    trt = fake_gpu.install(monkeypatch)
    plans = fake_gpu.write_fake_bundle(bundle.path, tmp_path / "bundle.plan", profiles)
    output = tmp_path / "pred.npy"
    code, _, err = command(
        "cluster", features, "--engine", plans.path, "-o", output, "--vram", "1G", "--quiet"
    )
    assert (code, err) == (0, "")
    assert np.array_equal(np.load(output), fcdeploy.cluster(faces, engine=bundle.path))
    assert len(trt.calls) >= FACES // 8
    code, _, err = command("cluster", features, "--engine", plans.path, "-o", output, "--device", "cpu")
    assert code == 2
    assert "holds TensorRT plans, which run on a GPU only" in err


# How sure clusters are, and what a person knows


def parts_of(links, n):
    forest = new_forest(n)
    join(forest, np.ascontiguousarray(links[:, 0]), np.ascontiguousarray(links[:, 1]))
    return labels_from_forest(forest)


def test_a_run_folder_says_what_its_clusters_rest_on(bundle, features, tmp_path):
    """The links of every system hold its clusters together, each by as few links as can be, and no two of them."""
    labels = fcdeploy.cluster(
        features,
        engine=bundle.path,
        run_dir=tmp_path / "run",
        table=tmp_path / "faces.csv",
        clusters_table=tmp_path / "clusters.tsv",
    )
    placed = read_placed(tmp_path / "run")
    evidence = placed.evidence
    assert np.array_equal(placed.labels, labels)
    assert np.array_equal(parts_of(evidence.links, FACES), labels)
    assert len(evidence.links) == FACES - (labels.max() + 1)
    assert (np.diff(evidence.strength) <= 0).all()
    assert (labels[evidence.beyond[:, 0]] != labels[evidence.beyond[:, 1]]).all()
    confidence = fcdeploy.confidence(tmp_path / "run")
    sizes = np.bincount(labels)
    assert np.array_equal(confidence.clusters.size, sizes)
    assert np.array_equal(np.isnan(confidence.faces.confidence), sizes[labels] == 1)
    rows = [line.split(",") for line in (tmp_path / "faces.csv").read_text().splitlines()]
    assert rows[0] == ["id", "cluster", "confidence", "margin", "similarity", "flags"]
    assert [int(row[1]) for row in rows[1:]] == labels.tolist()
    found = [float(row[2]) if row[2] else np.nan for row in rows[1:]]
    assert found == pytest.approx(confidence.faces.confidence, nan_ok=True, abs=1e-5)
    table = [line.split("\t") for line in (tmp_path / "clusters.tsv").read_text().splitlines()[1:]]
    assert [int(row[1]) for row in table] == sorted(sizes.tolist(), reverse=True)


def test_the_links_of_a_system_can_be_read_as_often_as_they_are_asked_for(
    bundle, features, tmp_path, monkeypatch
):
    """First for the forest inside of clusters, then for what is between them."""
    read = []

    def look(run, kept, accepted, *more):
        for _ in range(2):
            ids, strength = zip(*accepted.links(), strict=True)
            read.append((np.concatenate(ids), np.concatenate(strength)))
        return placed_on(run, kept, accepted, *more)

    monkeypatch.setattr(review, "placed_on", look)
    fcdeploy.cluster(features, engine=bundle.path, run_dir=tmp_path / "run")
    (first, first_strength), (second, second_strength) = read
    assert np.array_equal(first, second)
    assert np.array_equal(first_strength, second_strength)
    assert len(first)


def test_what_a_person_knows_holds_and_without_it_nothing_changes(bundle, features, command, tmp_path):
    labels = fcdeploy.cluster(features, engine=bundle.path)
    sizes = np.bincount(labels)
    first, second = np.flatnonzero(labels == sizes.argmax())[[0, -1]].tolist()
    third = int(np.flatnonzero(labels != sizes.argmax())[0])
    (tmp_path / "pairs.csv").write_text(f"{first},{second},different\n{first},{third},same\n")
    output = tmp_path / "pred.npy"
    code, out, err = command(
        *("cluster", features, "--engine", bundle.path, "-o", output, "--json"),
        *("--pairs", tmp_path / "pairs.csv"),
    )
    assert (code, err) == (0, "")
    found = np.load(output)
    assert found[first] != found[second]
    assert found[first] == found[third]
    summary = json.loads(out)["constraints"]
    assert summary["refused"] == 1
    listed = (tmp_path / "pred.refused.csv").read_text().splitlines()
    assert len(listed) == 2
    assert {first, second} == set(map(int, listed[1].split(",")[4:]))
    kept = fcdeploy.cluster(features, engine=bundle.path, pairs=[(first, second, "same")])
    assert np.array_equal(kept, labels)


def test_faces_of_one_photo_are_different_persons_where_that_is_said(bundle, faces):
    photos = np.arange(FACES) // 4
    labels = fcdeploy.cluster(faces, engine=bundle.path, same_photo=photos)
    assert all(len(set(labels[photos == photo].tolist())) == 4 for photo in range(FACES // 4))
    assert labels.max() + 1 < FACES  # others are still together
    nowhere = fcdeploy.cluster(faces, engine=bundle.path, same_photo=[None] * FACES)
    assert np.array_equal(nowhere, fcdeploy.cluster(faces, engine=bundle.path))
