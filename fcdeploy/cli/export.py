"""``fcdeploy export``."""

from pathlib import Path

import click


@click.command("export")
@click.option(
    "--ckpt",
    "checkpoints",
    required=True,
    multiple=True,
    type=click.Path(path_type=Path),
    help="PyTorch checkpoint; give it once per network of a system with several.",
)
@click.option(
    "--key",
    "keys",
    multiple=True,
    help="Key of the weights in a checkpoint that holds several, e.g. ema or ema.shadow; once for all checkpoints, or "
    "once per --ckpt.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Bundle folder to write.  [default: SYSTEM.onnx]"
)
@click.option(
    "--recipe",
    help="TOML file or built-in name.  [default: the .toml beside the checkpoint, as train leaves it, else the "
    "published MS1M settings]",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of matrix products; inputs, outputs and everything else stay float32.",
)
@click.option(
    "--keep",
    type=click.Choice(["decisions", "similarities"]),
    default="decisions",
    show_default=True,
    help="With fp16, matrix products that stay float32: all that an edge depends on (decisions), or only those that "
    "are compared (similarities).",
)
@click.option(
    "--agreement",
    type=click.Path(path_type=Path),
    help="Features on which the clusters of fp16 and fp32 are compared.  [default: generated faces]",
)
@click.option(
    "--allow-mismatch",
    is_flag=True,
    help="Write the bundle even if its error exceeds the recipe's tolerance.",
)
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
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
    """Turn authors' checkpoints into an ONNX bundle.

    The system and its feature width are recognised from the weights. The graphs are compared with the PyTorch
    network before anything is written; exit code 3 means that the error exceeds the recipe's tolerance. With
    fp16, the clusters are compared as well.

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
