"""The faces of one photo: looked for at several scales and in tiles, each face once, and aligned.

A detector finds faces of some 10 to 300 pixels. So a photo is looked at as it is (a large one shrunk, as far as
``--min-face`` allows), in tiles where it is large even so, and again at a quarter of that for larger faces, and so on.
The points of a face that was found are then looked for again in a window in which it stands upright and is of the size
of a crop, and in that window mirrored: a crop depends on them, and on a turned or small face they are far off at first.
A face that is turned much is looked at once more, before that.
"""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fcdeploy.data.alignment import TEMPLATE, applied, inverse, similarity, warped
from fcdeploy.data.face_quality import roll_of
from fcdeploy.engine.detector import Detector
from fcdeploy.engine.detector_heads import Candidates, joined
from fcdeploy.engine.suppression import overlaps, suppress

if TYPE_CHECKING:
    from PIL import Image

TILE = 2048  # longest side of what is looked at at once
OVERLAP = 320  # of tiles: faces up to this size are whole in one of them
LARGE = 256  # pixels beyond which a face is found better in a smaller picture
SMALLEST = 16  # pixels that --min-face becomes
SHRINK = 4  # from one scale to the next
TOUCHES = 2  # pixels from the inner edge of a tile: a face there is cut off
WINDOW = 160  # sides of the window in which points are looked for again
UPRIGHT = 10.0  # degrees: a face that is turned by more is put upright first
NEAR = 28.0  # pixels of the window by which points may lie elsewhere, on average: a quarter of a crop
AT_ONCE = 16  # windows per call


@dataclass(frozen=True)
class Search:
    """What to look for; the names are those of OpenCV's FaceDetectorYN.

    score_threshold: minimum detection score; nms_threshold: intersection over union above which two boxes are one face;
    top_k: candidates kept before that. min_face: pixels of the smallest face to look for in large photos, None for what
    is found where the longer side is ``TILE`` pixels. refine: whether points are looked for again before a face is
    aligned.
    """

    score_threshold: float = 0.6
    nms_threshold: float = 0.3
    top_k: int = 5000
    min_face: int | None = None
    refine: bool = True


@dataclass(frozen=True)
class Level:
    """A photo at one scale: its (width, height), and the left, top, right and bottom of each tile of it."""

    size: tuple[int, int]
    tiles: tuple[tuple[int, int, int, int], ...]


def levels_of(size: tuple[int, int], detector: Detector, search: Search) -> list[Level]:
    """Return the scales at which a photo of ``size`` (width, height) is looked at, the largest first."""
    width, height = size
    tile = (TILE, TILE) if detector.size is None else (detector.size[1], detector.size[0])
    fitting = min(1.0, tile[0] / width, tile[1] / height)
    scale = fitting if search.min_face is None else min(1.0, SMALLEST / search.min_face)
    levels = []
    while True:
        scaled = max(1, round(width * scale)), max(1, round(height * scale))
        if scale <= fitting:
            scaled = min(scaled[0], tile[0]), min(scaled[1], tile[1])
        levels.append(Level(scaled, tuple(_tiles(scaled, tile))))
        # A graph of one size is trained for faces as large as that.
        if max(scaled) <= 2 * LARGE or (detector.size is not None and scale <= fitting):
            return levels
        scale /= SHRINK


def find_faces(image: "Image.Image", detector: Detector, search: Search) -> Candidates:
    """Return the faces of a photo, best score first, in its pixels.

    image: RGB. A face of more than one scale is that of the largest, in which it is what the detector alone would give.
    """
    levels = levels_of(image.size, detector, search)
    found = _faces_of_level(image, levels[0], detector, search)
    for finer, level in itertools.pairwise(levels):
        faces = _faces_of_level(image, level, detector, search)
        # Smaller ones were looked for already, where they are shown better.
        least = LARGE * image.size[0] / finer.size[0]
        sides = (faces.boxes[:, 2:] - faces.boxes[:, :2]).max(axis=1, initial=0)
        faces = faces[np.flatnonzero(sides > least)]
        new = np.flatnonzero((overlaps(faces.boxes, found.boxes) <= search.nms_threshold).all(axis=1))
        found = joined([found, faces[new]])
    return found[np.argsort(-found.scores, kind="stable")]


def aligned_points(image: "Image.Image", faces: Candidates, detector: Detector, search: Search) -> np.ndarray:
    """Return the points (n, 5, 2) float64 by which faces are aligned: looked for again, where ``search`` says so.

    Points that are not found again, which happens at the edge of a photo, stay.
    """
    points = faces.points.astype(np.float64)
    if search.refine and (detector.size is None or min(detector.size) >= WINDOW):
        with np.errstate(invalid="ignore"):
            turned = np.array([abs(roll_of(face)) > UPRIGHT for face in points], bool)
        points[turned] = _looked_for_again(image, points[turned], detector, search, mirrored=False)
        points = _looked_for_again(image, points, detector, search, mirrored=True)
    return points


def _faces_of_level(image: "Image.Image", level: Level, detector: Detector, search: Search) -> Candidates:
    from PIL import Image

    shown = image
    if level.size != image.size:
        shown = image.resize(level.size, Image.Resampling.BILINEAR, reducing_gap=1.0)
    ratio = np.array(image.size, np.float32) / level.size
    parts = []
    for left, top, right, bottom in level.tiles:
        whole = len(level.tiles) == 1
        pixels = np.asarray(shown if whole else shown.crop((left, top, right, bottom)))
        faces = detector.candidates([pixels], search.score_threshold)[0]
        if not whole:
            faces = faces[_uncut(faces.boxes, (left, top, right, bottom), level.size)]
        corner = np.array([left, top], np.float32)
        parts.append(
            Candidates(
                (faces.boxes + np.tile(corner, 2) + 0.5) * np.tile(ratio, 2) - 0.5,
                (faces.points + corner + 0.5) * ratio - 0.5,
                faces.scores,
            )
        )
    faces = joined(parts)
    return faces[suppress(faces.boxes, faces.scores, search.nms_threshold, search.top_k)]


def _uncut(boxes: np.ndarray, tile: tuple[int, int, int, int], size: tuple[int, int]) -> np.ndarray:
    """Tell which boxes (n, 4) of a tile do not touch an edge of it within the photo, (n,) bool."""
    left, top, right, bottom = tile
    kept = np.ones(len(boxes), bool)
    if left > 0:
        kept &= boxes[:, 0] > TOUCHES
    if top > 0:
        kept &= boxes[:, 1] > TOUCHES
    if right < size[0]:
        kept &= boxes[:, 2] < right - left - TOUCHES
    if bottom < size[1]:
        kept &= boxes[:, 3] < bottom - top - TOUCHES
    return kept


def _tiles(size: tuple[int, int], tile: tuple[int, int]) -> Iterator[tuple[int, int, int, int]]:
    columns, rows = (_starts(length, most) for length, most in zip(size, tile, strict=True))
    for top in rows:
        for left in columns:
            yield left, top, min(left + tile[0], size[0]), min(top + tile[1], size[1])


def _starts(length: int, most: int) -> list[int]:
    """Return where tiles of ``most`` pixels begin that cover ``length``, evenly, with enough overlap."""
    if length <= most:
        return [0]
    overlap = min(OVERLAP, most // 2)
    count = math.ceil((length - overlap) / (most - overlap))
    return np.linspace(0, length - most, count).round().astype(int).tolist()


def _looked_for_again(
    image: "Image.Image", points: np.ndarray, detector: Detector, search: Search, *, mirrored: bool
) -> np.ndarray:
    """Look for the points (n, 5, 2) of each face in a window in which it stands as in a crop.

    mirrored: in the mirrored window as well; the mean of both is what a detector errs by to one side taken off.
    """
    aside = WINDOW / 2 - TEMPLATE.mean(axis=0)
    matrices = {}
    for face, given in enumerate(points):
        matrix = similarity(given)
        if np.isfinite(matrix).all() and np.linalg.det(matrix[:, :2]) > 0:
            matrix[:, 2] += aside
            matrices[face] = matrix
    windows = [
        np.asarray(warped(image, matrix, (WINDOW, WINDOW), fine=False)) for matrix in matrices.values()
    ]
    again: list[list[np.ndarray]] = [[] for _ in points]
    for mirror in (False, True)[: 1 + mirrored]:
        shown = [np.ascontiguousarray(window[:, ::-1]) for window in windows] if mirror else windows
        for (face, matrix), faces in zip(matrices.items(), _in_windows(shown, detector, search), strict=True):
            found = faces.points.astype(np.float64)
            if mirror:  # left is right
                found = (found * [-1, 1] + [WINDOW - 1, 0])[:, [1, 0, 2, 4, 3]]
            near = _nearest(found, faces.scores, applied(matrix, points[face]))
            if near is not None:
                again[face].append(applied(inverse(matrix), near))
    means = [np.mean(found, axis=0) if found else face for found, face in zip(again, points, strict=True)]
    return np.array(means).reshape(points.shape)


def _in_windows(windows: list[np.ndarray], detector: Detector, search: Search) -> Iterator[Candidates]:
    """Yield what may be faces in each window, (WINDOW, WINDOW, 3) uint8.

    A detector of pictures of one size takes as many of them as fit into one, side by side.
    """
    least = search.score_threshold / 2
    if detector.size is None:
        for start in range(0, len(windows), AT_ONCE):
            yield from detector.candidates(windows[start : start + AT_ONCE], least)
        return
    rows, columns = (length // WINDOW for length in detector.size)
    for start in range(0, len(windows), rows * columns):
        group = windows[start : start + rows * columns]
        picture = np.zeros((rows * WINDOW, columns * WINDOW, 3), np.uint8)
        corners = [(at // columns * WINDOW, at % columns * WINDOW) for at in range(len(group))]
        for (top, left), window in zip(corners, group, strict=True):
            picture[top : top + WINDOW, left : left + WINDOW] = window
        faces = detector.candidates([picture], least)[0]
        for top, left in corners:
            corner = np.array([left, top], np.float32)
            yield Candidates(faces.boxes - np.tile(corner, 2), faces.points - corner, faces.scores)


def _nearest(points: np.ndarray, scores: np.ndarray, expected: np.ndarray) -> np.ndarray | None:
    """Return of points (n, 5, 2) those of the best face near the ones expected (5, 2), None where there is none."""
    away = np.linalg.norm(points - expected, axis=2).mean(axis=1)
    near = np.flatnonzero(away < NEAR)
    return points[near[np.argmax(scores[near])]] if len(near) else None
