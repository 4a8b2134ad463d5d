"""``fcdeploy export-clusters``: clusters as the tools that people use read them."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np

from fcdeploy.clustering.flags import SEPARATOR, names_of
from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.atomic_folder import atomic_folder
from fcdeploy.data.columns import check_table_path, write_columns
from fcdeploy.data.filelist import Filelist, look_up
from fcdeploy.data.forms.tables import import_pyarrow
from fcdeploy.data.images import State, import_pillow
from fcdeploy.errors import InputError
from fcdeploy.report.opened import OpenedRun, open_run
from fcdeploy.report.overview import Clusters
from fcdeploy.report.thumbnails import EDGE, jpeg_of
from fcdeploy.runtime.tables import face_columns

TARGETS = ("folders", "csv", "parquet", "jsonl", "fiftyone", "embedding-atlas", "spotlight")
FILES = ("symlink", "hardlink", "copy")
SUFFIXES = {"csv": (".csv",), "jsonl": (".jsonl",)}
PARQUET = (".parquet", ".pq")
SUFFIX = re.compile(r"\.[A-Za-z0-9]{1,5}")
SINGLES, NONE = "singles", "in-no-cluster"  # folders
BLOCK = 4096
NEIGHBORS = 20  # that Embedding Atlas is given


def export_clusters(
    run_dir: Path | str,
    output: Path | str,
    *,
    to: str,
    images: Path | str | None = None,
    path_column: str | None = None,
    files: str = "symlink",
) -> Path:
    """Export the clusters of a finished run as folders of images, as a table, or for another tool; returns the output.

    - to: 'folders' (a folder of images per cluster, the largest first), 'csv', 'parquet' or 'jsonl' (a row per face),
      'fiftyone' (a FiftyOneImageClassificationDataset), 'embedding-atlas' (Parquet with thumbnails and neighbors) or
      'spotlight' (Parquet with paths of images).
    - images: the images of the faces, one per row, as ``fcdeploy.embed`` takes them; by default the crops that a run
      over photos keeps. Folders and FiftyOne need them.
    - files: how folders and FiftyOne refer to images: 'symlink', 'hardlink' or 'copy'. Images in archives are copied.

    Raises InputError where ``output`` exists: nothing is replaced.
    """
    output = Path(output)
    check_asked(output, to, files)
    run = open_run(run_dir, images=images, path_column=path_column)
    if to in ("folders", "fiftyone"):
        if run.files is None:
            raise InputError(f"--to {to}: needs the images; give the list of them with --images.")
        placed = Images(run.files, files)
        with atomic_folder(output, lambda folder: None) as folder:
            (write_folders if to == "folders" else write_fiftyone)(folder, run, placed)
    elif to == "jsonl":
        write_lines(output, run)
    elif to == "embedding-atlas":
        write_atlas(output, run)
    elif to == "spotlight":
        write_spotlight(output, run)
    else:
        write_columns(output, face_columns(run.placed.labels, run.confidence, run.ids, run.files))
    return output


def check_asked(output: Path, to: str, files: str) -> None:
    """Raise InputError for what cannot be written, before the work starts."""
    if to not in TARGETS:
        raise InputError(f"--to {to}: is none of {', '.join(TARGETS)}.")
    if files not in FILES:
        raise InputError(f"--files {files}: is none of {', '.join(FILES)}.")
    if os.path.lexists(output) and not (
        output.is_dir() and not output.is_symlink() and not any(output.iterdir())
    ):
        raise InputError(f"{output}: exists; nothing is replaced; choose another output or remove it.")
    if to in ("folders", "fiftyone"):
        return
    suffixes = SUFFIXES.get(to, PARQUET)
    if output.suffix.lower() not in suffixes:
        raise InputError(f"{output}: {to} is a file; end its name in {' or '.join(suffixes)}.")
    if output.is_dir():
        raise InputError(f"{output}: is a folder, and {to} is a file; choose another output.")
    if suffixes == PARQUET:
        check_table_path(output)
    else:
        check_parent(output)


class Images:
    """Images of faces that are linked or copied into folders, under names that sort by face."""

    def __init__(self, files: Filelist, how: str) -> None:
        self.files, self.how = files, how
        self._digits = len(str(max(0, files.n - 1)))

    def name(self, face: int) -> str:
        """Return the name of a face's image: its row number, and the ending of the original where it has one."""
        suffix = os.path.splitext(self.files.shown(face))[1]
        return f"{face:0{self._digits}}{suffix.lower() if SUFFIX.fullmatch(suffix) else ''}"

    def put(self, face: int, folder: Path) -> bool:
        """Link or copy the image of a face into a folder; returns False where there is no file."""
        states, _ = look_up(self.files, face, face + 1)
        if states[0] != State.GOOD:
            return False
        target = folder / self.name(face)
        source = self.files.source(face)
        if not isinstance(source, bytes):
            with source() as opened, open(target, "wb") as written:
                shutil.copyfileobj(opened, written)
            return True
        path = os.path.abspath(os.fsdecode(source))
        try:
            if self.how == "symlink":
                os.symlink(path, target)
            elif self.how == "hardlink":
                os.link(path, target)
            else:
                shutil.copy2(path, target)
        except OSError as error:
            if self.how != "hardlink":
                raise
            raise InputError(
                f"{path}: cannot be given a second name in {folder.parent.name} ({error.strerror}); use --files "
                "symlink or copy."
            ) from error
        return True


def clusters_largest_first(clusters: Clusters) -> np.ndarray:
    """Return labels (c,), the largest cluster first, of equally large ones the lower label."""
    return np.argsort(-clusters.sizes, kind="stable")


def write_folders(folder: Path, run: OpenedRun, images: Images) -> None:
    """Write a folder per cluster of two faces or more, and one each for single faces and faces in no cluster."""
    clusters = run.clusters
    order = clusters_largest_first(clusters)
    several = order[clusters.sizes[order] > 1]
    digits = len(str(len(several)))
    for rank, cluster in enumerate(several.tolist(), start=1):
        rows = clusters.rows(cluster)
        put_all(rows, folder / f"{rank:0{digits}}-cluster-{cluster}-{len(rows)}-faces", images)
    alone = run.placed.labels >= 0
    alone[alone] = clusters.sizes[run.placed.labels[alone]] == 1
    put_all(np.flatnonzero(alone), folder / SINGLES, images)
    put_all(np.flatnonzero(run.placed.labels < 0), folder / NONE, images)


def put_all(rows: np.ndarray, folder: Path, images: Images) -> None:
    """Put the images of rows (m,) into a new folder, which is left out where there is no image."""
    if not len(rows):
        return
    folder.mkdir()
    if not sum(images.put(row, folder) for row in rows.tolist()):
        folder.rmdir()


def write_fiftyone(folder: Path, run: OpenedRun, images: Images) -> None:
    """Write data/ and labels.json; a class per cluster, largest first, with the confidence of each face."""
    order = clusters_largest_first(run.clusters)
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    confidence = run.confidence.faces.confidence
    data = folder / "data"
    data.mkdir()
    labels: dict[str, object] = {}
    for row, label in enumerate(run.placed.labels.tolist()):
        if not images.put(row, data):
            continue
        stem = os.path.splitext(images.name(row))[0]
        if label < 0:
            continue  # unlabelled, as FiftyOne takes it
        if np.isnan(confidence[row]):
            labels[stem] = int(place[label])
        else:
            labels[stem] = {"label": int(place[label]), "confidence": round(float(confidence[row]), 6)}
    classes = [f"cluster {one}" for one in order.tolist()]
    with open(folder / "labels.json", "w", encoding="utf-8") as file:
        json.dump({"classes": classes, "labels": labels}, file)


def write_lines(output: Path, run: OpenedRun) -> None:
    """Write a line of JSON per face: what the table of faces holds, null for what nothing says."""
    columns = face_columns(run.placed.labels, run.confidence, run.ids, run.files)
    columns = {
        name: column.tolist() if isinstance(column, np.ndarray) else column
        for name, column in columns.items()
    }
    with atomic_file(output) as file:
        for row in zip(*columns.values(), strict=True):
            found = {
                name: None if value != value else value for name, value in zip(columns, row, strict=True)
            }
            found["flags"] = found["flags"].split(SEPARATOR) if found["flags"] else []
            file.write((json.dumps(found) + "\n").encode())


def blocks_of(n: int) -> Iterator[tuple[int, int]]:
    """Yield where blocks of rows start and stop."""
    for start in range(0, n, BLOCK):
        yield start, min(n, start + BLOCK)


def plain_columns(arrow: ModuleType, run: OpenedRun, start: int, stop: int) -> dict[str, object]:
    """Return the columns of a block of faces that every tool is given."""
    faces, labels = run.confidence.faces, run.placed.labels[start:stop]
    columns = {
        "id": arrow.array(np.arange(start, stop) if run.ids is None else run.ids[start:stop]),
        "cluster": arrow.array(
            [f"cluster {one}" if one >= 0 else None for one in labels.tolist()], arrow.string()
        ),
        "size": arrow.array(np.where(labels >= 0, run.confidence.clusters.size[np.maximum(labels, 0)], 0)),
    }
    for name in ("confidence", "margin", "similarity"):
        columns[name] = arrow.array(getattr(faces, name)[start:stop], from_pandas=True)
    columns["flags"] = arrow.array(
        [names_of(one) for one in faces.flags[start:stop].tolist()], arrow.string()
    )
    return columns


def write_blocks(output: Path, n: int, columns_of: Callable[[int, int], dict[str, object]]) -> None:
    """Write a Parquet file block by block; columns_of: returns those of rows start to stop."""
    arrow = import_pyarrow(str(output))
    import pyarrow.parquet

    with atomic_file(output) as file:
        writer = None
        for start, stop in blocks_of(n):
            table = arrow.table(columns_of(start, stop))
            writer = writer or pyarrow.parquet.ParquetWriter(file, table.schema)
            writer.write_table(table)
        if writer is not None:
            writer.close()


def write_atlas(output: Path, run: OpenedRun) -> None:
    """Write what Embedding Atlas reads: id, cluster, measures, neighbors, and a thumbnail where there are images.

    Neighbors are rows and cosine distances, each row the first of its own, as its --neighbors takes them; thumbnails
    are JPEGs, as its --image does.
    """
    arrow = import_pyarrow(str(output))
    lists, face, rows = run.placed.evidence.lists, run.placed.face, run.clusters.rows_of_faces
    if run.files is not None:
        import_pillow()
    width = 1 + min(NEIGHBORS, lists.ids.shape[1])

    def near_row(row: int) -> dict[str, list[object]]:
        """The row itself and its neighbors; a short list is filled up with the row, as all have to be equally long."""
        own = face[row]
        ids, sims = lists.ids[own], lists.sims[own]
        kept = np.flatnonzero((ids >= 0) & (ids != own) & (own >= 0))[: width - 1]
        distances = [0.0, *(1.0 - sims[kept].astype(np.float64)).tolist()]
        missing = width - len(distances)
        return {
            "ids": [row, *rows[ids[kept]].tolist(), *[row] * missing],
            "distances": distances + distances[-1:] * missing,
        }

    def columns_of(start: int, stop: int) -> dict[str, object]:
        columns = plain_columns(arrow, run, start, stop)
        neighbors = [near_row(row) for row in range(start, stop)]
        kind = arrow.struct(
            [("ids", arrow.list_(arrow.int64())), ("distances", arrow.list_(arrow.float64()))]
        )
        columns["neighbors"] = arrow.array(neighbors, kind)
        if run.files is not None:
            found = [jpeg_of(run.files, row, EDGE) for row in range(start, stop)]
            pictures = [
                None if one is None else {"bytes": one, "path": f"{row}.jpg"}
                for row, one in enumerate(found, start=start)
            ]
            columns["image"] = arrow.array(
                pictures, arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
            )
        return columns

    write_blocks(output, run.n, columns_of)


def write_spotlight(output: Path, run: OpenedRun) -> None:
    """Write what Spotlight reads: id, cluster and measures, and the path of the image in ``image``."""
    arrow = import_pyarrow(str(output))
    files = run.files
    if files is not None and files.members is not None:
        raise InputError(
            f"{files.name}: the images are in archives, and Spotlight reads files only; unpack them first."
        )

    def columns_of(start: int, stop: int) -> dict[str, object]:
        columns = plain_columns(arrow, run, start, stop)
        if files is not None:
            paths = [os.path.abspath(os.fsdecode(files.path(row))) for row in range(start, stop)]
            columns["image"] = arrow.array(
                [path.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for path in paths],
                arrow.string(),
            )
        return columns

    write_blocks(output, run.n, columns_of)
