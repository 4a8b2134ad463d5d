"""``fcdeploy export``."""

from pathlib import Path

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import quiet_option
from fcdeploy.cli.types import PathType


@click.command("export", cls=grouped())
@click.option(
    "--ckpt",
    "checkpoints",
    required=True,
    multiple=True,
    type=PathType,
    help="PyTorch checkpoint; repeat it for a system of several networks.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    metavar="KEY",
    help="Key of the weights in a checkpoint that holds several, e.g. ema or ema.shadow; once for all checkpoints, or "
    "once for every --ckpt in the same order.",
)
@click.option("-o", "--output", type=PathType, help="Engine bundle to write.  [default: SYSTEM.onnx]")
@click.option(
    "--recipe",
    metavar="FILE|NAME",
    help="Recipe with the settings of the system: a TOML file or a built-in name.  [default: the .toml beside the "
    "checkpoint, as `fcdeploy train` writes it, else the published MS1M settings]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of matrix products; inputs, outputs and all other operations stay float32.",
)
@click.option(
    "--keep",
    type=click.Choice(["decisions", "similarities"]),
    default="decisions",
    show_default=True,
    help="With fp16, matrix products that stay in float32: all that links depend on (decisions), or only the "
    "similarities that are compared (similarities, faster).",
)
@click.option(
    "--agreement",
    type=PathType,
    help="Features on which to compare the clusters of fp16 with those of fp32.  [default: generated faces]",
)
@click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Write the bundle even if the difference exceeds the recipe's tolerance.",
)
@quiet_option
def command(
    checkpoints: tuple[Path, ...],
    keys: tuple[str, ...],
    output: Path | None,
    recipe: str | None,
    precision: str,
    keep: str,
    agreement: Path | None,
    allow_mismatch: bool,
    quiet: bool,
) -> None:
    """Export PyTorch checkpoints to an engine bundle of ONNX graphs.

    Checkpoints are those of the authors' code or of `fcdeploy train`; the system and its feature width are recognised
    from the weights. The outputs of the graphs are compared with those of the PyTorch network before anything is
    written; exit code 3 means that the difference exceeds the recipe's tolerance. With fp16, the clusters are compared
    as well.

    \b
    Example:
      fcdeploy export --ckpt saves/checkpoint.pth -o pse.onnx
      fcdeploy export --ckpt authors.pth -o pse.onnx --recipe pse-gcn-ms1m
      fcdeploy export --ckpt saves/checkpoint.pth -o pse16.onnx --precision fp16 --agreement features.bin
    """
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    bundle, parities = export_checkpoint(
        checkpoints,
        output,
        recipe or None,
        key=keys,
        precision=precision,
        keep=keep,
        agreement=agreement,
        allow_mismatch=allow_mismatch,
    )
    if not quiet:
        passes = ", ".join(bundle.passes)
        click.echo(f"{bundle.path}: {bundle.system}, {bundle.feature_dim}-d features, passes {passes}")
        for name, parity in parities.items():
            click.echo(f"{name}: {parity}")
        if bundle.about.fp16 is not None:
            click.echo(f"fp16: {bundle.about.fp16.agreement}")
