"""Features to labels on generated faces: seconds, memory and bytes of every stage, and how they grow.

    python benchmarks/bench_scale.py --faces 10000 --faces 100000 --faces 584000
    python benchmarks/bench_scale.py --system gcn-v --memory 3G
    python benchmarks/bench_scale.py --device cuda --vram 6G --faces 584000 --name scale_gpu_vram

Each size runs in a process of its own, in a run folder, after warm-ups of 6,000 faces that compile the kernels.
Generated faces are flushed to disk before the clock starts: writing them is not part of a run. The exponent of a stage
between two sizes is log(seconds) over log(faces). Weights are random: the arithmetic does not depend on them, quality
does, and is not what is measured here. Results are written after each size. Equal ``labels`` are a hash of equal files.
"""

import hashlib
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
from faces import generate
from report import RESULTS, GpuMemory, write_report

SIZES = (10_000, 100_000, 584_000)
WARM_UP = 6_000  # more than one cell
HIDDEN = 512  # of the published GCN-V
# Systems that can be measured: settings of theirs, as published, for the report.
SYSTEMS: dict[str, dict[str, object]] = {
    "pse-gcn": {"k": 80, "hops": [80, 10]},
    "gcn-v": {"k": 80, "links": "input"},
}


@click.command()
@click.option(
    "--faces", "sizes", multiple=True, type=int, default=SIZES, show_default=True, help="Faces; repeatable."
)
@click.option("--system", default="pse-gcn", show_default=True, type=click.Choice(list(SYSTEMS)))
@click.option("--dim", default=256, show_default=True)
@click.option(
    "--engine", type=click.Path(path_type=Path), help="A bundle of --dim.  [default: random weights]"
)
@click.option("--inference", default="layerwise", show_default=True, help="Of PSE-GCN.")
@click.option("--tables", default="float32", show_default=True)
@click.option("--knn", default="auto", show_default=True)
@click.option("--device", default="cpu", show_default=True, type=click.Choice(["cpu", "cuda"]))
@click.option("--memory", default="4G", show_default=True)
@click.option("--vram", help="Of a GPU.  [default: all of it]")
@click.option("--threads", default=2, show_default=True)
@click.option("--repeat", default=1, show_default=True, help="Runs of each size; their medians are reported.")
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where faces and runs go.  [default: temporary]"
)
@click.option("--name", help="Of the results.  [default: by system and device]")
@click.option("--results", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(
    sizes: tuple[int, ...],
    system: str,
    dim: int,
    engine: Path | None,
    inference: str,
    tables: str,
    knn: str,
    device: str,
    memory: str,
    vram: str | None,
    threads: int,
    repeat: int,
    folder: Path | None,
    name: str | None,
    results: Path,
) -> None:
    """Measure whole runs of a system with its published settings (k = 80)."""
    parts = ["scale", *([] if system == "pse-gcn" else [system.replace("-", "_")])]
    name = name or "_".join(parts if device == "cpu" else [*parts, "gpu"])
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        bundle = engine or random_bundle(system, dim, place)
        own = {"inference": inference, "tables": tables} if system == "pse-gcn" else {}
        options = [text for name, value in own.items() for text in (f"--{name}", value)]
        options += ["--knn", knn, "--memory", memory, "--threads", str(threads), "--device", device]
        options += ["--vram", vram] if vram else []
        cluster(place, bundle, WARM_UP, dim, options)
        if knn == "auto":  # which compares all pairs of so few
            cluster(place, bundle, WARM_UP, dim, [*options, "--knn", "cells"])
        arguments = {"system": system, "dim": dim, **SYSTEMS[system], **own, "knn": knn, "device": device}
        arguments |= {"memory": memory, "vram": vram, "threads": threads, "repeat": repeat}
        for faces in sorted(sizes):
            runs.append(median_of([cluster(place, bundle, faces, dim, options) for _ in range(repeat)]))
            write_report(name, rows_of(runs), {**arguments, "runs": runs}, results)


def rows_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for each stage of each run, and one for the whole command; runs: of sizes upwards."""
    rows = []
    for at, run in enumerate(runs):
        for stage, measured in run["stages"].items():
            row = {"faces": run["faces"], "stage": stage, **measured}
            if at:
                before = runs[at - 1]
                ratio = measured["seconds"] / max(before["stages"][stage]["seconds"], 1e-9)
                row["exponent"] = math.log(ratio) / math.log(run["faces"] / before["faces"])
            rows.append(row)
        rows.append(
            {
                "faces": run["faces"],
                "stage": "whole command",
                "seconds": run["wall_seconds"],
                "cpu_seconds": run["cpu_seconds"],
                "faces_per_s": run["faces"] / run["wall_seconds"],
                "peak_gb": run["peak_bytes"] / 1e9,
                "written_gb": run["written_bytes"] / 1e9,
                "labels": run["labels"],
                **run.get("copied", {}),
                **({"gpu_peak_gb": run["gpu_peak_bytes"] / 1e9} if run["gpu_peak_bytes"] else {}),
            }
        )
    return rows


def random_bundle(system: str, dim: int, place: Path) -> Path:
    """Export a network with random weights to ``place``; needs PyTorch."""
    import torch
    from bench_refine import random_network

    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
    from fcdeploy.systems.ve_gcn.network import GcnV

    torch.manual_seed(1)
    checkpoint = place / "checkpoint.pth"
    net = random_network(dim) if system == "pse-gcn" else GcnV(dim, HIDDEN)
    torch.save(net.state_dict(), checkpoint)
    return export_checkpoint(checkpoint, place / "engine.onnx")[0].path


def median_of(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the first of some runs of one size with the medians of what was measured."""
    names = ("wall_seconds", "cpu_seconds", "peak_bytes", "written_bytes")
    found = {**runs[0], **{name: statistics.median(run[name] for run in runs) for name in names}}
    found["stages"] = {
        stage: {name: statistics.median(run["stages"][stage][name] for run in runs) for name in measured}
        for stage, measured in runs[0]["stages"].items()
    }
    return found


def cluster(place: Path, engine: Path, faces: int, dim: int, options: list[str]) -> dict[str, Any]:
    """Generate faces, cluster them in a fresh process and return its summary.

    With it come wall time, processor time of all cores, which other work on the machine changes little, and bytes
    written.
    """
    features, labels = generate(place / f"faces-{faces}", faces, dim)
    run_dir = place / f"run-{faces}"
    command = [sys.executable, "-m", "fcdeploy", "cluster", str(features), "--engine", str(engine), "--json"]
    command += [
        "-o",
        str(place / "pred_labels.meta"),
        "--run-dir",
        str(run_dir),
        "--labels",
        str(labels),
        *options,
    ]
    os.sync()
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    with GpuMemory() as gpu:
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        wall_seconds = time.perf_counter() - started
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with exit code {process.returncode}")
    summary: dict[str, Any] = json.loads(process.stdout)
    summary["wall_seconds"] = wall_seconds
    summary["gpu_peak_bytes"] = gpu.peak
    summary["labels"] = hashlib.sha256((place / "pred_labels.meta").read_bytes()).hexdigest()[:16]
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    summary["cpu_seconds"] = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    summary["written_bytes"] = 512 * (used.ru_oublock - before.ru_oublock)
    for file in (features, labels):
        file.unlink()
    shutil.rmtree(run_dir)
    return summary


if __name__ == "__main__":
    main()
