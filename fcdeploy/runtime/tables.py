"""Tables of faces and of clusters, and what constraints refused, as files."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.flags import Confidence, names_of
from fcdeploy.data.columns import check_table_path, write_columns
from fcdeploy.data.filelist import Filelist
from fcdeploy.data.side_files import check_not_an_input, check_replaceable, is_table
from fcdeploy.errors import InputError
from fcdeploy.runtime.review import Refused, Reviewed

REFUSED_HEADINGS = ("a", "b", "strength", "because", "one", "other")
REFUSED_LINE = re.compile(rb"a,b,strength,because,one,other|.*,.*,[-\d.e+]*,(pair|photo),.*,.*")


@dataclass(frozen=True)
class Tables:
    """Where tables go: one of faces, one of clusters; None for none."""

    faces: Path | None = None
    clusters: Path | None = None

    @property
    def wanted(self) -> bool:
        return self.faces is not None or self.clusters is not None

    def check(self, output: Path | None, inputs: Sequence[Path | None]) -> None:
        """Raise InputError for names that cannot be written to, or are of the output or an input."""
        given = [path for path in (self.faces, self.clusters) if path is not None]
        for path in given:
            check_table_path(path)
            check_not_an_input(path, inputs)
        several = [os.path.abspath(path) for path in (*given, *([output] if output else []))]
        for name in several:
            if several.count(name) > 1:
                raise InputError(f"{name}: is the name of two outputs; give each a name of its own.")


def refused_list_of(output: Path) -> Path:
    """Return where links that constraints refused are listed, beside an output."""
    return output.with_suffix(".refused.csv")


def check_refused_list(path: Path) -> None:
    """Raise InputError where the list of refused links would replace a file that is none."""
    check_replaceable(path, lambda there: is_table(there, REFUSED_LINE), "the list of refused links")


def write_tables(
    tables: Tables,
    labels: np.ndarray,
    confidence: Confidence,
    ids: np.ndarray | None = None,
    files: Filelist | None = None,
) -> None:
    """Write the tables that are wanted.

    labels: (n,) int64; ids: (n,) text or integers that name the faces, else they are numbers from 0; files: the list
    that they come from, whose lines are their paths.
    """
    if tables.faces is not None:
        write_columns(tables.faces, face_columns(labels, confidence, ids, files))
    if tables.clusters is not None:
        write_columns(tables.clusters, cluster_columns(labels, confidence, ids))


def face_columns(
    labels: np.ndarray, confidence: Confidence, ids: np.ndarray | None = None, files: Filelist | None = None
) -> dict[str, np.ndarray | list[str]]:
    """Return the columns of the table of faces, a row per face in the order of the features."""
    faces = confidence.faces
    texts = [names_of(flags) for flags in range(256)]
    return {
        "id": np.arange(len(labels)) if ids is None else ids,
        **({} if files is None else {"path": [os.fsdecode(files.line(at)) for at in range(files.n)]}),
        "cluster": labels,
        "confidence": faces.confidence,
        "margin": faces.margin,
        "similarity": faces.similarity,
        "flags": [texts[flags] for flags in faces.flags.tolist()],
    }


def cluster_columns(
    labels: np.ndarray, confidence: Confidence, ids: np.ndarray | None = None
) -> dict[str, np.ndarray | list[str]]:
    """Return the columns of the table of clusters, the largest first, equally large ones by their first face."""
    clusters = confidence.clusters
    order = np.argsort(-clusters.size, kind="stable")
    order = order[clusters.size[order] > 0]  # after updates some numbers are nobody's
    first = np.full(len(clusters.size), -1, np.int64)
    placed = np.flatnonzero(labels >= 0)[::-1]
    first[labels[placed]] = placed
    return {
        "cluster": order,
        "size": clusters.size[order],
        "first": first[order] if ids is None else ids[first[order]],
        "weakest": clusters.weakest[order],
        "cohesion": clusters.cohesion[order],
        "similarity": clusters.similarity[order],
        "nearest": clusters.nearest[order],
        "nearest_share": clusters.share[order],
        "flags": [names_of(flags) for flags in clusters.flags[order].tolist()],
        "duplicate_of": clusters.duplicate_of[order],
    }


def write_refused(path: Path, refused: Refused, ids: np.ndarray | None = None) -> None:
    """Write the links that constraints refused, strongest first.

    Columns: the ends a and b of the link, its strength, because of a pair or of a photo, and the two faces that are
    known to be different and would have come together.
    """

    def named(rows: np.ndarray) -> np.ndarray:
        return rows if ids is None else ids[rows]

    columns = (
        named(refused.rows[:, 0]),
        named(refused.rows[:, 1]),
        refused.strength,
        ["photo" if photo else "pair" for photo in refused.photo.tolist()],
        named(refused.between[:, 0]),
        named(refused.between[:, 1]),
    )
    write_columns(path, dict(zip(REFUSED_HEADINGS, columns, strict=True)))


def write_reviewed(
    tables: Tables,
    reviewed: Reviewed,
    output: Path | None,
    ids: np.ndarray | None = None,
    files: Filelist | None = None,
) -> None:
    """Write all that a review gives beside labels: tables, and the list of refused links beside ``output``."""
    if reviewed.confidence is not None:
        write_tables(tables, reviewed.placed.labels, reviewed.confidence, ids, files)
    if reviewed.refused is not None and output is not None:
        write_refused(refused_list_of(output), reviewed.refused, ids)
