"""One pass over all rows before a run: which cannot be used, and which are equal."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from fcdeploy.data.features import BLOCK_ROWS, Features
from fcdeploy.graph.kernels import njit

SEEDS = (0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93)


class RowState(IntEnum):
    """Whether a row can be used; all but GOOD are bad."""

    GOOD = 0
    NAN = 1
    INFINITE = 2
    OVERFLOWING = 3
    ALL_ZERO = 4


REASONS = {
    RowState.NAN: "holds NaN",
    RowState.INFINITE: "holds infinity",
    RowState.OVERFLOWING: "its norm overflows float32",
    RowState.ALL_ZERO: "all zero",
}


@dataclass(frozen=True)
class Scan:
    """What a pass found: states (n,) uint8 of ``RowState``; hashes (2, n) uint64 of the rows, where asked for."""

    states: np.ndarray
    hashes: np.ndarray | None

    @property
    def bad(self) -> np.ndarray:
        """The rows that cannot be used, ascending."""
        return np.flatnonzero(self.states)

    @property
    def good(self) -> np.ndarray:
        """The others, ascending: (m,) int64."""
        return np.flatnonzero(self.states == RowState.GOOD)


def scan_rows(features: Features, *, hashes: bool = False) -> Scan:
    """Read every row once; takes a byte for each, and 16 more with ``hashes``.

    Hashes are of the float32 rows that a run computes with, normalised where they are to be; 0.0 and -0.0 are equal.
    """
    states = np.zeros(features.n, np.uint8)
    found = np.empty((2, features.n), np.uint64) if hashes else None
    for start in range(0, features.n, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, features.n)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            rows = features.raw(start, stop)
            norms = np.linalg.norm(rows, axis=1)
            states[start:stop] = _states(rows, norms, features.normalize)
            if found is not None:
                if features.normalize:
                    rows /= norms.reshape(-1, 1)
                rows += np.float32(0)  # -0.0 becomes 0.0
                _hash_rows(rows.view(np.uint32), found[:, start:stop])
    return Scan(states, found)


def _states(rows: np.ndarray, norms: np.ndarray, normalize: bool) -> np.ndarray:
    states = np.zeros(len(rows), np.uint8)
    # Only a row whose float32 norm is not finite needs a closer look: a huge finite row overflows it too.
    for row in np.flatnonzero(~np.isfinite(norms)):
        nan, infinite = np.isnan(rows[row]).any(), np.isinf(rows[row]).any()
        states[row] = RowState.NAN if nan else RowState.INFINITE if infinite else RowState.OVERFLOWING
    if normalize:
        states[norms == 0] = RowState.ALL_ZERO
    return states


def first_equal(scan: Scan) -> np.ndarray | None:
    """Tell which good rows are equal: (m,) int32, the first good row that each is equal to, itself where it is new.

    Rows are numbered among the good ones. None where all are different.

    Equal rows have equal hashes of 128 bits. That rows which differ have them, too, has a chance of one in 10^24 among
    10^7 rows, so that they are not compared again.
    """
    assert scan.hashes is not None
    first, second = scan.hashes if not len(scan.bad) else scan.hashes[:, scan.good]
    order = np.argsort(first, kind="stable")  # equal ones stay in the order of rows
    repeated = first[order[1:]] == first[order[:-1]]
    if not repeated.any():
        return None
    both = np.zeros(len(order), bool)
    both[1:] |= repeated
    both[:-1] |= repeated
    order = order[both]
    order = order[np.lexsort((order, second[order], first[order]))]
    new = np.ones(len(order), bool)
    new[1:] = (first[order[1:]] != first[order[:-1]]) | (second[order[1:]] != second[order[:-1]])
    if new.all():
        return None
    equal = np.arange(len(first), dtype=np.int32)
    equal[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))]
    return equal


@njit(cache=True, nogil=True)
def _hash_rows(words: np.ndarray, out: np.ndarray) -> None:
    """Hash rows of words (m, d) uint32 to two times 64 bits, out (2, m) uint64: multiply, fold, and mix at the end."""
    one, two = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
    half, fold, last = np.uint64(32), np.uint64(29), np.uint64(31)
    for row in range(words.shape[0]):
        a, b = np.uint64(SEEDS[0]), np.uint64(SEEDS[1])
        at = 0
        while at < words.shape[1]:
            word = np.uint64(words[row, at])
            if at + 1 < words.shape[1]:
                word |= np.uint64(words[row, at + 1]) << half
            a = (a ^ word) * one
            a ^= a >> fold
            b = (b + word) * two
            b ^= b >> half
            at += 2
        a = (a ^ (a >> last)) * two
        b = (b ^ (b >> last)) * one
        out[0, row] = a ^ (a >> fold)
        out[1, row] = b ^ (b >> half)
