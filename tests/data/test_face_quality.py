"""Sharpness is OpenCV's Laplacian; yaw and roll are those of a turned head."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdeploy.data.alignment import TEMPLATE
from fcdeploy.data.face_quality import CENTRE, roll_of, sharpness_of, yaw_of

# A head in millimetres, x to the right of the picture, y down, z away: eyes, tip of the nose, corners of the mouth.
HEAD = np.array([[-31.5, 0, 0], [31.5, 0, 0], [0, 36, -25], [-25, 70, 0], [25, 70, 0]])


def turned(yaw: float, roll: float) -> np.ndarray:
    """The points (5, 2) of the head, which looks ``yaw`` degrees to the right of the picture, seen from afar."""
    yaw, roll = np.radians([yaw, roll])
    x = HEAD[:, 0] * np.cos(yaw) - HEAD[:, 2] * np.sin(yaw)
    flat = np.stack([x, HEAD[:, 1]], axis=1)
    return flat @ np.array([[np.cos(roll), np.sin(roll)], [-np.sin(roll), np.cos(roll)]])


@given(st.floats(-75, 75), st.floats(-170, 170), st.floats(0.2, 9))
def test_the_yaw_and_roll_of_a_turned_head_are_found(yaw: float, roll: float, scale: float) -> None:
    points = scale * turned(yaw, roll) + [100, 200]
    assert abs(yaw_of(points) - yaw) < 2
    assert abs(roll_of(points) - roll) < 1e-6


def test_the_template_looks_straight_ahead() -> None:
    assert abs(yaw_of(TEMPLATE)) < 1.5
    assert abs(roll_of(TEMPLATE)) < 1


@given(st.integers(0, 2**32 - 1))
def test_a_mirrored_face_looks_the_other_way(seed: int) -> None:
    points = TEMPLATE + np.random.default_rng(seed).normal(0, 3, (5, 2))
    mirrored = (points * [-1, 1])[[1, 0, 2, 4, 3]]
    assert yaw_of(mirrored) == pytest.approx(-yaw_of(points), abs=1e-6)


def test_sharpness_is_the_variance_of_opencvs_laplacian() -> None:
    cv2 = pytest.importorskip("cv2")
    crop = np.random.default_rng(0).integers(0, 256, (112, 112), np.uint8)
    crop = cv2.GaussianBlur(crop, (5, 5), 1)
    laplacian = cv2.Laplacian(crop, cv2.CV_64F)[1:-1, 1:-1]
    assert sharpness_of(crop) == pytest.approx(laplacian[CENTRE, CENTRE].var(), rel=1e-5)
    assert sharpness_of(cv2.GaussianBlur(crop, (9, 9), 3)) < sharpness_of(crop) / 4


def test_what_lies_beyond_the_photo_does_not_sharpen_a_face() -> None:
    crop = np.full((112, 112), 120, np.uint8)
    crop[:10] = 0
    assert sharpness_of(crop) == 0
