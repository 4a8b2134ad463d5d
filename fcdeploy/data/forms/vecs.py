"""The formats of nearest-neighbor benchmarks: ``.fvecs`` and its kin, and Big-ANN's ``.fbin``.

.fvecs  .ivecs  .bvecs   each row: its width as int32, then float32, int32 or uint8 values
.fbin  .u8bin  .i8bin    rows and width as two uint32, then float32, uint8 or int8 values
"""

from pathlib import Path

import numpy as np

from fcdeploy.data.forms.shape import as_rows
from fcdeploy.errors import InputError, counted

VECS: dict[str, str] = {".fvecs": "<f4", ".ivecs": "<i4", ".bvecs": "u1"}
BIGANN: dict[str, str] = {".fbin": "<f4", ".u8bin": "u1", ".i8bin": "i1"}
WIDEST = 1 << 16
CHECKED_ROWS = 1 << 16  # at a time


def is_vecs(path: Path, itemsize: int = 4) -> bool:
    """Tell whether a file is rows of one width with the width in front of each, by the first of them."""
    size = path.stat().st_size
    width = int.from_bytes(_head(path, 4), "little")
    row = 4 + width * itemsize
    if not 2 <= width <= WIDEST or size % row or size < 2 * row:
        return False
    widths = np.memmap(path, np.uint8, "r", shape=(size // row, row))[:1000, :4]
    return bool((np.ascontiguousarray(widths).view("<i4") == width).all())


def is_bigann(path: Path, itemsize: int = 4) -> bool:
    """Tell whether a file begins with the numbers of rows and of values in each, and holds just as many."""
    n, width = np.frombuffer(_head(path, 8).ljust(8, b"\0"), "<u4").tolist()
    return n > 0 and 2 <= width <= WIDEST and path.stat().st_size == 8 + n * width * itemsize


def read_vecs(path: Path, name: str, dim: int | None) -> np.ndarray:
    """Map the rows of an ``.fvecs``, ``.ivecs`` or ``.bvecs`` file, (n, d); by any other name, ``.fvecs``.

    Raises InputError where rows differ in width, naming the first that does.
    """
    size = path.stat().st_size
    width = int.from_bytes(_head(path, 4), "little", signed=True)
    dtype = np.dtype(VECS.get(Path(name).suffix.lower(), "<f4"))
    row = 4 + width * dtype.itemsize
    if size == 0:
        raise InputError(f"{name}: is empty.")
    if not 1 <= width <= WIDEST:
        raise InputError(
            f"{name}: is not an .fvecs file: its first row would be {width:,} wide; name raw float32 rows .bin."
        )
    stored = np.memmap(path, np.uint8, "r", shape=(size // row, row))
    for start in range(0, len(stored), CHECKED_ROWS):
        widths = np.ascontiguousarray(stored[start : start + CHECKED_ROWS, :4]).view("<i4")[:, 0]
        if (other := widths != width).any():
            at = int(other.argmax())
            raise InputError(
                f"{name}: row {start + at:,} (counted from 0) is {widths[at]:,} wide, those before it {width}; rows "
                "have to be of one width."
            )
    if size % row:
        raise InputError(
            f"{name}: {size:,} bytes are not a whole number of rows of {width} {dtype.name} values; was it cut short?"
        )
    values = np.ndarray((len(stored), width), dtype, stored, 4, (row, dtype.itemsize))
    return as_rows(values, name, dim)


def read_bigann(path: Path, name: str, dim: int | None) -> np.ndarray:
    """Map the rows of an ``.fbin``, ``.u8bin`` or ``.i8bin`` file, (n, d); by any other name, ``.fbin``."""
    dtype = np.dtype(BIGANN.get(Path(name).suffix.lower(), "<f4"))
    if not is_bigann(path, dtype.itemsize):
        n, width = np.frombuffer(_head(path, 8).ljust(8, b"\0"), "<u4").tolist()
        raise InputError(
            f"{name}: its header says {counted(n, 'row')} of {width:,} {dtype.name} values, its "
            f"{path.stat().st_size:,} bytes "
            "say "
            "another number; name raw float32 rows .bin."
        )
    n, width = np.frombuffer(_head(path, 8), "<u4").tolist()
    return as_rows(np.memmap(path, dtype, "r", 8, (n, width)), name, dim)


def _head(path: Path, count: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(count)
