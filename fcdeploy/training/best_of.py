"""Train a system with settings that suit the faces: several seeds in the time given, the best of each network kept."""

import dataclasses
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import Features, hash_of
from fcdeploy.data.run_record import RECORD
from fcdeploy.deploy.checkpoint import keys_of
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.deploy.recipe_beside import TRAINING, recipe_beside, recipe_place
from fcdeploy.errors import InputError, counted
from fcdeploy.systems import Recipe, System
from fcdeploy.systems.settings import settings_as_dict, settings_from_dict
from fcdeploy.training.choices import Choices
from fcdeploy.training.configuration import is_config
from fcdeploy.training.faces import Faces, faces_of_training
from fcdeploy.training.figures import Dealt, Sample, crowd_of, labelled_figures
from fcdeploy.training.identities import alike_shots, deal_faces
from fcdeploy.training.places import check_places, claims_of, make_folder
from fcdeploy.training.report import Report
from fcdeploy.training.suited import (
    Suited,
    closest_split,
    lines_of,
    networks_of,
    splits_to_try,
    suited_to,
    usual_split,
)
from fcdeploy.training.train import Trained, train, training_of

MINUTES = 30.0
CHOSEN = "chosen.json"  # in the run folder: what was chosen, and the seeds that are trained
MOST_SEEDS = 8
CHECKS = 5  # of the validation faces: with more, checks take longer than steps
Given = Mapping[str, object]  # fields of ``Choices`` that the user names


@dataclass(frozen=True)
class Best:
    """What is left of a system's training: of each network the best seed's checkpoint and recipe.

    seeds: how many were trained of each network, by name.
    """

    trained: Sequence[Trained]
    seeds: Mapping[str, int]
    suited: Suited


@dataclass(frozen=True)
class Order:
    """What is to be trained, on what, and where it goes.

    networks: names, one trained behind the other; before: checkpoints that stand before all of them; lists: files of
    neighbor lists, by option; given: what the user chose.
    """

    system: System
    networks: Sequence[str]
    faces: Faces
    recipe: Recipe
    suited: Suited
    before: Sequence[Path]
    keys: str | Sequence[str] | None
    init: Path | None
    lists: Mapping[str, Path | None]
    given: Given
    folder: Path
    labels_name: str


def train_best(
    system: System,
    features: Features,
    labels: np.ndarray,
    output: Path | str,
    *,
    target: Features | None = None,
    minutes: float = MINUTES,
    network: str | None = None,
    recipe: Recipe | None = None,
    checkpoints: Sequence[Path] = (),
    init: Path | None = None,
    key: str | Sequence[str] | None = None,
    run_dir: Path | str | None = None,
    given: Given | None = None,
    unknown: str = "ignore",
    knn: Path | None = None,
    reranked: Path | None = None,
    labels_name: str = "labels",
    on_bad: str = "stop",
    bad_list: Path | None = None,
    quiet: bool = True,
) -> Best:
    """Train a system, or one ``network`` of it, with settings chosen by the faces.

    target: unlabelled faces like those to be clustered, after which the labelled ones are split; minutes: the time for
    all of it, in which seeds are trained one after the other. given: fields of ``Choices`` that are not to be chosen;
    recipe: neither are its settings. Of several networks each checkpoint is ``output`` with the network's name behind
    a hyphen. Other arguments as of ``train``, and so are the errors.
    """
    output = Path(output)
    folder = Path(run_dir) if run_dir else output.with_suffix(".run")
    given = dict(given or {})
    check_order(system, features, target, minutes, folder)
    trained_here = networks_of(system, network)
    outputs = outputs_of(system, network, output)
    for name, path in outputs.items():
        training_of(system, name)
        check_places(path, folder)
    report = Report(quiet)
    faces = faces_of_training(
        features,
        labels,
        Choices(**{name: value for name, value in given.items() if name in ("validation", "seed")}),  # type: ignore[arg-type]
        unknown=unknown,
        labels_name=labels_name,
        on_bad=on_bad,
        bad_list=bad_list,
    )
    if faces.left_out:
        report.say(
            f"left out: {counted(faces.left_out, 'face')} of unknown identity (included with --unknown singleton)"
        )
    lists = {"knn": knn, "reranked": reranked}
    before = [*checkpoints, *filter(None, [init])]
    known = recipe or (recipe_known(system, before, system.recipe()) if of_own(system, before) else None)
    suited = chosen_for(system, trained_here, faces, target, given, known, whole=any(lists.values()))
    chosen = recipe_chosen(system, suited, features.dim)
    order = Order(
        system=system,
        networks=trained_here,
        faces=faces,
        recipe=recipe or recipe_known(system, before, chosen) or chosen,
        suited=suited,
        before=checkpoints,
        keys=key,
        init=init,
        lists=lists,
        given=given,
        folder=folder,
        labels_name=labels_name,
    )
    report.say("settings chosen from the faces:")
    for line in lines_of(suited.reasons):
        report.say(f"  {line}")
    return kept_best(order, outputs, minutes, report, quiet)


def check_order(
    system: System, features: Features, target: Features | None, minutes: float, folder: Path
) -> None:
    """Raise InputError when there is no such training, or another kind of training in the folder."""
    if not system.trainings():
        training_of(system, None)
    if not 0 < minutes < 1e6:
        raise InputError(f"--minutes {minutes:g}: should be more than 0.")
    if target is not None and target.dim != features.dim:
        raise InputError(
            f"{target.name}: its rows have {target.dim} values, those of {features.name} {features.dim}; "
            "--target takes features of the same embedder."
        )
    if is_config(folder / TRAINING):
        raise InputError(
            f"{folder}: holds a training with given settings; give the same settings to continue it, or choose another "
            "--run-dir."
        )


def outputs_of(system: System, network: str | None, output: Path) -> dict[str, Path]:
    """Return where the checkpoints go, by network: of several, with its name behind a hyphen."""
    names = networks_of(system, network)
    if len(names) == 1:
        return {names[0]: output}
    return {name: output.with_name(f"{output.stem}-{name}{output.suffix}") for name in names}


def chosen_for(
    system: System,
    networks: Sequence[str],
    faces: Faces,
    target: Features | None,
    given: Given,
    recipe: Recipe | None,
    *,
    whole: bool,
) -> Suited:
    """Choose settings by the faces.

    recipe: one that is not to be chosen; whole: the faces stay one set, as lists of all of them were given.
    """
    features, identity = faces.features, faces.identity
    shots = alike_shots(features, identity)
    sample = Sample(features, identity, shots)
    sizes = np.bincount(identity)
    usual = usual_split(float(np.median(sizes)), float((sizes == 1).mean()))
    labelled = labelled_figures(sample, *usual)
    crowd = None if target is None else crowd_of(target, labelled.boundary)
    if crowd is None or whole:
        split = sample.dealt(*((1, 0.0) if whole else usual), labelled.boundary)
    else:
        tried = [sample.dealt(*one, labelled.boundary) for one in splits_to_try(labelled.typical, features.n)]
        split = closest_split(tried, crowd)
    fewest = min(int(chosen.sum()) for chosen in faces.sides.values())
    k = longest_list(recipe) if recipe else 0
    suited = suited_to(system, networks, labelled, split, crowd, fewest, k)
    if "splits" in given or "singletons" in given:
        return suited
    albums = albums_that_fit(
        faces, shots, split, longest_list(recipe or recipe_chosen(system, suited, features.dim))
    )
    if albums == split.albums:
        return suited
    split = sample.dealt(albums, split.strays if albums > 1 else 0.0, labelled.boundary)
    return suited_to(system, networks, labelled, split, crowd, fewest, k)


def albums_that_fit(faces: Faces, shots: np.ndarray, split: Dealt, k: int) -> int:
    """Return into how many albums the faces can be dealt so that on either side each has k of them; 1 always is."""
    for albums in range(split.albums, 1, -1):
        album = deal_faces(faces.identity, albums, 0, shots, split.strays)
        sides = [np.bincount(album[chosen], minlength=albums).min() for chosen in faces.sides.values()]
        if min(sides) >= k:
            return albums
    return 1


def longest_list(recipe: Recipe) -> int:
    """Return how many neighbors a face has in the longest lists of a recipe."""
    tables: list[object] = [settings_as_dict(recipe)]
    longest = 1
    while tables:
        table = tables.pop()
        if isinstance(table, dict):
            hops = table.get("hops", [0])  # L-GCN's, without a k beside them, do not count the face itself
            longest = max(longest, table.get("k", hops[0] + 1))
            tables.extend(table.values())
        elif isinstance(table, (list, tuple)):
            tables.extend(table)
    return longest


def recipe_known(system: System, before: Sequence[Path], rest: Recipe) -> Recipe | None:
    """Return the recipe beside the checkpoints, if any; ``rest``: what it is where these are of another system."""
    found = recipe_beside(system, before, lambda: rest)
    return None if found is None else found.recipe


def of_own(system: System, before: Sequence[Path]) -> bool:
    """Tell whether a recipe of this system lies beside a checkpoint, rather than one that has a part of it."""
    beside = [recipe_place(path) for path in before]
    return any(load_recipe(file).system == system.name for file in beside if file.is_file())


def recipe_chosen(system: System, suited: Suited, dim: int) -> Recipe:
    """Return the recipe of the chosen settings, with the published ones for what is not chosen."""
    table = settings_as_dict(system.recipe())
    table["feature_dim"] = dim
    for place, value in suited.recipe.items():
        *tables, key = place.split(".")
        inner = table
        for name in tables:
            inner = inner[name]  # type: ignore[assignment]
        inner[key] = value
    return settings_from_dict(table, "the chosen settings")


def kept_best(order: Order, outputs: Mapping[str, Path], minutes: float, report: Report, quiet: bool) -> Best:
    """Train all networks, each behind the best of those before it, and write these to ``outputs``."""
    new = new_folders([order.folder, *(path.parent for path in outputs.values())])
    for path in outputs.values():
        make_folder(path.parent, "output")
    progress = begun(order)
    best: dict[str, Trained] = {}
    seeds = {}
    left = 60 * minutes
    shares = {name: order.suited.networks[name].share for name in order.networks}
    try:
        for name in order.networks:
            share = shares[name] / sum(shares[other] for other in order.networks if other not in best)
            before = [*order.before, *(trained.checkpoint for trained in best.values())]
            found, seconds = seeds_of(order, name, before, share * left, progress, report, quiet)
            best[name] = max(found, key=score)
            seeds[name] = len(found)
            left -= seconds
            if len(found) > 1:
                report.say(f"{name}: the best of {len(found)} is seed {found.index(best[name])}")
    except InputError:
        if order.folder in new and {path.name for path in order.folder.iterdir()} <= {RECORD, CHOSEN}:
            shutil.rmtree(order.folder)
            for folder in filter(Path.exists, new):
                folder.rmdir()
        raise
    written = [written_to(outputs[name], trained, order.suited) for name, trained in best.items()]
    return Best(written, seeds, order.suited)


def new_folders(wanted: Sequence[Path]) -> list[Path]:
    """Return the folders that are to be made, with those above them, innermost first."""
    every = {folder for path in wanted for folder in (path, *path.parents) if not folder.exists()}
    return sorted(every, key=lambda folder: -len(folder.parts))


def seeds_of(
    order: Order,
    name: str,
    before: Sequence[Path],
    seconds: float,
    progress: dict[str, dict[str, float]],
    report: Report,
    quiet: bool,
) -> tuple[list[Trained], float]:
    """Train one network from several seeds, as many as ``seconds`` allow; returns all, and what they took.

    progress: seconds by name and seed, as ``begun`` returns it.
    """
    taken = progress.setdefault(name, {})
    found: list[Trained] = []
    judged = choices_for(order, name, 0).validation > 0
    claims = claims_of(order.folder)
    spent = 0.0
    while not found or (judged and len(found) < MOST_SEEDS and spent + spent / len(found) <= seconds):
        seed = len(found)
        if seed:
            report.say(f"{name}: seed {seed}, as there is time for another")
        place = order.folder / f"{name}-{seed}.pth"
        claims.claim(place.name, recipe_place(place).name, place.with_suffix(".run").name)
        begun_at = time.monotonic()
        found.append(
            train(
                order.system,
                order.faces.features,
                order.faces.identity,
                place,
                network=name,
                recipe=order.recipe,
                checkpoints=before,
                init=order.init,
                key=keys_for(order, len(before) - len(order.before)),
                choices=choices_for(order, name, seed),
                labels_name=order.labels_name,
                until=begun_at + seconds - spent,
                knn=order.lists["knn"],
                reranked=order.lists["reranked"],
                quiet=quiet,
            )
        )
        taken.setdefault(str(seed), time.monotonic() - begun_at)
        spent += taken[str(seed)]
        keep(order, progress)
    return found, spent


def keys_for(order: Order, own: int) -> list[str]:
    """Return the keys of checkpoints: given ones, ``own`` of networks trained here, which have none, and ``init``."""
    given = len(order.before)
    keys = [key or "" for key in keys_of(order.keys, given + (order.init is not None))]
    return [*keys[:given], *[""] * own, *keys[given:]]


def choices_for(order: Order, name: str, seed: int) -> Choices:
    """Return what is chosen for a network's training from one seed, with what the user has given instead."""
    habit, given = order.suited.networks[name], dict(order.given)
    own = dict(given.pop("settings", {}))  # type: ignore[call-overload]
    base = int(given.pop("seed", 0))  # type: ignore[call-overload]
    chosen: dict[str, object] = {
        "steps": None if given.get("epochs") else order.suited.steps[name],
        "batch": habit.batch,
        "lr": habit.lr,
        "patience": 0,
        "splits": order.suited.albums,
        "singletons": order.suited.strays,
        "mixed": True if habit.mixed and has_bfloat16() else None,
        "checks": CHECKS,
    }
    chosen |= given
    return Choices(**chosen, seed=base + seed, split_seed=base, settings={**habit.settings, **own})  # type: ignore[arg-type]


def has_bfloat16() -> bool:
    """Tell whether this processor multiplies bfloat16 itself; others take longer with it."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def score(trained: Trained) -> float:
    """The mean F of the best step; where nobody was held out, all are alike."""
    return float(np.mean(list(trained.measures.values()))) if trained.measures else 0.0


def begun(order: Order) -> dict[str, dict[str, float]]:
    """Begin the run folder, or take up what is there: the seconds of trained seeds, by network and seed.

    Raises InputError when other settings were chosen there.
    """
    order.folder.mkdir(parents=True, exist_ok=True)
    claims = claims_of(order.folder)
    claims.begin()
    claims.claim(CHOSEN)
    try:
        kept = json.loads((order.folder / CHOSEN).read_bytes())
        config, taken = kept["config"], kept["seconds"]
    except (OSError, ValueError, KeyError, TypeError):
        keep(order, {})
        return {}
    if config != config_of(order):
        raise InputError(
            f"{order.folder}: holds a training of other faces or settings; give the same ones to continue it, or "
            "choose another --run-dir."
        )
    return {name: dict(seconds) for name, seconds in taken.items()}


def keep(order: Order, progress: Mapping[str, Mapping[str, float]]) -> None:
    """Write what was chosen, and the seconds of trained seeds."""
    content = {"config": config_of(order), "seconds": progress}
    with atomic_file(order.folder / CHOSEN) as file:
        file.write(json.dumps(content, indent=1).encode())


def config_of(order: Order) -> dict[str, object]:
    """Return what the trainings depend on, as JSON has it."""
    found = {
        "system": order.system.name,
        "networks": list(order.networks),
        "recipe": settings_as_dict(order.recipe),
        "chosen": [[row.name, row.value] for row in order.suited.reasons],
        "features": hash_of(order.faces.features),
        "given": {name: str(value) for name, value in sorted(order.given.items()) if name != "threads"},
    }
    return dict(json.loads(json.dumps(found)))


def written_to(output: Path, trained: Trained, suited: Suited) -> Trained:
    """Write the best seed's checkpoint, and its recipe with why its settings were chosen."""
    text = trained.recipe.read_text().splitlines(keepends=True)
    comments = next((at for at, line in enumerate(text) if not line.startswith("#")), len(text))
    why = [f"# {line}\n" for line in ("Chosen from the faces:", *lines_of(suited.reasons))]
    with atomic_file(output) as file:
        file.write(trained.checkpoint.read_bytes())
    with atomic_file(recipe_place(output)) as file:
        file.write("".join([*text[:comments], *why, *text[comments:]]).encode())
    return dataclasses.replace(trained, checkpoint=output, recipe=recipe_place(output))
