"""Ids that users give their faces, as arrays that a run folder can hold."""

from collections.abc import Mapping

import numpy as np

NUMBERS, TEXT, ENDS = "numbers", "text", "ends"


def packed_ids(ids: np.ndarray) -> dict[str, np.ndarray]:
    """Return ids (n,), integers or text, as arrays of numbers: integers as they are, text as UTF-8."""
    if ids.dtype.kind in "iu":
        return {NUMBERS: ids}
    encoded = [str(one).encode("utf-8", "surrogatepass") for one in ids.tolist()]
    ends = np.cumsum([len(one) for one in encoded], dtype=np.int64)
    return {TEXT: np.frombuffer(bytearray(b"".join(encoded)), np.uint8), ENDS: ends}


def unpacked_ids(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the ids (n,) that ``packed_ids`` was given, text as objects."""
    if NUMBERS in arrays:
        return arrays[NUMBERS]
    text, ends = arrays[TEXT].tobytes(), arrays[ENDS].tolist()
    starts = [0, *ends][:-1]
    found = np.empty(len(ends), object)
    for at, (start, end) in enumerate(zip(starts, ends, strict=True)):
        found[at] = text[start:end].decode("utf-8", "surrogatepass")
    return found
