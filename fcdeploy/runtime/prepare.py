"""What has to fit together before a run begins: features, a bundle, options, files of lists."""

import contextlib
import dataclasses
import inspect
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from fcdeploy.data.features import Features
from fcdeploy.data.run_record import RECORD
from fcdeploy.engine.bundle import MANIFEST, Bundle
from fcdeploy.errors import InputError
from fcdeploy.graph.given_lists import check_lists_of
from fcdeploy.graph.lists import ListsFile
from fcdeploy.graph.search import search_named
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.given import GivenLists, open_lists
from fcdeploy.run.options import DESCRIBED, Options, check_values
from fcdeploy.runtime.survey import list_length, survey
from fcdeploy.systems import NAMES, Recipe, System, Weights, check_recipe, get_system
from fcdeploy.systems.recipe import Reranking
from fcdeploy.systems.settings import settings_from_dict, with_settings

PUBLISHED = "exact"  # the inference that computes the published function
EXACT_INFERENCE_LIMIT = 20_000  # faces up to which --inference auto computes the published function


@dataclass(frozen=True)
class Prepared:
    """Features, a bundle and options that fit together; settings: of the recipe, for this run; notes: for the user."""

    system: System
    features: Features
    bundle: Bundle
    settings: Recipe
    options: Options
    notes: list[str]

    def artifacts(self, *, keeps: bool = False) -> list[Artifact]:
        """Return what the run computes, see ``survey``."""
        return survey(self.system, self.features, self.bundle, self.settings, self.options, keeps=keeps)

    def given(self) -> dict[str, GivenLists]:
        """Return the files of lists that the run takes."""
        return given_lists(self.system, self.options, self.features)


def given_lists(
    system: System, options: Options, features: Features, refill: bool = False
) -> dict[str, GivenLists]:
    """Return the files of lists that options name; refill: see ``GivenLists``, not for re-ranked ones."""
    given = {}
    if options.knn_file is not None:
        sort = sorts_lists(system, open_lists(options.knn_file, features))
        given["knn"] = GivenLists(options.knn_file, sort, refill)
    if options.reranked is not None:
        given["reranked"] = GivenLists(options.reranked)
    return given


def prepare(features: Features, bundle: Bundle, options: Options) -> Prepared:
    """Fit features, bundle and options together.

    Everything that can be found wrong before hours of work is found here, but for the values of the features.
    """
    system = get_system(bundle.system, f"{bundle.path}/{MANIFEST}")
    if features.dim != bundle.feature_dim:
        raise InputError(
            f"{features.name}: expected (n, {bundle.feature_dim}) features, found ({features.n}, {features.dim}); "
            f"{bundle.path} was exported for d = {bundle.feature_dim}."
        )
    recipe = settings_from_dict(dict(bundle.manifest["recipe"]), f"{bundle.path}/{MANIFEST}")
    check_networks(system, bundle, recipe)
    published = recipe
    recipe = with_settings(recipe, options.settings, "--set")
    if recipe != published and (problem := recipe.problem()):
        raise InputError(f"--set: {problem}.")
    check_recipe(system, recipe, bundle.weights, "--set", "leave these keys as they are")
    check_options(system, options)
    if refused := system.refusal(bundle.weights, options):
        raise InputError(f"{refused}.")
    given = {"hops": options.hops, "tau": options.tau, "link": options.link, "weights": bundle.weights}
    asked = inspect.signature(recipe.for_run).parameters  # each system has its own settings of a run
    replaced = {name: value for name, value in given.items() if name in asked}
    settings, notes = recipe.for_run(features.n, k=options.k, **replaced)
    inference = choose_inference(system, options.inference, features.n, bundle.passes)
    if options.inference == "auto" and inference != PUBLISHED:
        notes = [
            *notes,
            f"inference is {inference}, as there are more than {EXACT_INFERENCE_LIMIT:,} faces: much faster, but not "
            f"the published function; for that, give --inference {PUBLISHED}.",
        ]
    options = dataclasses.replace(options, inference=inference)
    bundle.check_device(options.device)
    if options.tables != "float32" and options.inference != "layerwise":
        notes = [*notes, f"--tables {options.tables} has no effect: inference is {options.inference}."]
    search = "file" if options.knn_file else search_named(options.knn, features.n).name
    if options.recall is not None and search != "cells":
        found = "come from a file" if search == "file" else f"are found by {search} search"
        notes = [*notes, f"--recall {options.recall} has no effect: neighbors {found}."]
    if options.vram and bundle.device(options.device) == "cpu":
        notes = [*notes, "--vram has no effect: the engine runs on the CPU."]
    bundle.check_files()
    for name in passes_of_run(system, settings, bundle.weights, options):
        bundle.file(name)  # the manifest of somebody else's bundle may leave one out
    if options.knn_file is not None:
        settings, more = system.fit_lists(settings, open_lists(options.knn_file, features).k, options.knn)
        notes = [*notes, *more]
        k = list_length(system, features, bundle, settings, options)
        advice = "make longer lists"
        with contextlib.suppress(InputError):
            recipe.for_run(features.n, k=open_lists(options.knn_file, features).k, **replaced)
            advice = "give --k {k} or less"
        lists = open_lists(options.knn_file, features, k, advice)
        unit = recipe.features.normalize
        check_lists_of(lists, features, unit=unit, sorted_later=sorts_lists(system, lists))
    if options.reranked is not None:
        lists = open_lists(options.reranked, features)
        cast(Reranking, settings).check_reranked(lists.k, str(options.reranked))
        check_lists_of(lists, features, reranked=True)
    features = dataclasses.replace(features, normalize=recipe.features.normalize)
    return Prepared(system, features, bundle, settings, options, notes)


def check_networks(system: System, bundle: Bundle, recipe: Recipe) -> None:
    """Raise InputError unless a bundle's networks belong together in its system, and its recipe is for them.

    Exported ones do; the manifest of somebody else's bundle may say anything.
    """
    file = bundle.path / MANIFEST
    for name, widths in bundle.weights.items():
        known = system.networks[name].example if name in system.networks else {}
        found, wanted = ({key: type(width) for key, width in of.items()} for of in (widths, known))
        if found != wanted:
            raise InputError(
                f"{file}: '{name}' with the widths {', '.join(widths)} is not a network of {system.title}; "
                f"{bundle.remake}."
            )
    if problem := system.problem(bundle.weights):
        raise InputError(f"{file}: {problem}; {bundle.remake}.")
    check_recipe(system, recipe, bundle.weights, str(file), bundle.remake)


def check_not_kept_in(
    run_dir: Path, options: Options, features: Features | None = None, places: Collection[str] = ()
) -> None:
    """Raise InputError when lists are given that lie in the run folder itself, which would write over them.

    features are refused where they lie below one of the ``places`` that the run takes in its folder.
    """
    folder = run_dir.resolve()
    if features is not None and inside(Path(features.name), folder) in places:
        raise InputError(
            f"{features.name}: lies in the run folder, where the run would overwrite it; choose another --run-dir."
        )
    recorded = (folder / RECORD).is_file()
    for name, given in options.lists.items():
        if given.resolve().parent == folder or (recorded and given.resolve().parent.parent == folder):
            raise InputError(
                f"{name} {given}: lies in the run folder, which reuses its own lists anyway; leave {name} out, or "
                "choose another --run-dir."
            )


def inside(path: Path, folder: Path) -> str | None:
    """Return the name in ``folder``, which is resolved, that a path lies under; None where it lies elsewhere."""
    path = path.resolve()
    return path.relative_to(folder).parts[0] if path.is_relative_to(folder) and path != folder else None


def check_options(system: System, options: Options) -> None:
    """Raise InputError when an option is given that the system does not have, or of an impossible value."""
    for name, described in DESCRIBED.items():
        if described.of_system and getattr(options, name) is not None and name not in system.options:
            *several, last = [other.title for other in map(get_system, NAMES) if name in other.options]
            having = f"{', '.join(several)} and {last}" if several else last
            raise InputError(
                f"--{name.replace('_', '-')} does not apply to {system.title}, only to {having}."
            )
    check_values(options)


def choose_inference(system: System, inference: str, n: int, passes: Collection[str]) -> str:
    """Return how the network is evaluated; 'auto' is exact up to EXACT_INFERENCE_LIMIT faces.

    passes: those of the bundle. Raises InputError when it cannot be evaluated so.
    """
    ways = ways_of(system, passes)
    if inference == "auto":
        return ways[0] if n <= EXACT_INFERENCE_LIMIT else ways[-1]
    if inference not in ways:
        what = system.title if len(ways) == len(system.inferences) else "this engine"
        raise InputError(f"--inference {inference}: {what} can be evaluated as {' or '.join(ways)}.")
    return inference


def ways_of(system: System, passes: Collection[str]) -> list[str]:
    """Return how a bundle with these passes can be evaluated, "exact" first."""
    first, *others = system.inferences
    return [first, *(way for way in others if set(system.inferences[way]) <= set(passes))]


def passes_of_run(system: System, settings: Recipe, weights: Weights, options: Options) -> tuple[str, ...]:
    """Return the names of the passes that a run with these settings evaluates."""
    if system.workload is not None:
        return tuple(system.workload(settings, weights, options))
    return system.inferences[options.inference] or tuple(system.passes(weights))


def sorts_lists(system: System, lists: ListsFile) -> bool:
    """Tell whether a system sorts the neighbor lists of a file by similarity."""
    return system.sorts_lists == "always" or (system.sorts_lists == "similarities" and lists.has_sims)
