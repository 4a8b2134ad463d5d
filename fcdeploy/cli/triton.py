"""``fcdeploy triton``."""

from pathlib import Path

import click

from fcdeploy.cli.types import PathType


@click.command("triton")
@click.argument("bundle", type=PathType)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("model_repository"),
    show_default=True,
    help="Model repository to write.",
)
@click.option("--prefix", help="What model names begin with.  [default: the system's name]")
@click.option("--quiet", is_flag=True, help="Print nothing but errors.")
def command(bundle: Path, output: Path, prefix: str | None, quiet: bool) -> None:
    """Write a model repository for Triton Inference Server.

    Every pass of the bundle becomes a model with its config.pbtxt: ONNX graphs for the ONNX Runtime backend, plans
    for TensorRT's.

    \b
    Example:
      fcdeploy triton pse.onnx -o model_repository
      tritonserver --model-repository model_repository
    """
    from fcdeploy.deploy.triton import write_model_repository
    from fcdeploy.engine.bundle import read_bundle

    models = write_model_repository(read_bundle(bundle), output, prefix)
    if not quiet:
        click.echo(f"{output}: models {', '.join(path.name for path in models.values())}")
