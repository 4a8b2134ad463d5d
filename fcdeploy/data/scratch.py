"""Where files go that a run deletes at its end: on a disk, beside the output or where the user says."""

import contextlib
import os
import tempfile
from contextlib import AbstractContextManager
from pathlib import Path

from fcdeploy.data.leftovers import remove_leftovers, temporary_folder_in
from fcdeploy.errors import InputError
from fcdeploy.machine import is_in_memory

ELSEWHERE = ("/var/tmp",)


def scratch_folder(
    given: Path | str | None = None, beside: Path | str | None = None, *, needed: bool = True
) -> Path:
    """Return the folder for scratch files: the given one, or the first that is on a disk and can be written to.

    beside: the folder of the output, which is the first to be tried; behind it come the system's folders for temporary
    files and the current one. What lies in a folder that is kept in memory (tmpfs, as many a /tmp is) takes the memory
    that it is meant to spare. needed: raise InputError where all are such, instead of returning one of them. Raises
    InputError for a given folder that is none or cannot be written to.
    """
    if given is not None:
        given = Path(given)
        if not given.is_dir():
            raise InputError(f"--scratch {given}: is not a folder; create it or choose another.")
        if not os.access(given, os.W_OK | os.X_OK):
            raise InputError(f"--scratch {given}: is not writable; choose another.")
        remove_leftovers(given)
        return given
    places = [] if beside is None else [Path(beside)]
    with contextlib.suppress(OSError):  # there is none
        places.append(Path(tempfile.gettempdir()))
    places += [*map(Path, ELSEWHERE), Path.cwd()]
    usable = [place for place in places if place.is_dir() and os.access(place, os.W_OK | os.X_OK)]
    for place in usable:
        if not is_in_memory(place):
            remove_leftovers(place)
            return place
    if usable and not needed:
        remove_leftovers(usable[0])
        return usable[0]
    shown = ", ".join(map(str, dict.fromkeys(usable))) or "none"
    raise InputError(
        f"there is no folder on a disk for scratch files (of those tried, {shown} can be written to, and is kept in "
        "memory); give --scratch DIR (in Python, scratch=DIR)."
    )


def temporary_folder(beside: Path) -> AbstractContextManager[str]:
    """Return a new folder, which a ``with`` deletes, where ``scratch_folder`` says."""
    return temporary_folder_in(scratch_folder(beside=beside, needed=False))
