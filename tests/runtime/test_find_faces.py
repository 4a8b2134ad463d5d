"""Scales and tiles of a photo, and that a face is found once whatever its size and place."""

import itertools
from pathlib import Path

import numpy as np
import pytest
from detectors import write_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fcdeploy.data.alignment import TEMPLATE, applied, similarity
from fcdeploy.engine.detector import Detector
from fcdeploy.engine.detector_heads import Candidates
from fcdeploy.engine.detector_settings import DetectorSettings
from fcdeploy.runtime.find_faces import (
    LARGE,
    OVERLAP,
    SMALLEST,
    TILE,
    Search,
    aligned_points,
    find_faces,
    levels_of,
)

YUNET = Path(__file__).parent.parent.parent / "benchmarks/photos/yunet.onnx"
ALBUM = YUNET.parent / "album"


@pytest.fixture(scope="module")
def yunet() -> Detector:
    return Detector(YUNET, DetectorSettings())


@settings(max_examples=60)
@given(st.integers(1, 9000), st.integers(1, 9000), st.sampled_from([None, 8, 16, 40, 200]))
def test_every_face_that_is_asked_for_is_whole_in_some_tile(
    yunet: Detector, width: int, height: int, least: int | None
) -> None:
    """At the scale at which it has LARGE pixels or less; and no tile is larger than a call may be."""
    levels = levels_of((width, height), yunet, Search(min_face=least))
    scales = [level.size[0] / width for level in levels]
    assert scales == sorted(scales, reverse=True)
    assert max(levels[-1].size) <= 2 * LARGE
    if least is not None:
        assert levels[0].size[0] >= min(width, width * SMALLEST / least) - 1
    for level in levels:
        covered = np.zeros(level.size[::-1], bool) if max(level.size) < 4000 else None
        for left, top, right, bottom in level.tiles:
            assert 0 <= left < right <= level.size[0]
            assert 0 <= top < bottom <= level.size[1]
            assert max(right - left, bottom - top) <= TILE
            if covered is not None:
                covered[top:bottom, left:right] = True
        assert covered is None or covered.all()
        for axis in (0, 1):
            spans = sorted({(tile[axis], tile[axis + 2]) for tile in level.tiles})
            overlaps = [before[1] - after[0] for before, after in itertools.pairwise(spans)]
            assert min(overlaps, default=OVERLAP) >= OVERLAP - 1


def test_a_photo_of_usual_size_is_looked_at_as_it_is(yunet: Detector) -> None:
    levels = levels_of((1920, 1280), yunet, Search())
    assert [level.size for level in levels] == [(1920, 1280), (480, 320)]
    assert all(len(level.tiles) == 1 for level in levels)


def test_a_face_as_high_as_the_photo_is_found(yunet: Detector) -> None:
    """Of 1,000 pixels and more, where a detector of faces up to 300 pixels sees but parts of one."""
    with Image.open(ALBUM / "2.jpg") as photo:
        face = find_faces(photo.convert("RGB"), yunet, Search())
        left, top, right, bottom = face.boxes[0] + [-40, -50, 40, 40]
        large = photo.crop((round(left), round(top), round(right), round(bottom)))
    large = large.resize((large.width * 9, large.height * 9), Image.Resampling.BICUBIC)
    found = find_faces(large, yunet, Search())
    assert len(found.scores) >= 1
    assert (found.boxes[:, 3] - found.boxes[:, 1]).max() > 0.4 * large.height


def test_a_turned_face_is_aligned_as_the_upright_one(yunet: Detector) -> None:
    """Turned about the middle of the photo, its points go where those of the upright one are turned to, in the crop.

    By a second look to some 4 pixels; by the first points alone they do not.
    """
    with Image.open(ALBUM / "2.jpg") as opened:
        photo = opened.convert("RGB")
    middle = np.array([(photo.width - 1) / 2, (photo.height - 1) / 2])
    away: dict[bool, list[float]] = {True: [], False: []}
    best = find_faces(photo, yunet, Search())[np.array([0])]
    upright = aligned_points(photo, best, yunet, Search())[0]
    for turn in (-40, -30, -20, 20, 30, 40):
        image = photo.rotate(-turn, Image.Resampling.BICUBIC)
        a, b = np.cos(np.radians(turn)), np.sin(np.radians(turn))
        there = (upright - middle) @ np.array([[a, b], [-b, a]]) + middle
        faces = find_faces(image, yunet, Search())
        nearest = np.linalg.norm(faces.points.mean(axis=1) - there.mean(axis=0), axis=1).argmin()
        for refine in away:
            found = aligned_points(image, faces[np.array([nearest])], yunet, Search(refine=refine))[0]
            to_crop = similarity(there)
            away[refine].append(float(np.abs(applied(to_crop, found) - applied(to_crop, there)).mean()))
    assert np.mean(away[True]) < 4
    assert np.mean(away[True]) < 0.75 * np.mean(away[False])


def test_points_stay_where_no_face_is_found_again(yunet: Detector) -> None:
    image = Image.new("RGB", (400, 300), (100, 120, 140))
    points = np.stack([TEMPLATE, TEMPLATE + 100, np.zeros((5, 2))]).astype(np.float32)
    faces = Candidates(np.zeros((3, 4), np.float32), points, np.ones(3, np.float32))
    assert np.array_equal(aligned_points(image, faces, yunet, Search()), points.astype(np.float64))


@pytest.mark.parametrize("head", ["scrfd", "retinaface"])
def test_a_detector_of_pictures_of_one_size_takes_photos_of_any(tmp_path: Path, head: str) -> None:
    path = write_detector(tmp_path / "a.onnx", head, batch=1, size=(320, 320))
    pixels = np.random.default_rng(2).integers(0, 256, (300, 900, 3), np.uint8)
    with Detector(path, DetectorSettings()) as detector:
        assert [level.size for level in levels_of((900, 300), detector, Search())] == [(320, 107)]
        assert len(levels_of((900, 300), detector, Search(min_face=8))[0].tiles) == 5
        found = find_faces(Image.fromarray(pixels), detector, Search(score_threshold=0.5, min_face=8))
        points = aligned_points(Image.fromarray(pixels), found, detector, Search())
    assert len(found.scores) == len(points) > 0
    assert np.all(np.diff(found.scores) <= 0)
