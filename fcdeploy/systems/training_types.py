"""What training and tuning ask of a system: its tasks, the published schedules, and the settings to choose."""

from collections.abc import Callable
from dataclasses import Field, dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Protocol, TypeVar

import numpy as np

from fcdeploy.systems.habits import Habit
from fcdeploy.systems.recipe import Recipe, Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

Net = TypeVar("Net", bound="nn.Module")
R = TypeVar("R", bound=Recipe)
Value = bool | int | float | str | tuple[float, ...]  # of a setting


@dataclass(frozen=True)
class Tunable:
    """A setting of links or clusters that is chosen on labelled faces rather than published.

    key: its place in the recipe, as in "links.tau"; values: what is tried; between: whether values between these make
    sense, too, and are tried near the best one.
    """

    key: str
    values: tuple[Value, ...]
    between: bool = False


def thresholds(first: float, last: float, step: float = 0.02) -> tuple[float, ...]:
    """Return evenly spaced values from ``first`` to ``last``, rounded so that they read well."""
    return tuple(round(first + at * step, 6) for at in range(round((last - first) / step) + 1))


def probabilities(first: float, last: float, step: float) -> tuple[float, ...]:
    """Return thresholds for a probability: evenly spaced ones, and some close to 1, where a sure network has most."""
    sure = (0.99, 0.999, 0.9999, 0.99999)
    return tuple(sorted({*thresholds(first, last, step), *sure}))


@dataclass(frozen=True)
class Schedule:
    """How a network was trained by those who published it.

    epochs over the items of its task, batch items per step, lr divided by ten at each of ``drops`` (shares of all
    steps); optimizer: "sgd" or "adam".
    """

    epochs: int
    batch: int
    lr: float
    drops: tuple[float, ...] = ()
    optimizer: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Task(Generic[Net]):
    """What a network is trained on: ``size`` items of training faces, and what is lost on some of them.

    batch(items, rng): the arrays of ``items`` (b,), by name; whatever is drawn comes from ``rng``. loss(net, batch):
    the loss of these arrays as tensors, and what the network said of them, one number each, flat: where all of these
    are equal, it has collapsed. start(net) sets the weights of a new network, on the CPU, to better than random ones.
    """

    size: int
    batch: Callable[[np.ndarray, np.random.Generator], dict[str, np.ndarray]]
    loss: Callable[[Net, dict[str, "Tensor"]], tuple["Tensor", "Tensor"]]
    start: Callable[[Net], None] | None = None


class TrainingSettings(Protocol):
    """The settings of a network's training: a frozen dataclass; problem(recipe, n) is what is wrong with them."""

    __dataclass_fields__: ClassVar[dict[str, Field]]

    @property
    def problem(self) -> Callable[..., str | None]: ...


@dataclass(frozen=True)
class Training(Generic[R]):
    """How a network of a system is trained; the file ``training`` holds one of each in its mapping ``TRAINING``.

    schedule: the published one; habit: what suits faces that no schedule was published for.
    settings: a dataclass of what else may be chosen; where that is what new weights begin as, it is named ``start``,
    and "random" is what PyTorch draws.
    network(recipe, weights) is a new one behind networks of these widths, its weights drawn from PyTorch's generator.
    task(run, labels, settings): what it is trained on, where ``run`` has the training faces and labels (n,) int64
    their identities. needs: networks that have to be trained before; takes: those that may stand before it, too.
    mixes: whether faces of different albums (see ``fcdeploy.training.identities``) meet in a batch; where they do not,
    labels tell a person's faces in different albums apart.
    outcome(run, labels): how good the network is on other faces, two F of 0 to 1 by name and the settings found best;
    without it, clusters are compared with the truth.
    """

    schedule: Schedule
    settings: type[TrainingSettings]
    network: Callable[[R, Weights], "nn.Module"]
    task: Callable[..., Task]
    habit: Habit
    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()
    mixes: bool = False
    outcome: Callable[..., tuple[dict[str, float], dict[str, Value]]] | None = None
