"""Where a run keeps what it makes: products that are complete or absent, in memory or in a run folder.

A product is one or more arrays over all faces, made block by block. In a folder its arrays are memory maps beside
the final name until the last block is done; a journal says how many faces are behind us, so that the same command
continues there. Every product has a key, a hash of all that made it; a product with another key is made again.
"""

import fcntl
import json
import math
import os
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from fcdeploy.data.atomic import atomic_file, no_space_left
from fcdeploy.errors import InputError

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # array name -> (shape, dtype)
Arrays = dict[str, np.ndarray]
MANIFEST = "run.json"
LOCK = "run.lock"
COPY_BYTES = 1 << 24


class Partial(Protocol):
    """A product in the making: write rows into ``arrays``, then commit them."""

    arrays: Arrays
    done: int  # rows that an earlier run has committed

    def commit(self, rows: int) -> None: ...

    def finish(self) -> Arrays: ...


class Store(Protocol):
    """Keeps products by name."""

    def load(self, name: str, key: str) -> Arrays | None: ...

    def begin(self, name: str, key: str, shapes: Shapes) -> Partial: ...

    def drop(self, name: str) -> None: ...


class MemoryStore:
    """Products as ordinary arrays, gone with the run."""

    def __init__(self) -> None:
        self._products: dict[str, Arrays] = {}

    def load(self, name: str, key: str) -> Arrays | None:
        return self._products.get(name)

    def begin(self, name: str, key: str, shapes: Shapes) -> "MemoryPartial":
        self._products[name] = {part: np.empty(shape, dtype) for part, (shape, dtype) in shapes.items()}
        return MemoryPartial(self._products[name])

    def drop(self, name: str) -> None:
        self._products.pop(name, None)


class MemoryPartial:
    """See ``Partial``; nothing to commit to."""

    done = 0

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def commit(self, rows: int) -> None:
        """Do nothing: what is in memory does not outlive the process."""

    def finish(self) -> Arrays:
        for array in self.arrays.values():
            array.flags.writeable = False  # as maps of finished files are; numba compiles once for both
        return self.arrays


class RunFolder:
    """Products as files of a folder that one process at a time may use; a ``with`` unlocks it.

    Names end in ``.npy`` (one array) or ``.npz`` (several, uncompressed, so that they can be mapped). Raises
    InputError when the folder's parent does not exist, when it is a file, or when another run is using it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = open(self.path / LOCK, "a+")  # noqa: SIM115 - held as long as the folder is
        except FileNotFoundError:
            raise InputError(
                f"{path}: the folder {self.path.parent} does not exist; create it or choose another --run-dir."
            ) from None
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"{path}: is a file; give a folder as --run-dir.") from None
        except PermissionError:
            raise InputError(f"{path}: is not writable; choose another --run-dir.") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "unknown"
            self._lock.close()
            raise InputError(
                f"{path}: another run is using this folder (process {owner}); wait for it or choose another --run-dir."
            ) from None
        self._lock.truncate(0)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        self._products: dict[str, dict[str, Any]] = self._read_manifest()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.close()

    def load(self, name: str, key: str) -> Arrays | None:
        """Map the finished product ``name``, or return None when it is absent, cut short or made of something else."""
        entry, file = self._products.get(name), self.path / name
        if (
            entry is None
            or entry["key"] != key
            or not file.is_file()
            or file.stat().st_size != entry["bytes"]
        ):
            return None
        return map_arrays(file)

    def begin(self, name: str, key: str, shapes: Shapes) -> "FolderPartial":
        """Open the product for writing, after the last committed block of an interrupted run with the same key."""
        if name in self._products:
            self._forget(name)
        return FolderPartial(self, name, key, shapes)

    def drop(self, name: str) -> None:
        """Delete a product, finished or not."""
        self._forget(name)
        (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / f"{name}.part", ignore_errors=True)

    def record(self, name: str, key: str) -> None:
        """Note that the file ``name`` is complete."""
        self._products[name] = {"key": key, "bytes": (self.path / name).stat().st_size}
        self._write_manifest()

    def _forget(self, name: str) -> None:
        if self._products.pop(name, None) is not None:
            self._write_manifest()

    def _read_manifest(self) -> dict[str, dict[str, Any]]:
        try:
            products = json.loads((self.path / MANIFEST).read_bytes())["products"]
            return {str(n): {"key": str(e["key"]), "bytes": int(e["bytes"])} for n, e in products.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}  # absent or damaged: everything is made again

    def _write_manifest(self) -> None:
        with atomic_file(self.path / MANIFEST) as file:
            file.write(json.dumps({"products": self._products}, indent=1).encode())


class FolderPartial:
    """See ``Partial``; the arrays are maps in ``NAME.part/`` beside a journal of committed rows."""

    def __init__(self, folder: RunFolder, name: str, key: str, shapes: Shapes) -> None:
        self._folder, self._name, self._key = folder, name, key
        self._place = folder.path / f"{name}.part"
        self.done = self._committed(shapes)
        if not self.done:
            shutil.rmtree(self._place, ignore_errors=True)
            self._place.mkdir()
        with no_space_left(self._place):
            self.arrays = {part: self._map(part, shape, dtype) for part, (shape, dtype) in shapes.items()}
            self._journal: IO[str] = open(self._place / "journal", "a")  # noqa: SIM115
            if not self.done:
                self._append(self._key)

    def commit(self, rows: int) -> None:
        """Declare the first ``rows`` rows done, on disk before the journal says so."""
        with no_space_left(self._place):
            for array in self.arrays.values():
                if isinstance(array, np.memmap):
                    array.flush()
            self._append(str(rows))

    def finish(self) -> Arrays:
        """Give the product its final name and map it."""
        self._journal.close()
        final = self._folder.path / self._name
        if final.suffix == ".npy":
            (part,) = self.arrays
            self.arrays.clear()
            os.replace(self._place / f"{part}.npy", final)
        else:
            with atomic_file(final) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for part in self.arrays:
                    self._store(archive, part)
            self.arrays.clear()
        self._folder.record(self._name, self._key)
        shutil.rmtree(self._place)
        return map_arrays(final)

    def _committed(self, shapes: Shapes) -> int:
        try:
            key, *rows = (self._place / "journal").read_text().splitlines()
            whole = all((self._place / f"{part}.npy").is_file() for part in shapes)
            return int(rows[-1]) if key == self._key and whole else 0
        except (OSError, ValueError, IndexError):
            return 0

    def _map(self, part: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        file = self._place / f"{part}.npy"
        if self.done:
            return np.load(file, mmap_mode="r+")
        if 0 in shape:  # nothing to map
            array = np.empty(shape, dtype)
            np.save(file, array)
            return array
        array = np.lib.format.open_memmap(file, "w+", dtype, shape)
        # Take the space now: a write into a map of a full disk kills the process instead of raising an error.
        with open(file, "r+b") as opened:
            os.posix_fallocate(opened.fileno(), 0, max(1, file.stat().st_size))
        return array

    def _append(self, line: str) -> None:
        self._journal.write(line + "\n")
        self._journal.flush()
        os.fsync(self._journal.fileno())

    def _store(self, archive: zipfile.ZipFile, part: str) -> None:
        info = zipfile.ZipInfo(f"{part}.npy")  # with the fixed date of ZipInfo: same arrays, same bytes
        with (
            open(self._place / f"{part}.npy", "rb") as source,
            archive.open(info, "w", force_zip64=True) as target,
        ):
            shutil.copyfileobj(source, target, COPY_BYTES)


def map_arrays(path: Path) -> Arrays:
    """Map the arrays of an ``.npy`` file (under the name ``array``) or of an uncompressed ``.npz`` file, read-only."""
    if path.suffix == ".npy":
        return {"array": np.load(path, mmap_mode="r")}
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            file.seek(info.header_offset + 30 + int(lengths.sum()))
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            name = info.filename.removesuffix(".npy")
            if 0 in shape:
                arrays[name] = np.empty(shape, dtype)
            else:
                arrays[name] = np.memmap(path, dtype, "r", file.tell(), shape)
    return arrays


def expected_bytes(shapes: Shapes) -> int:
    """Return how many bytes the arrays of a product take."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
