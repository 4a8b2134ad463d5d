"""Detectors are told by their outputs, and read as their authors read them."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from detectors import (
    read_retinaface,
    read_scrfd,
    read_yunet,
    write_detector,
    write_faces_detector,
)

from fcdeploy.engine.detector import Detector
from fcdeploy.engine.detector_settings import DetectorSettings, detector_settings_beside
from fcdeploy.errors import InputError

SIZE = (96, 160)  # height, width


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 256, (*SIZE, 3), np.uint8)


def outputs_of(path: Path, feed: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"input": feed}), strict=True))


def feed_of(picture: np.ndarray, channels: str, mean: object, scale: float) -> np.ndarray:
    pixels = picture[..., ::-1] if channels == "bgr" else picture
    return ((pixels.astype(np.float32) - np.float32(mean)) / np.float32(scale)).transpose(2, 0, 1)[None]


def check_found(detector: Detector, picture: np.ndarray, wanted: list, least: float) -> None:
    wanted = [one for one in wanted if one[0] > least]
    found = detector.candidates([picture], least)[0]
    assert 0 < len(wanted) == len(found.scores)
    order, other = np.argsort([one[0] for one in wanted]), np.argsort(found.scores)
    np.testing.assert_allclose(found.scores[other], [wanted[at][0] for at in order], rtol=1e-4)
    np.testing.assert_allclose(found.boxes[other], [wanted[at][1] for at in order], rtol=1e-3, atol=0.01)
    np.testing.assert_allclose(found.points[other], [wanted[at][2] for at in order], rtol=1e-3, atol=0.01)


@pytest.mark.parametrize("batch", ["n", 1])
@pytest.mark.parametrize("maps", [False, True])
def test_yunet_is_told_by_its_outputs(tmp_path: Path, picture: np.ndarray, batch: object, maps: bool) -> None:
    path = write_detector(tmp_path / "a.onnx", "yunet", batch=batch, maps=maps)
    plain = write_detector(tmp_path / "b.onnx", "yunet")
    with Detector(path, DetectorSettings()) as detector:
        assert (detector.head.name, detector.channels, detector.size) == ("yunet", "bgr", None)
        outputs = {name: rows[0] for name, rows in outputs_of(plain, feed_of(picture, "bgr", 0, 1)).items()}
        check_found(detector, picture, read_yunet(outputs, SIZE), 0.3)


@pytest.mark.parametrize("anchors", [1, 2])
@pytest.mark.parametrize("batch_axis", [True, False])
def test_scrfd_is_told_by_its_outputs_with_and_without_a_batch_axis(
    tmp_path: Path, picture: np.ndarray, anchors: int, batch_axis: bool
) -> None:
    """InsightFace's own exports have outputs (anchors of all cells, columns), without a batch axis."""
    path = write_detector(tmp_path / "a.onnx", "scrfd", anchors=anchors, batch_axis=batch_axis, batch=1)
    with Detector(path, DetectorSettings()) as detector:
        assert (detector.head.name, detector.channels) == ("scrfd", "rgb")
        outputs = outputs_of(path, feed_of(picture, "rgb", 127.5, 128))
        rows = {name: rows[0] if batch_axis else rows for name, rows in outputs.items()}
        check_found(detector, picture, read_scrfd(rows, SIZE, anchors), 0.4)


def test_retinaface_is_told_by_its_outputs(tmp_path: Path, picture: np.ndarray) -> None:
    path = write_detector(tmp_path / "a.onnx", "retinaface", size=SIZE, batch=1)
    with Detector(path, DetectorSettings()) as detector:
        assert (detector.head.name, detector.channels, detector.size) == ("retinaface", "bgr", SIZE)
        outputs = outputs_of(path, feed_of(picture, "bgr", (104, 117, 123), 1))
        rows = {name: rows[0] for name, rows in outputs.items()}
        check_found(detector, picture, read_retinaface(rows, SIZE), 0.5)


def test_pictures_of_a_batch_are_read_as_each_alone(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "a.onnx", "yunet")
    pictures = list(np.random.default_rng(0).integers(0, 256, (3, *SIZE, 3), np.uint8))
    with Detector(path, DetectorSettings()) as detector:
        together = detector.candidates(pictures, 0.3)
        for picture, found in zip(pictures, together, strict=True):
            alone = detector.candidates([picture], 0.3)[0]
            np.testing.assert_allclose(found.boxes, alone.boxes, rtol=1e-5, atol=1e-4)
            assert len(alone.scores)


def test_sides_are_filled_up_with_black(tmp_path: Path, picture: np.ndarray) -> None:
    """Of 90 x 150 pixels the graph takes 96 x 160, and what lies beyond is as black as a black border."""
    path = write_detector(tmp_path / "a.onnx", "scrfd")
    small, bordered = picture[:90, :150], np.zeros_like(picture)
    bordered[:90, :150] = small
    with Detector(path, DetectorSettings()) as detector:
        first, second = (detector.candidates([pixels], 0.4)[0] for pixels in (small, bordered))
    assert np.array_equal(first.boxes, second.boxes)


FORMS = {
    "xyxy": lambda box: box,
    "xywh": lambda box: np.concatenate([box[:2], box[2:] - box[:2]]),
    "cxcywh": lambda box: np.concatenate([(box[:2] + box[2:]) / 2, box[2:] - box[:2]]),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
def test_faces_of_any_form_are_read_as_the_toml_says(
    tmp_path: Path, picture: np.ndarray, form: str, relative: bool, transposed: bool
) -> None:
    """Two faces and what is below the threshold; points with a score each, in another order than ours."""
    boxes = np.array([[10, 20, 50, 70], [80, 5, 120, 60], [0, 0, 5, 5]], float)
    points = np.random.default_rng(1).uniform(0, 90, (3, 5, 2))
    sides = np.array([SIZE[1], SIZE[0]]) if relative else np.ones(2)
    scores = np.array([0.9, 0.7, 0.2])
    rows = []
    for box, five, score in zip(boxes, points, scores, strict=True):
        told = np.concatenate([five[::-1] / sides, np.full((5, 1), 0.5)], axis=1)
        rows.append([*FORMS[form](box / np.tile(sides, 2)), score, *told.ravel()])
    path = write_faces_detector(tmp_path / "a.onnx", np.array(rows), transposed=transposed)
    (tmp_path / "a.toml").write_text(
        f"""box_format = "{form}"
units = "{"relative" if relative else "pixels"}"
transposed = {str(transposed).lower()}
point_order = [4, 3, 2, 1, 0]
[outputs]
scores = "out[4]"
boxes = "out[0:4]"
points = "out[5:20]"
"""
    )
    with Detector(path, detector_settings_beside(path)) as detector:
        found = detector.candidates([picture], 0.5)[0]
    np.testing.assert_allclose(found.boxes, boxes[:2], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.points, points[:2], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(found.scores, scores[:2], rtol=1e-6)


def test_boxes_without_points_are_refused(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "a.onnx", "scrfd", points=False)
    with pytest.raises(InputError, match=r"a\.onnx: finds boxes without landmarks of the face"):
        Detector(path, DetectorSettings())


def test_other_outputs_are_named_with_the_way_to_describe_them(tmp_path: Path) -> None:
    path = write_faces_detector(tmp_path / "a.onnx", np.ones((3, 15)))
    with pytest.raises(InputError, match=r"out \(3, 15\).*in the \.toml beside it"):
        Detector(path, DetectorSettings())


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ('head = "yolo"', "head should be"),
        ('heads = "yunet"', "unknown key 'heads'"),
        ("scale = 0", "a scale of 0 is not possible"),
        ("mean = [1, 2]", "mean should be"),
        ('head = "decoded"', "needs a table [outputs]"),
        ("[outputs]\nscores = 'out'", "outputs.boxes should be"),
        ("given = ['mean']", "unknown key 'given'"),
        ('[outputs]\nscores="no"\nboxes="out[0:4]"\npoints="out[5:15]"', "has no output 'no'"),
        (
            '[outputs]\nscores="out[4]"\nboxes="out[0:3]"\npoints="out[5:15]"',
            "outputs.boxes has 3 columns; 4 are needed",
        ),
        ('[outputs]\nscores="out[4]"\nboxes="out[0:4]"\npoints="out[5:99]"', "has 15 columns"),
        ('[outputs]\nscores="out[4]"\nboxes="out[0:4]"\npoints="out[5:13]"', "point_order names point 4"),
    ],
)
def test_a_mistake_in_the_toml_is_said_in_a_sentence(tmp_path: Path, toml: str, words: str) -> None:
    path = write_faces_detector(tmp_path / "a.onnx", np.ones((3, 15)))
    (tmp_path / "a.toml").write_text(toml)
    with pytest.raises(InputError, match=re.escape(words)):
        Detector(path, detector_settings_beside(path))


def test_strides_that_are_no_powers_of_two_can_be_said(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "a.onnx", "scrfd")
    (tmp_path / "a.toml").write_text("strides = [8, 16]")
    with pytest.raises(InputError, match="has outputs of 3 strides"):
        Detector(path, detector_settings_beside(path))
    (tmp_path / "a.toml").write_text("strides = [8, 16, 32]\nchannels = 'bgr'")
    with Detector(path, detector_settings_beside(path)) as detector:
        assert detector.channels == "bgr"
