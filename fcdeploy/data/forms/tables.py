"""Tables of Parquet and Arrow (IPC files and streams, Feather), read a batch at a time with pyarrow.

Features are a column of lists, one list per face, or many columns of numbers. Nulls are NaN, so that their rows are
bad rows.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from fcdeploy.data.damaged import reason_of
from fcdeploy.data.forms.files import natural
from fcdeploy.data.forms.spool import spool_rows
from fcdeploy.errors import InputError, counted
from fcdeploy.packages import import_package

if TYPE_CHECKING:
    import pyarrow

BATCH_ROWS = 4096
Batches: TypeAlias = "Callable[[list[str]], Iterable[pyarrow.RecordBatch]]"  # of some columns


def import_pyarrow(what: str) -> ModuleType:
    """Return the module ``pyarrow``; raises MissingDependencyError, saying ``what`` needs it."""
    title = f"{what}: pyarrow, by which tables are read,"
    return import_package("pyarrow", title, "pip install 'fcdeploy[tables]'")


def read_table(
    path: Path,
    name: str,
    kind: str,
    dim: int | None,
    column: str | None,
    id_column: str | None,
    scratch: Path | None,
) -> tuple[np.ndarray, str, np.ndarray | None]:
    """Return the features (n, d) of a table, the columns they are in, and the ids (n,) of ``id_column``.

    kind: 'parquet' or 'arrow'. column: a column of lists, or a pattern such as 'f*' for columns of numbers.
    """
    arrow = import_pyarrow(name)
    try:
        schema, batches = _opened(arrow, path, kind)
        columns = choose_columns(arrow, schema, name, column, id_column)
        ids: list[np.ndarray] = []
        wanted = [*columns, *([id_column] if id_column else [])]

        def blocks() -> Iterator[np.ndarray]:
            nonlocal dim
            start = 0
            for batch in batches(wanted):
                if not batch.num_rows:
                    continue
                rows = rows_from_batch(arrow, batch, columns, name, start, dim)
                dim = rows.shape[1]
                if id_column:
                    ids.append(ids_from_column(batch.column(id_column), name, id_column, start))
                start += batch.num_rows
                yield rows

        first = next(reading := blocks(), None)
        if first is None:
            raise InputError(f"{name}: is a table without rows.")
        array = spool_rows(_behind(first, reading), first.shape[1], first.dtype, scratch)
    except (arrow.ArrowException, OSError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name}: not a readable {kind.capitalize()} table ({reason_of(error)}).") from error
    shown = columns[0] if len(columns) == 1 else f"{columns[0]} to {columns[-1]}"
    return array, shown, np.concatenate(ids) if ids else None


def choose_columns(
    arrow: ModuleType, schema: "pyarrow.Schema", name: str, column: str | None, id_column: str | None
) -> list[str]:
    """Return the names of the columns that hold the features; raises InputError where that is not clear."""
    types = arrow.types
    listed = ", ".join(f"{field.name} ({field.type})" for field in list(schema)[:20])
    names = [field.name for field in schema]
    for option, given in (("--id-column", id_column),):
        if given is not None and given not in names:
            raise InputError(f"{name}: has no column {given} ({option}); it has {listed}.")
    others = [field for field in schema if field.name != id_column]
    if column is not None:
        chosen = [field for field in others if field.name == column]
        chosen = chosen or [field for field in others if fnmatch.fnmatchcase(field.name, column)]
        if not chosen:
            raise InputError(f"{name}: has no column {column} (--column); it has {listed}.")
    else:
        chosen = [field for field in others if _is_list(types, field.type)]
        if len(chosen) > 1:
            raise InputError(
                f"{name}: has several columns of lists ({listed}); choose one with --column {chosen[0].name}."
            )
        chosen = chosen or [field for field in others if types.is_floating(field.type)]
        if not chosen:
            raise InputError(
                f"{name}: has no column of lists or of floats; it has {listed}; choose that of the features with "
                "--column."
            )
    lists = [field for field in chosen if _is_list(types, field.type)]
    if lists and len(chosen) > 1:
        raise InputError(f"{name}: --column {column} matches several columns of lists ({listed}); name one.")
    for field in chosen:
        held = field.type.value_type if _is_list(types, field.type) else field.type
        if not (types.is_floating(held) or types.is_integer(held) or types.is_boolean(held)):
            raise InputError(
                f"{name}: the column {field.name} holds {field.type} and no numbers; it has {listed}."
            )
    return [
        field.name for field in (chosen if lists else sorted(chosen, key=lambda field: natural(field.name)))
    ]


def rows_from_batch(
    arrow: ModuleType,
    batch: "pyarrow.RecordBatch",
    columns: list[str],
    name: str,
    start: int,
    dim: int | None,
) -> np.ndarray:
    """Return the rows (m, d) of a record batch whose first row is number ``start``.

    Raises InputError when a row is of another width than ``dim``, or than the one before it.
    """
    if len(columns) > 1 or not _is_list(arrow.types, batch.schema.field(columns[0]).type):
        rows = np.stack([_numbers(batch.column(each)) for each in columns], axis=1)
        if dim is not None and rows.shape[1] != dim:
            raise InputError(
                f"{name}: expected (n, {dim}) features, found {len(columns)} columns of numbers ({columns[0]} to "
                f"{columns[-1]}); choose one with --column PATTERN, such as 'f*'."
            )
        return rows
    lists = batch.column(columns[0])
    fixed = arrow.types.is_fixed_size_list(lists.type)
    missing = np.asarray(lists.is_null())
    if fixed:
        lengths = np.full(len(lists), lists.type.list_size)
        values = lists.values.slice(lists.offset * lists.type.list_size, len(lists) * lists.type.list_size)
    else:
        lengths = np.asarray(lists.value_lengths().fill_null(0))
        values = lists.flatten()
    width = dim if dim is not None else int(lengths[~missing][0]) if not missing.all() else 0
    other = (lengths != width) & ~missing
    if other.any() or not width:
        at = int(other.argmax())
        raise InputError(
            f"{name}: expected (n, {width or dim or 'd'}) features, found {counted(int(lengths[at]), 'value')} in "
            f"row {start + at:,} "
            f"(counted from 0) of the column {columns[0]}."
        )
    numbers = _numbers(values)
    if fixed or not missing.any():
        rows = numbers.reshape(len(lists), width)
        if not missing.any():
            return rows
        rows = np.array(rows, rows.dtype)
    else:
        rows = np.empty((len(lists), width), numbers.dtype)
        rows[~missing] = numbers.reshape(-1, width)
    rows[missing] = np.nan
    return rows


def ids_from_column(values: "pyarrow.Array", name: str, column: str, start: int) -> np.ndarray:
    """Return a column of ids (m,) as integers or text; raises InputError for nulls and other things."""
    missing = np.asarray(values.is_null())
    if missing.any():
        at = start + int(missing.argmax())
        raise InputError(
            f"{name}: row {at:,} (counted from 0) has no id in the column {column} (--id-column)."
        )
    ids = np.asarray(values.to_pylist())
    if ids.dtype.kind not in "iuU" or ids.ndim != 1:
        raise InputError(
            f"{name}: the column {column} (--id-column) holds {values.type}; ids are text or integers."
        )
    return ids.astype(np.str_) if ids.dtype.kind == "U" else ids


def _opened(arrow: ModuleType, path: Path, kind: str) -> tuple["pyarrow.Schema", Batches]:
    """Return the schema of a table and a function that gives record batches of some of its columns."""
    if kind == "parquet":
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path, memory_map=True, pre_buffer=False)
        return file.schema_arrow, lambda columns: file.iter_batches(BATCH_ROWS, columns=columns)
    with open(path, "rb") as opened:
        head = opened.read(8)
    if head.startswith(b"FEA1"):
        import pyarrow.feather

        table = pyarrow.feather.read_table(path)
        return table.schema, lambda columns: table.select(columns).to_batches(BATCH_ROWS)
    source = arrow.memory_map(str(path), "r")
    if head.startswith(b"ARROW1"):
        reader = arrow.ipc.open_file(source)
        parts = (reader.get_batch(at) for at in range(reader.num_record_batches))
    else:
        reader = arrow.ipc.open_stream(source)
        parts = iter(reader)
    return reader.schema, lambda columns: _cut(arrow, parts, columns)


def _cut(
    arrow: ModuleType, batches: Iterable["pyarrow.RecordBatch"], columns: list[str]
) -> Iterator["pyarrow.RecordBatch"]:
    for batch in batches:
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield batch.select(columns).slice(start, BATCH_ROWS)


def _is_list(types: ModuleType, kind: "pyarrow.DataType") -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def _numbers(values: "pyarrow.Array") -> np.ndarray:
    """Return a column of numbers (m,) as floats, NaN for nulls; of one dtype, whether or not there are any."""
    numbers = values.to_numpy(zero_copy_only=False)
    kind = str(values.type)
    floats = {"double": np.float64, "float": np.float32, "halffloat": np.float16}
    narrow = kind in ("bool", "int8", "uint8", "int16", "uint16")
    return numbers.astype(floats.get(kind, np.float32 if narrow else np.float64), copy=False)


def _behind(first: np.ndarray, others: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    yield first
    yield from others
