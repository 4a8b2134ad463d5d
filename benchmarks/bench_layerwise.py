"""Where the time of layer-wise refinement goes: matrix products, sparse sums, copies, waiting; and the machine's rates.

    python benchmarks/bench_layerwise.py --faces 100000

dense: inside ONNX Runtime. sparse: inside the kernels that sum over neighborhoods. lists: cutting and renumbering the
neighbor lists. checks: that no value is NaN or infinite. copies: the rest, gathering input rows and writing output rows
above all. Tables are in memory: nothing waits for a disk. cores_waiting: the share of the cores' time in which they
computed nothing (threads that spin while they wait count as computing). The machine's rates are measured in the same
run: float32 matrix products of 4096 x 512 x 512 in PyTorch, and copying of 512 MB.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import onnx
import torch
from bench_refine import new_run, random_network
from faces import make_faces
from report import median_seconds, write_report

from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.graph import aggregation
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.run import Run
from fcdeploy.systems import get_system
from fcdeploy.systems.pse_gcn import flow


@click.command()
@click.option("--faces", default=50_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(faces: int, dim: int, threads: int) -> None:
    """Split the time of one layer-wise refinement."""
    torch.set_num_threads(threads)
    torch.manual_seed(1)
    spent = dict.fromkeys(("dense", "sparse", "lists", "checks"), 0.0)
    features, _ = make_faces(faces, dim, 1)
    with tempfile.TemporaryDirectory() as scratch, threads_limited(threads):
        torch.save(random_network(dim).state_dict(), Path(scratch) / "checkpoint.pth")
        bundle, _ = export_checkpoint(Path(scratch) / "checkpoint.pth", Path(scratch) / "pse.onnx")
        products = multiply_adds(bundle)
        for warm in (True, False):
            run = new_run(features[:2000] if warm else features, bundle, threads, "layerwise")
            vectors = read_features(run)
            cells = partition(run, "cells", vectors)
            knn = flow.nearest_neighbors(run, vectors, cells)
            ranked = flow.reranked_lists(run, vectors, cells, knn)
            if not warm:
                OnnxRuntimeEngine.run = timed("dense", OnnxRuntimeEngine.run, spent)  # type: ignore[method-assign]
                for kernel in ("sum_connected", "sum_similar"):
                    setattr(aggregation, kernel, timed("sparse", getattr(aggregation, kernel), spent))
                flow.lists_by_place = timed("lists", flow.lists_by_place, spent)
                Run.check_finite = timed("checks", Run.check_finite, spent)  # type: ignore[method-assign]
            started, busy = time.perf_counter(), time.process_time()
            _ = flow.refined_layerwise(run, vectors, cells, knn, ranked).array
            total, busy = time.perf_counter() - started, time.process_time() - busy
    matrix, copy = machine_rates()
    rows = [
        {"part": part, "seconds": seconds, "share": seconds / total, "us_per_face": 1e6 * seconds / faces}
        for part, seconds in {**spent, "copies": total - sum(spent.values()), "together": total}.items()
    ]
    rates = {
        "multiply_adds_per_face": products,
        "dense_gflops": 2e-9 * products * faces / spent["dense"],
        "machine_matrix_gflops": matrix,
        "machine_copy_gb_per_s": copy,
        "cores_waiting": 1 - busy / (threads * total),
        "faces_per_s": faces / total,
        "faces_per_s_if_all_were_matrix_products": 1e9 * matrix / (2 * products),
    }
    write_report("layerwise", rows, {"faces": faces, "dim": dim, "threads": threads, **rates})
    for name, value in rates.items():
        click.echo(f"{name}: {value:,.2f}")


def timed(part: str, function: Callable[..., Any], spent: dict[str, float]) -> Callable[..., Any]:
    """Return ``function`` with its time counted."""

    def counted(*args: Any) -> Any:
        started = time.perf_counter()
        try:
            found = function(*args)
            if isinstance(found, Artifact):
                _ = found.arrays  # computed when it is asked for
            return found
        finally:
            spent[part] += time.perf_counter() - started

    return counted


def multiply_adds(bundle: Bundle) -> int:
    """Multiply-adds a face of the layer-wise passes: one a weight of their matrices."""
    total = 0
    for name in get_system(bundle.system).inferences["layerwise"]:
        for tensor in onnx.load(bundle.file(name)).graph.initializer:
            total += int(np.prod(tensor.dims)) if len(tensor.dims) == 2 else 0
    return total


def machine_rates() -> tuple[float, float]:
    """Return GFLOP/s of float32 matrix products and GB/s of copying (bytes read and written)."""
    a, b = torch.rand(4096, 512), torch.rand(512, 512)
    matrix = median_seconds(lambda: a @ b, repeats=9, warmup=2)["median"]
    source = np.ones(1 << 27, dtype=np.float32)
    target = np.empty_like(source)
    copy = median_seconds(lambda: np.copyto(target, source), repeats=5, warmup=1)["median"]
    return 2e-9 * 4096 * 512 * 512 / matrix, 2e-9 * source.nbytes / copy


if __name__ == "__main__":
    main()
