"""The record in a folder of runs: by it a folder is known as ours, and which names in it are.

Everything else in such a folder is the user's: it stays as it is, and a name that is not recorded is never written
under. A name is recorded before anything gets it, so that what a kill leaves is still known as ours.
"""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.locks import CONTENT
from fcdeploy.data.typed import fits, typed
from fcdeploy.errors import FcdeployError, InputError

RECORD = "run.json"
LOCK = "run.lock"
FORMAT = "fcdeploy-run"
FORMAT_VERSION = 2
OF_CLUSTERS = ("state.json", "summary.json", "changes.csv", "history.csv")  # written there, sooner or later
BEGINNING = (
    f'{{\n "format": "{FORMAT}"'.encode()
)  # of every record, by which what a kill leaves of one is known
UNFINISHED = ".part"
SCRATCH = ".scratch"
JOURNAL = "journal"
OLD_JOURNAL = re.compile(rb"[0-9a-f]{64} \S+ [\w-]+\n(\d+\n)*")

Names = Callable[[Path], set[str] | None]


@dataclass(frozen=True)
class Entry:
    """A finished artifact: the key of what it was made of, the bytes of its arrays and their names.

    boot: of the machine's start after which it is no longer trusted; empty where it is for good.
    """

    key: str
    bytes: int
    boot: str
    parts: list[str]


@dataclass
class Record:
    """names: what in the folder is ours; artifacts: what ``RunFolder`` knows of its finished artifacts, by name.

    outdated: names of what an earlier version left, which nobody reads any more. computed: what the run says of
    itself, for people; it is written and never read.
    """

    names: set[str] = field(default_factory=set)
    artifacts: dict[str, Entry] = field(default_factory=dict)
    outdated: set[str] = field(default_factory=set)
    computed: dict[str, object] = field(default_factory=dict)


def check_run_folder(folder: Path | str, choice: str = "--run-dir", older: Names | None = None) -> Record:
    """Return the record of a folder of runs, which is empty when there is no such folder or nothing in it.

    older: returns our names in a folder that an earlier version left without a record, None where it left none.
    ``choice`` is what the user is told to choose again. Raises InputError for a folder of somebody's files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        return Record()
    record = read_record(folder)
    if record is None and older is not None and (names := older(folder)) is not None:
        record = Record(names)
    if record is None:
        others = sorted(path.name for path in folder.iterdir() if not left_by_a_kill(path))
        if others:
            shown = ", ".join(others[:3]) + (f" and {len(others) - 3:,} more" if len(others) > 3 else "")
            lacks = f"a {RECORD} that fcdeploy did not write" if RECORD in others else f"no {RECORD}"
            raise InputError(
                f"{folder}: holds {shown}, and {lacks}, so that it is not a folder of fcdeploy; nothing was written, "
                f"choose another {choice}."
            )
        record = Record({LOCK})
    if os.path.lexists(folder / LOCK) and not _is_lock(folder / LOCK):
        raise InputError(
            f"{folder / LOCK}: is not the lock that fcdeploy keeps there; move it, or choose another {choice}."
        )
    record.names = {name for name in record.names if os.path.lexists(folder / name)}
    return record


def check_not_of_a_run(path: Path) -> Path:
    """Return ``path`` when an output there replaces nothing that a run keeps in its folder.

    Files of the user's own may lie in such a folder. Raises InputError for a name of the run's.
    """
    place = path.parent.resolve() / path.name
    for folder in (place.parent, place.parent.parent):
        name = place.relative_to(folder).parts[0]
        record = read_record(folder) if (folder / RECORD).is_file() else None
        if record is not None and (name in record.names or name in OF_CLUSTERS):
            raise InputError(
                f"{path}: '{name}' belongs to the run in {folder}, which would lose it; choose another output."
            )
    return path


def read_record(folder: Path) -> Record | None:
    """Return the record in a folder, None when there is none of ours; artifacts that cannot be read are left out."""
    try:
        if (folder / RECORD).is_symlink():
            return None
        found = json.loads((folder / RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    if found.get("format") == FORMAT:
        names, version = found.get("names"), found.get("format_version")
        if not isinstance(names, list):
            return None
        ours = {name for name in names if _is_name(name)} | {RECORD, LOCK}
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise InputError(
                f"{folder}: was written by a newer version of fcdeploy; upgrade fcdeploy, or choose another folder."
            )
        if version == FORMAT_VERSION:
            return Record(ours, _artifacts(found.get("artifacts")))
        return Record(ours, outdated={name for name in ours if _is_outdated(name)})
    # Of a version that recorded finished artifacts alone, whose names are no proof when there are none.
    products = found.get("products")
    if found.keys() != {"products"} or not isinstance(products, dict):
        return None
    if products or _is_lock(folder / LOCK):
        ours = _names_before_records(folder, filter(_is_name, products))
        return Record(ours, outdated={name for name in ours if _is_outdated(name)})
    return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record, whole or not at all."""
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "names": sorted(record.names),
        "artifacts": {name: dataclasses.asdict(entry) for name, entry in record.artifacts.items()},
        **({"computed": record.computed} if record.computed else {}),
    }
    with atomic_file(folder / RECORD) as file:
        file.write(json.dumps(content, indent=1).encode())


class Claims:
    """The names in a folder of runs that are ours, recorded there before anything gets one of them.

    ``choice`` is what the user is told to choose again.
    """

    def __init__(self, folder: Path, record: Record, choice: str = "--run-dir") -> None:
        self.folder, self.record, self._choice = folder, record, choice

    def __contains__(self, name: str) -> bool:
        return name in self.record.names

    def begin(self) -> None:
        """Leave a record in a folder that has none, and remove what a killed run left of writing one."""
        for stray in self.folder.glob(f".{RECORD}.*{UNFINISHED}"):
            if left_by_a_kill(stray):
                stray.unlink()
        self.check_free([RECORD] if read_record(self.folder) is None else [])
        if (self.folder / RECORD).is_file() and {RECORD, LOCK} <= self.record.names:
            return
        self.record.names |= {RECORD, LOCK}
        self.write()

    def check_free(self, names: Iterable[str]) -> None:
        """Raise InputError when something that fcdeploy did not write stands under one of ``names``."""
        for name in names:
            if name not in self.record.names and os.path.lexists(self.folder / name):
                raise InputError(
                    f"{self.folder / name}: is not recorded in the folder's {RECORD} as fcdeploy's own, and has a name "
                    f"that this run needs; move it elsewhere, or choose another {self._choice}."
                )

    def claim(self, *names: str) -> None:
        """Record names as ours; raises InputError when something of somebody else's stands under one."""
        new = [name for name in names if name not in self.record.names]
        self.check_free(new)
        if new:
            self.record.names |= set(new)
            self.write()

    def end(self) -> None:
        """Give up names that nothing stands under, where the folder is still there."""
        left = {name for name in self.record.names if os.path.lexists(self.folder / name)}
        if RECORD in left and left != self.record.names:
            self.record.names = left
            with contextlib.suppress(OSError, FcdeployError):
                self.write()

    def write(self) -> None:
        write_record(self.folder, self.record)


def left_by_a_kill(path: Path) -> bool:
    """Tell whether a path is what a run leaves that is killed before the folder has its record."""
    if path.name == LOCK:
        return _is_lock(path)
    if not (path.name.startswith(f".{RECORD}.") and path.name.endswith(UNFINISHED)):
        return False
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        begun = file.read(len(BEGINNING))
    return BEGINNING.startswith(begun)  # cut short, or nothing at all


def _is_lock(path: Path) -> bool:
    """Tell whether a file is a lock of fcdeploy's: empty, or numbers of processes, see ``fcdeploy.data.locks``."""
    if path.is_symlink() or not path.is_file():
        return False
    with open(path, "rb") as file:
        content = file.read(4096)
    return bool(CONTENT.fullmatch(content))


def _is_name(name: object) -> bool:
    return isinstance(name, str) and Path(name).name == name and name not in ("", "..")


def _is_outdated(name: str) -> bool:
    """Tell whether a name of ours is of an artifact as earlier versions kept them, finished or not."""
    return Path(name).suffix in (".npy", ".npz", UNFINISHED, SCRATCH)


def _artifacts(found: object) -> dict[str, Entry]:
    if not fits(dict[str, Entry], found):
        return {}  # everything is computed again
    artifacts = typed(dict[str, Entry], found, RECORD, open_ended=True)
    return {
        name: entry for name, entry in artifacts.items() if _is_name(name) and all(map(_is_name, entry.parts))
    }


def _names_before_records(folder: Path, products: Iterable[str]) -> set[str]:
    """Return the names that are ours in a folder of a version that recorded finished artifacts alone."""
    names = {RECORD, LOCK} | {name if Path(name).suffix else f"{name}{SCRATCH}" for name in products}
    for journal in folder.glob(f"*{UNFINISHED}/{JOURNAL}"):
        with contextlib.suppress(OSError):
            if OLD_JOURNAL.match(journal.read_bytes()):
                names.add(journal.parent.name)
    with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
        if {"faces", "clusters", "stages"} <= json.loads((folder / "summary.json").read_bytes()).keys():
            names.add("summary.json")
    return names
