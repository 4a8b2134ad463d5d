"""Checkpoints: the one state_dict inside, under whatever wrapper and prefix, or what the file is instead."""

import itertools
import shlex
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcdeploy.data.damaged import DAMAGED
from fcdeploy.data.forms.content import content_of
from fcdeploy.data.torch_file import (
    DTYPES,
    DamagedError,
    Opaque,
    Tensor,
    TorchFile,
    read_safetensors_file,
    read_torch_file,
)
from fcdeploy.deploy.recognise import ALIKE, likeness
from fcdeploy.errors import InputError, counted

if TYPE_CHECKING:
    import torch

MOST_SHARED = 4  # times that tensors may be larger than the file, where some are one another's
DEEPEST = 32  # wrappers inside each other
MOST_CONTAINERS = 100_000  # of a file that are looked into
DEEPEST_PREFIX, MOST_NAMES = 4, 2000  # where a known network is looked for among others
OPTIMIZER = "param_groups"  # of every optimizer's state
SHOWN = 5  # names in a sentence
WRAPPERS = ("state_dict", "net", "model", "model_state_dict", "network")
SAYINGS = {
    "a Git LFS pointer, not the file itself": "is a Git LFS pointer, not the checkpoint; fetch it with `git lfs pull`",
    "a web page": "is a web page, so that the download went wrong; fetch the checkpoint itself",
    "an ONNX model": "is an ONNX model, which is exported already; give the PyTorch checkpoint it was made of",
    "an HDF5 file": "is an HDF5 file, as Keras writes; --ckpt takes a PyTorch checkpoint",
    "a tar archive": "is a tar archive; unpack it with `tar -xf {file}` and give the checkpoint in it",
    "a gzip archive": "is a gzip archive; unpack it with `gzip -dk {file}`",
    "a bzip2 archive": "is a bzip2 archive; unpack it with `bzip2 -dk {file}`",
    "an xz archive": "is an xz archive; unpack it with `xz -dk {file}`",
    "a Zstandard archive": "is a Zstandard archive; unpack it with `zstd -d {file}`",
    "a 7z archive": "is a 7z archive; unpack it with `7z x {file}`",
    "a rar archive": "is a rar archive; unpack it with `unrar x {file}`",
    "a zip archive": "is a zip archive that torch.save did not write; unpack it and give the checkpoint in it",
    "a TorchScript model": "is a TorchScript model; save its weights alone, where you trust it: {line}",
    "npy": "is an array of NumPy, not a checkpoint; give a file that torch.save wrote",
    "npz": "is a file of NumPy arrays, not a checkpoint; give a file that torch.save wrote",
    "JSON": "is JSON, not a checkpoint; give the file of the weights themselves",
    "an image": "is an image, not a checkpoint; give a file that torch.save wrote",
}
MARKUP = (b"<?xml", b"<!doc", b"<html", b"<error", b"<head", b"<body")
SCRIPTED = "torch.save(torch.jit.load({file}, map_location='cpu').state_dict(), 'weights.pth')"
MODULE = "torch.save(torch.load({file}, map_location='cpu', weights_only=False).state_dict(), 'weights.pth')"
INSIDE = "torch.save(torch.load({file}, map_location='cpu', weights_only=False){key}, 'weights.pth')"
PLAIN_PICKLE = "torch.save(pickle.load(open({file}, 'rb')), 'weights.pth')"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's weights by name, and where in the file they stood: keys with dots between, "" at its top.

    beside: how many tensors of the same state_dict are left out, such as the head of a training's module.
    """

    state: "dict[str, torch.Tensor]"
    key: str
    beside: int = 0


@dataclass(frozen=True)
class _Found:
    """A state_dict in a file: where it stands, and its tensors."""

    keys: tuple[str, ...]
    tensors: dict[str, Tensor]

    @property
    def key(self) -> str:
        return ".".join(self.keys)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tensor.shape for name, tensor in self.tensors.items()}


def load_state_dict(path: Path, key: str | None = None) -> "dict[str, torch.Tensor]":
    """Load a checkpoint's weights; see ``read_checkpoint``."""
    return read_checkpoint(path, key).state


def read_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read the weights of a checkpoint, wrappers and prefixes removed; nothing in the file is executed.

    key: where the state_dict stands in the file, as in "ema" or "ema.shadow", or the prefix of its tensors, needed
    where there are several. Tensors are on the CPU, floats as float32. A prefix that all tensors share, as
    "module." or "_orig_mod.model.", is removed where what remains is a known network, and so is all that stands beside
    the one known network, such as the head of a Lightning module. Raises InputError for a missing file, one that is
    no checkpoint, named for what it is, a pickle that wants to import more than weights, several state_dicts, and
    weights that are not finite.
    """
    path = Path(path)
    file, size = _opened(path), path.stat().st_size
    found, beside = _chosen(path, file, key)
    import torch

    state, total = {}, 0
    for name, tensor in found.tensors.items():
        array = _array(path, file, name, tensor)
        total += array.size * np.dtype(DTYPES[tensor.kind].replace("bfloat16", "f2")).itemsize
        if total > MOST_SHARED * size:
            raise InputError(
                f"{path}: its tensors are of {total:,} bytes and more, the file is of {size:,}; it does not hold a "
                "network."
            )
        if tensor.floating and not np.isfinite(array).all():
            raise InputError(f"{path}: {name} holds NaN or infinite weights; the training run diverged.")
        state[name] = torch.from_numpy(array)
    return Checkpoint(state, found.key, beside)


def keys_of(key: str | Sequence[str] | None, checkpoints: int) -> list[str | None]:
    """Return a key for each checkpoint: one for all of them, or one each; raises InputError for another number."""
    keys = [key] if isinstance(key, str) else list(key or ())
    if len(keys) not in (0, 1, checkpoints):
        raise InputError(
            f"--key is given {len(keys)} times for {counted(checkpoints, 'checkpoint')}; give it once for all, or "
            "once for each."
        )
    return [one or None for one in keys] * (checkpoints // len(keys)) if keys else [None] * checkpoints


def _array(path: Path, file: TorchFile, name: str, tensor: Tensor) -> np.ndarray:
    try:
        return np.ascontiguousarray(file.array(tensor)).reshape(tensor.shape)
    except DAMAGED as error:
        if type(error) is not ValueError:
            raise InputError(
                f"{path}: is not a whole checkpoint: the values of {name} are damaged."
            ) from error
        raise InputError(f"{path}: {name} {error}; save the network's own state_dict().") from error


def _opened(path: Path) -> TorchFile:
    """Read what stands in a file, or say what it is instead."""
    if path.is_dir():
        raise InputError(_folder_sentence(path))
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file.")
    size = path.stat().st_size
    if size == 0:
        raise InputError(f"{path}: is not a checkpoint, it is empty; copy or download it again.")
    kind = content_of(path, "").kind
    if kind == "safetensors":
        try:
            return read_safetensors_file(path)
        except DamagedError as error:
            raise InputError(
                f"{path}: is not a whole .safetensors file; copy or download it again."
            ) from error
    with open(path, "rb") as opened:
        if opened.read(64).lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(MARKUP):
            kind = "a web page"
    if kind in SAYINGS:
        raise InputError(f"{path}: {_saying(SAYINGS[kind], path)}.")
    if (unpacked := _unpacked_bytes(path)) > size:
        raise InputError(
            f"{path}: unpacks to {unpacked:,} bytes from {size:,}, and PyTorch never packs weights; save it again "
            "where you trust it."
        )
    try:
        file = read_torch_file(path)
    except DamagedError as error:
        if kind == "a pickle":
            line = _line(PLAIN_PICKLE, path, "import pickle, torch")
            raise InputError(
                f"{path}: is not a checkpoint of torch.save but a plain pickle, which could run code "
                f"and is not loaded; save its weights alone, where you trust it: {line}."
            ) from error
        told = f" ({error})" if str(error) else ""
        with open(path, "rb") as opened:
            begun = opened.read(4) in (b"PK\x03\x04", b"\x80\x02\x8a\x0a")
        raise InputError(
            f"{path}: is not a whole checkpoint, it is damaged or cut short{told}; copy or download it again."
            if begun
            else f"{path}: is not a PyTorch checkpoint{told}; give a file that torch.save wrote."
        ) from error
    if file.wanted:
        raise InputError(_wanted_sentence(path, file))
    return file


def _chosen(path: Path, file: TorchFile, key: str | None) -> tuple[_Found, int]:
    """Return the state_dict to take, and how many of its tensors are left out."""
    if key:
        return _by_key(path, file.found, key), 0
    candidates = list(_state_dicts(file.found))
    if not candidates:
        if _is_empty(file.found):
            return _Found((), {}), 0
        raise InputError(_nothing_sentence(path, file.found))
    named = [_without_prefix(one) for one in candidates]
    # Statistics and counters beside the weights are no networks: each of these rules leaves some of several, or all.
    for rule in (_has_matrices, _may_be_ours):
        if len(named) > 1 and (left := [one for one in named if rule(one)]):
            named = left
    if len(named) > 1:
        raise InputError(_several_sentence(path, [one.key for one in named]))
    one = named[0]
    if _is_like(one):
        return one, 0
    parts = list(_networks_by_prefix(one))
    if len(parts) > 1:
        raise InputError(_several_sentence(path, [part.key for part in parts]))
    return (parts[0], len(one.tensors) - len(parts[0].tensors)) if parts else (one, 0)


def _by_key(path: Path, found: object, key: str) -> _Found:
    """Return the one state_dict at, or under, a dotted key; a prefix of tensors counts as a key, too."""
    at, rest = found, key
    keys: list[str] = []
    while isinstance(at, (dict, list, tuple)) and rest:
        items = _items(at)
        names = sorted(items, key=len, reverse=True)
        step = next((name for name in names if rest == name or rest.startswith(f"{name}.")), None)
        if step is None:
            break
        at, rest = items[step], rest[len(step) + 1 :]
        keys.append(step)
    inside = list(_state_dicts(at, tuple(keys)))
    if rest:
        inside = [part for one in inside for part in _under_prefix(one, f"{rest}.")]
    if len(inside) > 1:
        fitting = [one for one in inside if _may_be_ours(_without_prefix(one))]
        inside = fitting if len(fitting) == 1 else inside
    if len(inside) > 1:
        raise InputError(_several_sentence(path, [one.key for one in inside]))
    if inside:
        return _without_prefix(inside[0])
    known = [
        repr(one.key) if one.key else "the weights at the top, without --key" for one in _state_dicts(found)
    ]
    raise InputError(
        f"{path}: --key {key}: there is no state_dict under it; the keys are {', '.join(known[:SHOWN]) or 'none'}."
    )


def _state_dicts(found: object, keys: tuple[str, ...] = ()) -> Iterator[_Found]:
    """Yield the dictionaries of tensors in what a file holds, but for optimizers' states.

    The same dictionary in two places, as weights and their copy, is two; one that contains itself ends.
    """
    left = MOST_CONTAINERS

    def inside(at: dict | list | tuple, keys: tuple[str, ...], around: frozenset[int]) -> Iterator[_Found]:
        nonlocal left
        left -= 1
        if left < 0 or len(keys) > DEEPEST or id(at) in around or (isinstance(at, dict) and OPTIMIZER in at):
            return
        items, inner = _items(at), False
        for name, value in items.items():
            if isinstance(value, (dict, list, tuple)):
                for one in inside(value, (*keys, name), around | {id(at)}):
                    inner = True
                    yield one
        tensors = {name: value for name, value in items.items() if isinstance(value, Tensor)}
        if tensors and not inner and isinstance(at, dict):
            yield _Found(keys, tensors)

    if isinstance(found, (dict, list, tuple)):
        yield from inside(found, keys, frozenset())


def _items(at: dict | list | tuple) -> dict[str, object]:
    if isinstance(at, dict):
        return {
            name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name): value
            for name, value in at.items()
            if isinstance(name, (str, bytes, int))
        }
    return {str(at_index): value for at_index, value in enumerate(at)}


def _without_prefix(found: _Found) -> _Found:
    """Remove a prefix that all tensors share where what remains is a known network, or like one."""
    first, last = min(found.tensors), max(found.tensors)  # what these two share, all do
    parts = zip(first.split(".")[:-1], last.split(".")[:-1], strict=False)
    shared = [one for one, other in itertools.takewhile(lambda pair: pair[0] == pair[1], parts)]
    best, best_likeness = found, likeness(found.shapes)
    for depth in range(1, len(shared) + 1):
        start = len(".".join(shared[:depth])) + 1
        stripped = _Found(found.keys, {name[start:]: tensor for name, tensor in found.tensors.items()})
        if (like := likeness(stripped.shapes)) > best_likeness:
            best, best_likeness = stripped, like
    return best


def _networks_by_prefix(found: _Found) -> Iterator[_Found]:
    """Yield the known networks among tensors of several, told apart by what their names begin with."""
    prefixes = {
        ".".join(parts[:depth])
        for name in list(found.tensors)[:MOST_NAMES]
        for parts in [name.split(".")]
        for depth in range(1, min(len(parts), DEEPEST_PREFIX + 1))
    }
    for prefix in sorted(prefixes):
        part = next(_under_prefix(found, f"{prefix}."))
        if likeness(part.shapes)[0]:
            yield part


def _under_prefix(found: _Found, prefix: str) -> Iterator[_Found]:
    tensors = {
        name.removeprefix(prefix): tensor for name, tensor in found.tensors.items() if name.startswith(prefix)
    }
    if tensors:
        yield _Found((*found.keys, prefix.rstrip(".")), tensors)


def _has_matrices(found: _Found) -> bool:
    return any(tensor.floating and len(tensor.shape) > 1 for tensor in found.tensors.values())


def _may_be_ours(found: _Found) -> bool:
    """Whether it is a known network, even a damaged one, or holds one among others."""
    return _is_like(found) or any(True for _ in _networks_by_prefix(found))


def _is_like(found: _Found) -> bool:
    return likeness(found.shapes)[1] >= ALIKE


def _is_empty(found: object) -> bool:
    """Whether a file holds a state_dict without tensors."""
    return isinstance(found, dict) and (not found or any(found.get(wrapper) == {} for wrapper in WRAPPERS))


# What the file is instead


def _several_sentence(path: Path, keys: list[str]) -> str:
    shown = ", ".join(keys[:SHOWN]) + (", ..." if len(keys) > SHOWN else "")
    return (
        f"{path}: holds {len(keys)} state_dicts ({shown}); say which one with --key, as in --key {keys[0]}."
    )


def _nothing_sentence(path: Path, found: object) -> str:
    if isinstance(found, Opaque):
        line = _line(MODULE, path, "import torch")
        return f"{path}: holds a {found.name} and no state_dict; save its weights alone, where you trust it: {line}."
    kind = type(found).__name__
    if isinstance(found, dict):
        shown = list(_items(found))
        kind = f"keys {', '.join(shown[:SHOWN])}{', ...' if len(shown) > SHOWN else ''}"
    kind = "a single tensor" if isinstance(found, Tensor) else kind
    return f"{path}: holds no state_dict ({kind}); expected one, plain or under a key such as state_dict or model."


def _wanted_sentence(path: Path, file: TorchFile) -> str:
    """Name what a pickle wants to import, and the lines that save its weights alone."""
    name = file.wanted[0]
    candidates = list(_state_dicts(file.found))
    if isinstance(file.found, Opaque) or not candidates:
        line = _line(MODULE, path, "import torch")
    else:
        key = "".join(f"[{name!r}]" for name in candidates[0].keys)
        line = _line(INSIDE.replace("{key}", key), path, "import torch")
    return (
        f"{path}: is a pickle that wants to import {name}, and fcdeploy loads weights only; save the network's "
        f"state_dict() alone, where you trust the file: {line}."
    )


def _folder_sentence(path: Path) -> str:
    if (path / "data.pkl").is_file() and (path / "data").is_dir():
        name = path.resolve().name
        return (
            f"{path}: is a checkpoint that was unpacked into a folder; pack it again, without compression: "
            f"`cd {shlex.quote(str(path.resolve().parent))} && zip -0 -r {shlex.quote(name)}.pth {shlex.quote(name)}`."
        )
    inside = sorted(
        p.name for p in path.iterdir() if p.suffix in (".pth", ".pt", ".ckpt", ".tar", ".safetensors", ".bin")
    )
    more = f", such as {inside[0]}" if inside else ""
    return f"{path}: is a folder, not a checkpoint; give the file in it{more}."


def _saying(saying: str, path: Path) -> str:
    return saying.replace("{file}", shlex.quote(str(path))).replace(
        "{line}", _line(SCRIPTED, path, "import torch")
    )


def _line(code: str, path: Path, imports: str) -> str:
    return f"`{imports}; {code.replace('{file}', repr(str(path)))}`"


def _unpacked_bytes(path: Path) -> int:
    """Return how many bytes the members of a checkpoint, which may be an archive, unpack to."""
    try:
        if not zipfile.is_zipfile(path):
            return 0
        with zipfile.ZipFile(path) as archive:
            return sum(info.file_size for info in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError):
        return 0  # the reader says what is wrong with it
