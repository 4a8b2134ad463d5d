"""The published systems fcdeploy deploys; each is a folder of the same files and one record."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import InputError


@dataclass(frozen=True)
class System:
    """The record of one system: what it is, and its functions that need no PyTorch.

    recipe: its dataclass of settings, whose defaults are the published ones; ``recipe.for_weights(**widths)`` fits them
    to a checkpoint and ``.widths`` gives that back. widths: the names of the lengths that a checkpoint's shapes
    decide, "dim" first. passes(**widths), checkpoint_shapes(**widths) and widths_from_shapes(shapes) are its spec.
    products(n, d, settings, inference) are the arrays of everything that a run makes. options: those of a run that
    not every system has. inferences: the ways to evaluate it, "exact" first, with the passes of each (none named:
    all). sizes: what the pairs of numbers are that an export is checked on. cluster(run) is its flow, from features
    to labels (see ``fcdeploy.runtime.pipeline.Run``). What needs PyTorch is in its file ``network``.
    """

    name: str
    title: str
    paper: str
    recipe: type[Any]
    widths: tuple[str, ...]
    passes: Callable[..., dict[str, PassSpec]]
    checkpoint_shapes: Callable[..., dict[str, tuple[int, ...]]]
    widths_from_shapes: Callable[[dict[str, tuple[int, ...]]], dict[str, int] | None]
    products: Callable[[int, int, Any, str], dict[str, Mapping[str, tuple[tuple[int, ...], Any]]]]
    cluster: Callable[[Any], Any]
    options: tuple[str, ...]
    sizes: str
    inferences: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: {"exact": ()})

    def module(self, name: str) -> ModuleType:
        """Import one of the system's files, for example ``network``, which needs PyTorch."""
        return importlib.import_module(f"{_package(self.name)}.{name}")


NAMES = ("pse-gcn", "sepfl")


def get_system(name: str, where: str = "") -> System:
    """Return the record of a system; raises InputError, which says ``where`` the name stood, for one that is none."""
    if name not in NAMES:
        prefix = f"{where}: " if where else ""
        raise InputError(f"{prefix}'{name}' is no known system; known: {', '.join(NAMES)}.")
    return importlib.import_module(_package(name)).SYSTEM


def recognise(shapes: Mapping[str, tuple[int, ...]], where: str) -> tuple[System, dict[str, int]]:
    """Tell which system a state_dict belongs to, and its widths (see ``System``).

    shapes: tensor name -> shape, without wrappers and ``module.`` prefixes. The system is the one that shares
    most names with it; then every tensor has to be there in its shape. Raises InputError that says what was
    found and what is known, or which tensors are missing, unexpected or of a wrong shape.
    """
    best, most = None, 0.0
    for name in NAMES:
        system = get_system(name)
        names = system.checkpoint_shapes(**dict.fromkeys(system.widths, 1)).keys()
        common = len(names & shapes.keys()) / len(names | shapes.keys())
        if common > most:
            best, most = system, common
    if best is None or most < 0.5:
        shown = ", ".join(list(shapes)[:4]) + (", ..." if len(shapes) > 4 else "")
        raise InputError(
            f"{where}: its {len(shapes)} tensors ({shown or 'none'}) are those of no known system; "
            f"known: {', '.join(NAMES)}."
        )
    widths = best.widths_from_shapes(dict(shapes))
    if widths is None:
        raise InputError(f"{where}: looks like {best.title} but does not say its feature width.")
    problems = list(_differences(shapes, best.checkpoint_shapes(**widths)))
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise InputError(
            f"{where}: looks like {best.title} with {describe(widths)}, but {'; '.join(problems[:3])}{more}; "
            "it may be damaged or from a changed network."
        )
    return best, widths


def describe(widths: Mapping[str, int]) -> str:
    """Say what weights are for, as in "256-d features and k = 80"."""
    others = [f" and {name} = {width}" for name, width in widths.items() if name != "dim"]
    return f"{widths['dim']}-d features{''.join(others)}"


def _package(name: str) -> str:
    return f"fcdeploy.systems.{name.replace('-', '_')}"


def _differences(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]):  # type: ignore[no-untyped-def]
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
