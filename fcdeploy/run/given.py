"""Lists of neighbors that were made elsewhere, read into artifacts."""

from dataclasses import dataclass
from pathlib import Path

from fcdeploy.data.features import Features
from fcdeploy.errors import InputError, counted
from fcdeploy.graph.lists import ListsFile


@dataclass(frozen=True)
class GivenLists:
    """A file of lists.

    sort: whether they are sorted by similarity before they are cut to k. refill: whether neighbors are searched for
    faces whose lists hold too few faces of a run over some of the rows, instead of refusing the file.
    """

    path: Path
    sort: bool = False
    refill: bool = False


def open_lists(path: Path, features: Features, k: int = 1, advice: str = "make longer lists") -> ListsFile:
    """Open lists that were made elsewhere; raises InputError when they are of other faces or shorter than k.

    advice: what the error about short lists says to do, ``{k}`` being their length.
    """
    lists = ListsFile(path)
    if lists.n != features.given:
        raise InputError(
            f"{path}: holds lists of {counted(lists.n, 'face')}; {features.name} has {features.given:,}."
        )
    if lists.k < k:
        raise InputError(
            f"{path}: holds {counted(lists.k, 'neighbor')} per face, and {k} are needed; {advice.format(k=lists.k)}."
        )
    return lists
