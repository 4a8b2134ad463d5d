"""The lists that a run over photos leaves: faces that pass the gates, and apart from them those that do not.

faces.csv     a row per face: its id, photo, crop, box, points and quality
faces.txt     its crop, as ``fcdeploy embed`` takes it
photos.txt    its photo, as ``--same-photo`` takes it
features.bin  its embedding, where there is an embedder
gated.csv, gated.txt, gated.bin  the same of faces that did not pass, with the reason
"""

import contextlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.bad_list import write_bad_list
from fcdeploy.data.csv_text import CsvText
from fcdeploy.data.features import new_hash
from fcdeploy.data.images import FIRST_BAD, REASONS, State
from fcdeploy.data.sidecar import Sidecar, sidecar_bytes
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.summary import FacesSummary
from fcdeploy.runtime.crops import crop_line
from fcdeploy.runtime.faces import FacesJob, Found, bad_photos

FACES, CROPS, PHOTOS, FEATURES = "faces.csv", "faces.txt", "photos.txt", "features.bin"
GATED, GATED_CROPS, GATED_FEATURES = "gated.csv", "gated.txt", "gated.bin"
BAD = "photos.bad.txt"
LISTS = (
    *(FACES, CROPS, PHOTOS, FEATURES, f"{FEATURES}.json"),
    *(GATED, GATED_CROPS, GATED_FEATURES, f"{GATED_FEATURES}.json", BAD),
)
POINTS = ("right_eye", "left_eye", "nose", "right_mouth", "left_mouth")  # of the person's, as in OpenCV
NUMBERS = (
    *("x", "y", "width", "height"),
    *(f"{point}_{axis}" for point in POINTS for axis in "xy"),
    *("score", "size", "sharpness", "yaw", "roll"),
)
HEADINGS = ("face", "photo", "crop", *NUMBERS)
BLOCK = 1 << 14  # faces written at a time
PASSED = ""


@dataclass(frozen=True)
class Embedded:
    """Embeddings (m, d) of all faces, their states (m,), see ``State``, and the hash of what made them."""

    features: np.ndarray
    states: np.ndarray
    digest: str


@dataclass(frozen=True)
class FaceTable:
    """All faces that were found, in the order of photos, with what the lists say of them.

    photo, number: (m,) int64, the line of the photo and which of its faces. values: (m, 19) float32, the columns
    NUMBERS; norms: (m,) float32, None without embeddings. reasons: (m,), why a face does not pass, or PASSED.
    """

    job: FacesJob
    found: Found
    photo: np.ndarray
    number: np.ndarray
    values: np.ndarray
    norms: np.ndarray | None
    reasons: np.ndarray

    @property
    def passed(self) -> np.ndarray:
        """The faces that pass the gates, (p,) int64."""
        return np.flatnonzero(self.reasons == PASSED)

    @property
    def gated(self) -> np.ndarray:
        """The faces that do not, (g,) int64."""
        return np.flatnonzero(self.reasons != PASSED)

    def face_id(self, face: int) -> str:
        """Return the id of a face: its photo and its number there, from 0."""
        return f"{self.job.photos.shown(int(self.photo[face]))}#{self.number[face]}"

    def crop(self, face: int) -> str:
        """Return where the crop of a face lies, relative to the folder of the run."""
        photos, photo = self.found.photos, self.photo[face]
        shard = int(photos["shard"][photo])
        return crop_line(int(photos["names"][photo]), int(self.number[face]), self.job.form, shard)


def table_of(job: FacesJob, found: Found, embedded: Embedded | None) -> FaceTable:
    """Put all faces together, and hold them against the gates."""
    photo, number = found.photo_of_faces()
    rows = found.rows[found.photos["first"][photo] + number]
    size = rows[:, 2:4].min(axis=1, initial=np.inf)
    values = np.column_stack([rows[:, :15], size, rows[:, 15:]]).astype(np.float32)
    norms = None
    if embedded is not None:
        norms = np.empty(len(values), np.float32)
        for start in range(0, len(values), BLOCK):
            norms[start : start + BLOCK] = np.linalg.norm(embedded.features[start : start + BLOCK], axis=1)
    return FaceTable(job, found, photo, number, values, norms, _reasons(job, values, norms, embedded))


def _reasons(
    job: FacesJob, values: np.ndarray, norms: np.ndarray | None, embedded: Embedded | None
) -> np.ndarray:
    """Say of each face (m,) why it does not pass: the first reason of several."""
    reasons = np.full(len(values), PASSED, dtype=object)
    if embedded is not None:
        for face in np.flatnonzero(embedded.states >= FIRST_BAD).tolist():
            reasons[face] = REASONS[State(embedded.states[face])].format(max_pixels=job.max_pixels)
    column = {name: values[:, NUMBERS.index(name)] for name in ("size", "sharpness", "yaw")}
    measured = {
        "min_size": column["size"],
        "min_sharpness": column["sharpness"],
        "max_yaw": np.abs(column["yaw"]),
        "min_norm": norms,
    }
    for gate, limit in job.gates.given().items():
        side, name = gate.split("_")
        of_gate = measured[gate]
        assert of_gate is not None
        outside = of_gate > limit if side == "max" else ~(of_gate >= limit)
        for face in np.flatnonzero(outside & (reasons == PASSED)).tolist():
            beyond = "above" if side == "max" else "below"
            reasons[face] = f"{name} {of_gate[face]:.4g} {beyond} {limit:g}"
    return reasons


def write_lists(table: FaceTable, folder: RunFolder, embedded: Embedded | None) -> None:
    """Write all lists of a run, each whole or not at all, and all at nearly one time; those without lines go."""
    job, place = table.job, folder.path
    folder.claims.claim(*LISTS)
    written = {FACES, CROPS, PHOTOS}
    bad = bad_photos(job, table.found)
    if bad:
        write_bad_list(place / BAD, bad)
        written.add(BAD)
    with contextlib.ExitStack() as stack:

        def opened(name: str) -> IO[bytes]:
            written.add(name)
            return stack.enter_context(atomic_file(place / name))

        if embedded is not None:
            for name, faces in ((FEATURES, table.passed), (GATED_FEATURES, table.gated)):
                if len(faces):
                    _write_features(opened(name), opened(f"{name}.json"), table, faces, embedded)
        _write_faces(opened(FACES), table, table.passed)
        _write_lines(opened(CROPS), (os.fsencode(table.crop(face)) for face in table.passed.tolist()))
        _write_lines(opened(PHOTOS), (job.photos.line(photo) for photo in table.photo[table.passed].tolist()))
        if len(table.gated):
            _write_faces(opened(GATED), table, table.gated, with_reasons=True)
            _write_lines(
                opened(GATED_CROPS), (os.fsencode(table.crop(face)) for face in table.gated.tolist())
            )
    for name in set(LISTS) - written:
        (place / name).unlink(missing_ok=True)


def counts_of(table: FaceTable) -> FacesSummary:
    """Return what a summary says of photos and faces."""
    states = table.found.photos["states"]
    bad = Counter(State(state).name.lower() for state in states[states >= FIRST_BAD].tolist())
    good = states < FIRST_BAD
    gated = Counter(str(reason).split(" ")[0] for reason in table.reasons[table.gated])
    return {
        "photos": len(states),
        "bad_photos": int((~good).sum()),
        "reasons": dict(bad),
        "photos_without_faces": int((good & (table.found.photos["count"] == 0)).sum()),
        "faces_found": len(table.photo),
        "faces": len(table.passed),
        "gated": len(table.gated),
        "gated_by": dict(gated),
    }


def write_faces(path: Path, table: FaceTable, faces: np.ndarray) -> None:
    """Write a table of ``faces`` (m,), whole or not at all."""
    with atomic_file(path) as file:
        _write_faces(file, table, faces)


def _write_faces(file: IO[bytes], table: FaceTable, faces: np.ndarray, *, with_reasons: bool = False) -> None:
    text = CsvText()
    more = [*(["norm"] if table.norms is not None else []), *(["reason"] if with_reasons else [])]
    text.row((*HEADINGS, *more))
    for at, face in enumerate(faces.tolist()):
        cells = [
            table.face_id(face),
            os.fsdecode(table.job.photos.line(int(table.photo[face]))),
            table.crop(face),
            *(f"{value:.4f}" for value in table.values[face].tolist()),
        ]
        if table.norms is not None:
            cells.append(f"{table.norms[face]:.4f}")
        if with_reasons:
            cells.append(table.reasons[face])
        text.row(cells)
        if at % BLOCK == BLOCK - 1:
            file.write(text.take().encode("utf-8", "surrogateescape"))
    file.write(text.take().encode("utf-8", "surrogateescape"))


def _write_lines(file: IO[bytes], lines: Iterator[bytes]) -> None:
    for line in lines:
        file.write(line + b"\n")


def _write_features(
    file: IO[bytes], sidecar: IO[bytes], table: FaceTable, faces: np.ndarray, embedded: Embedded
) -> None:
    """Write the embeddings of ``faces`` (m,) as raw rows, and what they are beside them."""
    assert table.job.embedder is not None
    shape = len(faces), embedded.features.shape[1]
    state = new_hash(shape, np.float32)
    for start in range(0, len(faces), BLOCK):
        block = np.ascontiguousarray(embedded.features[faces[start : start + BLOCK]], dtype="<f4")
        state.update(block.data)
        file.write(block.data)
    sidecar.write(
        sidecar_bytes(
            Sidecar(
                *(*shape, "float32", 4 * shape[0] * shape[1], state.hexdigest()),
                model=table.job.embedder.name,
                model_sha256=embedded.digest,
            )
        )
    )
