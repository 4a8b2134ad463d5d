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

LEASE = "run.lease"
RENEWED = 5.0  # seconds between two renewals
PATIENCE = 4 * RENEWED  # for which a count may stand still
CONTENT = re.compile(r"(\S+) (\d+) (\d+)\n")


class Lease:
    """A file that is renewed until ``close``."""

    def __init__(self, path: Path) -> None:
        self._path, self._count, self._over = path, 0, threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._renew, name="fcdeploy-lease", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the folder back and delete the file."""
        self._over.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED):
            with contextlib.suppress(OSError):  # a server that is away for a while; the next time, then
                self._write()

    def _write(self) -> None:
        self._count += 1
        handle = open_own(self._path, os.O_WRONLY | os.O_CREAT)
        try:
            # Closed each time: other machines see what a file held when it was last closed.
            os.pwrite(handle, f"{host_name()} {os.getpid()} {self._count:012d}\n".encode(), 0)
            os.ftruncate(handle, len(f"{host_name()} {os.getpid()} {self._count:012d}\n".encode()))
            os.fsync(handle)
        finally:
            os.close(handle)


def check_not_leased(path: Path, patience: float | None = None) -> None:
    """Raise BusyError when a run on another host has the folder; one that is gone is found to be after ``patience``.

    Of runs on this host the lock is what counts.
    """
    first = _read(path)
    if first is None or first[0] == host_name():
        return
    until = time.monotonic() + (PATIENCE if patience is None else patience)
    while time.monotonic() < until:
        time.sleep(min(1.0, RENEWED / 5))
        now = _read(path)
        if now is None:  # it has ended in the meantime
            return
        if now != first:
            raise BusyError(f"process {now[1]} on {now[0]}); wait for it or ")


def _read(path: Path) -> tuple[str, int, int] | None:
    try:
        found = CONTENT.fullmatch(path.read_text())
    except (OSError, ValueError):
        return None
    return (found[1], int(found[2]), int(found[3])) if found else None
