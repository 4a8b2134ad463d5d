"""Options that several verbs have alike, each defined once."""

from collections.abc import Callable
from typing import TypeVar

import click

from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.types import PathType, Whole

Command = TypeVar("Command", bound=Callable[..., object])
PILLOW_LIMIT = 178_956_970  # pixels beyond which Pillow itself refuses


def json_option(what: str) -> Callable[[Command], Command]:
    """Give a command --json; what: is printed, as in "the summary"."""
    return click.option("--json", "as_json", is_flag=True, help=f"Print {what} as JSON.")


def seed_option(of: str = "") -> Callable[[Command], Command]:
    """Give a command --seed; of: what is drawn, where that needs to be said."""
    return click.option(
        "--seed",
        type=Whole(min=0),
        default=0,
        show_default=True,
        help=f"Random seed{of and f' of {of}'}.",
    )


def dim_option_of(whose: str) -> Callable[[Command], Command]:
    """Give a command --dim; whose: feature width is the default."""
    return click.option(
        "--dim",
        type=Whole(min=1),
        help=f"Number of columns of a .bin file.  [default: {whose} feature width]",
    )


engine_option = click.option(
    "--engine", required=True, type=PathType, help="Engine bundle: its folder, or a file in it."
)
moved_engine_option = click.option(
    "--engine", type=PathType, help="Engine bundle, if it was moved since the run.  [default: the run's]"
)
pairs_option = click.option(
    "--pairs",
    type=PathType,
    metavar="FILE",
    help="Pairs of faces that a person has checked, which the clusters respect: a table with columns a and b (ids of "
    "faces) and answer (same or different).",
)
scratch_option = run_option(  # of a command that runs on this machine alone
    "scratch",
    help="Folder for temporary files larger than memory, deleted at the end.  [default: beside the output]",
)
dim_option = dim_option_of("the engine's")
images_option = click.option(
    "--images",
    type=PathType,
    help="Images of the faces, one per row: a list, a folder or an archive.  [default: the run's crops, if it was made "
    "from photos]",
)
sample_seed_option = seed_option("the random sample of clusters")
summary_json_option = json_option("the summary")
no_summary_option = click.option("--quiet", is_flag=True, help="Show no progress and no summary.")
quiet_option = click.option("--quiet", is_flag=True, help="Print nothing but errors.")
labelled_duplicates_option = run_option(
    "duplicates",
    help="Copies of a face: count them once (merge), or treat every row as a face of its own (as-published).",
)


def max_pixels_option(things: str, most: int) -> Callable[[Command], Command]:
    """Give a command --max-pixels; things: what has the pixels, as in "images"; most: the default."""
    return click.option(
        "--max-pixels",
        type=Whole(1, PILLOW_LIMIT),
        default=most,
        show_default=True,
        help=f"Refuse {things} of more pixels than this without decoding them.",
    )


def labelled_on_bad_option(where: str) -> Callable[[Command], Command]:
    """Give a command --on-bad for labelled features; where: what is said of the list of bad rows."""
    return click.option(
        "--on-bad",
        type=click.Choice(["stop", "skip", "zero"]),
        default="stop",
        show_default=True,
        help="Rows with NaN, infinity or only zeros: stop, or leave them out with their labels (skip or zero). "
        f"{where}",
    )
