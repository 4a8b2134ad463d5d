"""Copies count once: which faces a run computes on, and how the user is told."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from fcdeploy.clustering.copies import Copies, copies_from
from fcdeploy.clustering.near_copies import SIMILARITY, NearCopies, find_near_copies
from fcdeploy.data.features import Features
from fcdeploy.errors import InputError
from fcdeploy.run.features import read_features
from fcdeploy.run.options import AS_PUBLISHED, MERGE, Options
from fcdeploy.run.run import Run
from fcdeploy.runtime.survey import list_length
from fcdeploy.systems import System, get_system

ROWS = "rows"  # the artifact that says which row each row goes with
HOW = "--duplicates as-published computes on all of them"

Prepared = TypeVar("Prepared")


def as_few_as_fit(copies: Copies, prepare: Callable[[np.ndarray], Prepared]) -> tuple[Copies, Prepared]:
    """Compute on one face of every group, or on as many copies as it takes to have the faces that a system needs.

    prepare: called with the faces (m,) that a run is to compute on; raises InputError where they are too few.
    """
    one = copies.keep(1)
    try:
        return one, prepare(one.chosen)
    except InputError:
        least, most = 1, copies.largest()
        kept = copies.keep(most)
        fitting = kept, prepare(kept.chosen)
    while most - least > 1:
        middle = (least + most) // 2
        try:
            kept = copies.keep(middle)
            fitting, most = (kept, prepare(kept.chosen)), middle
        except InputError:
            least = middle
    return fitting


def near_copies_of(system: System, run: Run) -> NearCopies | None:
    """Find near-copies that fill the run's neighbor lists, or take those that an earlier run found."""
    if list_length(system, run.features, run.engines, run.settings, run.options) >= run.n:
        return None
    stored = run.store.load(ROWS, rows_key(run))
    if stored is not None:
        chosen = rows_of(run.features)
        leader = np.searchsorted(chosen, stored["source"][chosen]).astype(np.int32)
        filled = int(stored["filled"][0])
        return NearCopies(leader, filled) if filled else None
    knn = system.neighbors(run)
    with run.stage("knn"):
        found = find_near_copies(read_features(run).array, knn.lists)
        run.make_room()
        return found


def rows_key(run: Run) -> str:
    """Return the key of ``ROWS``: which rows a run over these computes on, and all that this depends on."""
    system = get_system(run.engines.system)
    k = list_length(system, run.features, run.engines, run.settings, run.options)
    method = "file" if "knn" in run.given else run.search_among(run.n).name
    near = {"k": k, "method": method, "similarity": SIMILARITY, "lists": bool(run.options.lists)}
    of = {"features": run.features_hash, "normalize": run.features.normalize}
    return run.key_of(ROWS, {**of, **near})


def rows_of(features: Features) -> np.ndarray:
    """Return the numbers (n,) of the faces among all rows of the file or array."""
    return np.arange(features.n) if features.chosen is None else features.chosen


def keep_rows(run: Run, key: str, faces: Features, copies: Copies | None, filled: int) -> None:
    """Keep for each of the given rows which one it goes with, or nothing when they are all computed alone.

    source: (given,) int32, the row itself, the first of its copies, or -1 for a bad row; filled: (1,).
    """
    if copies is None and faces.n == faces.given:
        run.store.drop(ROWS)
        return
    if run.store.load(ROWS, key) is not None:
        return
    rows = rows_of(faces)
    source = np.full(faces.given, -1, np.int32)
    source[rows] = rows if copies is None else rows[copies.source]
    run.keep(ROWS, key, {"source": source, "filled": np.array([filled], np.int64)})


def tell_of_copies(
    run: Run, name: str, equal: Copies | None, copies: Copies | None, near: NearCopies | None
) -> None:
    """Say in notes and in the summary what was done about copies; equal: those that are equal rows."""
    if run.options.duplicates != MERGE:
        run.figures["duplicates"] = {"handling": AS_PUBLISHED}
        return
    rows, groups = count_copies(equal)
    figures: dict[str, object] = {"handling": MERGE, "equal_rows": rows, "groups": groups}
    if equal is not None:
        joined = "the clusters of equal rows are joined, as lists of neighbors were given"
        once = "equal rows count once and have one label"
        run.note(
            f"{name}: {rows:,} of {len(equal.source):,} rows {'is' if rows == 1 else 'are'} equal to an earlier one "
            f"({groups:,} {'group' if groups == 1 else 'groups'}); "
            f"{joined if run.options.lists else once} ({HOW})."
        )
    more = 0
    if near is not None and copies is not None:
        more = count_copies(copies)[0] - rows
        run.note(
            f"{name}: near-copies fill half or more of {near.filled:,} neighbor lists; {more:,} rows with a cosine "
            f"similarity of {SIMILARITY} or more to an earlier one count once and get its label ({HOW})."
        )
    run.figures["duplicates"] = {
        **figures,
        "near_copies": more,
        "filled_lists": near.filled if near is not None else 0,
    }


def count_copies(copies: Copies | None) -> tuple[int, int]:
    """Return how many faces go with an earlier one, and with how many earlier ones."""
    if copies is None:
        return 0, 0
    extra = copies.source[copies.source != np.arange(len(copies.source))]
    return len(extra), len(np.unique(extra))


def equal_copies(first: np.ndarray | None, options: Options) -> Copies | None:
    """Take which rows are equal, (n,) int32 or None, as copies; lists of neighbors name all rows, which then stay."""
    if first is None or options.duplicates != MERGE:
        return None
    return Copies(first, np.arange(len(first))) if options.lists else copies_from(first)
