"""What killed processes left of ours: temporary files and folders whose names say so and whose locks are free.

Whoever makes one holds a lock on it until it has its final name or is gone; the system drops the locks of a process
that ends, however it ends. Only on file systems of one machine is a lock that is free nobody's: on others names say
nothing, and nothing is removed.
"""

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fcdeploy.machine import is_local

RANDOM = "[a-z0-9_]{8}"  # of tempfile
PART = re.compile(
    rf"\..+\.fcdeploy-{RANDOM}\.part", re.DOTALL
)  # of a file or folder that takes a place when it is whole
TEMPORARY = re.compile(rf"\.fcdeploy-tmp-{RANDOM}")
RUN = re.compile(rf"\.fcdeploy-run-{RANDOM}")  # of a run without --run-dir, locked by a file in it
RUN_LOCK = "run.lock"
LONGEST = 200  # bytes of the final name in a temporary one

_looked: set[tuple[int, int]] = set()


def part_file(path: Path) -> tuple[int, Path]:
    """Make a file that is to become ``path``, beside it; returns its descriptor, which holds its lock, and its name."""
    while True:
        handle, name = tempfile.mkstemp(prefix=_prefix(path), suffix=".part", dir=path.parent)
        if _hold(handle, path.parent):
            return handle, Path(name)
        os.close(handle)


@contextlib.contextmanager
def part_folder(path: Path) -> Iterator[Path]:
    """Make a folder that is to become ``path``, beside it; its lock is held until the block ends."""
    with _held_folder(_prefix(path), ".part", path.parent) as part:
        yield part


@contextlib.contextmanager
def temporary_folder_in(folder: Path) -> Iterator[str]:
    """Make a folder in ``folder`` that is deleted when the block ends."""
    with _held_folder(".fcdeploy-tmp-" if is_local(folder) else ".fcdeploy-", "", folder) as made:
        try:
            yield str(made)
        finally:
            shutil.rmtree(made, ignore_errors=True)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed processes left in ``folder``; a process looks into a folder once."""
    try:
        found = os.stat(folder)
        if (found.st_dev, found.st_ino) in _looked or not is_local(folder):
            return
        _looked.add((found.st_dev, found.st_ino))
        entries = [entry for entry in os.scandir(folder) if entry.name.startswith(".")]
    except OSError:
        return
    for entry in entries:
        is_part = PART.fullmatch(entry.name) is not None
        is_folder = TEMPORARY.fullmatch(entry.name) or RUN.fullmatch(entry.name)
        if is_part or is_folder:
            with contextlib.suppress(OSError):
                _remove(Path(entry.path), RUN.fullmatch(entry.name) is not None)


def _prefix(path: Path) -> str:
    mark = "fcdeploy-" if is_local(path.parent) else ""
    return f".{os.fsdecode(os.fsencode(path.name)[:LONGEST])}.{mark}"


def _remove(path: Path, is_run: bool) -> None:
    """Remove a leftover whose owner is gone; raises OSError where it is not, or the file is not ours to remove."""
    lock = path / RUN_LOCK if is_run else path
    mode = os.O_RDWR if is_run else os.O_RDONLY
    handle = os.open(lock, mode | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if os.stat(path, follow_symlinks=False).st_uid != os.geteuid():
            return
        if is_run and not os.fstat(handle).st_size:  # its owner is about to take it
            return
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if is_run:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # which a client of this machine's NFS holds
        if not os.path.samestat(os.fstat(handle), os.stat(lock, follow_symlinks=False)):
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        elif path.is_file():
            path.unlink()
    finally:
        os.close(handle)


@contextlib.contextmanager
def _held_folder(prefix: str, suffix: str, folder: Path) -> Iterator[Path]:
    while True:
        made = Path(tempfile.mkdtemp(prefix=prefix, suffix=suffix, dir=folder))
        try:
            handle = os.open(made, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            if not folder.is_dir():
                raise
            continue  # another process took it for a leftover
        if _hold(handle, folder):
            break
        os.close(handle)
    try:
        yield made
    finally:
        os.close(handle)


def _hold(handle: int, folder: Path) -> bool:
    """Lock what was just made; returns False where another process took it for a leftover in the meantime."""
    if is_local(folder):
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
    return os.fstat(handle).st_nlink > 0
