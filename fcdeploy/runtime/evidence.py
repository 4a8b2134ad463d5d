"""What a run's clusters rest on: gathered at its end, kept in its folder, and read from there alone."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.evidence import (
    PROBABILITY,
    SIMILARITY,
    Evidence,
)
from fcdeploy.data.damaged import DAMAGED, reason_of
from fcdeploy.data.ids import packed_ids, unpacked_ids
from fcdeploy.data.images import FIRST_BAD
from fcdeploy.data.run_record import RECORD, Record, read_record
from fcdeploy.errors import InputError
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.folder import map_arrays, size_on_disk
from fcdeploy.run.run import Run
from fcdeploy.run.store import Arrays
from fcdeploy.runtime.copies import rows_of

EVIDENCE = "evidence"  # the artifact
IDS = "ids"  # the artifact of what the user calls the rows
LINES = "embedded_lines"  # the artifact of what became of every line of a list of images


@dataclass(frozen=True)
class Placed:
    """The clusters of all rows that a run was given, and what those of its faces rest on.

    labels: (rows,) int64, as the user gets them. face: (rows,) int32, the face that a row goes with: faces are the rows
    that were computed on, in their order; copies go with the first of their kind; -1 for a row that could not be
    used. evidence: of the faces. dropped: (rows,) uint8, flags for which a row was taken out of its cluster, 0 for
    most. ids: (rows,) text or integers by which the user knows the rows, None for row numbers.
    """

    labels: np.ndarray
    face: np.ndarray
    evidence: Evidence
    dropped: np.ndarray
    ids: np.ndarray | None = None


def rows_of_faces(face: np.ndarray) -> np.ndarray:
    """Return the row (n,) int64 of each face, out of the faces (rows,) of all rows."""
    numbers, first = np.unique(face, return_index=True)
    return first[numbers >= 0]


def faces_of_rows(run: Run, given: np.ndarray | None) -> np.ndarray:
    """Return the face (rows,) int32 that each row goes with, -1 where it could not be used.

    given: (m,) int64, the rows that could be used, None for all.
    """
    face = np.full(run.features.given, -1, np.int32)
    if run.copies is None:
        face[rows_of(run.features)] = np.arange(run.n, dtype=np.int32)
        return face
    usable = np.arange(run.features.given) if given is None else given
    chosen, source = run.copies.chosen, run.copies.source
    face[usable] = np.searchsorted(chosen, source)
    face[usable[chosen]] = np.arange(len(chosen), dtype=np.int32)
    return face


def copies_of_rows(run: Run, given: np.ndarray | None) -> np.ndarray:
    """Return the rows that go with another one, and that one: (c, 2) int64; given: as in ``faces_of_rows``."""
    if run.copies is None:
        return np.empty((0, 2), np.int64)
    usable = np.arange(run.features.given) if given is None else given
    source = run.copies.source
    extra = np.flatnonzero(source != np.arange(len(source)))
    return np.stack([usable[extra], usable[source[extra]]], axis=1)


def kept_artifacts(run: Run) -> Mapping[str, Artifact]:
    """Return the artifacts of a run by name."""
    return {artifact.name: artifact for artifact in run.planned}


def labels_of_faces(labels: np.ndarray, face: np.ndarray, n: int) -> np.ndarray:
    """Return the labels (n,) int64 of the faces, out of those of the rows (rows,)."""
    own = np.empty(n, np.int64)
    used = face >= 0
    own[face[used]] = labels[used]
    return own


def keep(run: Run, placed: Placed, lists: str) -> None:
    """Keep in the store what ``read_placed`` reads; lists: the name of the artifact of neighbor lists."""
    evidence = placed.evidence
    named = {} if placed.ids is None else {"ids": _kept_ids(run, placed.ids)}
    about = {
        "strength": evidence.name,
        "lists": lists,
        "dim": evidence.dim,
        "key": kept_artifacts(run)[lists].key,
        **named,
    }
    made: Arrays = {
        "labels": placed.labels,
        "face": placed.face,
        "links": evidence.links,
        "strength": evidence.strength,
        "beyond": evidence.beyond,
        "beyond_strength": evidence.beyond_strength,
        "within": evidence.within,
        "near": evidence.near,
        "dropped": placed.dropped,
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
    }
    state = hashlib.sha256()
    for part in made.values():
        state.update(np.ascontiguousarray(part).data)
    key = run.key_of(EVIDENCE, {**about, "content": state.hexdigest()})
    if run.store.load(EVIDENCE, key) is None:
        run.keep(EVIDENCE, key, made)


def _kept_ids(run: Run, ids: np.ndarray) -> str:
    """Keep the ids of all rows in the store; returns the key of their artifact."""
    made = packed_ids(ids)
    state = hashlib.sha256()
    for part in made.values():
        state.update(np.ascontiguousarray(part).data)
    key = run.key_of(IDS, {"content": state.hexdigest()})
    if run.store.load(IDS, key) is None:
        run.keep(IDS, key, made)
    return key


def read_placed(run_dir: Path | str) -> Placed:
    """Read the clusters of a finished run, and what they rest on, from its folder alone.

    Reads the artifact ``evidence`` (labels of all rows, links and their strength) and the neighbor lists that it names;
    arrays are mapped, nothing is written. Of a list of images rows are its lines, and bad ones are in no cluster.
    Raises InputError where the folder holds no finished run.
    """
    folder = Path(run_dir)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the --run-dir of a finished `fcdeploy cluster`.")
    record = read_record(folder)
    if record is None:
        raise InputError(f"{folder}: holds no {RECORD}; give the --run-dir of a finished `fcdeploy cluster`.")
    found = _mapped(folder, record, EVIDENCE)
    about = json.loads(found["about"].tobytes())
    lists = _mapped(folder, record, about["lists"])
    if record.artifacts[about["lists"]].key != about["key"] or about["strength"] not in (
        SIMILARITY,
        PROBABILITY,
    ):
        raise InputError(
            f"{folder}: its neighbor lists belong to another run than its clusters, one that was stopped; run the same "
            "`fcdeploy cluster` again."
        )
    evidence = Evidence(
        found["links"],
        found["strength"],
        found["beyond"],
        found["beyond_strength"],
        about["strength"],
        KnnGraph(lists["ids"], lists["sims"]),
        found["within"],
        found["near"],
        int(about["dim"]),
    )
    ids = _ids_of(folder, record, about.get("ids"))
    placed = Placed(found["labels"], found["face"], evidence, found["dropped"], ids)
    return _of_lines(folder, record, placed)


def read_ids_of_rows(run_dir: Path | str) -> np.ndarray | None:
    """Read the ids (rows,) by which the user knows the rows of a finished run; None where it was given none."""
    folder = Path(run_dir)
    record = read_record(folder) or Record()
    about = json.loads(_mapped(folder, record, EVIDENCE)["about"].tobytes())
    return _ids_of(folder, record, about.get("ids"))


def _ids_of(folder: Path, record: Record, key: str | None) -> np.ndarray | None:
    if key is None:
        return None
    arrays = _mapped(folder, record, IDS)
    if record.artifacts[IDS].key != key:
        raise InputError(
            f"{folder}: its ids belong to another run than its clusters, one that was stopped; run the same `fcdeploy "
            "cluster` again."
        )
    return unpacked_ids(arrays)


def _of_lines(folder: Path, record: Record, placed: Placed) -> Placed:
    """Return the same for all lines of a list of images, where the run was of such a list."""
    if LINES not in record.artifacts:
        return placed
    states = _mapped(folder, record, LINES)["states"]
    good = np.flatnonzero(states < FIRST_BAD)
    if len(good) != len(placed.labels) or len(good) == len(states):
        return placed
    labels, face = np.full(len(states), -1, np.int64), np.full(len(states), -1, np.int32)
    dropped = np.zeros(len(states), np.uint8)
    labels[good], face[good], dropped[good] = placed.labels, placed.face, placed.dropped
    return Placed(labels, face, placed.evidence, dropped)


def _mapped(folder: Path, record: Record, name: str) -> Arrays:
    entry = record.artifacts.get(name)
    if entry is None or entry.boot or size_on_disk(folder / name, entry.parts) != entry.bytes:
        raise InputError(
            f"{folder}: '{name}' is missing or incomplete; the run was stopped, or is of an earlier version: run the "
            "same `fcdeploy cluster` again."
        )
    try:
        return map_arrays(folder / name, entry.parts)
    except DAMAGED as error:
        raise InputError(f"{folder / name}: cannot be read ({reason_of(error)}).") from error
