"""Rows that cannot be used: listed, and left out or refused, as the user says."""

import warnings
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fcdeploy.data.bad_list import check_bad_list, remove_bad_list, write_bad_list
from fcdeploy.data.features import SHOWN_ROWS, Features
from fcdeploy.data.labels import renumber
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.graph.scan import REASONS, RowState, Scan
from fcdeploy.run.summary import RowCounts

CHOICES = ("stop", "skip", "zero")
LEFT_OUT = dict.fromkeys(("skip", "zero"), "they are left out, with their labels")
IN_NO_CLUSTER = {"skip": "they are in no cluster", "zero": "each is in a cluster of its own"}


def check_on_bad(on_bad: str) -> None:
    """Raise InputError when ``on_bad`` is no choice."""
    if on_bad not in CHOICES:
        raise InputError(f"--on-bad {on_bad}: should be {', '.join(CHOICES[:-1])} or {CHOICES[-1]}.")


def good_faces(
    features: Features, scan: Scan, on_bad: str, bad_list: Path | None, outcomes: Mapping[str, str]
) -> tuple[Features, str]:
    """Return the features of the rows that can be used, and the sentence that tells the user of the others.

    All bad rows are listed in the file ``bad_list``, where one is named, which is deleted when there are none.
    outcomes: on_bad -> what becomes of them. Raises InputError when there are some and on_bad is 'stop', or no row is
    good.
    """
    bad = scan.bad
    if not len(bad):
        if bad_list is not None:
            remove_bad_list(bad_list)
        return features, ""
    listed = ""
    if bad_list is not None:
        check_bad_list(bad_list)
        write_bad_list(
            bad_list, ((row, REASONS[RowState(scan.states[row])].encode()) for row in bad.tolist())
        )
        listed = f", listed in {bad_list}"
    zero = scan.states == RowState.ALL_ZERO
    kinds = (
        (np.flatnonzero(~zero & (scan.states > 0)), "holds", "hold", "NaN, infinite or overflowing values"),
        (np.flatnonzero(zero), "is", "are", "all zero"),
    )
    told = " and ".join(
        f"{len(rows):,} of {features.n:,} rows {one if len(rows) == 1 else several} {what} ({shown_rows(rows)})"
        for rows, one, several, what in kinds
        if len(rows)
    )
    told = f"{features.name}: {told}{listed}"
    if on_bad == "stop":
        raise InputError(
            f"{told}; remove or recompute these faces, or choose what to do with them by --on-bad skip or zero."
        )
    if len(bad) == features.n:
        raise InputError(f"{told}; nothing is left.")
    told = f"{told}; {outcomes[on_bad]}."
    warnings.warn(told, FcdeployWarning, stacklevel=3)
    return features.select(scan.good), told


def shown_rows(rows: np.ndarray) -> str:
    """Name the first few of some rows: "rows 3, 9, 70, ..., counted from 0"."""
    more = ", ..." if len(rows) > SHOWN_ROWS else ""
    return f"{'row' if len(rows) == 1 else 'rows'} {', '.join(map(str, rows[:SHOWN_ROWS]))}{more}, counted from 0"


def counts_of_rows(scan: Scan) -> RowCounts:
    """Return what the summary says of the rows: how many there are, how many are bad, and why."""
    found = Counter(RowState(state).name.lower() for state in scan.states[scan.bad].tolist())
    return {"rows": len(scan.states), "bad": len(scan.bad), "reasons": dict(found)}


def labels_with_bad_rows(labels: np.ndarray, scan: Scan, on_bad: str) -> np.ndarray:
    """Put the labels of good rows (m,) in their places: (n,) int64; bad ones get -1, or with 'zero' one each."""
    if not len(scan.bad):
        return labels
    of_all = np.full(len(scan.states), -1, np.int64)
    of_all[scan.good] = labels
    if on_bad == "zero":
        of_all[scan.bad] = labels.max(initial=-1) + 1 + np.arange(len(scan.bad))
    return renumber(of_all)
