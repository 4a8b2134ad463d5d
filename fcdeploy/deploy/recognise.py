"""Which system do checkpoints belong to? Told by the names and shapes of their tensors, without PyTorch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from fcdeploy.errors import InputError, counted
from fcdeploy.systems import NAMES, System, describe, get_system
from fcdeploy.systems.recipe import TensorShapes, Widths

ALIKE = 0.5  # share of names from which a state_dict counts as a network, even a damaged one
CONVOLUTION = 4  # axes of an image convolution's weights: out, in, height, width
COLORS = 3
PATCHES = ("patch_embed", "patch_embedding", "class_embedding")


@dataclass(frozen=True)
class _Candidate:
    """A network that a state_dict may be of.

    widths: None where its shapes do not say them; wanted: the tensors of such a network; common: the share of names
    that both have.
    """

    system: System
    network: str
    widths: Widths | None
    wanted: TensorShapes
    common: float


def recognise(checkpoints: Mapping[str, TensorShapes]) -> tuple[System, dict[str, str], dict[str, Widths]]:
    """Tell which system checkpoints belong to together, and what each of them is in it.

    checkpoints: where it came from -> tensor name -> shape, without wrappers and ``module.`` prefixes. A checkpoint
    is the network that shares most tensor names with it; then every tensor has to be there in its shape. Where
    networks look alike, checkpoints are taken for one after the other in the order in which they are given. Returns
    the first system that has all these networks, the network of each checkpoint, and the widths of each network.
    Raises InputError that says what was found and what is known, which tensors are missing, unexpected or of a wrong
    shape, or which checkpoints do not belong together.
    """
    for where, shapes in checkpoints.items():
        if not likeness(shapes)[0] and (sentence := elsewhere(shapes)):
            raise InputError(f"{where}: {sentence}; known systems: {', '.join(NAMES)}.")
    alike = {where: _alike(shapes, where) for where, shapes in checkpoints.items()}
    found = {where: _fitting(candidates, checkpoints[where], where) for where, candidates in alike.items()}
    for system in map(get_system, NAMES):
        own = {
            where: {one.network: one.widths or {} for one in candidates if one.system.name == system.name}
            for where, candidates in found.items()
        }
        if not all(own.values()):
            continue
        places: dict[str, str] = {}
        for where, fitting in own.items():
            name = next((network for network in fitting if network not in places), next(iter(fitting)))
            if name in places:
                raise InputError(
                    f"{where}: holds {system.title} weights of '{name}', as {places[name]} does; "
                    "give one of them."
                )
            places[name] = where
        weights: dict[str, Widths] = {
            name: dict(own[places[name]][name]) for name in system.networks if name in places
        }
        if problem := system.problem(weights):
            raise InputError(f"{', '.join(checkpoints)}: {problem}.")
        return system, {where: name for name, where in places.items()}, weights
    each = "; ".join(
        f"{where} holds {candidates[0].system.title} weights" for where, candidates in found.items()
    )
    raise InputError(f"{each}: no system has them all; export them one by one.")


def likeness(shapes: TensorShapes) -> tuple[bool, float]:
    """Tell whether tensors are those of a known network, and the largest share of names that they have of one."""
    candidates = list(_candidates(shapes))
    return any(_fits(one, shapes) for one in candidates), max(one.common for one in candidates)


def elsewhere(shapes: TensorShapes) -> str | None:
    """Say which network of another system, or of another task, these tensors are of; None where that is not known.

    shapes: of a state_dict without wrappers and prefixes, which is none of ours.
    """
    names = shapes.keys()
    convolutions = [
        shape for name, shape in shapes.items() if len(shape) == CONVOLUTION and name.endswith("weight")
    ]
    if any(shape[1] == COLORS for shape in convolutions) or any(
        part in name for name in names for part in PATCHES
    ):
        return (
            "reads pictures: it looks like a face embedder or detector, not a network that clusters features; export "
            "it to ONNX with its own code (torch.onnx.export), for `fcdeploy embed --model`"
        )
    return None


def _candidates(shapes: TensorShapes) -> Iterator[_Candidate]:
    """Compare a state_dict with every known network, in the order of NAMES."""
    for system in map(get_system, NAMES):
        for name, network in system.networks.items():
            widths = network.widths_from_shapes(dict(shapes))
            wanted = network.checkpoint_shapes(**(network.example if widths is None else widths))
            common = len(wanted.keys() & shapes.keys()) / len(wanted.keys() | shapes.keys())
            yield _Candidate(system, name, widths, wanted, common)


def _fits(one: _Candidate, shapes: TensorShapes) -> bool:
    return one.widths is not None and not any(_differences(shapes, one.wanted))


def _alike(shapes: TensorShapes, where: str) -> list[_Candidate]:
    """Return the networks that a state_dict is like, most alike first; raises InputError where there is none."""
    alike = [one for one in _candidates(shapes) if one.common >= ALIKE]
    if not alike:
        shown = ", ".join(list(shapes)[:4]) + (", ..." if len(shapes) > 4 else "")
        raise InputError(
            f"{where}: its {counted(len(shapes), 'tensor')} ({shown or 'none'}) fit no known system; "
            f"known: {', '.join(NAMES)}."
        )
    return sorted(alike, key=lambda one: -one.common)  # stable: equally alike ones stay in the order of NAMES


def _fitting(alike: list[_Candidate], shapes: TensorShapes, where: str) -> list[_Candidate]:
    """Return those of several networks whose tensors a state_dict has; raises InputError where it has those of none."""
    fitting = [one for one in alike if _fits(one, shapes)]
    if not fitting:
        raise InputError(f"{where}: {_misfit(alike[0], shapes)}.")
    return fitting


def _misfit(one: _Candidate, shapes: TensorShapes) -> str:
    """Say in which tensors a state_dict differs from the network that it is like."""
    if one.widths is None:
        return f"looks like {one.system.title} but does not say its feature width"
    differences = list(_differences(shapes, one.wanted))
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return (
        f"looks like {one.system.title} with {describe({one.network: one.widths})}, but "
        f"{'; '.join(differences[:3])}{more}; it may be damaged or from a changed network"
    )


def _differences(found: TensorShapes, wanted: TensorShapes) -> Iterator[str]:
    for name, shape in wanted.items():
        if name not in found:
            if not name.endswith(
                ".num_batches_tracked"
            ):  # absent before PyTorch 0.4.1, and unused at inference
                yield f"{name} {shape} is missing"
        elif tuple(found[name]) != shape:
            yield f"{name} has shape {tuple(found[name])} instead of {shape}"
    for name in found:
        if name not in wanted:
            yield f"{name} {tuple(found[name])} is not part of it"
