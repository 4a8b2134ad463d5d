"""A crop is what least squares and an antialiased warp make of a face."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fcdeploy.data.alignment import SIZE, TEMPLATE, applied, inverse, similarity, warped


@given(st.floats(-3.1, 3.1), st.floats(0.05, 20), st.floats(-1000, 1000), st.floats(-1000, 1000))
def test_a_similarity_is_found_again(turn: float, scale: float, x: float, y: float) -> None:
    wanted = scale * np.array([[np.cos(turn), -np.sin(turn), x], [np.sin(turn), np.cos(turn), y]])
    np.testing.assert_allclose(similarity(applied(inverse(wanted), TEMPLATE)), wanted, rtol=1e-7, atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_it_is_the_least_squares_fit_of_four_numbers(seed: int) -> None:
    """By NumPy's solver: x' = a x - b y + c, y' = b x + a y + d."""
    points = np.random.default_rng(seed).normal(0, 50, (5, 2))
    rows = [row for x, y in points for row in ([x, -y, 1, 0], [y, x, 0, 1])]
    a, b, c, d = np.linalg.lstsq(np.array(rows), TEMPLATE.ravel(), rcond=None)[0]
    np.testing.assert_allclose(similarity(points), [[a, -b, c], [b, a, d]], rtol=1e-6, atol=1e-6)


def test_points_in_one_place_give_nothing_finite() -> None:
    assert not np.isfinite(similarity(np.ones((5, 2)))).all()


@pytest.fixture
def smooth() -> np.ndarray:
    y, x = np.mgrid[:300, :400]
    waves = [127 + 100 * np.sin(x / a) * np.cos(y / b) for a, b in ((30, 40), (25, 22), (50, 31))]
    return np.stack(waves, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("scale", [1.0, 1.7, 0.6, 0.25])
@pytest.mark.parametrize("turn", [0, 25, 90, -160])
def test_a_smooth_picture_is_warped_as_opencv_does(smooth: np.ndarray, scale: float, turn: float) -> None:
    """Where nothing is to be averaged away, shrinking first changes nothing but by rounding."""
    cv2 = pytest.importorskip("cv2")
    a, b = scale * np.cos(np.radians(turn)), scale * np.sin(np.radians(turn))
    matrix = np.array([[a, -b, 0], [b, a, 0]])
    matrix[:, 2] = np.array([56, 56]) - applied(matrix, np.array([210.0, 140.0]))
    wanted = cv2.warpAffine(smooth, matrix, (SIZE, SIZE), flags=cv2.INTER_CUBIC).astype(int)
    found = np.asarray(warped(Image.fromarray(smooth), matrix, (SIZE, SIZE))).astype(int)
    inside = cv2.warpAffine(np.full(smooth.shape[:2], 255, np.uint8), matrix, (SIZE, SIZE)) == 255
    inside = cv2.erode(inside.astype(np.uint8), np.ones((9, 9))) > 0
    assert inside.mean() > 0.4
    away = np.abs(wanted - found)[inside]
    assert away.mean() < 2
    assert np.quantile(away, 0.99) <= 6


def test_fine_detail_becomes_its_mean_and_no_pattern() -> None:
    """A chequerboard of single pixels at a quarter of its size is grey; picking pixels would leave stripes."""
    board = np.indices((400, 400)).sum(axis=0) % 2 * 255
    image = Image.fromarray(board.astype(np.uint8)).convert("RGB")
    matrix = np.array([[0.2, -0.15, 30.0], [0.15, 0.2, -10.0]])
    middle = np.asarray(warped(image, matrix, (SIZE, SIZE)))[40:60, 40:60].astype(float)
    assert np.abs(middle - 127.5).max() < 12


def test_beyond_the_photo_is_black() -> None:
    image = Image.new("RGB", (50, 50), (200, 100, 50))
    crop = np.asarray(warped(image, np.array([[1.0, 0, 40], [0, 1, 40]]), (SIZE, SIZE)))
    assert crop[:38].max() == crop[:, :38].max() == crop[93:].max() == 0
    assert np.array_equal(crop[45:85, 45:85], np.broadcast_to([200, 100, 50], (40, 40, 3)))
    away = warped(image, np.array([[0.1, 0, 5000], [0, 0.1, 5000]]), (SIZE, SIZE))
    assert not np.asarray(away).any()
