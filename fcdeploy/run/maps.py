"""Arrays of artifacts as maps of files: opened, remembered, and let go of where memory is short."""

import mmap
import weakref
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fcdeploy.data.mapped import release_pages
from fcdeploy.run.store import Arrays


class Maps:
    """The maps that are in use, whose pages can be released."""

    def __init__(self) -> None:
        self._maps: list[weakref.ref[np.ndarray]] = []

    def watch(self, arrays: Arrays) -> Arrays:
        """Remember maps, so that ``release_pages`` can release them; returns them."""
        self._maps = [ref for ref in self._maps if ref() is not None]
        self._maps += [weakref.ref(array) for array in arrays.values() if isinstance(array, np.memmap)]
        return arrays

    def release_pages(self) -> None:
        """Let go of all mapped pages that this process has touched; they are read again when needed."""
        for ref in self._maps:
            array = ref()
            if array is not None:
                release_pages(array)


def map_arrays(folder: Path, parts: Iterable[str] | None = None) -> Arrays:
    """Map the arrays of an artifact read-only, those of ``parts`` (all)."""
    names = sorted(file.stem for file in folder.glob("*.npy")) if parts is None else parts
    return {name: _map_npy(folder / f"{name}.npy") for name in names}


def size_on_disk(folder: Path, parts: Iterable[str]) -> int:
    """Return the bytes of some arrays in a folder; -1 when one is missing."""
    files = [folder / f"{part}.npy" for part in parts]
    return sum(file.stat().st_size for file in files) if all(map(Path.is_file, files)) else -1


def _map_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode=None if path.stat().st_size < mmap.PAGESIZE else "r")
    array.flags.writeable = False
    return array
