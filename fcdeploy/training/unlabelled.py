"""A threshold without labels: how stable clusters are over its values, and where neighbors speak most for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.confidence import joins_of
from fcdeploy.clustering.evidence import PROBABILITY, Evidence
from fcdeploy.clustering.forest import completed, strongest_forest
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import Features
from fcdeploy.data.side_files import check_replaceable
from fcdeploy.deploy.recipe import recipe_text
from fcdeploy.engine.bundle import MANIFEST, Bundle
from fcdeploy.errors import InputError, counted
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.runtime.bad_rows import LEFT_OUT, check_on_bad
from fcdeploy.runtime.checked import checked_rows
from fcdeploy.runtime.evidence import kept_artifacts
from fcdeploy.runtime.pipeline import begin_run
from fcdeploy.runtime.prepare import prepare
from fcdeploy.systems import Recipe, System, Tunable
from fcdeploy.systems.settings import setting_of, settings_from_dict, with_settings
from fcdeploy.systems.training_types import Value
from fcdeploy.training.curves import draw_stability, is_drawn_here
from fcdeploy.training.stores import opened_store
from fcdeploy.training.tune import check_tunable
from fcdeploy.training.tuned import describe_values

DEFAULTS = Options()
HALF = 0.5  # of its neighbors: a part that more of them speak for joining should be joined
CLOSE = 0.01  # of the highest votes: values as good as the best


@dataclass(frozen=True)
class Point:
    """One value of the threshold and its clusters.

    clusters: how many; largest: share of the faces in the largest. votes: sum over all joins of the faces of the
    smaller part times the share of their neighbors that speak for it less HALF, per face. agreement: adjusted Rand
    index with the clusters of the value before, NaN for the first.
    """

    value: Value
    clusters: int
    largest: float
    votes: float
    agreement: float


@dataclass(frozen=True)
class Unlabelled:
    """What was suggested, and the points that it was chosen from, in the order of their values.

    before: the value of the recipe as it was; close: the values between which votes are within CLOSE of the highest;
    recipe: with the suggested value.
    """

    tunable: Tunable
    points: Sequence[Point]
    best: Point
    before: Value
    close: tuple[Value, Value]
    recipe: Recipe


def tune_unlabelled(
    features: Features,
    bundle: Bundle,
    *,
    options: Options = DEFAULTS,
    on_bad: str = "stop",
    bad_list: Path | None = None,
    run_dir: Path | str | None = None,
    scratch_dir: Path | str | None = None,
    quiet: bool = True,
) -> Unlabelled:
    """Suggest a value of the threshold that trades precision for recall, for faces that nobody has labelled.

    Clusters are made for every value that ``tune`` tries of it; other settings stay as they are. Of all values the one
    is suggested at which the neighbors of the faces speak most for what is joined: taken from the strongest link on, a
    part that is joined to a larger one counts for it with each of its faces where more than half of what these list
    outside of the part lies in the other, and against it where less does. Where the network gives links a probability,
    the mean of this share and the probability is what counts. Arguments as of ``tune``.
    """
    recipe = settings_from_dict(bundle.about.recipe, f"{bundle.path}/{MANIFEST}")
    check_on_bad(on_bad)
    prepared = prepare(features, bundle, options)
    system = prepared.system
    tunable, *_ = check_tunable(system, system.tunable(bundle.weights, prepared.options))
    progress = Progress(quiet)
    with progress.stage("features"), told_of_compiling(progress.compiling):
        checked = checked_rows(prepared.features, options.duplicates, on_bad, bad_list, LEFT_OUT)
    with (
        threads_limited(options.cores),
        opened_store(prepared, Path(run_dir) if run_dir else None, scratch_dir) as store,
        told_of_compiling(progress.compiling),
    ):
        run = begin_run(checked, bundle, options, store, progress, final=False)
        before = setting_of(run.settings, tunable.key)
        system.cluster(run)  # what all values have in common, with its own progress
        run.progress = Progress()
        values = [value for value in tunable.values if possible(run, tunable.key, value)]
        with progress.bar("tuning", len(values), unit="settings") as bar:
            points = []
            labels = None
            for value in values:
                found = labels_and_votes(run, system, tunable.key, value)
                points.append(point_of(value, *found, labels))
                labels = found[0]
                bar.advance(1)
        store.drop_scratch()
    best = max(points, key=lambda point: point.votes)
    if best.votes <= 0:
        raise InputError(
            f"{features.name}: at no value of {tunable.key} do most neighbors agree with the clusters; label some "
            "faces, or check some pairs (`fcdeploy pairs`)."
        )
    close = [point.value for point in points if point.votes >= (1 - CLOSE) * best.votes]
    return Unlabelled(
        tunable, points, best, before, (close[0], close[-1]), with_settings(recipe, {tunable.key: best.value})
    )


def possible(run: Run, key: str, value: Value) -> bool:
    """Tell whether a run's settings may have this value."""
    return with_settings(run.settings, {key: value}).problem() is None


def labels_and_votes(run: Run, system: System, key: str, value: Value) -> tuple[np.ndarray, float]:
    """Return the labels (n,) int64 of a run with another value of one setting, and its votes; see ``Point``."""
    recipe = run.settings
    run.settings = with_settings(recipe, {key: value})
    run.planned.clear()
    try:
        labels = system.cluster(run)
        kept = kept_artifacts(run)
        accepted = system.evidence(run, kept)
        links = completed(*strongest_forest(run.n, accepted.links(), labels), labels)
        nothing = np.empty(run.n, np.float32)
        lists = kept[accepted.lists].lists
        joins = joins_of(Evidence(*links, *links, accepted.strength, lists, nothing, nothing, 0))
        support = joins.support.astype(np.float64)
        if accepted.strength == PROBABILITY:  # the network has a vote, too
            support = (support + links[1]) / 2
        votes = joins.side * (support - HALF)
        return labels, float(votes.sum() / run.n)
    finally:
        run.settings = recipe


def point_of(value: Value, labels: np.ndarray, votes: float, before: np.ndarray | None) -> Point:
    """Return what is known of one value; before: the labels of the one before it."""
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    agreement = float("nan") if before is None else evaluate(labels, before, unknown="singleton").ari
    return Point(value, int(np.count_nonzero(sizes)), float(sizes.max() / len(labels)), votes, agreement)


def write_unlabelled(found: Unlabelled, features: str, output: Path) -> Path:
    """Write the recipe to ``output`` and the plot of stability beside it (``.png``), whose path is returned."""
    plot = output.with_suffix(".png")
    check_replaceable(plot, is_drawn_here, "the plot")
    said = describe_values({found.tunable.key: found.best.value})
    lines = [
        f"Suggested without labels: {said}, at which neighbors agree most with the clusters.",
        f"{counted(found.best.clusters, 'cluster')}; not measured on labelled faces.",
    ]
    with atomic_file(output) as file:
        file.write(recipe_text(found.recipe, lines).encode())
    numbers = [point for point in found.points if isinstance(point.value, (int, float))]
    assert isinstance(found.best.value, (int, float))
    draw_stability(
        plot,
        found.tunable.key,
        [(float(point.value), point.votes, point.agreement) for point in numbers],  # type: ignore[arg-type]
        float(found.best.value),
        f"{Path(features).name}: {said} suggested",
    )
    return plot


def unlabelled_as_dict(found: Unlabelled) -> dict[str, object]:
    """Return what ``fcdeploy tune --unlabelled --json`` prints."""

    def row(point: Point) -> dict[str, object]:
        agreement = None if np.isnan(point.agreement) else point.agreement
        return {
            "values": {found.tunable.key: point.value},
            "clusters": point.clusters,
            "largest": point.largest,
            "votes": point.votes,
            "agreement": agreement,
        }

    return {
        "objective": "votes of neighbors",
        "best": row(found.best),
        "before": {"values": {found.tunable.key: found.before}},
        "close": list(found.close),
        "trials": [row(point) for point in found.points],
    }
