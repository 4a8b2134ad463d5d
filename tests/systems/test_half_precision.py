"""Every system in half precision: what the graphs say, and which faces keep their cluster."""

import json

import numpy as np
import pytest
from test_every_system import CASES as ALL_CASES
from test_every_system import check_build

import fcdeploy
from fcdeploy.clustering.metrics import share_in_same_cluster
from fcdeploy.run.options import Options
from fcdeploy.systems import get_system

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")

CASES = [case for case in ALL_CASES if not case.networks]
TAUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.87, 0.9)
GOLDEN = "dev/data/features.bin"


@pytest.fixture(scope="module", params=CASES, ids=lambda case: case.name)
def case(request):
    return request.param


@pytest.fixture(scope="module")
def half(case, exported, golden):
    return exported(case, precision="fp16", agreement=str(golden / GOLDEN))


def kinds(graph):
    """Tensor -> element type, of a whole graph."""
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    found = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.output, *inferred.value_info):
        found[value.name] = value.type.tensor_type.elem_type
    return found


def test_only_products_are_in_half_precision_and_none_that_is_compared(case, half):
    """Every node but products and casts has no float16 near it; inputs and outputs are those of fp32."""
    float16, float32 = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    assert half.manifest["precision"] == "fp16"
    halved = 0
    for name, spec in half.passes.items():
        graph = onnx.load(half.file(name))
        onnx.checker.check_model(graph, full_check=True)
        kind = kinds(graph)
        assert [value.name for value in graph.graph.input] == [tensor.name for tensor in spec.inputs]
        assert [value.name for value in graph.graph.output] == [tensor.name for tensor in spec.outputs]
        assert {kind[tensor.name] for tensor in (*spec.inputs, *spec.outputs)} == {float32}
        compared = {
            name for node in graph.graph.node if node.op_type == "GreaterOrEqual" for name in node.input
        }
        for node in graph.graph.node:
            around = {kind[tensor] for tensor in (*node.input, *node.output) if tensor}
            if node.op_type in ("MatMul", "Gemm"):
                assert around in ({float16}, {float32})
                assert float16 not in around or not compared & set(node.output)
                halved += float16 in around
            elif node.op_type != "Cast":
                assert float16 not in around, node
        counts = half.manifest["fp16"]["products"][name]
        products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]
        assert sum(counts.values()) == len(products)
    assert halved == sum(counts["fp16"] for counts in half.manifest["fp16"]["products"].values()) > 0


def test_the_manifest_says_how_exact_it_is_and_on_what_that_was_measured(case, half):
    products = half.manifest["fp16"]["products"]
    for name, network in half.manifest["networks"].items():
        parity = network["parity"]
        assert parity["within_tolerance"]
        assert "spelled out" in parity["backend"]
        passes = get_system(case.name).networks[name].passes(**half.weights[name])
        if any(products[of]["fp16"] for of in passes):  # else all of it decides, as of GCN-V
            # float16 has 11 bits: less would say that nothing was rounded
            assert 1e-5 < parity["max_error"] < 5e-3
        else:
            assert parity["max_error"] < 1e-5
        assert parity["flipped"] <= 0.01 * parity["edges"]
    agreement = half.manifest["fp16"]["agreement"]
    assert (agreement["faces"], agreement["source"]) == (1283, "features.bin")
    assert agreement["least"] == min(run["share"] for run in agreement["runs"]) >= 0.9
    system = get_system(case.name)
    assert {run["inference"] for run in agreement["runs"]} == set(system.inferences)
    if "tau" in system.options and system.refusal(half.weights, Options(tau=0.5)) is None:
        assert {run["options"].get("tau") for run in agreement["runs"]} == {None, *TAUS}
    assert all(full > 1 and found > 1 for full, found in (run["clusters"] for run in agreement["runs"]))


def test_inspect_shows_the_share_of_every_run(half, monkeypatch, capsys):
    from fcdeploy.cli.inspect import command

    with pytest.raises(SystemExit) as stopped:
        command.main([str(half.path)], prog_name="inspect")
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    agreement = half.manifest["fp16"]["agreement"]
    assert "1,283 faces (features.bin) in the same cluster as in fp32" in out
    assert out.count("clusters)") == len(agreement["runs"])
    for run in agreement["runs"]:
        assert f": {run['share']:.2%} ({run['clusters'][0]:,} and" in out


def test_onnx_runtime_clusters_with_it(half, golden):
    faces = np.fromfile(golden / GOLDEN, "<f4").reshape(-1, 32)[:300]
    assert len(fcdeploy.cluster(faces, engine=half.path)) == 300


@pytest.mark.parametrize("reranked", ["the authors'", "ours"])
def test_pse_gcn_keeps_995_of_1000_faces_in_their_cluster_at_every_golden_tau(
    reranked, exported, golden, tmp_path
):
    """In the manifest with the rounding that a GPU does, and in ONNX Runtime as it is shipped."""
    case = next(case for case in CASES if case.name == "pse-gcn")
    full = exported(case)
    half = exported(case, precision="fp16", agreement=str(golden / GOLDEN))
    shares = {
        run["options"].get("tau"): run["share"]
        for run in half.manifest["fp16"]["agreement"]["runs"]
        if run["inference"] == "exact"
    }
    assert all(shares[tau] >= 0.995 for tau in TAUS)
    lists = None
    if reranked == "the authors'":
        lists = tmp_path / "reranking_knn.npy"
        np.save(lists, np.load(golden / "dev/pse/reranking.npz")["knn"])

    def labels(bundle):
        return [
            fcdeploy.cluster(
                golden / GOLDEN,
                engine=bundle.path,
                knn=golden / "dev/data/faiss_k_20.npz",
                reranked=lists,
                tau=tau,
                run_dir=tmp_path / "run",
            )
            for tau in TAUS
        ]

    for expected, found in zip(labels(full), labels(half), strict=True):
        assert share_in_same_cluster(expected, found) >= 0.995


def test_what_pse_gcn_draws_edges_from_is_not_rounded(exported, golden):
    """All of a pass that gives directions or what they are made of; the centre's own products are rounded."""
    case = next(case for case in CASES if case.name == "pse-gcn")
    products = exported(case, precision="fp16", agreement=str(golden / GOLDEN)).manifest["fp16"]["products"]
    assert all(products[name]["fp16"] == 0 for name in ("encode", "near1", "similar1", "block1", "similar2"))
    assert products["neighborhood"] == {"fp16": 5, "fp32": 14}
    assert products["block2"] == {"fp16": 5, "fp32": 3}


def test_the_json_of_inspect_is_the_manifest(half, capsys):
    from fcdeploy.cli.inspect import command

    with pytest.raises(SystemExit):
        command.main([str(half.path), "--json"], prog_name="inspect")
    assert json.loads(capsys.readouterr().out) == half.manifest


def test_every_pass_builds_in_half_precision_for_an_rtx_3090_without_one(half, build_profile, tmp_path):
    check_build(half, build_profile, tmp_path / "bundle.plan")
