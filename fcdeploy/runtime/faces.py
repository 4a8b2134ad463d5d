"""From photos to aligned crops of the faces in them.

    photos     every line is looked up; threads read photos, find the faces, align them and judge their quality
    crops      written as they come, in the order of the photos, and noted in a file of rows, a row per face
    embedding  of all crops, where there is an embedder
    lists      faces.csv and its like, of the faces that pass the gates; those that do not are listed apart

What is done lies in the folder of the crops, with a stamp of every photo, so that the same command goes on after the
last photos that were noted, and looks again only at those changed since. Other gates only write other lists.
"""

import contextlib
import hashlib
import os
import threading
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, TypedDict, Unpack

import numpy as np

from fcdeploy import machine
from fcdeploy.data.alignment import SIZE, similarity, warped
from fcdeploy.data.atomic import no_space_left
from fcdeploy.data.face_quality import roll_of, sharpness_of, yaw_of
from fcdeploy.data.filelist import NO_STAMP, Filelist, look_up_all
from fcdeploy.data.images import FIRST_BAD, State, import_pillow, read_upright
from fcdeploy.data.run_record import check_run_folder
from fcdeploy.engine.detector import Detector
from fcdeploy.engine.detector_settings import DetectorSettings, detector_settings_beside
from fcdeploy.engine.onnx_file import check_model_path, model_digest, model_files
from fcdeploy.errors import FcdeployWarning, InputError, counted
from fcdeploy.run.folder import RunFolder, rows_from_the_first
from fcdeploy.run.keys import digest
from fcdeploy.run.progress import Progress
from fcdeploy.run.store import Arrays, Partial, Shapes
from fcdeploy.runtime.crops import (
    FOLDER,
    NO_SHARD,
    CropFiles,
    Crops,
    CropShards,
    check_form,
    crop_line,
    encoded,
    remove_unused,
)
from fcdeploy.runtime.embed import libraries, read_ahead, reason_of
from fcdeploy.runtime.find_faces import Search, aligned_points, find_faces

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 100_000_000
PIXELS_AT_ONCE = 120_000_000  # of photos that are in memory together, four bytes each; one may have more
COMMIT_PHOTOS = 256
GROUP = 8  # photos that are waited for together
WORKING = "photos"  # begins the name of what is known of all photos
ROWS = "faces.rows"
# Of a face, as it is noted: box (left, top, width, height), points, and what ``Quality`` says.
COLUMNS = 18


@dataclass(frozen=True)
class Gates:
    """What a face needs to be clustered; None asks for nothing.

    min_size: pixels of the shorter side of its box; min_sharpness: see ``face_quality.sharpness_of``; max_yaw: degrees
    to either side; min_norm: length of its embedding.
    """

    min_size: float | None = None
    min_sharpness: float | None = None
    max_yaw: float | None = None
    min_norm: float | None = None

    def given(self) -> dict[str, float]:
        """Return the gates that ask for something, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class FacesJob:
    """What to look for, where, and with what.

    form: 'jpg' or 'png'; shards: whether crops are packed. embedder: of the crops, None where they are not embedded.
    threads: 0 means all cores. device: 'cpu' or 'cuda', of both networks; vram: its budget in bytes, 0 for all.
    """

    photos: Filelist
    detector: Path
    settings: DetectorSettings
    search: Search = field(default_factory=Search)
    gates: Gates = field(default_factory=Gates)
    embedder: Path | None = None
    form: str = "jpg"
    shards: bool = False
    max_pixels: int = MAX_PIXELS
    threads: int = 0
    device: str = "cpu"
    vram: int = 0

    @property
    def cores(self) -> int:
        return machine.threads_for(self.threads)

    def open(self) -> Detector:
        """Load the detector, for threads that call it side by side."""
        return Detector(self.detector, self.settings, threads=1, device=self.device, vram=self.vram)

    def key(self) -> str:
        """Return a hash of all that decides what is found in a photo and how it is kept."""
        return digest(
            {
                "detector": model_digest(self.detector, self.settings),
                "search": vars(self.search),
                "crops": [self.form, self.shards],
                "max_pixels": self.max_pixels,
                "device": self.device,
                "libraries": libraries(),
            }
        )

    def inputs(self) -> tuple[Path, ...]:
        """Return the files that a run reads, photos not counted."""
        models = [path for path in (self.detector, self.embedder) if path is not None]
        files = [file for path in models for file in (*model_files(path), path.with_suffix(".toml"))]
        return (*self.photos.sources, *files)


class FacesOptions(TypedDict, total=False):
    """What else a ``FacesJob`` is told."""

    search: Search
    gates: Gates
    embedder: Path | None
    form: str
    shards: bool
    max_pixels: int
    threads: int
    device: str
    vram: int


def new_faces_job(photos: Filelist, detector: Path, **options: Unpack[FacesOptions]) -> FacesJob:
    """Put together what a run needs, with the settings beside the detector; raises InputError for what is missing."""
    import_pillow()
    check_model_path(detector, "face detector")
    job = FacesJob(photos, detector, detector_settings_beside(detector), **options)
    check_form(job.form)
    if job.embedder is not None:
        check_model_path(job.embedder, "face embedder")
    elif job.gates.min_norm is not None:
        raise InputError(
            f"--min-norm {job.gates.min_norm:g}: is for embeddings; give --embedder, too, or leave it out."
        )
    return job


def shapes_of(n: int) -> Shapes:
    """What is known of n photos: state and stamp, the hash of its line, its rows, and the archive of its crops."""
    return {
        "states": ((n,), np.uint8),
        "stamps": ((n,), np.uint64),
        "names": ((n,), np.uint64),
        "first": ((n,), np.int64),
        "count": ((n,), np.int32),
        "shard": ((n,), np.int32),
    }


@dataclass(frozen=True)
class Found:
    """What was found in all photos, mapped from the folder of a run.

    photos: arrays of ``shapes_of``; rows: (m, COLUMNS) float32, those of photo i from ``first[i]`` on.
    """

    photos: Arrays
    rows: np.ndarray

    def photo_of_faces(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the photo (m,) int64 and the number in it (m,) int64 of every face, in the order of photos."""
        count = self.photos["count"].astype(np.int64)
        photo = np.repeat(np.arange(len(count)), count)
        return photo, np.arange(len(photo)) - np.repeat(np.cumsum(count) - count, count)


def check_faces_folder(job: FacesJob, output: Path) -> None:
    """Raise InputError when crops cannot go into the folder ``output``, or would be taken for photos there."""
    check_run_folder(output, "output")
    if not output.parent.is_dir():
        raise InputError(
            f"{output}: the folder {output.parent} does not exist; create it or choose another output."
        )
    root = os.path.join(os.path.realpath(os.fsdecode(job.photos.folder) or "."), "")
    inside = os.path.join(os.path.realpath(output), "").startswith(root)
    if not job.photos.is_text and job.photos.members is None and inside:
        raise InputError(
            f"{output}: lies in {job.photos.name}, all images below which are photos, its crops too; choose another "
            "output."
        )


def look_for_faces(job: FacesJob, detector: Detector, folder: RunFolder, progress: Progress) -> Found:
    """Find the faces of all photos and write their crops into the folder of a run, going on from what is there."""
    with progress.bar("files", job.photos.n, unit="photos") as bar:
        found, stamps = look_up_all(job.photos, job.cores, bar.advance)
    names = line_hashes(job.photos)
    partial, changed = begin(folder, job, stamps, names)
    path = folder.path / ROWS
    with contextlib.closing(partial):
        todo = lines_to_do(partial, stamps)
        if len(todo):
            changed = True
            with progress.stage("faces"):
                fill(partial, path, job, detector, todo, found, stamps, progress)
        photos = {name: np.array(array) for name, array in partial.arrays.items()}
    rows = np.memmap(path, np.float32, "r").reshape(-1, COLUMNS) if path.stat().st_size else _no_rows()
    result = Found(photos, rows)
    if changed:
        remove_unused(folder.path, used_files(job, result))
    return result


def line_hashes(photos: Filelist) -> np.ndarray:
    """Return a hash (n,) uint64 of each line, by which its crops are called, whatever else is in the list."""
    hashes = (hashlib.blake2b(photos.line(at), digest_size=8).digest() for at in range(photos.n))
    return np.frombuffer(b"".join(hashes), "<u8")


def begin(folder: RunFolder, job: FacesJob, stamps: np.ndarray, names: np.ndarray) -> tuple[Partial, bool]:
    """Open what is known of all photos, with what earlier runs found in the very same files; and whether that is new.

    stamps: (n,) of ``look_up`` now.
    """
    key, name = job.key(), f"{WORKING}-{job.photos.digest()[:16]}"
    others = [other for other in folder.unfinished(WORKING) if other[0] != name]
    partial = folder.begin(name, key, shapes_of(job.photos.n), durable=True)
    folder.claims.claim(ROWS, FOLDER)
    for path in (folder.path / ROWS, folder.path / FOLDER):
        if path.is_symlink():
            raise InputError(f"{path}: is a symbolic link, which is not followed; remove it.")
    new = not partial.finished
    if new:
        partial.arrays["names"][:] = names
        partial.arrays["stamps"][:] = NO_STAMP
        known = {
            (int(arrays["stamps"][at]), int(arrays["names"][at])): (arrays, at)
            for _, other_key, arrays in others
            if other_key == key
            for at in np.flatnonzero((arrays["states"] < FIRST_BAD) & (arrays["stamps"] != NO_STAMP)).tolist()
        }
        for at, place in enumerate(zip(stamps.tolist(), names.tolist(), strict=True)):
            if place in known:
                arrays, old = known[place]
                for part in partial.arrays:
                    partial.arrays[part][at] = arrays[part][old]
        if known:
            partial.commit(0, job.photos.n)
    if not (folder.path / ROWS).exists() or (new and not any(other[1] == key for other in others)):
        (folder.path / ROWS).write_bytes(b"")
    for other, *_ in others:
        folder.drop(other)
    return partial, new


def lines_to_do(partial: Partial, stamps: np.ndarray) -> np.ndarray:
    """Return the lines (m,) whose photos were not looked at, have changed since, or were bad."""
    done = rows_from_the_first(partial.finished)
    arrays = partial.arrays
    again = (
        (arrays["stamps"][:done] != stamps[:done])
        | (stamps[:done] == NO_STAMP)
        | (arrays["states"][:done] >= FIRST_BAD)
    )
    return np.concatenate([np.flatnonzero(again), np.arange(done, len(stamps))])


def fill(
    partial: Partial,
    path: Path,
    job: FacesJob,
    detector: Detector,
    todo: np.ndarray,
    found: np.ndarray,
    stamps: np.ndarray,
    progress: Progress,
) -> None:
    """Look at the photos ``todo`` (m,), in their order, and note what is in them.

    path: the file of rows. A photo is trusted by its stamp, which is noted after all that belongs to it.
    """
    arrays, done, n = partial.arrays, rows_from_the_first(partial.finished), job.photos.n
    again = todo[todo < done]
    if len(again):
        arrays["stamps"][again] = NO_STAMP
        partial.commit(0, done)
    pending: list[int] = []

    def commit(file: IO[bytes], crops: Crops) -> None:
        crops.sync()
        file.flush()
        os.fsync(file.fileno())
        arrays["stamps"][pending] = stamps[pending]
        partial.commit(0, max(done, pending[-1] + 1))
        pending.clear()

    faces_in = Looking(job, detector, found)
    with (
        open_crops(job, path.parent, arrays["shard"][:done]) as crops,
        open_rows(path) as file,
        progress.bar("faces", n, n - len(todo), unit="photos") as bar,
    ):
        for lines, results in read_ahead(faces_in, todo, GROUP, job.cores):
            for line, seen in zip(lines.tolist(), results, strict=True):
                arrays["states"][line] = seen.state
                arrays["count"][line] = len(seen.rows)
                arrays["first"][line] = file.tell() // (4 * COLUMNS)
                with no_space_left(path):
                    file.write(seen.rows.tobytes())
                arrays["shard"][line] = crops.add(int(arrays["names"][line]), seen.crops)
                pending.append(line)
            bar.advance(len(lines))
            if len(pending) >= COMMIT_PHOTOS:
                commit(file, crops)
        if pending:
            commit(file, crops)


def open_rows(path: Path) -> IO[bytes]:
    """Open the file of rows behind the last whole one."""
    file = open(path, "r+b")  # noqa: SIM115 - closed by the caller
    file.truncate(os.fstat(file.fileno()).st_size // (4 * COLUMNS) * 4 * COLUMNS)
    file.seek(0, os.SEEK_END)
    return file


def open_crops(job: FacesJob, folder: Path, shards: np.ndarray) -> Crops:
    """Open what takes crops; shards: of the photos that are done, numbers of archives."""
    if not job.shards:
        return CropFiles(folder, job.form)
    return CropShards(folder, job.form, int(shards.max(initial=NO_SHARD)) + 1)


@dataclass(frozen=True)
class Seen:
    """What was found in a photo: rows (m, COLUMNS) float32 and m crops as files."""

    state: int
    rows: np.ndarray
    crops: list[bytes]


class Looking:
    """Finds the faces of the photo of a line; threads call it side by side.

    found: (n,) uint8, states of ``look_up``.
    """

    def __init__(self, job: FacesJob, detector: Detector, found: np.ndarray) -> None:
        self._job, self._detector, self._found = job, detector, found
        self._room = Room(PIXELS_AT_ONCE)

    def __call__(self, line: int) -> Seen:
        if self._found[line]:
            return Seen(int(self._found[line]), _no_rows(), [])
        source = self._job.photos.source(line)
        state, seen = read_upright(source, self._job.max_pixels, self._faces_in, self._room)
        return seen if seen is not None else Seen(int(state), _no_rows(), [])

    def _faces_in(self, image: "Image.Image") -> Seen:
        job = self._job
        faces = find_faces(image, self._detector, job.search)
        points = aligned_points(image, faces, self._detector, job.search)
        rows = np.empty((len(faces.scores), COLUMNS), np.float32)
        rows[:, :2] = faces.boxes[:, :2]
        rows[:, 2:4] = faces.boxes[:, 2:] - faces.boxes[:, :2]
        rows[:, 4:14] = faces.points.reshape(-1, 10)
        rows[:, 14] = faces.scores
        crops: list[bytes] = []
        for at, found in enumerate(points):
            matrix = similarity(found)
            if not np.isfinite(matrix).all() or not np.linalg.det(matrix[:, :2]) > 0:
                continue  # five points in one place are no face
            crop = warped(image, matrix, (SIZE, SIZE))
            rows[len(crops)] = rows[at]
            rows[len(crops), 15:] = sharpness_of(np.asarray(crop.convert("L"))), yaw_of(found), roll_of(found)
            crops.append(encoded(crop, job.form))
        return Seen(State.GOOD, rows[: len(crops)], crops)


class Room:
    """Lets threads have so many pixels in memory together, and one thread as many as it needs; see ``read_upright``."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        """Wait until there is room for so many pixels, which the block then has."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


def used_files(job: FacesJob, found: Found) -> set[str]:
    """Return the files that crops lie in, relative to the folder of the run."""
    shards = found.photos["shard"]
    if job.shards:
        return {str(Path(crop_line(0, 0, job.form, int(at))).parent) for at in np.unique(shards) if at >= 0}
    return set(crop_lines(job, found))


def crop_lines(job: FacesJob, found: Found) -> Iterator[str]:
    """Yield where the crop of each face lies, relative to the folder of the run."""
    photo, number = found.photo_of_faces()
    names, shards = (found.photos[part][photo].tolist() for part in ("names", "shard"))
    for name, at, shard in zip(names, number.tolist(), shards, strict=True):
        yield crop_line(name, at, job.form, shard)


def bad_photos(job: FacesJob, found: Found) -> list[tuple[int, bytes]]:
    """Return lines that could not be read as photos, each with its text and the reason, as they are listed."""
    states = found.photos["states"]
    return [
        (line, job.photos.line(line) + b"\t" + reason_of(states[line], job.max_pixels).encode())
        for line in np.flatnonzero(states >= FIRST_BAD).tolist()
    ]


def tell_of_bad_photos(job: FacesJob, found: Found, on_bad: str, bad_list: Path) -> None:
    """Tell the user of photos that could not be read.

    Raises InputError when there are some and on_bad is 'stop', or all are bad.
    """
    states = found.photos["states"]
    bad = np.flatnonzero(states >= FIRST_BAD)
    if not len(bad):
        return
    reasons = Counter(reason_of(state, job.max_pixels) for state in states[bad].tolist())
    why = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common())
    told = (
        f"{job.photos.name}: {len(bad):,} of {counted(job.photos.n, 'photo')} could not be read ({why}; the first is "
        f"line {bad[0]}, counted from 0, {job.photos.shown(bad[0])!r}), listed in {bad_list}"
    )
    if len(bad) == job.photos.n:
        raise InputError(f"{told}; nothing is left.")
    if on_bad == "stop":
        raise InputError(f"{told}; fix them, or give --on-bad skip (finished work is kept).")
    warnings.warn(f"{told}; they are left out.", FcdeployWarning, stacklevel=2)


def _no_rows() -> np.ndarray:
    return np.zeros((0, COLUMNS), np.float32)
