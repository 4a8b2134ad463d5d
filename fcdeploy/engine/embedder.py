"""Any ONNX face embedder: what the graph says of its input, what its user has to say, and batches through it.

An embedder takes one input of four axes, pictures, and gives a row a picture. What pixels become is
``(pixel - mean) / scale``, pixels being 0..255.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from fcdeploy.data.toml import table_from_toml
from fcdeploy.engine.onnxruntime import open_session, run_error
from fcdeploy.errors import FcdeployError, InputError

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
SIZE = (112, 112)  # of aligned crops, by convention
MEAN = SCALE = (127.5,)
LARGEST = float(np.finfo(np.float32).max)  # of mean and scale
BATCH = 32  # pictures an engine call, where the graph leaves it open
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}


@dataclass(frozen=True)
class EmbedderSettings:
    """What a graph does not say of itself; None means what the graph says, or the default.

    layout: 'NCHW' or 'NHWC'. size: (height, width) of the input. channels: 'rgb', 'bgr' or 'gray'. mean, scale: one
    number, or one a channel in the order of ``channels``. output_tensor: which of several outputs is the embedding.
    """

    layout: str | None = None
    size: tuple[int, int] | None = None
    channels: str | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    output_tensor: str | None = None


def settings_beside(model: Path) -> EmbedderSettings:
    """Read the settings of ``embedder.onnx`` from ``embedder.toml`` beside it; nothing is set where there is none.

    Raises InputError for an unknown key or a value that is none.
    """
    path = model.with_suffix(".toml")
    if not path.is_file():
        return EmbedderSettings()
    return settings_from_table(table_from_toml(path.read_bytes(), str(path)), str(path))


def settings_from_table(table: dict[str, Any], where: str) -> EmbedderSettings:
    """Turn plain values into settings; raises InputError that says ``where`` an unknown key or value stood."""
    known = [field.name for field in dataclasses.fields(EmbedderSettings)]
    for key in table:
        if key not in known:
            raise InputError(f"{where}: unknown key '{key}'; known here: {', '.join(known)}.")
    readers = {
        "layout": _layout,
        "size": _size,
        "channels": _channels,
        "mean": _numbers,
        "scale": _numbers,
        "output_tensor": _text,
    }
    values: dict[str, Any] = {}
    for key, value in table.items():
        try:
            values[key] = readers[key](value)
        except ValueError as error:
            raise InputError(f"{where}: {key} should be {error}, found {value!r}.") from error
    if any(number == 0 for number in values.get("scale", ())):
        raise InputError(f"{where}: a scale of 0 is not possible; pixels are divided by it.")
    return EmbedderSettings(**values)


def overridden(settings: EmbedderSettings, given: EmbedderSettings) -> EmbedderSettings:
    """Return ``settings`` with whatever is set in ``given`` instead."""
    fields = {name: value for name, value in dataclasses.asdict(given).items() if value is not None}
    return dataclasses.replace(settings, **fields)


class Embedder:
    """A loaded embedder; a ``with`` frees it.

    dim: width of its embeddings; batch: pictures a call takes, always as many; size, channels, layout: what it wants
    its pictures to be. Raises InputError when the graph is no embedder, or does not fit the settings.
    """

    def __init__(
        self,
        path: Path,
        settings: EmbedderSettings,
        *,
        batch: int | None = None,
        threads: int = 0,
        device: str = "cpu",
        vram: int = 0,
    ) -> None:
        self.path = path
        self._session = open_session(path, threads=threads, device=device, vram=vram)
        tensor = self._only_input()
        shape = [axis if isinstance(axis, int) and axis > 0 else str(axis) for axis in tensor.shape]
        self._input = tensor.name
        if tensor.type not in DTYPES or len(shape) != 4:
            raise InputError(
                f"{path}: expected an input of pictures with four axes, found {tensor.name} {shape} {tensor.type}; "
                "give an ONNX face embedder."
            )
        self._dtype = DTYPES[tensor.type]
        self.layout = self._layout(shape, settings.layout)
        at = {axis: shape[self.layout.index(axis)] for axis in "NCHW"}
        self.size = self._size(at, settings.size)
        self.channels = self._channels(at, settings.channels)
        self.mean = self._numbers(settings.mean, MEAN, "mean")
        self.scale = self._numbers(settings.scale, SCALE, "scale")
        self._set = {name for name in ("mean", "scale") if getattr(settings, name) is not None}
        if self._dtype is np.uint8 and self._set:
            raise InputError(
                f"{path}: takes pixels as they are (uint8); leave out {' and '.join(sorted(self._set))}."
            )
        self.batch = at["N"] if isinstance(at["N"], int) else batch or BATCH
        self._output = self._only_output(settings.output_tensor)
        self.dim = self._tried()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one picture as the graph takes it."""
        lengths = {"C": CHANNELS[self.channels], "H": self.size[0], "W": self.size[1]}
        return tuple(lengths[axis] for axis in self.layout[1:])

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Turn one picture, (height, width, c) uint8, into what the graph takes, ``input_shape``."""
        if self._dtype is np.uint8:
            values = pixels
        else:
            # In float32, subtracted and divided as embedders are trained with.
            values = ((pixels.astype(np.float32) - self.mean) / self.scale).astype(self._dtype)
        return values.transpose(2, 0, 1) if self.layout == "NCHW" else values

    def embed(self, pictures: Sequence[np.ndarray]) -> np.ndarray:
        """Return the embeddings (m, d) float32 of m prepared pictures, at most ``batch``.

        The graph always sees a whole batch, filled up with zeros, so that what else is in it changes no bit.
        """
        feed = np.zeros((self.batch, *self.input_shape), self._dtype)
        for at, picture in enumerate(pictures):
            feed[at] = picture
        return self._embed(feed)[: len(pictures)]

    def describe(self) -> str:
        """Say in a line what pictures become."""
        height, width = self.size
        if self._dtype is np.uint8:
            return f"{self.layout}, {height} x {width} (height x width), {self.channels}, pixels as they are"
        mean, scale = (", ".join(f"{number:g}" for number in values) for values in (self.mean, self.scale))
        assumed = " by default" if not self._set else ""
        return (
            f"{self.layout}, {height} x {width} (height x width), {self.channels}, "
            f"(pixel - {_bracketed(mean)}) / {_bracketed(scale)}{assumed}"
        )

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> "Embedder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _embed(self, feed: np.ndarray) -> np.ndarray:
        try:
            output = self._session.run([self._output], {self._input: feed})[0]
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise run_error(error, str(self.path)) from error
        if output.dtype.kind != "f" or output.size % self.batch or not output.size:
            raise self._no_embedding(output)
        rows = output.reshape(self.batch, -1)
        if output.ndim > 1 and output.shape[0] != self.batch:
            raise self._no_embedding(output)
        if any(length != 1 for length in output.shape[2:]) or (output.ndim < 2 and self.batch > 1):
            raise self._no_embedding(output)
        return rows.astype(np.float32)

    def _tried(self) -> int:
        """Embed a black batch, so that what does not fit is found before the work starts; returns the width."""
        feed = np.zeros((self.batch, *self.input_shape), self._dtype)
        try:
            return int(self._embed(feed).shape[1])
        except InputError:
            raise
        except FcdeployError as error:
            raise InputError(
                f"{str(error).removesuffix('.')}, tried on {feed.shape} {feed.dtype}; say another --size or --layout, "
                "or --batch 1 if it takes one picture at a time."
            ) from error

    def _no_embedding(self, output: np.ndarray) -> InputError:
        return InputError(
            f"{self.path}: expected an embedding ({self.batch}, d) of floats in output {self._output}, found "
            f"{output.shape} {output.dtype}; give an ONNX face embedder, or name another output."
        )

    def _only_input(self) -> Any:
        tensors = self._session.get_inputs()
        if len(tensors) != 1:
            names = ", ".join(tensor.name for tensor in tensors) or "none"
            raise InputError(f"{self.path}: expected one input, pictures, found {names}.")
        return tensors[0]

    def _only_output(self, name: str | None) -> str:
        names = [tensor.name for tensor in self._session.get_outputs()]
        if name is None and len(names) == 1:
            return names[0]
        if name not in names:
            told = "say which is the embedding" if name is None else f"'{name}' is none of them"
            raise InputError(
                f"{self.path}: has the outputs {', '.join(names)}; {told} (output_tensor, --output-tensor)."
            )
        return str(name)

    def _layout(self, shape: list[Any], given: str | None) -> str:
        fitting = [
            layout
            for layout in LAYOUTS
            if not isinstance(shape[layout.index("C")], int) or shape[layout.index("C")] in CHANNELS.values()
        ]
        said = [layout for layout in fitting if isinstance(shape[layout.index("C")], int)]
        if given is not None:
            if given not in fitting:
                raise InputError(f"{self.path}: its input is {shape}, which is not {given}.")
            return given
        if not fitting:
            raise InputError(f"{self.path}: its input {shape} has no axis of 3 channels, or of 1.")
        if len(said) == 1:
            return said[0]
        raise InputError(
            f"{self.path}: its input {shape} does not say which axis holds the channels; say --layout NCHW or NHWC."
        )

    def _size(self, at: dict[str, Any], given: tuple[int, int] | None) -> tuple[int, int]:
        wanted = given or SIZE
        size = tuple(
            at[axis] if isinstance(at[axis], int) else length
            for axis, length in zip("HW", wanted, strict=True)
        )
        if given is not None and size != given:
            raise InputError(
                f"{self.path}: its input is {at['H']} x {at['W']} (height x width), not {given[0]} x {given[1]}; "
                "leave out the size."
            )
        return size[0], size[1]

    def _channels(self, at: dict[str, Any], given: str | None) -> str:
        count = at["C"] if isinstance(at["C"], int) else CHANNELS[given or "rgb"]
        channels = given or ("rgb" if count == 3 else "gray")
        if CHANNELS[channels] != count:
            raise InputError(f"{self.path}: its input has {count} channels, which are not {channels}.")
        return channels

    def _numbers(self, given: tuple[float, ...] | None, default: tuple[float, ...], name: str) -> np.ndarray:
        numbers = np.array(given or default, np.float32)
        if len(numbers) not in (1, CHANNELS[self.channels]):
            raise InputError(
                f"{self.path}: {len(numbers)} numbers of {name} for {CHANNELS[self.channels]} channels; give one, or "
                "one a channel."
            )
        return numbers


def embedder_digest(path: Path, settings: EmbedderSettings) -> str:
    """Return a hash of an embedder's files and of the settings that were given with it.

    Weights that lie beside the graph belong to it: files whose names begin with the graph's.
    """
    state = hashlib.sha256(repr(settings).encode())
    for file in sorted(path.parent.glob(f"{_escaped(path.name)}*")):
        if file.is_file() and (file == path or file.name[len(path.name)] in "._"):
            with open(file, "rb") as opened:
                state.update(hashlib.file_digest(opened, "sha256").digest())
    return state.hexdigest()


def check_model_path(path: Path) -> None:
    """Raise InputError when ``path`` is no file that can be read."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the .onnx file of a face embedder.")
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the .onnx file of a face embedder.")


def _escaped(name: str) -> str:
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)


def _bracketed(text: str) -> str:
    return f"[{text}]" if "," in text else text


def _layout(value: Any) -> str:
    if not isinstance(value, str) or value.upper() not in LAYOUTS:
        raise ValueError(" or ".join(f'"{layout}"' for layout in LAYOUTS))
    return value.upper()


def _channels(value: Any) -> str:
    if not isinstance(value, str) or value.lower() not in CHANNELS:
        raise ValueError(" or ".join(f'"{name}"' for name in CHANNELS))
    return value.lower()


def _size(value: Any) -> tuple[int, int]:
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or any(type(length) is not int or not 1 <= length <= 4096 for length in pair):
        raise ValueError("a whole number of pixels (1 to 4096) or [height, width]")
    return int(pair[0]), int(pair[1])


def _numbers(value: Any) -> tuple[float, ...]:
    numbers = value if isinstance(value, list | tuple) else (value,)
    if len(numbers) not in (1, 3) or any(
        type(number) not in (int, float) or not -LARGEST <= number <= LARGEST for number in numbers
    ):
        raise ValueError("a number, or a list of one a channel")
    return tuple(float(number) for number in numbers)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("the name of an output")
    return value
