"""Any ONNX face embedder: what the graph says of its input, what its user has to say, and batches through it.

An embedder takes an input of four axes, pictures, and gives a row per picture; whatever else it takes are constants.
What pixels become is ``(pixel - mean) / scale``, pixels being 0..255.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, TypeAlias

import numpy as np
from msgspec import Meta

from fcdeploy.data.toml import table_from_toml
from fcdeploy.data.typed import typed
from fcdeploy.engine.onnx_file import model_files
from fcdeploy.engine.onnxruntime import open_session, run_error
from fcdeploy.errors import FcdeployError, InputError, counted

if TYPE_CHECKING:
    from fcdeploy.engine.onnxruntime import NodeArg

LAYOUTS = ("NCHW", "NHWC")
CHANNELS = {"rgb": 3, "bgr": 3, "gray": 1}
SIZE = (112, 112)  # of aligned crops, by convention
MEAN = SCALE = (127.5,)
LARGEST = float(np.finfo(np.float32).max)  # of mean and scale
BATCH = 32  # pictures per engine call, where the graph leaves it open
MOST = 4096  # of such
DTYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
CONSTANT_DTYPES = DTYPES | {
    "tensor(bool)": np.bool_,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(string)": np.object_,
}
Pixels = Annotated[int, Meta(ge=1, le=4096)]
Number = Annotated[float, Meta(ge=-LARGEST, le=LARGEST)]
NUMBERS = "a number, or a list of one a channel"
Numbers = Annotated[Number | tuple[Number, ...] | None, Meta(description=NUMBERS)]
ALIKE = 1e-3  # of its length: how far an embedding may move with the pictures beside it, by rounding


# The value of an input that is no picture, or values in it.
Constant: TypeAlias = "bool | int | float | str | tuple[Constant, ...]"


@dataclass(frozen=True)
class EmbedderSettings:
    """What a graph does not say of itself; None means what the graph says, or the default.

    layout: 'NCHW' or 'NHWC'. size: (height, width) of the input. channels: 'rgb', 'bgr' or 'gray'. mean, scale: one
    number, or one a channel in the order of ``channels``. output_tensor: which of several outputs is the embedding.
    inputs: (name, value) of every further input, in the order of names; a value is a number, a truth value, a text
    or tuples of such.
    """

    layout: str | None = None
    size: tuple[int, int] | None = None
    channels: str | None = None
    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    output_tensor: str | None = None
    inputs: tuple[tuple[str, Constant], ...] | None = None


def settings_beside(model: Path) -> EmbedderSettings:
    """Read the settings of ``embedder.onnx`` from ``embedder.toml`` beside it; nothing is set where there is none.

    Raises InputError for an unknown key or a value that is none.
    """
    path = model.with_suffix(".toml")
    if not path.is_file():
        return EmbedderSettings()
    return settings_from_table(table_from_toml(path.read_bytes(), str(path)), str(path))


@dataclass(frozen=True)
class WrittenSettings:
    """``EmbedderSettings`` as they are written: one number for several alike, and names in capitals or without."""

    layout: Annotated[
        Annotated[str, Meta(pattern=r"(?i)^(NCHW|NHWC)\Z")] | None, Meta(description='"NCHW" or "NHWC"')
    ] = None
    # A tuple of fixed length beside a number in a range crashes msgspec 0.22.
    size: Annotated[
        Pixels | Annotated[tuple[Pixels, ...], Meta(min_length=2, max_length=2)] | None,
        Meta(description="a whole number of pixels (1 to 4096) or [height, width]"),
    ] = None
    channels: Annotated[
        Annotated[str, Meta(pattern=r"(?i)^(rgb|bgr|gray)\Z")] | None,
        Meta(description='"rgb" or "bgr" or "gray"'),
    ] = None
    mean: Numbers = None
    scale: Numbers = None
    output_tensor: Annotated[
        Annotated[str, Meta(min_length=1)] | None, Meta(description="the name of an output")
    ] = None
    inputs: Annotated[dict[str, object] | None, Meta(description="a table: name of an input = its value")] = (
        None
    )


def settings_from_table(table: Mapping[str, object], where: str) -> EmbedderSettings:
    """Turn plain values into settings; raises InputError that says ``where`` an unknown key or value stood."""
    written = typed(WrittenSettings, dict(table), where)
    inputs, size = written.inputs, written.size
    try:
        constants = tuple(sorted((name, _plain(value)) for name, value in (inputs or {}).items()))
    except ValueError as error:
        raise InputError(f"{where}: inputs should be {error}, found {inputs!r}.") from error
    mean, scale = ((value,) if isinstance(value, float) else value for value in (written.mean, written.scale))
    for name, numbers in (("mean", mean), ("scale", scale)):
        if numbers is not None and len(numbers) not in (1, 3):
            raise InputError(f"{where}: {name} should be {NUMBERS}, found {list(numbers)}.")
    if scale and 0 in scale:
        raise InputError(f"{where}: a scale of 0 is not possible; pixels are divided by it.")
    return EmbedderSettings(
        layout=written.layout and written.layout.upper(),
        size=None if size is None else (size, size) if isinstance(size, int) else (size[0], size[1]),
        channels=written.channels and written.channels.lower(),
        mean=mean,
        scale=scale,
        output_tensor=written.output_tensor,
        inputs=None if inputs is None else constants,
    )


def overridden(settings: EmbedderSettings, given: EmbedderSettings) -> EmbedderSettings:
    """Return ``settings`` with whatever is set in ``given`` instead; inputs are replaced by name."""
    names = [field.name for field in dataclasses.fields(given)]
    fields = {name: value for name in names if (value := getattr(given, name)) is not None}
    if given.inputs is not None:
        fields["inputs"] = tuple(sorted((dict(settings.inputs or ()) | dict(given.inputs)).items()))
    return dataclasses.replace(settings, **fields)


class Embedder:
    """A loaded embedder; a ``with`` frees it.

    dim: width of its embeddings; batch: pictures per call, always as many: those that the graph declares, else those
    asked for, else (where the graph cannot take so many after all) one. size, channels, layout: what it wants its
    pictures to be. provider: the execution provider that was opened. side_by_side: whether several threads should call
    it at once, as one picture is too little work for more than one. Raises InputError when the graph is no embedder,
    does not fit the settings, or takes weights from a file that is not there.
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
        model_files(path)
        self._session = open_session(path, threads=threads, device=device, vram=vram)
        self.provider: str = self._session.get_providers()[0]
        tensor = self._pictures(dict(settings.inputs or ()))
        shape = [axis if isinstance(axis, int) and axis > 0 else str(axis) for axis in tensor.shape]
        self._input = tensor.name
        if tensor.type not in DTYPES or len(shape) != 4:
            raise InputError(
                f"{path}: expected an input of images with four axes, found {tensor.name} {shape} {tensor.type}; "
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
        self._output = self._only_output(settings.output_tensor)
        self._constants: dict[str, np.ndarray] = {}
        self.batch, self.dim = self._tried(at["N"], batch or BATCH, dict(settings.inputs or ()))
        self.side_by_side = self.batch == 1 and device == "cpu" and threads != 1
        if self.side_by_side:
            self._session = open_session(path, threads=1, device=device)

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
        batch = len(feed)
        try:
            output = self._session.run([self._output], {self._input: feed, **self._constants})[0]
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise run_error(error, str(self.path)) from error
        if not isinstance(output, np.ndarray) or output.dtype.kind != "f" or not output.size:
            raise self._no_embedding(output, batch)
        if (output.ndim < 2 and batch > 1) or (output.ndim > 1 and output.shape[0] != batch):
            raise self._no_embedding(output, batch)
        if (
            sum(length != 1 for length in output.shape[1:]) > 1
        ):  # of (n, d, 1, 1) and the like, d is the width
            raise self._no_embedding(output, batch)
        return output.reshape(batch, -1).astype(np.float32)

    def _tried(self, declared: int | str, wanted: int, inputs: Mapping[str, Constant]) -> tuple[int, int]:
        """Return how many pictures the graph takes per call, and the width of embeddings.

        Tried on noise, so that what does not fit is found before the work starts. Where the graph's input
        leaves the number open, what its output declares comes after ``wanted``, then 1: graphs that reshape to a
        fixed number of rows say so nowhere else, and others declare an output of one row that they do not keep to.
        """
        output = next(tensor for tensor in self._session.get_outputs() if tensor.name == self._output)
        length = output.shape[0] if output.shape else None
        of_output = [length] if isinstance(length, int) and 0 < length <= MOST else []
        batches = [declared] if isinstance(declared, int) else list(dict.fromkeys([wanted, *of_output, 1]))
        first: InputError | None = None
        for batch in batches:
            self._constants = self._constants_of(inputs, batch)
            try:
                return batch, self._tried_with(batch)
            except InputError as error:
                first = first or error
            except FcdeployError as error:
                told = InputError(
                    f"{str(error).removesuffix('.')}, tried on {(batch, *self.input_shape)} "
                    f"{np.dtype(self._dtype)}; give another --size or --layout."
                )
                told.__cause__ = error
                first = first or told
        assert first is not None
        raise first

    def _tried_with(self, batch: int) -> int:
        """Return the width of embeddings; raises InputError when one changes with the pictures beside it."""
        feed = np.zeros((batch, *self.input_shape), self._dtype)
        pixels = np.random.default_rng(0).integers(0, 256, (batch, *self.size, CHANNELS[self.channels]))
        pictures = [self.prepare(picture.astype(np.uint8)) for picture in pixels]
        feed[0] = pictures[0]
        alone = self._embed(feed)[0].astype(np.float64)
        if batch > 1:
            feed[:] = pictures
            among = self._embed(feed)[0].astype(np.float64)
            with np.errstate(invalid="ignore", over="ignore"):
                moved, length = np.linalg.norm(alone - among), np.linalg.norm(alone)
            if moved > ALIKE * length:
                raise InputError(
                    f"{self.path}: an embedding changes with the other images of its batch of {batch}; export the "
                    "model in evaluation mode (model.eval()), or with a batch axis that is free or 1."
                )
        return len(alone)

    def _no_embedding(self, output: object, batch: int) -> InputError:
        found = f"{output.shape} {output.dtype}" if isinstance(output, np.ndarray) else type(output).__name__
        return InputError(
            f"{self.path}: expected an embedding ({batch}, d) of floats in output {self._output}, found "
            f"{found}; give an ONNX face embedder, or name another output."
        )

    def _pictures(self, inputs: Mapping[str, Constant]) -> "NodeArg":
        """Return the input that takes pictures: the one that has no constant."""
        tensors = self._session.get_inputs()
        names = [tensor.name for tensor in tensors]
        unknown = [name for name in inputs if name not in names]
        if unknown:
            raise InputError(
                f"{self.path}: has no input {unknown[0]!r}, which [inputs] gives a value; it has {', '.join(names)}."
            )
        open_ = [tensor for tensor in tensors if tensor.name not in inputs]
        if not open_:
            raise InputError(
                f"{self.path}: every input has a value in [inputs], and none is left for the images."
            )
        if len(open_) == 1:
            return open_[0]
        images = [tensor for tensor in open_ if tensor.type in DTYPES and len(tensor.shape) == 4]
        others = [tensor for tensor in open_ if tensor not in images[:1]]
        lines = ", ".join(f"{tensor.name} = {_example(tensor.type)}" for tensor in others)
        told = ", ".join(f"{tensor.name} {tensor.shape} {tensor.type}" for tensor in others)
        raise InputError(
            f"{self.path}: takes more inputs than the images: {told}; give each a constant value in "
            f"{self.path.with_suffix('.toml').name} beside it, under [inputs]: {lines}."
        )

    def _constants_of(self, inputs: Mapping[str, Constant], batch: int) -> dict[str, np.ndarray]:
        """Return the arrays of further inputs, of the dtype and shape that the graph declares.

        A first axis that is free is the batch; other free axes are as long as the value, or 1.
        """
        tensors = {tensor.name: tensor for tensor in self._session.get_inputs()}
        arrays = {}
        for name, value in inputs.items():
            tensor = tensors[name]
            if tensor.type not in CONSTANT_DTYPES:
                raise InputError(
                    f"{self.path}: input {name} has the type {tensor.type}, which cannot be a constant."
                )
            dtype = np.dtype(CONSTANT_DTYPES[tensor.type])
            try:
                array = _as_dtype(value, dtype)
                shape = []
                for at, axis in enumerate(tensor.shape):
                    own = at - len(tensor.shape) + array.ndim
                    free = array.shape[own] if own >= 0 else 1
                    shape.append(axis if isinstance(axis, int) else batch if at == 0 and free == 1 else free)
                arrays[name] = np.ascontiguousarray(np.broadcast_to(array, shape)).reshape(shape)
            except ValueError as error:
                raise InputError(
                    f"{self.path}: input {name} is {tensor.shape} {tensor.type}; the value {_shown(value)} in [inputs] "
                    f"does not fit ({error})."
                ) from None
        return arrays

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

    def _layout(self, shape: Sequence[int | str], given: str | None) -> str:
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
            f"{self.path}: its input {shape} does not tell which axis holds the channels; give --layout NCHW or NHWC."
        )

    def _size(self, at: Mapping[str, int | str], given: tuple[int, int] | None) -> tuple[int, int]:
        wanted = given or SIZE
        size = tuple(
            length if isinstance(found := at[axis], str) else found
            for axis, length in zip("HW", wanted, strict=True)
        )
        if given is not None and size != given:
            raise InputError(
                f"{self.path}: its input is {at['H']} x {at['W']} (height x width), not {given[0]} x {given[1]}; "
                "leave out the size."
            )
        return size[0], size[1]

    def _channels(self, at: Mapping[str, int | str], given: str | None) -> str:
        count = at["C"] if isinstance(at["C"], int) else CHANNELS[given or "rgb"]
        channels = given or ("rgb" if count == 3 else "gray")
        if CHANNELS[channels] != count:
            raise InputError(f"{self.path}: its input has {counted(count, 'channel')}, not {channels}.")
        return channels

    def _numbers(self, given: tuple[float, ...] | None, default: tuple[float, ...], name: str) -> np.ndarray:
        numbers = np.array(given or default, np.float32)
        if len(numbers) not in (1, CHANNELS[self.channels]):
            raise InputError(
                f"{self.path}: {counted(len(numbers), 'number')} of {name} for "
                f"{counted(CHANNELS[self.channels], 'channel')}; give one, or "
                "one per channel."
            )
        return numbers


def _bracketed(text: str) -> str:
    return f"[{text}]" if "," in text else text


def _plain(value: object) -> Constant:
    """Return a constant as Python's own numbers and texts, in tuples."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return tuple(map(_plain, value))
    if not isinstance(value, bool | int | float | str):
        raise ValueError("a table of numbers, true, false, strings or arrays of these")
    return value


def _as_dtype(value: Constant, dtype: np.dtype) -> np.ndarray:
    """Return a constant as an array; raises ValueError when the dtype cannot hold it as it is."""
    array = np.array(value)  # of ragged tuples ValueError
    kinds = {"O": "U", "b": "b", "f": "iuf"}.get(dtype.kind, "iu")
    if array.dtype.kind not in kinds and array.size:
        raise ValueError(f"expected {'text' if dtype.kind == 'O' else dtype.name}")
    if dtype.kind in "iu" and array.size:
        limits = np.iinfo(dtype)
        if int(array.min()) < limits.min or int(array.max()) > limits.max:
            raise ValueError(f"{dtype.name} goes from {limits.min} to {limits.max}")
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def _example(kind: str) -> str:
    return {"tensor(bool)": "false", "tensor(string)": '""'}.get(kind, "0")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 60 else f"{text[:60]}..."
