"""``fcdeploy estimate``."""

import json
from pathlib import Path

import click

from fcdeploy.cli.features import column_option, open_and_tell
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.run_options import RUN_SECTIONS, run_options
from fcdeploy.cli.shared_options import dim_option, engine_option, json_option
from fcdeploy.cli.text import PlainConsole
from fcdeploy.cli.types import PathType, Whole
from fcdeploy.errors import counted
from fcdeploy.run.options import ENGINE, WORKERS

GROUPS = {
    "Input": ("dim", "column"),
    **RUN_SECTIONS,
    ENGINE: ("engine", *RUN_SECTIONS[ENGINE]),
    WORKERS: (*RUN_SECTIONS[WORKERS], "workers"),
    "Output": ("run_dir", "as_json"),
}


@click.command("estimate", cls=grouped(GROUPS))
@click.argument("features", type=PathType)
@engine_option
@run_options
@dim_option
@column_option
@click.option("--run-dir", type=PathType, help="Run folder of that run; its results are then kept in files.")
@click.option(
    "--workers",
    type=Whole(min=0),
    default=0,
    help="Number of machines like this one that share the work.  [default: this one only]",
)
@json_option("the estimate")
def command(
    features: Path,
    engine: Path,
    dim: int | None,
    column: str | None,
    run_dir: Path | None,
    workers: int,
    as_json: bool,
    **chosen: object,
) -> None:
    """Estimate the files, memory and time of a run.

    Give it the options of `fcdeploy cluster` that you want to use. Sizes are exact; times are extrapolated from short
    measurements on this machine, to within about a factor of two.

    \b
    Example:
      fcdeploy estimate features.bin --engine pse.onnx --memory 4G
    """
    from rich.table import Table

    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.run.options import options_from_values
    from fcdeploy.runtime.estimate import estimate_run

    bundle, options = read_bundle(engine), options_from_values(chosen)
    opened = open_and_tell(features, dim, width=bundle.feature_dim, column=column, scratch=options.scratch)
    estimated = estimate_run(opened, bundle, options, run_dir, workers)
    if as_json:
        click.echo(json.dumps(estimated.as_dict(), indent=1))
        return
    console = PlainConsole()
    table = Table(box=None, pad_edge=False)
    for heading in ("in memory" if estimated.in_memory else "file", "MB", ""):
        table.add_column(heading, justify="right" if heading == "MB" else "left")
    for name, (size, kept) in estimated.files.items():
        table.add_row(name, f"{size / 1e6:,.1f}", "kept with --run-dir" if kept else "scratch")
    table.add_row(
        "together",
        f"{sum(size for size, _ in estimated.files.values()) / 1e6:,.1f}",
        f"at most {estimated.bytes_at_once / 1e6:,.1f} at the same time",
    )
    console.print(table)
    each = " per worker" if workers else ""
    console.print(f"memory: about {estimated.memory_bytes / 1e9:.2f} GB{each}")
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in estimated.seconds.items())
    console.print(f"time: about {sum(estimated.seconds.values()):.0f} s ({stages})")
    if workers:
        shared = sum(estimated.shared.values())
        scratch = sum(size for size, _ in estimated.files.values()) / 1e9
        console.print(
            f"with {counted(workers, 'worker')}: about {estimated.elapsed:.0f} s; {shared:.0f} s of the above are "
            "shared among "
            "them, "
            f"and --scratch takes up to {scratch:,.1f} GB on each machine"
        )
