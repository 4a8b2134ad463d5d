"""Tiny face embedders as ONNX files, and what they compute in NumPy: the mean of every cell of a 4 x 4 grid, mixed."""

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

GRID = 4


def mixing(channels: int, dim: int) -> np.ndarray:
    """The matrix (16 channels, dim) float32 that mixes the cells, the same every time."""
    return np.random.default_rng(7).standard_normal((GRID * GRID * channels, dim)).astype(np.float32)


def write_embedder(
    path: Path,
    *,
    size: tuple[int, int] = (16, 16),
    channels: int = 3,
    dim: int = 32,
    layout: str = "NCHW",
    batch: Any = "n",
    said: bool = True,
    dtype: int = TensorProto.FLOAT,
    outputs: int = 1,
    factor: float = 1.0,
) -> Path:
    """Write an embedder of pictures of ``size`` (height, width).

    batch: a number or a name. said: whether the graph says channels and size, or leaves all but the batch open.
    outputs: beyond the first ("embedding"), "cells" comes first. factor: what embeddings are multiplied with.
    """
    lengths = {"N": batch, "C": channels, "H": size[0], "W": size[1]}
    axes = [lengths[axis] if said or axis == "N" else axis.lower() for axis in layout]
    nodes = [helper.make_node("Cast", ["pictures"], ["floats"], to=TensorProto.FLOAT)]
    floats = "floats"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", ["floats"], ["planes"], perm=[0, 3, 1, 2]))
        floats = "planes"
    kernel = [size[0] // GRID, size[1] // GRID]
    nodes += [
        helper.make_node("AveragePool", [floats], ["pooled"], kernel_shape=kernel, strides=kernel),
        helper.make_node("Flatten", ["pooled"], ["cells"]),
        helper.make_node("MatMul", ["cells", "mixing"], ["embedding"]),
    ]
    names = ["embedding"] if outputs == 1 else ["cells", "embedding"]
    widths = {"cells": GRID * GRID * channels, "embedding": dim}
    graph = helper.make_graph(
        nodes,
        "embedder",
        [helper.make_tensor_value_info("pictures", dtype, axes)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, widths[name]]) for name in names],
        [numpy_helper.from_array(np.float32(factor) * mixing(channels, dim), "mixing")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, path)
    return path


def embed_plainly(
    pixels: np.ndarray, dim: int = 32, mean: Any = 127.5, scale: Any = 127.5, factor: float = 1.0
) -> np.ndarray:
    """Embed pictures (m, height, width, c) uint8 as the file does, in float64."""
    values = (pixels.astype(np.float64) - mean) / scale
    m, height, width, channels = values.shape
    cells = values.reshape(m, GRID, height // GRID, GRID, width // GRID, channels).mean(axis=(2, 4))
    mixed = cells.transpose(0, 3, 1, 2).reshape(m, -1) @ mixing(channels, dim).astype(np.float64)
    return factor * mixed


def pictures_of(n: int, size: tuple[int, int] = (16, 16), people: int = 6, seed: int = 1) -> np.ndarray:
    """Pictures (n, height, width, 3) uint8 of ``people`` faces in turn: a pattern each, with a little noise."""
    rng = np.random.default_rng(seed)
    patterns = rng.integers(20, 236, (people, GRID, GRID, 3))
    big = patterns.repeat(size[0] // GRID, axis=1).repeat(size[1] // GRID, axis=2)
    return (big[np.arange(n) % people] + rng.integers(-8, 9, (n, *size, 3))).astype(np.uint8)
