"""Where a run keeps what it makes: products that are complete or absent, in memory or in a run folder.

A product is one or more arrays over all faces, made block by block. In a folder its arrays are memory maps in
``NAME.part/`` until the last block is done; a journal beside them says how far we are, so that the same command goes
on from there. Every product has a key, a hash of all that made it; a product with another key is made again.

Results (``.npy``, ``.npz``) are synced to disk before they get their names. Scratch products (names without a
suffix, in folders ``NAME.scratch/``) and journals are not: they are trusted only until the machine restarts, which is
as long as the kernel keeps what a killed process had written. A durable product, whose blocks are worth it, is synced
with every commit.
"""

import contextlib
import errno
import math
import mmap
import os
import shutil
import weakref
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from fcdeploy.data.atomic import (
    no_space_left,
    open_own,
    remove_folder,
    sync_file,
    sync_folder,
)
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.data.locks import BusyError, Lock
from fcdeploy.data.run_record import JOURNAL, LOCK, RECORD, SCRATCH, UNFINISHED, Claims, check_run_folder
from fcdeploy.errors import FcdeployError, InputError

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]  # array name -> (shape, dtype)
Arrays = dict[str, np.ndarray]
SUMMARY = "summary.json"
DURABLE = "durable"  # in a journal, instead of what is trusted until the next start only
COPY_BYTES = 1 << 24
SCRATCH_FOLDER = ".fcdeploy-run-"  # begins the name of a run's own folder


class Partial(Protocol):
    """A product in the making: write rows into ``arrays``, then commit them."""

    arrays: Arrays
    done: int  # how far an earlier run came

    def commit(self, done: int) -> None: ...

    def close(self) -> None: ...

    def finish(self) -> Arrays: ...


class Store(Protocol):
    """Keeps products by name."""

    def load(self, name: str, key: str) -> Arrays | None: ...

    def begin(
        self, name: str, key: str, shapes: Shapes, visit: str = "", durable: bool = False
    ) -> Partial: ...

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]: ...

    def drop(self, name: str) -> None: ...

    def drop_scratch(self) -> None: ...

    def scratch_file(self, name: str) -> Path | None: ...

    def relieve(self) -> None: ...

    def describe(self, computed: Mapping[str, Any]) -> None: ...


class MemoryStore:
    """Products as ordinary arrays, gone with the run."""

    def __init__(self) -> None:
        self._products: dict[str, Arrays] = {}

    def load(self, name: str, key: str) -> Arrays | None:
        return self._products.get(name)

    def begin(
        self, name: str, key: str, shapes: Shapes, visit: str = "", durable: bool = False
    ) -> "MemoryPartial":
        self._products[name] = {part: np.empty(shape, dtype) for part, (shape, dtype) in shapes.items()}
        return MemoryPartial(self._products[name])

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]:
        """Nothing: what is in memory is of this run."""
        return []

    def drop(self, name: str) -> None:
        self._products.pop(name, None)

    def drop_scratch(self) -> None:
        """Forget all products without a suffix."""
        for name in [name for name in self._products if is_scratch(name)]:
            self.drop(name)

    def scratch_file(self, name: str) -> Path | None:
        return None

    def relieve(self) -> None:
        """Do nothing: there is nowhere else to keep what is in memory."""

    def describe(self, computed: Mapping[str, Any]) -> None:
        """Do nothing: products in memory are of this run."""


class MemoryPartial:
    """See ``Partial``; nothing to commit to."""

    done = 0

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def commit(self, done: int) -> None:
        """Do nothing: what is in memory does not outlive the process."""

    def close(self) -> None:
        """Do nothing, likewise."""

    def finish(self) -> Arrays:
        for array in self.arrays.values():
            array.flags.writeable = False  # as maps of finished files are; numba compiles once for both
        return self.arrays


class RunFolder:
    """Products as files of a folder that one process at a time may use; a ``with`` unlocks it.

    Names end in ``.npy`` (one array) or ``.npz`` (several, uncompressed, so that they can be mapped), or have no
    suffix: scratch, a folder of ``.npy`` files. ``choice`` is what messages tell the user to choose anew. What the
    folder's record does not name is not ours and stays as it is, see ``fcdeploy.data.run_record``. Raises InputError
    when the folder's parent does not exist, when it is a file, when it holds files and no record of ours, when another
    run is using it, and for a product whose place is taken by something that is not ours.
    """

    def __init__(self, path: Path | str, choice: str = "--run-dir") -> None:
        self.path = Path(path)
        check_run_folder(self.path, choice)  # before anything is written there
        try:
            self.path.mkdir(exist_ok=True)
            handle = open_own(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_APPEND)
            opened = os.fdopen(handle, "a+")
        except FileNotFoundError:
            raise InputError(
                f"{path}: the folder {self.path.parent} does not exist; create it or choose another {choice}."
            ) from None
        except (FileExistsError, NotADirectoryError):
            raise InputError(
                f"{path}: is a file, where a folder is needed; choose another {choice}."
            ) from None
        except PermissionError:
            raise InputError(f"{path}: is not writable; choose another {choice}.") from None
        try:
            self._lock = Lock(opened, self.path / LOCK, told=not self.path.name.startswith(SCRATCH_FOLDER))
        except BusyError as error:
            opened.close()
            raise InputError(
                f"{path}: another run is using this folder ({error}choose another {choice}."
            ) from None
        record = check_run_folder(self.path, choice)  # as the last run to hold the lock left it
        self._products, self.claims = record.products, Claims(self.path, record, choice)
        self.claims.begin()
        self._maps: list[weakref.ref[np.ndarray]] = []

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        self.claims.end()
        self._lock.close()

    def check_free(self, names: Iterable[str]) -> None:
        """Raise InputError when something that is not ours stands where one of these products is to be made.

        Meant to be called before the work starts.
        """
        self.claims.check_free(place for name in names for place in places_of(name))

    def load(self, name: str, key: str) -> Arrays | None:
        """Map the finished product ``name``; None when it is absent, damaged or made of something else."""
        entry = self._products.get(name)
        if entry is None or entry["key"] != key or entry["boot"] not in ("", boot_id()):
            return None
        if size_on_disk(self.place(name)) != entry["bytes"]:
            return None
        try:
            return self.watch(map_arrays(self.place(name)))
        except DAMAGED:
            return None

    def begin(
        self, name: str, key: str, shapes: Shapes, visit: str = "", durable: bool = False
    ) -> "FolderPartial":
        """Open the product for writing, where an interrupted run with the same key left off.

        visit: a hash of the order in which faces are visited; the journal counts them in that order. durable: every
        commit waits until all is on disk, and is trusted after a restart of the machine, too.
        """
        self.claims.claim(*places_of(name))
        self._forget(name)
        return FolderPartial(self, name, key, shapes, visit, durable)

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]:
        """Map what earlier runs committed of durable products whose names start with ``prefix``: name, key, arrays."""
        found = []
        for journal in sorted(self.path.glob(f"{prefix}*{UNFINISHED}/{JOURNAL}")):
            if journal.parent.name not in self.claims:
                continue
            name = journal.parent.name.removesuffix(UNFINISHED)
            first, done = _read_journal(journal)
            if first.endswith(f" {DURABLE}") and done:
                with contextlib.suppress(*DAMAGED):
                    arrays = map_arrays(journal.parent)
                    found.append(
                        (name, first.split()[0], {part: rows[:done] for part, rows in arrays.items()})
                    )
        return found

    def drop(self, name: str) -> None:
        """Delete a product, finished or not."""
        self._forget(name)
        unfinished, final = places_of(name)
        if final in self.claims:
            remove_folder(self.path / final)
        if unfinished in self.claims:
            remove_partial(self.path / unfinished)

    def drop_scratch(self) -> None:
        """Delete all scratch products and everything unfinished, those of earlier runs, too."""
        for name in list(self._products):
            if is_scratch(name):
                self._forget(name)
        for name in self.claims.record.names:
            if name.endswith(UNFINISHED):
                remove_partial(self.path / name)
            elif name.endswith(SCRATCH):
                remove_folder(self.path / name)

    def remove(self) -> None:
        """Delete the folder with all products; anything that is not ours stays, and the folder with it."""
        self.drop_scratch()
        for name in list(self._products):
            self.drop(name)
        self.claims.end()
        if {path.name for path in self.path.iterdir()} <= {RECORD, LOCK}:
            for name in (RECORD, LOCK):  # in this order: a lock alone is known as ours, too
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def place(self, name: str) -> Path:
        """Return where the finished product ``name`` lies; no folder of a user's is called so."""
        return self.path / places_of(name)[1]

    def scratch_file(self, name: str) -> Path | None:
        """Return where a file may be kept that is of no use to a later run."""
        path = self.path / f"{name}{SCRATCH}"
        self.claims.claim(path.name)
        remove_folder(path)
        return path

    def record(self, name: str, key: str) -> None:
        """Note that the product ``name`` is complete."""
        self._products[name] = {
            "key": key,
            "bytes": size_on_disk(self.place(name)),
            "boot": boot_id() if is_scratch(name) else "",
        }
        self.claims.write()

    def describe(self, computed: Mapping[str, Any]) -> None:
        """Record what the run computes, for who reads the folder; no later run goes by it."""
        self.claims.record.computed = dict(computed)
        self.claims.write()

    def watch(self, arrays: Arrays) -> Arrays:
        """Remember maps, so that ``relieve`` can let go of their pages; returns them."""
        self._maps = [ref for ref in self._maps if ref() is not None]
        self._maps += [weakref.ref(array) for array in arrays.values() if isinstance(array, np.memmap)]
        return arrays

    def relieve(self) -> None:
        """Let go of all mapped pages that this process has touched; they are read again when needed."""
        for ref in self._maps:
            array = ref()
            mapped = getattr(array, "_mmap", None)
            if mapped is not None:
                mapped.madvise(mmap.MADV_DONTNEED)

    def _forget(self, name: str) -> None:
        if self._products.pop(name, None) is not None:
            self.claims.write()


class FolderPartial:
    """See ``Partial``; the arrays are maps in ``NAME.part/`` beside a journal."""

    def __init__(
        self, folder: RunFolder, name: str, key: str, shapes: Shapes, visit: str, durable: bool
    ) -> None:
        self._folder, self._name, self._key, self._durable = folder, name, key, durable
        self._first_line = f"{key} {visit or '-'} {DURABLE if durable else boot_id()}"
        self._place = folder.path / f"{name}{UNFINISHED}"
        self.done = self._committed(shapes)
        with no_space_left(self._place):
            if not self.done:
                remove_partial(self._place)
                self._place.mkdir()
                (self._place / JOURNAL).touch()
            self.arrays = folder.watch(
                {part: self._map(part, shape, dtype) for part, (shape, dtype) in shapes.items()}
            )
            self._journal: IO[str] = open(self._place / JOURNAL, "a")  # noqa: SIM115 - closed by finish
            if not self.done:
                self._append(self._first_line)
            if durable:
                sync_folder(self._place)
                sync_folder(folder.path)

    def commit(self, done: int) -> None:
        """Declare what was written so far done."""
        with no_space_left(self._place):
            if self._durable:
                for array in self.arrays.values():
                    if isinstance(array, np.memmap):
                        array.flush()
            self._append(str(done))

    def close(self) -> None:
        """Leave the product as it is, to be continued by a later run."""
        self._journal.close()
        self.arrays.clear()

    def finish(self) -> Arrays:
        """Give the product its final name and map it."""
        self._journal.close()
        final = self._folder.place(self._name)
        parts = list(self.arrays)
        self.arrays.clear()
        if final.suffix == ".npy":
            sync_file(self._place / f"{parts[0]}.npy")
            os.replace(self._place / f"{parts[0]}.npy", final)
        elif final.suffix == ".npz":
            # Written among the arrays, so that what a killed process leaves goes with them.
            archived = self._place / final.name
            with no_space_left(final), zipfile.ZipFile(archived, "w", zipfile.ZIP_STORED) as archive:
                for part in parts:
                    self._store(archive, part)
            sync_file(archived)
            os.replace(archived, final)
        else:
            remove_folder(final)
            (self._place / JOURNAL).unlink()
            os.replace(self._place, final)
        sync_folder(self._folder.path)
        self._folder.record(self._name, self._key)
        with contextlib.suppress(OSError):
            remove_partial(self._place)
        return self._folder.watch(map_arrays(final))

    def _committed(self, shapes: Shapes) -> int:
        first, done = _read_journal(self._place / JOURNAL)
        if self._place.is_symlink() or first != self._first_line:
            return 0
        whole = all(self._is_whole(self._place / f"{part}.npy", *shapes[part]) for part in shapes)
        return done if whole else 0

    def _is_whole(self, file: Path, shape: tuple[int, ...], dtype: Any) -> bool:
        """Tell whether a file is an array in the making, as large as it has to be and no link to another."""
        if file.is_symlink() or not file.is_file():
            return False
        try:
            found = np.load(file, mmap_mode="r")  # a header that promises too much fails here
        except DAMAGED:
            return False
        return bool(found.shape == tuple(shape) and found.dtype == dtype)

    def _map(self, part: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        file = self._place / f"{part}.npy"
        if self.done:
            return _mapped_to_write(file)
        if 0 in shape:  # nothing to map
            array = np.empty(shape, dtype)
            np.save(file, array)
            return array
        # Take the space before mapping it: a write into a map of a full disk kills the process.
        with open(file, "wb") as opened:
            header = {
                "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
                "fortran_order": False,
                "shape": shape,
            }
            np.lib.format.write_array_header_1_0(opened, header)
            opened.flush()
            take_space(opened, math.prod(shape) * np.dtype(dtype).itemsize)
        return _mapped_to_write(file)

    def _append(self, line: str) -> None:
        self._journal.write(line + "\n")
        self._journal.flush()
        if self._durable:
            os.fsync(self._journal.fileno())

    def _store(self, archive: zipfile.ZipFile, part: str) -> None:
        info = zipfile.ZipInfo(f"{part}.npy")  # with the fixed date of ZipInfo: same arrays, same bytes
        with (
            open(self._place / f"{part}.npy", "rb") as source,
            archive.open(info, "w", force_zip64=True) as target,
        ):
            shutil.copyfileobj(source, target, COPY_BYTES)


def take_space(file: IO[bytes], size: int) -> None:
    """Make a file larger by ``size`` bytes of zeros, for which there is room on the disk from then on."""
    try:
        os.posix_fallocate(file.fileno(), 0, file.tell() + size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENODEV):
            raise
        zeros = bytes(min(size, COPY_BYTES))
        for start in range(0, size, COPY_BYTES):
            file.write(zeros[: size - start])
        file.flush()


def _mapped_to_write(file: Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r+")
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EINVAL, errno.EOPNOTSUPP):
            raise
        raise FcdeployError(
            f"{file.parent.parent}: its file system cannot map files into memory, which a run needs; choose another "
            "--run-dir or --scratch."
        ) from error


def places_of(name: str) -> tuple[str, str]:
    """Return the names that a product has in a run folder, unfinished and finished."""
    return f"{name}{UNFINISHED}", f"{name}{SCRATCH}" if is_scratch(name) else name


def remove_partial(place: Path) -> None:
    """Delete a product in the making; its journal last, by which what a kill leaves of it is known as ours."""
    if place.is_dir() and not place.is_symlink():
        for path in place.iterdir():
            if path.name != JOURNAL:
                remove_folder(path)
    remove_folder(place)


def _read_journal(path: Path) -> tuple[str, int]:
    """Return a journal's first line and the last number in it; 0 when there is none that can be trusted."""
    try:
        text = path.read_text()
        first, *rows = text.splitlines()
        return first, int(rows[-1]) if text.endswith("\n") else 0  # a full disk may cut a line short
    except (OSError, ValueError, IndexError):
        return "", 0


def map_arrays(path: Path) -> Arrays:
    """Map the arrays of a product read-only: of an ``.npy`` file under the name ``array``, else under their own."""
    if path.is_dir():
        return {file.stem: _map_npy(file) for file in sorted(path.glob("*.npy"))}
    if path.suffix == ".npy":
        return {"array": _map_npy(path)}
    arrays = {}
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        for info in archive.infolist():
            file.seek(info.header_offset + 26)
            lengths = np.frombuffer(file.read(4), "<u2")
            file.seek(info.header_offset + 30 + int(lengths.sum()))
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            empty = 0 in shape
            arrays[info.filename.removesuffix(".npy")] = (
                np.empty(shape, dtype) if empty else np.memmap(path, dtype, "r", file.tell(), shape)
            )
    return arrays


def is_scratch(name: str) -> bool:
    """Tell whether a product is of use to the run that made it only, and deleted at its end."""
    return not Path(name).suffix


def size_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of the files in a folder; -1 when there is neither."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.iterdir())
    return path.stat().st_size if path.is_file() else -1


def boot_id() -> str:
    """Return what changes whenever the machine starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"  # trust nothing unsynced of another process


def _map_npy(path: Path) -> np.ndarray:
    array = np.load(path, mmap_mode=None if path.stat().st_size < mmap.PAGESIZE else "r")
    array.flags.writeable = False
    return array


def expected_bytes(shapes: Shapes) -> int:
    """Return how many bytes the arrays of a product take."""
    return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in shapes.values())
