"""A finished run, opened for viewing: its clusters, how sure they are, its summary, and the images of its faces."""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.flags import Confidence
from fcdeploy.data.archives import opened_lines
from fcdeploy.data.filelist import Filelist, filelist_from_lines
from fcdeploy.data.imagelist import open_images
from fcdeploy.data.keyed_labels import read_keyed_labels
from fcdeploy.data.label_tables import ID_HEADINGS
from fcdeploy.data.label_values import UNKNOWN
from fcdeploy.data.labels import check_known, read_labels
from fcdeploy.data.mapped import release_pages
from fcdeploy.errors import InputError, counted
from fcdeploy.report.overview import Clusters
from fcdeploy.run.folder import SUMMARY
from fcdeploy.run.summary import Summary
from fcdeploy.runtime.cluster_photos import CROPS
from fcdeploy.runtime.evidence import Placed, read_placed
from fcdeploy.runtime.face_lists import FACES
from fcdeploy.runtime.review import measured_rows
from fcdeploy.runtime.stored import names_of_rows


@dataclass(frozen=True)
class OpenedRun:
    """placed, confidence: of all rows; summary: as ``cluster --json`` printed it, empty where it is gone.

    files: the images of the rows, line for row; truth: (rows,) int64, -1 where nobody is said; each None where there
    are none. ids: (rows,) text or integers by which the rows are known outside of the run, None for row numbers.
    """

    folder: Path
    placed: Placed
    confidence: Confidence
    summary: Summary
    files: Filelist | None = None
    truth: np.ndarray | None = None
    ids: np.ndarray | None = None

    def name(self, row: int) -> str:
        """Return by what a row is known outside of the run: its id, or else its number."""
        return str(row if self.ids is None else self.ids[row])

    @property
    def clusters(self) -> Clusters:
        return Clusters(self.placed, self.confidence)

    @property
    def n(self) -> int:
        return len(self.placed.labels)


def open_run(
    run_dir: Path | str,
    *,
    images: Path | str | None = None,
    path_column: str | None = None,
    labels: Path | str | None = None,
    label_column: str | None = None,
) -> OpenedRun:
    """Read a finished run from its folder, the list of its images and its true identities, where they are given.

    Without ``images``, those of a run over photos are the crops that it keeps.

    Raises InputError for a folder without a finished run, and for lists and labels of another number of faces.
    """
    folder = Path(run_dir)
    placed = read_placed(folder)
    n = len(placed.labels)
    ids = names_of_rows(folder, placed)
    files = crops_in(folder, ids) if images is None else images_of(images, n, path_column)
    truth = None if labels is None else truth_of(Path(labels), n, label_column, ids)
    confidence = measured_rows(placed)
    release_pages(placed.evidence.lists.ids, placed.evidence.lists.sims)  # read, and hardly needed again
    return OpenedRun(folder, placed, confidence, read_summary(folder), files, truth, ids)


def truth_of(path: Path, n: int, column: str | None, ids: np.ndarray | None) -> np.ndarray:
    """Read the true identities (n,) int64 of faces: row for row, or by ``ids`` where a table has a column of them."""
    keyed = None if ids is None or not path.is_file() else read_keyed_labels(path, column, ID_HEADINGS)
    if ids is not None and keyed is not None:
        by_id = keyed.by_key()
        names = [str(one).strip() for one in ids]
        if any(name in by_id for name in names):
            return np.array([by_id.get(name, UNKNOWN) for name in names], np.int64)
    truth = read_labels(path, n, column)
    check_known(truth, str(path), "ignore")
    return truth


def images_of(images: Path | str, n: int, path_column: str | None = None) -> Filelist:
    """Open the list of the images of n faces; raises InputError for a list of another length."""
    files = open_images(Path(images), path_column)
    if files.n != n:
        raise InputError(
            f"{images}: lists {counted(files.n, 'image')}, and the run has {counted(n, 'face')}; give the list "
            "that it was made from, "
            "one image per row of the features."
        )
    return files


def crops_in(folder: Path, ids: np.ndarray | None) -> Filelist | None:
    """Return the crops that a run over photos keeps in its folder, None where they are not those of its faces.

    ids: (n,) of the faces. After other gates, or an update, the crops are of other faces.
    """
    path = folder / CROPS / FACES
    if ids is None or not path.is_file():
        return None
    lines: list[bytes] = []
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = csv.reader(file)
        heading = next(rows, [])
        if not {"face", "crop"} <= set(heading):
            return None
        face, crop = heading.index("face"), heading.index("crop")
        for row in rows:  # one at a time: there may be millions
            if len(lines) == len(ids) or len(row) != len(heading) or row[face] != str(ids[len(lines)]):
                return None
            lines.append(os.fsencode(row[crop]))
    if len(lines) != len(ids):
        return None
    return opened_lines(filelist_from_lines(os.fsencode(path.parent), lines, str(path)))


def read_summary(folder: Path) -> Summary:
    """Return the summary in a run folder, empty where there is none that can be read."""
    try:
        found: Summary = json.loads((folder / SUMMARY).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
