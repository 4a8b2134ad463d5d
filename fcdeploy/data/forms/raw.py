"""Raw float32 rows, which say nothing of themselves: what contradicts that they are this, in a sample of them.

Numbers in the wrong dtype have telltale magnitudes. Embeddings spread over a few powers of two; read as something else,
bits of the mantissa become exponents, and values spread over dozens. A file is refused only where the values as
float32 are absurd and another dtype makes them ordinary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.errors import InputError

PIECES, PIECE = 64, 4096  # of the sample; bytes, a multiple of every item's
LEAST_DIFFERENT = 1 / 8  # of the words of bfloat16 values
LEAST_WORDS = 32
LEAST_BYTES = 2048  # to tell 8-bit integers by
ORDINARY = 12.0  # powers of two that 90 % of an embedding's values spread over, at most
ORDINARY_SIZE = 24.0  # power of two of a typical value, at most, up or down
ABSURD, ABSURD_SIZE = 24.0, 36.0  # the same of values that are none
SMALLEST_HALF = -14  # power of two; below it float16 loses bits
NOISE = 100.0  # no file of numbers spreads so far
WIDTHS = (32, 64, 96, 128, 160, 192, 256, 320, 384, 448, 512, 640, 768, 1024, 1280, 1536, 2048, 4096)
UNIT = 2e-3  # how far from 1 the norms of unit rows are
LEAST_ROWS = 8
FOR_WIDTH = 4 << 20  # bytes that the width is looked for in
REPEATS = 0.1  # correlation of values a row apart that stands out
CONVERT = (
    "python -c \"import numpy as np; np.save('features.npy', np.fromfile({file!r}, {dtype!r})"
    '.reshape(-1, {dim}))"'
)


@dataclass(frozen=True)
class Spread:
    """Of the nonzero values of a sample: powers of two that 90 % lie in, the median one, and the share not finite."""

    octaves: float
    size: float
    not_finite: float
    nonzero: float

    @property
    def ordinary(self) -> bool:
        return (
            not self.not_finite
            and self.nonzero > 0.01
            and self.octaves <= ORDINARY
            and abs(self.size) <= ORDINARY_SIZE
        )


def open_raw(path: Path, name: str, dim: int | None) -> np.ndarray:
    """Map a file of raw little-endian float32 rows as (n, dim).

    Raises InputError when it is empty, no whole number of rows, or its values are plainly of another dtype.
    """
    size = path.stat().st_size
    if dim is None:
        raise InputError(f"{name}: a raw features file does not say the width of its rows; give --dim.")
    if dim < 1:
        raise InputError(f"{name}: a feature width of {dim} is not possible; give --dim 1 or more.")
    if size == 0:
        raise InputError(f"{name}: is empty; expected rows of {dim} float32 values.")
    if found := other_dtype(sample_of(path)):
        what, dtype = found
        line = f"; convert it: {CONVERT.format(file=name, dtype=dtype, dim=dim)}" if dtype else ""
        raise InputError(
            f"{name}: does not hold float32 values but, by their magnitudes, {what}{line} (if they are float32 anyway, "
            "save them as .npy)."
        )
    if size % (4 * dim):
        raise InputError(
            f"{name}: {size:,} bytes are not a whole number of rows of {dim} float32 values ({4 * dim:,} bytes "
            "each); check the width, or whether the file was cut short."
        )
    return np.memmap(path, dtype="<f4", mode="r", shape=(size // (4 * dim), dim))


def sample_of(path: Path) -> np.ndarray:
    """Return bytes of a file, uint8: pieces from all over it, each from a multiple of 8."""
    data = np.memmap(path, np.uint8, "r")
    if len(data) <= PIECES * PIECE:
        return np.array(data[: len(data) // 8 * 8])
    starts = np.linspace(0, len(data) - PIECE, PIECES).astype(np.int64) // 8 * 8
    return np.concatenate([data[start : start + PIECE] for start in starts.tolist()])


def other_dtype(sample: np.ndarray) -> tuple[str, str] | None:
    """Return what values are that are not float32, in words and as NumPy's dtype ("" for none); None if they may be.

    sample: (m,) uint8, a multiple of 8.
    """
    words = len(sample) // 4
    if words < LEAST_WORDS:
        return None
    as_is = spread(sample.view("<f4"))
    if as_is.nonzero == 0:
        return None
    for what, dtype in (("float64", "<f8"), ("big-endian float64", ">f8"), ("big-endian float32", ">f4")):
        if dtype == ">f8" and sample.view("<u4")[1::2].any() and spread(sample.view(">f4")).ordinary:
            continue  # only a double whose lower half is zero is an ordinary number as two floats, too
        if _absurd(as_is) and spread(sample.view(dtype)).ordinary:
            return what, dtype
    # The same few numbers again and again have any pattern at all.
    if _bfloat16(sample) and len(np.unique(sample.view("<u4"))) > words * LEAST_DIFFERENT:
        return "bfloat16", ""
    half = sample.view("<f2")
    halves = spread(half)
    both = np.count_nonzero(half[0::2]) > 0.5 * np.count_nonzero(half[1::2]) > 0
    wider = as_is.octaves > max(10.0, 3 * halves.octaves + 3)
    if halves.ordinary and halves.size > SMALLEST_HALF and both and (_absurd(as_is) or wider):
        return "float16", "<f2"
    swapped = spread(sample.view(">f2"))
    if _absurd(as_is) and swapped.ordinary and both:
        return "big-endian float16", ">f2"
    if _doubles_of_short_numbers(sample):
        return "float64", "<f8"
    if _absurd(as_is) and (bytes_of := _bytes_alike(sample)):
        return f"8-bit integers ({np.dtype(bytes_of).name})", bytes_of
    if as_is.octaves > NOISE and words >= 2 * LEAST_WORDS:
        return "no numbers (compressed, encrypted or damaged data)", ""
    return None


def spread(values: np.ndarray) -> Spread:
    """Return how far the magnitudes of values spread; those that are zero do not count."""
    with np.errstate(all="ignore"):
        wide = np.abs(values.astype(np.float64))
    finite = np.isfinite(wide)
    used = wide[finite & (wide > 0)]
    if not len(used):
        return Spread(0.0, 0.0, float(1 - finite.mean()), 0.0)
    low, middle, high = np.quantile(np.log2(used), (0.05, 0.5, 0.95))
    return Spread(float(high - low), float(middle), float(1 - finite.mean()), len(used) / len(wide))


def width_doubted(path: Path, dim: int) -> tuple[int, bool] | None:
    """Return another width that the rows of a raw file seem to have, and whether it is certain.

    Certain: rows of that width are all of unit length, and rows of ``dim`` are not. Likely: values repeat with that
    period, and not with ``dim``.
    """
    size = path.stat().st_size
    head = np.array(np.memmap(path, "<f4", "r", shape=(min(size, FOR_WIDTH) // 4,)))
    others = [width for width in WIDTHS if width != dim and size % (4 * width) == 0 and dim % width]
    others = [width for width in others if len(head) >= LEAST_ROWS * width]
    if not others or not np.isfinite(head).all():
        return None
    with np.errstate(all="ignore"):
        if not _unit(head, dim):
            for width in others:
                if _unit(head, width):
                    return width, True
        flat = head.astype(np.float64) - head.mean(dtype=np.float64)
        power = float((flat * flat).mean())
        if not 0 < power < np.inf:
            return None
        noise = 10 / np.sqrt(len(flat))

        def repeats(lag: int) -> float:
            return float((flat[:-lag] * flat[lag:]).mean()) / power if 0 < lag < len(flat) else 0.0

        own = repeats(dim)
        likely = max(others, key=repeats)
        found = repeats(likely)
    if found > max(REPEATS, noise) and own < 0.25 * found:
        return likely, False
    return None


def _unit(values: np.ndarray, width: int) -> bool:
    rows = len(values) // width
    norms = np.linalg.norm(values[: rows * width].reshape(rows, width), axis=1)
    return rows >= LEAST_ROWS and bool((np.abs(norms - 1) < UNIT).mean() > 0.99)


def _absurd(found: Spread) -> bool:
    return found.octaves > ABSURD or abs(found.size) > ABSURD_SIZE


def _bfloat16(sample: np.ndarray) -> bool:
    """Whether the lower halves of float32 values, which are noise or zero, are ordinary numbers as bfloat16."""
    pairs = sample.view("<u2").reshape(-1, 2)
    low, high = (spread((pairs[:, at].astype(np.uint32) << 16).view(np.float32)) for at in (0, 1))
    return (
        low.ordinary
        and high.ordinary
        and low.nonzero > 0.5 * high.nonzero
        and abs(low.size - high.size) < 4
        and len(np.unique(pairs[:, 0])) >= 16
    )


def _doubles_of_short_numbers(sample: np.ndarray) -> bool:
    """Whether every other word is zero and those between are what the upper halves of float64 values look like."""
    words = sample.view("<u4").reshape(-1, 2)
    if words[:, 0].any() or np.count_nonzero(words[:, 1]) < LEAST_WORDS:
        return False
    upper = spread(words[:, 1].copy().view(np.float32))
    return upper.octaves < 3 and -2 <= upper.size <= 2 and spread(sample.view("<f8")).ordinary


def _bytes_alike(sample: np.ndarray) -> str | None:
    """Return 'i1' or 'u1' when bytes are distributed alike at all four places of a word, and not evenly."""
    if len(sample) < LEAST_BYTES:
        return None
    columns = sample[: len(sample) // 4 * 4].reshape(-1, 4)
    shares = np.stack([np.bincount(column >> 4, minlength=16) for column in columns.T]) / len(columns)
    noise = 4 / np.sqrt(len(columns))
    apart = max(np.abs(shares[a] - shares[b]).sum() / 2 for a in range(4) for b in range(a))
    uneven = np.abs(shares.mean(0) - 1 / 16).sum() / 2
    if apart > 0.1 + noise or uneven < 0.15 + noise:
        return None
    counts = np.bincount(sample, minlength=256)
    # Signed values go on from 255 to 0, unsigned ones from 127 to 128.
    return "i1" if counts[[0, 1, 254, 255]].sum() >= counts[126:130].sum() else "u1"
