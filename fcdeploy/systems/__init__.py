"""The published systems fcdeploy deploys; each is a folder of the same files and one record."""

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Generic, TypeVar

import numpy as np

from fcdeploy.clustering.evidence import Accepted
from fcdeploy.engine.tensors import Engine, PassSpec
from fcdeploy.errors import InputError
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.extended import Extended, Rule
from fcdeploy.run.options import Options
from fcdeploy.run.run import Run
from fcdeploy.systems.habits import Figures, SuitedRecipe
from fcdeploy.systems.recipe import Recipe, Tolerance, Weights, Widths
from fcdeploy.systems.training_types import Training, Tunable

if TYPE_CHECKING:
    from torch import Tensor, nn

Net = TypeVar("Net", bound="nn.Module")
R = TypeVar("R", bound="Recipe")


@dataclass(frozen=True)
class Network:
    """What one checkpoint holds, as far as it can be told without PyTorch.

    widths_from_shapes(shapes) reads its widths off a state_dict, None where they cannot be read or are those of
    another network; checkpoint_shapes(**widths) are all its tensors, passes(**widths) its graphs. example: any
    widths, to know the tensors' names by.
    """

    widths_from_shapes: Callable[[dict[str, tuple[int, ...]]], Widths | None]
    checkpoint_shapes: Callable[..., dict[str, tuple[int, ...]]]
    passes: Callable[..., dict[str, PassSpec]]
    example: Widths


@dataclass(frozen=True)
class TorchNetwork(Generic[Net]):
    """What a network's part of a system's file ``network`` can do; all of it needs PyTorch.

    from_state_dict(state) builds the authors' module; settle(module, recipe) tells it what no state_dict does, if
    there is such a thing. passes(module) are the modules behind its graphs, by name; plain_outputs(module, batch)
    evaluates the published form in float64: outputs by name, and what is compared with ``threshold``, one array a
    decision. deciding: outputs by pass that edges of a graph, drawn outside of the passes, depend on; they are never
    computed in half precision.
    """

    from_state_dict: Callable[[dict[str, "Tensor"]], Net]
    passes: Callable[[Net], dict[str, "nn.Module"]]
    plain_outputs: Callable[[Net, Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], list[np.ndarray]]]
    threshold: float = 0.5
    settle: Callable[..., None] = lambda module, recipe: None
    deciding: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class ParityInputs(Generic[R]):
    """What a network's exported graphs are checked on.

    sizes(recipe): pairs of numbers, which ``meaning`` explains; random_batch(dim, *size, rng): arrays by name;
    run_passes(engines, batch): the graphs' outputs by name, and decisions under names that start with "edges.".
    """

    sizes: Callable[[R], list[tuple[int, int]]]
    meaning: str
    random_batch: Callable[[int, int, int, np.random.Generator], dict[str, np.ndarray]]
    run_passes: Callable[[Mapping[str, Engine], Mapping[str, np.ndarray]], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Workload:
    """What a run does with a pass, for plans: in which stage, with which lengths, and in how many calls a face.

    lengths: of free axes, by name; calls: None for one a face of the first input's first axis. kernels: seconds of one
    core a face that our own kernels take to make its inputs.
    """

    stage: str
    lengths: Mapping[str, int] = field(default_factory=dict)
    calls: float | None = None
    kernels: float = 0.0


def own_tolerance(recipe: Recipe, network: str) -> Tolerance:
    """Return the tolerance of a recipe that has one for all networks."""
    assert isinstance(recipe.tolerance, Tolerance)
    return recipe.tolerance


@dataclass(frozen=True)
class System(Generic[R]):
    """The record of one system: what it is, and its functions that need no PyTorch.

    recipe: its dataclass of settings, whose defaults are the published ones; ``recipe.for_weights(weights)`` fits them
    to checkpoints, and ``.mismatch(weights)`` says what a recipe is for when it is not for these. networks: by name,
    in the order in which a run uses them. cluster(run) is its flow, from features to labels; neighbors(run), where
    that begins: the kNN lists of the features; assign(run), how new faces are linked to stored ones. evidence(run,
    kept): the links that it accepted, from the artifacts of a run by name. later: names of artifacts that the flow
    describes only when others are computed. options: those of a run that not every system has. inferences: the ways to
    evaluate it, "exact" first, with the passes of each (none named: all).
    fit_lists(settings, k, where) fits settings to lists of k from a file, with notes, where shorter ones can be used.
    sorts_lists: whether lists of a file are sorted by similarity, as published: "never", "always", or where the file
    holds "similarities". workload(settings, weights, options), which passes a run uses, and how. The files ``network``
    and ``parity`` hold a ``TorchNetwork`` and ``ParityInputs`` of every network in their mappings ``NETWORKS`` and
    ``PARITY``. pooled(n, settings): links that are held in memory while clusters are made of them. For estimates,
    searches(settings) says how many kNN searches as large as the first its other stages make, and graphs(n, settings,
    nodes) how many graphs of so many nodes passes are given for n faces. tunable(weights, options): what ``fcdeploy
    tune`` chooses, the threshold that trades precision for recall first. unit_rows: similarities are inner products of
    the rows as they are read, which have to be unit vectors.

    For systems of several networks: problem(weights) says why a bundle of these only makes no sense;
    refusal(weights, options), which option makes none for them; tolerance(recipe, network), what an export of one may
    be off by (else that of the recipe, for all). Their recipe's ``for_run`` is told the ``weights``.
    """

    name: str
    title: str
    paper: str
    recipe: type[R]
    networks: Mapping[str, Network]
    cluster: Callable[[Run], np.ndarray]
    neighbors: Callable[[Run], Artifact]
    evidence: Callable[[Run, Mapping[str, Artifact]], Accepted]
    assign: Callable[[Extended], Rule]
    options: tuple[str, ...]
    inferences: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"exact": ()})
    problem: Callable[[Weights], str | None] = lambda weights: None
    refusal: Callable[[Weights, Options], str | None] = lambda weights, options: None
    tolerance: Callable[[R, str], Tolerance] = own_tolerance
    workload: Callable[[R, Weights, Options], Mapping[str, Workload]] | None = None
    searches: Callable[[R], Mapping[str, int]] = lambda settings: {}
    pooled: Callable[[int, R], int] = lambda n, settings: 0
    graphs: Callable[[int, R, int], float] = lambda n, settings, nodes: n
    tunable: Callable[[Weights, Options], tuple[Tunable, ...]] = lambda weights, options: ()
    unit_rows: bool = True
    fit_lists: Callable[[R, int, str], tuple[R, list[str]]] = lambda settings, k, where: (settings, [])
    sorts_lists: str = "never"
    later: tuple[str, ...] = ()

    def module(self, name: str) -> ModuleType:
        """Import one of the system's files, for example ``network``, which needs PyTorch."""
        return importlib.import_module(f"{_package(self.name)}.{name}")

    def trainings(self) -> Mapping[str, Training]:
        """Return how its networks are trained, by name, which needs PyTorch; none where it has no file ``training``."""
        if importlib.util.find_spec(f"{_package(self.name)}.training") is None:
            return {}
        return self.module("training").TRAINING

    def suited_recipe(self, figures: Figures) -> SuitedRecipe:
        """Return the settings that suit a training on such faces, from its file ``training``, which needs PyTorch."""
        found: SuitedRecipe = self.module("training").suited_recipe(figures)
        return found

    def passes(self, weights: Weights) -> dict[str, PassSpec]:
        """Return the passes of all networks in ``weights``, in the order of a run."""
        return {
            name: spec
            for network, record in self.networks.items()
            if network in weights
            for name, spec in record.passes(**weights[network]).items()
        }


NAMES = ("pse-gcn", "nsr-fc", "sepfl", "l-gcn", "gcn-d", "ve-gcn")


def get_system(name: str, where: str = "") -> System:
    """Return the record of a system; raises InputError, which says ``where`` the name stood, for one that is none."""
    if name not in NAMES:
        prefix = f"{where}: " if where else ""
        part = "; its networks are those of nsr-fc" if name == "lce-pcenet" else ""
        raise InputError(f"{prefix}'{name}' is not a known system{part}; known: {', '.join(NAMES)}.")
    return importlib.import_module(_package(name)).SYSTEM


def check_recipe(
    system: System,
    recipe: Recipe,
    weights: Weights,
    where: str,
    remedy: str = "give the recipe that they were trained with",
) -> None:
    """Raise InputError, saying ``where`` the networks came from, when a recipe is not for networks of these widths."""
    other = recipe.mismatch(weights) if recipe.system == system.name else recipe.system
    if other:
        raise InputError(
            f"{where}: the recipe is for {other}, the networks are {system.title}'s for {describe(weights)}; "
            f"{remedy}."
        )


def describe(weights: Weights) -> str:
    """Say what weights are for, as in "256-d features and k = 80"."""
    texts = {}
    for network, widths in weights.items():
        others = [f" and {name} = {width}" for name, width in widths.items() if name != "dim"]
        texts[network] = f"{widths['dim']}-d features{''.join(others)}"
    if len(texts) == 1:
        return next(iter(texts.values()))
    return ", ".join(f"{text} ({network})" for network, text in texts.items())


def _package(name: str) -> str:
    return f"fcdeploy.systems.{name.replace('-', '_')}"
