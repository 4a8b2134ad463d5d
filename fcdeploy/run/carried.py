"""Blocks of a run over the faces of an earlier one, some of them gone and others new: what stays is taken over.

How a stage's rows are taken over is its ``carry``, one of the functions here: it fills in the rows that stay and says
which ones have to be computed. Stages without one, and those of which the earlier run kept nothing, are computed for
all rows.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fcdeploy.graph.faiss_library import import_faiss
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.knn import order_candidates
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import LocalBlocks, OpenEngine
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.stage import Carry, Moved, Stage
from fcdeploy.run.store import Arrays, MemoryStore, Partial, Store

GONE = -9  # stands for a face that is gone


class CarriedBlocks:
    """Takes over the rows that stay, and computes the others in this process; see ``Blocks``."""

    def __init__(self, options: Options, moved: Moved) -> None:
        self._local, self._moved = LocalBlocks(options), moved

    def making(self, name: str, key: str) -> contextlib.AbstractContextManager[None]:
        """Do nothing else: nobody needs to know."""
        return contextlib.nullcontext()

    def compute(
        self, stage: Stage, partial: Partial, open_engine: OpenEngine, store: Store, progress: Progress
    ) -> None:
        old = self._moved.stored(stage.name)
        rows: np.ndarray | None = None
        if stage.carry is not None and old is not None:
            rows = stage.carry(self._moved, old, partial.arrays)
        elif stage.needed is not None:
            rows = stage.needed(self._moved)
        if rows is None or len(rows) == stage.count:
            self._local.compute(stage, partial, open_engine, store, progress)
            return
        if len(rows):
            self._compute_some(stage, rows, partial, open_engine, store, progress)
        if stage.carried is not None and old is not None:
            stage.carried(self._moved, old, partial.arrays, rows)
        partial.commit(0, stage.count)

    def _compute_some(
        self,
        stage: Stage,
        rows: np.ndarray,
        partial: Partial,
        open_engine: OpenEngine,
        store: Store,
        progress: Progress,
    ) -> None:
        """Compute ``rows`` (m,) of an artifact, straight to their places."""

        def block(places: np.ndarray, *opened: object) -> Arrays:
            chosen = rows[places]
            for part, made in stage.block(chosen, *opened).items():
                partial.arrays[part][chosen] = made
            return {}

        some = replace(stage, shapes={}, rows=len(rows), visit=None, block=block)
        counted = MemoryStore().begin(stage.name, "", {})  # who is done, of these rows
        self._local.compute(some, counted, open_engine, store, progress)


def renamed(moved: Moved, ids: np.ndarray) -> np.ndarray:
    """Return the numbers that faces of the earlier run have now; GONE for those that are gone, and below 0 as it is."""
    now = moved.after[np.maximum(ids, 0)]
    return np.where(ids < 0, ids, np.where(now < 0, np.int32(GONE), now))


def take_over(moved: Moved, old: Arrays, new: Arrays, rows: np.ndarray) -> None:
    """Fill in ``rows`` (m,) from those that they were."""
    for some in moved.parts(rows):
        for part, array in old.items():
            taken = array[moved.before[some]]
            new[part][some] = renamed(moved, taken) if part == "ids" else taken


def rows_stay(moved: Moved, old: Arrays, new: Arrays) -> np.ndarray:
    """Take over the rows of all faces that stay, but those that name somebody who is gone; returns the others (m,)."""
    stays = moved.before >= 0
    if "ids" in old and moved.removed:
        kept = np.flatnonzero(stays)
        gone = renamed(moved, old["ids"][moved.before[kept]]) == GONE
        stays[kept[gone.reshape(len(kept), -1).any(axis=1)]] = False
    take_over(moved, old, new, np.flatnonzero(stays))
    return np.flatnonzero(~stays).astype(np.int32)


def lists_merge(vectors: Artifact, *, clip: bool) -> Carry:
    """Return how neighbor lists are taken over: new faces enter those of old ones, all of whom are compared with them.

    A list that somebody who is gone was in is found again.
    """

    def carry(moved: Moved, old: Arrays, new: Arrays) -> np.ndarray:
        fresh = rows_stay(moved, old, new)
        width, before = new["ids"].shape[1], old["ids"].shape[1]
        if width != before:  # lists of fewer faces than k
            return np.arange(len(moved.before), dtype=np.int32)
        stay = np.ones(len(moved.before), bool)
        stay[fresh] = False
        added = np.flatnonzero(moved.before < 0)
        if not len(added):
            return fresh
        faiss = import_faiss()
        rows_of_added = np.ascontiguousarray(vectors.array[added])
        most = min(len(added), width)
        for rows in moved.parts(np.flatnonzero(stay)):
            queries = np.ascontiguousarray(vectors.array[rows])
            found = faiss.knn(queries, rows_of_added, most, metric=faiss.METRIC_INNER_PRODUCT)[1]
            # Their similarities as those of every list; the face itself comes first and is left out.
            ids, sims = order_candidates(vectors.array, added[found], rows.astype(np.int32), most + 1)
            more = np.clip(sims, 0, 1) if clip else sims
            merged = _merged(new["ids"][rows], new["sims"][rows], ids[:, 1:], more[:, 1:])
            new["ids"][rows], new["sims"][rows] = merged
        return fresh

    return carry


@njit(cache=True, nogil=True, parallel=True)
def _merged(
    ids: np.ndarray, sims: np.ndarray, more: np.ndarray, theirs: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge lists (m, k), the first entry of which stays, with further ones (m, p), both downwards.

    Equal ones by id; further ones, of new faces, have the larger ids.
    """
    m, k = ids.shape
    out, out_sims = np.empty_like(ids), np.empty_like(sims)
    for row in prange(m):
        out[row, 0], out_sims[row, 0] = ids[row, 0], sims[row, 0]
        p, q = 1, 0
        for at in range(1, k):
            if q < more.shape[1] and theirs[row, q] > sims[row, p]:
                out[row, at], out_sims[row, at] = more[row, q], theirs[row, q]
                q += 1
            else:
                out[row, at], out_sims[row, at] = ids[row, p], sims[row, p]
                p += 1
    return out, out_sims


def unless_changed(name: str, now: Artifact, k: int | None = None) -> Carry:
    """Return how rows are taken over that depend on the ``ids`` of another artifact: where these are what they were.

    name: the artifact that held them in the earlier run; now: the one that holds them here. k: how many columns count.
    """

    def carry(moved: Moved, old: Arrays, new: Arrays) -> np.ndarray:
        then = moved.stored(name)
        same = moved.before >= 0
        if then is None or (k is not None and then["ids"].shape[1] < k):
            return np.arange(len(same), dtype=np.int32)
        for some in moved.parts(np.flatnonzero(same)):
            were = renamed(moved, then["ids"][moved.before[some]])
            equal = were[..., :k] == now["ids"][some][..., :k]
            same[some] = equal.reshape(len(some), -1).all(axis=1)
        take_over(moved, old, new, np.flatnonzero(same))
        return np.flatnonzero(~same).astype(np.int32)

    return carry


def and_near(
    carry: Carry,
    part: str,
    threshold: float,
    within: float,
    doubtful: Callable[[Moved, np.ndarray], np.ndarray],
) -> Carry:
    """Return a carry that also has values computed again that decide by little and may have changed.

    Such a value of what stays is as it was when neighbors were others. part: the array (n,) of the values; within: how
    far from the threshold they count as near; doubtful: which of some rows (m,) may have changed, (m,) bool.
    """

    def carried(moved: Moved, old: Arrays, new: Arrays) -> np.ndarray:
        again = np.zeros(len(moved.before), bool)
        again[carry(moved, old, new)] = True
        near = np.flatnonzero(~again & (np.abs(new[part] - np.float32(threshold)) < within))
        for rows in moved.parts(near):
            again[rows] = doubtful(moved, rows)
        return np.flatnonzero(again).astype(np.int32)

    return carried


def entries_stay(lists: Artifact, name: str, k: int) -> Carry:
    """Return how values (n, k) along the entries of lists are taken over, whatever place these have now.

    lists: the lists (n, >= k) of this run; name: those of the earlier one. What an entry is worth whose face was not
    in the list before, ``entries_from_others`` fills in.
    """

    def carry(moved: Moved, old: Arrays, new: Arrays) -> np.ndarray:
        then = moved.stored(name)
        stays = moved.before >= 0
        if then is None:
            return np.arange(len(stays), dtype=np.int32)
        (part,) = old
        for rows in moved.parts(np.flatnonzero(stays)):
            ids = renamed(moved, then["ids"][moved.before[rows], :k])
            new[part][rows] = _along(lists["ids"][rows, :k], ids, old[part][moved.before[rows]])
        return np.flatnonzero(~stays).astype(np.int32)

    return carry


@njit(cache=True, nogil=True, parallel=True)
def _along(ids: np.ndarray, then: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the values (m, k) of entries where they stand now; NaN for those that were in no list before."""
    out = np.full(ids.shape, np.nan, values.dtype)
    for row in prange(len(ids)):
        for p in range(ids.shape[1]):
            for q in range(then.shape[1]):
                if then[row, q] == ids[row, p]:
                    out[row, p] = values[row, q]
    return out


def entries_from_others(lists: Artifact, k: int) -> Callable[[Moved, Arrays, Arrays, np.ndarray], None]:
    """Return what fills in the values that ``entries_stay`` left open.

    A new face in the list of an old one has the value that this one has in its list, or, where that is in none, the
    value of the entry in front of it.
    """

    def fill(moved: Moved, old: Arrays, new: Arrays, fresh: np.ndarray) -> None:
        (part,) = old
        values = new[part]
        for rows in moved.parts(np.flatnonzero(moved.before >= 0)):
            values[rows] = _filled(np.ascontiguousarray(lists["ids"][:, :k]), values, rows, moved.before)

    return fill


@njit(cache=True, nogil=True, parallel=True)
def _filled(ids: np.ndarray, values: np.ndarray, rows: np.ndarray, before: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), ids.shape[1]), values.dtype)
    for at in prange(len(rows)):
        row = rows[at]
        for p in range(ids.shape[1]):
            value = values[row, p]
            if np.isnan(value):
                other = ids[row, p]
                if before[other] < 0:
                    for q in range(ids.shape[1]):
                        if ids[other, q] == row:
                            value = values[other, q]
                if np.isnan(value):
                    value = out[at, p - 1] if p > 0 else np.float32(0)
            out[at, p] = value
    return out
