"""What goes into and comes out of an engine: names, axes, dtypes, and the one check of what it is given."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fcdeploy.errors import FcdeployError, InputError


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: an axis is a number, or a name where its length is free (equal names, equal lengths)."""

    name: str
    axes: tuple[str | int, ...]
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(map(str, self.axes))}) {self.dtype}"

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "axes": list(self.axes), "dtype": self.dtype}


@dataclass(frozen=True)
class PassSpec:
    """One graph of a bundle: ``encode`` over rows, ``neighborhood`` over groups of rows, and so on."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "inputs": [tensor.as_dict() for tensor in self.inputs],
            "outputs": [tensor.as_dict() for tensor in self.outputs],
        }


def pass_from_dict(name: str, fields: Mapping[str, Any]) -> PassSpec:
    """Read what ``PassSpec.as_dict`` wrote; raises InputError when it is something else."""
    try:
        inputs, outputs = (
            tuple(
                TensorSpec(
                    str(t["name"]), tuple(a if isinstance(a, int) else str(a) for a in t["axes"]), t["dtype"]
                )
                for t in fields[side]
            )
            for side in ("inputs", "outputs")
        )
        for tensor in inputs + outputs:
            np.dtype(tensor.dtype)
    except (KeyError, TypeError) as error:
        raise InputError(f"pass {name}: its tensors are not described as expected ({error!r}).") from error
    return PassSpec(name, inputs, outputs)


def check_feeds(feeds: Mapping[str, np.ndarray], inputs: Sequence[TensorSpec], where: str) -> None:
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
