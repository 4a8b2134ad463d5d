"""What suits the training of a system by default: its networks' habits, and what its settings follow from.

Constants of habits are those of trainings that gave good clusters of other people (benchmarks/notes/quality.md),
written as rules so that faces of another kind get other settings.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Labelled:
    """What the labelled faces are like.

    faces, people: how many; sizes: (people,) int64, faces of each, ascending. same: the median similarity of two faces
    of one person; boundary: the similarity that best tells neighbors of the same person from others.
    """

    faces: int
    people: int
    sizes: np.ndarray
    same: float
    boundary: float

    @property
    def typical(self) -> float:
        """The median number of faces of a person."""
        return float(np.median(self.sizes))


@dataclass(frozen=True)
class Figures:
    """What the settings of a training follow from.

    k: neighbors per face that suit the faces to be clustered, the face itself counted; look_alikes: how many others
    look like a face there (median); faces: how many there are. labelled: what is trained on.
    """

    k: int
    look_alikes: float
    faces: int
    labelled: Labelled


@dataclass(frozen=True)
class Habit:
    """What has suited a network: steps per labelled person, items per step, learning rate.

    share: of the time of its system, where that has several networks; mixed: half-precision products on a CPU that has
    them; settings: the network's own; adapted(figures): those of them that follow from the faces. by_name: trained
    only when it is asked for, as the system clusters as well without it.
    """

    steps: float
    batch: int
    lr: float
    mixed: bool = False
    share: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)
    adapted: Callable[[Figures], Mapping[str, str]] = lambda figures: {}
    by_name: bool = False


@dataclass(frozen=True)
class Reason:
    """A setting, and what it was chosen by."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class SuitedRecipe:
    """A recipe's settings by their places, as in "links.k", and why they are what they are."""

    values: Mapping[str, object]
    reasons: Sequence[Reason]


def reason_of_k(figures: Figures) -> Reason:
    """Say why lists are as long as they are."""
    return Reason("k", str(figures.k), f"a face has {figures.look_alikes:.0f} look-alikes (median)")


def reason_of_hops(values: Mapping[str, object]) -> Reason:
    """Say what the hops of a recipe are made of."""
    return Reason("hops", str(values["neighborhood.hops"]), "k neighbors, and some of each")


def same_person_from(labelled: Labelled) -> str:
    """Say from which similarity on neighbors are the same person."""
    return f"neighbors are the same person from a similarity of {labelled.boundary:g} on"
