"""What a training depends on, kept in its folder: what is to go on there has to be the same."""

import dataclasses
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch

from fcdeploy import __version__, machine
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.digests import sha256_of
from fcdeploy.deploy.recipe_beside import TRAINING
from fcdeploy.errors import InputError
from fcdeploy.graph.lists import ListsFile
from fcdeploy.systems import Recipe
from fcdeploy.systems.settings import settings_as_dict
from fcdeploy.systems.training_types import Schedule, TrainingSettings
from fcdeploy.training.choices import PUBLISHED, Choices
from fcdeploy.training.loop import STATE

OPTIONS = {  # where the option has another name
    "system": "SYSTEM",
    "before": "--ckpt or --init",
    "albums": "--splits",
    "strays": "--singletons",  # as trainings of 0.1 have them
}


def configuration(
    system: str,
    network: str,
    recipe: Recipe,
    schedule: Schedule,
    settings: TrainingSettings,
    choices: Choices,
    *,
    mixed: bool,
    features: str,
    identity: np.ndarray,
    before: Sequence[Path],
    lists: Mapping[str, Path],
) -> dict[str, object]:
    """Describe all that the weights of a training depend on, but the machine, as JSON has it.

    settings: the network's own; mixed: whether products are of half precision; features: their hash; identity: (n,)
    int64; lists: files of lists, by the options that name them; before: checkpoints of other networks, and those to
    start from.
    """
    table = settings_as_dict(recipe)
    del table["feature_dim"]  # that of the features
    described = {
        "system": system,
        "network": network,
        "recipe": table,
        "schedule": dataclasses.asdict(schedule),
        "settings": dataclasses.asdict(settings),
        "steps": choices.steps,
        "validation": choices.validation,
        "albums": choices.splits,
        "strays": choices.singletons,
        "average": choices.average,
        "patience": choices.patience,
        "seed": choices.seed,
        "mixed": mixed,
        "features": features,
        "labels": hashlib.sha256(np.ascontiguousarray(identity).data).hexdigest(),
        "before": [sha256_of(path) for path in before],
    }
    described |= {
        option: ListsFile(lists[option]).digest if option in lists else "" for option in ("knn", "reranked")
    }
    others = {"checks": choices.checks, "split_seed": choices.split_seed}  # as usual where they are not named
    described |= {name: value for name, value in others.items() if value != getattr(PUBLISHED, name)}
    return dict(json.loads(json.dumps(described)))


def is_config(file: Path) -> bool:
    """Tell whether a file is a configuration that ``check_config`` wrote."""
    try:
        found = json.loads(file.read_bytes())
        return {"system", "network", "recipe", "schedule"} <= found["config"].keys() and "fcdeploy" in found[
            "versions"
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def check_config(folder: Path, config: dict[str, object]) -> None:
    """Write the configuration; raises InputError when the folder holds a training of another one."""
    file = folder / TRAINING
    try:
        before = dict(json.loads(file.read_bytes())["config"])
        names = list(differing(before, config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        before, names = {}, []
    if (folder / STATE).exists() and (names or not before):
        raise InputError(
            f"{folder}: holds a training with other settings ({', '.join(names)}); give the same ones to go on with "
            "it, or choose another --run-dir."
            if before
            else f"{file}: is missing or damaged, so that nothing says which training is kept there; choose another "
            "--run-dir."
        )
    import faiss
    import numba

    versions = {
        "fcdeploy": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "numba": numba.__version__,
        "faiss": faiss.__version__,
        "machine": platform.machine(),
        "cores": machine.cores(),
    }
    with atomic_file(file) as opened:
        opened.write(json.dumps({"config": config, "versions": versions}, indent=1).encode())


def differing(before: Mapping[str, object], config: Mapping[str, object]) -> Iterator[str]:
    """Name what differs between two configurations, as a user gives it; of another network, that it is one."""
    unlike = [key for key, value in config.items() if before[key] != value]
    for key in [key for key in ("system", "network") if key in unlike] or unlike:
        if key in ("schedule", "settings"):
            option = "--set " if key == "settings" else "--"
            own, other = (cast(Mapping[str, object], config_of[key]) for config_of in (config, before))
            names = dict.fromkeys([*own, *other])
            yield from (f"{option}{name}" for name in names if other.get(name) != own.get(name))
        else:
            yield OPTIONS.get(key, f"--{key}")
