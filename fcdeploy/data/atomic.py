"""Files that appear whole or not at all: written beside their place, synced, then renamed into it."""

import contextlib
import ctypes
import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from fcdeploy.data.leftovers import part_file, remove_leftovers
from fcdeploy.errors import FcdeployError, InputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of renameat2


def check_parent(path: Path | str) -> Path:
    """Return ``path`` when a file can be made there.

    Raises InputError when its folder does not exist or may not be written to, or when ``path`` is a folder, a pipe or a
    device, whose place a file would take.
    Meant to be called before the work starts, so that hours are not lost to a mistyped output.
    """
    path = Path(path)
    folder = path.parent
    if not folder.is_dir():
        raise InputError(f"{path}: the folder {folder} does not exist; create it or choose another output.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder {folder} is not writable; choose another output.")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give the name of a file to write.")
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is a pipe or a device; give the name of a file to write.")
    return path


@contextlib.contextmanager
def atomic_file(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a binary file that takes the name ``path`` when the block ends without an exception.

    Until then (and for ever, when the block raises) whatever stood at ``path`` is left as it was. A symlink
    at ``path`` is replaced, never followed. Raises FcdeployError when the disk is full.
    """
    path = check_parent(path)
    remove_leftovers(path.parent)
    handle, part = part_file(path)
    try:
        with no_space_left(path), os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            with contextlib.suppress(OSError):  # of a file system that has no modes
                # mkstemp's 0600 is for secrets; results are ordinary files.
                os.fchmod(file.fileno(), 0o666 & ~umask())
            os.fsync(file.fileno())
            os.replace(part, path)  # while the file is open, and with it its lock held
        sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def exchange(first: Path, second: Path) -> None:
    """Let two files or folders take each other's names at once; in two steps where the file system cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2  # os.rename has no such flag
    except AttributeError:
        swap = None
    names = os.fsencode(first), os.fsencode(second)
    if swap is not None and not swap(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        return
    if swap is not None and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(second))
    aside = Path(tempfile.mkdtemp(prefix=f".{second.name}.", suffix=".old", dir=second.parent))
    os.rename(second, aside / second.name)  # for an instant there is nothing of that name, never half of one
    os.rename(first, second)
    os.rename(aside / second.name, first)
    aside.rmdir()


@contextlib.contextmanager
def no_space_left(path: Path | str) -> Iterator[None]:
    """Turn "no space left on device" inside the block into one sentence about ``path``."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        free = shutil.disk_usage(Path(path).parent).free
        raise FcdeployError(
            f"{path}: the disk is full ({free / 1e6:.0f} MB free); make room and run the same command again."
        ) from error


def open_own(path: Path, flags: int) -> int:
    """Open a file that is ours to write; returns its descriptor.

    Raises InputError when a symlink stands there, which would have us write over whatever it points to.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise InputError(f"{path}: is a symbolic link, which is not followed; remove it.") from None


def begins_with(path: Path, *beginnings: bytes) -> bool:
    """Tell whether a file begins as those of ours do that lie beside an output; an empty one is nobody's loss."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        found = file.read(max(map(len, beginnings)))
    return not found or found.startswith(beginnings)


def remove_folder(path: Path) -> None:
    """Delete a folder with all that is in it, or the symlink that stands in its place, if there is either."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.exists():
        shutil.rmtree(path)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` survive a power cut, where the file system knows how."""
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES):
            raise


def sync_file(path: Path) -> None:
    """Wait until what was written to a file, or into a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def umask() -> int:
    """Return the permissions that files of this process are made without."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
