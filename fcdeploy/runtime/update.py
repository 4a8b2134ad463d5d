"""Faces that come and go: a run folder as if all faces that it has now had been clustered together.

Rows of faces that stay are taken over, those of new ones computed, links and clusters made anew over all; clusters keep
their numbers. The folder is replaced as a whole: a kill leaves the old one or the new one.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.copies import Copies
from fcdeploy.clustering.decided import Decide, Named, Rests, named, named_again, usual_weakest
from fcdeploy.clustering.identity import MERGE, NO_NUMBER, SPLIT, Change
from fcdeploy.data.atomic_folder import atomic_folder, link_into
from fcdeploy.data.checked_pairs import CheckedPairs, pairs_from_rows, read_pairs, read_photos
from fcdeploy.data.features import Features, hash_of
from fcdeploy.data.label_tables import read_text
from fcdeploy.data.label_values import shortened
from fcdeploy.data.locks import BusyError, Lock
from fcdeploy.data.rows import Shards
from fcdeploy.data.run_record import LOCK, RECORD, read_record
from fcdeploy.errors import InputError
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.scan import first_equal, scan_rows
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.carried import CarriedBlocks
from fcdeploy.run.folder import SUMMARY, RunFolder
from fcdeploy.run.keys import digest
from fcdeploy.run.options import MERGE as MERGE_COPIES
from fcdeploy.run.options import Options, check_values
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.stage import Moved
from fcdeploy.runtime.bad_rows import good_faces
from fcdeploy.runtime.cluster_photos import CROPS
from fcdeploy.runtime.crops import FOLDER
from fcdeploy.runtime.evidence import kept_artifacts, read_placed
from fcdeploy.runtime.face_lists import LISTS
from fcdeploy.runtime.faces import ROWS
from fcdeploy.runtime.known import KNOWN, carried, known_from, with_answers, with_photos
from fcdeploy.runtime.review import (
    Refused,
    Review,
    check_pairs,
    constrained_labels,
    forest_of,
    keep_evidence,
)
from fcdeploy.runtime.stored import STATE, Rows, Stored, keep_state, open_stored
from fcdeploy.runtime.survey import list_length
from fcdeploy.runtime.wanted import photos_from_values
from fcdeploy.systems import System, get_system

NUMBER = re.compile("[0-9]{1,18}")
CHANGES, HISTORY = "changes.csv", "history.csv"
HEADINGS = ("update", "time", "face", "old", "new")
OUTCOMES = {"skip": "they are in no cluster"}
ON_BAD = ("stop", *OUTCOMES)
OF_PHOTOS = (CROPS, FOLDER, ROWS, *LISTS)  # what `fcdeploy faces`, and `cluster` for photos, keep there


@dataclass(frozen=True)
class Updated:
    """labels: (given,) int64 of all faces that there are now; faces: (given,) int64, by which numbers they are known.

    ids: (given,) text or integers of the user's, where the faces came with such, else None. changes: merges and splits
    that were made; refused: those that were not. summary: counts and seconds per stage. refused_links: those that what
    a person knows refused, None where nothing is known.
    """

    faces: np.ndarray
    labels: np.ndarray
    changes: list[Change]
    refused: list[Change]
    summary: dict[str, object]
    ids: np.ndarray | None = None
    refused_links: Refused | None = None

    @property
    def names(self) -> np.ndarray:
        """By what the faces are known, (given,): their ids, else their numbers."""
        return self.faces if self.ids is None else self.ids


@dataclass(frozen=True)
class Plan:
    """Who is there after an update, computed on or not.

    computed: (c,) int64, those of the folder's computed faces that stay. added: the new rows; fresh: (f,) int64, those
    of them that are computed on. rows: all that there are now, without labels; old: (given,) int64, the labels that
    they had. ids: see ``Updated``.
    """

    computed: np.ndarray
    added: Features | None
    fresh: np.ndarray
    rows: Rows
    old: np.ndarray
    ids: np.ndarray | None = None

    @property
    def names(self) -> np.ndarray:
        """By what the faces are known, (given,): their ids, else their numbers."""
        return self.rows.faces if self.ids is None else self.ids


def update_run(
    run_dir: Path | str,
    add: Features | None = None,
    remove: np.ndarray | None = None,
    *,
    pairs: Path | str | Sequence[tuple[object, object, str]] | None = None,
    same_photo: Path | str | Sequence[object] | None = None,
    merges: Decide | None = None,
    splits: Decide | None = None,
    engine: Path | str | None = None,
    limits: Options | None = None,
    on_bad: str = "stop",
    write: Callable[[np.ndarray, np.ndarray], None] | None = None,
    quiet: bool = True,
) -> Updated:
    """Add faces to the clusters of a run folder, remove some, or both.

    add: new rows, which get the next free numbers; their ids, where the faces of the folder have such, or else these
    numbers are ids, too. remove: (r,) numbers of faces, or their ids. pairs: by the same, a file or rows of pairs that
    are the same person or different ones, which clusters respect; those of removed faces are passed over. What
    was said earlier, with the run or an update, still holds. same_photo: the photo of each new row, a file or values.
    merges, splits: who decides whether a change of that kind is made, None for clear ones only, see
    ``fcdeploy.clustering.decided``; what is known holds in any case. engine: where it is no longer where the run found
    it. limits: threads, memory and device. write: is given the names of all faces and their
    labels just before the folder becomes the new one, and stays the old one if that fails. Writes changes.csv, the
    merges and splits of this update, and history.csv, the numbers that faces had, into the folder. Raises InputError
    for numbers that no face has, for rows that cannot be used (on_bad 'skip': they are in no cluster), and where the
    folder lacks something.
    """
    if on_bad not in ON_BAD:
        raise InputError(f"on_bad = {on_bad!r}: should be {' or '.join(map(repr, ON_BAD))}.")
    check_values(limits or Options())
    path = Path(run_dir)
    with _locked(path):
        stored = open_stored(path, engine, locked=True)
        plan = _planned(stored, add, remove, on_bad)
        known = _known(stored, plan, pairs, same_photo)
        progress = Progress(quiet)
        options = stored.options(limits or Options())
        options = dataclasses.replace(options, knn=stored.state.knn, recall=stored.state.recall)
        with (
            atomic_folder(path, _files_of_run, [RECORD, LOCK, STATE, SUMMARY, CHANGES, HISTORY]) as part,
            RunFolder(part) as folder,
            threads_limited(options.cores),
            told_of_compiling(progress.compiling),
        ):
            run = _run_over(plan, stored, options, folder, progress)
            system = get_system(stored.bundle.system)
            found, refused, constraints = _decided(stored, plan, run, system, known, merges, splits)
            kept = np.where((plan.rows.source < 0) & (plan.old >= 0), plan.old, found.labels)
            rows = dataclasses.replace(plan.rows, labels=kept)
            keep_evidence(run, system, kept, *_faces_and_copies(rows), plan.ids)
            folder.drop_scratch()
            photos = sorted({*OF_PHOTOS} & _names_in(path))
            folder.claims.claim(*photos)
            link_into(path, part, photos)
            summary = _summary(stored, plan, rows, found, run)
            if refused is not None:
                summary["constraints"] = constraints
            folder.claims.claim(SUMMARY, STATE, CHANGES, HISTORY)
            (part / SUMMARY).write_text(json.dumps(summary, indent=1))
            (part / CHANGES).write_text(_changes_text(found))
            (part / HISTORY).write_text(_history_text(stored, plan, rows), encoding="utf-8")
            keep_state(folder, run, stored.bundle, rows, stored.state, stored.state.next_label, known)
            if write is not None:
                write(plan.names, rows.labels)
    return Updated(rows.faces, rows.labels, found.changes, found.refused, summary, plan.ids, refused)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep others out of a run folder; raises InputError while a run is using it."""
    try:
        file = open(path / LOCK, "a+")  # noqa: SIM115 - closed with the lock
    except OSError:  # nothing there, which ``open_stored`` says
        yield
        return
    try:
        lock = Lock(file, path / LOCK)
    except BusyError as error:
        file.close()
        raise InputError(f"{path}: another run is using this folder ({error}run the update later.") from None
    try:
        yield
    finally:
        lock.close()


def _planned(stored: Stored, add: Features | None, remove: np.ndarray | None, on_bad: str) -> Plan:
    rows, state = stored.rows, stored.state
    if (add is None or not add.n) and (remove is None or not len(remove)):
        raise InputError(f"{stored.path}: there is nothing to add (--add) and nothing to remove (--remove).")
    gone = np.zeros(len(rows.faces), bool)
    if remove is not None and len(remove):
        gone[_places_of(stored, remove)] = True
    stay = np.flatnonzero(~gone)
    # Of every group that somebody stays of, the first one stands for it from now on.
    place = np.full(len(rows.faces), -1, np.int64)
    place[stay] = np.arange(len(stay))
    of, first = np.unique(rows.source[stay], return_index=True)
    leader = np.full(len(rows.faces), -1, np.int64)
    leader[of[of >= 0]] = first[of >= 0]
    doubled = rows.source[rows.chosen] != rows.chosen  # computed on beside the one that they go with
    there = np.where(doubled, place[rows.chosen], leader[rows.chosen])
    computed = np.flatnonzero(there >= 0)
    computed = computed[np.argsort(there[computed])]  # rows that are computed on ascend
    source = np.where(rows.source[stay] >= 0, leader[np.maximum(rows.source[stay], 0)], -1)
    places = there[computed]
    fresh = np.empty(0, np.int64)
    if add is not None and add.n:
        add = dataclasses.replace(add, normalize=state.normalize)
        goes_with = _goes_with(stored, add, computed, on_bad)
        fresh = np.flatnonzero(goes_with == len(places) + np.arange(add.n))
        all_places = np.concatenate([places, len(stay) + np.arange(add.n)])
        source = np.concatenate([source, np.where(goes_with < 0, -1, all_places[goes_with])])
    count = len(source) - len(stay)
    faces = np.concatenate([rows.faces[stay], state.next_face + np.arange(count)])
    chosen = np.concatenate([places, len(stay) + fresh])
    old = np.concatenate([rows.labels[stay], np.full(count, -1, np.int64)])
    now = Rows(np.empty(0, np.int64), chosen, source.astype(np.int32), faces)
    ids = _ids_of(stored, stay, add if count else None, faces)
    return Plan(computed, add if count else None, fresh, now, old, ids)


def _places_of(stored: Stored, names: np.ndarray) -> np.ndarray:
    """Return the rows (r,) of faces by their ids, or their numbers; raises InputError for those that are not there."""
    known = stored.rows.faces if stored.ids is None else stored.ids
    place = {str(name): at for at, name in enumerate(known.tolist())}
    asked = [str(name) for name in names.tolist()]
    if unknown := [name for name in asked if name not in place]:
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        by = "the numbers of their rows in the first run, or those that an update gave them"
        raise InputError(
            f"{stored.path}: {len(unknown):,} of the faces to remove do not exist ({shown}); faces are known by "
            f"{by if stored.ids is None else 'their ids, those of --id-column'}."
        )
    return np.array([place[name] for name in asked], np.int64)


def _ids_of(stored: Stored, stay: np.ndarray, add: Features | None, faces: np.ndarray) -> np.ndarray | None:
    """Return the ids of those who stay and those added; raises InputError for an id that two faces would have."""
    if stored.ids is None:
        if add is not None and add.ids is not None:
            raise InputError(
                f"{add.name}: has ids, and the faces of {stored.path} have none but numbers; leave out --id-column, or "
                "cluster all faces anew with it."
            )
        return None
    ids = stored.ids[stay]
    if add is None:
        return ids
    added = faces[len(stay) :] if add.ids is None else add.ids
    if ids.dtype == object or added.dtype.kind not in "iu":
        ids, added = ids.astype(object), np.array([str(one) for one in added.tolist()], object)
    taken = set(map(str, ids.tolist()))
    for name in map(str, added.tolist()):
        if name in taken:
            raise InputError(
                f"{add.name}: {shortened(name)} would be the id of two faces; give each an id of its own, with "
                "--id-column."
            )
        taken.add(name)
    return np.concatenate([ids, added])


def _goes_with(stored: Stored, add: Features, computed: np.ndarray, on_bad: str) -> np.ndarray:
    """Return which face each new one goes with, (m,) int64: of ``computed`` ones and, behind these, the new ones.

    -1 for rows that cannot be used.
    """
    scan = scan_rows(add)
    good_faces(add, scan, on_bad, None, OUTCOMES)
    count, good = len(computed), scan.good
    goes_with = np.full(add.n, -1, np.int64)
    goes_with[good] = count + good
    if stored.state.options["duplicates"] == MERGE_COPIES:
        vectors = add.select(good).rows(0, len(good))
        both = Features(Shards([stored.vectors[computed], vectors]), add.name, normalize=False)
        equal = first_equal(scan_rows(both, hashes=True))
        if equal is not None:
            first = equal[count:].astype(np.int64)
            known = first < count
            goes_with[good] = np.where(known, first, count + good[np.where(known, 0, first - count)])
    return goes_with


def _run_over(plan: Plan, stored: Stored, options: Options, folder: RunFolder, progress: Progress) -> Run:
    """Return the run over the faces that are computed on now, those that stay first."""
    vectors = stored.vectors
    if not np.array_equal(plan.computed, np.arange(stored.n)):
        vectors = vectors[plan.computed]
    parts = [vectors]
    key = {"state": stored.state.artifacts, "stay": len(plan.computed), "added": ""}
    if plan.added is not None:
        parts.append(plan.added.select(plan.fresh).raw(0, len(plan.fresh)))
        key["added"] = hash_of(plan.added)
    features = Features(Shards(parts), str(stored.path), normalize=stored.state.normalize)
    after = np.full(stored.n, -1, np.int32)
    after[plan.computed] = np.arange(len(plan.computed), dtype=np.int32)
    fresh = np.full(len(plan.fresh), -1, np.int32)
    before = np.concatenate([plan.computed.astype(np.int32), fresh])
    system = get_system(stored.bundle.system)
    needed = list_length(system, features, stored.bundle, stored.settings, options)
    if features.n < needed:
        raise InputError(
            f"{stored.path}: {features.n:,} different faces would be left, fewer than the {needed} neighbors that its "
            "lists hold; cluster them again."
        )
    moved = Moved(before, after, stored.arrays)
    return Run(
        features,
        stored.bundle,
        stored.settings,
        options,
        folder,
        progress,
        asked=options,
        blocks=CarriedBlocks(options, moved),
        keeps=True,
        stamp=(),
        grown=digest(key | {"after": hashlib.sha256(after.data).hexdigest()}),
    )


def _labels_of_rows(plan: Plan, found: np.ndarray) -> np.ndarray:
    """Give all rows the labels (n,) int64 of those computed on: copies those of the faces that they go with."""
    rows = plan.rows
    good = np.flatnonzero(rows.source >= 0)
    place = np.full(len(rows.source), -1, np.int64)
    place[good] = np.arange(len(good))
    copies = Copies(place[rows.source[good]].astype(np.int32), place[rows.chosen])
    labels = np.full(len(rows.source), -1, np.int64)
    labels[good] = copies.labels_of_all(found)
    return labels


def _decided(
    stored: Stored,
    plan: Plan,
    run: Run,
    system: System,
    known: Review,
    merges: Decide | None,
    splits: Decide | None,
) -> tuple[Named, Refused | None, dict[str, int]]:
    """Return the clusters of all rows, what a person's knowledge refused, and figures of that for the summary.

    What is known decides before and after merges and splits are decided on: old clusters that should stay as they are
    do, but for this.
    """
    labels, of_rows = _labels_of_rows(plan, system.cluster(run)), _faces_and_copies(plan.rows)
    refused: Refused | None = None
    figures: dict[str, int] = {}
    if known.constrained:
        labels, refused, figures = constrained_labels(run, system, labels, *of_rows, known)
    first, rests = stored.state.next_label, _rests_of(stored, plan, run, system, labels)
    found = named(plan.old, labels, rests, first, merges=merges, splits=splits)
    if known.constrained:
        again = constrained_labels(run, system, found.labels, *of_rows, known)[0]
        found = named_again(plan.old, again, first, found)
    return found, refused, figures


def _known(
    stored: Stored,
    plan: Plan,
    pairs: Path | str | Sequence[tuple[object, object, str]] | None,
    same_photo: Path | str | Sequence[object] | None,
) -> Review:
    """Return what a person knows of the rows that there are now: said earlier, and now.

    Raises InputError for faces that there never were, and for contradictions.
    """
    n, stay = len(plan.rows.faces), int((plan.rows.faces < stored.state.next_face).sum())
    place = np.full(len(stored.rows.faces), -1, np.int32)
    place[np.searchsorted(stored.rows.faces, plan.rows.faces[:stay])] = np.arange(stay, dtype=np.int32)
    earlier = carried(known_from(stored.arrays(KNOWN)), place, n)
    known = with_answers(earlier, None if pairs is None else _answers(pairs, stored, plan))
    if known.pairs is not None:
        check_pairs(known.pairs, n, plan.names)
    if same_photo is None:
        return known
    if plan.added is None:
        raise InputError("--same-photo is for faces to add, and there are none; leave it out.")
    if isinstance(same_photo, (str, Path)):
        return with_photos(known, read_photos(same_photo, n - stay), stay, n)
    return with_photos(known, photos_from_values(same_photo, n - stay), stay, n)


def _answers(
    pairs: Path | str | Sequence[tuple[object, object, str]], stored: Stored, plan: Plan
) -> CheckedPairs:
    """Read pairs of faces by their numbers or ids, and leave out those of faces that were removed."""
    if plan.ids is None:
        numbers = max(stored.state.next_face, int(plan.rows.faces.max(initial=-1)) + 1)
        names, there = np.arange(numbers), plan.rows.faces
    else:
        gone = _names_that_went(stored, plan)
        names, there = np.array([*map(str, plan.ids.tolist()), *gone], object), np.arange(len(plan.ids))
        numbers = len(names)
    if isinstance(pairs, (str, Path)):
        answers = read_pairs(pairs, numbers, names)
    else:
        answers = pairs_from_rows(pairs, numbers, names)
    check_pairs(answers, numbers, names)
    place = np.full(numbers, -1, np.int32)
    place[there] = np.arange(len(there), dtype=np.int32)
    return answers.renumbered(place)


def _names_that_went(stored: Stored, plan: Plan) -> list[str]:
    """Return the ids of faces that this update or an earlier one removed, and nobody has now."""
    there = set(map(str, plan.names.tolist()))
    went = [] if stored.ids is None else list(map(str, stored.ids.tolist()))
    file = stored.path / HISTORY
    if file.exists():
        with open(file, encoding="utf-8", newline="") as opened:
            went += [row["face"] for row in csv.DictReader(opened) if row["new"] == ""]
    return [name for name in dict.fromkeys(went) if name not in there]


def _faces_and_copies(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Return the face (given,) int32 that each row goes with, -1 for a bad one, and the rows that go with another."""
    place = np.full(len(rows.source), -1, np.int32)
    place[rows.chosen] = np.arange(len(rows.chosen), dtype=np.int32)
    face = np.where(place >= 0, place, np.where(rows.source >= 0, place[rows.source], -1)).astype(np.int32)
    copies = np.flatnonzero((rows.source >= 0) & (rows.source != np.arange(len(rows.source))))
    return face, np.stack([copies, rows.source[copies]], axis=1)


def _rests_of(stored: Stored, plan: Plan, run: Run, system: System, labels: np.ndarray) -> Rests:
    """Return what the clusters rest on that rows had, and their new ones, ``labels`` (given,) int64; by rows.

    Copies are linked to the faces that they go with, more strongly than any others.
    """
    rows, before = plan.rows, read_placed(stored.path).evidence
    after = np.full(stored.n, -1, np.int64)
    after[plan.computed] = rows.chosen[: len(plan.computed)]
    held = after[before.links]
    least = usual_weakest(before.links, before.strength, stored.rows.labels[stored.rows.chosen])
    face, copies = _faces_and_copies(rows)
    links, strength = forest_of(labels, face, copies, system.evidence(run, kept_artifacts(run)))
    return Rests(
        np.concatenate([copies, rows.chosen[links]]),
        np.concatenate([np.full(len(copies), np.inf), strength]),
        held[(held >= 0).all(axis=1)],
        least,
    )


def _summary(stored: Stored, plan: Plan, rows: Rows, found: Named, run: Run) -> dict[str, object]:
    sizes = np.bincount(rows.labels[rows.labels >= 0])
    kinds = [(change.kind, made) for made, of in ((1, found.changes), (0, found.refused)) for change in of]
    stages = run.progress.seconds
    return {
        "faces": len(rows.labels),
        "clusters": int((sizes > 0).sum()),
        "singletons": int((sizes == 1).sum()),
        "added": len(rows.faces) - int((rows.faces < stored.state.next_face).sum()),
        "removed": len(stored.rows.faces) - int((rows.faces < stored.state.next_face).sum()),
        "merges": kinds.count((MERGE, 1)),
        "splits": kinds.count((SPLIT, 1)),
        "refused": len(found.refused),
        "updates": stored.state.updates + 1,
        "stages": {name: {"seconds": seconds} for name, seconds in stages.items()},
        **run.figures,
        **({"notes": run.notes} if run.notes else {}),
    }


def _changes_text(found: Named) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("old", "new", "faces", "kind", "made"))
    for made, changes in (("yes", found.changes), ("no", found.refused)):
        for one in changes:
            writer.writerow((one.old, "" if one.new == NO_NUMBER else one.new, one.faces, one.kind, made))
    return text.getvalue()


def _history_text(stored: Stored, plan: Plan, rows: Rows) -> str:
    """Return the history with what this update changed; an empty cell stands for a face that is not there."""
    text = io.StringIO()
    file = stored.path / HISTORY
    writer = csv.writer(text, lineterminator="\n")
    if file.exists():
        text.write(file.read_text(encoding="utf-8"))
    else:
        writer.writerow(HEADINGS)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    beginning = (stored.state.updates + 1, when)
    known = rows.faces < stored.state.next_face
    other = np.flatnonzero(known & (plan.old != rows.labels))
    names, labels = plan.names, rows.labels
    writer.writerows((*beginning, names[at], plan.old[at], labels[at]) for at in other.tolist())
    writer.writerows((*beginning, names[at], "", labels[at]) for at in np.flatnonzero(~known).tolist())
    gone = np.flatnonzero(~np.isin(stored.rows.faces, rows.faces))
    before = stored.rows.faces if stored.ids is None else stored.ids
    writer.writerows((*beginning, before[at], stored.rows.labels[at], "") for at in gone.tolist())
    return text.getvalue()


def _names_in(folder: Path) -> set[str]:
    """Return the names in a run folder that are ours."""
    record = read_record(folder)
    return set() if record is None else record.names


def _files_of_run(folder: Path) -> set[str] | None:
    """Return the names of our files in a run folder; None where it is none."""
    record = read_record(folder)
    if record is None:
        return None
    files = {f"{name}/{part}.npy" for name, entry in record.artifacts.items() for part in entry.parts}
    for name in record.names - record.artifacts.keys():
        place = folder / name
        if place.is_dir() and not place.is_symlink():
            files |= {str(file.relative_to(folder)) for file in place.rglob("*") if file.is_file()}
        else:
            files.add(name)
    return files


def read_ids(path: Path | str, *, as_text: bool = False) -> np.ndarray:
    """Read numbers of faces (r,) int64, one per line; raises InputError that names the line that is none.

    as_text: whether they are ids, which may be anything; they are text (r,) then.
    """
    path = Path(path)
    try:
        lines = read_text(path).splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give a text file with an id per line.") from None
    if as_text:
        return np.array([line.strip() for line in lines if line.strip()], dtype=object)
    for at, line in enumerate(lines, 1):
        if line.strip() and not NUMBER.fullmatch(line.strip()):
            raise InputError(f"{path}: line {at:,} is '{line[:40]}', not the number of a face.")
    return np.array([int(line) for line in lines if line.strip()], dtype=np.int64)
