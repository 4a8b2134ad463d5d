"""Train one network of a system on labelled faces: from features and identities to a checkpoint and a recipe.

The run folder holds all of it: ``config.json`` (settings and versions), ``curves.csv`` and ``curves.png``,
``best.pth`` and ``last.pth`` (weights in the authors' layout), ``state.pt`` (what it takes to go on) and
``faces/`` (neighbor lists of the training faces). What is drawn at a step depends on the seed and the step alone,
so that a training that was stopped ends with the weights of one that was not.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import io
import json
import math
import os
import platform
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fcdeploy import __version__
from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.features import Features, check_features
from fcdeploy.deploy.onnx_from_checkpoint import load_state_dict
from fcdeploy.deploy.recipe import recipe_text
from fcdeploy.engine.batching import ahead
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.runtime.pipeline import Options, numba_threads
from fcdeploy.runtime.run_folder import RunFolder, Store
from fcdeploy.systems import NAMES, Schedule, System, Task, Training, Weights, check_recipe, get_system
from fcdeploy.systems.settings import settings_as_dict, with_settings
from fcdeploy.training.curves import draw_training, write_table
from fcdeploy.training.identities import (
    alike_shots,
    check_albums,
    deal_faces,
    faces_where,
    identities_of,
    people_of,
    split_identities,
)
from fcdeploy.training.live import LiveRun, live_run
from fcdeploy.training.memory import freed_memory_kept, give_back
from fcdeploy.training.report import Report
from fcdeploy.training.sweep import KeyedStore, Trial, best_trial, sweep

CONFIG, STATE, BEST, LAST, CURVES = "config.json", "state.pt", "best.pth", "last.pth", "curves"
FACES = "faces"
CHECKS = 10  # of the validation faces, at least, and one after each epoch
SAVE_SECONDS = 60.0  # between states that are saved while no check is due: what a kill may cost
DRAW_SECONDS = 30.0  # between pictures
KEEP_SECONDS = (
    30.0  # until freed memory is given back: in pieces of unlike sizes it would become more and more
)
POINTS = 50  # of the curve between two checks, at most
# Spread of what a network says, and for how many steps, at which it has collapsed.
SAME, SAME_STEPS = 1e-3, 30
PAIRWISE, BCUBED = "pairwise_f", "bcubed_f"


@dataclass(frozen=True)
class Choices:
    """What a user may choose for a training; None means what was published, or what suits the machine.

    validation: share of the identities kept apart; patience: checks without a better validation F after which
    training ends (0: never). device: "auto", "cpu", "cuda" or "cuda:N". mixed: half-precision products (None: on a
    GPU). albums: sets that the faces are dealt into (see ``deal_faces``); strays: share of those that fall into any.
    average: decay of a running mean of the weights, which is then what is judged and saved (0: the weights
    themselves). settings: the network's own, by name.
    """

    epochs: int | None = None
    steps: int | None = None
    batch: int | None = None
    lr: float | None = None
    validation: float = 0.1
    patience: int = 5
    seed: int = 0
    device: str = "auto"
    mixed: bool | None = None
    threads: int = 0
    albums: int = 1
    strays: float = 0.0
    average: float = 0.0
    settings: Mapping[str, str] = field(default_factory=dict)


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


@dataclass
class Progressed:
    """How far a training is; all of it is saved and loaded. values: the settings found best at the best step."""

    step: int = 0
    best_step: int = -1
    best_score: float = -1.0
    stale: int = 0
    same: int = 0
    ended: str = ""
    seconds: float = 0.0
    measures: dict[str, float] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)


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
    run_dir: Path | str | None = None,
    choices: Choices = Choices(),
    labels_name: str = "labels",
    quiet: bool = True,
) -> Trained:
    """Train a network and write its checkpoint to ``output``, and the recipe beside it (``.toml``).

    labels: (n,) identities, -1 where unknown. network: which of the system's; recipe: the settings to train for (the
    published ones), of any width. checkpoints: of the networks that run before it. init: weights to start from.
    run_dir: keeps the training, and goes on with one that is there (``output`` with ``.run``). Raises InputError for
    what does not fit together, FcdeployError when the training diverges or collapses.
    """
    name, training = training_of(system, network)
    output, run_dir = Path(output), Path(run_dir) if run_dir else Path(output).with_suffix(".run")
    check_places(output, run_dir)
    recipe = system.recipe() if recipe is None else recipe
    if recipe.system != system.name:
        raise InputError(
            f"the recipe is for {recipe.system}, not for {system.name}; give one for {system.name}."
        )
    recipe = dataclasses.replace(recipe, feature_dim=features.dim)
    device = torch_device(choices.device)
    schedule = chosen_schedule(training.schedule, choices)
    settings = chosen_settings(training, choices.settings, f"{system.name} {name}")
    features = dataclasses.replace(features, normalize=recipe.features.normalize)
    check_features(features)
    identity = identities_of(labels)
    validating = split_identities(identity, choices.validation, choices.seed, labels_name)
    shots = alike_shots(features, identity) if choices.albums > 1 else None
    albums = deal_faces(identity, choices.albums, choices.seed, shots, choices.strays)
    networks = networks_before(system, name, training, checkpoints)
    before = {of: widths_of(system, of, networks[of]) for of in system.networks if of in networks}
    torch.manual_seed(choices.seed)
    net = training.network(recipe, before)
    networks[name] = net
    weights = {of: widths_of(system, of, networks[of]) for of in system.networks if of in networks}
    if before and (problem := system.problem(weights)):
        raise InputError(f"{', '.join(map(str, checkpoints))}: {problem}.")
    check_recipe(system, recipe, weights, ", ".join(map(str, checkpoints)) or "--recipe")
    if init is not None:
        if (start := getattr(settings, "start", "random")) != "random":
            raise InputError(
                f"--init and --set start={start} both say what the weights begin as; give one of them."
            )
        load_weights(net, init)
    options = Options(threads=choices.threads, inference=list(system.inferences)[-1])
    for side in (~validating, validating):
        fitted = fitted_recipe(system, recipe, weights, side)
        if choices.albums > 1 and any(system.searches(fitted).values()):
            raise InputError(
                f"--albums {choices.albums}: does not go with proposals of several levels; leave it out, or give a "
                "recipe without [[proposals.merge]]."
            )
        if choices.albums > 1 and side.any():
            made = system.products(int(side.sum()), weights, fitted, options)
            check_albums(albums[side], made["knn.npz"]["ids"][0][1])
    report = Report(quiet)
    folder = made_folders(output, run_dir)
    with contextlib.ExitStack() as stack:
        stack.enter_context(numba_threads(options.cores))
        stack.enter_context(torch_threads(options.cores))
        stack.enter_context(freed_memory_kept())
        store = stack.enter_context(RunFolder(folder / FACES))  # its lock is that of the whole training
        for module in networks.values():
            module.to(device)

        def run_of(chosen: np.ndarray, kept: Store) -> tuple[LiveRun, np.ndarray]:
            part, own = faces_where(features, identity, chosen)
            fitted = fitted_recipe(system, recipe, weights, chosen)
            # Progress of what is made once; of what every check makes again, none.
            once = kept is store
            run = live_run(system, part, fitted, weights, options, kept, device, quiet=quiet or not once)
            run.albums = None if choices.albums == 1 else albums[chosen]
            run.read_features()
            with torch.random.fork_rng():  # making copies of networks draws weights
                run.renew("before", networks)
            return run, own

        run, own = run_of(~validating, store)
        behind = f", behind {' and '.join(before)}" if before else ""
        report.say(
            f"{name} of {system.title}{behind}: {run.n:,} training faces of {own.max() + 1:,} identities, "
            f"{int(validating.sum()):,} validation faces of {len(np.unique(identity[validating])):,}"
        )
        config = {
            "system": system.name,
            "network": name,
            "recipe": settings_as_dict(recipe),
            "schedule": dataclasses.asdict(schedule),
            "settings": dataclasses.asdict(settings),
            "steps": choices.steps,
            "validation": choices.validation,
            "albums": choices.albums,
            "strays": choices.strays,
            "average": choices.average,
            "patience": choices.patience,
            "seed": choices.seed,
            "mixed": device.type == "cuda" if choices.mixed is None else choices.mixed,
            "features": run.features_hash,
            "labels": hashlib.sha256(np.ascontiguousarray(identity).data).hexdigest(),
            "before": [
                hashlib.sha256(path.read_bytes()).hexdigest()
                for path in (*checkpoints, *filter(None, [init]))
            ],
        }
        config = json.loads(json.dumps(config))
        try:
            check_config(folder, config)  # before anything of another training is replaced
        except InputError:
            store.drop_scratch()
            raise
        task = training.task(run, own if training.mixes else people_of(own, run.albums), settings)
        if task.start is not None:
            task.start(net)
        held = None
        if validating.any():
            held_run, truth = run_of(validating, KeyedStore())
            held = held_run, people_of(truth, held_run.albums)
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
    with atomic_file(output.with_suffix(".toml")) as file:
        file.write(text.encode())
    return Trained(
        output,
        output.with_suffix(".toml"),
        folder,
        name,
        done.best_step,
        done.step,
        done.measures,
        done.values,
        done.ended,
    )


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


def chosen_schedule(published: Schedule, choices: Choices) -> Schedule:
    """Return the published schedule with what was chosen instead; raises InputError for what cannot be."""
    if choices.epochs is not None and choices.steps is not None:
        raise InputError("--epochs and --steps both say how long to train; give one of them.")
    chosen = {name: getattr(choices, name) for name in ("epochs", "batch", "lr")}
    schedule = dataclasses.replace(
        published, **{key: value for key, value in chosen.items() if value is not None}
    )
    steps = 1 if choices.steps is None else choices.steps
    if min(schedule.epochs, steps) < 1 or schedule.batch < 2:
        raise InputError("--epochs and --steps should be 1 or more, --batch 2 or more.")
    if not 0 < schedule.lr < math.inf:
        raise InputError(f"--lr {schedule.lr}: should be positive.")
    if not 0 <= choices.validation <= 0.5:
        raise InputError(f"--validation {choices.validation}: should be a share of the identities, 0 to 0.5.")
    if not 0 <= choices.seed < 2**63:
        raise InputError(f"--seed {choices.seed}: should be a whole number from 0 to 2 ** 63 - 1.")
    if choices.albums < 1:
        raise InputError(f"--albums {choices.albums}: should be 1 or more.")
    if not 0 <= choices.strays <= 1:
        raise InputError(f"--strays {choices.strays}: should be a share of the faces, 0 to 1.")
    if not 0 <= choices.average < 1:
        raise InputError(f"--average {choices.average}: should be 0 (none) or more, and less than 1.")
    if choices.strays and choices.albums == 1:
        raise InputError(
            f"--strays {choices.strays}: says how faces are dealt into albums; give --albums, too."
        )
    return schedule


def chosen_settings(training: Training, given: Mapping[str, str], where: str) -> Any:
    """Build a network's own training settings from texts by name; raises InputError for unknown or impossible ones."""
    fields: dict[str, type] = {
        entry.name: type(entry.default) for entry in dataclasses.fields(training.settings)
    }
    values = {}
    for key, text in given.items():
        if key not in fields:
            known = ", ".join(fields) or "none"
            raise InputError(f"--set {key}={text}: {where} has no such training setting; it has {known}.")
        try:
            values[key] = fields[key](text)
        except ValueError:
            raise InputError(f"--set {key}={text}: is not of type {fields[key].__name__}.") from None
    settings = training.settings(**values)
    if problem := settings.problem():
        raise InputError(f"--set: {problem}.")
    return settings


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


def fitted_recipe(system: System, recipe: Any, weights: Weights, chosen: np.ndarray) -> Any:
    """Return the recipe for the chosen faces (n,) bool; raises InputError when they are too few for it."""
    if not chosen.any():
        return recipe
    told = "weights" in inspect.signature(recipe.for_run).parameters  # systems of several networks
    more = {"weights": weights} if told else {}
    try:
        return recipe.for_run(int(chosen.sum()), **more)[0]
    except InputError as error:
        raise InputError(
            f"{int(chosen.sum()):,} of the faces are trained with, or kept for validation: {error}"
        ) from None


def check_places(output: Path, run_dir: Path) -> None:
    """Raise InputError when checkpoint, recipe and run folder are not to lie in three places."""
    beside = output.with_suffix(".toml")
    for path in (output, run_dir):
        if path.resolve() == beside.resolve():
            raise InputError(f"{path}: is where the recipe goes, beside the checkpoint; choose another name.")
    if output.resolve() == run_dir.resolve():
        raise InputError(f"{output}: is the run folder, too; choose another name for the checkpoint.")


def made_folders(output: Path, run_dir: Path) -> Path:
    """Make the folders of the checkpoint and of the run, which is returned; raises InputError where none can be."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{output}: {error.filename} is a file, not a folder; choose another output."
        ) from error
    check_parent(output)
    if not run_dir.parent.is_dir():
        raise InputError(
            f"{run_dir}: the folder {run_dir.parent} does not exist; create it or choose another --run-dir."
        )
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir}: is a file; give a folder as --run-dir.")
    run_dir.mkdir(exist_ok=True)
    return run_dir


def widths_of(system: System, network: str, module: torch.nn.Module) -> dict[str, Any]:
    """Read the widths of a network off its weights."""
    widths = system.networks[network].widths_from_shapes(shapes_of(module.state_dict()))
    assert widths is not None
    return widths


def shapes_of(state: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a state_dict's tensors."""
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def networks_before(
    system: System, name: str, training: Training, checkpoints: Sequence[Path]
) -> dict[str, torch.nn.Module]:
    """Load the networks that run before the one in training; raises InputError when they are not those it needs."""
    found: dict[str, torch.nn.Module] = {}
    known = (*training.takes, *training.needs)
    for path in checkpoints:
        state = load_state_dict(path)
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


def load_weights(net: torch.nn.Module, path: Path) -> None:
    """Start from a checkpoint's weights; raises InputError when they are not this network's."""
    state = load_state_dict(path)
    wanted = shapes_of(net.state_dict())
    for key, shape in wanted.items():
        if (
            not key.endswith(".num_batches_tracked")
            and tuple(state[key].shape if key in state else ()) != shape
        ):
            found = tuple(state[key].shape) if key in state else "no such tensor"
            raise InputError(f"{path}: its weights do not fit: {key} should be {shape}, found {found}.")
    net.load_state_dict({key: tensor for key, tensor in state.items() if key in wanted}, strict=False)


def check_config(folder: Path, config: dict[str, Any]) -> None:
    """Write the configuration; raises InputError when the folder holds a training of another one."""
    file = folder / CONFIG
    try:
        before = dict(json.loads(file.read_bytes())["config"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        before = {}  # absent or damaged
    names = [key for key in config if before.get(key) != config[key]]
    if names and (folder / STATE).exists():
        raise InputError(
            f"{folder}: holds a training with other settings ({', '.join(names)}); give the same ones to go on with "
            "it, or choose another --run-dir."
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
        "cores": os.cpu_count(),
    }
    with atomic_file(file) as opened:
        opened.write(json.dumps({"config": config, "versions": versions}, indent=1).encode())


def heading(
    system: System, name: str, run: LiveRun, identity: np.ndarray, done: Progressed, schedule: Schedule
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


@dataclass
class Loop:
    """The steps of one training, its checks, and what it saves."""

    net: torch.nn.Module
    networks: Mapping[str, torch.nn.Module]
    name: str
    training: Training
    task: Task
    schedule: Schedule
    choices: Choices
    config: Mapping[str, Any]
    folder: Path
    device: torch.device
    train_run: LiveRun
    held: tuple[LiveRun, np.ndarray] | None
    report: Report
    system: System
    at: Progressed = field(default_factory=Progressed)

    def run(self) -> Progressed:
        """Train to the end, from where an earlier run of the same settings stopped."""
        self.batch = min(self.schedule.batch, self.task.size)
        self.epoch_steps = max(1, self.task.size // self.batch)
        self.total = self.choices.steps or self.schedule.epochs * self.epoch_steps
        self.optimizer = new_optimizer(self.net, self.schedule)
        self.half = half_precision(self.device) if self.config["mixed"] else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.half is torch.float16)
        self.mean = running_mean(self.net, self.choices.average) if self.choices.average else None
        self.load()
        self.saved = self.drawn = self.resumed = self.given_back = time.monotonic()
        before = self.at.seconds
        with self.report.steps(self.total, self.at.step):
            while not self.at.ended:
                self.steps_to(self.next_check())
                self.at.seconds = before + time.monotonic() - self.resumed
                self.check()
        self.draw()
        return self.at

    @property
    def judged(self) -> torch.nn.Module:
        """The weights that count: their running mean where there is one."""
        return self.net if self.mean is None else self.mean.module

    def next_check(self) -> int:
        """Return the step after which the validation faces are looked at: the end of an epoch, of a tenth, of all."""
        tenth = max(1, self.total // CHECKS)
        return min(*((self.at.step // every + 1) * every for every in (self.epoch_steps, tenth)), self.total)

    def batches(self, first: int, last: int) -> Iterator[dict[str, np.ndarray]]:
        """Give the arrays of steps first..last-1."""
        epoch, order = -1, np.empty(0, dtype=np.int64)
        for step in range(first, last):
            if step // self.epoch_steps != epoch:
                epoch = step // self.epoch_steps
                order = np.random.default_rng([self.choices.seed, 1, epoch]).permutation(self.task.size)
            at = step % self.epoch_steps * self.batch
            rng = np.random.default_rng([self.choices.seed, 2, step])
            yield self.task.batch(order[at : at + self.batch], rng)

    def prepared(self, first: int, last: int) -> Generator[dict[str, np.ndarray], None, None]:
        """Give the same a few steps ahead, in a thread of its own."""

        def batches() -> Iterator[dict[str, np.ndarray]]:
            with numba_threads(self.train_run.options.cores):  # a setting of each thread
                yield from self.batches(first, last)

        yield from ahead(batches())

    def steps_to(self, last: int) -> None:
        """Train until step ``last``."""
        self.net.train()
        first = self.at.step
        every = max(1, (last - first) // POINTS)
        losses: list[float] = []
        with contextlib.closing(self.prepared(first, last)) as batches:
            for arrays in batches:
                lr = self.schedule.lr * 0.1 ** sum(
                    self.at.step >= drop * self.total for drop in self.schedule.drops
                )
                loss, spread = self.step(arrays, lr)
                self.at.step += 1
                losses.append(loss)
                if self.at.step % every == 0 or self.at.step == last:
                    row = {"step": self.at.step, "epoch": round(self.at.step / self.epoch_steps, 4), "lr": lr}
                    self.at.rows.append({**row, "loss": float(np.mean(losses)), "spread": spread})
                    losses.clear()
                self.report.advance(loss)
                self.watch(spread)
                if time.monotonic() - self.given_back > KEEP_SECONDS:
                    give_back()
                    self.given_back = time.monotonic()
                # At the last of these steps the check saves; a state from before it would have it skipped.
                if self.at.step < last and time.monotonic() - self.saved > SAVE_SECONDS:
                    self.save()

    def step(self, arrays: Mapping[str, np.ndarray], lr: float) -> tuple[float, float]:
        """Take one step; returns its loss and the spread of what the network said."""
        batch = {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            loss, said = self.training_loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            kept = ""
            if (self.folder / BEST).exists():
                kept = f" and another --run-dir (the best weights so far are in {self.folder})"
            raise FcdeployError(
                f"the loss is no longer finite at step {self.at.step + 1:,}; start again with a lower --lr than "
                f"{self.schedule.lr:g}{kept}."
            )
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.mean is not None:
            self.mean.update_parameters(self.net)
        return value, float(said.detach().float().std()) if said.numel() > 1 else math.inf

    def training_loss(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        return self.task.loss(self.net, batch)

    def watch(self, spread: float) -> None:
        """Raise FcdeployError when the network says the same of everything, and has done so for many steps."""
        self.at.same = self.at.same + 1 if spread < SAME else 0
        if self.at.same >= SAME_STEPS:
            raise FcdeployError(
                f"training collapsed: since step {self.at.step - SAME_STEPS + 1:,} all that {self.name} says of its "
                f"faces is the same (within {SAME}); start again with another --lr than {self.schedule.lr}, a larger "
                f"--batch than {self.batch}, or another --seed, in another --run-dir."
            )

    def check(self) -> None:
        """Measure the network on the validation faces, note whether it is the best so far, and save everything."""
        at = self.at
        if self.held is not None:
            measures, values = self.outcome(*self.held)
            score = float(np.mean(list(measures.values())))
            if at.rows and at.rows[-1]["step"] == at.step:
                at.rows[-1] |= {**measures, **values}
        else:
            measures, values, score = {}, {}, float(at.step)
        better = score > at.best_score
        at.stale = 0 if better else at.stale + 1
        if better:
            at.best_score, at.best_step, at.measures, at.values = score, at.step, measures, values
            save_weights(self.folder / BEST, self.judged)
        if at.step >= self.total:
            at.ended = "all steps"
        elif self.choices.patience and at.stale >= self.choices.patience:
            at.ended = f"no better for {at.stale} checks"
        self.report.checked(
            at.step, self.total, at.rows[-1]["loss"] if at.rows else 0.0, measures, values, better
        )
        self.save()
        if time.monotonic() - self.drawn > DRAW_SECONDS:
            self.draw()

    def outcome(self, run: LiveRun, truth: np.ndarray) -> tuple[dict[str, float], dict[str, Any]]:
        """How good the clusters of other faces are, with the settings that suit the network best."""
        with torch.random.fork_rng():  # making copies of networks draws weights
            run.renew(f"step {self.at.step}", {self.name: self.judged})
            if self.training.outcome is not None:
                return self.training.outcome(run, truth)
            tunables = self.system.tunable(run.bundle.weights, run.options)
            trials = sweep(run, truth, tunables, mean_f, rounds=1)
        best = best_trial(trials, tunables, mean_f)
        measures = {PAIRWISE: best.evaluation.pairwise.f, BCUBED: best.evaluation.bcubed.f}
        return measures, dict(best.values)

    def draw(self) -> None:
        draw_training(self.folder / f"{CURVES}.png", self.at.rows, list(self.at.measures))
        self.drawn = time.monotonic()

    def save(self) -> None:
        """Save all that it takes to go on."""
        save_weights(self.folder / LAST, self.judged)
        write_table(self.folder / f"{CURVES}.csv", self.at.rows)
        state = {
            "at": dataclasses.asdict(self.at),
            "net": self.net.state_dict(),
            "mean": {} if self.mean is None else self.mean.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state_all() if self.device.type == "cuda" else [],
        }
        write_tensors(self.folder / STATE, state)
        self.saved = time.monotonic()

    def load(self) -> None:
        """Take up what ``save`` left, if it did."""
        file = self.folder / STATE
        if not file.exists():
            return
        try:
            state = torch.load(file, map_location=self.device, weights_only=True)
            at = Progressed(**state["at"])
            self.net.load_state_dict(state["net"])
            if self.mean is not None:
                self.mean.load_state_dict(state["mean"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.scaler.load_state_dict(state["scaler"])
            torch.set_rng_state(state["rng"].cpu())
            if self.device.type == "cuda" and state["cuda_rng"]:
                torch.cuda.set_rng_state_all([rng.cpu() for rng in state["cuda_rng"]])
        except Exception as error:  # torch.load lets whatever its readers raise pass through
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise InputError(f"{file}: cannot be taken up ({reason}); choose another --run-dir.") from error
        self.at = at
        self.report.say(f"going on from step {at.step:,} of {self.total:,}, kept in {self.folder}")


def mean_f(trial: Trial) -> float:
    """The mean of pairwise and BCubed F: what makes a network the best."""
    return (trial.evaluation.pairwise.f + trial.evaluation.bcubed.f) / 2


def new_optimizer(net: torch.nn.Module, schedule: Schedule) -> torch.optim.Optimizer:
    """Return the optimizer of a schedule."""
    parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if schedule.optimizer == "adam":
        return torch.optim.Adam(parameters, schedule.lr, weight_decay=schedule.weight_decay)
    return torch.optim.SGD(
        parameters, schedule.lr, momentum=schedule.momentum, weight_decay=schedule.weight_decay
    )


def running_mean(net: torch.nn.Module, decay: float) -> AveragedModel:
    """Return a copy of ``net`` that follows it: ``decay`` of what it was and the rest of what ``net`` is, each step.

    So do the statistics of its BatchNorms. What single steps add by chance is averaged out.
    """
    return AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def half_precision(device: torch.device) -> torch.dtype:
    """Return bfloat16, or float16 on GPUs that have no other."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def save_weights(path: Path, net: torch.nn.Module) -> None:
    """Write a state_dict as the authors do: plain tensors on the CPU."""
    state = {name: tensor.detach().cpu() for name, tensor in net.state_dict().items()}
    write_tensors(path, state)


def write_tensors(path: Path, state: Mapping[str, Any]) -> None:
    """Write what ``torch.save`` makes of ``state``, whole or not at all.

    By way of memory: PyTorch makes a RuntimeError of what the system says of a full disk.
    """
    saved = io.BytesIO()
    torch.save(state, saved)
    with atomic_file(path) as file:
        file.write(saved.getbuffer())
