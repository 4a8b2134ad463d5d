"""``fcdeploy faces``."""

import json
from pathlib import Path
from typing import Any

import click

from fcdeploy.cli.face_options import face_options, search_and_gates
from fcdeploy.cli.features import path_column_option
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.types import PathType


@click.command("faces")
@click.argument("photos", type=PathType)
@click.option(
    "--detector",
    required=True,
    type=PathType,
    help="ONNX face detector with five points: YuNet, SCRFD, RetinaFace, or any that a .toml beside it describes.",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("crops"),
    show_default=True,
    help="Folder for crops and lists.",
)
@face_options
@click.option("--embedder", type=PathType, help="ONNX face embedder, to write features.bin, too.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["jpg", "png"]),
    default="jpg",
    show_default=True,
    help="Format of the crops.",
)
@click.option("--shards", is_flag=True, help="Pack crops into tar archives, rather than a file each.")
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="skip",
    show_default=True,
    help="Photos that cannot be read: leave them out, or write no lists. All are listed in photos.bad.txt.",
)
@click.option(
    "--max-pixels",
    type=click.IntRange(1, 178_956_970),
    default=100_000_000,
    show_default=True,
    help="A photo of more pixels is not decoded.",
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, help="Threads to use.  [default: all cores]"
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where detector and embedder run.",
)
@path_column_option
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
@click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
def command(
    photos: Path,
    detector: Path,
    output: Path,
    embedder: Path | None,
    form: str,
    shards: bool,
    on_bad: str,
    max_pixels: int,
    threads: int,
    device: str,
    path_column: str | None,
    as_json: bool,
    quiet: bool,
    **chosen: Any,
) -> None:
    """Find the faces in photos, and write them as aligned crops.

    PHOTOS is a folder, which stands for all images below it, a text file with one image path per line, relative to its
    own folder, or an archive of images, as for `fcdeploy embed`. Each face becomes a crop of 112 x 112 pixels with
    eyes, nose and mouth where face embedders expect them. The output folder gets faces.csv (a row per face: photo, box,
    points, score and quality), faces.txt (the crops, for `fcdeploy embed` and `fcdeploy cluster`) and photos.txt (the
    photo of each face).

    Faces that --min-size, --min-sharpness, --max-yaw or --min-norm leave out are listed in gated.csv and gated.txt.
    Photos that cannot be read are listed in photos.bad.txt (line, path, reason). An interrupted run goes on when the
    same command is given again.

    \b
    Example:
      fcdeploy faces photos/ --detector yunet.onnx -o crops/
      fcdeploy faces photos/ --detector yunet.onnx -o crops/ --min-face 30 --min-size 40 --max-yaw 60
      fcdeploy faces photos/ --detector yunet.onnx --embedder embedder.onnx --shards -o crops/
    """
    from fcdeploy.data.imagelist import open_images
    from fcdeploy.runtime.faces import new_faces_job
    from fcdeploy.runtime.faces_run import faces_to_folder
    from fcdeploy.runtime.lost_pages import told_of_lost_pages

    search, gates = search_and_gates(chosen)
    job = new_faces_job(
        open_images(photos, path_column),
        detector,
        search=search,
        gates=gates,
        embedder=embedder,
        form=form,
        shards=shards,
        max_pixels=max_pixels,
        threads=threads,
        device=device,
    )
    with resumable(f"the same command continues from {output}", output), told_of_lost_pages():
        summary = faces_to_folder(job, output, on_bad=on_bad, quiet=quiet or as_json).summary
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    elif not quiet:
        print_faces(summary, output)


def print_faces(summary: dict[str, Any], output: Path) -> None:
    """Print how many photos and faces there were, and where they are."""
    good = summary["photos"] - summary["bad_photos"]
    click.echo(
        f"{summary['faces_found']:,} faces in {good:,} photos ({summary['photos_without_faces']:,} without any) in "
        f"{summary['seconds']:.1f} s; detector {summary['detector']['input']}"
    )
    if summary["gated"]:
        counted = ", ".join(f"{count:,} by {name}" for name, count in summary["gated_by"].items())
        click.echo(f"{summary['gated']:,} of them left out ({counted}), listed in {output / 'gated.csv'}")
    click.echo(f"{summary['faces']:,} faces in {output / 'faces.csv'}, their crops in {output / 'faces.txt'}")
