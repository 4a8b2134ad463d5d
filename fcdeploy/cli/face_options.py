"""Options of commands that detect faces in photos: which to find, and which are good enough to be clustered."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.types import Real, Whole, from_values

if TYPE_CHECKING:
    from fcdeploy.runtime.faces import Gates
    from fcdeploy.runtime.find_faces import Search

SEARCH = ("score_threshold", "nms_threshold", "top_k", "min_face", "refine")
GATES = ("min_size", "min_sharpness", "max_yaw", "min_norm")

_OPTIONS = (
    click.option(
        "--score-threshold",
        type=Real(0, 1),
        default=0.6,
        show_default=True,
        help="Minimum detection score of a face.",
    ),
    click.option(
        "--nms-threshold",
        type=Real(0, 1),
        default=0.3,
        show_default=True,
        help="Overlap (intersection over union) above which two boxes count as one face.",
    ),
    click.option(
        "--top-k",
        type=Whole(min=1),
        default=5000,
        show_default=True,
        help="Number of best-scored candidates kept before overlapping ones are removed.",
    ),
    click.option(
        "--min-face",
        type=Whole(1, 100_000),
        metavar="PIXELS",
        help="Smallest face to find, in pixels of the photo: smaller finds more in large photos, larger is faster.  "
        "[default: photos are searched at 2048 pixels or less]",
    ),
    click.option(
        "--refine/--no-refine",
        default=True,
        show_default=True,
        help="Detect the landmarks of each face a second time, on the upright face, before it is aligned.",
    ),
    click.option(
        "--min-size",
        type=Real(min=0),
        metavar="PIXELS",
        help="Minimum size of a face: the shorter side of its box.",
    ),
    click.option(
        "--min-sharpness",
        type=Real(min=0),
        help="Minimum sharpness of a face: the variance of its Laplacian.",
    ),
    click.option(
        "--max-yaw",
        type=Real(0, 90),
        metavar="DEGREES",
        help="Maximum angle that a face is turned to either side.",
    ),
    click.option(
        "--min-norm",
        type=Real(min=0),
        help="Minimum norm of a face's embedding (needs --embedder).",
    ),
)


def face_options(function: Callable[..., object]) -> Callable[..., object]:
    """Give a command the options of face detection, and of the quality gates behind it."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def search_and_gates(given: dict[str, object]) -> "tuple[Search, Gates]":
    """Take the values of ``face_options`` out of ``given``."""
    from fcdeploy.runtime.faces import Gates
    from fcdeploy.runtime.find_faces import Search

    search = from_values(Search, {name: given.pop(name) for name in SEARCH})
    return search, from_values(Gates, {name: given.pop(name) for name in GATES})
