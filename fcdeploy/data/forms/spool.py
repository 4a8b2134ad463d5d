"""What cannot be mapped in place, pipes and compressed files, is unpacked once: in memory, or a nameless file.

The file never has a name, so nothing is left behind whatever ends the process.
"""

import contextlib
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from fcdeploy.data.atomic import no_space_left
from fcdeploy.data.scratch import scratch_folder

IN_MEMORY = 64 << 20  # bytes
CHUNK = 1 << 20


def nameless_file(scratch: Path | None) -> IO[bytes]:
    """Open a file without a name in the folder ``scratch``, or where ``scratch_folder`` says."""
    return tempfile.TemporaryFile(dir=scratch or scratch_folder(needed=False))


def spool_rows(blocks: Iterable[np.ndarray], dim: int, dtype: np.dtype, scratch: Path | None) -> np.ndarray:
    """Keep blocks (m, dim) behind each other; returns (n, dim), a memory map of a nameless file if it is large."""
    blocks, kept, size = iter(blocks), [], 0
    for block in blocks:
        kept.append(np.ascontiguousarray(block, dtype))
        size += kept[-1].nbytes
        if size > IN_MEMORY:
            break
    else:
        return np.concatenate([np.empty((0, dim), dtype), *kept])
    with nameless_file(scratch) as file, no_space_left((scratch or Path(tempfile.gettempdir())) / "features"):
        n = 0
        for block in _chain(kept, blocks):
            file.write(np.ascontiguousarray(block, dtype).data)
            n += len(block)
        file.flush()
        return np.memmap(file, dtype=dtype, mode="r", shape=(n, dim))


def _chain(kept: list[np.ndarray], blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    while kept:
        yield kept.pop(0)
    yield from blocks


@contextlib.contextmanager
def spooled_bytes(source: Path, scratch: Path | None) -> Iterator[Path]:
    """Read a pipe to its end; gives the path of a nameless file with its bytes, which is there inside the block."""
    with nameless_file(scratch) as file:
        with no_space_left((scratch or Path(tempfile.gettempdir())) / "features"), open(source, "rb") as pipe:
            while chunk := pipe.read(CHUNK):
                file.write(chunk)
            file.flush()
        yield Path(f"/proc/self/fd/{file.fileno()}")
