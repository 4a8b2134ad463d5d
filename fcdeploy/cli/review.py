"""``fcdeploy review``."""

from pathlib import Path

import click

from fcdeploy.cli.features import path_column_option
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.shared_options import images_option, sample_seed_option
from fcdeploy.cli.types import PathType, Whole


@click.command("review", cls=grouped())
@click.argument("run_dir", type=PathType, metavar="DIR")
@images_option
@path_column_option
@click.option(
    "--decisions",
    type=PathType,
    default=Path("decisions.csv"),
    show_default=True,
    help="Table to which decisions are appended, for `cluster --pairs`, `update --pairs` and `tune --pairs`.",
)
@click.option(
    "--port", type=Whole(0, 65535), default=0, help="Local port to serve on.  [default: a free one]"
)
@sample_seed_option
@click.option("--open", "open_browser", is_flag=True, help="Open the page in the web browser.")
def command(
    run_dir: Path,
    images: Path | None,
    path_column: str | None,
    decisions: Path,
    port: int,
    seed: int,
    open_browser: bool,
) -> None:
    """View and correct the clusters of a run in a web browser.

    DIR is the --run-dir of a finished `fcdeploy cluster`. The page is that of `fcdeploy report`, served to this machine
    only; every decision is saved at once. Stop with Ctrl-C.

    \b
    Example:
      fcdeploy review run --images faces.txt
      fcdeploy cluster faces.txt --engine pse.onnx --embedder embedder.onnx --pairs decisions.csv -o clusters.txt
    """
    from fcdeploy.errors import InputError
    from fcdeploy.report.serving import open_desk, serve

    if path_column is not None and images is None:
        raise InputError("--path-column is for --images, which is not given; leave it out.")

    def told(address: str) -> None:
        click.echo(f"review at {address}")
        if open_browser:
            import webbrowser

            webbrowser.open(address)

    desk = open_desk(run_dir, images, decisions, path_column, seed)
    try:
        serve(desk, port, told)
    except KeyboardInterrupt:
        click.echo(f"decisions in {decisions}")
