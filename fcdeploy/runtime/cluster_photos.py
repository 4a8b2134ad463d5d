"""From photos to clusters of the faces in them, all in one go.

faces     found, aligned, embedded and held against the gates (see ``fcdeploy.runtime.faces_run``)
cluster   those that pass, as from any features; an id is the path of a photo and the number of a face in it
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.atomic import atomic_file, check_parent, remove_folder
from fcdeploy.data.features import Features
from fcdeploy.data.run_record import LOCK, RECORD, check_run_folder, read_record
from fcdeploy.data.side_files import check_not_an_input, check_replaceable
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.embedder import Embedder, settings_beside
from fcdeploy.errors import InputError, counted
from fcdeploy.graph.lists import ListsFile
from fcdeploy.run.folder import SUMMARY, RunFolder
from fcdeploy.run.options import Options
from fcdeploy.run.summary import StageFigures, Summary
from fcdeploy.runtime.face_lists import FEATURES, HEADINGS, FaceTable, write_faces
from fcdeploy.runtime.faces import FacesJob
from fcdeploy.runtime.faces_run import faces_to_folder
from fcdeploy.runtime.photo_labels import PhotoLabels
from fcdeploy.runtime.pipeline import run_clustering
from fcdeploy.runtime.review import NOTHING, Review, Reviewed

CROPS = "crops"  # in a run folder


@dataclass(frozen=True)
class PhotosResult:
    """labels: (n,) int64 of the faces that pass the gates; ids: (n,) text; summary: what ``cluster --json`` prints.

    table: all faces that were found. reviewed: what was wanted beside labels, None where nothing was.
    """

    labels: np.ndarray
    ids: np.ndarray
    table: FaceTable
    summary: Summary
    reviewed: Reviewed | None = None


def cluster_photos(
    job: FacesJob,
    bundle: Bundle,
    options: Options,
    *,
    output: Path,
    on_bad: str = "skip",
    run_dir: Path | None = None,
    review: Callable[[np.ndarray, np.ndarray], Review] = lambda photo, ids: NOTHING,
    known: PhotoLabels | None = None,
    unknown: str = "ignore",
    quiet: bool = True,
) -> PhotosResult:
    """Find the faces of photos, embed and cluster them, and write ``faces.csv`` of them beside ``output``.

    output: where labels are going to be written, by whose name the table is called. Crops and embeddings lie in
    ``run_dir``, or in a folder beside ``output`` until the run is over, which an interrupted run continues. review:
    says what is wanted of the clusters, given the photo (n,) int32 and the id (n,) of each face that passes. known: who
    is in the photos, for the quality in the summary; unknown: see ``evaluate``. Raises InputError when no face is left.
    """
    folder = crops_folder(output, run_dir)
    table_path = check_clustering_of_photos(job, bundle, options, output, run_dir)
    choice = "--run-dir" if run_dir else "output"
    if run_dir:
        with RunFolder(run_dir) as place:
            place.claims.claim(CROPS, SUMMARY)
            folder.mkdir(exist_ok=True)
    faces = faces_to_folder(job, folder, on_bad=on_bad, choice=choice, quiet=quiet)
    table = faces.table
    if not len(table.passed):
        found = len(table.photo)
        told = f"none of {counted(found, 'face')} passes the gates" if found else "no face was found"
        raise InputError(f"{job.photos.name}: {told}; there is nothing to cluster.")
    ids = np.array([table.face_id(face) for face in table.passed.tolist()], dtype=object)
    truth = None if known is None else known.of_faces(table, unknown)
    wanted = review(table.photo[table.passed].astype(np.int32), ids)
    features = np.memmap(folder / FEATURES, np.float32, "r").reshape(len(table.passed), -1)
    result = run_clustering(
        Features(features, str(folder / FEATURES), ids=ids),
        bundle,
        options,
        truth=truth,
        unknown=unknown,
        run_dir=run_dir,
        scratch_dir=output.parent,
        wanted=wanted,
        quiet=quiet,
    )
    write_faces(table_path, table, table.passed)
    seconds = faces.summary["seconds"]
    stage: StageFigures = {
        "seconds": seconds,
        "faces_per_s": len(table.photo) / seconds if seconds else 0.0,
    }
    of_photos = faces.summary.copy()
    del of_photos["computed"]
    summary: Summary = {
        **result.summary,
        "photos": of_photos,
        "stages": {"photos": stage, **result.summary["stages"]},
    }
    if run_dir:
        with atomic_file(run_dir / SUMMARY) as file:
            file.write(json.dumps(summary, indent=1).encode())
    return PhotosResult(result.labels, ids, table, summary, result.reviewed)


@contextlib.contextmanager
def crops_removed(output: Path, run_dir: Path | None) -> Iterator[None]:
    """Delete the folder beside ``output`` when the block ends well; with a run folder nothing is deleted."""
    yield
    if run_dir is None:
        remove_crops_folder(crops_folder(output, None))


def crops_folder(output: Path, run_dir: Path | None) -> Path:
    """Return where crops and embeddings lie while a run works."""
    return run_dir / CROPS if run_dir else output.with_name(f"{output.name}.{CROPS}")


def remove_crops_folder(folder: Path) -> None:
    """Delete the folder of a run over photos; what is not ours stays, and the folder with it."""
    if read_record(folder) is None:
        return
    with RunFolder(folder, "output") as place:
        for name in sorted(place.claims.record.names - {RECORD, LOCK}):
            remove_folder(folder / name)
        place.remove()


def check_clustering_of_photos(
    job: FacesJob, bundle: Bundle, options: Options, output: Path, run_dir: Path | None
) -> Path:
    """Find what would be refused after hours of looking for faces; returns where the table of faces goes."""
    if job.embedder is None:
        raise InputError("photos need an embedder, too; give --embedder MODEL.onnx.")
    for option, path in options.lists.items():
        ListsFile(path)
        raise InputError(
            f"{option} {path}: neighbor lists need faces that are known before the run; leave it out for photos."
        )
    folder = crops_folder(output, run_dir)
    if run_dir is None or run_dir.is_dir():
        check_run_folder(folder, "--run-dir" if run_dir else "output")
    path = check_parent(output.with_suffix(".faces.csv"))
    for each in (output, path):
        check_not_an_input(each, job.inputs())
    check_replaceable(path, _is_table_of_faces, "the table of faces")
    settings = settings_beside(job.embedder)
    with Embedder(job.embedder, settings, batch=1, threads=1, device=job.device, vram=job.vram) as embedder:
        if embedder.dim != bundle.feature_dim:
            raise InputError(
                f"{job.embedder}: gives embeddings of width {embedder.dim}; {bundle.path} was exported for "
                f"d = {bundle.feature_dim}."
            )
    return path


def _is_table_of_faces(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.readline().startswith(",".join(HEADINGS).encode())
