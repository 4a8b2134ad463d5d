"""NSR-FC on generated faces: seconds of every stage of whole runs through four networks.

    python benchmarks/bench_nsr.py --faces 20000

Weights are random and of the published shapes (d = 256, k = 80, batches of 512; the pair networks' encoders have three
layers); arithmetic does not depend on them, and quality is not what is measured here. Runs are commands in processes
of their own, after a warm-up of 2,000 faces that compiles the kernels: one that links by pairs, then one by density
peaks in the same run folder, which reuses what the first one re-scored.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch
from bench_refine import random_network
from faces import generate
from report import write_report

from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.manifest import Parity
from fcdeploy.systems.nsr_fc.network import Lce, Pce, Rescore
from fcdeploy.systems.nsr_fc.spec import Recipe

RECIPE = "nsr-fc-ms1m"
WARM_UP = 2_000


@click.command()
@click.option("--faces", default=20_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--inference", default="auto", show_default=True, help="Of the refinement.")
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where faces and runs go.  [default: temporary]"
)
def main(faces: int, dim: int, inference: str, threads: int, folder: Path | None) -> None:
    """Measure whole runs of NSR-FC."""
    load = os.getloadavg()
    rows = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        bundle, parities = random_bundle(dim, place)
        for n in (WARM_UP, faces):
            features, labels = generate(place / f"faces-{n}", n, dim)
            for link in ("pairs", "density-peaks"):
                options = ["--link", link, "--inference", inference, "--threads", str(threads)]
                options += ["--run-dir", str(place / f"run-{n}"), "--labels", str(labels)]
                options += ["-o", str(place / "pred_labels.meta")]
                summary = run_command(
                    ["cluster", str(features), "--engine", str(bundle.path), "--json", *options]
                )
                if n == faces:
                    rows += [
                        {"link": link, "stage": stage, **measured}
                        for stage, measured in summary["stages"].items()
                    ]
                    rows.append(
                        {
                            "link": link,
                            "stage": "whole command",
                            "seconds": summary["wall_seconds"],
                            "faces_per_s": n / summary["wall_seconds"],
                            "peak_gb": summary["peak_bytes"] / 1e9,
                        }
                    )
    arguments = {
        "faces": faces,
        "dim": dim,
        "recipe": RECIPE,
        "inference": inference,
        "threads": threads,
        "load_before": load,
        "load_after": os.getloadavg(),
        "parity": {name: parity.max_error for name, parity in parities.items()},
    }
    write_report("nsr_fc", rows, arguments)


def run_command(args: list[str]) -> dict[str, Any]:
    """Run ``fcdeploy`` in a fresh process and return its summary with wall time."""
    started = time.perf_counter()
    process = subprocess.run([sys.executable, "-m", "fcdeploy", *args], stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise click.ClickException(f"fcdeploy {' '.join(args)} ended with exit code {process.returncode}")
    summary: dict[str, Any] = json.loads(process.stdout)
    return {**summary, "wall_seconds": time.perf_counter() - started}


def random_bundle(dim: int, place: Path) -> tuple[Bundle, dict[str, Parity]]:
    """Export four networks with random weights of the published shapes."""
    torch.manual_seed(1)
    recipe = load_recipe(RECIPE)
    assert isinstance(recipe, Recipe)
    k = recipe.pairs.k
    networks: dict[str, torch.nn.Module] = {
        "refine": random_network(dim),
        "rescore": Rescore(2 * dim, 2048, 1),
        "lce": Lce(dim, k, 1024, 3),
        "pce": Pce(dim, k, 1024, 3, 2048),
    }
    for name, network in networks.items():
        torch.save(network.state_dict(), place / f"{name}.pth")
    checkpoints = [place / f"{name}.pth" for name in networks]
    return export_checkpoint(checkpoints, place / "nsr-fc.onnx", recipe)


if __name__ == "__main__":
    main()
