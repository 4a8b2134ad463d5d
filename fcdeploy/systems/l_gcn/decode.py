"""From sub-graphs through L-GCN's passes to logits, and from these to scores.

Between the passes come the means over connected faces, which are sparse: a face has about ten connections.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.subgraphs import Subgraphs

K = TypeVar("K")


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of ``logits`` (..., 2) at class 1, the score of a link, (...) float32."""
    margin = logits[..., 1].astype(np.float64) - logits[..., 0]
    return np.exp(-np.logaddexp(0, -margin)).astype(np.float32)


def score_links(
    engines: Mapping[str, Engine],
    tables: Mapping[str, np.ndarray],
    origin: Mapping[str, np.ndarray],
    batches: Iterable[tuple[K, Subgraphs]],
) -> Iterator[tuple[K, np.ndarray]]:
    """Score the links from each centre to its one-hop neighbors: logits (m, k1, 2) of each batch, with its key.

    engines: ``convolve`` and ``score``; tables: own and near (n, 512), what ``encode`` gives for all faces, and
    origin: the same (1, 512) of a row of zeros. Logits are of the tables' dtype, NaN where a pass before them gave what
    is not finite.
    """

    def behind_conv1() -> Iterator[tuple[tuple[K, Subgraphs, np.ndarray], dict[str, np.ndarray]]]:
        for key, graphs in batches:
            rows = np.concatenate([[0], np.cumsum(graphs.within[:, 2], dtype=np.int64)])
            first = np.empty((rows[-1], 2 * tables["own"].shape[1]), dtype=tables["own"].dtype)
            _first_layer(
                *graphs.arrays,
                tables["own"],
                tables["near"],
                origin["own"][0],
                origin["near"][0],
                rows,
                first,
            )
            yield (key, graphs, rows), {"first": first}

    def behind_conv3() -> Iterator[tuple[tuple[K, int, np.ndarray], dict[str, np.ndarray]]]:
        for (key, graphs, rows), convolved in engines["convolve"].run_each(behind_conv1()):
            own, near = convolved["own"], convolved["near"]
            third = np.empty((len(graphs.centres) * graphs.k1, 2 * own.shape[1]), dtype=own.dtype)
            _third_layer(*graphs.arrays, own, near, rows, third)
            yield (key, graphs.k1, _broken(rows, own, near)), {"third": third}

    for (key, k1, broken), outputs in engines["score"].run_each(behind_conv3()):
        logits = outputs["logits"].reshape(-1, k1, 2)
        logits[broken] = np.nan  # a maximum with zero may have hidden it
        yield key, logits


def _broken(rows: np.ndarray, *tables: np.ndarray) -> np.ndarray:
    """Return the sub-graphs (m,), of table rows rows[g]:rows[g + 1], that hold NaN or infinity; most often none."""
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(sum(table.sum() for table in tables)):
            return np.empty(0, dtype=np.int64)
    bad = np.flatnonzero(~np.logical_and.reduce([np.isfinite(table).all(axis=1) for table in tables]))
    return np.unique(np.searchsorted(rows, bad, side="right") - 1)


@njit(cache=True, nogil=True)
def _mean_of(rows: np.ndarray, places: np.ndarray, out: np.ndarray) -> None:
    """Write the mean of rows[places] into ``out`` (w,); zero where there are none."""
    out[:] = 0
    for place in places:
        row = rows[place]
        for c in range(len(out)):
            out[c] += row[c]
    if len(places):
        share = np.full(1, 1 / len(places), dtype=out.dtype)[0]  # no wider than out, or the loop would be
        for c in range(len(out)):
            out[c] *= share


@njit(cache=True, nogil=True, parallel=True)
def _first_layer(
    centres: np.ndarray,
    faces: np.ndarray,
    within: np.ndarray,
    connected: np.ndarray,
    starts: np.ndarray,
    own: np.ndarray,
    near: np.ndarray,
    own_origin: np.ndarray,
    near_origin: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write conv1's output x of the faces within 2, beside the mean of x over those connected: out (rows, 2w).

    bn0 and either half of conv1 are affine maps f of x_j - x_c, and f(x_j - x_c) = f(x_j) - f(x_c) + f(0). A mean of
    such values has the same two terms once, unless it is of no faces.
    """
    w = own.shape[1]
    for g in prange(len(centres)):
        centred, centred_near = own_origin - own[centres[g]], near_origin - near[centres[g]]
        x = np.empty((within[g, 3], w), dtype=own.dtype)
        mean = np.empty(w, dtype=own.dtype)
        for at in range(within[g, 3]):
            places = connected[g, starts[g, at] : starts[g, at + 1]]
            _mean_of(near, faces[g][places], mean)
            row = own[faces[g, at]]
            if len(places):
                for c in range(w):
                    x[at, c] = max(row[c] + centred[c] + (mean[c] + centred_near[c]), np.float32(0))
            else:
                for c in range(w):
                    x[at, c] = max(row[c] + centred[c], np.float32(0))
        for at in range(within[g, 2]):
            out[rows[g] + at, :w] = x[at]
            _mean_of(x, connected[g, starts[g, at] : starts[g, at + 1]], out[rows[g] + at, w:])


@njit(cache=True, nogil=True, parallel=True)
def _third_layer(
    centres: np.ndarray,
    faces: np.ndarray,
    within: np.ndarray,
    connected: np.ndarray,
    starts: np.ndarray,
    own: np.ndarray,
    near: np.ndarray,
    rows: np.ndarray,
    out: np.ndarray,
) -> None:
    """Write conv3's output x of the one-hop neighbors, beside the mean of x over those connected: out (m k1, 2w).

    own, near: (rows, w), what conv2's outputs bring to conv3, own with the bias.
    """
    w = own.shape[1]
    for g in prange(len(centres)):
        x = np.empty((within[g, 1], w), dtype=own.dtype)
        mean = np.empty(w, dtype=own.dtype)
        theirs = near[rows[g] : rows[g + 1]]
        for at in range(within[g, 1]):
            _mean_of(theirs, connected[g, starts[g, at] : starts[g, at + 1]], mean)
            row = own[rows[g] + at]
            for c in range(w):
                x[at, c] = max(row[c] + mean[c], np.float32(0))
        k1 = within[g, 0]
        for at in range(k1):
            out[g * k1 + at, :w] = x[at]
            _mean_of(x, connected[g, starts[g, at] : starts[g, at + 1]], out[g * k1 + at, w:])
