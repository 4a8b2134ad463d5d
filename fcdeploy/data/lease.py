"""By which runs on other machines see that a folder is in use, also where the locks of files do not reach them.

The run that has a folder writes its host, its process and a count into a file there, every few seconds again. Whoever
finds the file of another host looks whether the count goes on; clocks of two machines are never compared.
"""

import contextlib
import os
import re
import threading
import time
from pathlib import Path

from fcdeploy.data.atomic import open_own
from fcdeploy.data.locks import BusyError, host_name
from fcdeploy.machine import is_local

LEASE = "run.lease"
RENEWED = 5.0  # seconds between two renewals
PATIENCE = 4 * RENEWED  # for which a count may stand still
SETTLED = 1.0  # between looking at an old lease and having a new one, at most
CONTENT = re.compile(r"(\S+) (\d+) (\d+)\n")
Content = tuple[str, int, int]  # host, process, count


class LostError(Exception):
    """Another run has taken the folder, which is no longer ours; the text says which."""


class Lease:
    """A file that is renewed until ``close``.

    gone: what ``check_not_leased`` has found there. Of runs that begin at the same time on several machines one gets
    it; the others raise BusyError.
    """

    def __init__(self, path: Path, gone: Content | None = None) -> None:
        self._path, self._count, self._over = path, 0, threading.Event()
        self._host, self._process = host_name(), os.getpid()
        self._guard, self._renewed, self._lost = threading.Lock(), 0.0, ""
        try:
            self._write(os.O_CREAT | os.O_EXCL)
        except FileExistsError:  # of a run that is gone, or that came at the same time
            if _read(path) != gone:
                check_not_leased(path)
            self._write(os.O_CREAT)
            if not is_local(path.parent):
                time.sleep(
                    SETTLED
                )  # whoever else found the same has written by then, and the last one has it
            if owner := self._owner():
                raise BusyError(f"{owner}); wait for it or ") from None
        self._thread = threading.Thread(target=self._renew, name="fcdeploy-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the folder back and delete the file, where it is ours."""
        self._over.set()
        self._thread.join()
        if not self._owner():
            self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raise LostError when another run has taken the folder, which it may when this process stood still.

        To be asked before anything is written there; as long as the lease was renewed a moment ago, nothing is read.
        """
        if self._lost or _now() - self._renewed > 2 * RENEWED:
            self._renew_once()

    def _renew(self) -> None:
        while not self._over.wait(RENEWED):
            with contextlib.suppress(
                OSError, LostError
            ):  # a server that is away for a while; the next time, then
                self._renew_once()

    def _renew_once(self) -> None:
        with self._guard:
            self._lost = self._lost or self._owner()
            if self._lost:
                raise LostError(self._lost)
            self._write()

    def _owner(self) -> str:
        """Return who has the folder instead of us; nothing when we have it."""
        found = _read(self._path)
        if found is None:
            return "" if self._path.exists() else "another run, which has ended"
        ours = found[:2] == (self._host, self._process)
        return "" if ours else f"process {found[1]} on {found[0]}"

    def _write(self, more: int = 0) -> None:
        self._count += 1
        handle = open_own(self._path, os.O_WRONLY | more)
        try:
            # Closed each time: other machines see what a file held when it was last closed.
            content = f"{self._host} {self._process} {self._count:012d}\n".encode()
            os.pwrite(handle, content, 0)
            os.ftruncate(handle, len(content))
            os.fsync(handle)
        finally:
            os.close(handle)
        self._renewed = _now()


def _now() -> float:
    """Return seconds that go on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def check_not_leased(path: Path, patience: float | None = None) -> Content | None:
    """Raise BusyError when a run on another host has the folder; one that is gone is found to be after ``patience``.

    Of runs on this host the lock is what counts. Returns what the file holds of a run that is gone, if there is one.
    """
    first = _read(path)
    if first is None or first[0] == host_name():
        return first
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    while time.monotonic() < until:
        time.sleep(min(1.0, RENEWED / 5))
        now = _read(path)
        if now is None:  # it has ended in the meantime
            return None
        if now != first:
            raise BusyError(f"process {now[1]} on {now[0]}); wait for it or ")
    return first


def _read(path: Path) -> Content | None:
    try:
        found = CONTENT.fullmatch(path.read_text())
    except (OSError, ValueError):
        return None
    return (found[1], int(found[2]), int(found[3])) if found else None
