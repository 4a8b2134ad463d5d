"""A run folder: artifacts as folders of ``.npy`` files, each complete or absent, and what lets a run go on.

An artifact is one or more arrays over all faces, computed block by block. Its arrays are memory maps in
``NAME.part/`` until the last block is done; a journal beside them names the finished blocks, so that the same command
continues from there. Every artifact has a key, a hash of all that made it; one with another key is computed again.

Artifacts that are kept (``NAME/``) are synced to disk before they get their names. Scratch artifacts
(``NAME.scratch/``) and journals are not: they are trusted only until the machine restarts, which is as long as the
kernel keeps what a killed process had written. A durable artifact, whose blocks are worth it, is synced with every
commit.
"""

import contextlib
import errno
import math
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from fcdeploy.data.atomic import (
    no_space_left,
    open_own,
    remove_folder,
    sync_file,
    sync_folder,
)
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.data.lease import LEASE, Content, Lease, LostError, check_not_leased
from fcdeploy.data.locks import BusyError, Lock
from fcdeploy.data.run_record import (
    JOURNAL,
    LOCK,
    RECORD,
    SCRATCH,
    UNFINISHED,
    Claims,
    Entry,
    check_run_folder,
)
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.machine import is_local
from fcdeploy.run.block_files import BLOCKS
from fcdeploy.run.maps import Maps, map_arrays, size_on_disk
from fcdeploy.run.store import Arrays, Shapes, Span, fixed

SUMMARY = "summary.json"
DURABLE = "durable"  # in a journal, instead of what is trusted until the next start only
COPY_BYTES = 1 << 24
CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EIO, errno.EPERM)
SCRATCH_FOLDER = ".fcdeploy-run-"  # begins the name of a run's own folder
HEADER_BYTES = 128  # of an array whose length is known when it is finished


class RunFolder:
    """Artifacts in a folder that one process at a time may use; a ``with`` unlocks it.

    ``choice`` is what messages tell the user to choose again. What the folder's record does not name is not ours and
    stays as it is, see ``fcdeploy.data.run_record``. Artifacts that an earlier version left are deleted, and the user
    is told. shared: whether other machines read artifacts while the run goes on, so that scratch ones are synced, too;
    then, and on a file system of several machines, a lease tells them that the folder is taken.

    Raises InputError when the folder's parent does not exist, when it is a file, when it holds files and no
    record of ours, when another run is using it, and for an artifact whose place is taken by something that is not
    ours.
    """

    def __init__(self, path: Path | str, choice: str = "--run-dir", *, shared: bool = False) -> None:
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
        try:
            gone = check_not_leased(self.path / LEASE)
        except BusyError as error:
            self._lock.close()
            raise InputError(
                f"{path}: another run is using this folder ({error}choose another {choice}."
            ) from None
        record = check_run_folder(self.path, choice)  # as the last run to hold the lock left it
        self._entries, self.claims = record.artifacts, Claims(self.path, record, choice)
        if record.outdated:
            self._begin_anew(record.outdated)
        self.claims.begin()
        self._lease: Lease | None = None
        self.read_elsewhere = shared and not is_local(self.path)
        if shared or not is_local(self.path):
            self._lease = self._begin_lease(gone, choice)
        elif LEASE in self.claims:
            (self.path / LEASE).unlink(missing_ok=True)  # of a run that was killed
        self._maps = Maps()

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.check_ours()
            ours = True
        except FcdeployError:
            ours = False
        self._give_back()
        if ours:
            self.claims.end()
        self._lock.close()

    def _begin_lease(self, gone: Content | None, choice: str) -> Lease:
        """Begin the lease; gone: the one that was found when we came, of a run that is gone."""
        try:
            if gone is None:
                gone = check_not_leased(self.path / LEASE)  # somebody may have come at the same time
            self.claims.claim(LEASE)
            return Lease(self.path / LEASE, gone)
        except BusyError as error:
            self._lock.close()
            raise InputError(
                f"{self.path}: another run is using this folder ({error}choose another {choice}."
            ) from None

    def check_ours(self) -> None:
        """Raise FcdeployError when a run on another machine has taken the folder while this one stood still."""
        try:
            if self._lease is not None:
                self._lease.check()
        except LostError as error:
            raise FcdeployError(
                f"{self.path}: was taken over by {error}, while this run was suspended; this run stops, and writes "
                "nothing more."
            ) from None

    def _give_back(self) -> None:
        """End the lease, if there is one."""
        if self._lease is not None:
            self._lease.close()
            self._lease = None

    def _begin_anew(self, outdated: Iterable[str]) -> None:
        """Delete what an earlier version left, which this one does not read."""
        warnings.warn(
            f"{self.path}: was written by an earlier version of fcdeploy, whose files this one does not read; all "
            "stages are computed again.",
            FcdeployWarning,
            stacklevel=4,
        )
        for name in outdated:
            remove_folder(self.path / name)
        self.claims.record.names -= set(outdated)
        self.claims.write()

    def check_free(self, places: Iterable[str]) -> None:
        """Raise InputError when something that fcdeploy did not write stands at one of ``places``, see ``places_of``.

        Meant to be called before the work starts.
        """
        self.claims.check_free(places)

    def load(self, name: str, key: str) -> Arrays | None:
        """Map the finished artifact ``name``; None when it is absent, damaged or made of something else."""
        entry = self.entry(name, key)
        if entry is None:
            return None
        if size_on_disk(self._place_of(name, entry), entry.parts) != entry.bytes:
            return None
        try:
            return self.watch(map_arrays(self._place_of(name, entry), entry.parts))
        except DAMAGED:
            return None

    def entry(self, name: str, key: str) -> Entry | None:
        """Return what is recorded of the finished artifact ``name`` of this key, if it is and can be trusted."""
        entry = self._entries.get(name)
        return entry if entry is not None and entry.key == key and entry.boot in ("", boot_id()) else None

    def begin(
        self,
        name: str,
        key: str,
        shapes: Shapes,
        visit: str = "",
        *,
        durable: bool = False,
        scratch: bool = False,
    ) -> "FolderPartial":
        """Open an artifact for writing, where an interrupted run with the same key left off.

        visit: a hash of the order in which faces are visited, which the journal's blocks refer to. durable: every
        commit waits until all is on disk, and is trusted after a restart of the machine, too. scratch: the artifact is
        of use to the run that makes it only, and deleted at its end.
        """
        self.check_ours()
        self.claims.claim(*places_of(name, scratch))
        self._drop_finished(name)
        return FolderPartial(self, name, key, shapes, visit, durable, scratch)

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]:
        """Map what earlier runs committed, from the first row on, of durable artifacts with this beginning of the name.

        Returns names, keys and arrays.
        """
        found = []
        for journal in sorted(self.path.glob(f"{prefix}*{UNFINISHED}/{JOURNAL}")):
            if journal.parent.name not in self.claims:
                continue
            name = journal.parent.name.removesuffix(UNFINISHED)
            first, finished = _read_journal(journal)
            done = rows_from_the_first(finished)
            if first.endswith(f" {DURABLE}") and done:
                with contextlib.suppress(*DAMAGED):
                    arrays = map_arrays(journal.parent)
                    found.append(
                        (name, first.split()[0], {part: rows[:done] for part, rows in arrays.items()})
                    )
        return found

    def drop(self, name: str) -> None:
        """Delete an artifact, finished or not."""
        self.check_ours()
        self._drop_finished(name)
        if (unfinished := places_of(name)[0]) in self.claims:
            remove_partial(self.path / unfinished)

    def _drop_finished(self, name: str) -> None:
        parts = self._entries[name].parts if name in self._entries else []
        kept, scratch = (places_of(name, scratch)[1] for scratch in (False, True))
        if kept in self.claims:
            remove_arrays(self.path / kept, parts)
        if scratch in self.claims:
            remove_folder(self.path / scratch)
        self._forget(name)  # last: it says which files are ours, also to the run after a kill

    def drop_scratch(self) -> None:
        """Delete all scratch artifacts and everything unfinished, those of earlier runs, too."""
        self.check_ours()
        for name, entry in list(self._entries.items()):
            if entry.boot:
                self._forget(name)
        for name in self.claims.record.names:
            if name.endswith(UNFINISHED):
                remove_partial(self.path / name)
            elif name.endswith(SCRATCH):
                remove_folder(self.path / name)

    def remove(self) -> None:
        """Delete the folder with all artifacts; anything that is not ours stays, and the folder with it."""
        self.check_ours()
        self._give_back()
        self.drop_scratch()
        for name in list(self._entries):
            self.drop(name)
        self.claims.end()
        if {path.name for path in self.path.iterdir()} <= {RECORD, LOCK}:
            for name in (RECORD, LOCK):  # in this order: a lock alone is known as ours, too
                (self.path / name).unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                self.path.rmdir()

    def _place_of(self, name: str, entry: Entry) -> Path:
        return self.path / places_of(name, scratch=bool(entry.boot))[1]

    def scratch_file(self, name: str) -> Path | None:
        """Return where a file may be kept that is of no use to a later run."""
        path = self.path / f"{name}{SCRATCH}"
        self.claims.claim(path.name)
        remove_folder(path)
        return path

    @property
    def finished(self) -> Mapping[str, Entry]:
        """The finished artifacts by name."""
        return self._entries

    def record(self, name: str, entry: Entry) -> None:
        """Note that the artifact ``name`` is complete, or about to be."""
        self.check_ours()
        self._entries[name] = entry
        self.claims.write()

    def describe(self, computed: Mapping[str, object]) -> None:
        """Record what the run computes, for who reads the folder; no later run goes by it."""
        self.check_ours()
        self.claims.record.computed = dict(computed)
        self.claims.write()

    def watch(self, arrays: Arrays) -> Arrays:
        """Remember maps, so that ``release_pages`` can release them; returns them."""
        return self._maps.watch(arrays)

    def release_pages(self) -> None:
        """Let go of all mapped pages that this process has touched; they are read again when needed."""
        self._maps.release_pages()

    def _forget(self, name: str) -> None:
        if self._entries.pop(name, None) is not None:
            self.claims.write()


class FolderPartial:
    """See ``Partial``; the arrays are maps in ``NAME.part/`` beside a journal."""

    def __init__(
        self, folder: RunFolder, name: str, key: str, shapes: Shapes, visit: str, durable: bool, scratch: bool
    ) -> None:
        self._folder, self._name, self._key, self._durable = folder, name, key, durable
        self.name, self.key = name, key
        self._scratch, self._shapes = scratch, shapes
        self._first_line = f"{key} {visit or '-'} {DURABLE if durable else boot_id()}"
        self._place = folder.path / f"{name}{UNFINISHED}"
        self.finished = self._committed()
        with no_space_left(self._place):
            if self.finished:
                _cut_to_whole_lines(self._place / JOURNAL)
            else:
                begun, _ = _read_journal(self._place / JOURNAL)
                remove_partial(self._place, but=BLOCKS if begun == self._first_line else "")
                self._place.mkdir(exist_ok=True)
                (self._place / JOURNAL).touch()
            self.arrays = folder.watch(
                {part: self._map(part, shape, dtype) for part, (shape, dtype) in fixed(shapes).items()}
            )
            self._copied_to: dict[str, int] = {}  # descriptors of arrays, by name
            self._growing = {part: self._open(part) for part in shapes if part not in self.arrays}
            self._journal: IO[str] = open(self._place / JOURNAL, "a")  # noqa: SIM115 - closed by finish
            if not self.finished:
                self._append(self._first_line)
            if durable:
                sync_folder(self._place)
                sync_folder(folder.path)

    def folder_of_blocks(self) -> Path:
        """Make the folder, unless there is one, in which others leave blocks for this artifact."""
        folder = self._place / BLOCKS
        folder.mkdir(exist_ok=True)
        return folder

    def copy_rows(self, part: str, first: int, file: int, at: int, count: int) -> bool:
        """Let the system copy rows of an array, from ``first`` on, out of an open file, where they begin at ``at``.

        False where it cannot, or several machines may see the file in different states: then nothing is said of these
        rows.
        """
        array = self.arrays[part]
        if not isinstance(array, np.memmap) or self._folder.read_elsewhere:
            return False
        if part not in self._copied_to:
            self._copied_to[part] = open_own(self._place / f"{part}.npy", os.O_WRONLY)
        row = array.strides[0]
        to, left = array.offset + first * row, count * row
        with no_space_left(self._place):
            try:
                while left:
                    copied = os.copy_file_range(file, self._copied_to[part], left, at, to)
                    if not copied:
                        return False
                    at, to, left = at + copied, to + copied, left - copied
            except OSError as error:
                if error.errno not in CANNOT_COPY:
                    raise
                return False
        return True

    def append(self, part: str, rows: np.ndarray) -> int:
        """Add rows to an array that grows with every block; returns the number of rows before them."""
        file = self._growing[part]
        before = self._length(part)
        with no_space_left(self._place):
            file.write(np.ascontiguousarray(rows).data)
            file.flush()
        return before

    def commit(self, start: int, stop: int) -> None:
        """Declare the rows of a block written."""
        self._folder.check_ours()
        with no_space_left(self._place):
            if self._durable:
                for array in self.arrays.values():
                    if isinstance(array, np.memmap):
                        array.flush()
            self._append(f"{start} {stop}")
        self.finished.append((start, stop))

    def close(self) -> None:
        """Leave the artifact as it is, to be continued by a later run."""
        self._journal.close()
        for file in self._growing.values():
            file.close()
        for descriptor in self._copied_to.values():
            os.close(descriptor)
        self._copied_to.clear()
        self.arrays.clear()

    def finish(self) -> Arrays:
        """Give the artifact its final name and map it."""
        self._folder.check_ours()
        for part, file in self._growing.items():
            shape, dtype = self._shapes[part]
            with no_space_left(self._place):
                file.seek(0)
                file.write(npy_header((self._length(part), *shape[1:]), dtype))  # type: ignore[arg-type]
        parts = [*self._shapes]
        self.close()
        self._remove_blocks()
        final = self._folder.path / places_of(self._name, self._scratch)[1]
        if not self._scratch or self._folder.read_elsewhere:
            for part in parts:
                sync_file(self._place / f"{part}.npy")
            sync_folder(self._place)
        remove_arrays(final, parts)  # of a run that was killed in the middle of what follows
        # Recorded first: a kill from here on leaves files that are known as ours, and no artifact until all are there.
        size, boot = size_on_disk(self._place, parts), boot_id() if self._scratch else ""
        self._folder.record(self._name, Entry(self._key, size, boot, parts))
        # Under the journal a kill leaves what can be continued, without it what has all arrays.
        if final.exists():  # with files of the user's, which stay
            for part in parts:
                os.replace(self._place / f"{part}.npy", final / f"{part}.npy")
            sync_folder(final)
            remove_partial(self._place)
        else:
            (self._place / JOURNAL).unlink()
            os.replace(self._place, final)
        sync_folder(self._folder.path)
        return self._folder.watch(map_arrays(final, parts))

    def _remove_blocks(self) -> None:
        """Delete what others left for this artifact, also while a late one is about to write there."""
        folder = self._place / BLOCKS
        gone = folder.with_name(f"{BLOCKS}.gone")
        remove_folder(gone)  # of a driver that was killed just here
        if folder.is_dir():
            with contextlib.suppress(FileNotFoundError):
                os.rename(folder, gone)  # from here on nobody gets a file into it
                remove_folder(gone)

    def _committed(self) -> list[Span]:
        first, finished = _read_journal(self._place / JOURNAL)
        if self._place.is_symlink() or first != self._first_line:
            return []
        known = fixed(self._shapes)
        whole = all(
            self._is_whole(self._place / f"{part}.npy", *known[part])
            if part in known
            else (self._place / f"{part}.npy").is_file()
            for part in self._shapes
        )
        return finished if whole else []

    def _length(self, part: str) -> int:
        """Return how many rows an array that grows has by now."""
        shape, dtype = self._shapes[part]
        row = np.dtype(dtype).itemsize * math.prod(length for length in shape[1:] if length is not None)
        return (os.path.getsize(self._place / f"{part}.npy") - HEADER_BYTES) // row

    def _open(self, part: str) -> IO[bytes]:
        """Open an array that grows, after the last whole row that an earlier run wrote."""
        path = self._place / f"{part}.npy"
        if not path.exists():
            path.write_bytes(bytes(HEADER_BYTES))
        shape, dtype = self._shapes[part]
        row = np.dtype(dtype).itemsize * math.prod(length for length in shape[1:] if length is not None)
        os.truncate(path, HEADER_BYTES + self._length(part) * row)
        file = open(path, "r+b")  # noqa: SIM115 - closed by close
        file.seek(0, os.SEEK_END)
        return file

    def _is_whole(self, file: Path, shape: tuple[int, ...], dtype: npt.DTypeLike) -> bool:
        """Tell whether a file is an array in the making, as large as it has to be and no link to another."""
        if file.is_symlink() or not file.is_file():
            return False
        try:
            found = np.load(file, mmap_mode="r")  # a header that promises too much fails here
        except DAMAGED:
            return False
        return bool(found.shape == tuple(shape) and found.dtype == dtype)

    def _map(self, part: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> np.ndarray:
        file = self._place / f"{part}.npy"
        if self.finished:
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


def places_of(name: str, scratch: bool = False) -> tuple[str, str]:
    """Return the names that an artifact has in a run folder, unfinished and finished."""
    return f"{name}{UNFINISHED}", f"{name}{SCRATCH}" if scratch else name


def remove_partial(place: Path, but: str = "") -> None:
    """Delete an artifact in the making; its journal last, by which what a kill leaves of it is known as ours.

    but: what stays, and the folder with it, if it is there.
    """
    if place.is_dir() and not place.is_symlink():
        for path in place.iterdir():
            if path.name not in (JOURNAL, but):
                remove_folder(path)
        if but and (place / but).is_dir():
            (place / JOURNAL).unlink(missing_ok=True)
            return
    remove_folder(place)


def remove_arrays(place: Path, parts: Iterable[str]) -> None:
    """Delete the arrays of a finished artifact, and its folder unless somebody put other files there."""
    if place.is_symlink() or place.is_file():
        place.unlink()
    for part in parts:
        (place / f"{part}.npy").unlink(missing_ok=True)
    if place.is_dir():
        with contextlib.suppress(OSError):  # not empty
            place.rmdir()


def rows_from_the_first(finished: Iterable[Span]) -> int:
    """Return how many rows there are without a gap from the first on."""
    done = 0
    for start, stop in sorted(finished):
        if start > done:
            break
        done = max(done, stop)
    return done


def npy_header(shape: tuple[int, ...], dtype: npt.DTypeLike) -> bytes:
    """Return a ``.npy`` header of HEADER_BYTES, whatever the shape.

    The format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
    """
    fields = {
        "descr": np.lib.format.dtype_to_descr(np.dtype(dtype)),
        "fortran_order": False,
        "shape": shape,
    }
    text = f"{fields!r}".ljust(HEADER_BYTES - 11)
    return b"\x93NUMPY\x01\x00" + (HEADER_BYTES - 10).to_bytes(2, "little") + text.encode("latin1") + b"\n"


def _read_journal(path: Path) -> tuple[str, list[Span]]:
    """Return a journal's first line and the blocks that it names; none when it cannot be trusted."""
    try:
        text = path.read_text()
        first, *lines = text.splitlines()
        if not text.endswith("\n"):  # a full disk may cut a line short
            lines = lines[:-1]
        finished = []
        for line in lines:
            start, stop = map(int, line.split())
            finished.append((start, stop))
        return first, finished
    except (OSError, ValueError):
        return "", []


def _cut_to_whole_lines(journal: Path) -> None:
    """Cut off a line that a full disk left unfinished, or the next one would be written behind it."""
    os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)


def boot_id() -> str:
    """Return what changes whenever the machine starts."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return f"process {os.getpid()}"  # trust nothing unsynced of another process
