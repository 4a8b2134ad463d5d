"""``fcdeploy faces``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.face_options import GATES, SEARCH, face_options, search_and_gates
from fcdeploy.cli.features import path_column_option
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import max_pixels_option, no_summary_option, summary_json_option
from fcdeploy.cli.types import PathType
from fcdeploy.errors import counted

if TYPE_CHECKING:
    from fcdeploy.run.summary import FacesSummary

GROUPS = {
    "Input": ("path_column", "max_pixels", "on_bad"),
    "Detection": ("detector", *SEARCH),
    "Quality gates": GATES,
    "Output": ("output", "form", "shards", "embedder", "as_json", "quiet"),
    "Machine": ("device", "threads"),
}


@click.command("faces", cls=grouped(GROUPS))
@click.argument("photos", type=PathType)
@click.option(
    "--detector",
    required=True,
    type=PathType,
    help="ONNX face detector with five landmarks: YuNet, SCRFD, RetinaFace, or another one described by a .toml beside "
    "it.",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("crops"),
    show_default=True,
    help="Folder to write, with the crops and lists of them.",
)
@face_options
@click.option(
    "--embedder", type=PathType, help="ONNX face embedder: also embed the crops, and write features.bin."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["jpg", "png"]),
    default="jpg",
    show_default=True,
    help="Image format of the crops.",
)
@click.option("--shards", is_flag=True, help="Pack the crops into tar archives instead of one file each.")
@click.option(
    "--on-bad",
    type=click.Choice(["stop", "skip"]),
    default="skip",
    show_default=True,
    help="Photos that cannot be read: stop and write no lists, or skip them. All are listed in photos.bad.txt.",
)
@max_pixels_option("photos", 100_000_000)
@run_option("threads")
@run_option("device", default="cpu", show_default=True, help="Device to run the detector and embedder on.")
@path_column_option
@summary_json_option
@no_summary_option
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
    **chosen: object,
) -> None:
    """Detect the faces in photos, and write them as aligned crops.

    PHOTOS is a folder, with all images below it; a text file with one image path per line, relative to its own folder;
    or an archive of images, as for `fcdeploy embed`. Each face becomes a crop of 112 x 112 pixels with eyes, nose and
    mouth where face embedders expect them. The output folder has faces.csv (one row per face: photo, box, landmarks,
    score and quality), faces.txt (the crops, for `fcdeploy embed` and `fcdeploy cluster`) and photos.txt (the photo of
    each face).

    Faces that fail a quality gate are listed in gated.csv and gated.txt, photos that cannot be read in photos.bad.txt
    (line, path, reason). To continue an interrupted run, repeat the command.

    \b
    Example:
      fcdeploy faces photos/ --detector yunet.onnx -o crops/
      fcdeploy faces photos/ --detector yunet.onnx -o crops/ --min-face 30 --min-size 40 --max-yaw 60
      fcdeploy faces photos/ --detector yunet.onnx --embedder embedder.onnx --shards -o crops/
    """
    from fcdeploy.data.imagelist import open_images
    from fcdeploy.runtime.faces import new_faces_job
    from fcdeploy.runtime.faces_run import faces_to_folder
    from fcdeploy.runtime.lost_pages import sigbus_guard

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
    with resumable(f"the same command continues from {output}", output), sigbus_guard():
        summary = faces_to_folder(job, output, on_bad=on_bad, quiet=quiet or as_json).summary
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    elif not quiet:
        print_faces(summary, output)


def print_faces(summary: "FacesSummary", output: Path) -> None:
    """Print how many photos and faces there were, and where they are."""
    good = summary["photos"] - summary["bad_photos"]
    click.echo(
        f"{counted(summary['faces_found'], 'face')} in {counted(good, 'photo')} "
        f"({summary['photos_without_faces']:,} without any) in "
        f"{summary['seconds']:.1f} s; detector {summary['detector']['input']}"
    )
    if summary["gated"]:
        gates = ", ".join(f"{count:,} by {name}" for name, count in summary["gated_by"].items())
        click.echo(f"{summary['gated']:,} of them left out ({gates}), listed in {output / 'gated.csv'}")
    click.echo(
        f"{counted(summary['faces'], 'face')} in {output / 'faces.csv'}, crops listed in {output / 'faces.txt'}"
    )
