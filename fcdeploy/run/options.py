"""The options of a run, whatever the system: neighbor search, threads, memory, device, where files go.

An option is defined here and nowhere else: the command line, the Python interface, checks and their pages are made
from ``Options``.
"""

import copy
import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, TypeVar, Unpack

from fcdeploy import machine
from fcdeploy.errors import ARGUMENTS, VALUES, InputError

KNN_METHODS = ("auto", "exact", "ivf", "cells")
MERGE, AS_PUBLISHED = DUPLICATES = ("merge", "as-published")
WHOLE, REAL, TEXT, PATH, BYTES, HOPS, SETTINGS = "whole", "real", "text", "path", "bytes", "hops", "settings"
SWITCH = "switch"
ENGINE, NEIGHBORS, CLUSTERS = "Engine", "Neighbors", "Links and clusters"
MACHINE, WORKERS = "Machine", "Many machines"
SECTIONS = (ENGINE, NEIGHBORS, CLUSTERS, MACHINE, WORKERS)  # of the help, in this order
Value = TypeVar("Value")


@dataclass(frozen=True)
class Described:
    """How an option is shown: section of the help, help, kind and range of its value, and its default in words.

    of_system: whether it is a shorthand for settings that not every system has.
    """

    section: str
    help: str
    kind: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    metavar: str = ""
    usual: str = ""
    of_system: bool = False


class Details(TypedDict, total=False):
    """What else is said of an option, see ``Described``."""

    choices: tuple[str, ...]
    least: float
    most: float
    metavar: str
    usual: str
    of_system: bool


def option(section: str, default: Value, help: str, kind: str, **more: Unpack[Details]) -> Value:
    """Return a field of ``Options`` with its description; typed as ``dataclasses.field``, which it is."""
    metadata = {"option": Described(section, help, kind, **more)}
    if kind == SETTINGS:
        return field(default_factory=lambda: copy.copy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """The options of a run; None stands for the value in the bundle's recipe."""

    knn: str = option(
        NEIGHBORS,
        "auto",
        "Neighbor search, or a file of neighbor lists to use instead. auto compares all pairs up to 50,000 faces and "
        "searches in cells beyond; ivf is an index of faiss.",
        TEXT,
        metavar="auto|exact|ivf|cells|FILE",
    )
    recall: float | None = option(
        NEIGHBORS,
        None,
        "Target recall of a search in cells, e.g. 0.99.",
        REAL,
        least=0,
        most=1,
        usual="0.98",
    )
    reranked: Path | None = option(  # noqa: RUF009 - it is a field
        NEIGHBORS,
        None,
        "File of re-ranked neighbor lists (.npy, .npz) to use instead of re-ranking.",
        PATH,
        of_system=True,
    )
    settings: Mapping[str, object] = option(
        ENGINE,
        {},
        "Override a key of the recipe, e.g. links.tau=0.8; may be repeated. `fcdeploy inspect` lists the keys of an "
        "engine.",
        SETTINGS,
        metavar="KEY=VALUE",
    )
    k: int | None = option(
        NEIGHBORS, None, "Number of nearest neighbors per face.", WHOLE, least=1, usual="the recipe's"
    )
    hops: tuple[int, int] | None = option(
        NEIGHBORS,
        None,
        "Neighbors per face in the first and second hop, e.g. 80,10.",
        HOPS,
        usual="the recipe's",
        of_system=True,
    )
    tau: float | None = option(
        CLUSTERS,
        None,
        "Minimum similarity of a link (for density peaks, its maximum distance).",
        REAL,
        least=-1,
        most=1,
        usual="the recipe's",
        of_system=True,
    )
    link: str | None = option(
        CLUSTERS,
        None,
        "NSR-FC only: cluster by density peaks, or by its pair networks.",
        TEXT,
        choices=("density-peaks", "pairs"),
        usual="pairs if the engine has both pair networks",
        of_system=True,
    )
    duplicates: str = option(
        CLUSTERS,
        MERGE,
        "Copies of a face (equal rows, and near-copies that would fill neighbor lists): count them once and give them "
        "one label (merge), or treat every row as a face of its own (as-published).",
        TEXT,
        choices=DUPLICATES,
    )
    min_probability: float | None = option(
        CLUSTERS,
        None,
        "Minimum probability of a link, for systems whose network classifies links.",
        REAL,
        least=0,
        most=1,
        usual="the recipe's",
        of_system=True,
    )
    uncovered: str | None = option(
        CLUSTERS,
        None,
        "Unassigned faces: a cluster of their own (singleton) or label -1 (drop).",
        TEXT,
        choices=("singleton", "drop"),
        usual="singleton",
        of_system=True,
    )
    inference: str = option(
        ENGINE,
        "auto",
        "Evaluate the network on the neighborhood of each face, as published (exact), or layer by layer, once per face "
        "(layerwise, much faster). auto is exact up to 20,000 faces.",
        TEXT,
        choices=("auto", "exact", "layerwise"),
    )
    tables: str = option(
        ENGINE,
        "float32",
        "Dtype of activations stored between layers in layer-wise inference; float16 rounds them and takes half the "
        "space.",
        TEXT,
        choices=("float32", "float16"),
    )
    threads: int = option(MACHINE, 0, "Number of threads.", WHOLE, least=0, usual="all available cores")
    batch: int | None = option(
        ENGINE, None, "Neighborhoods per engine call.", WHOLE, least=1, usual="chosen by size"
    )
    memory: int = option(
        MACHINE,
        0,
        "Memory budget, e.g. 4G.",
        BYTES,
        least=0,
        metavar="SIZE",
        usual="half of the available memory",
    )
    device: str | None = option(
        MACHINE,
        None,
        "Device to run the engine on.",
        TEXT,
        choices=("cpu", "cuda"),
        usual="cuda for TensorRT plans, else cpu",
    )
    vram: int = option(
        MACHINE,
        0,
        "GPU memory budget of the whole run, e.g. 8G.",
        BYTES,
        least=0,
        metavar="SIZE",
        usual="all of it",
    )
    scratch: Path | None = option(  # noqa: RUF009
        MACHINE,
        None,
        "Folder for temporary files larger than memory, deleted at the end; on other machines of --ray, also for "
        "copies of artifacts.",
        PATH,
        metavar="DIR",
        usual="beside the output",
    )
    ray: str | None = option(
        WORKERS,
        None,
        "Compute on a Ray cluster: the one that runs here (auto), the one at an address, or N workers on this machine. "
        "Needs --run-dir, in a folder that all machines see.",
        TEXT,
        metavar="auto|HOST:PORT|local:N",
    )
    ray_cpus: float | None = option(
        WORKERS,
        None,
        "CPUs per worker.",
        REAL,
        least=0.01,
        usual="all of a machine's, for one worker per machine",
    )
    ray_gpus: float = option(WORKERS, 0.0, "GPUs per worker, e.g. 1 or 0.5.", REAL, least=0)
    strict: bool = option(
        WORKERS,
        False,
        "Refuse workers whose versions, processor or execution provider differ from this machine's.",
        SWITCH,
    )

    @property
    def lists(self) -> dict[str, Path]:
        """Files of lists that were given, by the options that name them."""
        given = {"--knn": self.knn_file, "--reranked": self.reranked}
        return {name: path for name, path in given.items() if path is not None}

    @property
    def knn_file(self) -> Path | None:
        """The file of neighbor lists to use instead of searching, if one was given."""
        return None if self.knn in KNN_METHODS else Path(self.knn)

    @property
    def cores(self) -> int:
        """The threads to use: no more than there are cores for this process."""
        return machine.threads_for(self.threads)

    @property
    def budget(self) -> int:
        """The memory budget in bytes."""
        return self.memory or machine.memory() // 2


def options_from_values(values: Mapping[str, object]) -> Options:
    """Return options of these values by name, as a command line has them; ``check_values`` has yet to see them."""
    make: Callable[..., Options] = Options
    return make(**values)


DESCRIBED: Mapping[str, Described] = {one.name: one.metadata["option"] for one in dataclasses.fields(Options)}
FLAGS: Mapping[str, str] = {  # as the command line spells them
    name: "set" if described.kind == SETTINGS else name.replace("_", "-")
    for name, described in DESCRIBED.items()
}
ARGUMENTS.update({flag: name for name, flag in FLAGS.items()})
VALUES.update(choice for described in DESCRIBED.values() for choice in described.choices)
VALUES.update(KNN_METHODS)


def check_values(options: Options) -> None:
    """Raise InputError when an option has an impossible value."""
    for name, described in DESCRIBED.items():
        value, flag = getattr(options, name), f"--{FLAGS[name]}"
        if value is None:
            continue
        if described.choices and value not in described.choices:
            *others, last = map(repr, described.choices)
            words = ("neither", "nor") if len(others) == 1 else ("none of", "and")
            raise InputError(f"{flag} {value}: is {words[0]} {', '.join(others)} {words[1]} {last}.")
        if described.kind in (WHOLE, BYTES) and not isinstance(value, numbers.Integral):
            raise InputError(f"{flag} {value}: should be a whole number.")
        if described.kind == REAL and not (isinstance(value, numbers.Real) and math.isfinite(value)):
            raise InputError(f"{flag} {value}: should be a number.")
        if described.kind == HOPS and [type(hop) for hop in value] != [int, int]:
            raise InputError(f"{flag} {value}: should be two whole numbers, e.g. 80,10.")
        least, most = described.least, described.most
        if least is not None and value < least and most is None:
            raise InputError(f"{flag} {value}: should be {least:g} or more.")
        if least is not None and most is not None and not least <= value <= most:
            raise InputError(f"{flag} {value}: should lie in {least:g} to {most:g}.")
