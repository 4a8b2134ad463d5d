"""GCN-D on generated faces, features to labels: seconds of every stage.

    python benchmarks/bench_gcn_d.py --faces 100000 --recipe gcn-d-ms1m-8

Weights are random, layers of 512 and 64 as published: the arithmetic does not depend on them, quality does, and is not
what is measured here. A run of 2,000 faces compiles the kernels before the clock starts.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from faces import generate
from report import write_report

from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.systems.gcn_d.network import Dsgcn

WARM_UP = 2_000
DIM = 256


@click.command()
@click.option("--faces", default=100_000, show_default=True)
@click.option("--recipe", default="gcn-d-ms1m-8", show_default=True)
@click.option("--knn", default="auto", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--segment", is_flag=True, help="With a segmentation network, too.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where faces and runs go.  [default: temporary]"
)
def main(faces: int, recipe: str, knn: str, threads: int, segment: bool, folder: Path | None) -> None:
    """Measure a whole run of GCN-D."""
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        checkpoints = [random_checkpoint(place / "detect.pth", DIM, 1)]
        if segment:
            checkpoints.append(random_checkpoint(place / "segment.pth", DIM + 1, 2))
        bundle, _ = export_checkpoint(checkpoints, place / "gcn-d.onnx", load_recipe(recipe))
        options = ["--knn", knn, "--threads", str(threads)]
        cluster(place, bundle.path, WARM_UP, options)
        run = cluster(place, bundle.path, faces, options)
        rows = [
            {"faces": faces, "stage": stage, **measured, "proposals": run["proposals"], "nodes": run["nodes"]}
            for stage, measured in run["stages"].items()
        ]
        rows.append({"faces": faces, "stage": "whole command", "seconds": run["wall_seconds"]})
    arguments = {"recipe": recipe, "knn": knn, "threads": threads, "segment": segment}
    write_report("gcn_d", rows, {**arguments, "run": run})


def random_checkpoint(path: Path, dim: int, outputs: int) -> Path:
    """Write a network of published widths with random weights."""
    net = Dsgcn(dim, (512, 64), outputs)
    for weight in net.layers.parameters():
        torch.nn.init.xavier_normal_(weight)
    torch.save(net.state_dict(), path)
    return path


def cluster(place: Path, engine: Path, faces: int, options: list[str]) -> dict[str, Any]:
    """Generate faces, cluster them in a fresh process and return its summary and what was proposed."""
    features, labels = generate(place / f"faces-{faces}", faces, DIM)
    run_dir = place / f"run-{faces}"
    command = [sys.executable, "-m", "fcdeploy", "cluster", str(features), "--engine", str(engine), "--json"]
    command += [
        "-o",
        str(place / "clusters.txt"),
        "--run-dir",
        str(run_dir),
        "--labels",
        str(labels),
        *options,
    ]
    started = time.perf_counter()
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with exit code {process.returncode}")
    summary: dict[str, Any] = json.loads(process.stdout)
    summary["wall_seconds"] = time.perf_counter() - started
    k, nodes = (np.load(run_dir / "proposals" / f"{part}.npy", mmap_mode="r") for part in ("k", "nodes"))
    summary["proposals"], summary["nodes"] = len(k), len(nodes)
    return summary


if __name__ == "__main__":
    main()
