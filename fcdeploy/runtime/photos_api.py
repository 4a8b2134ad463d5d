"""The Python interface to photos: ``fcdeploy.faces``, and what ``fcdeploy.cluster`` does with a detector."""

import dataclasses
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from fcdeploy.data.filelist import Filelist, filelist_from_paths
from fcdeploy.data.imagelist import open_images
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options
from fcdeploy.runtime.cluster_photos import cluster_photos
from fcdeploy.runtime.face_lists import FEATURES, GATED_FEATURES, NUMBERS, FaceTable
from fcdeploy.runtime.faces import MAX_PIXELS, Gates, new_faces_job
from fcdeploy.runtime.faces_run import crops_of, faces_to_folder
from fcdeploy.runtime.find_faces import Search
from fcdeploy.runtime.review import Review
from fcdeploy.runtime.tables import write_reviewed
from fcdeploy.runtime.wanted import Wanted

PathLike: TypeAlias = str | Path


@dataclass(frozen=True)
class Faces:
    """Faces of photos, in the order of the photos, and in each the best score first.

    ids: (n,) text, the photo and the number of the face in it, as "a.jpg#0"; photos: (n,) text. boxes: (n, 4) float32,
    left, top, width, height in pixels of the photo; points: (n, 5, 2) float32, right and left eye (of the person),
    nose, right and left corner of the mouth. scores, sizes, sharpness, yaw, roll: (n,) float32: docs/how-to/photos.md.
    crops: (n, 112, 112, 3) uint8, RGB; files: (n,) text, where they lie, of a call with an output; the other of the two
    is None. norms (n,) and features (n, d) float32: of a call with an embedder, else None. reasons: (n,) text, of faces
    that do not pass the gates why not.
    """

    ids: np.ndarray
    photos: np.ndarray
    boxes: np.ndarray
    points: np.ndarray
    scores: np.ndarray
    sizes: np.ndarray
    sharpness: np.ndarray
    yaw: np.ndarray
    roll: np.ndarray
    crops: np.ndarray | None
    files: np.ndarray | None
    norms: np.ndarray | None
    features: np.ndarray | None
    reasons: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class FoundFaces(Faces):
    """Faces that pass the gates; gated: those that do not."""

    gated: Faces


def faces(
    photos: PathLike | Sequence[PathLike],
    *,
    detector: PathLike,
    output: PathLike | None = None,
    score_threshold: float = 0.6,
    nms_threshold: float = 0.3,
    top_k: int = 5000,
    min_face: int | None = None,
    refine: bool = True,
    min_size: float | None = None,
    min_sharpness: float | None = None,
    max_yaw: float | None = None,
    min_norm: float | None = None,
    embedder: PathLike | None = None,
    format: str = "jpg",
    shards: bool = False,
    on_bad: str = "skip",
    max_pixels: int = MAX_PIXELS,
    threads: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> FoundFaces:
    """Detect the faces in photos and align them.

    - photos: a folder, with all images below it; the path of a list; an archive; or the paths of images.
    - detector: an ONNX face detector with five landmarks: YuNet, SCRFD, RetinaFace, or another one described by a
      ``.toml`` beside it.
    - output: a folder for crops and lists, as ``fcdeploy faces`` writes them; without it, crops are returned as an
      array.
    - embedder: an ONNX face embedder, for ``features`` and ``norms``.
    - on_bad: photos that cannot be read: 'skip' leaves them out, 'stop' raises InputError.
    - the other arguments: see the options of ``fcdeploy faces``.

    Returns the faces that pass the quality gates; ``gated`` holds the others. Raises InputError (a
    ValueError) for input that cannot be used.
    """
    if on_bad not in ("skip", "stop"):
        raise InputError(f"on_bad = {on_bad!r}: should be 'skip' or 'stop'.")
    search = Search(score_threshold, nms_threshold, top_k, min_face, refine)
    gates = Gates(min_size, min_sharpness, max_yaw, min_norm)
    check_numbers(search, gates)
    job = new_faces_job(
        photos_from(photos),
        Path(detector),
        search=search,
        gates=gates,
        embedder=None if embedder is None else Path(embedder),
        form=format,
        shards=shards,
        max_pixels=max_pixels,
        threads=threads,
        device=device,
    )
    if output is not None:
        return _found(
            faces_to_folder(job, Path(output), on_bad=on_bad, quiet=not progress).table, Path(output)
        )
    with tempfile.TemporaryDirectory(prefix="fcdeploy-faces-") as folder:
        place = Path(folder) / "faces"
        table = faces_to_folder(job, place, on_bad=on_bad, quiet=not progress).table
        return _found(table, place, with_crops=True)


def cluster_faces_in(
    photos: object,
    bundle: Bundle,
    options: Options,
    *,
    detector: PathLike,
    embedder: PathLike | None,
    on_bad: str,
    run_dir: PathLike | None,
    wanted: Wanted,
    quiet: bool,
) -> np.ndarray:
    """Find, embed and cluster the faces in photos; returns their labels (n,) int64, in the order of ``faces``."""
    wanted.check()

    def review(photo: np.ndarray, ids: np.ndarray) -> Review:
        same_photo = photo.tolist() if wanted.same_photo is True else wanted.same_photo
        return dataclasses.replace(wanted, same_photo=same_photo).review(len(photo))

    job = new_faces_job(
        photos_from(photos),
        Path(detector),
        embedder=None if embedder is None else Path(embedder),
        threads=options.threads,
        device=options.device or "cpu",
        vram=options.vram,
    )
    with tempfile.TemporaryDirectory(prefix="fcdeploy-faces-") as folder:
        found = cluster_photos(
            job,
            bundle,
            options,
            output=Path(folder) / "labels.npy",
            on_bad=on_bad,
            run_dir=None if run_dir is None else Path(run_dir),
            review=review,
            quiet=quiet,
        )
        if found.reviewed is not None:
            write_reviewed(wanted.tables, found.reviewed, None, found.ids)
    return found.labels


def photos_from(photos: object) -> Filelist:
    """Return photos as a list, from whatever a caller has; raises InputError for what is no path or several."""
    if isinstance(photos, (str, Path)):
        return open_images(photos)
    if isinstance(photos, Sequence) and all(isinstance(one, (str, Path)) for one in photos):
        return filelist_from_paths(photos)
    raise InputError(
        f"photos: should be a folder, a list, an archive or paths, found {type(photos).__name__}; a detector is for "
        "photos."
    )


def check_numbers(search: Search, gates: Gates) -> None:
    """Raise InputError for a number that no option of the command line could have."""
    limits: dict[str, tuple[float | None, float, float]] = {
        "score_threshold": (search.score_threshold, 0, 1),
        "nms_threshold": (search.nms_threshold, 0, 1),
        "top_k": (search.top_k, 1, np.inf),
        "min_face": (search.min_face, 1, 100_000),
        "min_size": (gates.min_size, 0, np.inf),
        "min_sharpness": (gates.min_sharpness, 0, np.inf),
        "max_yaw": (gates.max_yaw, 0, 90),
        "min_norm": (gates.min_norm, 0, np.inf),
    }
    for name, (value, least, most) in limits.items():
        if value is not None and not least <= value <= most:
            above = "" if most == np.inf else f" to {most:g}"
            raise InputError(f"{name} = {value!r}: should be {least:g}{above or ' or more'}.")


def _found(table: FaceTable, folder: Path, *, with_crops: bool = False) -> FoundFaces:
    passed = _of(table, table.passed, folder, FEATURES, with_crops)
    return FoundFaces(**vars(passed), gated=_of(table, table.gated, folder, GATED_FEATURES, with_crops))


def _of(table: FaceTable, which: np.ndarray, folder: Path, features: str, with_crops: bool) -> Faces:
    values = table.values[which]
    rows: np.ndarray | None = None
    if table.norms is not None:
        path = folder / features
        rows = (
            np.fromfile(path, np.float32).reshape(len(which), -1)
            if len(which)
            else np.zeros((0, 0), np.float32)
        )
    crops = files = None
    if with_crops:
        crops = _pixels(table, which, folder)
    else:
        files = np.array([str(folder / table.crop(face)) for face in which.tolist()], dtype=object)
    shown = table.job.photos.shown
    column = {name: values[:, NUMBERS.index(name)] for name in ("score", "size", "sharpness", "yaw", "roll")}
    return Faces(
        ids=np.array([table.face_id(face) for face in which.tolist()], dtype=object),
        photos=np.array([shown(photo) for photo in table.photo[which].tolist()], dtype=object),
        boxes=values[:, :4],
        points=values[:, 4:14].reshape(-1, 5, 2),
        scores=column["score"],
        sizes=column["size"],
        sharpness=column["sharpness"],
        yaw=column["yaw"],
        roll=column["roll"],
        crops=crops,
        files=files,
        norms=None if table.norms is None else table.norms[which],
        features=rows,
        reasons=table.reasons[which],
    )


def _pixels(table: FaceTable, which: np.ndarray, folder: Path) -> np.ndarray:
    """Read the crops of faces ``which`` (m,): (m, 112, 112, 3) uint8."""
    from PIL import Image

    crops = crops_of(table.job, table.found, folder) if len(table.photo) else None
    pixels = np.zeros((len(which), 112, 112, 3), np.uint8)
    for at, face in enumerate(which.tolist()):
        assert crops is not None
        source = crops.source(face)
        with open(source, "rb") if isinstance(source, bytes) else source() as file:
            pixels[at] = np.asarray(Image.open(file).convert("RGB"))
    return pixels
