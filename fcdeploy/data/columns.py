"""Tables of named columns: CSV, TSV, Parquet or Feather, whole or not at all."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.csv_text import CsvText
from fcdeploy.data.forms.tables import import_pyarrow
from fcdeploy.data.run_record import check_not_of_a_run
from fcdeploy.data.written_tables import SUFFIXES
from fcdeploy.errors import InputError

ROWS = 1 << 16  # written at a time
TEXT = (".csv", ".tsv")

Column = np.ndarray | Sequence[str]


def check_table_path(path: Path | str) -> Path:
    """Return ``path`` when a table can be written there; meant to be called before the work starts.

    Raises InputError when the name is no table's, its folder does not do, or a run keeps something there,
    MissingDependencyError when the package that writes it is not installed.
    """
    return check_not_of_a_run(_table_path(path))


def _table_path(path: Path | str) -> Path:
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: is not the name of a table; end it in {', '.join(SUFFIXES)}.")
    if path.suffix.lower() not in TEXT:
        import_pyarrow(str(path))
    return check_parent(path)


def write_columns(path: Path | str, columns: Mapping[str, Column]) -> None:
    """Write columns of one length, by their headings, in the form that the name chooses.

    A column is an array (m,) or a sequence of text. NaN is an empty cell in text, and null elsewhere; float32 is
    written with six digits in text.
    """
    path = _table_path(path)  # which may be in a folder of runs, when a run writes it
    with atomic_file(path) as file:
        if path.suffix.lower() in TEXT:
            _write_text(file, columns, "\t" if path.suffix.lower() == ".tsv" else ",")
        else:
            _write_arrow(file, path, columns)


def _write_text(file: IO[bytes], columns: Mapping[str, Column], delimiter: str) -> None:
    text = CsvText(delimiter)
    text.row(columns)
    for start in range(0, max(map(len, columns.values())), ROWS):
        text.rows(zip(*(_cells(one[start : start + ROWS]) for one in columns.values()), strict=True))
        file.write(text.take().encode("utf-8", "surrogateescape"))
    file.write(text.take().encode())  # the headings of a table without rows


def _cells(column: Column) -> Sequence[object]:
    if isinstance(column, np.ndarray) and column.dtype.kind == "f":
        return ["" if value != value else f"{value:.6g}" for value in column.tolist()]
    return column.tolist() if isinstance(column, np.ndarray) else column


def _write_arrow(file: IO[bytes], path: Path, columns: Mapping[str, Column]) -> None:
    arrow = import_pyarrow(str(path))
    arrays = {}
    for name, column in columns.items():
        if isinstance(column, np.ndarray) and column.dtype.kind != "U":
            arrays[name] = arrow.array(column, from_pandas=True)  # NaN is null
        else:
            texts = column.tolist() if isinstance(column, np.ndarray) else column
            arrays[name] = arrow.array(
                [text.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for text in texts],
                arrow.string(),
            )
    table = arrow.table(arrays)
    if path.suffix.lower() == ".feather":
        import pyarrow.feather

        pyarrow.feather.write_feather(table, file)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, file)
