"""What a detector's graph does not say of itself: the settings in a .toml beside it."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from msgspec import Meta

from fcdeploy.data.toml import table_from_toml
from fcdeploy.data.typed import typed
from fcdeploy.engine.embedder import NUMBERS, Numbers, Pixels
from fcdeploy.errors import InputError, counted

Whole = Annotated[int, Meta(ge=1, le=4096)]
Positive = Annotated[float, Meta(gt=0, le=1e6)]
Name = Annotated[str, Meta(min_length=1)]


@dataclass(frozen=True)
class WrittenOutputs:
    """Where a graph whose outputs are faces already has them: an output's name, perhaps with columns behind it."""

    scores: Annotated[Name, Meta(description='the name of an output, or columns of one as in "out[4]"')]
    boxes: Annotated[Name, Meta(description='the name of an output, or columns of one as in "out[0:4]"')]
    points: Annotated[Name, Meta(description='the name of an output, or columns of one as in "out[5:15]"')]


@dataclass(frozen=True)
class DetectorSettings:
    """A detector's settings; None means what the graph says, or what its head is usually trained with.

    head: how outputs are read, see ``detector_heads``. layout, size, channels, mean, scale: of the input, as an
    embedder's. strides: pixels per cell, for each group of outputs. anchors: sides of the priors for each stride, in
    pixels; variances: of their centres and sides. multiple: what the sides of a picture are filled up to a multiple of.
    outputs, box_format, units, activation, transposed, point_values, point_order: of the head "decoded".
    """

    head: Literal["yunet", "scrfd", "retinaface", "decoded"] | None = None
    layout: Annotated[Literal["NCHW", "NHWC"] | None, Meta(description='"NCHW" or "NHWC"')] = None
    # A tuple of fixed length beside a number in a range crashes msgspec 0.22.
    size: Annotated[
        Pixels | Annotated[tuple[Pixels, ...], Meta(min_length=2, max_length=2)] | None,
        Meta(description="a whole number of pixels (1 to 4096) or [height, width]"),
    ] = None
    channels: Annotated[Literal["rgb", "bgr"] | None, Meta(description='"rgb" or "bgr"')] = None
    mean: Numbers = None
    scale: Numbers = None
    multiple: Whole = 32
    strides: tuple[Whole, ...] = (8, 16, 32)
    anchors: tuple[tuple[Positive, ...], ...] = ((16, 32), (64, 128), (256, 512))
    variances: Annotated[
        tuple[Positive, ...], Meta(min_length=2, max_length=2, description="two numbers, [0.1, 0.2]")
    ] = (0.1, 0.2)
    outputs: WrittenOutputs | None = None
    box_format: Literal["xyxy", "xywh", "cxcywh"] = "xyxy"
    units: Literal["pixels", "relative"] = "pixels"
    activation: Literal["none", "sigmoid", "softmax"] | None = None
    transposed: bool = False
    point_values: Annotated[Literal[2, 3] | None, Meta(description="2, or 3 with a score per point")] = None
    point_order: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=4095)], ...],
        Meta(min_length=5, max_length=5, description="the numbers, from 0, of five of the model's points"),
    ] = (0, 1, 2, 3, 4)
    given: frozenset[str] = field(default=frozenset(), repr=False, compare=False)

    def numbers(self, name: Literal["mean", "scale"], default: tuple[float, ...]) -> tuple[float, ...]:
        """Return mean or scale, one number or three, in the order of the channels."""
        value = getattr(self, name)
        return default if value is None else (value,) if isinstance(value, float) else value

    @property
    def height_width(self) -> tuple[int, int] | None:
        """The size of the input, where it was given."""
        if self.size is None or isinstance(self.size, int):
            return None if self.size is None else (self.size, self.size)
        return self.size[0], self.size[1]


def detector_settings_beside(model: Path) -> DetectorSettings:
    """Read the settings of ``detector.onnx`` from ``detector.toml`` beside it; nothing is set where there is none.

    Raises InputError for an unknown key or a value that is none.
    """
    path = model.with_suffix(".toml")
    if not path.is_file():
        return DetectorSettings()
    table = table_from_toml(path.read_bytes(), str(path))
    if "given" in table:
        raise InputError(f"{path}: unknown key 'given'; known here: {', '.join(known_keys())}.")
    settings = typed(DetectorSettings, table, str(path))
    for name in ("mean", "scale"):
        numbers = settings.numbers(name, (1.0,))
        if len(numbers) not in (1, 3):
            raise InputError(f"{path}: {name} should be {NUMBERS}, found {list(numbers)}.")
        if name == "scale" and 0 in numbers:
            raise InputError(f"{path}: a scale of 0 is not possible; pixels are divided by it.")
    if settings.head == "decoded" and settings.outputs is None:
        raise InputError(
            f"{path}: the head 'decoded' needs a table [outputs] with the names of scores, boxes and points."
        )
    if settings.outputs is not None and settings.head not in (None, "decoded"):
        raise InputError(f"{path}: [outputs] is for the head 'decoded'; leave it out for {settings.head!r}.")
    if len(settings.anchors) != len(settings.strides) and settings.head == "retinaface":
        raise InputError(
            f"{path}: {counted(len(settings.anchors), 'list')} of anchors for "
            f"{counted(len(settings.strides), 'stride')}; give one per "
            "stride."
        )
    return dataclasses.replace(settings, given=frozenset(table))


def known_keys() -> list[str]:
    """Return the keys of a detector's .toml."""
    return [each.name for each in dataclasses.fields(DetectorSettings) if each.name != "given"]
