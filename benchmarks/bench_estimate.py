"""What ``fcdeploy estimate`` says of a run that is too large for this machine, on one machine and on several.

    python benchmarks/bench_estimate.py --faces 10000000 --workers 4

Nothing is clustered: times are extrapolated from short measurements on this machine, to within about a factor of two.
The features are an empty (sparse) file, as an estimate reads none of them; weights are random. The median of several
estimates is reported.
"""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import click
from bench_scale import random_bundle
from report import write_report

from fcdeploy.data.features import open_features
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.run.options import Options
from fcdeploy.runtime.estimate import estimate_run


@click.command()
@click.option("--faces", default=10_000_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--workers", default=4, show_default=True, help="Machines like this one.")
@click.option("--memory", default=8 << 30, show_default=True, help="Memory budget of each, in bytes.")
@click.option("--repeat", default=3, show_default=True)
def main(faces: int, dim: int, workers: int, memory: int, repeat: int) -> None:
    """Estimate runs of PSE-GCN with the published settings (k = 80, hops 80,10), layer by layer."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bundle = read_bundle(random_bundle("pse-gcn", dim, Path(folder)))
        empty = Path(folder) / "features.bin"
        with empty.open("wb") as file:
            file.truncate(4 * faces * dim)
        options = Options(memory=memory, inference="layerwise")
        for machines in (1, workers):
            count = machines if machines > 1 else 0
            made = [
                estimate_run(open_features(empty, dim), bundle, options, Path(folder) / "run", count)
                for _ in range(repeat)
            ]
            rows.append(
                {
                    "faces": faces,
                    "machines": machines,
                    "estimated_seconds": statistics.median(one.elapsed for one in made),
                    **{
                        f"{stage}_s": statistics.median(one.seconds[stage] for one in made)
                        for stage in made[0].seconds
                    },
                    "at_once_gb": made[0].bytes_at_once / 1e9,
                    "artifacts_gb": sum(size for size, _ in made[0].files.values()) / 1e9,
                    "memory_gb": made[0].memory_bytes / 1e9,
                }
            )
    write_report("estimate", rows, {"dim": dim, "memory": memory, "repeat": repeat, "inference": "layerwise"})


if __name__ == "__main__":
    main()
