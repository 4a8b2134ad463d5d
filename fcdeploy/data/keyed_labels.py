"""Labels in a table that says by name whose they are, in whatever order."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.forms.tables import import_pyarrow
from fcdeploy.data.label_tables import read_arrow, read_table, read_text, rows_of_text
from fcdeploy.data.label_values import shortened
from fcdeploy.data.labels import form_to_read
from fcdeploy.errors import InputError

ID_HEADINGS = ("face", "id")  # of a column of faces, as faces.csv and tables of clusters name them


@dataclass(frozen=True)
class KeyedLabels:
    """labels: (m,) int64, -1 where unknown, of what ``keys`` (m) name; heading: that of the column of keys."""

    name: str
    heading: str
    keys: tuple[str, ...]
    labels: np.ndarray

    def by_key(self) -> dict[str, int]:
        """Return the label of each key, without spaces around it; raises InputError for a key that has two."""
        found: dict[str, int] = {}
        for at, (given, label) in enumerate(zip(self.keys, self.labels.tolist(), strict=True)):
            key = given.strip()
            if found.setdefault(key, label) != label:
                raise InputError(
                    f"{self.name}: names {shortened(key)} twice, with different labels (the second is row {at + 1:,}); "
                    "remove one of them."
                )
        return found


def read_keyed_labels(path: Path, column: str | None, headings: Sequence[str]) -> KeyedLabels | None:
    """Read a table of labels that has a column with one of these ``headings``, the first of which counts.

    column: of the labels, see ``read_labels``. Returns None for a file of another form, and for a table without such a
    column. Raises InputError as ``read_labels`` does.
    """
    form = form_to_read(path, column)
    if form not in ("table", "arrow"):
        return None
    if form == "arrow":
        return _of_arrow(path, column, headings)
    rows, _ = rows_of_text(read_text(path), path)
    at = _place(rows[0], headings)
    if at is None:
        return None
    labels = read_table(path, column, None)
    return KeyedLabels(str(path), rows[0][at], tuple(row[at] for row in rows[1:]), labels)


def _of_arrow(path: Path, column: str | None, headings: Sequence[str]) -> KeyedLabels | None:
    pyarrow = import_pyarrow(str(path))
    from pyarrow import feather, parquet

    read = parquet.read_table if path.suffix.lower() in (".parquet", ".pq") else feather.read_table
    try:
        table = read(path)
    except (*DAMAGED, pyarrow.ArrowException) as error:
        raise InputError(f"{path}: cannot be read as {path.suffix[1:]} ({reason_of(error)}).") from error
    at = _place(table.column_names, headings)
    if at is None:
        return None
    keys = tuple("" if key is None else str(key) for key in table.column(at).to_pylist())
    return KeyedLabels(str(path), table.column_names[at], keys, read_arrow(path, column))


def _place(names: Collection[str], headings: Sequence[str]) -> int | None:
    lowered = [name.lower() for name in names]
    return next((lowered.index(heading) for heading in headings if heading in lowered), None)
