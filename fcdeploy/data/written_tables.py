"""Labels as a table of two columns, id and label: CSV, TSV, Parquet or Feather."""

from pathlib import Path
from typing import IO

import numpy as np

from fcdeploy.data.csv_text import CsvText
from fcdeploy.data.forms.tables import import_pyarrow

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq", ".feather")
ROWS = 1 << 16  # written at a time


def is_written_table(path: Path) -> bool:
    """Tell whether labels of this name are written as a table."""
    return path.suffix.lower() in SUFFIXES


def check_written_table(path: Path) -> None:
    """Raise MissingDependencyError when the package that writes such a table is not installed."""
    if path.suffix.lower() not in (".csv", ".tsv"):
        import_pyarrow(str(path))


def write_table(file: IO[bytes], path: Path, labels: np.ndarray, ids: np.ndarray | None) -> None:
    """Write labels (n,) int64 beside ids (n,), text or integers; without ids, the numbers of the rows from 0."""
    ids = np.arange(len(labels)) if ids is None else ids
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv"):
        text = CsvText("\t" if suffix == ".tsv" else ",")
        text.row(("id", "label"))
        for start in range(0, len(labels), ROWS):
            block = slice(start, start + ROWS)
            text.rows(zip(ids[block].tolist(), labels[block].tolist(), strict=True))
            file.write(text.take().encode())
        file.write(text.take().encode())  # the headings of a table without rows
        return
    arrow = import_pyarrow(str(path))
    table = arrow.table({"id": arrow.array(ids.tolist()), "label": arrow.array(labels)})
    if suffix == ".feather":
        import pyarrow.feather

        pyarrow.feather.write_feather(table, file)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, file)
