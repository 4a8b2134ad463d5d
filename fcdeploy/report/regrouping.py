"""Clusters as the next run is going to make them of what a person has decided, without that run."""

from dataclasses import replace

import numpy as np

from fcdeploy.clustering.forest import strongest_between
from fcdeploy.data.checked_pairs import CheckedPairs
from fcdeploy.report.opened import OpenedRun
from fcdeploy.runtime.evidence import Placed, labels_of_faces, rows_of_faces
from fcdeploy.runtime.review import Review, check_pairs, constrained_rows, measured_rows


def regrouped(run: OpenedRun, pairs: CheckedPairs) -> OpenedRun:
    """Return a run with the clusters that ``fcdeploy cluster --pairs`` makes of the decisions in a log.

    run: as it was opened, not what this returned before. The similarity within clusters that are others now is not
    known without the features, and NaN. Raises InputError for decisions that contradict copies of a face.
    """
    check_pairs(pairs, run.n, run.ids)
    placed, evidence = run.placed, run.placed.evidence
    known = Review(pairs=pairs)
    links = np.asarray(evidence.links), np.asarray(evidence.strength)
    labels, forest, *_ = constrained_rows(placed.labels, placed.face, copies_of(placed.face), links, known)
    n = len(evidence.within)
    own = labels_of_faces(labels, placed.face, n)
    beyond = strongest_between([(evidence.beyond, evidence.beyond_strength), links], own)
    before = labels_of_faces(placed.labels, placed.face, n)
    within = np.where(unchanged(before, own), evidence.within, np.float32(np.nan))
    made = replace(
        evidence,
        links=forest[0],
        strength=forest[1],
        beyond=beyond[0],
        beyond_strength=beyond[1],
        within=within,
    )
    again = Placed(labels, placed.face, made, placed.dropped, placed.ids)
    summary = run.summary.copy()
    summary.pop("quality", None)  # of the other clusters
    return replace(run, placed=again, confidence=measured_rows(again), summary=summary)


def copies_of(face: np.ndarray) -> np.ndarray:
    """Return the rows that go with another one, and that one, (c, 2) int64; face: see ``Placed``."""
    first = rows_of_faces(face)
    rows = np.flatnonzero(face >= 0)
    source = first[face[rows]]
    return np.stack([rows, source], axis=1)[rows != source]


def unchanged(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Tell of which faces (n,) the cluster has the same members under both labels (n,), -1 in no cluster."""
    kept = (before >= 0) & (after >= 0)
    pairs = np.stack([before, after], axis=1)
    _, place, counts = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    both = counts[place.reshape(-1)]
    same = np.ones(len(before), bool)
    for labels in (before, after):
        sizes = np.bincount(labels[labels >= 0], minlength=1)
        same &= both == sizes[np.maximum(labels, 0)]
    return kept & same
