"""One run with workers on a Ray cluster: what they cost beside threads, and how much quicker two are than one.

    python benchmarks/bench_ray.py --faces 100000

The cluster is of nodes of one CPU each, all on this machine, beside a head without any; it stands before the clock
starts, workers do not. "two threads" is one process with --threads 2. A stage that is shared out counts from the first
block that is handed out until all are taken in. The kernels are compiled beforehand, by a run of 2,000 faces.
"""

import json
import os
import shutil
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

WARM_UP = 2_000
OBJECTS = 78 << 20  # bytes of a node's object store, the least that Ray takes


@click.command()
@click.option("--faces", default=100_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--inference", default="layerwise", show_default=True)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where faces and runs go.  [default: temporary]"
)
@click.option("--scratch", type=click.Path(path_type=Path), help="--scratch of the workers.")
def main(faces: int, dim: int, inference: str, folder: Path | None, scratch: Path | None) -> None:
    """Measure whole runs of PSE-GCN with the published settings (k = 80, hops 80,10)."""
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        place = Path(made)
        checkpoint = place / "checkpoint.pth"
        torch.save(random_network(dim).state_dict(), checkpoint)
        bundle, _ = export_checkpoint(checkpoint, place / "pse.onnx")
        options = ["--engine", str(bundle.path), "--inference", inference, "--memory", "4G"]
        small, _ = generate(place / "small", WARM_UP, dim)
        cluster(place, small, [*options, "--threads", "2"])
        features, _ = generate(place / "faces", faces, dim)
        os.sync()
        threads = cluster(place, features, [*options, "--threads", "2"])
        copies = ["--scratch", str(scratch)] if scratch else []
        found = {count: on_workers(place, features, [*options, *copies], count) for count in (2, 1)}
    for count, run in found.items():
        if run["labels"] != threads["labels"]:
            raise click.ClickException(f"{count} workers give other labels than two threads")
    rows = rows_of(threads, found)
    write_report("ray", rows, {"faces": faces, "dim": dim, "inference": inference, "scratch": bool(scratch)})


def rows_of(threads: dict[str, Any], found: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what is reported: a row for the whole command, one for each shared stage, and one for their sum."""
    one, two = (found[count]["workers"]["seconds"] for count in (1, 2))
    whole = {"two_threads": threads["wall_seconds"]}
    whole |= {"one_worker": found[1]["wall_seconds"], "two_workers": found[2]["wall_seconds"]}
    rows = [{"stage": "whole command", **whole, "overhead": whole["two_workers"] / whole["two_threads"]}]
    sums = {"one_worker": sum(one.values()), "two_workers": sum(two.values())}
    rows.append({"stage": "shared stages", **sums, "speed_up": sums["one_worker"] / sums["two_workers"]})
    for stage in one:
        measured = {"one_worker": one[stage], "two_workers": two[stage]}
        rows.append({"stage": stage, **measured, "speed_up": one[stage] / max(two[stage], 1e-9)})
    return rows


def on_workers(place: Path, features: Path, options: list[str], count: int) -> dict[str, Any]:
    """Run on so many nodes of one CPU each."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": OBJECTS}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(count):
            nodes.add_node(num_cpus=1, object_store_memory=OBJECTS)
        return cluster(place, features, [*options, "--ray", nodes.address])
    finally:
        nodes.shutdown()


def cluster(place: Path, features: Path, options: list[str]) -> dict[str, Any]:
    """Cluster in a fresh process and return its summary with wall time and labels."""
    run_dir, output = place / "run", place / "pred_labels.meta"
    command = [sys.executable, "-m", "fcdeploy", "cluster", str(features), "--json", "-o", str(output)]
    started = time.perf_counter()
    process = subprocess.run(
        [*command, "--run-dir", str(run_dir), *options], stdout=subprocess.PIPE, text=True
    )
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with exit code {process.returncode}")
    summary: dict[str, Any] = json.loads(process.stdout)
    summary |= {"wall_seconds": time.perf_counter() - started, "labels": output.read_bytes()}
    shutil.rmtree(run_dir)
    return summary


if __name__ == "__main__":
    main()
