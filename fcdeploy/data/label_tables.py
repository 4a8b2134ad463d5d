"""Labels in a column of a table: CSV and its relatives, MXNet's .lst, Parquet and Feather."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.forms.tables import import_pyarrow
from fcdeploy.data.label_values import NUMBER, UNKNOWN_TEXTS, labels_from_texts, labels_from_values, shortened
from fcdeploy.errors import InputError, counted

DELIMITERS = "\t,;|"
HEADINGS = frozenset(
    (
        *("label", "labels", "identity", "identities", "class", "class_id", "person", "person_id", "name"),
        *("cluster", "cluster_id", "target", "y", "subject", "subject_id"),
    )
)
ID_HEADINGS = ("face", "id")  # of a column of faces, as faces.csv and tables of clusters name them
SNIFFED = 20  # lines
LINE_END = r"\r\n?|\n"


@dataclass(frozen=True)
class LabelColumn:
    """labels: (rows,) int64, -1 where unknown; keys: (rows,) whose they are, by a column ``heading``, or None."""

    labels: np.ndarray
    keys: Sequence[object] | None = None
    heading: str = ""

    def names(self) -> tuple[str, ...]:
        """Return the keys as text, empty where there is none."""
        return tuple("" if key is None else str(key) for key in self.keys or ())


def read_text(path: Path, errors: str = "strict") -> str:
    """Return a text file as it reads: UTF-8 with or without a byte-order mark, or UTF-16 with one.

    errors: what becomes of bytes that are no UTF-8, as for ``bytes.decode``. Raises InputError when it is no text.
    """
    with open(path, "rb") as file:
        start = file.read(4096)
        wide = start[:2] in (b"\xff\xfe", b"\xfe\xff")
        if not wide and b"\0" in start:
            raise InputError(f"{path}: holds bytes that are not text; give the labels as text or as .npy.")
        data = start + file.read()
    try:
        return data.decode("utf-16" if wide else "utf-8-sig", errors)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(
            f"{path}: line {line:,} is not UTF-8 text; convert it, e.g. with "
            f"`iconv -f latin1 -t utf-8 {path.name} > utf8-{path.name}`."
        ) from error


def read_table(
    path: Path, column: str | None, n: int | None, keys: Sequence[str] = ID_HEADINGS
) -> LabelColumn:
    """Read the labels in one column of a text table, and what they are of.

    column: its heading, or its number, counted from 1; None where there is one column only, or one whose heading says
    that it holds labels. A first line of headings is told from the rows below it, and by ``n``, how many faces there
    are. The delimiter is a tab, comma, semicolon or vertical bar; cells may be quoted. keys: headings of a column that
    says whose the labels are; the first that is found counts. Raises InputError that names the columns or the line.
    """
    text = read_text(path)
    rows, lines = rows_of_text(text, path)
    width = len(rows[0])
    for row, line in zip(rows, lines, strict=True):
        if len(row) != width:
            raise InputError(
                f"{path}: line {line:,} has {counted(len(row), 'column')}, line {lines[0]:,} has {width}; write "
                "the same number "
                "in every line, and quote cells that hold the delimiter."
            )
    if path.suffix.lower() == ".lst" and column is None:
        at, heading = _column_of_lst(rows, path), False
    else:
        at, heading = _column_of(rows, column, n, path)
    headings = rows[0]
    of = None if path.suffix.lower() == ".lst" else place_of_keys(headings, keys, at)
    if heading or of is not None:
        rows, lines = rows[1:], lines[1:]
        if not rows:
            raise InputError(f"{path}: holds headings and no rows; write one row per face.")
    labels = labels_from_texts([row[at] for row in rows], str(path), lambda row: f"line {lines[row]:,}")
    return LabelColumn(labels) if of is None else LabelColumn(labels, [row[of] for row in rows], headings[of])


def place_of_keys(headings: Sequence[str], keys: Sequence[str], but: int) -> int | None:
    """Return the place of the first of ``keys`` among the headings of a table, from 0; but: the labels' own."""
    lowered = [name.lower() if at != but else None for at, name in enumerate(headings)]
    return next((lowered.index(key) for key in keys if key in lowered), None)


def rows_of_text(text: str, path: Path) -> tuple[list[list[str]], list[int]]:
    """Cut a table into cells, stripped; returns its rows and the line that each begins in, from 1."""
    delimiter = _delimiter_of(text, path)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or "\x1f", skipinitialspace=True)
    rows, lines, before = [], [], 0
    try:
        for row in reader:
            rows.append([cell.strip() for cell in row] or [""])
            lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}: line {before + 1:,} is not CSV ({error}); write it again.") from error
    while rows and rows[-1] == [""]:
        rows.pop()
    if not rows:
        raise InputError(f"{path}: is empty; expected a table with one row per face.")
    if delimiter:
        for row, line in zip(rows, lines, strict=False):
            if row == [""]:
                raise InputError(
                    f"{path}: line {line:,} is blank; remove it, or write what is missing there."
                )
    return rows, lines[: len(rows)]


def _delimiter_of(text: str, path: Path) -> str | None:
    """Return the delimiter that stands equally often in most of the first lines, or None where there is one column."""
    if path.suffix.lower() in (".lst", ".tsv", ".tab"):
        return "\t"
    # Not splitlines, which cuts at what a name may hold, too.
    begin = "\n".join(re.split(LINE_END, text, maxsplit=SNIFFED)[:SNIFFED])
    first = re.split(LINE_END, re.sub(r'"[^"]*"', '""', begin))
    first = [line for line in first if line.strip()]
    found = {
        delimiter: sum(line.count(delimiter) == first[0].count(delimiter) for line in first)
        for delimiter in DELIMITERS
        if first and delimiter in first[0]
    }
    best = max(found, key=lambda delimiter: found[delimiter], default="")
    if best and 2 * found[best] > len(first):
        return best
    # A list of paths and labels, with a space between.
    spaced = [line.split() for line in first]
    if (
        first
        and path.suffix.lower() != ".csv"
        and len({len(words) for words in spaced}) == 1
        and len(spaced[0]) > 1
    ):
        return " "
    return None


def _column_of(
    rows: Sequence[Sequence[str]], column: str | None, n: int | None, path: Path
) -> tuple[int, bool]:
    """Return which column was asked for, from 0, and whether the first row holds headings."""
    first = list(rows[0])
    width = len(first)
    heading = is_heading(rows, n)
    if column is None:
        if width == 1:
            return 0, heading
        named = [at for at, name in enumerate(first) if name.lower() in HEADINGS]
        if len(named) == 1:
            return named[0], True
        raise InputError(
            f"{path}: has {counted(width, 'column')} ({_columns(first, heading)}); choose the column of the "
            "labels with "
            "--label-column."
        )
    if first.count(column) == 1 and not (column.isdigit() and not heading):
        return first.index(column), True
    if first.count(column) > 1 and heading:
        raise InputError(
            f"{path}: has several columns '{column}'; give its number, from 1, as --label-column."
        )
    if column.isdigit() and 1 <= int(column) <= width:
        return int(column) - 1, heading
    raise InputError(
        f"{path}: has no column {shortened(column)}, but {_columns(first, heading)}; give one of these names, or a "
        f"number from 1 to {width}, as --label-column."
    )


def _columns(first: Sequence[str], heading: bool) -> str:
    if heading:
        return ", ".join(first)
    return f"without headings, the first row being {', '.join(map(shortened, first))}"


def is_heading(rows: Sequence[Sequence[str]], n: int | None) -> bool:
    """Tell whether the first row holds headings: by the number of faces, else by what stands below it."""
    first, below = rows[0], rows[1:]
    if n is not None and len(rows) == n:
        return False
    if any(NUMBER.fullmatch(cell) or cell in UNKNOWN_TEXTS - {""} for cell in first) or not below:
        return False
    if n is not None and len(rows) == n + 1:
        return True
    if any(cell.lower() in HEADINGS for cell in first):
        return True
    return any(
        all(NUMBER.fullmatch(row[at]) or row[at] in UNKNOWN_TEXTS for row in below)
        for at in range(len(first))
    )


def _column_of_lst(rows: Sequence[Sequence[str]], path: Path) -> int:
    """Return the label's column of an MXNet list: index, label, path, or as InsightFace has it, flag, path, label.

    Faces come in the order of the lines, in which im2rec packs them, whatever the index says.
    """
    numeric = [all(NUMBER.fullmatch(row[at]) for row in rows) for at in range(len(rows[0]))]
    if len(numeric) >= 3 and numeric[0] and not numeric[1] and numeric[2]:
        return 2
    if len(numeric) == 3 and numeric == [True, True, False]:
        return 1
    if len(numeric) == 2 and numeric == [True, False]:
        raise InputError(
            f"{path}: holds an index and a path in every line, and no label; give a list with labels."
        )
    raise InputError(
        f"{path}: has {len(numeric)} columns, of which several may be labels; choose one with --label-column, a number "
        "from 1."
    )


def read_arrow(path: Path, column: str | None, keys: Sequence[str] = ID_HEADINGS) -> LabelColumn:
    """Read the labels in one column of a Parquet or Feather (Arrow) file, nulls -1, and what they are of.

    keys: see ``read_table``. Raises InputError that names the columns, MissingDependencyError without pyarrow.
    """
    pyarrow = import_pyarrow(str(path))
    from pyarrow import feather, parquet

    is_parquet = path.suffix.lower() in (".parquet", ".pq")
    try:
        names = list(parquet.read_schema(path).names if is_parquet else feather.read_table(path).column_names)
        chosen = _named(names, column, path)
        of = place_of_keys(names, keys, names.index(chosen))
        read = parquet.read_table if is_parquet else feather.read_table
        table = read(path, columns=[chosen, *([] if of is None else [names[of]])])
        values, named = table.column(0), None if of is None else table.column(1).to_pylist()
    except (*DAMAGED, pyarrow.ArrowException) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]} ({reason_of(error)}).") from error
    if pyarrow.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if pyarrow.types.is_integer(values.type) and values.null_count:
        values = values.fill_null(-1)
    labels = labels_from_values(values.to_numpy(), str(path))
    return LabelColumn(labels, named, "" if of is None else names[of])


def _named(names: Sequence[str], column: str | None, path: Path) -> str:
    """Return the name of the column that was asked for, by name or number from 1."""
    if column is None:
        likely = names if len(names) == 1 else [name for name in names if name.lower() in HEADINGS]
        if len(likely) == 1:
            return likely[0]
        raise InputError(
            f"{path}: has {len(names)} columns ({', '.join(names)}); choose the column of the labels with "
            "--label-column."
        )
    if column in names:
        return column
    if column.isdigit() and 1 <= int(column) <= len(names):
        return names[int(column) - 1]
    raise InputError(
        f"{path}: has no column {shortened(column)}, but {', '.join(names)}; give one of these names, or a number "
        f"from 1 to {len(names)}, as --label-column."
    )
