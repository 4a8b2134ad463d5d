"""Latency of every pass, in fp32 and fp16, over batches and neighborhood sizes, and of whole runs over face counts.

Random weights, as after initialisation: the arithmetic is that of trained ones. The CPU always; ONNX Runtime's CUDA
provider too, where it opens. Warm-up, calls and percentiles are those of `fcdeploy bench`.

    python benchmarks/bench_latency.py --system pse-gcn --dim 256 --batches 1,8,32 --nodes 64,128,256 --faces 500,2000
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from latency_plot import plot
from report import RESULTS, write_report

from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.errors import FcdeployError
from fcdeploy.runtime.bench import BenchOptions, Report, bench_bundles, free_axes
from fcdeploy.systems import NAMES, get_system

if TYPE_CHECKING:
    import torch

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
    import torch

    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

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


def random_tensor(key: str, shape: tuple[int, ...]) -> "torch.Tensor":
    """A parameter as after initialisation; statistics of a BatchNorm are not trivial, and never negative."""
    import torch

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


if __name__ == "__main__":
    main()
