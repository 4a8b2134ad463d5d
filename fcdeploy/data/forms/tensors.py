"""Features that are tensors: ``.pt`` and ``.safetensors``, mapped in place, without PyTorch."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.forms.numpy_files import choose_array
from fcdeploy.data.forms.shape import as_rows
from fcdeploy.data.rows import Bfloat16, Rows
from fcdeploy.data.torch_file import (
    DTYPES,
    DamagedError,
    Opaque,
    Tensor,
    TorchFile,
    read_safetensors_file,
    read_torch_file,
)
from fcdeploy.errors import InputError

LARGEST_PICKLE = 64 << 20  # bytes; tensors' values are not in it
SAVE = "save tensors alone: torch.save(features.cpu(), 'features.pt')"


def read_torch(path: Path, name: str, dim: int | None, column: str | None) -> tuple[Rows, str]:
    """Return the features of a ``.pt`` file, and the key they are under ("" where the file is one tensor).

    The file holds a tensor, a dictionary with tensors, or a list of rows. Raises InputError for anything else.
    """
    try:
        file = read_torch_file(path, LARGEST_PICKLE)
    except DamagedError as error:
        reason = str(error) or "the file is cut short or of another form"
        raise InputError(f"{name}: not a readable file of tensors ({reason}); {SAVE}.") from error
    if file.wanted:
        raise InputError(
            f"{name}: is a pickle that wants to import {file.wanted[0]}, and only tensors are loaded; {SAVE}."
        )
    if isinstance(file.found, (list, tuple)):
        return _stacked(file, file.found, name, dim), ""
    if isinstance(file.found, dict):
        return _of_several(file, file.found, name, dim, column)
    if not isinstance(file.found, Tensor):
        kind = file.found.name if isinstance(file.found, Opaque) else type(file.found).__name__
        raise InputError(f"{name}: holds a {kind} and no tensor; {SAVE}.")
    if column is not None:
        raise InputError(f"{name}: is a single tensor; leave out --column {column}.")
    return _rows(file, file.found, name, dim), ""


def read_safetensors(path: Path, name: str, dim: int | None, column: str | None) -> tuple[Rows, str]:
    """Return the features of a ``.safetensors`` file and the key they are under."""
    try:
        file = read_safetensors_file(path)
    except DamagedError as error:
        raise InputError(f"{name}: not a readable .safetensors file ({error}).") from error
    assert isinstance(file.found, dict)
    return _of_several(file, file.found, name, dim, column)


def _of_several(
    file: TorchFile, found: Mapping[object, object], name: str, dim: int | None, column: str | None
) -> tuple[Rows, str]:
    tensors = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    described = {key: (tensor.shape, _described(tensor)) for key, tensor in tensors.items()}
    key = choose_array(described, name, column, "a file of tensors")
    return _rows(file, tensors[key], f"{name}, '{key}'", dim), key


def _described(tensor: Tensor) -> np.dtype | str:
    """Return a tensor's dtype as it is shown; "other" where features are not kept in it."""
    dtype = DTYPES.get(tensor.kind, "other")
    return dtype if dtype in ("bfloat16", "other") else np.dtype(dtype)


def _rows(file: TorchFile, tensor: Tensor, name: str, dim: int | None) -> Rows:
    try:
        rows = as_rows(file.stored(tensor), name, dim)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"{name}: the tensor {reason_of(error)}; {SAVE}.") from error
    return Bfloat16(rows) if DTYPES[tensor.kind] == "bfloat16" else rows


def _stacked(file: TorchFile, found: Sequence[object], name: str, dim: int | None) -> np.ndarray:
    """Return a list of tensors, each a row or some rows, as one array."""
    tensors = [each for each in found if isinstance(each, Tensor)]
    if not tensors or len(tensors) < len(found):
        raise InputError(f"{name}: holds a list of other things than tensors; {SAVE}.")
    blocks: list[np.ndarray] = []
    for at, tensor in enumerate(tensors):
        if len(tensor.shape) == 1:
            tensor = replace(tensor, shape=(1, *tensor.shape), strides=(0, *tensor.strides))
        rows = np.asarray(_rows(file, tensor, f"{name}, tensor {at:,} of the list", dim)[:])
        if blocks and rows.shape[1] != blocks[0].shape[1]:
            raise InputError(
                f"{name}: tensor {at:,} of the list (counted from 0) is {rows.shape[1]} wide, those before it "
                f"{blocks[0].shape[1]}; all rows must have the same width."
            )
        blocks.append(rows)
    return np.concatenate(blocks)
