"""The features that a command is given: which column of a table they are, and how they were understood."""

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
    help="Which array of an archive, or column of a table, holds the features; a pattern such as 'f*' for many.",
)


id_column_option = click.option(
    "--id-column",
    metavar="NAME",
    help="Column of a table that holds ids, which go into the labels; then -o is a .csv, .tsv or .parquet file.",
)


path_column_option = click.option(
    "--path-column",
    metavar="NAME",
    help="Column of image paths in a list that is a .csv or .tsv file: its heading, or its number from 1.",
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
    """Open features, and say on stderr how a file was read that does not say it of itself.

    dim: the width that the user gave; width: the one that is expected otherwise. output: what will be written, which
    must be none of the files that are read; beside it, or in
    ``scratch``, lies what has to be unpacked.
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
