"""Embedding that is shared out to workers elsewhere: what they are told of a list of images."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from fcdeploy.data.archives import filelist_from_archives
from fcdeploy.data.filelist import Filelist
from fcdeploy.engine.embedder import Embedder, EmbedderSettings
from fcdeploy.engine.onnxruntime import PROVIDERS
from fcdeploy.errors import FcdeployError
from fcdeploy.run.fingerprint import fingerprint
from fcdeploy.run.folder import FolderPartial, RunFolder
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import libraries as all_libraries
from fcdeploy.run.store import Partial
from fcdeploy.runtime.embed import Job, ShareOut, libraries, no_engine, stage_of
from fcdeploy.runtime.pipeline import tell
from fcdeploy.runtime.workers import workers_for

TEXT, STARTS, ENDS, FOUND = "text.npy", "starts.npy", "ends.npy", "found.npy"


@contextlib.contextmanager
def embedding_workers(folder: RunFolder, options: Options) -> Iterator[ShareOut | None]:
    """Have workers that embed, while the block works; None where ``options`` ask for none.

    Of the options those of the cluster, threads, memory, device and scratch are read.
    """
    if options.ray is None:
        yield None
        return
    device = options.device or "cpu"
    with workers_for(folder, options, {"device": device}, fingerprint_of_embedder(device), tell) as workers:

        def share_out(
            job: Job, embedder: Embedder, found: np.ndarray, partial: Partial, progress: Progress
        ) -> None:
            assert isinstance(partial, FolderPartial), "shared out over a run folder only"
            stage = stage_of(job, embedder, found, partial.name)
            workers.blocks.begin(
                {
                    "kind": "embed",
                    "folder": str(folder.path.absolute()),
                    "told": str(workers.folder),
                    "name": stage.name,
                    "key": partial.key,
                    "files": tell_files(workers.folder, job.files, found),
                    "model": str(job.model.absolute()),
                    "settings": settings_table(job.settings),
                    "batch": job.batch,
                    "max_pixels": job.max_pixels,
                    "vram": job.vram,
                    "device": job.device,
                }
            )
            workers.blocks.compute(stage, partial, no_engine, folder, progress)

        yield share_out


def fingerprint_of_embedder(device: str | None) -> dict[str, str]:
    """Return what this process embeds with, see ``fingerprint``."""
    return fingerprint({**all_libraries(), **libraries()}, PROVIDERS[device or "cpu"])


def settings_table(settings: EmbedderSettings) -> dict[str, object]:
    """Return the settings that are set as plain values, as ``settings_from_table`` takes them."""
    table = {name: value for name, value in dataclasses.asdict(settings).items() if value is not None}
    if settings.inputs is not None:
        table["inputs"] = dict(settings.inputs)
    return table


class ToldFiles(TypedDict):
    """What else workers need to know of a list, plain values; folder, found_as: where it is no list of archives."""

    name: str
    digest: str
    archives: NotRequired[list[str]]
    folder: NotRequired[str]
    found_as: NotRequired[dict[str, str]]


def tell_files(folder: Path, files: Filelist, found: np.ndarray) -> ToldFiles:
    """Write a list where workers read it."""
    np.save(folder / FOUND, found)
    about: ToldFiles = {"name": files.name, "digest": files.digest()}
    if files.members is not None:
        return {**about, "archives": [str(path.absolute()) for path in files.members.archives]}
    np.save(folder / TEXT, np.frombuffer(files.text, np.uint8))
    np.save(folder / STARTS, files.starts)
    np.save(folder / ENDS, files.ends)
    other = {str(at): os.fsdecode(path) for at, path in files.found_as.items()}
    return {**about, "folder": os.fsdecode(os.path.abspath(files.folder)), "found_as": other}


def told_files(folder: Path, about: ToldFiles) -> tuple[Filelist, np.ndarray]:
    """Return a list that ``tell_files`` was given, and the states of its lines when they were looked up."""
    found = np.load(folder / FOUND)
    if "archives" in about:
        files = filelist_from_archives([Path(path) for path in about["archives"]], about["name"])
        if files.digest() != about["digest"]:
            raise FcdeployError(f"{about['name']}: the archives hold other images here.")
        return files, found
    text = np.load(folder / TEXT).tobytes()
    names = {int(at): os.fsencode(path) for at, path in about["found_as"].items()}
    starts, ends = np.load(folder / STARTS), np.load(folder / ENDS)
    return Filelist(os.fsencode(about["folder"]), text, starts, ends, about["name"], found_as=names), found
