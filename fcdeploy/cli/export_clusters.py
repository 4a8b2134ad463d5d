"""``fcdeploy export-clusters``."""

from pathlib import Path

import click

from fcdeploy.cli.features import path_column_option
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import images_option, quiet_option
from fcdeploy.cli.types import PathType


@click.command("export-clusters", cls=grouped())
@click.argument("run_dir", type=PathType, metavar="DIR")
@click.option(
    "--to",
    required=True,
    type=click.Choice(["folders", "csv", "parquet", "jsonl", "fiftyone", "embedding-atlas", "spotlight"]),
    help="Form of the output: a folder of images per cluster, a table of faces, or the data format of a tool.",
)
@click.option(
    "-o", "--output", required=True, type=PathType, help="File or folder to write; it must not exist yet."
)
@images_option
@path_column_option
@click.option(
    "--files",
    type=click.Choice(["symlink", "hardlink", "copy"]),
    default="symlink",
    show_default=True,
    help="With --to folders: link to the images, or copy them.",
)
@quiet_option
def command(
    run_dir: Path,
    to: str,
    output: Path,
    images: Path | None,
    path_column: str | None,
    files: str,
    quiet: bool,
) -> None:
    """Export the clusters of a run as folders of images, as a table, or for another tool.

    DIR is the --run-dir of a finished `fcdeploy cluster`.

    \b
    Example:
      fcdeploy export-clusters run --to folders --images faces.txt -o clusters
      fcdeploy export-clusters run --to fiftyone --images faces.txt -o dataset
      fcdeploy export-clusters run --to embedding-atlas --images faces.txt -o faces.parquet
    """
    from fcdeploy.cli.text import one_line
    from fcdeploy.errors import InputError
    from fcdeploy.report.exports import export_clusters

    if path_column is not None and images is None:
        raise InputError("--path-column is for --images, which is not given; leave it out.")
    export_clusters(run_dir, output, to=to, images=images, path_column=path_column, files=files)
    if not quiet:
        click.echo(f"clusters in {one_line(str(output))}")
