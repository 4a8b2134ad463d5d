"""``fcdeploy bench``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import json_option
from fcdeploy.cli.text import PlainConsole
from fcdeploy.cli.types import PathType, Real, Whole
from fcdeploy.errors import counted

if TYPE_CHECKING:
    from fcdeploy.runtime.bench import Report


@click.command("bench", cls=grouped())
@click.argument("bundles", nargs=-1, required=True, type=PathType, metavar="BUNDLE...")
@run_option("device")
@click.option(
    "--batch",
    type=Whole(min=1),
    help="Faces, links or neighborhoods per engine call.  [default: chosen by the size of the tensors]",
)
@click.option(
    "--nodes",
    type=Whole(min=1),
    help="Length of every other free axis of the inputs, e.g. faces per neighborhood.  [default: 128]",
)
@click.option(
    "--faces",
    type=Whole(min=0),
    default=500,
    show_default=True,
    help="Number of generated faces in whole runs; 0: measure passes only.",
)
@click.option(
    "--pass",
    "passes",
    multiple=True,
    metavar="NAME",
    help="Measure only this pass; may be repeated.  [default: all]",
)
@click.option(
    "--seconds",
    type=Real(min=0),
    default=2.0,
    show_default=True,
    help="Duration of each measurement in seconds; at least 10 calls or 3 runs.",
)
@run_option("threads")
@json_option("the results")
def command(
    bundles: tuple[Path, ...],
    device: str | None,
    batch: int | None,
    nodes: int | None,
    faces: int,
    passes: tuple[str, ...],
    seconds: float,
    threads: int,
    as_json: bool,
) -> None:
    """Measure latency and throughput of bundles: every pass, and whole runs.

    Passes get random inputs, whole runs get generated faces. Latency is measured on a warm engine, and split into host
    (preparing inputs; in runs, everything outside the engine), copies and compute. Several bundles are compared with
    the first.

    \b
    Example:
      fcdeploy bench pse.onnx
      fcdeploy bench pse.onnx pse16.onnx --batch 32 --nodes 128 --json
    """
    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.runtime.bench import BenchOptions, bench_bundles

    options = BenchOptions(device, batch, nodes, faces, seconds, threads, passes)
    read = [read_bundle(path) for path in bundles]

    def tell(text: str) -> None:
        if not as_json:
            click.echo(text, err=True)

    reports = bench_bundles(read, options, tell)
    if as_json:
        click.echo(json.dumps([report.as_dict() for report in reports], indent=1))
    else:
        _print(reports)


def _print(reports: "Sequence[Report]") -> None:
    from rich.table import Table

    from fcdeploy.runtime.bench import PERCENTILES, compare

    several = len(reports) > 1
    console = PlainConsole()
    for at, report in enumerate(reports, 1):
        console.print(
            f"{f'{at}  ' if several else ''}{report.bundle}: {report.system}, {report.precision}, {report.opened}, "
            f"{counted(report.threads, 'thread')}"
        )
    table = Table(box=None, pad_edge=False)
    table.add_column("what", no_wrap=True)
    table.add_column("size", no_wrap=True)
    if several:
        table.add_column("bundle", justify="right")
    for heading in (*(f"p{p} ms" for p in PERCENTILES), "per s", "host ms", "copies ms", "compute ms"):
        table.add_column(heading, justify="right")
    if several:
        table.add_column("speed", justify="right")
    for report, row, ratio in compare(reports):
        size = ", ".join(f"{name} {length:,}" for name, length in row.size.items())
        cells = [row.what, size]
        if several:
            cells.append(str(reports.index(report) + 1))
        cells += [_milliseconds(row.percentile(p)) for p in PERCENTILES]
        cells.append(f"{row.per_second:,.0f}")
        cells += [_milliseconds(part) for part in (row.parts.host, row.parts.copies, row.parts.compute)]
        if several:
            cells.append("" if ratio is None else f"{ratio:.2f}x")
        table.add_row(*cells)
    console.print(table)
    for at, report in enumerate(reports, 1):
        for row in report.rows:
            if row.stages:
                stages = ", ".join(f"{name} {_milliseconds(s)}" for name, s in row.stages.items())
                console.print(f"{f'{at}  ' if several else ''}{row.what}, stages in ms: {stages}")


def _milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:,.2f}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
