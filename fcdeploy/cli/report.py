"""``fcdeploy report``."""

from pathlib import Path

import click

from fcdeploy.cli.features import path_column_option
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.label_options import label_column_option
from fcdeploy.cli.shared_options import images_option, quiet_option, sample_seed_option
from fcdeploy.cli.types import PathType


@click.command("report", cls=grouped())
@click.argument("run_dir", type=PathType, metavar="DIR")
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("report"),
    show_default=True,
    help="Folder to write, with index.html and the files it needs.",
)
@images_option
@path_column_option
@click.option("--labels", type=PathType, help="True identities, to report quality and mark wrong faces.")
@label_column_option
@sample_seed_option
@quiet_option
def command(
    run_dir: Path,
    output: Path,
    images: Path | None,
    path_column: str | None,
    labels: Path | None,
    label_column: str | None,
    seed: int,
    quiet: bool,
) -> None:
    """Write an HTML page that shows the clusters of a run.

    DIR is the --run-dir of a finished `fcdeploy cluster`. The page opens from disk, without a server or a network. It
    shows the settings of the run, cluster sizes, confidence, the largest clusters, suspicious ones, clusters that may
    be the same person, single faces near a cluster, a random sample, and a search over all the others.

    \b
    Example:
      fcdeploy cluster faces.txt --engine pse.onnx --embedder embedder.onnx --run-dir run -o clusters.txt
      fcdeploy report run --images faces.txt -o report
    """
    from fcdeploy.cli.text import one_line
    from fcdeploy.errors import InputError
    from fcdeploy.report.writing import report

    if path_column is not None and images is None:
        raise InputError("--path-column is for --images, which is not given; leave it out.")
    if label_column is not None and labels is None:
        raise InputError("--label-column is for --labels, which is not given; leave it out.")
    page = report(
        run_dir,
        output,
        images=images,
        path_column=path_column,
        labels=labels,
        label_column=label_column,
        seed=seed,
    )
    if not quiet:
        click.echo(f"report in {one_line(str(page))}")
