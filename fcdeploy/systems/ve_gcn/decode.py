"""From candidates through GCN-E's passes to logits, and to the candidate that a face links to.

Between the passes come the means over connected candidates.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.systems.ve_gcn.edges import add_row
from fcdeploy.systems.ve_gcn.inputs import CandidateGraphs

K = TypeVar("K")


def score_candidates(
    engines: Mapping[str, Engine],
    tables: Mapping[str, np.ndarray],
    origin: Mapping[str, np.ndarray],
    batches: Iterable[tuple[K, CandidateGraphs]],
) -> Iterator[tuple[K, np.ndarray]]:
    """Score the candidates of each centre: logits (c, 2) of each batch, one behind the other, with its key.

    engines: ``convolve`` and ``score``; tables: own and near (n, h), what ``encode`` gives for all faces, and origin:
    the same (1, h) of a row of zeros. Logits are of the tables' dtype, NaN for a centre with a candidate of whom a pass
    before them gave what is not finite.
    """

    def behind_conv1() -> Iterator[tuple[tuple[K, CandidateGraphs], dict[str, np.ndarray]]]:
        for key, graphs in batches:
            own, near = tables["own"], tables["near"]
            first = np.empty((len(graphs.candidates.faces), 2 * own.shape[1]), dtype=own.dtype)
            _first_layer(*graphs.arrays, own, near, origin["own"][0], origin["near"][0], first)
            yield (key, graphs), {"first": first}

    def behind_conv3() -> Iterator[tuple[tuple[K, np.ndarray], dict[str, np.ndarray]]]:
        for (key, graphs), convolved in engines["convolve"].run_each(behind_conv1()):
            own, near = convolved["own"], convolved["near"]
            third = np.empty((len(own), 2 * own.shape[1]), dtype=own.dtype)
            starts = graphs.candidates.starts
            _third_layer(starts, graphs.offsets, graphs.shares, own, near, third)
            yield (key, _beside_broken(starts, own, near)), {"third": third}

    for (key, broken), outputs in engines["score"].run_each(behind_conv3()):
        logits = outputs["logits"]
        logits[broken] = np.nan  # a maximum with zero may have hidden it
        yield key, logits


def _beside_broken(starts: np.ndarray, *tables: np.ndarray) -> np.ndarray:
    """Return the rows of centres that have a row which is not finite in one of ``tables`` (c, w); most often none."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(sum(table.sum() for table in tables)):
            return np.empty(0, dtype=np.int64)
    bad = ~np.logical_and.reduce([np.isfinite(table).all(axis=1) for table in tables])
    return np.flatnonzero(np.repeat(np.logical_or.reduceat(bad, starts[:-1]), np.diff(starts)))


def best_candidates(logits: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return which of each centre's candidates has the highest odds, (m,) int64 within starts[g]:starts[g + 1].

    logits: (c, 2). By the difference of the logits, which does not saturate as the published log-softmax does; of equal
    ones the first, which is the nearest.
    """
    odds = logits[:, 1] - logits[:, 0]
    best = np.empty(len(starts) - 1, dtype=np.int64)
    _first_best(odds, starts, best)
    return best


@njit(cache=True, nogil=True)
def _first_best(odds: np.ndarray, starts: np.ndarray, best: np.ndarray) -> None:
    for g in range(len(best)):
        best[g] = starts[g]
        for at in range(starts[g] + 1, starts[g + 1]):
            if odds[at] > odds[best[g]]:
                best[g] = at


@njit(cache=True, nogil=True)
def _mean_of(rows: np.ndarray, shares: np.ndarray, weight: np.ndarray, out: np.ndarray) -> None:
    """Write the mean of ``rows`` (c, w) by ``shares`` (c,) into ``out`` (w,); weight: (1,) of its dtype."""
    out[:] = 0
    for at in range(len(shares)):
        if shares[at] != 0:
            weight[0] = shares[at]
            add_row(out, weight[0], rows[at])


@njit(cache=True, nogil=True, parallel=True)
def _first_layer(
    centres: np.ndarray,
    starts: np.ndarray,
    faces: np.ndarray,
    offsets: np.ndarray,
    shares: np.ndarray,
    own: np.ndarray,
    near: np.ndarray,
    own_origin: np.ndarray,
    near_origin: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write conv1's output x of the candidates beside the mean of x over those connected: out (c, 2w).

    Either half of conv1 is an affine map f of x_j - x_c, and f(x_j - x_c) = f(x_j) - f(x_c) + f(0); a mean of such
    values has the last two terms once.
    """
    w = own.shape[1]
    for g in prange(len(centres)):
        members = faces[starts[g] : starts[g + 1]]
        size = len(members)
        centred = own_origin - own[centres[g]] + (near_origin - near[centres[g]])
        mean, weight = np.empty(w, dtype=own.dtype), np.empty(1, dtype=own.dtype)
        theirs = near[members]
        x = np.empty((size, w), dtype=own.dtype)
        for u in range(size):
            _mean_of(theirs, shares[offsets[g] + u * size : offsets[g] + (u + 1) * size], weight, mean)
            row = own[members[u]]
            for c in range(w):
                x[u, c] = max(row[c] + mean[c] + centred[c], np.float32(0))
        for u in range(size):
            rows = out[starts[g] + u]
            rows[:w] = x[u]
            _mean_of(x, shares[offsets[g] + u * size : offsets[g] + (u + 1) * size], weight, rows[w:])


@njit(cache=True, nogil=True, parallel=True)
def _third_layer(
    starts: np.ndarray,
    offsets: np.ndarray,
    shares: np.ndarray,
    own: np.ndarray,
    near: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write conv3's output x of the candidates beside the mean of x over those connected: out (c, 2w).

    own, near: (c, w), what conv2's outputs bring to conv3, own with the bias.
    """
    w = own.shape[1]
    for g in prange(len(starts) - 1):
        first, size = starts[g], starts[g + 1] - starts[g]
        mean, weight = np.empty(w, dtype=own.dtype), np.empty(1, dtype=own.dtype)
        x = np.empty((size, w), dtype=own.dtype)
        for u in range(size):
            _mean_of(
                near[first : first + size],
                shares[offsets[g] + u * size : offsets[g] + (u + 1) * size],
                weight,
                mean,
            )
            for c in range(w):
                x[u, c] = max(own[first + u, c] + mean[c], np.float32(0))
        for u in range(size):
            rows = out[first + u]
            rows[:w] = x[u]
            _mean_of(x, shares[offsets[g] + u * size : offsets[g] + (u + 1) * size], weight, rows[w:])
