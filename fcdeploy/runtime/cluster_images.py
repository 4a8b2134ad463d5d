"""From a list of face images to clusters, whose ids are lines of that list.

embed     every line (see ``fcdeploy.runtime.embed``); the rows of good ones go on
cluster   as from any features
labels    of the good lines, in their places among all
"""

import contextlib
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import BLOCK_ROWS, Features, Source
from fcdeploy.data.filelist import Filelist
from fcdeploy.data.images import FIRST_BAD, State
from fcdeploy.data.labels import renumber
from fcdeploy.data.run_record import check_run_folder
from fcdeploy.data.side_files import check_not_an_input, check_replaceable
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.embedder import Embedder
from fcdeploy.errors import InputError
from fcdeploy.graph.lists import ListsFile
from fcdeploy.run.folder import SUMMARY, RunFolder, places_of
from fcdeploy.run.keys import digest
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.store import Arrays, Store
from fcdeploy.run.summary import StageFigures, Summary
from fcdeploy.runtime.embed import (
    WORKING,
    Job,
    begin,
    fill,
    inputs_of,
    is_bad_list,
    lists_lines_of,
    looked_up,
    part_of,
    report_bad_lines,
    summary_of,
)
from fcdeploy.runtime.embed_workers import embedding_workers
from fcdeploy.runtime.evidence import LINES
from fcdeploy.runtime.pipeline import Result, run_clustering
from fcdeploy.runtime.prepare import check_not_kept_in, prepare
from fcdeploy.runtime.review import NOTHING, Review
from fcdeploy.runtime.stored import places_of_clusters
from fcdeploy.runtime.workers import check_shared

FEATURES = "embedded"  # what is kept of good lines; LINES: the state of all
OUTCOMES = {"skip": "they are in no cluster", "zero": "each is in a cluster of its own"}
UNKNOWN = 255  # no state


def cluster_images(
    job: Job,
    bundle: Bundle,
    output: Path,
    options: Options,
    *,
    on_bad: str = "stop",
    truth: np.ndarray | None = None,
    unknown: str = "ignore",
    run_dir: Path | None = None,
    wanted: Review = NOTHING,
    quiet: bool = True,
) -> Result:
    """Embed the images of a list and cluster them; a label for every line.

    A bad line is in no cluster (-1) with on_bad 'skip', and in one of its own with 'zero', as nothing is similar to a
    row of zeros. Embeddings lie in ``run_dir``, or in a folder beside ``output`` until the run is over, which an
    interrupted run continues from. Where the list is no text, its lines are written beside the output
    (``NAME.filelist.txt``). truth: (n,), a label for every line; unknown: what becomes of its -1, see ``evaluate``.
    wanted: of the clusters beside labels, for lines; pairs of bad lines are passed over.
    """
    check_shared(options, run_dir)
    files, n = job.files, job.files.n
    places = check_clustering(files, bundle, options, run_dir)
    progress = Progress(quiet)
    folder, named = run_dir or part_of(output), "--run-dir" if run_dir else "output"
    bad_list, line_list = output.with_suffix(".bad.txt"), output.with_suffix(".filelist.txt")
    check_outputs(job, output, bad_list, None if files.is_text else line_list)
    check_run_folder(folder, named)
    if not folder.exists():
        open_for(bundle, job).close()  # what does not fit is said before anything is made
    with contextlib.ExitStack() as stack:
        # Left open for the whole run, where it is not the folder that the clustering itself is going to use.
        place = stack.enter_context(RunFolder(folder, named, shared=options.ray is not None))
        place.check_free([*places_of(LINES), *places_of(FEATURES), *(places if run_dir else ())])
        if run_dir:
            place.claims.claim(SUMMARY)
        with progress.stage("embed"):
            features, states = kept_features(job, bundle, place, progress, bad_list, on_bad, options)
        if run_dir:
            stack.close()
        good = np.flatnonzero(states < FIRST_BAD)
        source = Source((str((folder / FEATURES / "embedded.npy").absolute()),), bundle.feature_dim)
        result = run_clustering(
            Features(features, files.name, source=source),
            bundle,
            options,
            run_dir=run_dir,
            scratch_dir=output.parent,
            wanted=wanted.of_rows(good, n),
            quiet=quiet,
        )
        if not run_dir:
            del features
            place.remove()
    if not files.is_text:
        with atomic_file(line_list) as file:
            for line in range(n):
                file.write(files.line(line) + b"\n")
    placed = labels_of_lines(result, job, states, on_bad, progress.seconds["embed"])
    if truth is not None:
        placed.summary["quality"] = evaluate(placed.labels, truth, unknown=unknown).as_dict()
    if run_dir:
        with atomic_file(run_dir / SUMMARY) as file:
            file.write(json.dumps(placed.summary, indent=1).encode())
    return placed


def check_outputs(job: Job, output: Path, bad_list: Path, line_list: Path | None) -> None:
    """Raise InputError where an output would replace an input, or a list a file that is none of ours."""
    for path in (output, bad_list, line_list):
        if path is not None:
            check_not_an_input(path, inputs_of(job))
    check_replaceable(bad_list, is_bad_list, "the list of bad lines")
    if line_list is not None:
        check_replaceable(line_list, lambda path: lists_lines_of(path, job), "the list of the lines")


def labels_of_lines(result: Result, job: Job, states: np.ndarray, on_bad: str, seconds: float) -> Result:
    """Return the result of a clustering of good lines as one of all lines, with their states (n,) and what they took.

    on_bad: 'skip' leaves bad lines in no cluster (-1), 'zero' gives each one of its own.
    """
    n = job.files.n
    good, bad = np.flatnonzero(states < FIRST_BAD), np.flatnonzero(states >= FIRST_BAD)
    labels = np.full(n, -1, np.int64)
    labels[good] = result.labels
    embed: StageFigures = {"seconds": seconds, "faces_per_s": n / seconds if seconds else 0.0}
    summary: Summary = {**result.summary, "stages": {"embed": embed, **result.summary["stages"]}}
    if on_bad == "zero":
        labels[bad] = labels.max(initial=-1) + 1 + np.arange(len(bad))
        summary["faces"] += len(bad)
        summary["clusters"] += len(bad)
        summary["singletons"] += len(bad)
    labels = renumber(labels)
    told = summary_of(job, states)
    summary = {**summary, **told}
    if notes := [*told.get("notes", []), *result.summary.get("notes", [])]:
        summary["notes"] = notes
    reviewed = None if result.reviewed is None else result.reviewed.of_lines(good, labels)
    return Result(labels, summary, reviewed)


def kept_features(
    job: Job,
    bundle: Bundle,
    store: RunFolder,
    progress: Progress,
    bad_list: Path,
    on_bad: str,
    options: Options,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings (m, d) of good lines and the states (n,) of all, of an earlier run if nothing changed."""
    key = job.key()
    found, stamps = looked_up(job, progress)
    lines = store.load(LINES, key)
    old = store.load(FEATURES, _features_key(key, lines)) if lines else None
    if lines and old and np.array_equal(_states_now(lines, found, stamps), lines["states"]):
        states = np.array(lines["states"])
        report_bad_lines(job, states, on_bad, OUTCOMES, bad_list)
        return old["embedded"], states
    with open_for(bundle, job) as embedder:
        finished = None
        if lines and old:
            good = np.flatnonzero(lines["states"] < FIRST_BAD)
            finished = {name: lines[name][good] for name in ("states", "stamps")} | {
                "features": old["embedded"]
            }
        partial = begin(store, job, key, embedder.dim, stamps, finished)
        with embedding_workers(store, options) as share_out:
            fill(partial, job, embedder, found, stamps, progress, share_out)
    states = np.array(partial.arrays["states"])
    report_bad_lines(job, states, on_bad, OUTCOMES, bad_list)
    made = {"states": states, "stamps": np.array(partial.arrays["stamps"])}
    lines = _keep(store, LINES, key, made)
    good = np.flatnonzero(states < FIRST_BAD)
    final = store.begin(
        FEATURES, _features_key(key, lines), {"embedded": ((len(good), embedder.dim), np.float32)}
    )
    for start in range(0, len(good), BLOCK_ROWS):
        block = slice(start, start + BLOCK_ROWS)
        final.arrays["embedded"][block] = partial.arrays["features"][good[block]]
    partial.close()
    features = final.finish()["embedded"]
    for name, *_ in store.unfinished(WORKING):
        store.drop(name)
    return features, states


def open_for(bundle: Bundle, job: Job) -> Embedder:
    """Load the embedder; raises InputError when its embeddings are not what the bundle takes."""
    embedder = job.open()
    if embedder.dim != bundle.feature_dim:
        raise InputError(
            f"{job.model}: gives embeddings of width {embedder.dim}; {bundle.path} was exported for "
            f"d = {bundle.feature_dim}."
        )
    return embedder


def check_clustering(files: Filelist, bundle: Bundle, options: Options, run_dir: Path | None) -> list[str]:
    """Find what a clustering of the list's images would refuse before hours of embedding; raises InputError.

    Returns the names that it takes in a run folder.
    """
    for path in options.lists.values():
        ListsFile(path)
    if run_dir:
        check_not_kept_in(run_dir, options)
    row = np.zeros(1, np.float32)
    imagined = Features(np.broadcast_to(row, (files.n, bundle.feature_dim)), files.name)
    knn = "auto" if "--knn" in options.lists else options.knn
    imagined_options = dataclasses.replace(options, knn=knn, reranked=None)
    prepared = prepare(imagined, bundle, imagined_options)
    return places_of_clusters(prepared.system, prepared.artifacts())


def _states_now(lines: dict[str, np.ndarray], found: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """The states of lines of an earlier run, if their files are still the same; UNKNOWN where they have to be tried."""
    if len(lines["states"]) != len(found):
        return np.full(len(found), UNKNOWN)
    states = np.array(lines["states"])
    states[(lines["stamps"] != stamps) | (states == State.UNREADABLE)] = UNKNOWN
    gone = found != State.GOOD
    states[gone] = found[gone]
    return states


def _keep(store: Store, name: str, key: str, made: Arrays) -> Arrays:
    partial = store.begin(name, key, {part: (array.shape, array.dtype) for part, array in made.items()})
    for part, array in made.items():
        partial.arrays[part][:] = array
    return partial.finish()


def _features_key(key: str, lines: dict[str, np.ndarray]) -> str:
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in lines.items()}
    return digest({"key": key, **hashes})
