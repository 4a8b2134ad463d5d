"""The features that a command is given: which column of a table they are, and how the file was read."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from fcdeploy.data.features import Features

FORMS = "Features: a file (.npy, .bin, .npz, .pt, .safetensors, .fvecs, Parquet, Arrow), or a folder or list of them."
column_option = click.option(
    "--column",
    metavar="NAME",
    help="Array of an archive, or column of a table, that holds the features; a pattern such as 'f*' for several.",
)


id_column_option = click.option(
    "--id-column",
    metavar="NAME",
    help="Column of a table that holds ids, to be written with the labels; needs -o with .csv, .tsv or .parquet.",
)


path_column_option = click.option(
    "--path-column",
    metavar="NAME",
    help="Column of a .csv or .tsv list that holds the image paths: its heading, or its number from 1.",
)


def open_and_tell(
    path: Path,
    dim: int | None,
    *,
    width: int | None = None,
    column: str | None = None,
    id_column: str | None = None,
    output: Path | None = None,
    scratch: Path | None = None,
    quiet: bool = False,
) -> "Features":
    """Open features, and say on stderr how a file was read whose form is ambiguous.

    dim: the width that the user gave; width: the one that is expected otherwise. output: the file that will be written;
    archives are unpacked beside it, or in ``scratch``. Raises InputError when it is one of the files that are read.
    """
    from fcdeploy.data.features import open_features
    from fcdeploy.data.scratch import scratch_folder
    from fcdeploy.errors import FcdeployWarning, InputError

    place = scratch_folder(scratch, None if output is None else output.parent, needed=False)
    opened = open_features(
        path, dim or width, column=column, id_column=id_column, scratch=place, sure=dim is not None
    )
    if output is not None and output.exists():
        for file in opened.files:
            if file.exists() and output.samefile(file):
                raise InputError(f"{output}: is also an input; choose another output.")
    if opened.note and not quiet:
        warnings.warn(opened.note, FcdeployWarning, stacklevel=2)
    return opened
