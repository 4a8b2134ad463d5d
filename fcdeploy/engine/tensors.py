"""What goes into and comes out of an engine: names, axes, dtypes, and the one check of what it is given."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Annotated, Protocol, Self, TypeVar

import numpy as np
from msgspec import Meta

from fcdeploy.data.typed import typed
from fcdeploy.engine.batching import Rows
from fcdeploy.errors import FcdeployError

K = TypeVar("K")
Axis = Annotated[str, Meta(min_length=1)] | Annotated[int, Meta(ge=1, le=2**31 - 1)]
DTYPES = (
    "bool",
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: an axis is a number, or a name where its length is free (equal names, equal lengths)."""

    name: Annotated[str, Meta(min_length=1)]
    axes: Annotated[tuple[Axis, ...], Meta(min_length=1, description="a list of names and lengths")]
    dtype: Annotated[str, Meta(pattern=rf"^({'|'.join(DTYPES)})\Z", description=", ".join(DTYPES))] = (
        "float32"
    )

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.axes))}) {self.dtype}"

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "axes": list(self.axes), "dtype": self.dtype}


@dataclass(frozen=True)
class PassSpec:
    """One graph of a bundle: ``encode`` over rows, ``neighborhood`` over groups of rows, and so on.

    An axis called m or b that outputs start with counts things that do not meet in the graph: an engine may take them
    in parts. Call an axis otherwise where they do.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def as_dict(self) -> dict[str, object]:
        return {
            "inputs": [tensor.as_dict() for tensor in self.inputs],
            "outputs": [tensor.as_dict() for tensor in self.outputs],
        }


def pass_over_rows(name: str, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> PassSpec:
    """Describe a pass whose tensors are m rows of these widths."""
    tensors = (
        tuple(TensorSpec(tensor, ("m", width)) for tensor, width in side.items())
        for side in (inputs, outputs)
    )
    return PassSpec(name, *tensors)


@dataclass(frozen=True)
class Timing:
    """Seconds that one evaluation took: on the host before and after it, copying to and from the device, computing."""

    host: float
    copies: float
    compute: float

    @property
    def total(self) -> float:
        return self.host + self.copies + self.compute


Feeds = Mapping[str, np.ndarray | Rows]  # by the names of inputs


@dataclass(frozen=True)
class Place:
    """Where a contiguous array of float32 lies in the memory of an engine's device: its address and shape."""

    address: int
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def rows(self, start: int, stop: int) -> "Place":
        """Return the place of some rows."""
        row = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        return Place(self.address + start * row, (stop - start, *self.shape[1:]), self.dtype)


Places = Mapping[str, Place]  # by the names of inputs or outputs


class Engine(Protocol):
    """One loaded graph; a ``with`` frees it. The arrays that ``run`` returns are new each time and yours to keep.

    provider: what computes it, ONNX Runtime's name of the execution provider that opened or the flavour of TensorRT.
    """

    spec: PassSpec
    provider: str

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Evaluate the graph; raises FcdeployError when ``feeds`` is not what ``spec`` says."""

    def run_each(self, batches: Iterable[tuple[K, Feeds]]) -> Iterator[tuple[K, dict[str, np.ndarray]]]:
        """Evaluate batches in order; each comes with a key, which comes back with its results.

        Batches are made in a thread of their own, ahead of those that are computed.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class DeviceEngine(Engine, Protocol):
    """An engine that takes arrays as they lie in the memory of its device."""

    def run_there(self, inputs: Places, outputs: Places) -> None:
        """Evaluate the graph from arrays on its device to others there, which are complete when this returns.

        What writes the inputs must be done. Raises FcdeployError when they are not what ``spec`` says.
        """


TensorSpecs = Annotated[tuple[TensorSpec, ...], Meta(min_length=1, description="a list of tensors")]


@dataclass(frozen=True)
class Tensors:
    """What goes into and comes out of a pass."""

    inputs: TensorSpecs
    outputs: TensorSpecs


def pass_from_dict(name: str, fields: Mapping[str, object]) -> PassSpec:
    """Read what ``PassSpec.as_dict`` wrote; raises InputError when it is something else."""
    tensors = typed(Tensors, fields, f"pass {name}", open_ended=True)
    return PassSpec(name, tensors.inputs, tensors.outputs)


INDEPENDENT = ("m", "b")


def divisible_axis(spec: PassSpec) -> str | None:
    """Return the axis along which a pass may be evaluated in parts with the same result, if it has one.

    Every output starts with it and so does the first input; inputs without it are the same for all parts.
    """
    axis = spec.inputs[0].axes[0] if spec.inputs[0].axes else None
    if axis not in INDEPENDENT or not all(tensor.axes[:1] == (axis,) for tensor in spec.outputs):
        return None
    alone = all(axis not in tensor.axes[1:] for tensor in spec.inputs + spec.outputs)
    return str(axis) if alone else None


def check_places(inputs: Places, outputs: Places, spec: PassSpec, where: str) -> None:
    """Raise FcdeployError unless places are of exactly the inputs and outputs of ``spec``, of lengths that fit."""
    names = {tensor.name for tensor in spec.inputs} & {tensor.name for tensor in spec.outputs}
    assert not names, names
    check_feeds({**inputs, **outputs}, (*spec.inputs, *spec.outputs), where)


def check_feeds(feeds: Feeds | Places, inputs: Sequence[TensorSpec], where: str) -> None:
    """Raise FcdeployError unless ``feeds`` holds exactly ``inputs``: names, dtypes, ranks and lengths."""
    if feeds.keys() != {spec.name for spec in inputs}:
        expected = ", ".join(spec.name for spec in inputs)
        raise FcdeployError(f"{where}: expected the inputs {expected}; found {', '.join(feeds) or 'none'}.")
    lengths: dict[str, int] = {}
    for spec in inputs:
        array = feeds[spec.name]
        fits = array.dtype == spec.dtype and array.ndim == len(spec.axes)
        for axis, length in zip(spec.axes, array.shape, strict=False):
            fits &= length == (axis if isinstance(axis, int) else lengths.setdefault(axis, length))
        if not fits:
            known = ", ".join(f"{name} = {length}" for name, length in lengths.items())
            raise FcdeployError(
                f"{where}: expected {spec}{f' with {known}' if known else ''}; found {array.shape} {array.dtype}."
            )
