"""How faces are read from the outputs of a detector, which is told by the shapes of these outputs.

    yunet       per stride two columns of scores and 4 of boxes, 10 of points: one candidate per cell
    scrfd       per stride one column of scores, 4 of distances to the sides, 10 of points: one candidate per anchor
    retinaface  2 columns of classes, 4 of boxes, 10 of points for all priors of all strides together
    decoded     faces already, in the outputs that the .toml names

Outputs are taken as (rows, columns); see ``rows_of``.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fcdeploy.engine.detector_settings import DetectorSettings
from fcdeploy.errors import InputError, counted

COLUMNS = re.compile(r"(?P<name>.+?)(\[(?P<first>\d+)(:(?P<stop>\d+))?\])?")
POINTS = 5
WIDTHS = (1, 2, 4, 10)  # columns of scores, classes, boxes and points
MOST_ANCHORS = 4  # per cell
STRIDES = (4, 8, 16, 32, 64, 128, 256)
SUMS_TO_ONE = 1e-3


@dataclass(frozen=True)
class Candidates:
    """What may be faces in a picture, before any suppression.

    boxes: (n, 4) float32, left, top, right, bottom in pixels; points: (n, 5, 2) float32, x and y; scores: (n,) float32.
    """

    boxes: np.ndarray
    points: np.ndarray
    scores: np.ndarray

    def __getitem__(self, chosen: np.ndarray) -> "Candidates":
        return Candidates(self.boxes[chosen], self.points[chosen], self.scores[chosen])


Rows = dict[str, np.ndarray]  # output -> (rows, columns) float32, of one picture
# (outputs, (height, width) of the picture, least score) -> what is above that score
Decode = Callable[[Rows, tuple[int, int], float], Candidates]


@dataclass(frozen=True)
class Head:
    """A way of reading faces from outputs, and what its networks are usually trained with."""

    name: str
    decode: Decode
    channels: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]


@dataclass(frozen=True)
class Group:
    """The outputs of one stride, by name; scores: one or two."""

    stride: int
    anchors: int
    scores: tuple[str, ...]
    boxes: str
    points: str


def rows_of(outputs: Mapping[str, np.ndarray], at: int, settings: DetectorSettings) -> Rows:
    """Return picture ``at``'s part of a graph's outputs, each as (rows, columns).

    (b, n, c) and maps (b, c, h, w) or (b, h, w, c), of one candidate per cell; (n, c), without a batch axis, is all
    one picture's. Of outputs that are faces already, boxes say whether there is a batch axis.
    """
    if not is_decoded(settings):
        return {name: _rows(output, at) for name, output in outputs.items()}
    assert settings.outputs is not None
    boxes = next(
        (output for name, output in outputs.items() if settings.outputs.boxes.startswith(name)), None
    )
    rows = {}
    for name, output in outputs.items():
        one = output[at] if boxes is not None and boxes.ndim == 3 and output.ndim > 1 else output
        table = one.reshape(one.shape[0], math.prod(one.shape[1:])) if one.ndim else one.reshape(1, 1)
        rows[name] = table.T if settings.transposed else table
    return rows


def is_decoded(settings: DetectorSettings) -> bool:
    """Tell whether a graph's outputs are faces already, as the .toml says."""
    return settings.head == "decoded" or (settings.head is None and settings.outputs is not None)


def _rows(output: np.ndarray, at: int) -> np.ndarray:
    if output.ndim == 4:
        one = output[at] if output.shape[1] in WIDTHS else output[at].transpose(2, 0, 1)
        return one.reshape(one.shape[0], -1).T
    if output.ndim == 3:
        return output[at]
    return output if output.ndim == 2 else output.reshape(-1, 1)


def recognise(outputs: Rows, size: tuple[int, int], settings: DetectorSettings, where: str) -> Head:
    """Return the head of a graph by what it gave for an image of ``size`` (height, width).

    Raises InputError when outputs are those of no known head, or not those of the one that ``settings`` names.
    """
    if is_decoded(settings):
        return _head_of_faces(outputs, settings, where)
    asked = settings.head
    shapes = ", ".join(f"{name} {rows.shape}" for name, rows in outputs.items())
    lengths = {len(rows) for rows in outputs.values()}
    widths = {n: sorted(rows.shape[1] for rows in outputs.values() if len(rows) == n) for n in lengths}
    kinds = {tuple(found) for found in widths.values()}
    found = None
    if kinds == {(1, 1, 4, 10)}:
        found = "yunet"
    elif kinds == {(1, 4, 10)}:
        found = "scrfd"
    elif kinds == {(2, 4, 10)} and len(lengths) == 1:
        found = "retinaface"
    if found is None and any(4 in kind for kind in kinds) and not any(10 in kind for kind in kinds):
        raise InputError(
            f"{where}: finds boxes without landmarks of the face ({shapes}), by which crops are aligned; give a "
            "detector with five landmarks, or name their output in its .toml."
        )
    if found is None or asked not in (None, found):
        told = f"those of head {asked!r}" if asked else "those of YuNet, SCRFD or RetinaFace"
        raise InputError(
            f"{where}: its outputs are not {told} ({shapes}, for an image of {size[0]} x {size[1]}); name the outputs "
            "of scores, boxes and points in the .toml beside it (docs/how-to/photos.md)."
        )
    if found == "retinaface":
        return _head_of_priors(outputs, size, settings, where)
    groups = _groups(outputs, size, settings, where, found)
    decode = decode_yunet if found == "yunet" else decode_scrfd
    usual: tuple[str, tuple[float, ...], tuple[float, ...]] = ("bgr", (0.0,), (1.0,))
    if found == "scrfd":
        usual = "rgb", (127.5,), (128.0,)
    return Head(found, lambda rows, shape, least: decode(groups, rows, shape, least), *usual)


def decode_yunet(groups: Sequence[Group], outputs: Rows, size: tuple[int, int], least: float) -> Candidates:
    """Read YuNet's outputs, as OpenCV's FaceDetectorYN does (modules/objdetect/src/face_detect.cpp).

    The score is the geometric mean of class and objectness. Centres and points are offsets from the corner of a cell,
    sides logarithms, all in strides.
    """
    parts = []
    for group in groups:
        first, second = (np.clip(outputs[name][:, 0], 0, 1) for name in group.scores)
        scores = np.sqrt(first * second)
        chosen = np.flatnonzero(scores > least)
        corners = _cells(chosen, group.stride, size)
        box = outputs[group.boxes][chosen]
        centres, sides = corners + box[:, :2], np.exp(box[:, 2:])
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        points = corners[:, None] + outputs[group.points][chosen].reshape(-1, POINTS, 2)
        parts.append(Candidates(boxes * group.stride, points * group.stride, scores[chosen]))
    return joined(parts)


def decode_scrfd(groups: Sequence[Group], outputs: Rows, size: tuple[int, int], least: float) -> Candidates:
    """Read SCRFD's outputs (Guo et al., 2021; insightface/python-package/insightface/model_zoo/scrfd.py).

    Boxes are distances from the corner of the cell to the four sides, points offsets from it, all in strides; the
    anchors of a cell follow each other.
    """
    parts = []
    for group in groups:
        scores = outputs[group.scores[0]][:, 0]
        chosen = np.flatnonzero(scores > least)
        corners = _cells(chosen // group.anchors, group.stride, size)
        distances = outputs[group.boxes][chosen]
        boxes = np.concatenate([corners - distances[:, :2], corners + distances[:, 2:]], axis=1)
        points = corners[:, None] + outputs[group.points][chosen].reshape(-1, POINTS, 2)
        parts.append(Candidates(boxes * group.stride, points * group.stride, scores[chosen]))
    return joined(parts)


def priors_of(size: tuple[int, int], settings: DetectorSettings) -> np.ndarray:
    """Return RetinaFace's priors (n, 4) float32, centre and sides in pixels: strides, then rows, columns, anchors."""
    height, width = size
    parts = []
    for stride, sides in zip(settings.strides, settings.anchors, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        y, x, side = np.meshgrid(
            (np.arange(rows) + 0.5) * stride,
            (np.arange(columns) + 0.5) * stride,
            np.array(sides, float),
            indexing="ij",
        )
        parts.append(np.stack([x, y, side, side], axis=-1).reshape(-1, 4))
    return np.concatenate(parts).astype(np.float32)


def _head_of_priors(outputs: Rows, size: tuple[int, int], settings: DetectorSettings, where: str) -> Head:
    """Read RetinaFace's outputs (Deng et al., 2020; github.com/biubug6/Pytorch_Retinaface, utils/box_utils.py).

    Boxes and points are offsets from a prior: centres and points in its sides times the first variance, sides as
    logarithms times the second. Classes are probabilities, or numbers before a softmax.
    """
    names = {rows.shape[1]: name for name, rows in outputs.items()}
    if len(settings.anchors) != len(settings.strides):
        raise InputError(
            f"{where}: {counted(len(settings.anchors), 'list')} of anchors for "
            f"{counted(len(settings.strides), 'stride')}; give one per "
            "stride."
        )
    found, wanted = len(outputs[names[4]]), len(priors_of(size, settings))
    if found != wanted:
        raise InputError(
            f"{where}: gives {found:,} candidates for an image of {size[0]} x {size[1]}, and anchors "
            f"{[list(sides) for sides in settings.anchors]} at strides {list(settings.strides)} are {wanted:,}; set "
            "anchors and strides in the .toml beside it."
        )
    centre, side = settings.variances
    known: dict[tuple[int, int], np.ndarray] = {}

    def decode(rows: Rows, shape: tuple[int, int], least: float) -> Candidates:
        if shape not in known:
            known.clear()  # of one size at a time: photos of a camera are alike
            known[shape] = priors_of(shape, settings)
        classes = rows[names[2]]
        if np.abs(classes.sum(axis=1) - 1).max(initial=0) > SUMS_TO_ONE or classes.min(initial=0) < 0:
            classes = _softmax(classes)
        chosen = np.flatnonzero(classes[:, 1] > least)
        prior = known[shape][chosen]
        box = rows[names[4]][chosen]
        centres = prior[:, :2] + box[:, :2] * centre * prior[:, 2:]
        sides = prior[:, 2:] * np.exp(box[:, 2:] * side)
        boxes = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1)
        points = rows[names[10]][chosen].reshape(-1, POINTS, 2) * centre * prior[:, None, 2:]
        return Candidates(boxes, points + prior[:, None, :2], classes[chosen, 1])

    return Head("retinaface", decode, "bgr", (104.0, 117.0, 123.0), (1.0,))


def _head_of_faces(outputs: Rows, settings: DetectorSettings, where: str) -> Head:
    """Read outputs that are faces already, of any of the forms that the .toml can say."""
    told = settings.outputs
    assert told is not None
    places = {name: _columns(getattr(told, name), outputs, where) for name in ("scores", "boxes", "points")}

    def values(rows: Rows, which: str) -> np.ndarray:
        name, columns = places[which]
        return rows[name][:, columns]

    if (found := values(outputs, "boxes").shape[1]) != 4:
        raise InputError(f"{where}: outputs.boxes has {counted(found, 'column')}; 4 are needed.")
    width = values(outputs, "points").shape[1]
    per_point = settings.point_values or (3 if width % 2 else 2)
    count = width // per_point
    if width % per_point or max(settings.point_order) >= count:
        raise InputError(
            f"{where}: outputs.points has {counted(width, 'column')}, {per_point} per point, and point_order "
            "names point "
            f"{max(settings.point_order)}, counted from 0; set point_values (2 for x and y, 3 with a score) and "
            "point_order in the .toml beside it."
        )

    def decode(rows: Rows, shape: tuple[int, int], least: float) -> Candidates:
        boxes = values(rows, "boxes")
        scores = (
            values(rows, "scores").reshape(len(boxes), -1) if len(boxes) else np.zeros((0, 1), np.float32)
        )
        if settings.activation == "softmax":
            scores = _softmax(scores)
        elif settings.activation == "sigmoid":
            scores = 1 / (1 + np.exp(-scores))
        scores = scores[:, -1]
        chosen = np.flatnonzero(scores > least)
        boxes = boxes[chosen]
        points = values(rows, "points")[chosen].reshape(len(chosen), count, per_point)
        points = points[:, list(settings.point_order), :2]
        if settings.units == "relative":
            sides = np.array(shape[::-1], np.float32)
            boxes, points = boxes * np.tile(sides, 2), points * sides
        first, second = boxes[:, :2], boxes[:, 2:]
        if settings.box_format == "cxcywh":
            first, second = first - second / 2, first + second / 2
        elif settings.box_format == "xywh":
            second = first + second
        return Candidates(np.concatenate([first, second], axis=1), points, scores[chosen])

    return Head("decoded", decode, "rgb", (0.0,), (255.0,))


def joined(parts: Sequence[Candidates]) -> Candidates:
    """Return candidates one after the other."""
    return Candidates(
        np.concatenate([part.boxes for part in parts]).astype(np.float32),
        np.concatenate([part.points for part in parts]).astype(np.float32),
        np.concatenate([part.scores for part in parts]).astype(np.float32),
    )


def _cells(numbers: np.ndarray, stride: int, size: tuple[int, int]) -> np.ndarray:
    """Return the column and row (m, 2) float32 of cells of a picture, counted row by row."""
    columns = -(-size[1] // stride)
    return np.stack([numbers % columns, numbers // columns], axis=1).astype(np.float32)


def _groups(
    outputs: Rows, size: tuple[int, int], settings: DetectorSettings, where: str, head: str
) -> list[Group]:
    """Put outputs of as many rows together, and find which stride they are of, and how many anchors a cell has."""
    lengths = sorted({len(rows) for rows in outputs.values()}, reverse=True)
    asked = sorted(settings.strides) if "strides" in settings.given else None
    if asked is not None and len(asked) != len(lengths):
        raise InputError(
            f"{where}: has outputs of {len(lengths)} strides, and strides = {asked} in its .toml."
        )
    for anchors in (1,) if head == "yunet" else range(1, MOST_ANCHORS + 1):
        strides = [
            next(
                (
                    stride
                    for stride in (asked or STRIDES)
                    if anchors * -(-size[0] // stride) * -(-size[1] // stride) == n
                ),
                0,
            )
            for n in lengths
        ]
        if 0 not in strides:
            break
    else:
        raise InputError(
            f"{where}: outputs of {', '.join(map(str, lengths))} rows for an image of {size[0]} x {size[1]} fit no "
            "strides that are powers of two; set strides in the .toml beside it."
        )
    groups = []
    for stride, n in zip(strides, lengths, strict=True):
        names = [name for name, rows in outputs.items() if len(rows) == n]
        width = {name: outputs[name].shape[1] for name in names}
        scores = tuple(name for name in names if width[name] == 1)
        boxes, points = (next(name for name in names if width[name] == columns) for columns in (4, 10))
        groups.append(Group(stride, anchors, scores, boxes, points))
    return groups


def _columns(text: str, outputs: Mapping[str, np.ndarray], where: str) -> tuple[str, slice]:
    """Return the output and the columns that "name[first:stop]" means."""
    match = COLUMNS.fullmatch(text)
    name = text if text in outputs or match is None else match["name"]
    if name not in outputs:
        raise InputError(
            f"{where}: has no output {name!r}, which [outputs] names; it has {', '.join(outputs)}."
        )
    if name == text or match is None or match["first"] is None:
        return name, slice(None)
    first = int(match["first"])
    columns = slice(first, int(match["stop"]) if match["stop"] else first + 1)
    if not columns.start < columns.stop <= outputs[name].shape[1]:
        raise InputError(
            f"{where}: output {name!r} has {counted(outputs[name].shape[1], 'column')}, and no {text!r}, which "
            "[outputs] names."
        )
    return name, columns


def _softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(axis=1, keepdims=True, initial=-np.inf))
    return powers / powers.sum(axis=1, keepdims=True)
