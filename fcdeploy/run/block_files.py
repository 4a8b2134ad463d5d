"""Blocks computed elsewhere: each a file of its own, which has its name only when it is whole.

A file holds one line of JSON, the key of the artifact and the names of the arrays, and the arrays behind each other as
``.npy``, rows first. Its name says which rows of the visit it holds, and who wrote it: a worker that was taken for lost
and comes back replaces nobody's file. A block that is computed twice has the same bytes.
"""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fcdeploy.data.atomic import no_space_left
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.machine import is_local
from fcdeploy.run.store import Arrays, Span

BLOCKS = "blocks"  # the folder of an artifact in the making that holds them
NAME = re.compile(r"(\d{12})-(\d{12})\.[^.]+\.block")


@dataclass(frozen=True)
class Within:
    """Where an array stands in a block's file: its bytes from ``at`` on."""

    dtype: np.dtype
    shape: tuple[int, ...]
    at: int

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class BlockFile:
    """A whole file of a block, that somebody has looked at; arrays: what it holds, by name."""

    path: Path
    span: Span
    arrays: Mapping[str, Within]

    def read(self) -> Arrays | None:
        """Return the arrays; None where the file is gone or damaged meanwhile."""
        try:
            with open(self.path, "rb") as file:
                found = {}
                for name, within in self.arrays.items():
                    file.seek(within.at)
                    array = np.empty(within.shape, within.dtype)
                    if file.readinto(array.reshape(-1).view(np.uint8).data) != within.nbytes:
                        return None
                    found[name] = array
                return found
        except OSError:
            return None

    def remove(self) -> None:
        """Delete the file, if it is there."""
        self.path.unlink(missing_ok=True)


def name_of_block(span: Span, worker: str) -> str:
    """Return the name of a block's file that a worker writes; no other worker writes it."""
    return f"{span[0]:012d}-{span[1]:012d}.{worker.replace('.', '-')}.block"


def write_block_file(folder: Path, span: Span, key: str, arrays: Arrays, worker: str) -> None:
    """Write a block's arrays into ``folder``, whole or not at all; worker: a name that no other one has.

    Raises FileNotFoundError where the folder is gone, and with it whoever wants the block.
    """
    path = folder / name_of_block(span, worker)
    part = folder / f".{path.name}.tmp"
    try:
        with no_space_left(path), open(part, "xb") as file:
            file.write(json.dumps({"key": key, "arrays": list(arrays)}).encode() + b"\n")
            for array in arrays.values():
                np.save(file, array, allow_pickle=False)
            file.flush()
            if not is_local(folder):  # or who reads it sees it anyway, and after a restart nobody trusts it
                os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def look_at_block(path: Path, span: Span, key: str) -> BlockFile | None:
    """Look at a block's file; None where there is none, or one of another artifact, or one that is not whole."""
    try:
        with open(path, "rb") as file:
            described = json.loads(file.readline())
            if described["key"] != key:
                return None
            arrays = {name: _skip_array(file) for name in described["arrays"]}
            whole = file.tell() == os.fstat(file.fileno()).st_size
        return BlockFile(path, span, arrays) if whole else None
    except DAMAGED:
        return None


def _skip_array(file: BinaryIO) -> Within:
    """Read what is said of an array at a file's position, and go behind it."""
    version = np.lib.format.read_magic(file)
    reader = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = reader(file)
    if fortran or dtype.hasobject:
        raise ValueError("no array of ours")
    within = Within(dtype, shape, file.tell())
    file.seek(within.nbytes, os.SEEK_CUR)
    return within


def blocks_in(folder: Path) -> Iterator[tuple[Span, Path]]:
    """Yield the blocks that have files in a folder, and these, in the order of their rows."""
    for path in sorted(folder.glob("*.block")):
        found = NAME.fullmatch(path.name)
        yield (int(found[1]), int(found[2])) if found else (0, 0), path
