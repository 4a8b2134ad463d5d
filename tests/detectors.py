"""Small face detectors as ONNX files with made-up weights, one of each head; and what their outputs mean, in loops."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

STRIDES = (8, 16, 32)
SIDES = ((16, 32), (64, 128), (256, 512))


def write_detector(
    path: Path,
    head: str,
    *,
    batch: Any = "n",
    size: tuple[Any, Any] = ("h", "w"),
    anchors: int = 1,
    points: bool = True,
    batch_axis: bool = True,
    maps: bool = False,
    seed: int = 3,
) -> Path:
    """Write a detector of one head: cells' mean colours through random weights.

    anchors: per cell, of SCRFD. points: whether there are any. batch_axis: whether outputs have one. maps: whether they
    are (b, c, h, w), as they come out of a convolution.
    """
    rng = np.random.default_rng(seed)
    nodes, outputs, constants = [], [], []
    joined: dict[str, list[str]] = {}

    def add(
        stride: int, name: str, columns: int, per_cell: int, activation: str | None, spread: float
    ) -> None:
        weights = rng.normal(0, spread / 128, (per_cell * columns, 3, 1, 1)).astype(np.float32)
        bias = rng.normal(0, spread / 4, per_cell * columns).astype(np.float32)
        key = f"{name}_{stride}"
        constants.append(numpy_helper.from_array(weights, f"{key}_w"))
        constants.append(numpy_helper.from_array(bias, f"{key}_b"))
        nodes.append(helper.make_node("Conv", [f"pooled_{stride}", f"{key}_w", f"{key}_b"], [f"{key}_map"]))
        last = f"{key}_map"
        if not maps:
            nodes.append(helper.make_node("Transpose", [last], [f"{key}_t"], perm=[0, 2, 3, 1]))
            shape = [0, -1, columns] if batch_axis else [-1, columns]
            constants.append(numpy_helper.from_array(np.array(shape, np.int64), f"{key}_s"))
            nodes.append(helper.make_node("Reshape", [f"{key}_t", f"{key}_s"], [f"{key}_r"]))
            last = f"{key}_r"
        if activation == "Softmax":
            nodes.append(helper.make_node("Softmax", [last], [f"{key}_a"], axis=-1))
            last = f"{key}_a"
        elif activation:
            nodes.append(helper.make_node(activation, [last], [f"{key}_a"]))
            last = f"{key}_a"
        joined.setdefault(name, []).append(last)

    for at, stride in enumerate(STRIDES):
        kernel = [stride, stride]
        pool = helper.make_node(
            "AveragePool", ["input"], [f"pooled_{stride}"], kernel_shape=kernel, strides=kernel, ceil_mode=0
        )
        nodes.append(pool)
        if head == "yunet":
            add(stride, "cls", 1, 1, "Sigmoid", 2)
            add(stride, "obj", 1, 1, "Sigmoid", 2)
            add(stride, "bbox", 4, 1, None, 0.5)
            if points:
                add(stride, "kps", 10, 1, None, 0.5)
        elif head == "scrfd":
            add(stride, "score", 1, anchors, "Sigmoid", 2)
            add(stride, "bbox", 4, anchors, "Abs", 2)
            if points:
                add(stride, "kps", 10, anchors, None, 2)
        else:
            add(stride, "conf", 2, len(SIDES[at]), "Softmax", 2)
            add(stride, "loc", 4, len(SIDES[at]), None, 1)
            if points:
                add(stride, "landms", 10, len(SIDES[at]), None, 1)
    for name, parts in joined.items():
        if head == "retinaface":
            nodes.append(helper.make_node("Concat", parts, [name], axis=1))
            outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        else:
            for stride, part in zip(STRIDES, parts, strict=True):
                nodes.append(helper.make_node("Identity", [part], [f"{name}_{stride}"]))
                outputs.append(helper.make_tensor_value_info(f"{name}_{stride}", TensorProto.FLOAT, None))
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [batch, 3, *size])
    graph = helper.make_graph(nodes, head, [given], outputs, constants)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def write_faces_detector(path: Path, faces: np.ndarray, *, transposed: bool = False) -> Path:
    """Write a detector that gives the same table of faces (1, n, c) for every picture, in an output ``out``."""
    table = faces[None].astype(np.float32)
    if transposed:
        table = table.transpose(0, 2, 1)
    nodes = [
        helper.make_node("ReduceMean", ["input"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["table", "nothing"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "faces",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "h", "w"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, table.shape)],
        [
            numpy_helper.from_array(np.ascontiguousarray(table), "table"),
            numpy_helper.from_array(np.float32(0), "zero"),
        ],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def read_yunet(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> list[tuple[float, list, list]]:
    """Every cell of one picture's outputs as (score, box, points), as its authors' decoder says it."""
    found = []
    for stride in STRIDES:
        columns = size[1] // stride
        for at in range(len(outputs[f"cls_{stride}"])):
            score = math.sqrt(outputs[f"cls_{stride}"][at, 0] * outputs[f"obj_{stride}"][at, 0])
            row, column = divmod(at, columns)
            dx, dy, dw, dh = outputs[f"bbox_{stride}"][at]
            cx, cy = (column + dx) * stride, (row + dy) * stride
            w, h = math.exp(dw) * stride, math.exp(dh) * stride
            k = outputs[f"kps_{stride}"][at]
            points = [[(column + k[2 * i]) * stride, (row + k[2 * i + 1]) * stride] for i in range(5)]
            found.append((score, [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], points))
    return found


def read_scrfd(
    outputs: dict[str, np.ndarray], size: tuple[int, int], anchors: int
) -> list[tuple[float, list, list]]:
    """Every anchor of one picture's outputs, by InsightFace's distance2bbox and distance2kps."""
    found = []
    for stride in STRIDES:
        cells = itertools.product(range(size[0] // stride), range(size[1] // stride), range(anchors))
        for at, (row, column, _) in enumerate(cells):
            x, y = column * stride, row * stride
            left, top, right, bottom = outputs[f"bbox_{stride}"][at] * stride
            k = outputs[f"kps_{stride}"][at] * stride
            points = [[x + k[2 * i], y + k[2 * i + 1]] for i in range(5)]
            box = [x - left, y - top, x + right, y + bottom]
            found.append((float(outputs[f"score_{stride}"][at, 0]), box, points))
    return found


def read_retinaface(outputs: dict[str, np.ndarray], size: tuple[int, int]) -> list[tuple[float, list, list]]:
    """Every prior of one picture's outputs, by Pytorch_Retinaface's PriorBox, decode and decode_landm."""
    found = []
    at = 0
    for stride, sides in zip(STRIDES, SIDES, strict=True):
        for row, column, side in itertools.product(range(size[0] // stride), range(size[1] // stride), sides):
            cx, cy = (column + 0.5) * stride, (row + 0.5) * stride
            dx, dy, dw, dh = outputs["loc"][at]
            x, y = cx + dx * 0.1 * side, cy + dy * 0.1 * side
            w, h = side * math.exp(dw * 0.2), side * math.exp(dh * 0.2)
            k = outputs["landms"][at]
            points = [[cx + k[2 * i] * 0.1 * side, cy + k[2 * i + 1] * 0.1 * side] for i in range(5)]
            found.append(
                (float(outputs["conf"][at, 1]), [x - w / 2, y - h / 2, x + w / 2, y + h / 2], points)
            )
            at += 1
    return found
