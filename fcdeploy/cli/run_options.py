"""Options of a run, which `cluster` and `plan` take alike: one for each field of ``runtime.pipeline.Options``."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fcdeploy.cli.types import Bytes, Hops, PathType

Command = TypeVar("Command", bound=Callable[..., Any])

RUN_OPTIONS: dict[str, Callable[[Any], Any]] = {
    "knn": click.option(
        "--knn",
        default="auto",
        show_default=True,
        metavar="auto|exact|ivf|FILE",
        help="How neighbors are found.",
    ),
    "reranked": click.option(
        "--reranked", type=PathType, help="Re-ranked lists made elsewhere (.npy, .npz)."
    ),
    "k": click.option(
        "--k", type=click.IntRange(min=1), help="Neighbors a face, in every place.  [default: the recipe's]"
    ),
    "hops": click.option(
        "--hops", type=Hops(), help="Neighbors a face and of each neighbor.  [default: the recipe's]"
    ),
    "tau": click.option(
        "--tau",
        type=click.FloatRange(-1, 1),
        help="Similarity a link needs; with density peaks, the distance it stays below.  [default: the recipe's]",
    ),
    "link": click.option(
        "--link",
        type=click.Choice(["density-peaks", "pairs"]),
        help="How NSR-FC makes clusters.  [default: pairs when the engine has both pair networks]",
    ),
    "duplicates": click.option(
        "--duplicates",
        type=click.Choice(["merge", "as-published"]),
        default="merge",
        show_default=True,
        help="Copies of a face: equal rows, and near-copies that fill neighbor lists, count once and get one label; or "
        "all rows are computed on as they are.",
    ),
    "min_probability": click.option(
        "--min-probability",
        type=click.FloatRange(0, 1),
        help="Probability a link needs, where the network decides on links.  [default: that it is accepted]",
    ),
    "uncovered": click.option(
        "--uncovered",
        type=click.Choice(["singleton", "drop"]),
        help="What faces without a cluster become: clusters of one, or -1 and no line.  [default: singleton]",
    ),
    "inference": click.option(
        "--inference",
        type=click.Choice(["auto", "exact", "layerwise"]),
        default="auto",
        show_default=True,
        help="As published, or each layer once a face; auto is exact up to 20,000 faces.",
    ),
    "tables": click.option(
        "--tables",
        type=click.Choice(["float32", "float16"]),
        default="float32",
        show_default=True,
        help="What layer-wise inference keeps between its layers; float16 is rounded.",
    ),
    "threads": click.option(
        "--threads",
        type=click.IntRange(min=0),
        default=0,
        help="Threads to use.  [default: all cores it may use]",
    ),
    "batch": click.option(
        "--batch", type=click.IntRange(min=1), help="Neighborhoods an engine call.  [default: by size]"
    ),
    "memory": click.option(
        "--memory",
        type=Bytes(),
        default=0,
        metavar="SIZE",
        help="Memory budget, e.g. 4G.  [default: half of the memory that the process may use]",
    ),
    "device": click.option(
        "--device",
        type=click.Choice(["cpu", "cuda"]),
        help="Where the engine runs.  [default: cpu, or cuda for TensorRT plans]",
    ),
    "vram": click.option(
        "--vram",
        type=Bytes(),
        default=0,
        metavar="SIZE",
        help="Device memory budget, e.g. 8G, shared by all that is open.  [default: all]",
    ),
    "scratch": click.option(
        "--scratch",
        type=PathType,
        metavar="DIR",
        help="Folder for what does not fit into memory, deleted at the end.  [default: beside the output]",
    ),
}


def run_options(command: Command) -> Command:
    """Give a command all options of a run, in this order; it takes them as ``**options`` for ``Options``."""
    for option in reversed(RUN_OPTIONS.values()):
        command = option(command)
    return command
