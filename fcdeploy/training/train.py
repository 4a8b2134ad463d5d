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
from typing import Any

import numpy as np
import torch

from fcdeploy import __version__
from fcdeploy.clustering.metrics import check_unknown
from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.features import Features, hash_of
from fcdeploy.data.labels import check_known
from fcdeploy.data.run_record import Claims, check_run_folder, read_record
from fcdeploy.data.side_files import check_replaceable
from fcdeploy.deploy.checkpoint import keys_of, load_state_dict
from fcdeploy.deploy.recipe import is_written_recipe, recipe_text
from fcdeploy.deploy.recipe_beside import TRAINING, note_of_another, recipe_beside, recipe_place
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.graph.given_lists import check_lists_of
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.scan import scan_rows
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.features import read_features
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.given import open_lists
from fcdeploy.run.options import Options
from fcdeploy.run.run import Run
from fcdeploy.run.store import MemoryStore, Store
from fcdeploy.runtime.bad_rows import LEFT_OUT, check_on_bad, good_faces
from fcdeploy.runtime.prepare import sorts_lists
from fcdeploy.runtime.survey import list_length
from fcdeploy.systems import NAMES, System, Weights, Widths, check_recipe, get_system
from fcdeploy.systems.settings import with_settings
from fcdeploy.systems.training_types import Schedule, Training
from fcdeploy.training.choices import PUBLISHED, Choices, chosen_schedule, chosen_settings
from fcdeploy.training.configuration import check_config, configuration, is_config
from fcdeploy.training.identities import (
    alike_shots,
    check_albums,
    deal_faces,
    faces_where,
    identities_of,
    people_of,
    split_identities,
)
from fcdeploy.training.live import LiveEngines, live_run, renew
from fcdeploy.training.loop import BEST, CURVES, LAST, STATE, Loop, Progressed
from fcdeploy.training.memory import freed_memory_kept
from fcdeploy.training.report import Report

FACES = "faces"
KEPT = (TRAINING, f"{CURVES}.csv", f"{CURVES}.png", BEST, LAST, STATE, FACES)  # in the run folder


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
    values: Mapping[str, Any]
    ended: str


def train(
    system: System,
    features: Features,
    labels: np.ndarray,
    output: Path | str,
    *,
    network: str | None = None,
    recipe: Any = None,
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
    named. run_dir: keeps the training, and goes on with one that is there (``output`` with ``.run``). Raises InputError
    for what does not fit together, FcdeployError when the training diverges or collapses.
    """
    name, training = training_of(system, network)
    output, run_dir = Path(output), Path(run_dir) if run_dir else Path(output).with_suffix(".run")
    check_places(output, run_dir)
    check_on_bad(on_bad)
    recipe, note = recipe_to_train_for(system, recipe, (*checkpoints, *filter(None, [init])), features.dim)
    if recipe.system != system.name:
        raise InputError(
            f"the recipe is for {recipe.system}, not for {system.name}; give one for {system.name}."
        )
    recipe = dataclasses.replace(recipe, feature_dim=features.dim)
    device = torch_device(choices.device)
    schedule = chosen_schedule(training.schedule, choices)
    settings = chosen_settings(training, choices.settings, f"{system.name} {name}")
    features = dataclasses.replace(features, normalize=recipe.features.normalize)
    check_unknown(unknown)
    check_known(labels, labels_name, unknown)
    features, labels = without_bad_rows(features, labels, on_bad, bad_list)
    left_out = int((labels == -1).sum()) if unknown == "ignore" else 0
    if left_out:
        features, labels = features.select(np.flatnonzero(labels != -1)), labels[labels != -1]
    identity = identities_of(labels)
    validating = split_identities(identity, choices.validation, choices.seed, labels_name)
    if choices.albums > features.n:
        raise InputError(f"--albums {choices.albums:,}: there are {features.n:,} faces; give far fewer.")
    shots = alike_shots(features, identity) if choices.albums > 1 else None
    albums = deal_faces(identity, choices.albums, choices.seed, shots, choices.strays)
    keys = keys_of(key, len(checkpoints) + (init is not None))
    networks = networks_before(system, name, training, checkpoints, keys)
    before = {of: widths_of(system, of, networks[of]) for of in system.networks if of in networks}
    torch.manual_seed(choices.seed)
    net = training.network(recipe, before)
    networks[name] = net
    weights = {of: widths_of(system, of, networks[of]) for of in system.networks if of in networks}
    given = ", ".join(map(str, checkpoints))
    if before and (problem := system.problem(weights)):
        raise InputError(
            f"{given}: {problem} ({name}, to be trained, has its width from the features and its lengths from the "
            "recipe)."
        )
    remedy = "give features and a recipe that fit the checkpoints" if before else "give another recipe"
    check_recipe(system, recipe, weights, given or "--recipe", remedy)
    if note:
        warnings.warn(note, FcdeployWarning, stacklevel=2)
    if init is not None:
        if (start := getattr(settings, "start", "random")) != "random":
            raise InputError(
                f"--init and --set start={start} both say what the weights begin as; give one of them."
            )
        load_weights(net, init, keys[-1])
    options = Options(threads=choices.threads, inference=list(system.inferences)[-1])
    sides = {"training": ~validating, "validation": validating}
    report, fitted = Report(quiet), {}
    for side, chosen in sides.items():
        if chosen.any():
            fitted[side], notes = recipe_of_side(
                system, recipe, weights, options, choices, side, albums[chosen]
            )
            for note in notes:
                report.say(f"{side} faces: {note}")
    some = features.select(np.flatnonzero(~validating))
    k = list_length(system, some, LiveEngines(system, weights, device), fitted["training"], options)
    given_lists = check_given_lists(system, features, knn, reranked, choices, fitted["training"], k)
    smallest_album = int(np.bincount(albums[~validating]).min())
    if problem := settings.problem(fitted["training"], smallest_album):
        raise InputError(f"--set: {problem}.")
    claims, folder = made_folders(output, run_dir), run_dir
    with contextlib.ExitStack() as stack:
        stack.enter_context(threads_limited(options.cores))
        stack.enter_context(told_of_compiling(report.compiling))
        stack.enter_context(torch_threads(options.cores))
        stack.enter_context(freed_memory_kept())
        store = stack.enter_context(RunFolder(folder / FACES))  # its lock is that of the whole training
        stack.callback(claims.end)
        for module in networks.values():
            module.to(device)

        def run_of(side: str, kept: Store) -> tuple[Run, np.ndarray]:
            chosen = sides[side]
            part, own = faces_where(features, identity, chosen)
            # Progress of what is made once; of what every check makes again, none.
            once = kept is store
            own_options = dataclasses.replace(options, **given_lists) if once else options
            run = live_run(
                system,
                part,
                fitted[side],
                weights,
                own_options,
                kept,
                device,
                albums=albums_of(side),
                quiet=quiet or not once,
            )
            read_features(run)
            renew(run, "before", networks)
            return run, own

        def albums_of(side: str) -> np.ndarray | None:
            return None if choices.albums == 1 else albums[sides[side]]

        run, own = run_of("training", store)
        behind = f", behind {' and '.join(before)}" if before else ""
        kept = "none kept for validation"
        if validating.any():
            people = len(np.unique(identity[validating]))
            kept = f"{int(validating.sum()):,} validation faces of {people:,}"
        if left_out:
            report.say(
                f"{left_out:,} faces of unknown identity are left out (--unknown singleton takes them in)"
            )
        report.say(
            f"{name} of {system.title}{behind}: {run.n:,} training faces of {own.max() + 1:,} identities, {kept}"
        )
        config = configuration(
            system.name,
            name,
            recipe,
            schedule,
            settings,
            choices,
            mixed=device.type == "cuda" if choices.mixed is None else choices.mixed,
            features=hash_of(features),  # of all: what is trained on differs by the split, too
            identity=identity,
            before=(*checkpoints, *filter(None, [init])),
            lists={option: path for option, path in (("knn", knn), ("reranked", reranked)) if path},
        )
        try:
            check_config(folder, config)  # before anything of another training is replaced
            with advice_of_training():
                task = training.task(
                    run, own if training.mixes else people_of(own, albums_of("training")), settings
                )
        except InputError:
            store.drop_scratch()
            raise
        if task.start is not None:
            task.start(net)
        held = None
        if validating.any():
            held_run, truth = run_of("validation", MemoryStore())
            held = held_run, people_of(truth, albums_of("validation"))
        loop = Loop(
            net,
            networks,
            name,
            training,
            task,
            schedule,
            choices,
            config,
            folder,
            device,
            run,
            held,
            report,
            system,
        )
        done = loop.run()
        store.drop_scratch()
    text = recipe_text(with_settings(recipe, done.values), heading(system, name, run, own, done, schedule))
    best = (folder / BEST).read_bytes()
    with atomic_file(output) as file:
        file.write(best)
    with atomic_file(recipe_place(output)) as file:
        file.write(text.encode())
    return Trained(
        output,
        recipe_place(output),
        folder,
        name,
        done.best_step,
        done.step,
        done.measures,
        done.values,
        done.ended,
    )


def recipe_to_train_for(
    system: System, recipe: Any, checkpoints: Sequence[Path], dim: int
) -> tuple[Any, str | None]:
    """Return the recipe that was given, else that beside the checkpoints, else the published one; and what to say."""
    published = dataclasses.replace(system.recipe(), feature_dim=dim)
    if recipe is None:
        beside = recipe_beside(system, checkpoints, lambda: published)
        return (beside.recipe, beside.sentence) if beside else (published, None)
    if recipe.system != system.name:
        return recipe, None
    fitted = dataclasses.replace(recipe, feature_dim=dim)
    return recipe, note_of_another(system, checkpoints, fitted, thresholds=False)


def without_bad_rows(
    features: Features, labels: np.ndarray, on_bad: str, bad_list: Path | None
) -> tuple[Features, np.ndarray]:
    """Return the features and labels (n,) of the rows that can be used; see ``good_faces``."""
    scan = scan_rows(features)
    if len(scan.bad) and bad_list is not None:
        make_folder(bad_list.parent, "output")
    faces, told = good_faces(features, scan, on_bad, bad_list, LEFT_OUT)
    return faces, labels[scan.good] if told else labels


def check_given_lists(
    system: System,
    features: Features,
    knn: Path | None,
    reranked: Path | None,
    choices: Choices,
    recipe: Any,
    k: int,
) -> dict[str, Any]:
    """Return the options of the training faces' run for lists that were given, or raise InputError.

    Lists are those of all faces: those of validation are left out of them, and get lists of their own. recipe: of the
    training faces, and k: how many neighbors it wants.
    """
    given = {"knn": knn, "reranked": reranked}
    for option, path in given.items():
        if path is None:
            continue
        if choices.albums > 1:
            raise InputError(
                f"--{option} {path}: does not go with --albums {choices.albums}, which deals the faces into sets with "
                "neighbors of their own; leave one of them out."
            )
        if option == "reranked" and option not in system.options:
            raise InputError(f"--reranked does not apply to {system.title}, which has no re-ranking.")
        lists = open_lists(path, features, k if option == "knn" else 1)
        if option == "reranked":
            with advice_of_training():
                recipe.check_reranked(lists.k, str(path))
        sorted_later = option == "knn" and sorts_lists(system, lists)
        check_lists_of(
            lists,
            features,
            unit=features.normalize,
            reranked=option == "reranked",
            sorted_later=sorted_later,
        )
    return {option: str(path) if option == "knn" else path for option, path in given.items() if path}


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
    """Return where to train; "auto" is the GPU when there is one. Raises InputError for one that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError:
        raise InputError(f"--device {asked}: is none of auto, cpu, cuda and cuda:N.") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise InputError(
            f"--device {asked}: PyTorch {torch.__version__} finds {found} GPUs here; give --device cpu."
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


def recipe_of_side(
    system: System,
    recipe: Any,
    weights: Weights,
    options: Options,
    choices: Choices,
    side: str,
    albums: np.ndarray,
) -> tuple[Any, list[str]]:
    """Return the recipe for the "training" or the "validation" faces, and a sentence for each setting it changes.

    albums: (n,) int32, those of these faces. Raises InputError, saying which ``side`` they are on, when they are too
    few for the recipe or for that many albums.
    """
    told = "weights" in inspect.signature(recipe.for_run).parameters  # systems of several networks
    more = {"weights": weights} if told else {}
    try:
        fitted, notes = recipe.for_run(len(albums), **more)
    except InputError as error:
        raise InputError(f"{len(albums):,} {side} faces: {error}") from None
    if choices.albums > 1:
        if any(system.searches(fitted).values()):
            raise InputError(
                f"--albums {choices.albums}: does not go with proposals of several levels; leave it out, or give a "
                "recipe without [[proposals.merge]]."
            )
        features = Features(np.broadcast_to(np.zeros(1, np.float32), (len(albums), recipe.feature_dim)), side)
        engines = LiveEngines(system, weights, torch.device("cpu"))
        k = list_length(system, features, engines, fitted, options)
        check_albums(albums, choices.albums, k, side)
    return fitted, list(notes)


def check_places(output: Path, run_dir: Path) -> None:
    """Raise InputError when checkpoint, recipe and run folder are not to lie in three places."""
    beside = recipe_place(output)
    for path in (output, run_dir):
        if path.resolve() == beside.resolve():
            raise InputError(f"{path}: is where the recipe goes, beside the checkpoint; choose another name.")
    if output.resolve() == run_dir.resolve():
        raise InputError(f"{output}: is the run folder, too; choose another name for the checkpoint.")
    check_replaceable(beside, is_written_recipe, "the recipe")
    claims_of(run_dir).check_free(KEPT)
    check_run_folder(run_dir / FACES)


def claims_of(run_dir: Path) -> Claims:
    """Return what in a run folder is ours; raises InputError when it is a folder of somebody's files."""
    return Claims(run_dir, check_run_folder(run_dir, older=names_before_records))


def names_before_records(folder: Path) -> set[str] | None:
    """Return the names that are ours in the run folder of a version that left no record there."""
    found = {path.name for path in folder.iterdir()}
    if found == {FACES} and read_record(folder / FACES) is not None:
        return {FACES}
    return {*KEPT} if is_config(folder / TRAINING) else None


def made_folders(output: Path, run_dir: Path) -> Claims:
    """Make the folders of the checkpoint and of the run; returns what is ours in the latter.

    Raises InputError where none can be.
    """
    if not run_dir.parent.is_dir() and run_dir.parent.resolve() != output.parent.resolve():
        raise InputError(
            f"{run_dir}: the folder {run_dir.parent} does not exist; create it or choose another --run-dir."
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir}: is a file; give a folder as --run-dir.")
    for folder, remedy in ((output.parent, "output"), (run_dir, "--run-dir")):
        make_folder(folder, remedy)
        check_parent(output)
    claims = claims_of(run_dir)
    claims.begin()
    claims.claim(*KEPT)
    return claims


def make_folder(folder: Path, remedy: str) -> None:
    """Make a folder and those above it; raises InputError, with what to choose anew, where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: {error.filename} is a file, not a folder; choose another {remedy}."
        ) from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); choose another {remedy}.") from error


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


def widths_of(system: System, network: str, module: torch.nn.Module) -> Widths:
    """Read the widths of a network off its weights."""
    widths = system.networks[network].widths_from_shapes(shapes_of(module.state_dict()))
    assert widths is not None
    return widths


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state_dict's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


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


def heading(
    system: System, name: str, run: Run, identity: np.ndarray, done: Progressed, schedule: Schedule
) -> list[str]:
    """Say in a recipe what its weights were trained on."""
    lines = [
        f"{system.title}, network {name}, trained with fcdeploy {__version__} on {run.n:,} faces of "
        f"{int(identity.max()) + 1:,} identities,",
        f"{done.best_step:,} of {done.step:,} steps, batch {schedule.batch}, lr {schedule.lr}.",
    ]
    if done.measures:
        figures = ", ".join(f"{key} {value:.4f}" for key, value in done.measures.items())
        lines.append(
            f"On validation identities: {figures}. Choose thresholds on your own faces with `fcdeploy tune`."
        )
    return lines
