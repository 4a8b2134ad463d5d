"""How much disk a run takes at most at one time, and a note where there is not as much."""

import shutil
import warnings
from collections.abc import Collection, Sequence

from fcdeploy.errors import FcdeployWarning, spoken
from fcdeploy.graph.search import INDEX_SHARE, Search, search_named
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import Options
from fcdeploy.run.store import expected_bytes

SEARCHED = {"knn": "vectors", "refined_knn": "refined"}  # lists, and the rows among which they are searched


def search_of(options: Options, n: int) -> Search:
    """Return how neighbors among n faces are found, where no file has those of the features."""
    return search_named("auto" if options.knn_file else options.knn, n)


def index_bytes(artifacts: Sequence[Artifact], options: Options, n: int) -> dict[str, int]:
    """Return what the index of each search takes, by the name of its lists.

    IVF holds halves of the vectors, cells their codes twice.
    """
    if not search_of(options, n).in_cells:
        return {}
    sizes = {one.name: expected_bytes(one.shapes) for one in artifacts if one.name in SEARCHED.values()}
    names = {artifact.name for artifact in artifacts}
    return {name: sizes[of] // 2 for name, of in SEARCHED.items() if name in names and of in sizes}


def most_at_once(
    artifacts: Sequence[Artifact], options: Options, n: int, finished: Collection[str] = ()
) -> int:
    """Return the most bytes that the files of a run over n faces take at any time.

    artifacts: those of a survey, in their order; what depends on the data is not among them. finished: names of those
    that are there already. An index is in a file where it is larger than its share of the memory budget.
    """
    indexes = {
        name: size
        for name, size in index_bytes(artifacts, options, n).items()
        if size > options.budget // INDEX_SHARE
    }
    sizes = {artifact.name: expected_bytes(artifact.shapes, artifact.about) for artifact in artifacts}
    held = {name: size for name, size in sizes.items() if name in finished}
    most = sum(held.values())

    def compute(artifact: Artifact) -> None:
        nonlocal most
        if artifact.name in held:
            return
        for needed in (*artifact.made_from, *artifact.through):
            compute(needed)
        held[artifact.name] = sizes[artifact.name]
        most = max(most, sum(held.values()) + indexes.get(artifact.name, 0))
        for gone in artifact.through:
            held.pop(gone.name, None)

    for artifact in artifacts:
        if not artifact.scratch:  # others when they are needed
            compute(artifact)
    return most


def note_too_little(folder: RunFolder, needed: int) -> None:
    """Warn where the files of a run, ``needed`` bytes, do not fit into what is free and what is in the folder now."""
    there = sum(path.lstat().st_blocks * 512 for path in folder.path.rglob("*") if path.is_file())
    room = shutil.disk_usage(folder.path).free + there
    if needed > room:
        warnings.warn(
            spoken(
                f"{folder.path}: the run takes up to {_shown(needed)} there, and {_shown(room)} are free for it; make "
                "room, or choose another --run-dir or --scratch. With --run-dir, a run that finds the disk full can be "
                "continued."
            ),
            FcdeployWarning,
            stacklevel=4,
        )


def _shown(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
