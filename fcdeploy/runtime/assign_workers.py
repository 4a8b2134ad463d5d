"""Assigning that is shared out to workers elsewhere: each opens the run folder and assigns the faces it is given."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fcdeploy.data.features import Features, hash_of
from fcdeploy.errors import InputError
from fcdeploy.graph.scan import REASONS, RowState, scan_rows
from fcdeploy.run.folder import SCRATCH_FOLDER, RunFolder
from fcdeploy.run.keys import digest
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays
from fcdeploy.runtime.assign import ROOM, Assigned, Assigner
from fcdeploy.runtime.embed import no_engine
from fcdeploy.runtime.pipeline import tell
from fcdeploy.runtime.stored import Stored, open_stored
from fcdeploy.runtime.workers import check_shared, fingerprint_of_bundle, workers_for

NAME = "assigned"  # the artifact
BLOCK = 16 * ROOM


def stage_of_assigning(features: Features, assigner: Assigner | None) -> Stage:
    """Describe the assigning of faces as a stage; without an assigner one whose blocks others compute.

    Blocks are whole calls of the assigner: NSR-FC's faces of a call attend to each other.
    """

    def block(rows: np.ndarray) -> Arrays:
        assert assigner is not None
        found = assigner.assign_features(features.select(rows.astype(np.int64)))
        return {"labels": found.labels, "similarity": found.similarity, "margin": found.margin}

    n = features.n
    return Stage(
        name=NAME,
        text="assigning",
        block=block,
        shapes={"labels": ((n,), np.int64), "similarity": ((n,), np.float32), "margin": ((n,), np.float32)},
        rows=n,
        size=BLOCK,
        whole=ROOM,
    )


def assign_on_workers(
    features: Features,
    run_dir: Path,
    options: Options,
    *,
    engine: Path | str | None = None,
    part: Path | None = None,
    quiet: bool = True,
) -> Assigned:
    """Have workers assign faces to the clusters of a run folder; the labels are those of one process.

    options: of the cluster, threads, memory, device and scratch are read. part: a folder that all machines see, from
    which an interrupted call goes on; without it one beside ``run_dir``, which is deleted. Raises InputError for rows
    that cannot be used, and for what ``Assigner`` refuses.
    """
    stored = open_stored(run_dir, engine)
    stored.bundle.check_device(options.device)
    check_rows(features, stored)
    with place_for(part, run_dir) as place:
        check_shared(options, place)
        with RunFolder(place, "output", shared=True) as folder:
            stage = stage_of_assigning(features, None)
            key = digest(
                {"features": hash_of(features), "state": stored.state.artifacts, "device": options.device}
                | {"engine": stored.state.engine_digest, "options": stored.state.options}
            )
            about = {"engine": str(stored.bundle.path.absolute()), "device": options.device or ""}
            own = fingerprint_of_bundle(stored.bundle, options.device)
            with workers_for(folder, options, about, own, tell) as workers:
                workers.blocks.begin(
                    {
                        "kind": "assign",
                        "folder": str(folder.path.absolute()),
                        "told": str(workers.folder),
                        **workers.about_features(features),
                        "key": key,
                        "run_dir": str(run_dir.absolute()),
                        "engine": str(stored.bundle.path.absolute()),
                        "device": options.device,
                    }
                )
                partial = folder.begin(NAME, key, stage.shapes, scratch=True)
                with contextlib.closing(partial):
                    workers.blocks.compute(stage, partial, no_engine, folder, Progress(quiet))
                    made = {name: np.array(array) for name, array in partial.arrays.items()}
            folder.remove()
    return Assigned(made["labels"], made["similarity"], made["margin"])


def check_rows(features: Features, stored: Stored) -> None:
    """Raise InputError for features of another width than the stored ones, and for rows that cannot be used."""
    if features.dim != stored.state.dim:
        raise InputError(
            f"{features.name}: expected (n, {stored.state.dim}) features, found ({features.n}, {features.dim}); "
            f"{stored.path} holds faces of d = {stored.state.dim}."
        )
    scan = scan_rows(features)
    if len(scan.bad):
        row = int(scan.bad[0])
        raise InputError(
            f"{features.name}: row {row}, counted from 0, {REASONS[RowState(scan.states[row])]}; remove or recompute "
            "this face."
        )


@contextlib.contextmanager
def place_for(part: Path | None, run_dir: Path) -> Iterator[Path]:
    """Give the folder that workers write into: ``part``, or one beside the run folder that is deleted at the end."""
    if part is not None:
        yield part
        return
    with tempfile.TemporaryDirectory(prefix=SCRATCH_FOLDER, dir=run_dir.absolute().parent) as folder:
        yield Path(folder) / "part"
