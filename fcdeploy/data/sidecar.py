"""What `fcdeploy embed` writes beside features, ``features.bin.json``: how many rows, how wide, made with what.

It is ours by its ``written_by``; any other ``.json`` beside features is somebody else's, neither read nor replaced.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from msgspec import Meta

from fcdeploy.data.typed import fits, typed
from fcdeploy.errors import InputError, counted

WRITTEN_BY = "fcdeploy embed"
LARGEST = 1 << 20  # bytes
Positive = Annotated[int, Meta(gt=0)]


@dataclass(frozen=True)
class Sidecar:
    """rows, width and dtype of a features file, with its bytes and ``hash`` (``hash_of`` its features).

    model, model_sha256: the embedder, with its settings in the hash; list, list_sha256: whose lines the rows are.
    """

    rows: Positive
    width: Positive
    dtype: str
    bytes: Positive
    hash: str
    model: str = ""
    model_sha256: str = ""
    list: str = ""
    list_sha256: str = ""


def sidecar_path(features: Path) -> Path:
    """Return where the sidecar of a features file is."""
    return features.with_name(f"{features.name}.json")


def sidecar_bytes(sidecar: Sidecar) -> bytes:
    """Return a sidecar as it is written."""
    return (json.dumps({"written_by": WRITTEN_BY, **asdict(sidecar)}, indent=1) + "\n").encode()


def read_sidecar(features: Path) -> Sidecar | None:
    """Return the sidecar of a features file; None where there is none of ours."""
    path = sidecar_path(features)
    try:
        if not path.is_file() or path.stat().st_size > LARGEST:
            return None
        fields = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or fields.get("written_by") != WRITTEN_BY:
        return None
    fields = {"dtype": "float32", **fields}
    if not fits(Sidecar, fields):
        raise InputError(f"{path}: is damaged; delete it, or run `fcdeploy embed` again.")
    return typed(Sidecar, fields, str(path), open_ended=True)


def check_sidecar_path(features: Path) -> Path:
    """Return where a sidecar goes; raises InputError when something stands there that is not one of ours."""
    path = sidecar_path(features)
    there = path.is_symlink() or path.exists()
    if there and (path.is_dir() or read_sidecar_or_damaged(features) is None):
        raise InputError(
            f"{path}: was not written by fcdeploy, and would be replaced by the description of the features; choose "
            "another output."
        )
    return path


def read_sidecar_or_damaged(features: Path) -> Sidecar | bool | None:
    """Return the sidecar, True where one of ours is damaged, None where there is none of ours."""
    try:
        return read_sidecar(features)
    except InputError:
        return True


def is_told_of_by_sidecar(features: Path) -> bool:
    """Tell whether a features file is one that `fcdeploy embed` wrote, by its sidecar and its size."""
    sidecar = read_sidecar_or_damaged(features)
    return isinstance(sidecar, Sidecar) and features.is_file() and features.stat().st_size == sidecar.bytes


def check_size(path: Path, name: str, sidecar: Sidecar, dim: int | None) -> None:
    """Raise InputError when a file is not of the size, or its rows not of the width, that its sidecar says."""
    beside = sidecar_path(Path(name))
    size = path.stat().st_size
    if size != sidecar.bytes:
        raise InputError(
            f"{name}: {size:,} bytes; {beside} says {counted(sidecar.rows, 'row')} of {sidecar.width} {sidecar.dtype}, "
            f"{sidecar.bytes:,} bytes. It was cut short or replaced since; embed again, or delete {beside} if the new "
            "file is meant."
        )
    if dim is not None and dim != sidecar.width:
        raise InputError(
            f"{name}: expected (n, {dim}) features, found ({sidecar.rows}, {sidecar.width}) {sidecar.dtype}, as "
            f"{beside} says."
        )


def check_hash(name: str, sidecar: Sidecar, found: str) -> None:
    """Raise InputError when features have another hash than their sidecar says."""
    if found != sidecar.hash:
        beside = sidecar_path(Path(name))
        raise InputError(
            f"{name}: its values are not those that {beside} describes; the file was changed or replaced since it was "
            f"embedded. Embed again, or delete {beside} if the new values are meant."
        )
