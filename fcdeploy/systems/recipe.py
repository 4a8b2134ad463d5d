"""What every system's recipe has and does, and how the lengths of weights are told."""

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

Widths = Mapping[str, Any]  # name of a length of the weights -> whole number, or a tuple of them; "dim" first
Weights = Mapping[str, Widths]  # network -> its widths
TensorShapes = Mapping[str, tuple[int, ...]]  # tensor name -> shape


class FeatureSettings(Protocol):
    """How every system reads features; normalize: divide every row by its 2-norm after reading."""

    @property
    def normalize(self) -> bool: ...


@runtime_checkable
class Tolerance(Protocol):
    """What an export may be off by: the largest error, absolute or over the outputs' scale, and decisions flipped."""

    @property
    def error(self) -> float: ...

    @property
    def flips(self) -> int: ...

    @property
    def relative(self) -> bool: ...


@dataclass(frozen=True)
class Tuning:
    """On what a recipe's thresholds were chosen, and what F they give: for people, nothing reads it.

    faces of known identity, of so many people; objective: whose F was to be high. pairwise_f, bcubed_f: on these very
    faces; expected: on other people, as many, and the range in which 19 of 20 such sets lie.
    """

    faces: int
    people: int = 0
    objective: str = "mean"
    pairwise_f: float | None = None
    expected_pairwise_f: float | None = None
    expected_pairwise_range: tuple[float, float] | None = None
    bcubed_f: float | None = None
    expected_bcubed_f: float | None = None
    expected_bcubed_range: tuple[float, float] | None = None


class Recipe(Protocol):
    """What every system's recipe has and does: a frozen dataclass of all that checkpoints do not say.

    tolerance: a ``Tolerance``, or what the system's own function ``tolerance`` makes one of for each network.
    tuned: what `fcdeploy tune` says of the thresholds, where it chose them.
    """

    __dataclass_fields__: ClassVar[dict[str, Field]]

    @property
    def system(self) -> str: ...

    @property
    def feature_dim(self) -> int: ...

    @property
    def features(self) -> FeatureSettings: ...

    @property
    def tolerance(self) -> object: ...

    @property
    def tuned(self) -> Tuning | None: ...

    @classmethod
    def for_weights(cls, weights: Weights) -> Self:
        """Return the published settings for weights of these widths."""

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""

    @property
    def for_run(self) -> Callable[..., tuple[Self, list[str]]]:
        """for_run(n, **options): the settings of a run over n faces, and a sentence for each that had to be changed.

        options: those that the system has; for a system of several networks the ``weights``, too.
        """


class Reranking(Protocol):
    """A recipe of a system that re-ranks neighbor lists."""

    def check_reranked(self, k: int, where: str) -> None:
        """Raise InputError, naming ``where``, when re-ranked lists of length ``k`` do not suit the settings."""
