"""Unit rows as small integers, whose products are the same on every machine.

All rows have one scale, so that the scores of any two pairs can be compared. No sum of products exceeds 2^24: int32
and float32 hold all of them exactly, in whatever order they are added.
"""

import math
from dataclasses import dataclass

import numpy as np

from fcdeploy.data.mapped import release_pages
from fcdeploy.graph.kernels import njit, prange

SEED = 4321
SAMPLE = 4096
CLIPPED = 10_000  # about one component in so many is larger than the largest code
LARGEST = 127
EXACT = 2**24  # integers up to here are exact in float32
ROWS = 65536  # that are read or written before pages are let go of


@dataclass(frozen=True)
class CodeScale:
    """How numbers become codes: x * factor, rounded to the nearest integer, from -limit to limit."""

    factor: float
    limit: int


def code_scale(vectors: np.ndarray) -> CodeScale:
    """Return the scale for ``vectors`` (n, d) float32, from a seeded sample of them.

    Clipping the largest component in ten thousand makes the steps of all others finer.
    """
    n, d = vectors.shape
    chosen = np.sort(np.random.default_rng(SEED).choice(n, min(n, SAMPLE), replace=False))
    sizes = np.abs(vectors[chosen]).ravel()
    at = len(sizes) - 1 - len(sizes) // CLIPPED
    most = float(np.partition(sizes, at)[at]) or float(sizes.max()) or 1.0
    limit = min(LARGEST, math.isqrt(EXACT // d))
    return CodeScale(float(np.float32(limit / most)), limit)


def codes_of_rows(rows: np.ndarray, scale: CodeScale, out: np.ndarray | None = None) -> np.ndarray:
    """Return the codes (m, d) int8 of ``rows`` (m, d) float32, written to ``out`` if given."""
    if out is None:
        out = np.empty(rows.shape, dtype=np.int8)
    _round(rows, np.float32(scale.factor), np.float32(scale.limit), out)
    return out


def codes_of_faces(
    vectors: np.ndarray, faces: np.ndarray, scale: CodeScale, out: np.ndarray | None = None
) -> np.ndarray:
    """Return the codes (m, d) int8 of ``vectors`` (n, d) float32 at ``faces`` (m,).

    Pages of a map are let go of as it goes: most of a large file would stay in memory otherwise.
    """
    if out is None:
        out = np.empty((len(faces), vectors.shape[1]), dtype=np.int8)
    for start in range(0, len(faces), ROWS):
        rows = slice(start, start + ROWS)
        _round_faces(vectors, faces[rows], np.float32(scale.factor), np.float32(scale.limit), out[rows])
        release_pages(vectors)
    return out


@njit(cache=True, nogil=True, parallel=True)
def _round(rows: np.ndarray, factor: np.float32, limit: np.float32, out: np.ndarray) -> None:
    for i in prange(rows.shape[0]):
        for j in range(rows.shape[1]):
            out[i, j] = np.int8(min(max(np.rint(rows[i, j] * factor), -limit), limit))


@njit(cache=True, nogil=True, parallel=True)
def _round_faces(
    vectors: np.ndarray, faces: np.ndarray, factor: np.float32, limit: np.float32, out: np.ndarray
) -> None:
    for i in prange(faces.shape[0]):
        row = vectors[faces[i]]
        for j in range(row.shape[0]):
            out[i, j] = np.int8(min(max(np.rint(row[j] * factor), -limit), limit))
