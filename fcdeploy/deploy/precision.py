"""Half precision: matrix products of exported graphs in float16, everything that decides in float32.

The graph itself says what is computed in which type, so that ONNX Runtime and a strongly typed TensorRT network run
the same function. A product (MatMul, Gemm) rounds what it takes to float16 and gives float16; its constant weights are
stored so. Everything else stays float32: inputs and outputs, norms, row sums, softmax, activations. So do the
products that ``keep`` names:

``decisions``     whatever a comparison depends on, in the same graph or in one that it is fed from, whatever an
                  output depends on of which the system says that it decides, and the last product before an output
``similarities``  those that a comparison reads before another product does: only what is compared itself

A similarity that falls on the other side of its threshold moves a feature by more than all rounding together, which
is why ``decisions`` is the default.
"""

from collections.abc import Callable, Iterator, Mapping, MutableSequence
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import onnx

T = TypeVar("T")

PRECISIONS = ("fp32", "fp16")
KEEPS = ("decisions", "similarities")
PRODUCTS = ("MatMul", "Gemm")
DECISIONS = ("GreaterOrEqual", "Greater", "LessOrEqual", "Less", "TopK", "ArgMax", "ArgMin")
SHAPES = ("Shape", "Size")  # of a tensor, whatever its values are
SUFFIX = ".fp16"

# How much float16 may move, chosen for all systems: what a network's rounding gives stays well within, and an
# overflow, a weight that is no float16 or a wrong graph does not.
ERROR = 2e-2  # of an output over the outputs' scale, in rows without a flipped decision; measured: 0.1e-2 to 0.5e-2
FLIPS = 0.01  # share of the decisions on random batches
AGREEMENT = 0.9  # share of faces in the same cluster: one face that changes sides takes two clusters with it


def float32_products(
    graphs: Mapping[str, "onnx.ModelProto"], deciding: Mapping[str, tuple[str, ...]], keep: str = "decisions"
) -> dict[str, set[str]]:
    """Tell which products of a network's graphs stay float32: pass -> names of their outputs.

    graphs: pass -> onnx.ModelProto; deciding: pass -> its outputs that decide on edges outside of the graphs; keep:
    one of KEEPS.
    """
    if keep == "similarities":
        return {name: _compared(graph.graph) for name, graph in graphs.items()}
    roots = {name: set(deciding.get(name, ())) for name in graphs}
    upstream: dict[str, set[str]] = {}
    found = True
    while found:  # until no pass is found that feeds a decision of another
        found = False
        for name, graph in graphs.items():
            upstream[name] = _upstream(graph.graph, roots[name])
            inputs = {value.name for value in graph.graph.input} & upstream[name]
            for other, feeding in graphs.items():
                fed = {value.name for value in feeding.graph.output} & inputs - roots[other]
                if other != name and fed:
                    roots[other] |= fed
                    found = True
    return {
        name: {output for output in _products(graph.graph) if output in upstream[name]} | _last(graph.graph)
        for name, graph in graphs.items()
    }


def with_half_products(
    graph: "onnx.ModelProto", float32: set[str], *, spelled_out: bool = False
) -> "onnx.ModelProto":
    """Return a copy of an ONNX model whose matrix products are in float16, but for those in ``float32``.

    graph: an onnx.ModelProto, all float32 where it is floating point; float32: outputs of products. Names of its
    tensors stay; what is float16 has the same name with ".fp16" behind it. spelled_out: stay in float32 and round by
    arithmetic to the values that float16 has. ONNX Runtime's CPU provider has no float16 products: it computes them
    in float32 and drops the casts round them (microsoft/onnxruntime#8787), so that only this form shows there what a
    GPU gives.
    """
    import onnx

    model = onnx.ModelProto()
    model.CopyFrom(graph)
    body = model.graph
    constants = {tensor.name: tensor for tensor in body.initializer}
    halves: dict[str, str] = {}  # float32 tensor -> its rounded form
    nodes: list[onnx.NodeProto] = []
    narrow: Callable[[str, str], list[onnx.NodeProto]] = _spelled_out if spelled_out else _to_float16

    def half(name: str) -> str:
        """Return the rounded form of a float32 tensor, which is made at its first use."""
        if name not in halves:
            halves[name] = name + SUFFIX
            if name in constants:
                values = onnx.numpy_helper.to_array(constants[name]).astype("float16")
                stored = values.astype("float32") if spelled_out else values
                body.initializer.append(onnx.numpy_helper.from_array(stored, halves[name]))
            else:
                nodes.extend(narrow(name, halves[name]))
        return halves[name]

    for node in list(body.node):
        nodes.append(node)
        if node.op_type not in PRODUCTS or node.output[0] in float32:
            continue
        nodes.pop()
        node.input[:] = [half(name) if name else "" for name in node.input]
        (name,) = node.output
        node.output[0] = name + SUFFIX
        nodes.append(node)
        if spelled_out:
            nodes += narrow(node.output[0], name)
            halves[name] = name  # rounded as it is
        else:
            nodes.append(_cast(node.output[0], name, onnx.TensorProto.FLOAT))
            halves[name] = node.output[0]
    if spelled_out:
        body.initializer.extend(_rounding_constants())
    used = {value.name for value in body.output} | {name for node in nodes for name in _names_read(node)}
    _replace(body.node, [node for node in nodes if set(node.output) & used])  # casts that nothing reads
    _replace(body.initializer, [tensor for tensor in body.initializer if tensor.name in used])
    _replace(body.value_info, [value for value in body.value_info if value.name in used])
    return model


def count_products(graph: "onnx.ModelProto") -> dict[str, int]:
    """Return how many matrix products of an ONNX model are computed in each type: "fp16" and "fp32"."""
    products = list(_products(graph.graph))
    half = sum(name.endswith(SUFFIX) for name in products)
    return {"fp16": half, "fp32": len(products) - half}


def _products(body: "onnx.GraphProto") -> Iterator[str]:
    """Yield the outputs of all matrix products."""
    return (node.output[0] for node in body.node if node.op_type in PRODUCTS)


def _upstream(body: "onnx.GraphProto", roots: set[str]) -> set[str]:
    """Return the tensors whose values a decision or one of ``roots`` depends on."""
    makers = {name: node for node in body.node for name in node.output}
    pending = [name for node in body.node if node.op_type in DECISIONS for name in node.input] + list(roots)
    seen: set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in makers and makers[name].op_type not in SHAPES:
            pending += _names_read(makers[name])
    return seen


def _last(body: "onnx.GraphProto") -> set[str]:
    """Return the outputs of products that reach an output of the graph with no other product between."""
    return _nearest_products(body, [value.name for value in body.output])


def _compared(body: "onnx.GraphProto") -> set[str]:
    """Return the outputs of products that a decision reads with no other product between."""
    return _nearest_products(
        body, [name for node in body.node if node.op_type in DECISIONS for name in node.input]
    )


def _nearest_products(body: "onnx.GraphProto", pending: list[str]) -> set[str]:
    """Return the outputs of the first products met on the way up from the tensors ``pending``."""
    makers = {name: node for node in body.node for name in node.output}
    seen: set[str] = set()
    found = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in makers or makers[name].op_type in SHAPES:
            continue
        seen.add(name)
        if makers[name].op_type in PRODUCTS:
            found.add(name)
        else:
            pending += _names_read(makers[name])
    return found


def _names_read(node: "onnx.NodeProto") -> list[str]:
    """Return the tensors that a node reads, those of graphs inside it included."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            names += [name for other in inner.node for name in _names_read(other)]
            names += [value.name for value in inner.output]
    return names


def _replace(field: MutableSequence[T], values: list[T]) -> None:
    del field[:]
    field.extend(values)


def _cast(source: str, target: str, to: int) -> "onnx.NodeProto":
    import onnx

    return onnx.helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to)


def _to_float16(source: str, target: str) -> list["onnx.NodeProto"]:
    import onnx

    return [_cast(source, target, onnx.TensorProto.FLOAT16)]


# Rounding by arithmetic. A float32 has 13 bits more than a float16: x - (x - 8193 x + 8193 x) as Veltkamp splits it
# keeps the upper 11. Below 2^-14 float16 has steps of 2^-24, which are those of float32 between 0.5 and 1. From
# 65520 on it is infinite.
_ROUNDING = {
    "round.split": 2.0**13 + 1,
    "round.small": 2.0**-14,
    "round.step": 0.75,
    "round.most": 65520 - 2.0**-8,
    "round.infinity": float("inf"),
}


def _rounding_constants() -> list["onnx.TensorProto"]:
    import numpy as np
    import onnx

    return [
        onnx.numpy_helper.from_array(np.array(value, dtype=np.float32), name)
        for name, value in _ROUNDING.items()
    ]


def _spelled_out(source: str, target: str) -> list["onnx.NodeProto"]:
    """Return the nodes that round float32 ``source`` to the nearest float16, as float32 ``target``."""
    import onnx

    def node(kind: str, inputs: tuple[str, ...], output: str) -> onnx.NodeProto:
        names = [name if name == source or name in _ROUNDING else f"{target}.{name}" for name in inputs]
        return onnx.helper.make_node(kind, names, [f"{target}.{output}" if output else target])

    return [
        node("Mul", (source, "round.split"), "scaled"),
        node("Sub", ("scaled", source), "rest"),
        node("Sub", ("scaled", "rest"), "normal"),
        node("Add", (source, "round.step"), "shifted"),
        node("Sub", ("shifted", "round.step"), "subnormal"),
        node("Abs", (source,), "size"),
        node("Less", ("size", "round.small"), "is_small"),
        node("Where", ("is_small", "subnormal", "normal"), "finite"),
        node("Less", ("round.most", "size"), "is_large"),
        node("Mul", (source, "round.infinity"), "infinite"),
        node("Where", ("is_large", "infinite", "finite"), ""),
    ]
