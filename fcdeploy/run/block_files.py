"""Blocks computed elsewhere: each a file of its own, which has its name only when it is whole.

A file holds one line of JSON, the key of the artifact and the names of the arrays, and the arrays behind each other as
``.npy``. Its name says which rows of the visit it holds. A block that is computed twice has the same bytes.
"""

import contextlib
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fcdeploy.data.atomic import no_space_left
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.machine import is_local
from fcdeploy.run.store import Arrays, Span

BLOCKS = "blocks"  # the folder of an artifact in the making that holds them
NAME = re.compile(r"(\d{12})-(\d{12})\.block")


def name_of_block(span: Span) -> str:
    """Return the name of a block's file."""
    return f"{span[0]:012d}-{span[1]:012d}.block"


def write_block_file(folder: Path, span: Span, key: str, arrays: Arrays, worker: str) -> None:
    """Write a block's arrays into ``folder``, whole or not at all; worker: a name that no other one has.

    Raises FileNotFoundError where the folder is gone, and with it whoever wants the block.
    """
    path, part = folder / name_of_block(span), folder / f".{name_of_block(span)}.{worker}.tmp"
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


def read_block_file(folder: Path, span: Span, key: str) -> Arrays | None:
    """Return the arrays of a block; None where there is no file of it, or one of another artifact, or a damaged one."""
    try:
        with open(folder / name_of_block(span), "rb") as file:
            described = json.loads(file.readline())
            if described["key"] != key:
                return None
            return {name: np.load(file, allow_pickle=False) for name in described["arrays"]}
    except (*DAMAGED, KeyError, TypeError):
        return None


def blocks_in(folder: Path) -> Iterator[Span]:
    """Yield which blocks have files in a folder, in the order of their rows."""
    for path in sorted(folder.glob("*.block")):
        if found := NAME.fullmatch(path.name):
            yield int(found[1]), int(found[2])


def remove_block_file(folder: Path, span: Span) -> None:
    """Delete a block's file, if there is one."""
    (folder / name_of_block(span)).unlink(missing_ok=True)
