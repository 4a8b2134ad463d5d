"""The networks of a training: the one that is trained, and those that run before it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fcdeploy.deploy.checkpoint import load_state_dict
from fcdeploy.errors import InputError
from fcdeploy.systems import Recipe, System, Weights, Widths, check_recipe
from fcdeploy.systems.training_types import Training, TrainingSettings


@dataclass(frozen=True)
class Networks:
    """The networks of a training: modules by name, and which of them is trained.

    before: widths of those that run before it; weights: widths of all.
    """

    name: str
    modules: Mapping[str, torch.nn.Module]
    before: Weights
    weights: Weights

    @property
    def trained(self) -> torch.nn.Module:
        """The one that is trained."""
        return self.modules[self.name]


def new_networks(
    system: System,
    name: str,
    training: Training,
    recipe: Recipe,
    checkpoints: Sequence[Path],
    keys: Sequence[str | None],
    seed: int,
) -> Networks:
    """Load the networks that run before ``name``, and make a new one behind them, its weights drawn from ``seed``.

    Raises InputError when they are not those it needs.
    """
    modules = networks_before(system, name, training, checkpoints, keys)
    before = all_widths(system, modules)
    torch.manual_seed(seed)
    modules[name] = training.network(recipe, before)
    return Networks(name, modules, before, all_widths(system, modules))


def check_networks(system: System, recipe: Recipe, networks: Networks, checkpoints: Sequence[Path]) -> None:
    """Raise InputError when networks do not go together, or not with the recipe."""
    given, before = ", ".join(map(str, checkpoints)), networks.before
    if before and (problem := system.problem(networks.weights)):
        raise InputError(
            f"{given}: {problem} ({networks.name}, to be trained, has its width from the features and its lengths from "
            "the recipe)."
        )
    remedy = "give features and a recipe that fit the checkpoints" if before else "give another recipe"
    check_recipe(system, recipe, networks.weights, given or "--recipe", remedy)


def networks_before(
    system: System,
    name: str,
    training: Training,
    checkpoints: Sequence[Path],
    keys: Sequence[str | None],
) -> dict[str, torch.nn.Module]:
    """Load the networks that run before the one in training; raises InputError when they are not those it needs."""
    found: dict[str, torch.nn.Module] = {}
    known = (*training.takes, *training.needs)
    for path, key in zip(checkpoints, keys, strict=False):
        state = load_state_dict(path, key)
        shapes = shapes_of(state)
        for network, record in system.networks.items():
            widths = record.widths_from_shapes(shapes)
            if (
                network in known
                and network not in found
                and widths
                and shapes.items() <= record.checkpoint_shapes(**widths).items()
            ):
                found[network] = system.module("network").NETWORKS[network].from_state_dict(state)
                break
        else:
            takes = f"takes {' and '.join(known)}, one of each" if known else "needs none"
            raise InputError(
                f"{path}: is no network that comes before {name} of {system.title}, which {takes}."
            )
    missing = [network for network in training.needs if network not in found]
    if missing:
        raise InputError(
            f"training {name} of {system.title} needs trained networks of {' and '.join(missing)}; give their "
            f"checkpoints with --ckpt."
        )
    return found


def all_widths(system: System, modules: Mapping[str, torch.nn.Module]) -> dict[str, Widths]:
    """Read the widths of networks off their weights, in the order in which a run uses them."""
    return {of: widths_of(system, of, modules[of]) for of in system.networks if of in modules}


def widths_of(system: System, network: str, module: torch.nn.Module) -> Widths:
    """Read the widths of a network off its weights."""
    widths = system.networks[network].widths_from_shapes(shapes_of(module.state_dict()))
    assert widths is not None
    return widths


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state_dict's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def start_from(path: Path, key: str | None, net: torch.nn.Module, settings: TrainingSettings) -> None:
    """Start from a checkpoint's weights; raises InputError when ``settings`` say what to start from, too."""
    if (start := getattr(settings, "start", "random")) != "random":
        raise InputError(
            f"--init and --set start={start} both determine the initial weights; give one of them."
        )
    load_weights(net, path, key)


def load_weights(net: torch.nn.Module, path: Path, key: str | None = None) -> None:
    """Start from a checkpoint's weights; raises InputError when they are not this network's."""
    state = load_state_dict(path, key)
    wanted = shapes_of(net.state_dict())
    for key, shape in wanted.items():
        if (
            not key.endswith(".num_batches_tracked")
            and tuple(state[key].shape if key in state else ()) != shape
        ):
            found = tuple(state[key].shape) if key in state else "no such tensor"
            raise InputError(f"{path}: its weights do not fit: {key} should be {shape}, found {found}.")
    net.load_state_dict({key: tensor for key, tensor in state.items() if key in wanted}, strict=False)
