"""Half precision on graphs small enough to see through."""

import numpy as np
import pytest

from fcdeploy.deploy.precision import count_products, float32_products, with_half_products

onnx = pytest.importorskip("onnx")
import onnxruntime  # noqa: E402
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

D = 8


def graph_of(nodes, inputs, outputs, weights=()):
    """An ONNX model of float32 matrices (m, 8)."""
    values = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["m", width]) for name, width in tensors]
        for tensors in (inputs, outputs)
    ]
    constants = [numpy_helper.from_array(array, name) for name, array in weights]
    graph = helper.make_graph([helper.make_node(*node) for node in nodes], "g", *values, constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def weight(seed, rows=D, columns=D):
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.fixture
def similar():
    """Draws edges where directions are similar, and sums over them; a last product gives the output."""
    return graph_of(
        [
            ("MatMul", ["table", "w1"], ["a"]),
            ("Relu", ["a"], ["b"]),
            ("MatMul", ["b", "w2"], ["h"]),
            ("Transpose", ["h"], ["ht"]),
            ("MatMul", ["h", "ht"], ["s"]),
            ("GreaterOrEqual", ["s", "half"], ["edge"]),
            ("Where", ["edge", "s", "zero"], ["drawn"]),
            ("MatMul", ["drawn", "other"], ["near"]),
            ("Gemm", ["near", "w3", "bias"], ["mixed"]),
            ("Gelu", ["mixed"], ["active"]),
            ("MatMul", ["active", "w4"], ["scored"]),
            ("Add", ["scored", "bias"], ["out"]),
        ],
        [("table", D), ("other", D)],
        [("out", D)],
        [
            *((f"w{at}", weight(at)) for at in (1, 2, 3, 4)),
            ("bias", weight(5, 1, D)[0]),
            ("half", np.float32(0.5).reshape(())),
            ("zero", np.float32(0).reshape(())),
        ],
    )


@pytest.fixture
def tables():
    """Feeds ``table``, by its name, and ``other``; what is compared depends on the first only."""
    return graph_of(
        [
            ("MatMul", ["x", "u1"], ["hidden"]),
            ("Gelu", ["hidden"], ["active"]),
            ("MatMul", ["active", "u2"], ["table"]),
            ("MatMul", ["x", "u3"], ["inner"]),
            ("MatMul", ["inner", "u4"], ["other"]),
        ],
        [("x", D)],
        [("table", D), ("other", D)],
        [(f"u{at}", weight(10 + at)) for at in (1, 2, 3, 4)],
    )


def test_decisions_keeps_all_that_an_edge_depends_on_across_graphs_and_the_last_products(tables, similar):
    kept = float32_products({"tables": tables, "similar": similar}, {})
    assert kept == {"tables": {"hidden", "table", "other"}, "similar": {"a", "h", "s", "scored"}}


def test_similarities_keeps_only_what_is_compared(tables, similar):
    kept = float32_products({"tables": tables, "similar": similar}, {}, "similarities")
    assert kept == {"tables": set(), "similar": {"s"}}


def test_an_output_that_decides_elsewhere_is_kept_with_all_before_it(tables):
    assert float32_products({"tables": tables}, {})["tables"] == {"table", "other"}
    assert float32_products({"tables": tables}, {"tables": ("other",)})["tables"] == {
        "table",
        "other",
        "inner",
    }


def test_a_length_that_is_compared_is_no_decision_on_values(similar):
    """Shape reads a product's form, not its numbers."""
    graph = graph_of(
        [
            ("MatMul", ["x", "u1"], ["a"]),
            ("MatMul", ["a", "u2"], ["out"]),
            ("Shape", ["a"], ["shape"]),
            ("Greater", ["shape", "one"], ["big"]),
        ],
        [("x", D)],
        [("out", D)],
        [("u1", weight(1)), ("u2", weight(2)), ("one", np.ones(1, dtype=np.int64))],
    )
    assert float32_products({"g": graph}, {}) == {"g": {"out"}}


@pytest.mark.parametrize("kept", [set(), {"s"}, {"a", "h", "s", "scored"}], ids=len)
def test_the_rest_is_float16_with_casts_round_it_and_weights_stored_so(similar, kept):
    half = with_half_products(similar, kept)
    onnx.checker.check_model(half, full_check=True)
    assert count_products(half) == {"fp16": 6 - len(kept), "fp32": len(kept)}
    assert [value.type for value in half.graph.output] == [value.type for value in similar.graph.output]
    stored = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    assert stored["w3.fp16"] == TensorProto.FLOAT16
    assert "w3" not in stored
    assert stored["bias"] == TensorProto.FLOAT  # an Add reads it, too
    assert ("w1" in stored) == ("a" in kept) != ("w1.fp16" in stored)


def test_between_two_products_nothing_is_widened(tables):
    half = with_half_products(tables, set())
    readers = [node.op_type for node in half.graph.node if "inner.fp16" in node.input]
    assert readers == ["MatMul"]
    assert not any("inner" in node.output for node in half.graph.node)


def rounded(x):
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def run(model, **feeds):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(
        None, feeds
    )


def test_spelled_out_rounding_is_that_of_float16_to_the_bit():
    """All float16 numbers, the middles between them, tiny ones, and those that become infinite."""
    numbers = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float32)
    numbers = np.sort(numbers[np.isfinite(numbers)])
    rng = np.random.default_rng(0)
    middles = (numbers[1:].astype(np.float64) + numbers[:-1]) / 2
    drawn = rng.standard_normal(100_000) * 10.0 ** rng.uniform(-9, 6, 100_000)
    x = np.concatenate(
        [
            numbers,
            middles,
            np.nextafter(middles.astype(np.float32), np.float32(np.inf)),
            drawn,
            [65519.996, 65520],
        ]
    ).astype(np.float32)
    graph = graph_of(
        [("MatMul", ["x", "one"], ["y"])], [("x", 1)], [("y", 1)], [("one", np.ones((1, 1), np.float32))]
    )
    (found,) = run(with_half_products(graph, set(), spelled_out=True), x=x[:, None])
    assert np.array_equal(found[:, 0], rounded(x))
    (plain,) = run(graph, x=x[:, None])
    assert not np.array_equal(plain[:, 0], rounded(x))


def test_spelled_out_graphs_give_what_numpy_gives_in_float16(tables):
    """Each product: operands rounded, summed in float32, the sum rounded; nothing else is."""
    x = weight(7, 50)
    u1, u2, u3, u4 = (weight(10 + at) for at in (1, 2, 3, 4))

    def product(a, b):
        return rounded(rounded(a) @ rounded(b))

    from scipy.special import erf

    hidden = product(x, u1)
    active = (0.5 * hidden * (1 + erf(hidden / np.sqrt(2)))).astype(np.float32)
    table, other = run(with_half_products(tables, {"table"}, spelled_out=True), x=x)
    assert np.abs(table - active @ u2).max() < 1e-5
    # A sum that lies between two float16 numbers may go to either: one step of 2^-10 of its size.
    expected = product(product(x, u3), u4)
    assert (np.abs(other - expected) <= 2.0**-10 * np.maximum(1, np.abs(expected))).all()
    assert (other == expected).mean() > 0.95
    exact_table, exact_other = run(tables, x=x)
    assert np.abs(exact_table - table).max() > 1e-4
    assert not (exact_other == rounded(exact_other)).all()
