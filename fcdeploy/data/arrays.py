"""Features from memory: whatever a Python user has them in becomes an (n, d) array of real numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from fcdeploy.data.damaged import reason_of
from fcdeploy.data.forms.shape import as_rows
from fcdeploy.errors import InputError, counted

if TYPE_CHECKING:
    import pyarrow
    import torch

SHOWN_ROWS = 5


def array_from(given: object, name: str, dim: int | None = None) -> np.ndarray:
    """Return features (n, d) of any real dtype; NumPy arrays are not copied.

    given: an array, a tensor of any framework, on any device; a DataFrame, a column of rows, a table of Arrow; a
    sequence of rows. Raises InputError, naming the row, for rows of several lengths, masked and missing values, and
    for what holds no real numbers.
    """
    array = _as_array(given, name)
    if array.dtype.kind == "O" and array.ndim == 0:
        raise _no_rows(given, name)
    if array.dtype.kind == "O":
        array = _stacked(array.ravel() if array.ndim == 1 else list(array), name, dim)
    if array.dtype.name == "bfloat16" or array.dtype.name.startswith("float8"):
        array = array.astype(np.float32)  # NumPy's own functions do not take them
    rows = as_rows(array, name, dim, from_memory=True)
    return rows.astype(np.float32) if rows.dtype.kind in "iub" else rows


def _as_array(given: object, name: str) -> np.ndarray:
    """Return what is given as an array, which may still be one of objects."""
    if isinstance(given, np.ma.MaskedArray):
        return _unmasked(given, name)
    if isinstance(given, np.ndarray):
        return np.asarray(given)
    if isinstance(given, memoryview):
        return np.asarray(given)
    if given is None or isinstance(given, (Mapping, set, frozenset, bytes, bytearray)) or np.isscalar(given):
        raise _no_rows(given, name)
    module = type(given).__module__.partition(".")[0]
    try:
        if module == "torch":
            return _from_torch(cast("torch.Tensor", given))
        if module == "cupy" and hasattr(given, "get"):
            return np.asarray(given.get())
        if module == "pyarrow":
            return _from_arrow(cast("pyarrow.Table", given), name)
        if module == "polars" and hasattr(given, "get_columns"):
            return _from_columns([(each.name, each.to_numpy()) for each in given.get_columns()], name)
        if hasattr(given, "columns") and hasattr(given, "iloc") and hasattr(given, "shape"):
            columns = [given.iloc[:, at] for at in range(given.shape[1])]
            return _from_columns([(str(each.name), each.to_numpy()) for each in columns], name)
        if module == "scipy" and hasattr(given, "toarray"):
            return np.asarray(given.toarray())
        if hasattr(given, "to_numpy"):
            return np.asarray(given.to_numpy())
        if hasattr(given, "__array__") or hasattr(given, "__array_interface__"):
            return np.asarray(given)
        if hasattr(given, "__dlpack__"):
            return np.from_dlpack(given)
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise InputError(
            f"{name}: a {type(given).__name__} that cannot be converted to an array ({reason_of(error)}); give a NumPy "
            "array."
        ) from error
    if isinstance(given, Iterable):
        return _from_sequence(list(given), name)
    raise _no_rows(given, name)


def _no_rows(given: object, name: str) -> InputError:
    return InputError(
        f"{name}: expected an (n, d) array of real numbers, found {type(given).__name__}; give one row of values per "
        "face."
    )


def _from_torch(tensor: "torch.Tensor") -> np.ndarray:
    if getattr(tensor, "layout", None) is not None and "strided" not in str(tensor.layout):
        tensor = tensor.to_dense()
    tensor = tensor.detach().cpu()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if str(tensor.dtype) in ("torch.bfloat16",) or "float8" in str(tensor.dtype):
        tensor = tensor.float()
    return np.asarray(tensor.resolve_conj().resolve_neg().numpy())


def _from_arrow(
    given: "pyarrow.Table | pyarrow.RecordBatch | pyarrow.Array | pyarrow.ChunkedArray", name: str
) -> np.ndarray:
    import pyarrow

    from fcdeploy.data.forms.tables import choose_columns, rows_from_batch

    if isinstance(given, (pyarrow.ChunkedArray, pyarrow.Array)):
        given = pyarrow.table({"features": given})
    batches = given.to_batches() if isinstance(given, pyarrow.Table) else [given]
    columns = choose_columns(pyarrow, given.schema, name, None, None)
    blocks, start, width = [], 0, None
    for batch in batches:
        if batch.num_rows:
            blocks.append(rows_from_batch(pyarrow, batch, columns, name, start, width))
            start, width = start + batch.num_rows, blocks[0].shape[1]
    if not blocks:
        raise InputError(f"{name}: is a table without rows.")
    return np.concatenate(blocks)


def _from_columns(columns: Sequence[tuple[str, np.ndarray]], name: str) -> np.ndarray:
    """Return columns of numbers beside each other, or the one column of rows; several may have one name."""
    if len(columns) == 1 and columns[0][1].dtype.kind == "O":
        return columns[0][1]
    text = [column for column, values in columns if values.dtype.kind not in "fiub"]
    if text or not columns:
        raise InputError(
            f"{name}: the column {text[0] if text else '(none)'} holds no numbers; give the columns of the features "
            "only, e.g. df.filter(like='f'), or the one column of rows."
        )
    return np.stack([values for _, values in columns], axis=1)


def _from_sequence(rows: list, name: str) -> np.ndarray:
    if any(isinstance(row, np.ma.MaskedArray) for row in rows):
        masked = [
            at for at, row in enumerate(rows) if isinstance(row, np.ma.MaskedArray) and np.ma.is_masked(row)
        ]
        _refuse_masked(masked, len(rows), name)
    plain = all(isinstance(row, (int, float, np.number, str)) for row in rows)
    if plain:
        return np.asarray(rows)
    if rows and all(isinstance(row, (list, tuple)) for row in rows):
        lengths = {len(row) for row in rows}
        if len(lengths) == 1 and all(
            isinstance(value, (int, float, complex, np.generic)) for value in rows[0]
        ):
            try:
                array = np.asarray(rows)
            except ValueError:
                return _stacked(rows, name, None)
            if array.dtype.kind != "O":
                return array
    return _stacked(rows, name, None)


def _stacked(rows: Iterable[object], name: str, dim: int | None) -> np.ndarray:
    """Return rows, each (d,) or with axes of length 1, as one array; raises InputError naming the row that differs."""
    made: list[np.ndarray] = []
    for at, row in enumerate(rows):
        where = f"{name}: row {at:,} (counted from 0)"
        if row is None or (isinstance(row, float) and np.isnan(row)):
            raise InputError(f"{where} is missing; remove it, or give a row of NaN.")
        if isinstance(row, (str, bytes, Mapping)) or np.isscalar(row):
            raise InputError(f"{where} is a {type(row).__name__}, not a row of numbers.")
        try:
            values = _as_array(row, where) if not isinstance(row, (list, tuple)) else np.asarray(row)
        except ValueError as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{where} is not a row of numbers ({reason_of(error)}).") from error
        if values.dtype.kind == "O":
            try:
                values = values.astype(np.float64)
            except (TypeError, ValueError):
                raise InputError(
                    f"{where} holds something that is not a number; give floats, NaN where missing."
                ) from None
        values = values.reshape(-1) if values.ndim and values.size == max(values.shape) else values
        if values.ndim != 1 or not values.size:
            raise InputError(
                f"{where} has the shape {values.shape}; expected ({made[0].size if made else 'd'},)."
            )
        if made and values.size != made[0].size:
            raise InputError(
                f"{where} has {counted(values.size, 'value')}, those before it {made[0].size:,}; all rows must "
                "have the same length."
            )
        made.append(values)
    if not made:
        raise InputError(f"{name}: expected an (n, d) array of floats with n, d >= 1, found no rows.")
    return np.stack(made)


def _unmasked(array: np.ma.MaskedArray, name: str) -> np.ndarray:
    mask = np.ma.getmaskarray(array)
    if mask.any():
        _refuse_masked(np.flatnonzero(mask.reshape(len(array), -1).any(axis=1)).tolist(), len(array), name)
    return np.asarray(np.ma.getdata(array))


def _refuse_masked(rows: list[int], n: int, name: str) -> None:
    if rows:
        shown = ", ".join(map(str, rows[:SHOWN_ROWS])) + (", ..." if len(rows) > SHOWN_ROWS else "")
        raise InputError(
            f"{name}: {len(rows):,} of {n:,} rows have masked values (row {shown}, counted from 0); remove these "
            "faces, or give x.filled(numpy.nan) and choose what to do with bad rows."
        )
