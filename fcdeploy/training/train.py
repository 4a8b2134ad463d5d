"""Train one network of a system on labelled faces: from features and identities to a checkpoint and a recipe.

The run folder holds all of it: ``config.json`` (settings and versions), ``curves.csv`` and ``curves.png``,
``best.pth`` and ``last.pth`` (weights in the authors' layout), ``state.pt`` (what it takes to go on) and
``faces/`` (neighbor lists of the training faces).
"""

import contextlib
import dataclasses
import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch

from fcdeploy import __version__
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import Features, hash_of
from fcdeploy.deploy.checkpoint import keys_of
from fcdeploy.deploy.recipe import recipe_text
from fcdeploy.deploy.recipe_beside import note_of_another, recipe_beside, recipe_place
from fcdeploy.errors import FcdeployWarning, InputError, counted
from fcdeploy.graph.given_lists import check_lists_of
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.features import read_features
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.given import open_lists
from fcdeploy.run.options import Options
from fcdeploy.run.run import Run
from fcdeploy.run.store import MemoryStore, Store
from fcdeploy.runtime.bad_rows import check_on_bad
from fcdeploy.runtime.prepare import sorts_lists
from fcdeploy.runtime.survey import list_length
from fcdeploy.systems import NAMES, Recipe, System, get_system
from fcdeploy.systems.recipe import Reranking
from fcdeploy.systems.settings import with_settings
from fcdeploy.systems.training_types import Schedule, Training, TrainingSettings, Value
from fcdeploy.training.choices import PUBLISHED, Choices, chosen_schedule, chosen_settings
from fcdeploy.training.configuration import check_config, configuration
from fcdeploy.training.faces import Faces, faces_of_training
from fcdeploy.training.identities import check_albums, people_of
from fcdeploy.training.live import LiveEngines, live_run, renew
from fcdeploy.training.loop import BEST, Loop, Progressed
from fcdeploy.training.memory import freed_memory_kept
from fcdeploy.training.networks import Networks, check_networks, new_networks, start_from
from fcdeploy.training.places import FACES, check_places, made_folders
from fcdeploy.training.report import Report


@dataclass(frozen=True)
class Trained:
    """Where a training left its checkpoint and recipe, and how good it was: measures of the best step by name."""

    checkpoint: Path
    recipe: Path
    run_dir: Path
    network: str
    step: int
    steps: int
    measures: Mapping[str, float]
    values: Mapping[str, Value]
    ended: str
    seconds: float


def train(
    system: System,
    features: Features,
    labels: np.ndarray,
    output: Path | str,
    *,
    network: str | None = None,
    recipe: Recipe | None = None,
    checkpoints: Sequence[Path] = (),
    init: Path | None = None,
    key: str | Sequence[str] | None = None,
    run_dir: Path | str | None = None,
    choices: Choices = PUBLISHED,
    unknown: str = "ignore",
    knn: Path | None = None,
    reranked: Path | None = None,
    labels_name: str = "labels",
    on_bad: str = "stop",
    bad_list: Path | None = None,
    until: float | None = None,
    quiet: bool = True,
) -> Trained:
    """Train a network and write its checkpoint to ``output``, and the recipe beside it (``.toml``).

    labels: (n,) identities, -1 where unknown: these faces are left out or, with ``unknown`` "singleton", each is an
    identity of its own. network: which of the system's; recipe: the settings to train for, of any width; without one
    those beside ``checkpoints`` and ``init``, else the published ones. checkpoints: of the networks that run before it.
    init: weights to start from. knn, reranked: files of neighbor lists and re-ranked lists of all faces of
    ``features``, for the training faces. key: where the weights stand in checkpoints that hold several, one for all, or
    one for each of ``checkpoints`` and then for ``init``. on_bad: rows that cannot be used raise InputError with 'stop'
    and are left out, with their labels, with 'skip' and 'zero'; all are listed in the file ``bad_list``, where one is
    named. until: when it should have ended, by ``time.monotonic``: fewer steps are taken where it would not. run_dir:
    keeps the training, and goes on with one that is there (``output`` with ``.run``). Raises InputError
    for what does not fit together, FcdeployError when the training diverges or collapses.
    """
    name, training = training_of(system, network)
    output, run_dir = Path(output), Path(run_dir) if run_dir else Path(output).with_suffix(".run")
    check_places(output, run_dir)
    check_on_bad(on_bad)
    before = (*checkpoints, *filter(None, [init]))
    recipe, note = recipe_to_train_for(system, recipe, before, features.dim)
    recipe = dataclasses.replace(recipe, feature_dim=features.dim, tuned=None)
    device = torch_device(choices.device)
    schedule = chosen_schedule(training.schedule, choices)
    settings = chosen_settings(training, choices.settings, f"{system.name} {name}")
    faces = faces_of_training(
        dataclasses.replace(features, normalize=recipe.features.normalize),
        labels,
        choices,
        unknown=unknown,
        labels_name=labels_name,
        on_bad=on_bad,
        bad_list=bad_list,
    )
    keys = keys_of(key, len(before))
    networks = new_networks(system, name, training, recipe, checkpoints, keys, choices.seed)
    check_networks(system, recipe, networks, checkpoints)
    if note:
        warnings.warn(note, FcdeployWarning, stacklevel=2)
    if init is not None:
        start_from(init, keys[-1], networks.trained, settings)
    report, lists = Report(quiet), {"knn": knn, "reranked": reranked}
    given = {option: path for option, path in lists.items() if path}
    setup = Setup(
        system, training, recipe, schedule, settings, choices, device, faces, networks, before, given
    )
    fitted = recipes_of_sides(setup, report)
    check_fitted(setup, fitted["training"])
    claims = made_folders(output, run_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(threads_limited(setup.options.cores))
        stack.enter_context(told_of_compiling(report.compiling))
        stack.enter_context(torch_threads(setup.options.cores))
        stack.enter_context(freed_memory_kept())
        store = stack.enter_context(RunFolder(run_dir / FACES))  # its lock is that of the whole training
        stack.callback(claims.end)
        loop = new_loop(setup, fitted, run_dir, store, report, quiet)
        done = dataclasses.replace(loop, until=until).run()
        store.drop_scratch()
    return write_results(setup, done, run_dir, output)


@dataclass(frozen=True)
class Setup:
    """What a training is made of: whose network is trained on which faces, and how.

    recipe: as it is for all faces. before: the checkpoints of other networks, and those to start from; lists: files of
    neighbor lists that were given, by the options that name them.
    """

    system: System
    training: Training
    recipe: Recipe
    schedule: Schedule
    settings: TrainingSettings
    choices: Choices
    device: torch.device
    faces: Faces
    networks: Networks
    before: Sequence[Path]
    lists: Mapping[str, Path]

    @property
    def options(self) -> Options:
        """The options of a run over either side's faces."""
        return Options(threads=self.choices.threads, inference=list(self.system.inferences)[-1])

    @property
    def options_with_lists(self) -> Options:
        """Those of the run over the training faces, which may have lists that were given."""
        knn = self.lists.get("knn")
        return dataclasses.replace(
            self.options, knn=str(knn) if knn else self.options.knn, reranked=self.lists.get("reranked")
        )


def recipes_of_sides(setup: Setup, report: Report) -> dict[str, Recipe]:
    """Fit the recipe to the faces of each side, and say what that changes."""
    fitted = {}
    for side, chosen in setup.faces.sides.items():
        fitted[side], notes = recipe_of_side(setup, side, setup.faces.albums[chosen])
        for note in notes:
            report.say(f"{side} faces: {note}")
    return fitted


def check_fitted(setup: Setup, recipe: Recipe) -> None:
    """Raise InputError when lists or settings do not go with the training faces; recipe: the one fitted to them."""
    faces = setup.faces
    some = faces.features.select(np.flatnonzero(~faces.validating))
    engines = LiveEngines(setup.system, setup.networks.weights, setup.device)
    k = list_length(setup.system, some, engines, recipe, setup.options)
    check_given_lists(setup.system, faces, setup.lists, recipe, k)
    smallest_album = int(np.bincount(faces.albums[~faces.validating]).min())
    if problem := setup.settings.problem(recipe, smallest_album):
        raise InputError(f"--set: {problem}.")


def new_loop(
    setup: Setup, fitted: Mapping[str, Recipe], folder: Path, store: Store, report: Report, quiet: bool
) -> Loop:
    """Return the steps of a training, whose lists and features are computed, or were by an earlier run, in ``store``.

    fitted: the recipe for each side. Raises InputError when ``folder`` keeps another training.
    """
    faces, networks, training = setup.faces, setup.networks, setup.training
    for module in networks.modules.values():
        module.to(setup.device)
    run, own = run_of_side(setup, "training", fitted, setup.options_with_lists, store, quiet)
    say_what_is_trained(setup, report)
    config = config_of(setup)
    try:
        check_config(folder, config)  # before anything of another training is replaced
        with advice_of_training():
            people = own if training.mixes else people_of(own, faces.albums_of("training"))
            task = training.task(run, people, setup.settings)
    except InputError:
        store.drop_scratch()
        raise
    if task.start is not None:
        task.start(networks.trained.cpu())  # with arrays of the task, which are in memory
        networks.trained.to(setup.device)
    held = None
    if "validation" in fitted:
        # No progress of what every check makes again.
        held_run, truth = run_of_side(setup, "validation", fitted, setup.options, MemoryStore(), quiet=True)
        held = held_run, people_of(truth, faces.albums_of("validation"))
    return Loop(
        networks.trained,
        networks.modules,
        networks.name,
        training,
        task,
        setup.schedule,
        setup.choices,
        config,
        folder,
        setup.device,
        run,
        held,
        report,
        setup.system,
    )


def run_of_side(
    setup: Setup, side: str, fitted: Mapping[str, Recipe], options: Options, store: Store, quiet: bool
) -> tuple[Run, np.ndarray]:
    """Begin a run over the faces of one side; returns it and their identities (n,) int64, numbered from 0."""
    features, identity = setup.faces.of(side)
    run = live_run(
        setup.system,
        features,
        fitted[side],
        setup.networks.weights,
        options,
        store,
        setup.device,
        albums=setup.faces.albums_of(side),
        quiet=quiet,
    )
    read_features(run)
    renew(run, "before", setup.networks.modules)
    return run, identity


def say_what_is_trained(setup: Setup, report: Report) -> None:
    """Say which network is trained, on how many faces, and how many others there are."""
    faces, networks = setup.faces, setup.networks
    if faces.left_out:
        report.say(
            f"left out: {counted(faces.left_out, 'face')} of unknown identity (included with --unknown singleton)"
        )
    after = f", after {' and '.join(networks.before)}" if networks.before else ""
    kept = "none held out for validation"
    if "validation" in faces.sides:
        n, people = faces.counts("validation")
        kept = f"{n:,} validation faces of {people:,}"
    n, people = faces.counts("training")
    report.say(
        f"{networks.name} of {setup.system.title}{after}: {n:,} training faces of {people:,} identities, {kept}"
    )


def config_of(setup: Setup) -> dict[str, object]:
    """Return the configuration of a training; see ``configuration``."""
    mixed = setup.choices.mixed
    return configuration(
        setup.system.name,
        setup.networks.name,
        setup.recipe,
        setup.schedule,
        setup.settings,
        setup.choices,
        mixed=setup.device.type == "cuda" if mixed is None else mixed,
        features=hash_of(setup.faces.features),  # of all: what is trained on differs by the split, too
        identity=setup.faces.identity,
        before=setup.before,
        lists=setup.lists,
    )


def write_results(setup: Setup, done: Progressed, folder: Path, output: Path) -> Trained:
    """Write the best weights to ``output``, and the recipe, with the settings found best, beside it."""
    text = recipe_text(with_settings(setup.recipe, done.values), heading(setup, done))
    best = (folder / BEST).read_bytes()
    with atomic_file(output) as file:
        file.write(best)
    with atomic_file(recipe_place(output)) as file:
        file.write(text.encode())
    return Trained(
        output,
        recipe_place(output),
        folder,
        setup.networks.name,
        done.best_step,
        done.step,
        done.measures,
        done.values,
        done.ended,
        done.seconds,
    )


def recipe_to_train_for(
    system: System, recipe: Recipe | None, checkpoints: Sequence[Path], dim: int
) -> tuple[Recipe, str | None]:
    """Return the recipe that was given, else that beside the checkpoints, else the published one; and what to say.

    Raises InputError for a recipe of another system.
    """
    published = dataclasses.replace(system.recipe(), feature_dim=dim)
    if recipe is None:
        beside = recipe_beside(system, checkpoints, lambda: published)
        return (beside.recipe, beside.sentence) if beside else (published, None)
    if recipe.system != system.name:
        raise InputError(
            f"the recipe is for {recipe.system}, not for {system.name}; give one for {system.name}."
        )
    fitted = dataclasses.replace(recipe, feature_dim=dim)
    return recipe, note_of_another(system, checkpoints, fitted, thresholds=False)


def check_given_lists(
    system: System, faces: Faces, given: Mapping[str, Path], recipe: Recipe, k: int
) -> None:
    """Raise InputError when lists that were given do not go with the faces; given: files by option.

    Lists are those of all faces: those of validation are left out of them, and get lists of their own. recipe: of the
    training faces, and k: how many neighbors it wants.
    """
    features = faces.features
    for option, path in given.items():
        if faces.dealt > 1:
            raise InputError(
                f"--{option} {path}: cannot be combined with --splits {faces.dealt}, which searches neighbors within "
                "each set; leave one of them out."
            )
        if option == "reranked" and option not in system.options:
            raise InputError(f"--reranked does not apply to {system.title}, which has no re-ranking.")
        lists = open_lists(path, features, k if option == "knn" else 1)
        if option == "reranked":
            with advice_of_training():
                cast(Reranking, recipe).check_reranked(lists.k, str(path))
        sorted_later = option == "knn" and sorts_lists(system, lists)
        check_lists_of(
            lists,
            features,
            unit=features.normalize,
            reranked=option == "reranked",
            sorted_later=sorted_later,
        )


@contextlib.contextmanager
def advice_of_training() -> Iterator[None]:
    """Say what there is here instead of an option that only commands with an engine have."""
    try:
        yield
    except InputError as error:
        told = str(error)
        remedied = re.sub(r"give (--)?hops\.$", "", told)
        if remedied == told:
            raise
        raise InputError(
            f"{remedied}give longer lists (faces of validation and unknown ones are left out of them), or smaller hops "
            "in the [neighborhood] of a --recipe."
        ) from error


def training_of(system: System, network: str | None) -> tuple[str, Training]:
    """Return which network of a system is trained, and how; raises InputError that names what there is."""
    trainings = system.trainings()
    if not trainings:
        having = [other for other in NAMES if get_system(other).trainings()]
        raise InputError(f"{system.title} cannot be trained here; {', '.join(having)} can.")
    if network is None and len(trainings) == 1:
        network = next(iter(trainings))
    if network is None or network not in trainings:
        given = (
            f"--network {network}: is none of" if network else f"{system.title} has several networks; give"
        )
        raise InputError(f"{given} --network {'|'.join(trainings)}.")
    return network, trainings[network]


def torch_device(asked: str) -> torch.device:
    """Return the device to train on; "auto" is the GPU when there is one. Raises InputError for one that is missing."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise InputError(f"--device {asked}: is none of auto, cpu, cuda and cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(
            f"--device {asked}: PyTorch {torch.__version__} finds {counted(found, 'GPU')} here; give --device cpu."
        )
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"--device {asked}: is none of auto, cpu, cuda and cuda:N.")
    return device


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let PyTorch use ``threads`` threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recipe_of_side(setup: Setup, side: str, albums: np.ndarray) -> tuple[Recipe, list[str]]:
    """Return the recipe for the "training" or the "validation" faces, and a sentence for each setting it changes.

    albums: (n,) int32, those of these faces. Raises InputError, saying which ``side`` they are on, when they are too
    few for the recipe or for that many albums.
    """
    system, recipe, weights, choices = setup.system, setup.recipe, setup.networks.weights, setup.choices
    told = "weights" in inspect.signature(recipe.for_run).parameters  # systems of several networks
    more = {"weights": weights} if told else {}
    try:
        fitted, notes = recipe.for_run(len(albums), **more)
    except InputError as error:
        raise InputError(f"{len(albums):,} {side} faces: {error}") from None
    if choices.splits > 1:
        if system.searches(fitted).get("proposals"):  # among components, which are of no album
            raise InputError(
                f"--splits {choices.splits}: cannot be combined with [[proposals.merge]]; leave it out, or give a "
                "recipe without these."
            )
        features = Features(np.broadcast_to(np.zeros(1, np.float32), (len(albums), recipe.feature_dim)), side)
        engines = LiveEngines(system, weights, torch.device("cpu"))
        k = list_length(system, features, engines, fitted, setup.options)
        check_albums(albums, choices.splits, k, side)
    return fitted, list(notes)


def heading(setup: Setup, done: Progressed) -> list[str]:
    """Say in a recipe what its weights were trained on."""
    n, people = setup.faces.counts("training")
    schedule = setup.schedule
    lines = [
        f"{setup.system.title}, network {setup.networks.name}, trained with fcdeploy {__version__} on {n:,} faces of "
        f"{people:,} identities,",
        f"{done.best_step:,} of {done.step:,} steps, batch {schedule.batch}, lr {schedule.lr}.",
    ]
    if done.measures:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in done.measures.items())
        lines.append(
            f"On validation identities: {figures}. Choose thresholds on your own faces with `fcdeploy tune`."
        )
    return lines
