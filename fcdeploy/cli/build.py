"""``fcdeploy build``."""

from pathlib import Path

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import quiet_option
from fcdeploy.cli.types import PathType


@click.command("build", cls=grouped())
@click.argument("bundle", type=PathType)
@click.option("-o", "--output", type=PathType, help="Engine bundle to write.  [default: BUNDLE with .plan]")
@click.option(
    "--profile",
    default="rtx3090",
    show_default=True,
    metavar="FILE|NAME",
    help="Build profile of the target GPU: a TOML file, or a built-in name (cpu, h200, rtx3090).",
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="Compute capability of the target GPU, e.g. 8.9.  [default: the profile's]",
)
@click.option("--log-file", type=PathType, help="Log file of the builder.  [default: OUTPUT.log]")
@quiet_option
def command(
    bundle: Path,
    output: Path | None,
    profile: str,
    compute_capability: str | None,
    log_file: Path | None,
    quiet: bool,
) -> None:
    """Compile an ONNX bundle into TensorRT plans for one GPU.

    With the profile rtx3090, TensorRT for RTX compiles on any machine, without a GPU; with h200, TensorRT compiles on
    the target GPU; with cpu, ONNX Runtime writes optimised graphs. The precision is that of the ONNX graphs.

    \b
    Example:
      fcdeploy build pse.onnx -o pse.plan --profile engines/rtx3090.toml
    """
    from fcdeploy.deploy.engine_from_onnx import build_bundle

    def tell(text: str) -> None:
        if not quiet:
            click.echo(text, err=True)

    built = build_bundle(
        bundle, output, profile, compute_capability=compute_capability, log_file=log_file, tell=tell
    )
    if quiet:
        return
    size = sum(described.bytes for described in built.about.passes.values())
    click.echo(
        f"{built.path}: {built.system}, {built.about.precision}, passes {', '.join(built.passes)}, {size:,} bytes"
    )
    if built.kind == "plan":
        target = built.target
        click.echo(
            f"for compute capability {target.compute_capability}, by {target.flavour} {target.version}"
        )
