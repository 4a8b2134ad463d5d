"""A folder for one run at a time, also on file systems that have no locks (NFS without a lock daemon, some of FUSE)."""

import contextlib
import errno
import fcntl
import os
import re
import threading
import warnings
from pathlib import Path
from typing import IO

from fcdeploy.errors import FcdeployWarning

NONE_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
TAKEN = (errno.EAGAIN, errno.EACCES)
OWNER = re.compile(r"(\d+) (\d+) (\S+)")  # process, when it started, and its host
CONTENT = re.compile(rb"(\d+( \d+ \S+)?\n)*\d*\n?")  # of a lock file

_held: set[tuple[int, int]] = set()
_held_lock = threading.Lock()


class BusyError(Exception):
    """Another process holds the lock; the text says who, and what to do about it."""


class Lock:
    """A lock on an open file, of this run alone, until ``close``.

    Where the system cannot lock files, the file holds the names of the processes that want it, and the first of them
    that is alive has it. Of processes on other machines nobody knows whether they are. Raises BusyError.

    told: whether people are told that there are no locks.
    """

    def __init__(self, file: IO[str], place: Path | str, *, told: bool = True) -> None:
        self._file = file
        described = os.fstat(file.fileno())
        self._key = (described.st_dev, described.st_ino)
        with _held_lock:
            if self._key in _held:  # by another thread, which locks of processes do not see
                raise BusyError(f"process {os.getpid()}); wait for it or ")
            self.real = self._lock()
            if not self.real:
                self._take_by_name(place)
                if told:
                    warnings.warn(
                        f"{place}: its file system has no locks; make sure that no run on another machine uses this "
                        "folder at the same time.",
                        FcdeployWarning,
                        stacklevel=4,
                    )
            _held.add(self._key)

    def close(self) -> None:
        """Give the lock back and close the file."""
        with _held_lock:
            _held.discard(self._key)
        if not self.real:
            with contextlib.suppress(OSError):
                self._file.truncate(0)
        self._file.close()

    def _lock(self) -> bool:
        for call in (fcntl.flock, fcntl.lockf):
            try:
                call(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in TAKEN:
                    owner = self._content().strip() or "unknown"
                    raise BusyError(f"process {owner}); wait for it or ") from None
                if error.errno not in NONE_HERE:
                    raise
            else:
                self._file.truncate(0)
                self._file.write(f"{os.getpid()}\n")
                self._file.flush()
                return True
        return False

    def _take_by_name(self, place: Path | str) -> None:
        own = f"{os.getpid()} {_started(os.getpid())} {host_name()}"
        self._check_names(place, own)
        self._file.write(f"{own}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self._check_names(place, own)  # another may have come at the same time; the first in the file has it

    def _check_names(self, place: Path | str, own: str) -> None:
        for process, started, host in OWNER.findall(self._content()):
            if f"{process} {started} {host}" == own:
                return
            if host != host_name():
                raise BusyError(
                    f"process {process} on {host}, or it ended without deleting it); if it is not running, delete "
                    f"{place}, or "
                )
            if _started(int(process)) == int(started):
                raise BusyError(f"process {process}); wait for it or ")

    def _content(self) -> str:
        self._file.seek(0)
        return self._file.read()


def host_name() -> str:
    return re.sub(r"\s", "-", os.uname().nodename) or "-"


def _started(process: int) -> int:
    """Return when a process of this machine started, in ticks of its clock; -1 if there is none."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return -1
