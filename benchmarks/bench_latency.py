"""Latency of every pass, in fp32 and fp16, over batches and neighborhood sizes, and of whole runs over face counts.

Random weights, as after initialisation: the arithmetic is that of trained ones. The CPU always; ONNX Runtime's CUDA
provider too, where it opens. Warm-up, calls and percentiles are those of `fcdeploy bench`.

    python benchmarks/bench_latency.py --system pse-gcn --dim 256 --batches 1,8,32 --nodes 64,128,256 --faces 500,2000
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
from report import RESULTS, write_report

from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.errors import FcdeployError
from fcdeploy.runtime.bench import BenchOptions, Report, bench_bundles, free_axes
from fcdeploy.systems import NAMES, get_system

NAME = "latency"
Place = tuple[Bundle, str]  # and its device


class Numbers(click.ParamType):
    """Whole numbers with commas between."""

    name = "N,N,..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(int(part) for part in str(value).split(","))
        except ValueError:
            numbers = ()
        if not numbers or min(numbers) < 1:
            self.fail(f"'{value}' is not a list of positive whole numbers, as in 1,8,32.", param, ctx)
        return numbers


@click.command()
@click.option("--system", "systems", multiple=True, type=click.Choice(NAMES), default=NAMES[:1])
@click.option("--engine", "engines", multiple=True, type=click.Path(path_type=Path), help="Bundles instead.")
@click.option("--dim", default=256, show_default=True)
@click.option("--batches", type=Numbers(), default="1,8,32", show_default=True)
@click.option("--nodes", type=Numbers(), default="64,128,256", show_default=True)
@click.option("--faces", type=Numbers(), default="500,2000", show_default=True, help="Of whole runs.")
@click.option("--seconds", default=1.0, show_default=True, help="For each measurement.")
@click.option("--threads", default=2, show_default=True)
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(
    systems: tuple[str, ...],
    engines: tuple[Path, ...],
    dim: int,
    batches: tuple[int, ...],
    nodes: tuple[int, ...],
    faces: tuple[int, ...],
    seconds: float,
    threads: int,
    folder: Path,
) -> None:
    """Sweep batches, sizes, precisions and devices."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        bundles = [read_bundle(path) for path in engines] or [
            bundle for system in systems for bundle in random_bundles(system, dim, Path(scratch))
        ]
        measured: dict[str, list[Place]] = {}  # by system: what is compared is measured in turn
        for bundle in bundles:
            measured.setdefault(bundle.system, []).extend((bundle, device) for device in devices_of(bundle))
        rows = [
            row
            for places in measured.values()
            for row in sweep(places, batches, nodes, faces, seconds, threads)
        ]
    arguments = {
        "dim": dim,
        "batches": batches,
        "nodes": nodes,
        "faces": faces,
        "seconds": seconds,
        "threads": threads,
        "load_before": load,
    }
    path = write_report(NAME, rows, arguments, folder)
    plot(rows, path.with_suffix(".png"))


def random_bundles(system: str, dim: int, folder: Path) -> list[Bundle]:
    """Export networks with random weights in both precisions."""
    record = get_system(system)
    torch.manual_seed(1)
    checkpoints = []
    for name, network in record.networks.items():
        widths = {**network.example, "dim": dim, **({"k": 80} if "k" in network.example else {})}
        state = {key: random_tensor(key, shape) for key, shape in network.checkpoint_shapes(**widths).items()}
        checkpoints.append(folder / f"{system}-{name}.pth")
        torch.save(state, checkpoints[-1])
        if record.problem({name: widths}) is None:
            break  # it works alone
    return [
        export_checkpoint(
            checkpoints, folder / f"{system}.{precision}", precision=precision, allow_mismatch=True
        )[0]
        for precision in ("fp32", "fp16")
    ]


def random_tensor(key: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A parameter as after initialisation; statistics of a BatchNorm are not trivial, and never negative."""
    if key.endswith("running_var"):
        return torch.rand(shape) + 0.5
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    if len(shape) < 2:
        return torch.randn(shape) * 0.01 + (1.0 if key.endswith("weight") else 0.0)
    return torch.randn(shape) / max(shape[1:]) ** 0.5


def devices_of(bundle: Bundle) -> Iterator[str]:
    """Yield the devices that really open this bundle."""
    for device in ("cpu", "cuda"):
        try:
            bundle.check_device(device)
        except FcdeployError as error:
            if device == "cpu" and bundle.kind == "onnx":
                raise
            click.echo(f"{bundle.path.name} on {device}: left out ({error})", err=True)
        else:
            yield device


def sweep(
    places: Sequence[Place],
    batches: Sequence[int],
    nodes: Sequence[int],
    faces: Sequence[int],
    seconds: float,
    threads: int,
) -> Iterator[dict[str, Any]]:
    """Measure every pass at every batch and, where it has nodes, at every size; then whole runs.

    places: bundles of one system and their devices. Each size is measured on all of them before the next, so that
    whatever else the machine does falls on all alike.
    """
    if not places:
        return
    passes = places[0][0].passes
    for name, spec in passes.items():
        for size in nodes if len(free_axes(spec)) > 1 else (None,):
            for batch in batches:
                for bundle, device in places:
                    options = BenchOptions(device, batch, size, 0, seconds, threads, (name,))
                    yield from rows_of(bench_bundles([bundle], options)[0])
    for count in faces:
        for bundle, device in places:
            options = BenchOptions(
                device, faces=count, seconds=seconds, threads=threads, passes=(next(iter(passes)),)
            )
            yield from rows_of(bench_bundles([bundle], options)[0], runs=True)


def rows_of(report: Report, *, runs: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a report's rows flat: of runs, or of passes."""
    for row in report.rows:
        if bool(row.stages) == runs:
            yield {
                "system": report.system,
                "precision": report.precision,
                "opened": report.opened,
                "what": row.what,
                **row.size,
                "calls": len(row.seconds),
                **{f"p{p}_ms": 1e3 * row.percentile(p) for p in (50, 90, 99)},
                "host_ms": 1e3 * row.parts.host,
                "copies_ms": 1e3 * row.parts.copies,
                "compute_ms": 1e3 * row.parts.compute,
                "per_s": row.per_second,
            }


SIZES = {
    "m": "faces or links per call",
    "b": "faces, links or neighborhoods per call",
    "s": "faces per batch",
}
Curve = list[dict[str, Any]]


def curves_of(rows: Sequence[dict[str, Any]]) -> dict[str, Curve]:
    """Return the rows of one pass as curves by name, the sizes of each growing."""
    found: dict[str, Curve] = {}
    for row in rows:
        _, *others = sizes_of(row)
        where = [] if row["opened"].startswith("CPU") else [row["opened"].replace("ExecutionProvider", "")]
        name = ", ".join([row["precision"], *(f"{size} = {row[size]}" for size in others), *where])
        found.setdefault(name, []).append(row)
    return {name: sorted(curve, key=first_size) for name, curve in found.items()}


def sizes_of(row: dict[str, Any]) -> list[str]:
    return [name for name in row if name not in FIELDS]


def first_size(row: dict[str, Any]) -> int:
    size: int = row[sizes_of(row)[0]]
    return size


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw latency and throughput over the batch, two panels per pass; whole runs of one size are bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row["system"], row["what"]) for row in rows))
    across = min(3, len(panels))
    lines = -(-len(panels) // across)
    figure = pyplot.figure(figsize=(4.4 * across, 4.6 * lines), layout="constrained")
    parts = figure.subfigures(lines, across, squeeze=False).flat
    for part, (system, what) in zip(parts, panels, strict=False):
        curves = curves_of([row for row in rows if (row["system"], row["what"]) == (system, what)])
        part.suptitle(f"{system}: {what}", fontsize=11)
        if all(len(curve) == 1 for curve in curves.values()):
            _draw_bars(part.subplots(), curves)
        else:
            _draw_curves(part.subplots(2, 1, sharex=True), curves)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _draw_curves(axes: Any, curves: dict[str, Curve]) -> None:
    """Draw the median in milliseconds with a band up to the 99th percentile, and below it the throughput."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    above, below = axes
    for at, (name, curve) in enumerate(curves.items()):
        sizes, color = [first_size(row) for row in curve], f"C{at % 10}"
        style = {"ls": "-" if "fp32" in name else "--", "marker": "o", "ms": 3, "color": color}
        above.plot(sizes, [row["p50_ms"] for row in curve], label=name, **style)
        above.fill_between(
            sizes, *([row[f"p{p}_ms"] for row in curve] for p in (50, 99)), color=color, alpha=0.15, lw=0
        )
        below.plot(sizes, [row["per_s"] for row in curve], **style)
    ticks = sorted({first_size(row) for curve in curves.values() for row in curve})
    size = sizes_of(next(iter(curves.values()))[0])[0]
    above.set(xscale="log", yscale="log", ylabel="milliseconds per call,\nmedian to 99 %")
    below.set(xscale="log", ylabel="throughput per second", xlabel=SIZES.get(size, size))
    below.set_ylim(bottom=0, top=1.12 * below.get_ylim()[1])
    below.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    for axis in axes:
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.grid(alpha=0.3)
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_minor_formatter(NullFormatter())
    above.legend(fontsize=6, framealpha=0.6)


def _draw_bars(axis: Any, curves: dict[str, Curve]) -> None:
    """Draw the median seconds of whole runs, with a line up to the 99th percentile and the throughput beside it."""
    for at, (name, (row,)) in enumerate(curves.items()):
        middle, late = row["p50_ms"] / 1e3, row["p99_ms"] / 1e3
        axis.barh(
            at, middle, xerr=[[0], [max(0.0, late - middle)]], color=f"C{at % 10}", height=0.5, capsize=3
        )
        told = f"{name}: {middle:.3g} s, {row['per_s']:,.0f} faces per second"
        axis.text(0, at + 0.36, told, fontsize=7).set_in_layout(False)
    size = f"{first_size(row):,} faces"
    axis.set(xlabel=f"seconds per run of {size}, median to 99 %", yticks=[], ylim=(-0.6, len(curves) - 0.2))
    axis.set_xlim(left=0)


FIELDS = (
    "system",
    "precision",
    "opened",
    "what",
    "calls",
    *(f"p{p}_ms" for p in (50, 90, 99)),
    "host_ms",
    "copies_ms",
    "compute_ms",
    "per_s",
)


if __name__ == "__main__":
    main()
