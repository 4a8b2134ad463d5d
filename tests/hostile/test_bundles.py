"""Bundles that somebody else made: a manifest may say anything, and a graph file be anything."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing import check_each, damaged, tries
from hypothesis import strategies as st
from system_cases import CASES

from fcdeploy.data.digests import sha256_of
from fcdeploy.engine.bundle import MANIFEST, read_bundle
from fcdeploy.engine.onnx_file import takes_other_files
from fcdeploy.errors import InputError

Place = tuple[str | int, ...]
VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        10**30,
        1e308,
        float("nan"),
        "",
        "0",
        "../x",
        "[/x]\x1b[31m\n",
        [],
        {},
        [[]],
        {"a": 1},
    ),
]
QUICK = (("inspect",), ("inspect", "--json"))
VERBS = (
    *QUICK,
    ("triton", "-o", "repository"),
    ("cluster", "-o", "pred.meta", "--quiet"),
    ("estimate", "--json"),
)
GRAPH = "near"  # of SEPFL, the smallest


def places_in(tree: Any, place: Place = ()) -> Iterator[Place]:
    """Every place of a JSON text but the whole."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inner:
        yield (*place, key)
        yield from places_in(value, (*place, key))


def changed(manifest: Any, place: Place, value: Any, gone: bool) -> Any:
    manifest = copy.deepcopy(manifest)
    at = manifest
    for key in place[:-1]:
        at = at[key]
    if gone:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    return manifest


@tries(10, 40)
@pytest.mark.parametrize("name", dict.fromkeys(case.name for case in CASES))
def test_any_manifest_is_used_or_refused_in_one_sentence(
    count: int, name: str, copy_of: Any, fcdeploy: Any, features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One value of it replaced or removed; the verbs that read bundles, with each such bundle.

    The verbs that compute are tried with the quickest system alone where there are few tries.
    """
    verbs = VERBS if count > 30 or name == "sepfl" else QUICK
    folder = copy_of(name)
    monkeypatch.chdir(folder.parent)
    whole = json.loads((folder / MANIFEST).read_text())
    codes = set()

    def check(case: tuple[Place, Any, bool]) -> None:
        (folder / MANIFEST).write_text(json.dumps(changed(whole, *case)))
        for verb, *options in verbs:
            given = (features, "--engine", folder) if verb in ("cluster", "estimate") else (folder,)
            outcome = fcdeploy(verb, *given, *options)
            codes.add(outcome.code)
            assert outcome.code in (0, 1, 2)
            assert outcome.code == 0 or outcome.sentence
            assert "\x1b" not in outcome.out + outcome.err

    places = st.sampled_from(list(places_in(whole)))
    check_each(count, st.tuples(places, st.sampled_from(VALUES), st.booleans()), check)
    assert {0, 2} <= codes


@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        ("l-gcn", ("passes", "encode"), None, "has no pass 'encode'"),
        (
            "sepfl",
            ("networks", "pairwise", "widths", "k"),
            None,
            "'pairwise' with the widths dim is not a network",
        ),
        ("sepfl", ("networks", "pairwise", "widths", "k"), [8], "is not a network of SEPFL"),
        ("l-gcn", ("networks", "links", "widths", "k"), 8, "'links' with the widths dim, k is not a network"),
        ("pse-gcn", ("recipe", "feature_dim"), None, "the recipe is for 256-d features"),
        ("pse-gcn", ("recipe",), {"system": "l-gcn", "feature_dim": 32}, "the recipe is for l-gcn"),
        ("nsr-fc", ("networks", "lce"), None, "PCENet works together with LCENet only"),
    ],
)
def test_parts_of_a_manifest_that_do_not_belong_together_are_named(
    name: str,
    place: Place,
    value: Any,
    said: str,
    copy_of: Any,
    fcdeploy: Any,
    features: Path,
    tmp_path: Path,
) -> None:
    folder = copy_of(name)
    whole = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(changed(whole, place, value, gone=value is None)))
    for verb in (("cluster", "-o", tmp_path / "pred.meta"), ("estimate",)):
        outcome = fcdeploy(verb[0], features, "--engine", folder, *verb[1:])
        assert outcome.code == 2
        assert said in outcome.sentence
    assert not (tmp_path / "pred.meta").exists()


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 100_000, "9" * 5000, "\0", "", "[]", "null", '{"format": 1}', "\udcff"],
    ids=range(9),
)
def test_a_manifest_that_is_none_is_one_sentence(text: str, copy_of: Any) -> None:
    folder = copy_of("sepfl")
    (folder / MANIFEST).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match="is not a bundle's manifest"):
        read_bundle(folder)


@pytest.mark.parametrize("file", ["../near.onnx", "/etc/passwd", "..", ".", "a/near.onnx", "near.onnx\0", ""])
def test_a_graph_outside_of_the_bundle_is_refused(file: str, copy_of: Any) -> None:
    folder = copy_of("sepfl")
    (folder.parent / "near.onnx").write_bytes((folder / "near.onnx").read_bytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["passes"][GRAPH]["file"] = file
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"not a file in the bundle|is missing"):
        read_bundle(folder)


def replace_graph(folder: Path, content: bytes) -> None:
    """Put another graph into a bundle, hash and all."""
    (folder / f"{GRAPH}.onnx").write_bytes(content)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["passes"][GRAPH]["sha256"] = sha256_of(folder / f"{GRAPH}.onnx")
    (folder / MANIFEST).write_text(json.dumps(manifest))


@tries(30, 600)
def test_a_damaged_graph_runs_or_is_refused_in_one_sentence(
    count: int, copy_of: Any, fcdeploy: Any, features: Path, tmp_path: Path
) -> None:
    """Damaged graphs that still load may compute anything; what is not finite is told before links are made of it."""
    folder = copy_of("sepfl")
    good = (folder / f"{GRAPH}.onnx").read_bytes()
    codes = set()

    def check(content: bytes) -> None:
        replace_graph(folder, content)
        outcome = fcdeploy("cluster", features, "--engine", folder, "-o", tmp_path / "pred.meta", "--quiet")
        codes.add(outcome.code)
        assert outcome.code in (0, 1, 2)
        assert outcome.code == 0 or outcome.sentence

    check_each(count, damaged(good, head=600), check)
    assert {0, 2} <= codes


# Weights in other files, which no hash of the graph covers


def with_weights_in(path: str, good: bytes) -> bytes:
    """The graph with its largest tensor in the file ``path``."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(good)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    size = len(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", path), ("offset", "0"), ("length", str(size))):
        tensor.external_data.add(key=key, value=value)
    return model.SerializeToString()


@pytest.mark.parametrize("place", ["inside", "beside", "link", "absolute"])
def test_a_graph_that_takes_weights_from_another_file_is_refused(
    place: str, copy_of: Any, fcdeploy: Any, features: Path, tmp_path: Path
) -> None:
    folder = copy_of("sepfl")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(1 << 20))
    if place == "inside":
        (folder / "weights.bin").write_bytes(bytes(1 << 20))
    elif place == "link":
        os.symlink(weights, folder / "weights.bin")
    path = {"inside": "weights.bin", "link": "weights.bin", "beside": "../weights.bin"}.get(
        place, str(weights)
    )
    replace_graph(folder, with_weights_in(path, (folder / f"{GRAPH}.onnx").read_bytes()))
    outcome = fcdeploy("cluster", features, "--engine", folder, "-o", tmp_path / "pred.meta", "--quiet")
    assert outcome.code == 2
    assert "near.onnx: takes weights from another file" in outcome.sentence
    assert fcdeploy("inspect", folder).code == 2


def test_weights_in_other_files_are_found_wherever_a_tensor_may_be() -> None:
    """In a constant, in a branch, in a function, in a sparse tensor; and not where there are none."""
    onnx = pytest.importorskip("onnx")
    helper, types = onnx.helper, onnx.TensorProto

    def tensor(outside: bool) -> Any:
        made = helper.make_tensor("location", types.FLOAT, [2], [1.0, 2.0])
        if outside:
            made.ClearField("float_data")
            made.data_location = types.EXTERNAL
            made.external_data.add(key="location", value="w")
        return made

    def models(outside: bool) -> dict[str, Any]:
        constant = helper.make_node("Constant", [], ["c"], value=tensor(outside))
        branch = helper.make_graph([constant], "location", [], [])
        ways = {
            "constant": helper.make_graph([constant], "g", [], []),
            "initializer": helper.make_graph([], "g", [], [], initializer=[tensor(outside)]),
            "branch": helper.make_graph(
                [helper.make_node("If", ["b"], ["o"], then_branch=branch, else_branch=branch)], "g", [], []
            ),
        }
        found = {name: helper.make_model(graph) for name, graph in ways.items()}
        sparse = onnx.SparseTensorProto(values=tensor(outside), dims=[4])
        found["sparse"] = helper.make_model(helper.make_graph([], "g", [], [], sparse_initializer=[sparse]))
        function = helper.make_function("d", "f", [], ["c"], [constant], [helper.make_opsetid("", 20)])
        found["function"] = helper.make_model(helper.make_graph([], "g", [], []), functions=[function])
        return found

    for name, model in models(True).items():
        assert takes_other_files(model.SerializeToString()), name
    for name, model in models(False).items():
        assert not takes_other_files(model.SerializeToString()), name


@tries(100, 5_000)
def test_looking_for_other_files_never_fails(count: int, bundle_of: Any) -> None:
    good = bundle_of("sepfl").file(GRAPH).read_bytes()
    assert not takes_other_files(good)
    check_each(count, st.one_of(damaged(good, head=600), st.binary(max_size=300)), takes_other_files)


def test_what_was_checked_is_what_is_loaded(
    bundle_of: Any, copy_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph that is exchanged between the check and the loading is not the one that runs."""
    folder = copy_of("sepfl")
    bundle = read_bundle(folder)
    feeds = {"features": np.ones((2, 32), np.float32)}
    with bundle.open(GRAPH) as engine:
        wanted = engine.run(feeds)
    checked = type(bundle)._checked

    def exchanged(self: Any, name: str) -> bytes:
        content = checked(self, name)
        self.file(name).write_bytes(b"something else")
        return content

    monkeypatch.setattr(type(bundle), "_checked", exchanged)
    with bundle.open(GRAPH) as engine:
        found = engine.run(feeds)
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


# Plans


@tries(20, 300)
def test_a_damaged_plan_is_refused_before_tensorrt_sees_it(
    count: int, copy_of: Any, fcdeploy: Any, features: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import fake_gpu

    def profiles(spec: Any) -> list[dict[str, tuple[int, int, int]]]:
        axes = {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
        return [dict.fromkeys(axes, (1, 8, 4096))]

    fake_gpu.install(monkeypatch)
    plans = fake_gpu.write_fake_bundle(copy_of("sepfl"), tmp_path / "bundle.plan", profiles)
    good = plans.file(GRAPH).read_bytes()

    def check(content: bytes) -> None:
        plans.file(GRAPH).write_bytes(content)
        if content != good:
            outcome = fcdeploy(
                "cluster", features, "--engine", plans.path, "-o", tmp_path / "pred.meta", "--quiet"
            )
            assert outcome.code == 2
            assert "is not the file that the manifest was written for" in outcome.sentence

    check_each(count, damaged(good), check)
