"""``fcdeploy triton``."""

from pathlib import Path

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import quiet_option
from fcdeploy.cli.types import PathType


@click.command("triton", cls=grouped())
@click.argument("bundle", type=PathType, required=False)
@click.option(
    "--assign",
    "run_dir",
    type=PathType,
    help="Instead of a bundle, the --run-dir of a finished `fcdeploy cluster`: write a model that assigns faces to its "
    "clusters.",
)
@click.option(
    "--engine",
    type=PathType,
    help="With --assign: the engine bundle, if it was moved since the run.  [default: the run's]",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("model_repository"),
    show_default=True,
    help="Model repository (folder) to write.",
)
@click.option("--prefix", help="Prefix of the models' names.  [default: the system's name]")
@quiet_option
def command(
    bundle: Path | None,
    run_dir: Path | None,
    engine: Path | None,
    output: Path,
    prefix: str | None,
    quiet: bool,
) -> None:
    """Write a model repository for Triton Inference Server.

    Each pass of the bundle becomes a model with its config.pbtxt: ONNX graphs for the ONNX Runtime backend, plans for
    the TensorRT backend. With --assign there is one model instead, for the Python backend: it takes embeddings and
    returns clusters, confidence and margin as `fcdeploy assign` does.

    \b
    Example:
      fcdeploy triton pse.onnx -o model_repository
      fcdeploy triton --assign run -o model_repository
      tritonserver --model-repository model_repository
    """
    from fcdeploy.errors import InputError

    if (bundle is None) == (run_dir is None):
        raise InputError("give either a bundle, or --assign and a run folder.")
    if run_dir is not None:
        from fcdeploy.deploy.triton_assign import write_assign_model

        models = [write_assign_model(run_dir, output, prefix, engine)]
    else:
        from fcdeploy.deploy.triton import write_model_repository
        from fcdeploy.engine.bundle import read_bundle

        assert bundle is not None
        if engine is not None:
            raise InputError("--engine is for --assign; leave it out.")
        models = [*write_model_repository(read_bundle(bundle), output, prefix).values()]
    if not quiet:
        click.echo(f"{output}: models {', '.join(path.name for path in models)}")
