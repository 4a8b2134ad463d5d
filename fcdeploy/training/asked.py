"""``fcdeploy.train``: a system trained as its user asks, with settings that are published, or chosen by the faces."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypedDict, Unpack

import numpy as np
from numpy.typing import ArrayLike

from fcdeploy.data.bad_list import bad_list_of, check_bad_list
from fcdeploy.data.features import Features
from fcdeploy.data.side_files import check_not_an_input
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.deploy.recipe_beside import recipe_place
from fcdeploy.errors import FcdeployWarning
from fcdeploy.runtime.api import PathLike, features_given
from fcdeploy.systems import Recipe, System, get_system
from fcdeploy.training import train as one_network
from fcdeploy.training.best_of import MINUTES, Given, outputs_of, train_best
from fcdeploy.training.choices import Choices
from fcdeploy.training.compare import truth_of
from fcdeploy.training.train import Trained, training_of

RENAMED = {"albums": "splits", "strays": "singletons"}  # names of 0.1, which work for one more version


def train(
    system: str,
    features: object,
    labels: PathLike | ArrayLike,
    *,
    output: PathLike = "checkpoint.pth",
    target: object = None,
    minutes: float | None = None,
    network: str | None = None,
    recipe: PathLike | None = None,
    checkpoints: PathLike | Sequence[PathLike] = (),
    init: PathLike | None = None,
    key: str | Sequence[str] | None = None,
    run_dir: PathLike | None = None,
    unknown: str = "ignore",
    knn: PathLike | None = None,
    reranked: PathLike | None = None,
    on_bad: str = "stop",
    settings: Mapping[str, object] | None = None,
    column: str | None = None,
    label_column: str | None = None,
    scratch: PathLike | None = None,
    progress: bool = False,
    **options: float | str | bool | None,
) -> list[Trained]:
    """Train a system on labelled faces, and write a checkpoint and a recipe for each network that was trained.

    Settings are chosen from the data, and several seeds are trained within ``minutes``. With ``recipe``, ``steps`` or
    ``epochs``, and neither ``target`` nor ``minutes``, settings that are not given are as published.

    - features: (n, d), as for ``fcdeploy.cluster``.
    - labels: (n,) identities, integers or names, -1 where unknown; or the path of a file of labels.
    - output: the checkpoint to write; the recipe goes beside it (.toml).
    - target: unlabelled features like those to be clustered, which the training faces are then split to resemble.
    - minutes: time for the training, 30 by default.
    - settings: training settings of the network by name, e.g. ``{"nodes": 128}``.
    - the other arguments: see the options of ``fcdeploy train``, e.g. ``splits=8`` or ``seed=1``.

    Returns one ``Trained`` per network. Raises InputError (a ValueError) for input that cannot be used.
    """
    record = get_system(system)
    options = with_new_names(options)
    unknown_options = options.keys() - Choices.__dataclass_fields__.keys()
    if unknown_options:
        raise TypeError(f"train() got an unexpected keyword argument {min(unknown_options)!r}")
    several = [checkpoints] if isinstance(checkpoints, (str, os.PathLike)) else checkpoints
    before, output = [Path(path) for path in several], Path(output)
    opened = features_given(features, None, column, None if scratch is None else Path(scratch))
    truth = truth_of(labels, opened, label_column)
    inputs = [Path(path) for path in (features, labels, target, init) if isinstance(path, (str, os.PathLike))]
    given: dict[str, object] = {name: value for name, value in options.items() if value is not None}
    if settings:
        given["settings"] = {name: str(value) for name, value in settings.items()}
    alone = as_published(recipe, given, target, minutes) or not record.trainings()
    for path in [output] if alone else outputs_of(record, network, output).values():
        for written in (path, recipe_place(path)):
            check_not_an_input(written, [*inputs, *before])
    check_bad_list(bad_list_of(output), [*inputs, *before])
    return train_asked(
        record,
        opened,
        truth,
        output,
        target=None if target is None else features_given(target, opened.dim),
        minutes=minutes,
        given=given,
        network=network,
        recipe=None if recipe is None else load_recipe(recipe),
        checkpoints=before,
        init=None if init is None else Path(init),
        key=key,
        run_dir=None if run_dir is None else Path(run_dir),
        unknown=unknown,
        knn=None if knn is None else Path(knn),
        reranked=None if reranked is None else Path(reranked),
        labels_name=str(labels) if isinstance(labels, (str, os.PathLike)) else "labels",
        on_bad=on_bad,
        quiet=not progress,
    )


def with_new_names(options: Mapping[str, float | str | bool | None]) -> dict[str, float | str | bool | None]:
    """Return options with those of earlier versions called as they are now; a note names them."""
    for name in RENAMED.keys() & options.keys():
        warnings.warn(f"{name} is now {RENAMED[name]}.", FcdeployWarning, stacklevel=3)
    return {RENAMED.get(name, name): value for name, value in options.items()}


def as_published(recipe: object, given: Given, target: object, minutes: float | None) -> bool:
    """Tell whether what a user does not give is as published, rather than chosen by the faces."""
    return (
        target is None
        and minutes is None
        and (recipe is not None or bool({"steps", "epochs"} & given.keys()))
    )


class Common(TypedDict):
    """What both ways of training take alike."""

    network: str | None
    recipe: Recipe | None
    checkpoints: Sequence[Path]
    init: Path | None
    key: str | Sequence[str] | None
    run_dir: Path | None
    unknown: str
    knn: Path | None
    reranked: Path | None
    labels_name: str
    on_bad: str
    quiet: bool


def train_asked(
    system: System,
    features: Features,
    labels: np.ndarray,
    output: Path,
    *,
    target: Features | None,
    minutes: float | None,
    given: Given,
    **common: Unpack[Common],
) -> list[Trained]:
    """Train as ``train`` does, from features and labels (n,) int64; given: fields of ``Choices`` by name."""
    if common["network"] is not None:
        training_of(system, common["network"])
    if as_published(common["recipe"], given, target, minutes):
        new_choices: Callable[..., Choices] = Choices
        choices, bad_list = new_choices(**given), bad_list_of(output)
        trained = one_network.train(
            system, features, labels, output, choices=choices, bad_list=bad_list, **common
        )
        return [trained]
    best = train_best(
        system,
        features,
        labels,
        output,
        target=target,
        minutes=MINUTES if minutes is None else minutes,
        given=given,
        bad_list=bad_list_of(output),
        **common,
    )
    return list(best.trained)
