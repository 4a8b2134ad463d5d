"""A worker: goes through the flow of its driver's run and computes the blocks that it is given."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fcdeploy import machine
from fcdeploy.data.features import Features, Source, stamp_of
from fcdeploy.data.leftovers import remove_leftovers, temporary_folder_in
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.engine.embedder import settings_from_table
from fcdeploy.errors import InputError, speaking_flags
from fcdeploy.graph.codes import CodeScale, codes_of_rows
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run import messages
from fcdeploy.run.follow import (
    LOOK_SECONDS,
    FollowedBlocks,
    FollowedStore,
    Follower,
    Line,
    OvertakenError,
    StoppedError,
    UnfitError,
    wait_for_folder,
)
from fcdeploy.run.messages import Ask
from fcdeploy.run.progress import Progress
from fcdeploy.run.ray_worker import Send
from fcdeploy.runtime.assign import Assigner
from fcdeploy.runtime.assign_workers import stage_of_assigning
from fcdeploy.runtime.embed import Job, no_engine, stage_of
from fcdeploy.runtime.embed_workers import fingerprint_of_embedder, told_files
from fcdeploy.runtime.pipeline import run_of
from fcdeploy.runtime.prepare import prepare
from fcdeploy.runtime.workers import fingerprint_of_bundle, options_from_plain

Told = Mapping[str, Any]  # what ``Workers`` tells of a run
TEMPORARY_NAME = ".fcdeploy-tmp-"


def work(description: str, name: str, threads: int, workers: int, send: Send) -> None:
    """Compute blocks until the driver says that it is over.

    description: see ``runtime.workers``; name: that no other worker has; threads: to use; workers: on this machine,
    which share its memory.
    """
    warnings.simplefilter("ignore")  # the driver tells the user
    own = json.loads(description)
    line = Line(send)
    with (
        contextlib.suppress(StoppedError),
        speaking_flags(),
        own_folder(own["scratch"], own["folder"]) as folder,
    ):
        place = Place(name, threads, own["memory"] or machine.memory() // 2 // max(1, workers), folder)
        load_kernels()
        reply = send(Ask(messages.HELLO, text=json.dumps(own_fingerprint(own))))
        if reply.kind == messages.STOP:
            return
        while True:
            line.begun, told = reply, json.loads(reply.text)
            try:
                with threads_limited(threads):
                    wait_for_folder(Path(told["folder"]), Path(told["told"]))
                    WAYS[told["kind"]](told, line, place)
                line.ask(messages.NEXT)
            except (InputError, UnfitError) as error:
                line.ask(messages.UNFIT, text=str(error))
            except OvertakenError as overtaken:
                if overtaken.reply.start == line.run:
                    time.sleep(LOOK_SECONDS)
                reply = overtaken.reply


@dataclass(frozen=True)
class Place:
    """A worker's part of its machine: threads, bytes of memory, and a folder of its own, beside copies for all."""

    name: str
    threads: int
    memory: int
    folder: "Folder"


@dataclass(frozen=True)
class Folder:
    """own: what this worker needs for a while; copies: of artifacts, for all workers of this machine, if at all."""

    own: Path
    copies: Path | None


@contextlib.contextmanager
def own_folder(scratch: str, run_folder: str) -> Iterator[Folder]:
    """Have a folder on this machine's own disk, which is deleted at the end, and one that the last worker deletes.

    scratch: where; without it there are no copies.
    """
    with contextlib.ExitStack() as stack:
        copies = None
        if scratch:
            Path(scratch).mkdir(parents=True, exist_ok=True)
            copies = stack.enter_context(copies_in(Path(scratch), run_folder))
        place = Path(scratch or tempfile.gettempdir())
        remove_leftovers(place)
        yield Folder(Path(stack.enter_context(temporary_folder_in(place))), copies)


@contextlib.contextmanager
def copies_in(scratch: Path, run_folder: str) -> Iterator[Path]:
    """Share a folder for copies with the other workers of a run on this machine; the last of them deletes it.

    It is named and locked as what ``remove_leftovers`` removes, should all be killed.
    """
    folder = scratch / f"{TEMPORARY_NAME}{hashlib.sha256(run_folder.encode()).hexdigest()[:8]}"
    while True:
        folder.mkdir(exist_ok=True)
        try:
            handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # deleted just now
        fcntl.flock(handle, fcntl.LOCK_SH)
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(handle), os.stat(folder)):
                break
        os.close(handle)  # deleted just now
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def load_kernels() -> None:
    """Have ready what every kernel needs, threads and a compiler, which takes a moment the first time."""
    codes_of_rows(np.zeros((1, 1), dtype=np.float32), CodeScale(1.0, 1))


def own_fingerprint(about: Mapping[str, str]) -> dict[str, str]:
    """Return what this process computes with, see ``fingerprint``; about: an engine or a model, and a device."""
    device = about["device"] or None
    if "engine" in about:
        return fingerprint_of_bundle(read_bundle(about["engine"]), device)
    return fingerprint_of_embedder(device)


def follow_clustering(told: Told, line: Line, place: Place) -> None:
    """Go through the flow of a clustering."""
    features = told_features(told, place)
    options = options_from_plain(told["options"], threads=place.threads, memory=place.memory)
    prepared = prepare(features, read_bundle(told["engine"]), options)
    store = FollowedStore(Path(told["folder"]), line, place.folder.own, place.folder.copies)
    run = run_of(prepared, store, Progress(), asked=options, final=False, keeps=True)
    run.stamp, run.unit_rows = stamp_of(features), None  # the driver has looked at all rows
    run.features_hash = told["features_hash"]
    run.blocks = FollowedBlocks(line, options.budget, place.name)
    run.follows = Follower(line, store, told["identity"])
    prepared.system.cluster(run)


def told_features(told: Told, place: Place) -> Features:
    """Open the features that ``Workers.about_features`` tells of."""
    source = told["features"]
    features = Source(**{**source, "paths": tuple(source["paths"])}).open(place.folder.own)
    return features.select(np.load(Path(told["told"]) / told["chosen"])) if told["chosen"] else features


def follow_assigning(told: Told, line: Line, place: Place) -> None:
    """Assign the faces that are given to the clusters of a run folder."""
    features = told_features(told, place)
    store = FollowedStore(Path(told["folder"]), line, place.folder.own)
    with Assigner(
        told["run_dir"],
        engine=told["engine"],
        threads=place.threads,
        memory=place.memory,
        device=told["device"],
    ) as assigner:
        stage = stage_of_assigning(features, assigner)
        partial = store.begin(stage.name, told["key"], stage.shapes)
        FollowedBlocks(line, place.memory, place.name).compute(stage, partial, no_engine, store, Progress())


def follow_embedding(told: Told, line: Line, place: Place) -> None:
    """Embed the lines of a list that are given."""
    files, found = told_files(Path(told["told"]), told["files"])
    settings = settings_from_table(told["settings"], told["model"])
    limits = {"batch": told["batch"], "max_pixels": told["max_pixels"], "vram": told["vram"]}
    job = Job(files, Path(told["model"]), settings, threads=place.threads, device=told["device"], **limits)
    store = FollowedStore(Path(told["folder"]), line, place.folder.own)
    with job.open() as embedder:
        stage = stage_of(job, embedder, found, told["name"])
        partial = store.begin(stage.name, told["key"], stage.shapes)
        FollowedBlocks(line, place.memory, place.name).compute(stage, partial, no_engine, store, Progress())


WAYS = {"cluster": follow_clustering, "embed": follow_embedding, "assign": follow_assigning}
