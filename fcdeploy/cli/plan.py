"""``fcdeploy plan``."""

import json
from pathlib import Path

import click

from fcdeploy.cli.types import Bytes, Hops, PathType


@click.command("plan")
@click.argument("features", type=PathType)
@click.option("--engine", required=True, type=PathType, help="Bundle folder, or a file in it.")
@click.option(
    "--knn", default="auto", show_default=True, metavar="auto|exact|ivf|FILE", help="How neighbors are found."
)
@click.option(
    "--k", type=click.IntRange(min=1), help="Neighbors a face, in every place.  [default: the recipe's]"
)
@click.option("--link", type=click.Choice(["density-peaks", "pairs"]), help="How NSR-FC makes clusters.")
@click.option("--hops", type=Hops(), help="Neighbors a face and of each neighbor.  [default: the recipe's]")
@click.option(
    "--dim", type=click.IntRange(min=1), help="Width of a .bin file's rows.  [default: the engine's]"
)
@click.option(
    "--inference",
    type=click.Choice(["auto", "exact", "layerwise"]),
    default="auto",
    show_default=True,
    help="As published, or each layer once a face; auto is exact up to 20,000 faces.",
)
@click.option(
    "--tables",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="What layer-wise inference keeps between its layers; float16 is rounded.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Threads to use.  [default: all cores]"
)
@click.option(
    "--memory", type=Bytes(), default=0, help="Memory to get along with, as in 4G.  [default: half]"
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    help="Where the engine runs.  [default: cpu, or cuda for TensorRT plans]",
)
@click.option("--run-dir", type=PathType, help="Plan for keeping every stage's result.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(
    features: Path,
    engine: Path,
    knn: str,
    k: int | None,
    link: str | None,
    hops: tuple[int, int] | None,
    dim: int | None,
    inference: str,
    tables: str,
    threads: int,
    memory: int,
    device: str | None,
    run_dir: Path | None,
    as_json: bool,
) -> None:
    """Tell which files, memory and time a run would take.

    Options are those of `fcdeploy cluster`. Sizes are exact; times are estimated from short measurements on this
    machine, within a factor of two or so.

    \b
    Example:
      fcdeploy plan features.bin --engine pse.onnx --memory 4G
    """
    from rich.console import Console
    from rich.table import Table

    from fcdeploy.data.features import open_features
    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.runtime.pipeline import Options
    from fcdeploy.runtime.plan import plan_run

    bundle = read_bundle(engine)
    opened = open_features(features, dim or bundle.feature_dim)
    options = Options(
        knn=knn,
        k=k,
        hops=hops,
        inference=inference,
        tables=tables,
        threads=threads,
        memory=memory,
        device=device,
        link=link,
    )
    plan = plan_run(opened, bundle, options, run_dir)
    if as_json:
        click.echo(json.dumps(plan.as_dict(), indent=1))
        return
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("in memory" if plan.in_memory else "file", "MB", ""):
        table.add_column(heading, justify="right" if heading == "MB" else "left")
    for name, (size, kept) in plan.files.items():
        table.add_row(name, f"{size / 1e6:,.1f}", "kept with --run-dir" if kept else "scratch")
    table.add_row(
        "together", f"{sum(size for size, _ in plan.files.values()) / 1e6:,.1f}", "never all at one time"
    )
    console.print(table)
    console.print(f"memory: about {plan.memory_bytes / 1e9:.2f} GB")
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.seconds.items())
    console.print(f"time: about {sum(plan.seconds.values()):.0f} s ({stages})")
