"""``fcdeploy embed``."""

import functools
import json
from pathlib import Path

import click

from fcdeploy.cli.features import path_column_option
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.outputs import check_default_output
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import max_pixels_option, no_summary_option, summary_json_option
from fcdeploy.cli.types import Numbers, PathType, Size, Whole
from fcdeploy.errors import counted

RAY = (
    "Embed on a Ray cluster: the one that runs here (auto), the one at an address, or N workers on this machine. "
    "OUTPUT and the images must be in folders that all machines see."
)
SETTINGS = ("layout", "size", "channels", "mean", "scale", "output_tensor")  # of the embedder
GROUPS = {
    "Input": ("path_column", "max_pixels", "on_bad"),
    "Embedder": ("model", *SETTINGS, "batch"),
    "Output": ("output", "write_labels", "as_json", "quiet"),
    "Machine": ("device", "threads"),
    "Many machines": ("ray", "ray_cpus", "ray_gpus", "strict"),
}
ON_BAD = click.Choice(["stop", "skip", "zero"])


@click.command("embed", cls=grouped(GROUPS))
@click.argument("images", type=PathType)
@click.option(
    "--model",
    required=True,
    type=PathType,
    help="ONNX face embedder; a .toml beside it may hold its settings.",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("features.bin"),
    show_default=True,
    help="Features file to write: .bin (raw float32 rows) or .npy.",
)
@click.option(
    "--on-bad",
    type=ON_BAD,
    default="stop",
    show_default=True,
    help="Images that cannot be embedded: stop and write nothing, skip them, or write a row of zeros for each.",
)
@click.option(
    "--layout",
    type=click.Choice(["NCHW", "NHWC"], case_sensitive=False),
    help="Order of the axes of the model's input.  [default: the graph's]",
)
@click.option(
    "--size", type=Size(), help="Size of the model's input, height first.  [default: the graph's, or 112]"
)
@click.option(
    "--channels",
    type=click.Choice(["rgb", "bgr", "gray"]),
    help="Color channels of the model's input, in their order.  [default: rgb]",
)
@click.option(
    "--mean",
    type=Numbers(),
    help="Value subtracted from pixels (0 to 255), one or one per channel.  [default: 127.5]",
)
@click.option(
    "--scale", type=Numbers(), help="Value by which pixels are divided after that.  [default: 127.5]"
)
@click.option(
    "--write-labels",
    type=PathType,
    help="Also write the identities from the folders or labels of IMAGES, one label per row (.meta, .npy).",
)
@click.option(
    "--output-tensor",
    metavar="NAME",
    help="Name of the output that is the embedding, for a model with several.",
)
@click.option("--batch", type=Whole(1, 4096), help="Images per engine call.  [default: 32, or the graph's]")
@max_pixels_option("images", 25_000_000)
@run_option("threads")
@run_option("ray", help=RAY)
@run_option("ray_cpus")
@run_option("ray_gpus")
@run_option("strict")
@run_option("device", default="cpu", show_default=True, help="Device to run the embedder on.")
@path_column_option
@summary_json_option
@no_summary_option
def command(
    images: Path,
    model: Path,
    output: Path,
    on_bad: str,
    write_labels: Path | None,
    batch: int | None,
    max_pixels: int,
    path_column: str | None,
    as_json: bool,
    quiet: bool,
    **chosen: object,
) -> None:
    """Compute the embeddings of aligned face crops, and write them as a features file.

    IMAGES is a text file with one image path per line, relative to its own folder; a folder, with all images below it
    in natural order; or an archive of images (.tar, .zip, .rec; several as 'shard-{000..010}.tar'). Row i of the
    features is image i, counted from 0. Each image must be a crop of one face, aligned as the model expects (usually
    112 x 112 pixels): `fcdeploy faces` makes such crops from photos. Images of another size are resized.

    Images that cannot be embedded are listed in features.bad.txt (line, path, reason). For a folder or archive, the
    image of each row is listed in features.filelist.txt. --write-labels takes identities from folders
    (person/name.jpg), or from the labels of an archive or table (.lst, .csv). To continue an interrupted run, repeat
    the command.

    \b
    Example:
      fcdeploy embed faces.txt --model embedder.onnx -o features.bin
      fcdeploy embed people/ --model embedder.onnx --write-labels people.meta
      fcdeploy embed faces.txt --model embedder.onnx --channels bgr --mean 127.5 --scale 128 --on-bad skip
    """
    from fcdeploy.data.imagelist import open_images
    from fcdeploy.data.sidecar import is_told_of_by_sidecar
    from fcdeploy.engine.embedder import settings_from_table
    from fcdeploy.run.options import options_from_values
    from fcdeploy.runtime.embed import embed_to_file, new_job, part_of
    from fcdeploy.runtime.embed_workers import embedding_workers
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.runtime.workers import check_shared

    check_default_output("output", output, is_told_of_by_sidecar)
    given: dict[str, object] = {name: chosen.pop(name) for name in SETTINGS}
    settings = settings_from_table(
        {name: value for name, value in given.items() if value is not None}, "the command line"
    )
    options = options_from_values(chosen)
    job = new_job(
        open_images(images, path_column),
        model,
        settings,
        batch=batch,
        max_pixels=max_pixels,
        threads=options.threads,
        device=options.device or "cpu",
    )
    check_shared(options, part_of(output))
    workers = functools.partial(embedding_workers, options=options) if options.ray else None
    with resumable(f"the same command continues from {part_of(output)}"), sigbus_guard():
        summary = embed_to_file(
            job, output, on_bad=on_bad, labels=write_labels, quiet=quiet or as_json, workers=workers
        )
    if as_json:
        click.echo(json.dumps(summary, indent=1))
    elif not quiet:
        good = summary["lines"] - summary["bad"]
        click.echo(
            f"{good:,} of {counted(summary['lines'], 'line')} embedded, {summary['resized']:,} of them resized, in "
            f"{summary['seconds']:.1f} s; input {summary['input']}"
        )
        click.echo(f"{counted(summary['rows'], 'row')} of {summary['dim']}-d features in {output}")
        if write_labels is not None:
            click.echo(f"labels in {write_labels}")
