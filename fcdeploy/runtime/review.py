"""What a user wants of clusters beside labels: how sure they are, constraints, and flagged ones taken apart."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from fcdeploy.clustering.confidence import NO_CLUSTER
from fcdeploy.clustering.constraints import NO_PHOTO, SAME_PHOTO, Constraints, constrain, contradiction
from fcdeploy.clustering.evidence import Accepted, Evidence, similarity_within
from fcdeploy.clustering.flags import COPIES, FLAGS, Confidence, FaceMeasures, measured
from fcdeploy.clustering.forest import Links, completed, strongest_between, strongest_forest, without_faces
from fcdeploy.data.checked_pairs import CheckedPairs, no_pairs, read_pairs, read_photos
from fcdeploy.data.labels import renumber
from fcdeploy.errors import InputError
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.run import Run
from fcdeploy.run.summary import ReviewFigures
from fcdeploy.runtime.evidence import (
    Placed,
    copies_of_rows,
    faces_of_rows,
    keep,
    kept_artifacts,
    labels_of_faces,
    rows_of_faces,
)
from fcdeploy.systems import System
from fcdeploy.systems.limits import nearest_similarities

KNOWN = 1.0  # strength of a link that a person vouches for, or that is between copies


@dataclass(frozen=True)
class Review:
    """confidence: whether faces and clusters are measured; drop_flagged: names of flags whose clusters are taken apart.

    pairs: of rows that a person has checked; photos: (rows,) int32, the photo of every row, see ``read_photos``.
    """

    confidence: bool = False
    drop_flagged: tuple[str, ...] = ()
    pairs: CheckedPairs | None = None
    photos: np.ndarray | None = None

    @property
    def constrained(self) -> bool:
        return self.pairs is not None or self.photos is not None

    @property
    def wanted(self) -> bool:
        return bool(self.confidence or self.drop_flagged or self.constrained)

    def of_rows(self, rows: np.ndarray, n: int) -> "Review":
        """Return the same for some of n rows, ``rows`` (m,) ascending, which are renumbered; pairs of others go."""
        place = np.full(n, -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        pairs = None if self.pairs is None else self.pairs.renumbered(place)
        photos = None if self.photos is None else self.photos[rows]
        return Review(self.confidence, self.drop_flagged, pairs, photos)


NOTHING = Review()


@dataclass(frozen=True)
class Refused:
    """Links that constraints refused, strongest first.

    rows: (r, 2) int64, strength: (r,) float32; photo: (r,) bool, whether it was because of a photo, else of a pair;
    between: (r, 2) int64, the rows that are known to be different and would have come together.
    """

    rows: np.ndarray
    strength: np.ndarray
    photo: np.ndarray
    between: np.ndarray


@dataclass(frozen=True)
class Reviewed:
    """What became of a run's clusters, and what is known of them; figures: for the summary."""

    placed: Placed
    confidence: Confidence | None = None
    refused: Refused | None = None
    figures: ReviewFigures = field(default_factory=ReviewFigures)

    def of_lines(self, rows: np.ndarray, labels: np.ndarray) -> "Reviewed":
        """Return the same for a list whose lines ``rows`` (m,) the run was given; labels: (n,) int64, of all lines."""
        face, dropped = np.full(len(labels), -1, np.int32), np.zeros(len(labels), np.uint8)
        face[rows], dropped[rows] = self.placed.face, self.placed.dropped
        placed = Placed(labels, face, self.placed.evidence, dropped)
        refused = self.refused
        if refused is not None:
            refused = replace(refused, rows=rows[refused.rows], between=rows[refused.between])
        return Reviewed(placed, measured_rows(placed), refused, self.figures)


def review_of(
    n: int,
    ids: np.ndarray | None,
    *,
    confidence: bool,
    drop_flagged: tuple[str, ...],
    pairs: Path | None,
    same_photo: Path | None,
) -> Review:
    """Return what is wanted of n rows, from files; ids: (n,), what pairs name them by, None for row numbers.

    Raises InputError for files that do not do, and for pairs that contradict each other.
    """
    checked = None if pairs is None else read_pairs(pairs, n, ids)
    if checked is not None:
        check_pairs(checked, n, ids)
    photos = None if same_photo is None else read_photos(same_photo, n)
    return Review(confidence, drop_flagged, checked, photos)


def check_flags(names: tuple[str, ...]) -> None:
    """Raise InputError for a flag that there is not."""
    for name in names:
        if name not in FLAGS:
            raise InputError(f"--drop-flagged {name}: is none of {', '.join(FLAGS)}.")


def check_pairs(pairs: CheckedPairs, n: int, names: np.ndarray | None = None) -> None:
    """Raise InputError where pairs of n faces contradict each other, naming the lines.

    names: (n,), what the faces are known by, None for row numbers.
    """
    same, different = np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)
    found = contradiction(n, pairs.ids[same], pairs.ids[different])
    if found is None:
        return
    at, path = found
    wrong = pairs.lines[different[at]]
    one, other = pairs.ids[different[at]].tolist()
    if not wrong:
        earlier = np.sort(pairs.lines[same[path]])[-1]
        raise InputError(
            f"{pairs.name}: line {earlier:,} contradicts what was said of the same faces before, and the run folder "
            "keeps; answer these pairs anew in one file."
        )
    of = f"rows {one:,} and {other:,}" if names is None else f"{names[one]} and {names[other]}"
    lines = [f"{line:,}" for line in sorted(pairs.lines[same[path]].tolist()) if line]  # 0: was said earlier
    if not lines:
        shown = "earlier answers say"
    elif len(lines) == 1:
        shown = f"line {lines[0]} says"
    else:
        shown = f"lines {', '.join(lines[:-1])} and {lines[-1]} say"
    raise InputError(
        f"{pairs.name}: line {wrong:,} says that {of} are different persons, {shown} that they are "
        "one; correct or remove one of these lines."
    )


def review(
    run: Run,
    system: System,
    labels: np.ndarray,
    given: np.ndarray | None,
    wanted: Review,
    ids: np.ndarray | None = None,
) -> Reviewed:
    """Do what is wanted of a run's clusters, and gather what they rest on; before scratch is dropped.

    labels: (rows,) int64, of all rows; given: the rows that could be used, None for all. ids: see ``Placed``.
    """
    face, copies = faces_of_rows(run, given), copies_of_rows(run, given)
    kept = kept_artifacts(run)
    accepted = system.evidence(run, kept)
    forest = forest_of(labels, face, copies, accepted)
    refused: Refused | None = None
    figures: ReviewFigures = {}
    if wanted.constrained:
        labels, forest, refused, figures["constraints"] = constrained_rows(
            labels, face, copies, forest, wanted
        )
    placed = replace(placed_on(run, kept, accepted, labels, face, forest), ids=ids)
    confidence = measured_rows(placed)
    if wanted.drop_flagged:
        placed, figures["dropped"] = without_flagged(placed, confidence, wanted.drop_flagged)
        confidence = measured_rows(placed)
    figures["flags"] = {
        name: int(np.count_nonzero(confidence.clusters.flags & bit)) for name, bit in FLAGS.items()
    }
    keep(run, placed, accepted.lists)
    return Reviewed(placed, confidence, refused, figures)


def constrained_labels(
    run: Run, system: System, labels: np.ndarray, face: np.ndarray, copies: np.ndarray, known: Review
) -> tuple[np.ndarray, Refused, dict[str, int]]:
    """Make clusters again so that what is known of rows holds; arguments as below.

    Returns the labels (rows,) int64, what was refused, and figures for the summary.
    """
    forest = forest_of(labels, face, copies, system.evidence(run, kept_artifacts(run)))
    made, _, refused, figures = constrained_rows(labels, face, copies, forest, known)
    return made, refused, figures


def keep_evidence(
    run: Run,
    system: System,
    labels: np.ndarray,
    face: np.ndarray,
    copies: np.ndarray,
    ids: np.ndarray | None = None,
) -> None:
    """Keep in a run's store what given clusters rest on; before scratch is dropped.

    labels: (rows,) int64; face: (rows,) int32, and ids: see ``Placed``; copies: (c, 2) int64, rows that go with another
    one.
    """
    kept = kept_artifacts(run)
    accepted = system.evidence(run, kept)
    forest = forest_of(labels, face, copies, accepted)
    keep(run, replace(placed_on(run, kept, accepted, labels, face, forest), ids=ids), accepted.lists)


def forest_of(labels: np.ndarray, face: np.ndarray, copies: np.ndarray, accepted: Accepted) -> Links:
    """Return a forest of faces that holds the clusters ``labels`` (rows,) int64 together."""
    n = int(face.max()) + 1
    own = labels_of_faces(labels, face, n)
    certain = face[copies], np.full(len(copies), KNOWN, np.float32)
    return completed(*strongest_forest(n, itertools.chain([certain], accepted.links()), own), own)


def placed_on(
    run: Run,
    kept: Mapping[str, Artifact],
    accepted: Accepted,
    labels: np.ndarray,
    face: np.ndarray,
    forest: Links,
) -> Placed:
    """Return clusters ``labels`` (rows,) int64 with what they rest on."""
    own, vectors = labels_of_faces(labels, face, run.n), kept["vectors"].array
    evidence = Evidence(
        *forest,
        *strongest_between(accepted.links(), own),
        accepted.strength,
        kept[accepted.lists].lists,
        similarity_within(vectors, own),
        nearest_similarities(vectors, kept["knn"].lists),
        vectors.shape[1],
    )
    return Placed(labels, face, evidence, np.zeros(len(labels), np.uint8))


def constrained_rows(
    labels: np.ndarray, face: np.ndarray, copies: np.ndarray, forest: Links, wanted: Review
) -> tuple[np.ndarray, Links, Refused, dict[str, int]]:
    """Make clusters again so that what a person knows holds.

    labels: (rows,) int64, and the forest (of faces) that holds them together; copies: (c, 2), rows that are joined
    whatever is known. Returns labels, a forest of faces that holds the new ones together, what was refused, and figures
    for the summary.
    """
    n = int(face.max()) + 1
    rows, (links, strength) = rows_of_faces(face), forest
    pairs = wanted.pairs if wanted.pairs is not None else no_pairs()
    same, different = pairs.ids[pairs.same], pairs.ids[~pairs.same]
    check_copies(pairs, copies, len(labels))
    not_faces = np.flatnonzero(np.isin(face, face[pairs.not_faces]) & (face >= 0))
    if len(not_faces):
        labels = labels.copy()
        labels[not_faces] = NO_CLUSTER
        links, strength = without_faces(links, strength, np.unique(face[not_faces]))
    known = Constraints(np.concatenate([copies.astype(np.int32), same]), different, wanted.photos)
    found = constrain(labels, rows[links].astype(np.int32), np.arange(len(links)), known)
    if len(not_faces):  # whatever pairs say of them
        left = found.labels.copy()
        left[not_faces] = NO_CLUSTER
        found = replace(found, labels=renumber(left))
    joined = np.stack([face[same[:, 0]], face[same[:, 1]]], axis=1)
    joined = joined[(joined >= 0).all(axis=1)]
    vouched = joined, np.full(len(joined), KNOWN, np.float32)
    own = labels_of_faces(found.labels, face, n)
    again = completed(*strongest_forest(n, [vouched, (links, strength)], own), own)
    refused = Refused(
        rows[links[found.refused]], strength[found.refused], found.why == SAME_PHOTO, found.between
    )
    figures = {"same": len(same), "different": len(different), "refused": len(found.refused)}
    if len(pairs.not_faces):
        figures["not_faces"] = len(pairs.not_faces)
    if pairs.unanswered:
        figures["unanswered"] = pairs.unanswered
    if wanted.photos is not None:
        faces = np.bincount(wanted.photos[wanted.photos != NO_PHOTO], minlength=1)
        figures["photos"] = int(np.count_nonzero(faces > 1))
    return found.labels, again, refused, figures


def check_copies(pairs: CheckedPairs, copies: np.ndarray, n: int) -> None:
    """Raise InputError where a pair says that copies of one face are different persons."""
    same, different = np.flatnonzero(pairs.same), np.flatnonzero(~pairs.same)
    found = contradiction(n, np.concatenate([copies, pairs.ids[same]]), pairs.ids[different])
    if found is not None:
        at, _ = found
        a, b = pairs.ids[different[at]].tolist()
        raise InputError(
            f"{pairs.name}: line {pairs.lines[different[at]]:,} says that rows {a:,} and {b:,} are different persons, "
            "and they are copies of one face (or of faces that other lines say are one person), which count once; "
            "remove the line, or give --duplicates as-published."
        )


def measured_rows(placed: Placed) -> Confidence:
    """Measure how sure the clusters of a run are, for all rows; see ``measured``."""
    face, labels = placed.face, placed.labels
    used = face >= 0
    n, clusters = len(placed.evidence.within), int(labels.max(initial=-1)) + 1
    found = measured(
        placed.evidence,
        labels_of_faces(labels, face, n),
        np.bincount(face[used], minlength=n),
        np.bincount(labels[labels >= 0], minlength=clusters),
    )
    for row in np.flatnonzero(placed.dropped & (labels >= 0)):
        found.clusters.flags[labels[row]] |= placed.dropped[row]

    def of_rows(values: np.ndarray) -> np.ndarray:
        expanded = np.full(len(face), np.nan, np.float32)
        expanded[used] = values[face[used]]
        return expanded

    flags = placed.dropped.copy()
    flags[used] |= found.faces.flags[face[used]]
    placed_rows = labels >= 0
    flags[placed_rows] |= found.clusters.flags[labels[placed_rows]]
    faces = found.faces
    expanded = FaceMeasures(
        of_rows(faces.confidence),
        of_rows(faces.support),
        of_rows(faces.margin),
        of_rows(faces.similarity),
        flags,
    )
    return Confidence(expanded, found.clusters, placed.evidence.name)


def without_flagged(
    placed: Placed, confidence: Confidence, names: Sequence[str]
) -> tuple[Placed, dict[str, dict[str, int]]]:
    """Take the clusters with these flags apart, and count clusters and rows by flag.

    Every face of such a cluster becomes one of its own; copies of a face stay with it, but for clusters flagged as
    copies, of which every row is one of its own.
    """
    labels, face = placed.labels.copy(), placed.face
    clusters = int(labels.max(initial=-1)) + 1
    dropped, figures = placed.dropped.copy(), {}
    for name in names:
        bit = FLAGS[name]
        flagged = (confidence.clusters.flags & bit).astype(bool) & (confidence.clusters.size > 1)
        rows = np.flatnonzero((placed.labels >= 0) & flagged[placed.labels])
        dropped[rows] |= bit
        apart = len(face) + rows if bit == COPIES else face[rows].astype(np.int64)
        labels[rows] = clusters + np.where(face[rows] < 0, len(face) + rows, apart)
        figures[name] = {"clusters": int(np.count_nonzero(flagged)), "rows": len(rows)}
    labels = renumber(labels)
    evidence = placed.evidence
    n = len(evidence.within)
    own = labels_of_faces(labels, face, n)
    alone = np.bincount(own[own >= 0], minlength=1)[own] == 1
    left = completed(*strongest_forest(n, [(evidence.links, evidence.strength)], own), own)
    within = np.where(alone, np.float32(np.nan), evidence.within)
    changed = replace(evidence, links=left[0], strength=left[1], within=within)
    return replace(placed, labels=labels, evidence=changed, dropped=dropped), figures
