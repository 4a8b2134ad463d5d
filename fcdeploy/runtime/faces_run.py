"""A whole run over photos: faces, their embeddings, and the lists of both, in a folder."""

import contextlib
import os
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.archives import opened_lines
from fcdeploy.data.bad_list import write_bad_list
from fcdeploy.data.filelist import Filelist, filelist_from_lines
from fcdeploy.data.images import FIRST_BAD
from fcdeploy.engine.onnx_file import model_digest
from fcdeploy.errors import FcdeployWarning, InputError, counted
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.progress import Progress
from fcdeploy.run.summary import FacesSummary
from fcdeploy.runtime.computed import ours
from fcdeploy.runtime.crops import FOLDER
from fcdeploy.runtime.embed import embed_lines, libraries, new_job
from fcdeploy.runtime.face_lists import (
    BAD,
    CROPS,
    LISTS,
    Embedded,
    FaceTable,
    counts_of,
    table_of,
    write_lists,
)
from fcdeploy.runtime.faces import (
    ROWS,
    FacesJob,
    Found,
    bad_photos,
    check_faces_folder,
    crop_lines,
    look_for_faces,
    tell_of_bad_photos,
)


@dataclass(frozen=True)
class FacesResult:
    """All faces with what the lists say of them, and what ``fcdeploy faces --json`` prints."""

    table: FaceTable
    summary: FacesSummary


def faces_to_folder(
    job: FacesJob, output: Path, *, on_bad: str = "skip", choice: str = "output", quiet: bool = True
) -> FacesResult:
    """Find the faces of all photos, and leave their crops and lists in the folder ``output``; see ``face_lists``.

    on_bad: 'skip' leaves out photos that cannot be read, 'stop' raises InputError for them after all were tried, and
    writes no lists; they are listed in ``photos.bad.txt`` either way. choice: what messages tell the user to choose
    again for ``output``. The same call continues from what an interrupted one left.
    """
    check_faces_folder(job, output)
    progress, started = Progress(quiet), time.perf_counter()
    with contextlib.ExitStack() as outer:
        detector = outer.enter_context(job.open())  # what does not fit is said before anything is made
        description, provider = detector.describe(), detector.provider
        folder = outer.enter_context(RunFolder(output, choice))
        folder.check_free([*LISTS, ROWS, FOLDER])
        found = look_for_faces(job, detector, folder, progress)
        detector.close()
        if bad := bad_photos(job, found):
            folder.claims.claim(BAD)
            write_bad_list(output / BAD, bad)
            tell_of_bad_photos(job, found, on_bad, output / BAD)
        with contextlib.ExitStack() as stack:
            embedded: Embedded | None = None
            told: dict[str, str] | None = None
            if job.embedder is not None and found.photos["count"].any():
                with progress.stage("embed"):
                    embedded, told = _embedded(job, found, folder, progress, stack)
            table = table_of(job, found, embedded)
            if not len(table.photo):
                warnings.warn(
                    f"{job.photos.name}: no face was found in {counted(job.photos.n, 'photo')}; a lower "
                    "--score-threshold finds more, and a lower --min-face smaller ones.",
                    FcdeployWarning,
                    stacklevel=2,
                )
            write_lists(table, folder, embedded)
    seconds = time.perf_counter() - started
    summary: FacesSummary = {
        **counts_of(table),
        "seconds": seconds,
        "stages": {name: {"seconds": spent} for name, spent in progress.seconds.items()},
        "detector": {"file": str(job.detector), "input": description},
    }
    if told is not None:
        summary["embedder"] = told
    summary["computed"] = {
        "device": {"device": job.device, "provider": provider},
        "limits": {"threads": job.cores, "vram": job.vram},
        "versions": {**ours(), **libraries()},
    }
    if job.photos.skipped:
        summary["skipped"] = job.photos.skipped
    return FacesResult(table, summary)


def crops_of(job: FacesJob, found: Found, folder: Path) -> Filelist:
    """Return the crops of all faces as a list, in the order of photos."""
    lines = [os.fsencode(line) for line in crop_lines(job, found)]
    return opened_lines(filelist_from_lines(os.fsencode(folder), lines, str(folder / CROPS)))


def _embedded(
    job: FacesJob, found: Found, folder: RunFolder, progress: Progress, stack: contextlib.ExitStack
) -> tuple[Embedded, dict[str, str]]:
    """Embed all crops, those of gated faces too; the embeddings are mapped until ``stack`` is closed.

    Returns what the summary says of the embedder, too.
    """
    assert job.embedder is not None
    crops = crops_of(job, found, folder.path)
    embedding = new_job(crops, job.embedder, threads=job.threads, device=job.device, vram=job.vram)
    with embedding.open() as embedder:
        partial = stack.enter_context(contextlib.closing(embed_lines(embedding, embedder, folder, progress)))
        described = embedder.describe()
    made_by = model_digest(job.embedder, embedding.settings)
    states = np.array(partial.arrays["states"])
    if (states >= FIRST_BAD).all():
        raise InputError(
            f"{job.embedder}: computed a usable embedding for none of {counted(len(states), 'face')}; check its "
            "settings."
        )
    embedded = Embedded(partial.arrays["features"], states, made_by)
    return embedded, {"file": str(job.embedder), "sha256": made_by, "input": described}
