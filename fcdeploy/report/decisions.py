"""What a person says of faces, one decision after another: a log on disk that only grows.

Every decision is appended and synced before it counts, so that a kill loses none. The file is a table that
``fcdeploy cluster --pairs``, ``update`` and ``tune --pairs`` take: a, b, answer, and columns that say which decision a
line belongs to and which one it takes back.
"""

import csv
import fcntl
import io
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.constraints import contradiction
from fcdeploy.data.atomic import check_parent, open_own
from fcdeploy.data.checked_pairs import DIFFERENT, NOT_A_FACE, SAME, places_of
from fcdeploy.data.csv_text import CsvText
from fcdeploy.errors import FcdeployError, InputError

HEADINGS = ("a", "b", "answer", "kind", "revision", "undoes", "faces", "name", "time")
HEAD = (",".join(HEADINGS) + "\n").encode()
UNDO = "undo"
KINDS = (SAME, DIFFERENT, NOT_A_FACE, "name", "split", "move", "merge")
LONGEST_NAME = 200

Said = tuple[int, int | None, str]  # of one face or two: a, b, answer


class StaleError(FcdeployError):
    """Somebody else decided something in the meantime."""


@dataclass(frozen=True)
class Decision:
    """said: what it says of pairs; faces: those that a person pointed at; name: of the person, where one was given."""

    revision: int
    kind: str
    said: tuple[Said, ...]
    faces: tuple[int, ...]
    name: str = ""

    @property
    def plain(self) -> dict[str, object]:
        """The decision as JSON takes it."""
        return {"revision": self.revision, "kind": self.kind, "faces": list(self.faces), "name": self.name}


class DecisionLog:
    """The decisions about n faces in a file, which one process at a time may write; ``close`` lets go of it.

    names: (n,) text or integers that faces are known by outside of the run, which the file holds; None for row numbers.
    Raises InputError where the file is something else, is of other faces, or is being written by another process.
    """

    def __init__(self, path: Path | str, n: int, names: np.ndarray | None = None) -> None:
        self.path, self.n = check_parent(Path(path)), n
        self._names = None if names is None else [str(one) for one in names.tolist()]
        self._rows = None if self._names is None else places_of(self._names, self.path)
        self._last = 0
        self._handle = open_own(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            self._lock()
            self._all, self._undone = self._read()
        except BaseException:
            os.close(self._handle)
            raise

    def close(self) -> None:
        os.close(self._handle)

    @property
    def revision(self) -> int:
        """The number of the last line that was added, 0 for none."""
        return self._last

    def live(self) -> list[Decision]:
        """Return the decisions that were not taken back, in their order."""
        return [one for one in self._all if one.revision not in self._undone]

    def append(
        self, revision: int, kind: str, said: Sequence[Said], faces: Sequence[int], name: str = ""
    ) -> Decision:
        """Add a decision and wait until it is on disk; revision: the last one that its author has seen.

        The same pair answered anew takes the earlier answer back. Raises StaleError when there is a later revision, and
        InputError for a decision that contradicts others, or says nothing.
        """
        self.check_seen(revision)
        name = " ".join("".join(one if one.isprintable() else " " for one in name).split())[:LONGEST_NAME]
        if kind not in KINDS or not faces or not (said or name):
            raise InputError("there is nothing to decide; choose faces, or give a name.")
        for face in (*faces, *(face for a, b, _ in said for face in (a, b) if face is not None)):
            if not 0 <= face < self.n:
                raise InputError(f"there is no face {face}; faces go from 0 to {self.n - 1:,}.")
        replaced = [one for one in self.live() if _answers_same(one, kind, said, faces)]
        others = [one for one in self.live() if one not in replaced]
        decision = Decision(self._last + len(replaced) + 1, kind, tuple(said), tuple(faces), name)
        self._check_consistent(others, decision)
        rows = [self._undo_row(self._last + 1 + at, one.revision) for at, one in enumerate(replaced)]
        self._write([*rows, *self._rows_of(decision)])
        self._undone |= {one.revision for one in replaced}
        self._all.append(decision)
        self._last = decision.revision
        return decision

    def undo(self, revision: int) -> Decision | None:
        """Take the last decision back that still counts; returns it, None where there is none. Raises StaleError."""
        self.check_seen(revision)
        live = self.live()
        if not live:
            return None
        self._write([self._undo_row(self._last + 1, live[-1].revision)])
        self._last += 1
        self._undone.add(live[-1].revision)
        return live[-1]

    def check_seen(self, revision: int) -> None:
        """Raise StaleError unless ``revision`` is the last one."""
        if revision != self._last:
            raise StaleError(
                f"another decision was saved in the meantime (revision {self._last}, not {revision}); reload the page, "
                "and repeat it."
            )

    def _check_consistent(self, others: Sequence[Decision], decision: Decision) -> None:
        """Raise InputError where a decision contradicts others."""
        said = [
            (one, a, b, answer) for one in (*others, decision) for a, b, answer in one.said if b is not None
        ]
        if any(a == b for _, a, b, _ in said):
            raise InputError("a face cannot be compared with itself; choose two.")
        pairs = {
            wanted: np.array([(a, b) for _, a, b, answer in said if answer == wanted], np.int64).reshape(
                -1, 2
            )
            for wanted in (SAME, DIFFERENT)
        }
        found = contradiction(self.n, pairs[SAME], pairs[DIFFERENT])
        if found is not None:
            a, b = pairs[DIFFERENT][found[0]].tolist()
            raise InputError(
                f"this contradicts earlier decisions: faces {self._name(a)} and {self._name(b)} would be both the same "
                "person and different ones; undo one of them first."
            )
        gone = {face for one in (*others, decision) for face, _, answer in one.said if answer == NOT_A_FACE}
        both = {face for one, a, b, answer in said if answer == SAME for face in (a, b)} & gone
        if both:
            raise InputError(
                f"face {self._name(min(both))} would be the same as another face, and not a face; undo one of them "
                "first."
            )

    def _name(self, face: int) -> str:
        return str(face) if self._names is None else self._names[face]

    def _row(self, name: str) -> int:
        if self._rows is None:
            return int(name)
        return self._rows.get(name.strip(), self.n)  # which no face has

    def _faces_of(self, text: str) -> list[int]:
        """Return the rows in the column faces: numbers, or a list of names as JSON has it."""
        if self._rows is None:
            return [int(one) for one in text.split()]
        found = json.loads(text)  # a ValueError where it is none
        return [self._row(str(one)) for one in (found if isinstance(found, list) else [found])]

    def _rows_of(self, decision: Decision) -> list[tuple[object, ...]]:
        shown = [self._name(face) for face in decision.faces]
        faces = " ".join(shown) if self._names is None else json.dumps(shown)
        said: Sequence[Said] = decision.said or ((decision.faces[0], None, ""),)
        beyond = (decision.kind, decision.revision, "", faces, decision.name, _now())
        return [(self._name(a), "" if b is None else self._name(b), answer, *beyond) for a, b, answer in said]

    def _undo_row(self, revision: int, undoes: int) -> tuple[object, ...]:
        return ("", "", "", UNDO, revision, undoes, "", "", _now())

    def _write(self, rows: Sequence[Sequence[object]]) -> None:
        text = CsvText()
        text.rows(rows)
        data = text.take().encode()
        size = os.fstat(self._handle).st_size
        try:
            written = os.write(self._handle, data)
            if written != len(data):
                raise OSError(f"{self.path}: could not be written")
            os.fsync(self._handle)
        except OSError as error:
            os.ftruncate(self._handle, size)  # nothing half-written
            raise FcdeployError(
                f"{self.path}: the decision could not be written ({error.strerror or error}); make room and repeat it."
            ) from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{self.path}: another review is writing to it; close that one, or give another --decisions."
            ) from None
        except OSError:
            pass  # a file system without locks

    def _read(self) -> tuple[list[Decision], set[int]]:
        """Read what is there; a last line that a crash cut short is removed."""
        with open(self.path, "rb") as file:
            data = file.read()
        if not data or HEAD.startswith(data):
            os.ftruncate(self._handle, 0)
            os.write(self._handle, HEAD)
            os.fsync(self._handle)
            data = HEAD
        if not data.startswith(HEAD):
            raise InputError(
                f"{self.path}: was not written by `fcdeploy review`; nothing was changed, give another --decisions."
            )
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            os.ftruncate(self._handle, whole)
        return self._parsed(data[len(HEAD) : whole].decode("utf-8", "replace"))

    def _parsed(self, text: str) -> tuple[list[Decision], set[int]]:
        found: dict[int, Decision] = {}
        undone: set[int] = set()
        for number, row in enumerate(csv.reader(io.StringIO(text, newline="")), start=2):
            try:
                a, b, answer, kind, revision, undoes, faces, name, _ = row
                self._last = max(self._last, int(revision))
                if kind == UNDO:
                    undone.add(int(undoes))
                    continue
                said: tuple[Said, ...] = (
                    ((self._row(a), self._row(b) if b else None, answer),) if answer else ()
                )
                earlier = found.get(int(revision))
                told = tuple(self._faces_of(faces))
                named = [*told, *(self._row(one) for one in (a, b) if one)]
                if not all(0 <= one < self.n for one in named):
                    raise InputError(
                        f"{self.path}: line {number:,} names a face that this run does not have; the table is of "
                        "another run, give "
                        "another --decisions."
                    )
                found[int(revision)] = Decision(
                    int(revision),
                    kind,
                    (earlier.said if earlier else ()) + said,
                    earlier.faces if earlier else told,
                    name,
                )
            except ValueError as error:
                if isinstance(error, InputError):
                    raise
                raise InputError(
                    f"{self.path}: line {number:,} is not one that `fcdeploy review` writes; correct it, or give "
                    "another "
                    "--decisions."
                ) from None
        return list(found.values()), undone


def _answers_same(earlier: Decision, kind: str, said: Sequence[Said], faces: Sequence[int]) -> bool:
    """Tell whether a decision answers anew what an earlier one said: of the same pair, or the name of the same face."""
    if kind in (SAME, DIFFERENT):
        return earlier.kind in (SAME, DIFFERENT) and set(earlier.faces) == set(faces)
    return kind == "name" and earlier.kind == "name" and earlier.faces == tuple(faces)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
