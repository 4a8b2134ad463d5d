"""Labels in a table that says by name whose they are, in whatever order."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.label_tables import read_arrow, read_table
from fcdeploy.data.label_values import shortened
from fcdeploy.data.labels import form_to_read
from fcdeploy.errors import InputError


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
    found = (
        read_table(path, column, None, headings) if form == "table" else read_arrow(path, column, headings)
    )
    if found.keys is None:
        return None
    return KeyedLabels(str(path), found.heading, found.names(), found.labels)
