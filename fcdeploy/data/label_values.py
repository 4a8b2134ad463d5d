"""What single labels stand for: identities by number or by name, and which are unknown."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fcdeploy.errors import InputError

UNKNOWN = -1
# A column written by pandas, R or a database says so in one of these ways; so do people who label by hand.
UNKNOWN_TEXTS = frozenset(
    (
        *("", "-1", "nan", "NaN", "NAN", "NA", "N/A", "n/a", "#N/A", "<NA>", "None", "none", "null", "NULL"),
        *("unknown", "Unknown", "UNKNOWN", "?"),
    )
)
LARGEST_FLOAT = 2**53  # beyond it integers next to each other are one float64
INT64 = np.iinfo(np.int64)
INTEGER = re.compile(r"[+-]?[0-9]+")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
IMAGE = re.compile(r"\.(jpe?g|png|bmp|webp|heic|tiff?)\b", re.IGNORECASE)
SHOWN = 40  # characters of a label in a message


def labels_from_texts(
    texts: Sequence[str], where: str, place: Callable[[int], str] = lambda at: f"row {at}, counted from 0,"
) -> np.ndarray:
    """Turn labels written as text into numbers, (n,) int64; unknown ones (``UNKNOWN_TEXTS``) are -1.

    Whole numbers, also as in 3.0 or 3e0, stay what they are. Names, any text, are numbered from 0 by first appearance.
    Raises InputError, calling the file ``where`` and the label ``place(at)``, for a number that is not whole or not an
    int64, for words among numbers (unless most are words, which makes all of them names) and for names of images.
    """
    counts = Counter(texts)
    values = {text: _value(text) for text in counts}
    words = [text for text, value in values.items() if isinstance(value, str)]
    known = sum(counts[text] for text, value in values.items() if value is not None)

    def refuse(text: str, what: str) -> InputError:
        return InputError(f"{where}: {place(texts.index(text))} holds {shortened(text)}, {what}.")

    if words:
        if 2 * sum(counts[text] for text in words) <= known:
            raise refuse(words[0], "which is not an integer; write integers only, or names only")
        for text in words:
            if IMAGE.search(text):
                raise refuse(
                    text, "the name of an image; give the labels, or with --label-column their column"
                )
        numbers: dict[str, int] = {}
        for text, value in values.items():
            numbers[text] = UNKNOWN if value in (None, UNKNOWN) else len(numbers)
    else:
        numbers = {}
        for text, value in values.items():
            if isinstance(value, float):
                raise refuse(
                    text, "which is not a whole number; labels are numbers of identities, or their names"
                )
            number = UNKNOWN if value is None else value
            assert isinstance(number, int)
            if not INT64.min <= number <= INT64.max:
                raise refuse(text, "which does not fit in an int64; number the clusters from 0")
            numbers[text] = number
    return np.fromiter((numbers[text] for text in texts), np.int64, len(texts))


def _value(text: str) -> int | float | str | None:
    """Read one label: a whole number, another one, a word, or None where it is unknown."""
    if text in UNKNOWN_TEXTS:
        return None
    if INTEGER.fullmatch(text):
        digits = text.lstrip("+-0")
        return int(text) if len(digits) <= 19 else INT64.max + 1  # Python refuses to read thousands of digits
    if NUMBER.fullmatch(text):
        number = float(text)
        return int(number) if number.is_integer() and abs(number) <= LARGEST_FLOAT else number
    return text


def shortened(text: str) -> str:
    """Quote the beginning of a text."""
    return repr(text if len(text) <= SHOWN else text[:SHOWN] + "…")


def labels_from_values(values: ArrayLike, name: str = "labels") -> np.ndarray:
    """Return labels as (n,) int64: integers, whole floats (NaN is unknown) or names, one per face.

    values: an array-like (n,), or (n, 1), or (1, n). Masked entries, None and the texts that say so are unknown, -1.
    Integers are the same memory where they are int64 already. Raises InputError, calling them ``name``, when there is
    not one label per face or one is no whole number that an int64 can hold.
    """
    masked = np.ma.getmaskarray(values) if np.ma.isMaskedArray(values) else None
    array = np.asarray(values)
    if array.ndim and sum(length != 1 for length in array.shape) <= 1:
        array = array.reshape(-1)
        masked = None if masked is None else masked.reshape(-1)
    kind = array.dtype.kind
    if array.ndim != 1 or (kind not in "iufUSOT" and array.size):
        raise InputError(
            f"{name}: expected one label per face, integers of shape (n,), found {array.dtype} {array.shape}; "
            "write it with np.save(path, labels), where labels is an int64 array of shape (n,)."
        )
    if kind == "f":
        labels = _from_floats(array, name)
    elif kind in "USOT":
        labels = labels_from_texts([_text(value) for value in array.tolist()], name)
    else:
        if kind == "u" and array.size and array.max() > INT64.max:
            raise InputError(f"{name}: {array.max()} does not fit in an int64; number the clusters from 0.")
        labels = array.astype(np.int64, copy=False)
    return labels if masked is None or not masked.any() else np.where(masked, UNKNOWN, labels)


def _from_floats(array: np.ndarray, name: str) -> np.ndarray:
    values = np.where(np.isnan(array), UNKNOWN, array).astype(np.float64)
    bits = (
        min(np.finfo(array.dtype).nmant, 52) + 1
    )  # beyond 2 ** bits integers next to each other are one number
    bad = ~np.isfinite(values) | (values != np.floor(values)) | (np.abs(values) > 2.0**bits)
    if bad.any():
        at = int(bad.argmax())
        raise InputError(
            f"{name}: row {at}, counted from 0, holds {array[at]}, which is not a whole number up to 2 ** {bits}; "
            f"expected integers of shape (n,), found {array.dtype} {array.shape}."
        )
    return values.astype(np.int64)


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        value = value.decode(errors="backslashreplace")
    return str(value).strip()
