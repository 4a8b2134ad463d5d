"""How fast new faces are assigned to the clusters of a run: faces per second, and the time of a single one.

Stored faces are synthetic ones of the engine's width, or those of a run folder that is there; new ones are others of
the same people. The folder is kept if it is named, so that the clustering can be done before the measurement.

    python benchmarks/bench_assign.py pse.onnx --faces 100000 --run-dir run --prepare
    python benchmarks/bench_assign.py pse.onnx --faces 100000 --run-dir run
"""

import os
import tempfile
import time
from pathlib import Path

import click
import numpy as np
from faces import make_faces
from report import RESULTS, write_report

import fcdeploy
from fcdeploy.engine.bundle import read_bundle

NAME = "assign"


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--faces", default=100_000, show_default=True, help="Stored faces.")
@click.option("--new", default=4000, show_default=True, help="New faces of the throughput.")
@click.option("--single", default=500, show_default=True, help="Calls with a single face.")
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--run-dir", type=click.Path(path_type=Path), help="Folder of the stored run, kept.")
@click.option(
    "--features",
    type=click.Path(path_type=Path),
    help="New faces, with --run-dir, instead of synthetic ones.",
)
@click.option("--prepare", is_flag=True, help="Cluster the stored faces, and measure nothing.")
@click.option("--name", default=NAME, show_default=True, help="Of the report.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(
    engine: Path,
    faces: int,
    new: int,
    single: int,
    threads: int,
    seed: int,
    run_dir: Path | None,
    features: Path | None,
    prepare: bool,
    name: str,
    folder: Path,
) -> None:
    """Measure assigning."""
    load = os.getloadavg()[0]
    bundle = read_bundle(engine)
    dim = bundle.feature_dim
    with tempfile.TemporaryDirectory() as scratch:
        run = run_dir or Path(scratch) / "run"
        if features is None:
            rows, _ = make_faces(faces + new, dim, seed)
            if not (run / "state.json").exists():
                fcdeploy.cluster(rows[:faces], engine=engine, run_dir=run, threads=threads)
            more = rows[faces:]
        else:
            more = np.fromfile(features, "<f4").reshape(-1, dim)[:new]
        if prepare:
            return
        measured = measure(run, more, single, threads)
    stored = len(np.load(run / "labels/chosen.npy", mmap_mode="r")) if run.exists() else faces
    row = {
        "system": bundle.system,
        "networks": "+".join(bundle.weights),
        "stored": stored,
        "dim": dim,
        **measured,
    }
    arguments = {"new": len(more), "single": single, "threads": threads, "seed": seed, "load_before": load}
    write_report(name, [row], arguments, folder)


def measure(run: Path, more: np.ndarray, single: int, threads: int) -> dict[str, float]:
    """Open the folder, assign all faces in one call, then some one by one; seconds but for the names that say else."""
    begun = time.perf_counter()
    with fcdeploy.Assigner(run, threads=threads) as assigner:
        opened = time.perf_counter() - begun
        assigner.assign(more[:300])  # compiles kernels
        assigner.assign(more[:1])
        begun = time.perf_counter()
        found = assigner.assign(more)
        together = time.perf_counter() - begun
        took = []
        for at in range(single):
            begun = time.perf_counter()
            assigner.assign(more[at % len(more)][None])
            took.append(time.perf_counter() - begun)
    return {
        "open_s": opened,
        "faces_per_s": len(more) / together,
        **{f"p{p}_ms": 1e3 * float(np.percentile(took, p)) for p in (50, 90, 99)},
        "matched": found.matched / len(more),
    }


if __name__ == "__main__":
    main()
