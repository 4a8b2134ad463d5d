"""Non-maximum suppression is OpenCV's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcdeploy.engine.suppression import overlaps, suppress


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.sampled_from([0.1003, 0.2997, 0.5003]))
def test_what_stays_is_what_opencv_keeps(seed: int, n: int, threshold: float) -> None:
    """Boxes of whole pixels, for OpenCV's are, scores that differ, and thresholds that no ratio of such areas is."""
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(seed)
    corners = rng.integers(0, 60, (n, 2))
    boxes = np.concatenate([corners, corners + rng.integers(5, 50, (n, 2))], axis=1).astype(np.float32)
    scores = (rng.permutation(n) + 1).astype(np.float32) / n
    sides = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(int).tolist()
    wanted = cv2.dnn.NMSBoxes(sides, scores.tolist(), 0.0, threshold, top_k=5000)
    assert suppress(boxes, scores, threshold, 5000).tolist() == list(wanted)


def test_the_best_stays_and_only_top_k_are_looked_at() -> None:
    """Worked by hand: the first two share 50 of 150 pixels, a third; the last lies apart."""
    boxes = np.array([[0, 0, 10, 10], [0, 5, 10, 15], [50, 50, 60, 60]], np.float32)
    scores = np.array([0.8, 0.9, 0.7], np.float32)
    assert suppress(boxes, scores, 0.3, 10).tolist() == [1, 2]
    assert suppress(boxes, scores, 0.34, 10).tolist() == [1, 0, 2]
    assert suppress(boxes, scores, 0.34, 1).tolist() == [1]
    assert suppress(boxes[:0], scores[:0], 0.3, 10).tolist() == []
    np.testing.assert_allclose(overlaps(boxes[:1], boxes), [[1, 1 / 3, 0]])
