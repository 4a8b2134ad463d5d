"""The recipe that ``fcdeploy train`` left beside a checkpoint: found, checked against the others, and said."""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options
from fcdeploy.systems import NAMES, Recipe, System, get_system
from fcdeploy.systems.settings import (
    NO_SETTINGS,
    list_settings,
    setting_of,
    settings_from_dict,
    with_settings,
)

SUFFIX = ".toml"
TRAINING = (
    "config.json"  # in a run folder of `fcdeploy train`, beside the weights of the last and the best step
)
TRAINED_WEIGHTS = ("best.pth", "last.pth")
SHOWN = 4  # differing settings in a sentence


@dataclass(frozen=True)
class Beside:
    """A recipe made of those beside some checkpoints; ``files`` are these, ``sentence`` says what was taken."""

    recipe: Recipe
    files: tuple[Path, ...]
    sentence: str


def recipe_place(checkpoint: Path) -> Path:
    """Return where the recipe of a checkpoint goes, and is looked for: its name with .toml."""
    return checkpoint.with_suffix(SUFFIX)


def recipe_beside(
    system: System, checkpoints: Sequence[Path], published: Callable[[], Recipe]
) -> Beside | None:
    """Return the recipe that the files beside some checkpoints make together, or None where there are none.

    checkpoints: in the order in which their networks run. The recipe beside the last of them counts; the others have
    to agree with it in all but thresholds, which ``fcdeploy train`` chooses anew behind each network. A recipe of a
    system that shares a network with this one (PSE-GCN, of NSR-FC's refinement) says what the two have in common.
    published: makes the recipe to take the rest from, if one is needed. Raises InputError for a file that is no recipe,
    one of another system, and recipes that contradict each other.
    """
    found = [(path, *one) for path in checkpoints if (one := _one_beside(path, published)) is not None]
    own, kin = [], []
    for checkpoint, file, recipe in found:
        if recipe.system == system.name:
            own.append((file, recipe))
        elif _share_networks(system, get_system(recipe.system)):
            kin.append((file, recipe))
        else:
            raise InputError(
                f"{file}: lies beside {checkpoint} and is a recipe of {recipe.system}, not of {system.name}; give the "
                "right one with --recipe."
            )
    if not found:
        return None
    files = tuple(dict.fromkeys(file for _, file, _ in found))
    base_file, base = own[-1] if own else (kin[-1][0], _taking_common(published(), kin[-1][1]))
    chosen = thresholds_of(system)
    notes = []
    for file, recipe in (*own, *kin):
        other = recipe if recipe.system == system.name else _taking_common(base, recipe)
        differing = dict(differences(base, other))
        trained = {key: pair for key, pair in differing.items() if key not in chosen}
        if trained:
            raise InputError(
                f"{file} and {base_file}: recipes beside checkpoints that are to run together differ in "
                f"{_describe(trained, file, base_file)}; give the settings they were trained with: --recipe FILE."
            )
        if differing:
            notes.append(
                f"thresholds of {base_file}, not of {file} ({_describe(differing, file, base_file)})"
            )
    names = " and ".join(map(str, files))
    what = "the recipe beside the checkpoint" if len(files) == 1 else "recipes beside the checkpoints"
    if base_file.name == TRAINING:
        notes.append("thresholds are those from before the training")
    if not own:
        notes.append(f"all other settings of {system.name} are as published")
    more = f"; {'; '.join(notes)}" if notes else ""
    return Beside(base, files, f"settings of {names}, {what}{more}.")


def note_of_another(
    system: System, checkpoints: Sequence[Path], recipe: Recipe, name: str = "", *, thresholds: bool = True
) -> str | None:
    """Say in what a recipe that was given differs from those beside the checkpoints; None where it does not.

    thresholds: whether these count, too.
    """
    try:
        beside = recipe_beside(system, checkpoints, lambda: recipe)
    except InputError:
        return None  # whatever lies there, the recipe that was given is the one to take
    if beside is None:
        return None
    minor = set() if thresholds else thresholds_of(system)
    differing = {key: pair for key, pair in differences(beside.recipe, recipe) if key not in minor}
    if not differing:
        return None
    files, name = " and ".join(map(str, beside.files)), f"--recipe {name}".strip()
    return f"settings of {name}, not of {files} beside the checkpoint: {_describe(differing, name, files)}."


def thresholds_of(system: System) -> set[str]:
    """Return the places in a system's recipe that are chosen on labelled faces, whichever networks it has."""
    weights = {name: network.example for name, network in system.networks.items()}
    links = ("density-peaks", "pairs") if "link" in system.options else (None,)
    return {tunable.key for link in links for tunable in system.tunable(weights, Options(link=link))}


def differences(one: Recipe, other: Recipe) -> Iterator[tuple[str, tuple[object, object]]]:
    """Yield the dotted places where two recipes of a system differ, each with the value in ``other`` and in ``one``."""
    for setting in list_settings(one):
        values = setting_of(other, setting.key), setting.value
        if values[0] != values[1]:
            yield setting.key, values


def published_sentence(checkpoints: Sequence[Path], recipe: Recipe) -> str:
    """Say that there is no recipe, and what is used instead."""
    looked = " or ".join(str(recipe_place(path)) for path in checkpoints)
    return (
        f"no --recipe, and no {looked} beside the checkpoint: the published settings of {recipe.system} are used, made "
        "for MS1M; weights of your own need the recipe they were trained with."
    )


def _one_beside(checkpoint: Path, published: Callable[[], Recipe]) -> tuple[Path, Recipe] | None:
    """Return the file beside a checkpoint, or beside what it is a link to, and the recipe in it."""
    for path in dict.fromkeys((checkpoint, checkpoint.resolve())):
        file = recipe_place(path)
        if file != path and file.is_file():
            try:
                return file, load_recipe(file)
            except InputError as error:
                reason = str(error).removeprefix(f"{file}: ").rstrip(".")
                raise InputError(
                    f"{file}: lies beside {path}, where `fcdeploy train` writes the recipe, and cannot be used: "
                    f"{reason}. Give one with --recipe FILE or NAME."
                ) from error
    if checkpoint.name in TRAINED_WEIGHTS and (table := _trained_for(checkpoint.parent / TRAINING)):
        config = checkpoint.parent / TRAINING
        return config, settings_from_dict({**table, "feature_dim": published().feature_dim}, str(config))
    return None


def _trained_for(config: Path) -> dict[str, object] | None:
    """Return the recipe in the configuration of a training; None where there is none, or it is somebody else's."""
    try:
        recipe = json.loads(config.read_bytes())["config"]["recipe"]
        return dict(recipe) if recipe["system"] in NAMES else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _share_networks(system: System, other: System) -> bool:
    return any(record in system.networks.values() for record in other.networks.values())


def _taking_common(recipe: Recipe, kin: Recipe) -> Recipe:
    """Return a recipe with the tables that another system's has, too."""
    common = {
        field.name: getattr(kin, field.name)
        for field in dataclasses.fields(kin)
        if field.name not in (*NO_SETTINGS, "tolerance")
        and type(getattr(recipe, field.name, None)) is type(getattr(kin, field.name))
    }
    return with_settings(recipe, common)


def _describe(differing: Mapping[str, tuple[object, object]], one: object, other: object) -> str:
    """Say in what two recipes differ: "links.tau (0.6 in a.toml, 0.7 in b.toml)"."""
    texts = [
        f"{key} ({_value(pair[0])} in {one}, {_value(pair[1])} in {other})"
        for key, pair in list(differing.items())[:SHOWN]
    ]
    more = f" and {len(differing) - SHOWN} more" if len(differing) > SHOWN else ""
    return ", ".join(texts) + more


def _value(value: object) -> str:
    if isinstance(value, tuple):
        return "other ones" if any(map(dataclasses.is_dataclass, value)) else str(list(value))
    return str(value)
