"""``fcdeploy inspect``."""

import json
from pathlib import Path
from typing import Any

import click

from fcdeploy.cli.text import new_console, printable


@click.command("inspect")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the manifest and what was checked as JSON.")
def command(bundle: Path, as_json: bool) -> None:
    """Show what a bundle holds and how exact it was measured to be.

    Every graph file is hashed and compared with the manifest; exit code 2 says that one was changed.

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
        _print(read.path, dict(read.manifest))


def _print(path: Path, manifest: dict[str, Any]) -> None:
    from rich.table import Table

    from fcdeploy.engine.tensors import pass_from_dict
    from fcdeploy.systems import describe, get_system

    console = new_console()
    console.print(
        f"{path}: {manifest['system']}, {manifest['feature_dim']}-d features, {manifest['precision']}"
    )
    for name, fields in manifest["passes"].items():
        spec = pass_from_dict(name, fields)
        console.print(
            f"\npass {name}: {fields['file']}, {fields['bytes']:,} bytes, SHA-256 {fields['sha256']}"
        )
        table = Table(box=None, pad_edge=False)
        for heading in ("  ", "tensor", "axes", "dtype"):
            table.add_column(heading)
        for side, tensors in (("in", spec.inputs), ("out", spec.outputs)):
            for tensor in tensors:
                table.add_row(
                    f"  {side}",
                    printable(tensor.name),
                    printable(", ".join(map(str, tensor.axes))),
                    tensor.dtype,
                )
        console.print(table)
        for ranges in fields.get("profiles", ()):
            lengths = ", ".join(
                f"{axis} {low} to {high} (typically {typical})"
                for axis, (low, typical, high) in ranges.items()
            )
            console.print(f"  profile: {lengths}")
    if "target" in manifest:
        target = manifest["target"]
        console.print(
            f"\nbuilt for compute capability {target['compute_capability']} by {target['flavour']} {target['version']} "
            f"(profile {target['profile']})"
        )
    if "source" in manifest:
        source = manifest["source"]
        console.print(f"built from {source['bundle']}, digest {source['digest']}; its parity:")
    console.print(f"\nrecipe{_recipe_from(manifest.get('recipe_from'))}")
    for section, values in manifest["recipe"].items():
        for line in _settings(section, values):
            console.print(f"  {line}")
    checked_on = get_system(manifest["system"]).module("parity").PARITY
    for name, fields in manifest["networks"].items():
        meaning = checked_on[name].meaning if name in checked_on else "unknown"
        checkpoint, parity = fields["checkpoint"], fields["parity"]
        sizes = ", ".join(" x ".join(map(str, size)) for size in parity["sizes"])
        console.print(
            f"\nnetwork {name}: {describe({name: fields['widths']})}; "
            f"checkpoint {checkpoint['file']}, SHA-256 {checkpoint['sha256']}\n"
            f"  parity with PyTorch ({parity['backend']}; {meaning}: {sizes})\n"
            f"  largest error {parity['max_error']:.2e} (allowed {parity['tolerance']:.0e}), "
            f"mean {parity['mean_error']:.2e}, {parity['nan']} NaN\n"
            f"  {parity['flipped']} of {parity['edges']:,} edges flipped; "
            f"{parity['undecided']} within 1e-6 of the threshold"
        )
    if "fp16" in manifest:
        _print_fp16(console, manifest["fp16"])
    console.print(
        "\nmade with " + ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    )


def _recipe_from(fields: Any) -> str:
    """Say where a recipe is from; bundles of earlier versions do not."""
    if not isinstance(fields, dict) or "source" not in fields:
        return ""
    files = ", ".join(map(str, fields.get("files") or ()))
    return printable(f" ({files + ', ' if files else ''}{fields['source']})")


def _print_fp16(console: Any, fields: dict[str, Any]) -> None:
    """Print how much is in half precision, and how many faces keep their cluster."""
    counts = ", ".join(
        f"{name} {count['fp16']} of {count['fp16'] + count['fp32']}"
        for name, count in fields["products"].items()
    )
    agreement = fields["agreement"]
    console.print(
        f"\nfp16: matrix products in float16 ({fields['keep']} stay float32): {counts}\n"
        f"  share of {agreement['faces']:,} faces ({agreement['source']}) in the same cluster as in fp32"
    )
    for run in agreement["runs"]:
        options = "".join(f", {name} = {value:g}" for name, value in run["options"].items())
        counts = " and ".join(f"{count or 0:,}" for count in run["clusters"])
        console.print(f"  {run['inference']}{options}: {run['share']:.2%} ({counts} clusters)")


def _settings(section: str, values: Any) -> list[str]:
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


def _holds_tables(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(entry, dict) for entry in value)
