"""Whatever stands for a list of images: a text of paths, a table, a folder, archives."""

import contextlib
import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcdeploy.data.archives import archive_kind, filelist_from_archives, opened_lines, shards_in, shards_of
from fcdeploy.data.filelist import Filelist, filelist_from_lines, read_filelist, read_text
from fcdeploy.data.imagefolder import filelist_from_folder, identities_of, person_of
from fcdeploy.data.images import HEAD_BYTES, begins_like_an_image
from fcdeploy.errors import InputError

PATHS = (
    "path",
    "file",
    "filename",
    "file_name",
    "filepath",
    "file_path",
    "image",
    "image_path",
    "img",
    "img_path",
)
PEOPLE = ("label", "labels", "identity", "person", "person_id", "name", "class", "subject")
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def open_images(path: Path | str, path_column: str | None = None) -> Filelist:
    """Return the images that ``path`` stands for, as a list; raises InputError when there are none.

    A text file is a list of paths (``read_filelist``), perhaps into tar archives (``opened_lines``); MXNet's ``.lst``
    and tables (``.csv``, ``.tsv``) say the people too. A folder stands for all images below it
    (``filelist_from_folder``), or for the archives in it; an archive (tar, zip, RecordIO), or several by a pattern as
    ``shard-{000..010}.tar``, for the images in it (``filelist_from_archives``). path_column: which column of a table
    holds the paths, by its heading or its number from 1, where the headings do not say so.
    """
    path = Path(path)
    if path_column is not None and (path.is_dir() or path.suffix.lower() not in SEPARATORS):
        raise InputError(
            f"{path}: has no columns; --path-column is for lists in .csv and .tsv files, leave it out."
        )
    if path.is_dir():
        files = filelist_from_folder(path)
        if files is not None:
            return files
        if shards := shards_in(path):
            return filelist_from_archives(shards, str(path))
        raise InputError(
            f"{path}: is a folder that holds no images, and no archives of images (.tar, .zip, .rec)."
        )
    if pattern := shards_of(path):
        return filelist_from_archives(pattern, str(path))
    if path.suffix.lower() == ".idx" and path.with_suffix(".rec").is_file():
        path = path.with_suffix(".rec")
    if path.is_file() and archive_kind(path):
        return filelist_from_archives([path], str(path))
    if path.is_file() and _is_image(path):
        raise InputError(
            f"{path}: is an image; give a list of image paths, a folder of images or an archive of them (its folder, "
            f"for one: {path.parent})."
        )
    if path.suffix.lower() in SEPARATORS:
        return _from_table(path, SEPARATORS[path.suffix.lower()], path_column)
    if path.suffix.lower() == ".lst":
        return _from_lst(path)
    return opened_lines(read_filelist(path))


def _is_image(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
        return begins_like_an_image(head) and (
            b"\0" in head or not head.isascii()
        )  # a text is a list of paths
    return False


def _from_table(path: Path, separator: str, path_column: str | None) -> Filelist:
    """Read a table with a line of headings, one of which is of paths; another may be of people."""
    text = _decoded(path)
    try:
        head, *rows = [row for row in csv.reader(text.splitlines(), delimiter=separator, strict=True) if row]
    except (csv.Error, ValueError) as error:
        raise InputError(f"{path}: is not a table ({error}).") from None
    headings = [cell.strip().lower() for cell in head]
    column = _column_of_paths(path, head, headings, path_column)
    people = [at for at, heading in enumerate(headings) if heading in PEOPLE and at != column]
    for number, row in enumerate(rows):
        if len(row) != len(head):
            raise InputError(
                f"{path}: row {number}, counted from 0, has {len(row)} cells, and the headings {len(head)}."
            )
    names = [row[people[0]].strip() for row in rows] if len(people) == 1 else None
    return _listed(path, [row[column] for row in rows], names)


def _column_of_paths(path: Path, head: list[str], headings: list[str], asked: str | None) -> int:
    if asked is not None:
        columns = [at for at, heading in enumerate(headings) if heading == asked.strip().lower()]
        if not columns and asked.isdecimal() and 1 <= int(asked) <= len(head):
            columns = [int(asked) - 1]
        if len(columns) != 1:
            raise InputError(
                f"{path}: has {'several columns' if columns else 'no column'} '{asked}'; the columns are "
                f"{', '.join(head)}; give one of these names, or a number from 1 to {len(head)}, as --path-column."
            )
        return columns[0]
    columns = [at for at, heading in enumerate(headings) if heading in PATHS]
    if len(columns) != 1:
        raise InputError(
            f"{path}: the columns are {', '.join(head)}; choose the column of the image paths with --path-column."
        )
    return columns[0]


def _from_lst(path: Path) -> Filelist:
    """Read MXNet's list: index, label, path with tabs between; or InsightFace's: aligned (0 or 1), path, label."""
    rows = [line.split("\t") for line in _decoded(path).splitlines()]
    while rows and not "".join(rows[-1]).strip():
        rows.pop()
    for number, row in enumerate(rows):
        if len(row) < 3:
            raise InputError(
                f"{path}: line {number}, counted from 0, has {len(row)} of at least 3 fields with tabs between (index, "
                "label, path)."
            )
    label, file = (2, 1) if rows and _is_number(rows[0][2]) and not _is_number(rows[0][1]) else (1, -1)
    return _listed(path, [row[file] for row in rows], [row[label].strip() for row in rows])


def _listed(path: Path, paths: Sequence[str], people: Sequence[str] | None) -> Filelist:
    if not paths:
        raise InputError(f"{path}: is empty; expected an image per line.")
    lines = [os.fsencode(one) for one in paths]
    broken = next((at for at, line in enumerate(lines) if b"\n" in line), None)
    if broken is not None:
        raise InputError(f"{path}: the path of row {broken}, counted from 0, holds a line break.")
    labels: np.ndarray | None = None
    if people is not None:
        labels = identities_of([person_of(person.encode()) for person in people])
    return filelist_from_lines(os.fsencode(path.parent), lines, str(path), labels=labels)


def _decoded(path: Path) -> str:
    return os.fsdecode(read_text(path)).replace("\r\n", "\n")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
