"""Engines and methods without a network on the same labelled faces, each at its own threshold and at its best."""

import dataclasses
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from fcdeploy.clustering.copies import Copies, copies_from
from fcdeploy.clustering.metrics import Evaluation, check_unknown, evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import Features
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import FcdeployWarning, InputError, MissingDependencyError
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.runtime.bad_rows import LEFT_OUT, check_on_bad
from fcdeploy.runtime.checked import checked_rows
from fcdeploy.runtime.prepare import prepare
from fcdeploy.systems import Tunable
from fcdeploy.training.baselines import METHODS, Method, nearest_neighbors
from fcdeploy.training.curves import CurveToDraw, draw_compared
from fcdeploy.training.sweep import OBJECTIVES, Trial, best_trial, curve_through
from fcdeploy.training.tune import check_truth, tune
from fcdeploy.training.tuned import describe_values, scored_by

DEFAULTS = Options()
K = 80  # neighbors per face of the methods without a network


@dataclass(frozen=True)
class Compared:
    """What was found of one engine or method.

    own: the engine's settings as they are, None for a method without a network, which has none; best: the trial of
    highest F on these same faces; curve: the trials that differ from it in the first setting only; tried: how many
    there were. seconds: one clustering from the features on, the search of neighbors included. notes: for the user.
    """

    name: str
    engine: str | None
    own: Trial | None
    best: Trial
    curve: Sequence[Trial]
    tried: int
    seconds: float
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Comparison:
    """Engines and methods in the order in which they were asked for.

    objective: the F by which each one's best was chosen, "pairwise" or "bcubed"; skipped: why a method is not among the
    rows, by its name; faces: how many have a known identity, of ``identities`` people.
    """

    objective: str
    rows: Sequence[Compared]
    faces: int
    identities: int
    unknown: int = 0
    k: int = K
    skipped: Mapping[str, str] = field(default_factory=dict)


def compare_on(
    features: Features,
    truth: np.ndarray,
    bundles: Sequence[Bundle] = (),
    methods: Sequence[str] = tuple(METHODS),
    *,
    objective: str = "pairwise",
    unknown: str = "ignore",
    k: int = K,
    options: Options = DEFAULTS,
    on_bad: str = "stop",
    bad_list: Path | None = None,
    scratch_dir: Path | str | None = None,
    labels_name: str = "labels",
    quiet: bool = True,
) -> Comparison:
    """Find the best settings of each engine and method on ``features`` whose identities are known.

    truth: (n,) identities, -1 where unknown; see ``tune`` for this and the other arguments. methods: names in
    ``METHODS``; they take unit rows, of which equal ones count once, and the lists of ``k`` neighbors. A method whose
    package is not installed, or that needs more memory or time than there is, is skipped, with the reason. Raises
    InputError for names that are unknown or given twice, and for what does not fit together.
    """
    check_names(bundles, methods, objective, k)
    check_unknown(unknown)
    check_on_bad(on_bad)
    check_truth(truth, features, labels_name, unknown)
    for bundle in bundles:
        prepare(features, bundle, options)  # before the first one works for minutes
    progress = Progress(quiet)
    with progress.stage("features"), told_of_compiling(progress.compiling):
        checked = checked_rows(features, options.duplicates, on_bad, bad_list, LEFT_OUT)
    if checked.told:
        truth = truth[checked.scan.good]
        check_truth(truth, checked.faces, labels_name, unknown)
    faces = checked.faces
    rows = [
        engine_compared(name, bundle, faces, truth, objective, unknown, options, scratch_dir, quiet)
        for name, bundle in zip(names_of(bundles), bundles, strict=True)
    ]
    copies = None if checked.equal is None else copies_from(checked.equal)
    skipped: dict[str, str] = {}
    chosen = [METHODS[name] for name in methods]
    with threads_limited(options.cores), told_of_compiling(progress.compiling):
        judge = partial(evaluate, truth=truth, unknown=unknown)
        rows += methods_compared(chosen, faces, copies, judge, objective, k, options, progress, skipped)
    for name, reason in skipped.items():
        warnings.warn(f"{METHODS[name].title} was skipped: {reason}", FcdeployWarning, stacklevel=2)
    known = truth if unknown == "singleton" else truth[truth != -1]
    people = len(np.unique(known[known != -1])) + int(np.count_nonzero(known == -1))
    return Comparison(objective, rows, len(known), people, len(truth) - len(known), k, skipped)


def check_names(bundles: Sequence[Bundle], methods: Sequence[str], objective: str, k: int) -> None:
    """Raise InputError unless there is something to compare, all of it known, and nothing given twice."""
    if objective not in OBJECTIVES:
        raise InputError(f"--objective {objective}: is neither {' nor '.join(OBJECTIVES)}.")
    if k < 2:
        raise InputError(f"--k {k}: should be 2 or more.")
    for name in methods:
        if name not in METHODS:
            raise InputError(f"--methods {name}: is none of {', '.join(METHODS)}.")
    if not bundles and not methods:
        raise InputError("nothing to compare: give an engine with --engine, or a method with --methods.")
    for given, option in (
        ([str(bundle.path.resolve()) for bundle in bundles], "--engine"),
        (list(methods), "--methods"),
    ):
        if twice := [name for at, name in enumerate(given) if name in given[:at]]:
            raise InputError(f"{option} {twice[0]}: is given twice; leave one out.")


def names_of(bundles: Sequence[Bundle]) -> list[str]:
    """Return the folder name of each bundle, or its whole path where two would have the same."""
    short = [bundle.path.resolve().name for bundle in bundles]
    return [
        name if short.count(name) == 1 else str(bundle.path)
        for name, bundle in zip(short, bundles, strict=True)
    ]


def engine_compared(
    name: str,
    bundle: Bundle,
    faces: Features,
    truth: np.ndarray,
    objective: str,
    unknown: str,
    options: Options,
    scratch_dir: Path | str | None,
    quiet: bool,
) -> Compared:
    """Tune one engine: its settings as they are, and the best."""
    tuned = tune(
        faces,
        bundle,
        truth,
        objective=objective,
        repeats=0,  # in-sample, as the methods are
        unknown=unknown,
        options=options,
        scratch_dir=scratch_dir,
        quiet=quiet,
    )
    own, best = tuned.before, tuned.best
    if own.measure(objective).f > best.measure(objective).f:
        best = own  # which may lie between what was tried
    curve = curve_through([own, *tuned.trials], best, tuned.tunables[0].key)
    notes = tuned.summary.get("notes", ())
    assert isinstance(notes, (list, tuple))
    return Compared(
        name, str(bundle.path), own, best, distinct(curve), len(tuned.trials), tuned.seconds, tuple(notes)
    )


def distinct(curve: Sequence[Trial]) -> list[Trial]:
    """Leave out trials of the same values."""
    return [trial for at, trial in enumerate(curve) if not at or trial.values != curve[at - 1].values]


def methods_compared(
    methods: Sequence[Method],
    faces: Features,
    copies: Copies | None,
    judge: Callable[[np.ndarray], Evaluation],
    objective: str,
    k: int,
    options: Options,
    progress: Progress,
    skipped: dict[str, str],
) -> Iterator[Compared]:
    """Yield what each method gives; the lists of neighbors are made once. What is skipped is written into skipped."""
    unit = dataclasses.replace(faces if copies is None else faces.select(copies.chosen), normalize=True)
    n, k = unit.n, min(k, unit.n)
    possible = []
    for method in methods:
        if reason := too_large(method, n, unit.dim, k, options.budget):
            skipped[method.name] = reason
        else:
            possible.append(method)
    if not possible:
        return
    with progress.stage("neighbors"), progress.bar("neighbors", n) as bar:
        lists = nearest_neighbors(unit.rows(0, n), k, options.budget, bar.advance)
    for method in possible:
        try:
            yield method_compared(
                method, lists, copies, judge, objective, progress.seconds["neighbors"], progress
            )
        except MissingDependencyError as error:
            skipped[method.name] = str(error)


def too_large(method: Method, n: int, dim: int, k: int, budget: int) -> str:
    """Say why a method cannot be tried on n faces of so many values; empty where it can."""
    if method.most is not None and n > method.most:
        return f"it would take too long for {n:,} faces (up to {method.most:,}); give a sample of them."
    needed = n * (4 * dim + k * (16 + method.bytes))
    if needed > budget:
        return (
            f"it needs about {needed / 2**30:.1f} GiB of memory for {n:,} faces with {k} neighbors each; give more "
            "with --memory, a smaller --k, or a sample of the faces."
        )
    return ""


def method_compared(
    method: Method,
    lists: KnnGraph,
    copies: Copies | None,
    judge: Callable[[np.ndarray], Evaluation],
    objective: str,
    search_seconds: float,
    progress: Progress,
) -> Compared:
    """Try all settings of a method, and return the best."""
    trials: list[Trial] = []
    took: list[float] = []
    with progress.bar(method.title, method.count, unit="settings") as bar:
        for values, labels, seconds in method.trials(lists):
            trials.append(Trial(values, judge(labels if copies is None else copies.labels_of_all(labels))))
            took.append(seconds)
            bar.advance(1)
    best = best_of(trials, method.settings, objective)
    curve = curve_through(trials, best, method.settings[0].key)
    seconds = search_seconds + took[trials.index(best)]
    return Compared(method.title, None, None, best, curve, len(trials), seconds)


def best_of(trials: Sequence[Trial], settings: Sequence[Tunable], objective: str) -> Trial:
    """Return the trial of highest F; of equally good ones along the first setting, the middle one."""
    return best_trial(trials, settings, scored_by(objective, 0.0))


def comparison_as_dict(found: Comparison) -> dict[str, object]:
    """Return what ``fcdeploy compare --json`` prints."""
    return {
        "objective": found.objective,
        "in_sample": True,  # the best settings were chosen on the very faces that they are measured on
        "faces": found.faces,
        "identities": found.identities,
        "unknown": found.unknown,
        "k": found.k,
        "rows": [
            {
                "name": row.name,
                "engine": row.engine,
                "own": None if row.own is None else trial_as_dict(row.own),
                "best": trial_as_dict(row.best),
                "tried": row.tried,
                "seconds": round(row.seconds, 3),
                "notes": list(row.notes),
                "curve": [trial_as_dict(trial) for trial in row.curve],
            }
            for row in found.rows
        ],
        "skipped": dict(found.skipped),
    }


def trial_as_dict(trial: Trial) -> dict[str, object]:
    """Return settings and figures of one trial, ready for JSON."""
    return {"values": dict(trial.values)} | trial.evaluation.as_dict()


def write_comparison(found: Comparison, output: Path) -> None:
    """Write all figures as JSON."""
    with atomic_file(output) as file:
        file.write(json.dumps(comparison_as_dict(found), indent=1).encode() + b"\n")


def plot_comparison(found: Comparison, features: str, plot: Path) -> None:
    """Draw precision against recall of every row, as .png or .svg."""

    def point(trial: Trial) -> tuple[float, float]:
        measure = trial.measure(found.objective)
        return measure.recall, measure.precision

    curves = [
        CurveToDraw(
            f"{row.name}, F {row.best.measure(found.objective).f:.3f}",
            [point(trial) for trial in row.curve],
            point(row.best),
            None if row.own is None else point(row.own),
        )
        for row in found.rows
    ]
    draw_compared(
        plot, curves, f"{concluded(found)}\n{Path(features).name}, {found.faces:,} faces (in-sample)"
    )


def concluded(found: Comparison) -> str:
    """Say the highest F with a network and without: "pse.onnx: pairwise F 0.874; without a network 0.829"."""

    def f(row: Compared) -> float:
        return row.best.measure(found.objective).f

    measure = "pairwise" if found.objective == "pairwise" else "BCubed"
    engines = [row for row in found.rows if row.engine is not None]
    methods = [row for row in found.rows if row.engine is None]
    highest = max(engines or methods, key=f)
    told = f"{highest.name}: {measure} F {f(highest):.3f}"
    return f"{told}; without a network {max(map(f, methods)):.3f}" if engines and methods else told


def settings_shown(trial: Trial) -> str:
    """Say settings as in "links.tau = 0.74"."""
    return describe_values(trial.values)
