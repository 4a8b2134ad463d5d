"""The state of a run folder: the clusters that a finished run found there, and all that new faces are compared with.

It is written when the run has ended, names the artifacts that it is made of by their keys, and is trusted only while
these are there. Nothing here writes to a folder but ``keep_state``.
"""

import contextlib
import dataclasses
import fcntl
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.data.features import Features, features_from_array
from fcdeploy.data.locks import TAKEN
from fcdeploy.data.run_record import LOCK, RECORD, Record, read_record
from fcdeploy.data.typed import typed
from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.errors import InputError
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.folder import RunFolder, map_arrays, places_of, size_on_disk
from fcdeploy.run.options import Options, options_from_values
from fcdeploy.run.run import Run
from fcdeploy.run.store import Arrays, Store
from fcdeploy.runtime.copies import ROWS, rows_of
from fcdeploy.runtime.evidence import EVIDENCE, IDS, Placed, read_ids_of_rows
from fcdeploy.runtime.known import KNOWN, keep_known
from fcdeploy.runtime.review import NOTHING, Review
from fcdeploy.runtime.survey import places_of_run
from fcdeploy.systems import System
from fcdeploy.systems.recipe import Recipe
from fcdeploy.systems.settings import settings_as_dict, settings_from_dict

STATE = "state.json"
LABELS = "labels"  # the artifact with the label of every row, and which rows were computed on
VECTORS = "vectors"
FORMAT_VERSION = 1
# Options that decide what is computed and that no setting holds.
DECIDING = ("min_probability", "uncovered", "link", "inference", "tables", "duplicates", "batch")


@dataclass(frozen=True)
class State:
    """What a run folder's ``state.json`` says.

    settings: of the recipe, as they were used; options: see ``DECIDING``; artifacts: the keys of those that belong to
    the clusters, by name. next_label, next_face: above every number that a cluster or a face ever had. updates: how
    often faces were added or removed.
    """

    format: Literal["fcdeploy-clusters"]
    format_version: int
    system: str
    engine: str
    engine_digest: str
    settings: dict[str, object]
    options: dict[str, object]
    dim: int
    normalize: bool
    artifacts: dict[str, str]
    next_label: int
    next_face: int
    updates: int = 0
    knn: str = "auto"
    recall: float | None = None


@dataclass(frozen=True)
class Rows:
    """All rows that a run folder holds clusters of.

    labels: (given,) int64, -1 in no cluster; chosen: (n,) int64, the rows that were computed on, whose unit vectors (or
    rows as they are) the artifact "vectors" holds; source: (given,) int32, the row that each one goes with, -1 for a
    bad one; faces: (given,) int64, the number by which each is known, that of its row in the first run or, for one that
    was added, the next free one.
    """

    labels: np.ndarray
    chosen: np.ndarray
    source: np.ndarray
    faces: np.ndarray


@dataclass(frozen=True)
class Stored:
    """The clusters of a run folder, opened for reading; parts: the names of the arrays of its artifacts."""

    path: Path
    state: State
    bundle: Bundle
    settings: Recipe
    rows: Rows
    parts: Mapping[str, list[str]]

    @property
    def n(self) -> int:
        return len(self.rows.chosen)

    @cached_property
    def ids(self) -> np.ndarray | None:
        """Text or integers (given,) by which the user knows the rows, None where they are known by their numbers."""
        return read_ids_of_rows(self.path)

    def arrays(self, name: str) -> Arrays | None:
        """Map the arrays of an artifact that belongs to the clusters; None where the run kept none of that name."""
        if name not in self.parts:
            return None
        return map_arrays(self.path / name, self.parts[name])

    @property
    def vectors(self) -> np.ndarray:
        """The vectors (n, d) float32 of the faces computed on."""
        return map_arrays(self.path / VECTORS, self.parts[VECTORS])[VECTORS]

    def features(self) -> Features:
        """Return the faces computed on as features, which are not read as files are."""
        features = features_from_array(self.vectors, self.state.dim, normalize=self.state.normalize)
        return dataclasses.replace(features, name=str(self.path))

    def options(self, given: Options) -> Options:
        """Return the options that decided the clusters, with the limits and the device of ``given``."""
        return options_from_values({**vars(given), **self.state.options})


def rows_of_run(run: Run, faces: Features, labels: np.ndarray) -> Rows:
    """Return the rows of a first run: labels (given,) int64; faces: the good ones, of which it computed on some."""
    good, source = rows_of(faces), np.full(faces.given, -1, np.int32)
    source[good] = good if run.copies is None else good[run.copies.source]
    return Rows(labels, rows_of(run.features), source, np.arange(faces.given))


def places_of_clusters(system: System, artifacts: Iterable[Artifact]) -> list[str]:
    """Return all names that a run's artifacts take in its folder, those of its clusters included."""
    kept = (place for name in (ROWS, EVIDENCE, IDS, KNOWN, LABELS, VECTORS) for place in places_of(name))
    return [*places_of_run(system, artifacts), *kept]


def drop_state(folder: RunFolder) -> None:
    """Take the state of a folder away, until the run that begins there has ended."""
    folder.claims.claim(STATE)
    (folder.path / STATE).unlink(missing_ok=True)


def keep_state(
    folder: Store,
    run: Run,
    bundle: Bundle,
    rows: Rows,
    before: State | None = None,
    first: int = 0,
    known: Review = NOTHING,
) -> None:
    """Keep the clusters of a run that has ended; written last, so that whole runs have a state only.

    folder: a run folder. before: the state that faces were added to or removed from; first: above every number that
    clusters had then. known: what a person has said of the rows.
    """
    assert isinstance(folder, RunFolder)
    made = {"labels": rows.labels, "chosen": rows.chosen, "source": rows.source, "faces": rows.faces}
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(each).data for each in made.values())).hexdigest()
    key = run.key_of(LABELS, {"labels": digest})
    if folder.load(LABELS, key) is None:
        run.keep(LABELS, key, made)
    kept = {artifact.name for artifact in run.planned if not artifact.scratch} | {LABELS}
    if known.constrained:
        keep_known(run, known)
        kept.add(KNOWN)
    state = State(
        format="fcdeploy-clusters",
        format_version=FORMAT_VERSION,
        system=bundle.system,
        engine=str(bundle.path.resolve()),
        engine_digest=bundle.digest(),
        settings=settings_as_dict(run.settings),
        options={name: getattr(run.options, name) for name in DECIDING},
        dim=run.features.dim,
        normalize=run.features.normalize,
        artifacts={name: entry.key for name, entry in folder.finished.items() if name in kept},
        next_label=max(first, int(rows.labels.max(initial=-1)) + 1),
        next_face=max(before.next_face if before else 0, int(rows.faces.max(initial=-1)) + 1),
        updates=before.updates + 1 if before else 0,
        knn="auto" if run.options.knn_file else run.options.knn,
        recall=run.options.recall,
    )
    with atomic_file(folder.path / STATE) as file:
        file.write(json.dumps(dataclasses.asdict(state), indent=1).encode())


def open_stored(path: Path | str, engine: Path | str | None = None, *, locked: bool = False) -> Stored:
    """Open the clusters of a run folder, which is read and never written to.

    engine: the bundle, where it is no longer where the run found it. locked: whether the caller holds its lock. Raises
    InputError, which says what to do, when the folder holds no finished run, one is going on there, or the engine is
    another.
    """
    path = Path(path)
    state, record = read_state(path, locked=locked), _record_of(path)
    entries = {name: record.artifacts.get(name) for name in state.artifacts}
    for name, entry in entries.items():
        whole = entry is not None and size_on_disk(path / name, entry.parts) == entry.bytes
        if entry is None or not whole or entry.key != state.artifacts[name]:
            raise InputError(
                f"{path}: '{name}' is missing, or belongs to a later run; {_remake(path, state)}."
            )
    bundle = _bundle_of(state, path, engine)
    settings = settings_from_dict(state.settings, str(path / STATE))
    parts = {name: entry.parts for name, entry in entries.items() if entry is not None}
    rows = _rows_of(path, state, parts.get(LABELS, []))
    return Stored(path, state, bundle, settings, rows, parts)


def read_rows(path: Path | str) -> tuple[State, Rows]:
    """Return the state of a run folder and the rows of its clusters, without its engine; for errors see above."""
    path = Path(path)
    state = read_state(path, locked=True)
    entry = _record_of(path).artifacts.get(LABELS)
    if entry is None or entry.key != state.artifacts.get(LABELS):
        raise InputError(f"{path}: '{LABELS}' is missing, or belongs to a later run; {_remake(path, state)}.")
    return state, _rows_of(path, state, entry.parts)


def names_of_rows(path: Path | str, placed: Placed) -> np.ndarray | None:
    """Return by what the rows (rows,) of a finished run are known outside of it, None for row numbers.

    That is ids that came with the features or, in a folder that was updated, the numbers that updates know faces by.
    """
    if placed.ids is not None or not (Path(path) / STATE).is_file():
        return placed.ids
    state, rows = read_rows(path)
    return rows.faces if state.updates else None


def _rows_of(path: Path, state: State, parts: list[str]) -> Rows:
    try:
        found = map_arrays(path / LABELS, parts)
        return Rows(**{one.name: found[one.name] for one in dataclasses.fields(Rows)})
    except (*DAMAGED, KeyError):
        raise InputError(f"{path}: its labels cannot be read; {_remake(path, state)}.") from None


def read_state(path: Path, *, locked: bool = False) -> State:
    """Return the state of a run folder; raises InputError where there is none."""
    if not path.is_dir():
        raise InputError(
            f"{path}: no such folder; make one with `fcdeploy cluster FEATURES --run-dir {path}`."
        )
    if not locked:
        check_at_rest(path)
    try:
        found = json.loads((path / STATE).read_bytes())
    except FileNotFoundError:
        if _record_of(path).artifacts or (path / RECORD).is_file():
            why = "the run in it has not finished, or is of an earlier version of fcdeploy"
        else:
            why = "it is not a run folder"
        raise InputError(
            f"{path}: holds no {STATE}, the state of its clusters: {why}; run `fcdeploy cluster FEATURES --engine "
            f"ENGINE --run-dir {path}` to its end."
        ) from None
    except DAMAGED as error:
        raise InputError(f"{path / STATE}: cannot be read ({error}); run `fcdeploy cluster` again.") from None
    if isinstance(found, dict) and found.get("format_version", 0) > FORMAT_VERSION:
        raise InputError(f"{path}: was written by a newer version of fcdeploy; upgrade fcdeploy.")
    return typed(State, found, str(path / STATE), open_ended=True)


def check_at_rest(path: Path) -> None:
    """Raise InputError while a run is using a folder."""
    with contextlib.suppress(FileNotFoundError), open(path / LOCK) as lock:
        for call in (fcntl.flock, fcntl.lockf):
            try:
                call(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in TAKEN:
                    raise InputError(
                        f"{path}: a run is using this folder (process {lock.read().strip() or 'unknown'}); wait until "
                        "it has ended."
                    ) from None


def _record_of(path: Path) -> Record:
    return read_record(path) or Record()


def _bundle_of(state: State, path: Path, engine: Path | str | None) -> Bundle:
    try:
        bundle = read_bundle(state.engine if engine is None else engine)
    except InputError as error:
        if engine is not None:
            raise
        raise InputError(
            f"{path}: was clustered with an engine that is no longer there: {error} Give --engine."
        ) from None
    if bundle.digest() != state.engine_digest:
        raise InputError(
            f"{bundle.path}: is not the engine that {path} was clustered with; give that one with --engine, or cluster "
            "again with this one."
        )
    return bundle


def _remake(path: Path, state: State) -> str:
    return f"run `fcdeploy cluster FEATURES --engine {state.engine} --run-dir {path}` again"
