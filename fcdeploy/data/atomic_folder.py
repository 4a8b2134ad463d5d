"""Folders that appear whole or not at all, also where one is replaced that holds files of the user's.

The new folder is made beside its place. Files that are not ours get a second name in it (a hard link, so that content,
times and whoever has them open stay), then the folders take each other's names at once, and what was ours goes with the
old one. At every moment the place holds the old folder or the new one, each with all of the user's files.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from fcdeploy.data import atomic
from fcdeploy.data.leftovers import part_folder, remove_leftovers
from fcdeploy.errors import InputError

Ours = Callable[[Path], Collection[str] | None]
NO_LINKS = (errno.EPERM, errno.EACCES, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL)


def check_folder(path: Path | str, ours: Ours, names: Collection[str] = ()) -> Path:
    """Return ``path`` when a folder with the files ``names`` can be made there, or can replace the one that is there.

    ours: returns the names of our own files in an existing folder, None where it is not one of ours; all names may be
    of files in sub-folders ("a/b"). An empty folder is anybody's. Meant to be called before the work starts. Raises
    InputError when the folder above does not exist or may not be written to, when something of the user's is at
    ``path``, and when something of the user's in our folder there has a name that is needed.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(
            f"{path}: the folder {path.parent} does not exist; create it or choose another output."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: the folder {path.parent} is not writable; choose another output.")
    _ours_at(path, ours, names)
    return path


@contextlib.contextmanager
def atomic_folder(path: Path | str, ours: Ours, names: Collection[str] = ()) -> Iterator[Path]:
    """Give an empty folder that takes the name ``path`` when the block ends without an exception.

    In a folder already at ``path`` only our own files are replaced, and what the user has put there stays. For ``ours``
    and ``names`` and what is refused see ``check_folder``; files that were not named are looked at when the block ends.
    """
    path = check_folder(path, ours, names)
    remove_leftovers(path.parent)
    with part_folder(path) as part:
        try:
            with atomic.no_space_left(path):
                part.chmod(0o777 & ~atomic.umask())
                yield part
                made = [file for file in part.rglob("*") if file.is_file()]
                old = _ours_at(path, ours, [str(file.relative_to(part)) for file in made])
                _take_along(path, part, old)
                for file in made:
                    atomic.sync_file(file)
                for folder in [part, *{file.parent for file in made}]:
                    atomic.sync_folder(folder)
            if os.path.lexists(path):
                # From here on it may hold the user's files, and is no leftover that anybody removes.
                swapped = part.with_suffix(".swap")
                os.rename(part, swapped)
                part = swapped
                atomic.exchange(part, path)
            else:
                os.rename(part, path)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        atomic.sync_folder(path.parent)
        if part.exists():
            _let_go(part, path, old)


def _ours_at(path: Path, ours: Ours, names: Collection[str]) -> set[str]:
    """Return the names of our files in the folder at ``path``, if there is one; for errors see ``check_folder``."""
    if not os.path.lexists(path):
        return set()
    found = None
    if path.is_dir() and not path.is_symlink():
        found = ours(path) if any(path.iterdir()) else ()
    if found is None:
        raise InputError(
            f"{path}: exists and was not written by fcdeploy; remove it or choose another output."
        )
    old = {name for name in found if not (path / name).is_dir() or (path / name).is_symlink()}
    for name in names:
        above = [place for place in Path(name).parents if place.name]
        in_the_way = [
            place for place in above if os.path.lexists(path / place) and not (path / place).is_dir()
        ]
        if in_the_way or (name not in old and os.path.lexists(path / name)):
            raise InputError(
                f"{path / (in_the_way[0] if in_the_way else name)}: was not written by fcdeploy and has a name that is "
                "needed there; move it elsewhere or choose another output."
            )
    return old


def link_into(old: Path, new: Path, names: Collection[str]) -> None:
    """Give files and folders of ours with these names, where they are there, a second name in a folder being made."""
    for name in names:
        if (old / name).is_dir() and not (old / name).is_symlink():
            (new / name).mkdir(exist_ok=True)
            _carry_over(old, new, (), Path(name))
        elif os.path.lexists(old / name):
            _link(old / name, new / name)


def _take_along(old: Path, new: Path, ours: Collection[str]) -> None:
    try:
        _carry_over(old, new, ours)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{error.filename}: was not written by fcdeploy and cannot be moved along when {old} is replaced "
            f"({error.strerror}); move it elsewhere or choose another output."
        ) from error


def _carry_over(old: Path, new: Path, ours: Collection[str], place: Path = Path()) -> None:
    """Give everything in ``old`` / ``place`` but our own files a name in ``new``, too."""
    if not (old / place).is_dir():
        return
    for entry in sorted(os.scandir(old / place), key=lambda entry: entry.name):
        name = place / entry.name
        if str(name) in ours:
            continue
        if entry.is_dir(follow_symlinks=False):
            own = any(Path(each).is_relative_to(name) for each in ours)
            if not own:
                (new / name).mkdir(exist_ok=True)
            _carry_over(old, new, ours, name)
            if not own:
                _take_after(old / name, new / name)
        else:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            _link(old / name, new / name)


def _link(source: Path, target: Path) -> None:
    """Give a file, or a symlink itself, a second name; copied where there are no hard links."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in NO_LINKS or not stat.S_ISREG(source.lstat().st_mode):
            raise
        shutil.copy2(source, target)


def _take_after(source: Path, target: Path) -> None:
    """Give a folder the times, permissions and, where that is allowed, the owner of another one."""
    found = source.stat()
    with contextlib.suppress(PermissionError):
        os.chown(target, found.st_uid, found.st_gid)
    shutil.copystat(source, target)


def _let_go(old: Path, new: Path, ours: Collection[str], place: Path = Path()) -> None:
    """Delete the replaced folder: our files, and the second names of all others.

    A file that was written meanwhile, or that could only be copied, takes its place in ``new``.
    """
    os.chmod(old / place, 0o700)
    for entry in list(os.scandir(old / place)):
        name = place / entry.name
        if entry.is_dir(follow_symlinks=False):
            _let_go(old, new, ours, name)
        elif str(name) in ours or _same(old / name, new / name):
            (old / name).unlink()
        else:
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(old / name, new / name)
    os.rmdir(old / place)


def _same(first: Path, second: Path) -> bool:
    try:
        return os.path.samestat(first.lstat(), second.lstat())
    except FileNotFoundError:
        return False
