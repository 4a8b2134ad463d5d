"""``fcdeploy inspect``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import json_option
from fcdeploy.cli.text import PlainConsole, printable
from fcdeploy.cli.types import PathType

if TYPE_CHECKING:
    from fcdeploy.engine.bundle import Bundle


@click.command("inspect", cls=grouped())
@click.argument("bundle", type=PathType)
@json_option("the manifest and the results of the checks")
def command(bundle: Path, as_json: bool) -> None:
    """Show the contents of a bundle and its measured accuracy.

    Shows the graphs with their inputs and outputs, the recipe, and the difference from the PyTorch network. Every graph
    file is hashed and compared with the manifest; exit code 2 means that one was changed.

    \b
    Example:
      fcdeploy inspect pse.onnx
    """
    from fcdeploy.engine.bundle import read_bundle

    read = read_bundle(bundle)
    read.check_files()
    if as_json:
        click.echo(json.dumps(read.manifest, indent=1))
    else:
        _print(read)


def _print(bundle: "Bundle") -> None:
    from rich.table import Table

    from fcdeploy.systems import describe, get_system

    console, about = PlainConsole(), bundle.about
    console.print(f"{bundle.path}: {about.system}, {about.feature_dim}-d features, {about.precision}")
    for name, graph in about.passes.items():
        console.print(f"\npass {name}: {graph.file}, {graph.bytes:,} bytes, SHA-256 {graph.sha256}")
        table = Table(box=None, pad_edge=False)
        for heading in ("  ", "tensor", "axes", "dtype"):
            table.add_column(heading)
        for side, tensors in (("in", graph.inputs), ("out", graph.outputs)):
            for tensor in tensors:
                table.add_row(
                    f"  {side}",
                    printable(tensor.name),
                    printable(", ".join(map(str, tensor.axes))),
                    tensor.dtype,
                )
        console.print(table)
        for ranges in graph.profiles or ():
            lengths = ", ".join(
                f"{axis} {low} to {high} (typically {typical})"
                for axis, (low, typical, high) in ranges.items()
            )
            console.print(f"  profile: {lengths}")
    if target := about.target:
        console.print(
            f"\nbuilt for compute capability {target.compute_capability} by {target.flavour} {target.version} "
            f"(profile {target.profile})"
        )
    if source := about.source:
        console.print(f"built from {source.bundle}, digest {source.digest}; its parity:")
    origin = ", ".join(filter(None, (*about.recipe_from.files, about.recipe_from.source)))
    console.print("\nrecipe" + (printable(f" ({origin})") if about.recipe_from.source else ""))
    for section, values in about.recipe.items():
        for line in _settings(section, values):
            console.print(f"  {line}")
    checked_on = get_system(about.system).module("parity").PARITY
    for name, network in about.networks.items():
        meaning = checked_on[name].meaning if name in checked_on else "unknown"
        checkpoint, parity = network.checkpoint, network.parity
        sizes = ", ".join(" x ".join(map(str, size)) for size in parity.sizes)
        console.print(
            f"\nnetwork {name}: {describe({name: network.widths})}; "
            f"checkpoint {checkpoint.file}, SHA-256 {checkpoint.sha256}\n"
            f"  parity with PyTorch ({parity.backend}; {meaning}: {sizes})\n"
            f"  largest error {parity.max_error:.2e} (allowed {parity.tolerance:.0e}), "
            f"mean {parity.mean_error:.2e}, {parity.nan} NaN\n"
            f"  {parity.flipped} of {parity.edges:,} edges flipped; "
            f"{parity.undecided} within 1e-6 of the threshold"
        )
    if half := about.fp16:
        counts = ", ".join(
            f"{name} {count.fp16} of {count.fp16 + count.fp32}" for name, count in half.products.items()
        )
        console.print(
            f"\nfp16: matrix products in float16 ({half.keep} stay float32): {counts}\n"
            f"  share of {half.agreement.faces:,} faces ({half.agreement.source}) in the same cluster as in fp32"
        )
        for run in half.agreement.runs:
            counts = " and ".join(f"{count or 0:,}" for count in run.clusters)
            console.print(f"  {run.way}: {run.share:.2%} ({counts} clusters)")
    console.print("\nmade with " + ", ".join(f"{name} {version}" for name, version in about.versions.items()))


def _settings(section: str, values: object) -> list[str]:
    """Give the lines of a recipe's table, or of a list of them, those inside it behind it."""
    if isinstance(values, list):
        return [line for table in values for line in _settings(f"[{section}]", table)]
    if not isinstance(values, dict):
        return []
    values = {key: value for key, value in values.items() if value != []}
    plain = {key: value for key, value in values.items() if not _holds_tables(value)}
    lines = [f"[{section}] " + ", ".join(f"{key} = {value}" for key, value in plain.items())]
    name = section.removeprefix("[").removesuffix("]")
    for key in values.keys() - plain.keys():
        lines += _settings(f"{name}.{key}", values[key])
    return lines


def _holds_tables(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
