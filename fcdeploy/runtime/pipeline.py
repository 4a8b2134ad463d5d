"""A run from features to labels: what surrounds the flow of a system.

Which stages a system has, and in what order, stands in its ``flow.py``; what a stage needs of its surroundings is
the ``Run`` of ``fcdeploy.run.run``.
"""

import contextlib
import json
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.copies import Copies, copies_from
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import Features
from fcdeploy.data.scratch import scratch_folder
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import FcdeployWarning
from fcdeploy.graph.alike import FEWEST
from fcdeploy.graph.cuda import copied
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.folder import SCRATCH_FOLDER, SUMMARY, RunFolder
from fcdeploy.run.memory import peak_bytes
from fcdeploy.run.options import MERGE, Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.store import MemoryStore, Store
from fcdeploy.run.summary import StageFigures, Summary
from fcdeploy.runtime.bad_rows import (
    IN_NO_CLUSTER,
    check_on_bad,
    counts_of_rows,
    labels_with_bad_rows,
)
from fcdeploy.runtime.checked import Checked, checked_rows
from fcdeploy.runtime.computed import what_was_computed
from fcdeploy.runtime.copies import (
    as_few_as_fit,
    equal_copies,
    keep_rows,
    near_copies_of,
    rows_key,
    tell_of_copies,
)
from fcdeploy.runtime.disk import most_at_once, note_too_little
from fcdeploy.runtime.prepare import Prepared, check_not_kept_in, prepare
from fcdeploy.runtime.review import NOTHING, Review, Reviewed, review
from fcdeploy.runtime.stored import drop_state, keep_state, places_of_clusters, rows_of_run
from fcdeploy.runtime.survey import sum_of_artifacts
from fcdeploy.runtime.workers import Workers, check_shared, fingerprint_of_bundle, workers_for
from fcdeploy.systems import System, get_system
from fcdeploy.systems.settings import setting_of

DEFAULTS = Options()
MOST = 0.5  # share of all faces in one cluster beyond which a note asks whether they are of one person


@dataclass(frozen=True)
class Result:
    """labels: (n,) int64, numbered by first appearance, -1 in no cluster; summary: what ``cluster --json`` prints.

    Labels are of all rows, those of copies and of bad rows among them. reviewed: what the clusters rest on and how sure
    they are, where somebody asked.
    """

    labels: np.ndarray
    summary: Summary
    reviewed: Reviewed | None = None


def run_clustering(
    features: Features,
    bundle: Bundle,
    options: Options = DEFAULTS,
    *,
    truth: np.ndarray | None = None,
    unknown: str = "ignore",
    on_bad: str = "stop",
    bad_list: Path | None = None,
    run_dir: Path | str | None = None,
    scratch_dir: Path | str | None = None,
    wanted: Review = NOTHING,
    quiet: bool = True,
) -> Result:
    """Cluster faces with a bundle.

    Raises InputError for anything that does not fit together: features of another width than the bundle's,
    lists of other faces. on_bad: what becomes of rows with NaN, infinity or no direction: 'stop' raises InputError,
    with 'skip' they are in no cluster (-1), with 'zero' each is in one of its own; all are listed in the file
    ``bad_list``, where one is named. ``truth`` (n,) adds ``quality`` to the summary; ``unknown`` says what of its -1,
    see ``evaluate``. With ``run_dir`` every artifact is kept there and an interrupted run continues where it stopped;
    without it, what does not fit into half of the memory budget lies in a folder that is removed at the end, in
    ``options.scratch`` or ``scratch_dir``, where the output goes; see ``scratch_folder``. wanted: what else is wanted
    of the clusters; the result is ``reviewed`` then, and with a ``run_dir``.
    """
    check_on_bad(on_bad)
    check_shared(options, run_dir)
    if run_dir:
        check_not_kept_in(Path(run_dir), options)  # before the lists are compared with the features
    prepared = prepare(features, bundle, options)
    if run_dir:
        places = places_of_clusters(prepared.system, prepared.artifacts(keeps=True))
        check_not_kept_in(Path(run_dir), prepared.options, prepared.features, places)
    progress = Progress(quiet)
    with progress.stage("features"), told_of_compiling(progress.compiling):
        checked = checked_rows(
            prepared.features, prepared.options.duplicates, on_bad, bad_list, IN_NO_CLUSTER
        )
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(store_of_run(prepared, run_dir, scratch_dir))
        stack.enter_context(threads_limited(prepared.options.cores))
        stack.enter_context(told_of_compiling(progress.compiling))
        workers = workers_of_run(stack, store, bundle, options)
        run = begin_run(checked, bundle, options, store, progress, workers=workers, keeps=bool(run_dir))
        if checked.told:
            run.notes.insert(0, checked.told)  # which the user has been told by now
        store.describe(what_was_computed(run, bundle))
        found = prepared.system.cluster(run)
        # of different faces: a thousand copies of one are no sign of a wrong threshold
        note_extremes(found, run, prepared.system)
        labels = labels_with_bad_rows(run.labels_of_all(found), checked.scan, on_bad)
        reviewed = None
        if run_dir or wanted.wanted:
            reviewed = review(run, prepared.system, labels, checked.faces.chosen, wanted, features.ids)
            labels = reviewed.placed.labels
        store.drop_scratch()
        summary = _summary(labels, run, bundle)
        if reviewed is not None:
            summary = {**summary, **reviewed.figures}
        store.describe(summary["computed"])
        summary = with_bad_rows(summary, labels, checked, on_bad)
        if workers is not None:
            summary["workers"] = workers.blocks.summary
        if truth is not None:
            summary["quality"] = evaluate(labels, truth, unknown=unknown).as_dict()
        if run_dir:
            with atomic_file(Path(run_dir) / SUMMARY) as file:
                file.write(json.dumps(summary, indent=1).encode())
            keep_state(store, run, bundle, rows_of_run(run, checked.faces, labels), known=wanted)
    return Result(labels, summary, reviewed)


@contextlib.contextmanager
def store_of_run(
    prepared: Prepared, run_dir: Path | str | None, scratch_dir: Path | str | None
) -> Iterator[Store]:
    """Open where a run keeps its artifacts: the run folder, memory, or a folder that is removed at the end.

    Memory is for artifacts that fit into half of the budget together. scratch_dir: see ``run_clustering``. Raises
    InputError for a run folder that cannot be used.
    """
    options, artifacts = prepared.options, prepared.artifacts(keeps=bool(run_dir))
    with contextlib.ExitStack() as stack:
        folder = Path(run_dir) if run_dir else None
        if folder is None and sum_of_artifacts(artifacts) > options.budget // 2:
            place = scratch_folder(options.scratch, scratch_dir)
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=SCRATCH_FOLDER, dir=place)))
        if folder is None:
            yield MemoryStore()
            return
        store = stack.enter_context(RunFolder(folder, shared=options.ray is not None))
        store.check_free(places_of_clusters(prepared.system, artifacts))
        if run_dir:
            store.claims.claim(SUMMARY)
            drop_state(store)
        note_too_little(store, most_at_once(artifacts, options, prepared.features.n, store.finished))
        yield store


def workers_of_run(
    stack: contextlib.ExitStack, store: Store, bundle: Bundle, options: Options
) -> Workers | None:
    """Start the workers of ``options.ray`` until ``stack`` is closed; None where this process computes alone."""
    if options.ray is None or not isinstance(store, RunFolder):
        return None
    about = {"engine": str(bundle.path.absolute()), "device": options.device or ""}
    own = fingerprint_of_bundle(bundle, options.device)
    return stack.enter_context(workers_for(store, options, about, own, tell))


def with_bad_rows(summary: Summary, labels: np.ndarray, checked: Checked, on_bad: str) -> Summary:
    """Add what bad rows there were to a summary; with 'skip' they are not among its faces."""
    if not len(checked.scan.bad):
        return summary
    summary = {**summary, **counts_of_rows(checked.scan)}
    if on_bad == "skip":
        left_out = int(np.count_nonzero(labels[checked.scan.bad] < 0))  # a person may have placed some
        summary["faces"] -= left_out
        if others := summary.pop("uncovered", 0) - left_out:
            summary["uncovered"] = others
    return summary


def begin_run(
    checked: Checked,
    bundle: Bundle,
    options: Options,
    store: Store,
    progress: Progress,
    *,
    final: bool = True,
    workers: Workers | None = None,
    keeps: bool = False,
) -> Run:
    """Begin a run over faces of which copies count once, and tell the user of them; see ``Options.duplicates``.

    workers: those that compute blocks, if not this process. The run's ``labels_of_all`` gives labels to all
    ``checked.faces``.
    """
    faces = checked.faces

    def opened(copies: Copies | None, prepared: Prepared) -> tuple[Run, list[str]]:
        run = run_of(prepared, store, progress, asked=options, final=final, keeps=keeps)
        run.copies, run.stamp = copies, checked.stamp
        if workers is not None:
            workers.share(run, bundle.path)
        return run, prepared.notes

    def prepared(chosen: np.ndarray) -> Prepared:
        return prepare(faces.select(chosen), bundle, options)

    together = equal_copies(checked.equal, options)
    if together is None:
        copies, run, notes = None, *opened(None, prepare(faces, bundle, options))
    elif options.lists:
        copies, run, notes = together, *opened(together, prepare(faces, bundle, options))
    else:
        copies, found = as_few_as_fit(together, prepared)
        run, notes = opened(copies, found)
    system = get_system(bundle.system)
    near = None
    if options.duplicates == MERGE:
        key = rows_key(run)
        if not options.lists and (near := near_copies_of(system, run)) is not None:
            alone = copies if copies is not None else copies_from(np.arange(faces.n, dtype=np.int32))
            copies, found = as_few_as_fit(alone.joined(near.leader), prepared)
            run.drop(*run.planned)  # of all faces, just now
            told = run.notes, run.figures  # of all faces: that they are alike, for example
            run, notes = opened(copies, found)
            run.notes, run.figures = told
        keep_rows(run, key, faces, copies, near.filled if near is not None else 0)
    tell_of_copies(run, faces.name, together, copies, near)
    for note in notes:  # behind: k may be more than the faces that are left
        run.note(note)
    return run


def tell(sentence: str) -> None:
    """Tell the user something that is not of the results."""
    warnings.warn(sentence, FcdeployWarning, stacklevel=4)


def run_of(
    prepared: Prepared,
    store: Store,
    progress: Progress,
    *,
    asked: Options,
    final: bool = True,
    keeps: bool = False,
) -> Run:
    """Return the run of what was found to fit together."""
    system = prepared.system
    return Run(
        prepared.features,
        prepared.bundle,
        prepared.settings,
        prepared.options,
        store,
        progress,
        asked=asked,
        given=prepared.given(),
        unit_rows=system.title if system.unit_rows else None,
        final=final,
        keeps=keeps,
    )


def note_extremes(labels: np.ndarray, run: Run, system: System) -> None:
    """Tell that all faces are alone, or most of them together; labels: (n,) int64, of those computed on."""
    placed = labels[labels >= 0]
    largest = int(np.bincount(placed).max()) if len(placed) else 0
    if run.n < FEWEST or 1 < largest <= max(run.n * MOST, run.figures.get("clustered_unasked", 0)):
        return
    tunables = system.tunable(run.engines.weights, run.options)
    keys = ", ".join(f"{one.key} = {setting_of(run.settings, one.key)}" for one in tunables)
    advice = f"`fcdeploy tune` chooses {keys} on labelled faces" if keys else "check the recipe's thresholds"
    if largest <= 1:
        run.note(f"all {run.n:,} faces are alone; {advice}.", largest_cluster=largest)
    else:
        run.note(
            f"{largest:,} of {run.n:,} faces ({largest / run.n:.0%}) are in one cluster; unless they are one person, "
            f"{advice}.",
            largest_cluster=largest,
        )


def _figures_of(run: Run, stage: str, seconds: float, faces: int) -> StageFigures:
    """Return what a stage took, and where the run has a GPU how many bytes it copied to and from it."""
    figures = StageFigures(seconds=seconds, faces_per_s=faces / seconds if seconds else 0.0)
    if run.on_gpu and (here := run.copied_in.get(stage)) is not None:
        figures["to_device"], figures["from_device"] = here.there, here.back
    return figures


def _summary(labels: np.ndarray, run: Run, bundle: Bundle) -> Summary:
    sizes = np.bincount(labels[labels >= 0])
    summary: Summary = {
        "faces": len(labels),
        "clusters": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "peak_bytes": peak_bytes(),
        "stages": {
            name: _figures_of(run, name, seconds, len(labels))
            for name, seconds in run.progress.seconds.items()
        },
    }
    if uncovered := int((labels < 0).sum()):
        summary["uncovered"] = uncovered
    if run.on_gpu:
        before = run.copied_before
        summary["copied"] = {
            "to_device": copied.there - before.there,
            "from_device": copied.back - before.back,
        }
    if run.recall:
        summary["recall"] = {name: measured.as_dict() for name, measured in run.recall.items()}
    summary["computed"] = what_was_computed(run, bundle)
    summary = {**summary, **run.figures}
    if run.notes:
        summary["notes"] = run.notes
    return summary
