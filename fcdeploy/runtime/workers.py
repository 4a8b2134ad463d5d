"""A run that is shared out to workers elsewhere: what they are told of it, and where they come from."""

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TypedDict

import numpy as np

from fcdeploy.data.features import Features, Source
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.onnxruntime import PROVIDERS, import_onnxruntime
from fcdeploy.errors import InputError
from fcdeploy.run.fingerprint import differences, fingerprint
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import DESCRIBED, HOPS, PATH, Options, options_from_values
from fcdeploy.run.run import Run, libraries
from fcdeploy.run.shared_blocks import SharedBlocks

TARGET = "fcdeploy.runtime.worker:work"
WORKERS = "workers"  # the folder in a run folder of what they are told
LOCAL = ("ray", "ray_cpus", "ray_gpus", "strict", "threads", "memory")  # options that are not the workers'
FROM_PLAIN: Mapping[str, Callable[..., object]] = {PATH: Path, HOPS: tuple}  # what JSON has no values for
WRITE_ROWS = 16384


def check_shared(options: Options, run_dir: Path | str | None) -> None:
    """Raise InputError when workers are asked for and there is no folder that they can see."""
    if options.ray is not None and run_dir is None:
        raise InputError(
            f"--ray {options.ray}: workers need a shared folder; give --run-dir DIR, on a file system that every "
            "machine mounts at the same path."
        )
    if options.ray is not None:
        from fcdeploy.run.ray_crew import check_address, import_ray

        check_address(options.ray)
        import_ray()


class Workers:
    """Workers elsewhere, for the runs of one command.

    blocks: who computes the blocks of stages, see ``Blocks``; folder: where they find what is too long to be said.
    """

    def __init__(self, blocks: SharedBlocks, folder: RunFolder) -> None:
        self.blocks, self.run_folder = blocks, folder
        place = folder.scratch_file(WORKERS)
        assert place is not None
        self.folder = place.absolute() / secrets.token_hex(8)  # by which workers know that it is ours
        self.folder.mkdir(parents=True)
        self._told = 0
        self._source: Source | None = None

    def share(self, run: Run, engine: Path) -> None:
        """Let workers compute the blocks of a run, and of none before it."""
        self.blocks.begin(
            {
                "kind": "cluster",
                "folder": str(self.run_folder.path.absolute()),
                "told": str(self.folder),
                **self.about_features(run.features),
                "features_hash": run.features_hash,
                "engine": str(engine.absolute()),
                "options": plain_options(run.asked),
                "identity": run.identity,
            }
        )
        run.blocks = self.blocks

    def about_features(self, features: Features) -> dict[str, object]:
        """Return how workers open features, plain values; what is in memory only is written for them."""
        self._told += 1
        if self._source is None:
            self._source = features.source or self._written(features)
        chosen = ""
        if features.chosen is not None:
            chosen = f"chosen-{self._told}.npy"
            np.save(self.folder / chosen, features.chosen)
        return {"features": dataclasses.asdict(self._source), "chosen": chosen}

    def _written(self, features: Features) -> Source:
        """Write features that are nowhere else than in memory, as they are, for workers to read."""
        path = self.folder / "features.bin"
        with open(path, "wb") as file:
            for start in range(0, features.given, WRITE_ROWS):
                rows = np.array(features.array[start : start + WRITE_ROWS], dtype="<f4", order="C")
                file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        return Source((str(path),), features.dim, sure=True)


@contextlib.contextmanager
def workers_for(
    folder: RunFolder,
    options: Options,
    about: Mapping[str, str],
    own: Mapping[str, str],
    note: Callable[[str], None],
) -> Iterator[Workers]:
    """Have workers on the cluster that ``options.ray`` names, while the block works.

    about: what their fingerprints are of, see ``runtime.worker``; own: the driver's; note: tells the user a sentence.
    """
    from fcdeploy.run.ray_crew import RayCrew, connected

    scratch = str(options.scratch.absolute()) if options.scratch else ""
    known = {**about, "memory": options.memory, "scratch": scratch, "folder": str(folder.path.absolute())}
    with connected(options) as ray:
        crew = RayCrew(ray, options, TARGET, json.dumps(known))
        blocks = SharedBlocks(crew, folder, options, own, note)
        try:
            yield Workers(blocks, folder)
        finally:
            blocks.close()


class Compared(TypedDict):
    """A machine of a cluster: what is different in words, and why it could not be asked, if so."""

    host: str
    different: list[str]
    failed: str


def compare_machines(address: str) -> list[Compared]:
    """Compare what the machines of a cluster compute with to what this process does."""
    from fcdeploy.run.ray_crew import connected, probe_machines

    own = json.loads(fingerprint_here(""))
    found: list[Compared] = []
    with connected(Options(ray=address)) as ray:
        for host, answer, reason in probe_machines(ray, f"{__name__}:fingerprint_here", ""):
            different = differences(own, json.loads(answer)) if answer else []
            found.append({"host": host, "different": different, "failed": reason})
    return found


def fingerprint_here(_: str) -> str:
    """Return what this process computes with when the engine runs on the CPU, as JSON; see ``fingerprint``."""
    known = {**libraries(), "onnxruntime": str(import_onnxruntime().__version__)}
    return json.dumps(fingerprint(known, PROVIDERS["cpu"]))


def fingerprint_of_bundle(bundle: Bundle, device: str | None) -> dict[str, str]:
    """Return what this process would evaluate a bundle with, see ``fingerprint``."""
    return fingerprint({**libraries(), **bundle.runtime}, bundle.provider(device))


def plain_options(options: Options) -> dict[str, object]:
    """Return the options that decide what a run computes, as plain values with whole paths."""
    plain: dict[str, object] = {}
    for name, described in DESCRIBED.items():
        value = getattr(options, name)
        if name in LOCAL or value is None:
            continue
        plain[name] = str(value.absolute()) if described.kind == PATH else value
    if options.knn_file is not None:
        plain["knn"] = str(options.knn_file.absolute())
    plain["settings"] = dict(options.settings)
    return plain


def options_from_plain(plain: Mapping[str, object], **own: object) -> Options:
    """Return the options that ``plain_options`` was given; own: those of this process."""
    values = {
        name: FROM_PLAIN.get(DESCRIBED[name].kind, lambda value: value)(value)
        for name, value in plain.items()
    }
    return options_from_values({**values, **own})
