"""What a user may choose for a run, whatever the system: search, threads, memory, device, where files go.

An option is defined here and nowhere else: the command line, the Python interface, checks and their pages are made
from ``Options``.
"""

import dataclasses
import numbers
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcdeploy import machine
from fcdeploy.errors import ARGUMENTS, VALUES, InputError

KNN_METHODS = ("auto", "exact", "ivf", "cells")
MERGE, AS_PUBLISHED = DUPLICATES = ("merge", "as-published")
WHOLE, REAL, TEXT, PATH, BYTES, HOPS, SETTINGS = "whole", "real", "text", "path", "bytes", "hops", "settings"
SWITCH = "switch"


@dataclass(frozen=True)
class Described:
    """An option for people: help, kind of its value, what it may be, what stands for it, and its default in words.

    of_system: whether it is a shorthand for settings that not every system has.
    """

    help: str
    kind: str
    choices: tuple[str, ...] = ()
    least: float | None = None
    most: float | None = None
    metavar: str = ""
    usual: str = ""
    of_system: bool = False


def option(default: Any, help: str, kind: str, **more: Any) -> Any:  # as dataclasses.field, which it is
    """Return a field of ``Options`` with its description."""
    described = Described(help, kind, **more)
    if kind == SETTINGS:
        return field(default_factory=dict, metadata={"option": described})
    return field(default=default, metadata={"option": described})


@dataclass(frozen=True)
class Options:
    """What a user may choose for a run; None means what the bundle's recipe says."""

    knn: str = option(
        "auto",
        "How neighbors are found, or a file of neighbor lists.",
        TEXT,
        metavar="auto|exact|ivf|cells|FILE",
    )
    recall: float | None = option(
        None,
        "Share of the true neighbors that a search in cells has to find, as in 0.99.",
        REAL,
        least=0,
        most=1,
        usual="0.98",
    )
    reranked: Path | None = option(  # noqa: RUF009 - it is a field
        None, "File of re-ranked lists made elsewhere (.npy, .npz).", PATH, of_system=True
    )
    settings: Mapping[str, object] = option(
        {},
        "Another value for a key of the recipe, as in links.tau=0.8; may be repeated. `fcdeploy inspect` lists the "
        "keys of an engine.",
        SETTINGS,
        metavar="KEY=VALUE",
    )
    k: int | None = option(
        None, "Number of nearest neighbors per face.", WHOLE, least=1, usual="the recipe's"
    )
    hops: tuple[int, int] | None = option(
        None,
        "Neighbors per face in the first and second hop, as in 80,10.",
        HOPS,
        usual="the recipe's",
        of_system=True,
    )
    tau: float | None = option(
        None,
        "Similarity a link needs; with density peaks, the distance it stays below.",
        REAL,
        least=-1,
        most=1,
        usual="the recipe's",
        of_system=True,
    )
    link: str | None = option(
        None,
        "How NSR-FC makes clusters.",
        TEXT,
        choices=("density-peaks", "pairs"),
        usual="pairs when the engine has both pair networks",
        of_system=True,
    )
    duplicates: str = option(
        MERGE,
        "Copies of a face: equal rows, and near-copies that fill neighbor lists, count once and get one label; or all "
        "rows are computed on as they are.",
        TEXT,
        choices=DUPLICATES,
    )
    min_probability: float | None = option(
        None,
        "Probability a link needs, where the network decides on links.",
        REAL,
        least=0,
        most=1,
        usual="that it is accepted",
        of_system=True,
    )
    uncovered: str | None = option(
        None,
        "Unassigned faces: a cluster of their own (singleton) or label -1 (drop).",
        TEXT,
        choices=("singleton", "drop"),
        usual="singleton",
        of_system=True,
    )
    inference: str = option(
        "auto",
        "As published, or each layer once per face; auto is exact up to 20,000 faces.",
        TEXT,
        choices=("auto", "exact", "layerwise"),
    )
    tables: str = option(
        "float32",
        "Dtype of activations stored between layers in layer-wise inference; float16 is rounded.",
        TEXT,
        choices=("float32", "float16"),
    )
    threads: int = option(0, "Threads to use.", WHOLE, least=0, usual="all cores it may use")
    batch: int | None = option(None, "Neighborhoods per engine call.", WHOLE, least=1, usual="by size")
    memory: int = option(
        0,
        "Memory budget, e.g. 4G.",
        BYTES,
        least=0,
        metavar="SIZE",
        usual="half of the memory that the process may use",
    )
    device: str | None = option(
        None, "Where the engine runs.", TEXT, choices=("cpu", "cuda"), usual="cpu, or cuda for TensorRT plans"
    )
    vram: int = option(
        0,
        "Device memory budget, e.g. 8G, shared by all that is open.",
        BYTES,
        least=0,
        metavar="SIZE",
        usual="all",
    )
    scratch: Path | None = option(  # noqa: RUF009
        None,
        "Folder for what does not fit into memory, deleted at the end; workers on other machines keep their copies of "
        "artifacts there.",
        PATH,
        metavar="DIR",
        usual="beside the output",
    )
    ray: str | None = option(
        None,
        "Let workers on a Ray cluster compute: the one that runs here, one by its address, or N workers on this "
        "machine. Needs --run-dir, in a folder that all machines see.",
        TEXT,
        metavar="auto|HOST:PORT|local:N",
    )
    ray_cpus: float | None = option(
        None, "CPUs per worker.", REAL, least=0.01, usual="all of a machine's, for one worker"
    )
    ray_gpus: float = option(0.0, "GPUs per worker, as in 1 or 0.5.", REAL, least=0)
    strict: bool = option(
        False, "Refuse workers whose versions, processor or execution provider differ.", SWITCH
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
        if described.kind == HOPS and [type(hop) for hop in value] != [int, int]:
            raise InputError(f"{flag} {value}: should be two whole numbers, as in 80,10.")
        least, most = described.least, described.most
        if least is not None and value < least and most is None:
            raise InputError(f"{flag} {value}: should be {least:g} or more.")
        if least is not None and most is not None and not least <= value <= most:
            raise InputError(f"{flag} {value}: should lie in {least:g} to {most:g}.")
