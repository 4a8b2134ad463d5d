"""Pairs of faces that a person has checked, and the photo of every face, from files."""

import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import SupportsIndex

import numpy as np

from fcdeploy.data.label_tables import read_text, rows_of_text
from fcdeploy.data.label_values import shortened
from fcdeploy.errors import InputError, counted

SAME, DIFFERENT = "same", "different"
ANSWERS = {
    **dict.fromkeys((SAME, "must", "must-link"), True),
    **dict.fromkeys((DIFFERENT, "cannot", "cannot-link"), False),
}
NOT_A_FACE = "not-a-face"  # of one face alone, in column a
UNANSWERED = ("", "?", "unknown", "unsure")
FACES, ANSWER = ("a", "b"), "answer"  # headings
REVISION, UNDOES = "revision", "undoes"  # headings of a log, whose later lines may take earlier ones back
NO_PHOTO = -1


Rows = list[list[str]]


@dataclass(frozen=True)
class CheckedPairs:
    """Pairs of faces with what a person says of them.

    ids: (m, 2) int32, row numbers; same: (m,) bool; lines: (m,) where they stand in the file, from 1; unanswered: how
    many more pairs the file has, without an answer. numbers: (m,) float64 of the file's further columns of numbers, by
    heading, as `fcdeploy pairs` writes them. not_faces: (f,) int32, rows that are no face at all.
    """

    name: str
    ids: np.ndarray
    same: np.ndarray
    lines: np.ndarray
    unanswered: int
    numbers: Mapping[str, np.ndarray]
    not_faces: np.ndarray = field(default_factory=lambda: np.empty(0, np.int32))

    def renumbered(self, place: np.ndarray) -> "CheckedPairs":
        """Return the pairs with faces under other numbers, place (n,) int32; those with a face of -1 are left out."""
        ids = place[self.ids]
        kept = (ids >= 0).all(axis=1)
        numbers = {name: values[kept] for name, values in self.numbers.items()}
        gone = place[self.not_faces]
        return CheckedPairs(
            self.name, ids[kept], self.same[kept], self.lines[kept], self.unanswered, numbers, gone[gone >= 0]
        )


def no_pairs() -> CheckedPairs:
    """Return pairs of which there are none."""
    return CheckedPairs("", np.empty((0, 2), np.int32), np.empty(0, bool), np.empty(0, np.int64), 0, {})


def read_pairs(path: Path | str, n: int, ids: np.ndarray | None = None) -> CheckedPairs:
    """Read pairs of n faces: a table of a, b and same or different, with or without a line of headings.

    ids: (n,) text or integers that name the faces; without them they are row numbers from 0. Columns go by the headings
    a, b and answer (anywhere in the line), without these by their order. An empty answer, or "?", is none; "not-a-face"
    is said of a alone. Of a log, as `fcdeploy review` writes it, only what was not taken back counts. Raises InputError
    with the line for a face that there is not, a face paired with itself and another answer.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a table of pairs: a, b, and {SAME} or {DIFFERENT}.")
    rows, lines = rows_of_text(read_text(path), path)
    columns = {name: at for at, name in enumerate(FACES)} | {ANSWER: 2}
    heading = [cell.lower() for cell in rows[0]]
    further: dict[str, int] = {}
    if set(FACES) <= set(heading):
        if ANSWER not in heading:
            raise InputError(
                f"{path}: line {lines[0]:,} has no heading '{ANSWER}', for the column of {SAME} or {DIFFERENT}; found "
                f"{', '.join(rows[0])}."
            )
        columns = {name: heading.index(name) for name in (*FACES, ANSWER)}
        further = {name: at for at, name in enumerate(heading) if at not in columns.values() and name}
        rows, lines = _not_undone(heading, rows[1:], lines[1:])
    place_of = None if ids is None else places_of(ids.tolist(), path)
    pairs, same, kept = [], [], []
    not_faces: list[int] = []
    unanswered = 0
    for row, line in zip(rows, lines, strict=True):
        if len(row) <= max(columns.values()):
            raise InputError(
                f"{path}: line {line:,} has {counted(len(row), 'column')}; expected a, b, and {SAME} or {DIFFERENT}."
            )
        answer = row[columns[ANSWER]].lower()
        if answer == NOT_A_FACE:
            not_faces.append(_face(row[columns["a"]], n, place_of, path, line))
            continue
        faces = [_face(row[columns[name]], n, place_of, path, line) for name in FACES]
        if answer in UNANSWERED:
            unanswered += 1
            continue
        if answer not in ANSWERS:
            raise InputError(
                f"{path}: line {line:,} says {shortened(row[columns[ANSWER]])}; write {SAME} or {DIFFERENT}, or leave "
                "it empty where it is not known."
            )
        if faces[0] == faces[1]:
            raise InputError(f"{path}: line {line:,} pairs {row[columns['a']]} with itself; give two faces.")
        pairs.append(faces)
        same.append(ANSWERS[answer])
        kept.append((row, line))
    numbers = {
        name: np.array([_number(row[at]) if at < len(row) else np.nan for row, _ in kept], np.float64)
        for name, at in further.items()
    }
    return CheckedPairs(
        str(path),
        np.array(pairs, np.int32).reshape(-1, 2),
        np.array(same, bool),
        np.array([line for _, line in kept], np.int64),
        unanswered,
        numbers,
        np.unique(np.array(not_faces, np.int32)),
    )


def _not_undone(heading: list[str], rows: Rows, lines: list[int]) -> tuple[Rows, list[int]]:
    """Return the rows of a log that say something of faces and that no later one takes back; others' rows as given."""
    if not {REVISION, UNDOES} <= set(heading):
        return rows, lines
    place = {name: heading.index(name) for name in (*FACES, ANSWER, REVISION, UNDOES)}
    undone = {row[place[UNDOES]] for row in rows if len(row) == len(heading)}

    def counts(row: list[str]) -> bool:
        if len(row) != len(heading):
            return True  # and is told of
        says = row[place["a"]] and (row[place["b"]] or row[place[ANSWER]])
        return bool(says and not row[place[UNDOES]] and row[place[REVISION]] not in undone)

    kept = [at for at, row in enumerate(rows) if counts(row)]
    return [rows[at] for at in kept], [lines[at] for at in kept]


def pairs_from_rows(
    rows: Iterable[tuple[object, object, str]], n: int, names: np.ndarray | None = None
) -> CheckedPairs:
    """Take (a, b, "same" or "different") of n faces, by row numbers; raises InputError as ``read_pairs`` does.

    names: (n,) text or integers that the faces are known by instead.
    """
    if isinstance(rows, (str, bytes)) or not isinstance(rows, Iterable):
        raise InputError(
            f"pairs = {rows!r}: give a file, or (a, b, '{SAME}' or '{DIFFERENT}') for each pair."
        )
    place_of = None if names is None else places_of(names.tolist(), "pairs")
    pairs, same, numbers = [], [], []
    unanswered = 0
    for at, row in enumerate(rows):
        try:
            a, b, answer = row
            faces = [_number_or_place(face, place_of) for face in (a, b)]
        except (TypeError, ValueError):
            raise InputError(
                f"pairs: pair {at} is {row!r}; give (a, b, '{SAME}' or '{DIFFERENT}')."
            ) from None
        if not all(0 <= face < n for face in faces) or faces[0] == faces[1]:
            among = f"rows {a} and {b}; give two of the {n:,} rows from 0"
            if place_of is not None:
                among = f"faces {a} and {b}; give two different ones that are there"
            raise InputError(f"pairs: pair {at} is of {among}.")
        said = answer.strip().lower() if isinstance(answer, str) else answer
        if said is None or said in UNANSWERED:
            unanswered += 1
            continue
        if not isinstance(said, str) or said not in ANSWERS:
            raise InputError(f"pairs: pair {at} says {answer!r}; give '{SAME}' or '{DIFFERENT}'.")
        pairs.append(faces)
        same.append(ANSWERS[said])
        numbers.append(at)
    ids = np.array(pairs, np.int32).reshape(-1, 2)
    return CheckedPairs("pairs", ids, np.array(same, bool), np.array(numbers, np.int64), unanswered, {})


def read_photos(path: Path | str, n: int) -> np.ndarray:
    """Read the photo of each of n faces, a name or number per line: (n,) int32, NO_PHOTO for an empty line.

    Photos are numbered by first appearance. Raises InputError for another number of lines.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give a text file with the photo of face i in line i.")
    # File names are bytes, and may hold what else ends a line in Unicode; they only have to be told apart.
    text = read_text(path, errors="surrogateescape").replace("\r\n", "\n")
    if "\n" not in text:  # else "\r" belongs to a name
        text = text.replace("\r", "\n")
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    while len(lines) > n and not lines[-1]:
        lines.pop()
    if len(lines) != n:
        raise InputError(
            f"{path}: has {counted(len(lines), 'line')} for {counted(n, 'face')}; write the photo of every face, "
            "one per line, and "
            "nothing in the line of a face whose photo is not known."
        )
    numbers: dict[str, int] = {"": NO_PHOTO}
    for line in lines:
        numbers.setdefault(line, len(numbers) - 1)
    return np.array([numbers[line] for line in lines], np.int32)


def places_of(ids: Iterable[object], path: Path | str) -> dict[str, int]:
    """Return the row of each id, as text without spaces around it, which tables lose.

    Raises InputError, about ``path``, for an id that two faces have.
    """
    places: dict[str, int] = {}
    for at, one in enumerate(ids):
        name = str(one).strip()
        if places.setdefault(name, at) != at:
            raise InputError(
                f"{path}: names faces by ids, and {shortened(name)} is the id of rows {places[name]:,} and "
                f"{at:,}; give every face an id of its own, or leave --id-column out for row numbers."
            )
    return places


def _face(text: str, n: int, places: dict[str, int] | None, path: Path, line: int) -> int:
    if places is not None:
        if text.strip() not in places:
            raise InputError(f"{path}: line {line:,} names {shortened(text)}, which is the id of no face.")
        return places[text.strip()]
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise InputError(
            f"{path}: line {line:,} names {shortened(text)}; faces are row numbers from 0 here, and headings are "
            f"{', '.join(FACES)} and {ANSWER}."
        )
    if int(text) >= n:
        raise InputError(f"{path}: line {line:,} names face {text}; there are {n:,}, from 0 to {n - 1:,}.")
    return int(text)


def _number_or_place(face: object, places: dict[str, int] | None) -> int:
    """Return the row of a face, -1 for an id that no face has; raises TypeError for what is neither."""
    if places is not None and isinstance(face, str):
        return places.get(face.strip(), -1)
    if not isinstance(face, SupportsIndex):
        raise TypeError
    row = operator.index(face)
    return row if places is None else places.get(str(row), -1)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return np.nan
