"""Choose a bundle's thresholds on labelled faces: everything before links and clusters is computed once.

Needs no PyTorch: the engine does the work.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fcdeploy.clustering.metrics import Evaluation, PrecisionRecall, check_unknown, evaluate
from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.checked_pairs import CheckedPairs
from fcdeploy.data.features import Features
from fcdeploy.data.labels import check_known
from fcdeploy.data.scratch import scratch_folder
from fcdeploy.data.side_files import check_replaceable
from fcdeploy.deploy.recipe import recipe_text
from fcdeploy.engine.bundle import MANIFEST, Bundle
from fcdeploy.errors import InputError
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.folder import SCRATCH_FOLDER, RunFolder, places_of
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.store import MemoryStore, Store
from fcdeploy.runtime.bad_rows import LEFT_OUT, check_on_bad
from fcdeploy.runtime.checked import Checked, checked_rows
from fcdeploy.runtime.computed import what_was_computed
from fcdeploy.runtime.copies import ROWS
from fcdeploy.runtime.pipeline import begin_run
from fcdeploy.runtime.prepare import Prepared, prepare
from fcdeploy.runtime.survey import places_of_run, sum_of_artifacts
from fcdeploy.systems import NAMES, Recipe, System, get_system
from fcdeploy.systems.settings import setting_of, settings_from_dict, with_settings
from fcdeploy.systems.training_types import Tunable, Value
from fcdeploy.training.checked import PairJudge, interval, judge_of
from fcdeploy.training.curves import draw_precision_recall, is_drawn_here
from fcdeploy.training.identities import identities_of
from fcdeploy.training.sweep import OBJECTIVES, Trial, best_trial, curve_through, sweep

SHOWN, NEARBY = 12, 3  # rows of the trade-off table over the whole range, and on either side of the best
DEFAULTS = Options()
PRECISIONS = (0.9, 0.95, 0.98, 0.99, 0.999)


@dataclass(frozen=True)
class Estimated:
    """How sure figures from checked pairs are: with how many pairs, how many of them of one person.

    weighted: whether they stand for all pairs of faces (those that `fcdeploy pairs` draws), or for themselves. f: where
    19 in 20 estimates of the best F lie when pairs are drawn anew; chosen: the same of the first tunable's best value,
    None where it is no number.
    """

    pairs: int
    same: int
    weighted: bool
    f: tuple[float, float]
    chosen: tuple[float, float] | None


@dataclass(frozen=True)
class Tuned:
    """What was chosen, out of which trials, and the trial of the settings as they were.

    estimated: how sure that is, where it was chosen by checked pairs. seconds: of one clustering, with the settings as
    they were, from the checked features on.
    """

    objective: str
    tunables: Sequence[Tunable]
    trials: Sequence[Trial]
    best: Trial
    before: Trial
    recipe: Recipe
    summary: Mapping[str, object] = field(default_factory=dict)
    estimated: Estimated | None = None
    seconds: float = 0.0

    @property
    def measures(self) -> tuple[str, ...]:
        """The F that are known: of pairs that were checked the pairwise one alone."""
        return OBJECTIVES if self.estimated is None else OBJECTIVES[:1]

    def curve(self) -> list[Trial]:
        """Return the trials that differ from the best in the first tunable only, in its order."""
        return curve_through(self.trials, self.best, self.tunables[0].key)

    def table(self) -> list[Trial]:
        """Return what of the curve a person wants to see: some of it over the whole range, and all near the best."""
        curve = [self.curve()[0]]
        for trial in self.curve()[1:]:  # what makes no difference, once
            if trial is self.best or trial.evaluation != curve[-1].evaluation:
                curve = [*curve[: -1 if curve[-1].evaluation == trial.evaluation else None], trial]
        at = curve.index(self.best)
        apart = max(1, len(curve) // SHOWN)
        return [trial for place, trial in enumerate(curve) if place % apart == 0 or abs(place - at) <= NEARBY]

    def at_precision(self) -> dict[float, Trial]:
        """Return, for some precisions of the objective, the trial of highest F that reaches them."""
        found = {}
        for precision in PRECISIONS:
            best = best_trial(self.trials, self.tunables, scored_by(self.objective, precision))
            if best.joins and best.measure(self.objective).precision >= precision:
                found[precision] = best
        return found


def scored_by(objective: str, min_precision: float) -> Callable[[Trial], tuple[bool, bool, float]]:
    """Return what makes a trial the best: that it reaches the precision, then F; where none does, precision.

    A setting that joins no two faces makes no wrong pair: that is no precision that anybody could want, and such a
    setting comes last when a precision was asked for.
    """

    def score(trial: Trial) -> tuple[bool, bool, float]:
        measure = trial.measure(objective)
        joins = trial.joins or not min_precision
        precise = joins and measure.precision >= min_precision
        return joins, precise, measure.f if precise else measure.precision

    return score


def tune(
    features: Features,
    bundle: Bundle,
    truth: np.ndarray | None = None,
    *,
    pairs: CheckedPairs | None = None,
    objective: str = "pairwise",
    min_precision: float = 0.0,
    unknown: str = "ignore",
    options: Options = DEFAULTS,
    on_bad: str = "stop",
    bad_list: Path | None = None,
    run_dir: Path | str | None = None,
    scratch_dir: Path | str | None = None,
    labels_name: str = "labels",
    quiet: bool = True,
) -> Tuned:
    """Find the settings of links and clusters that give ``features`` the best clusters.

    truth: (n,) identities, -1 where unknown: such faces are clustered with the others and left out of the measures, or,
    with ``unknown`` "singleton", each is an identity of its own. pairs: instead of these, pairs that a person has
    checked, by which pairwise F is estimated. objective: which F to maximise, "pairwise"
    or "bcubed", among settings that join faces with a precision of at least ``min_precision``. on_bad: rows that cannot
    be used raise InputError with 'stop' and are left out, with their labels, with 'skip' and 'zero'; all are listed in
    the file ``bad_list``, where one is named. With ``run_dir`` products are kept there and taken up again; without it,
    what does not fit into half of the memory budget lies in a folder that is removed at the end, in ``options.scratch``
    or ``scratch_dir``, where the output goes. Raises InputError when a system has nothing to choose, no setting is that
    precise, or the labels, which come from ``labels_name``, cannot tell.
    """
    if objective not in OBJECTIVES:
        raise InputError(f"--objective {objective}: is neither {' nor '.join(OBJECTIVES)}.")
    if not 0 <= min_precision <= 1:
        raise InputError(f"--min-precision {min_precision}: is no precision (0 to 1).")
    check_unknown(unknown)
    check_given(truth, pairs, objective)
    if truth is not None:
        check_truth(truth, features, labels_name, unknown)
    recipe = settings_from_dict(bundle.about.recipe, f"{bundle.path}/{MANIFEST}")
    check_on_bad(on_bad)
    prepared = prepare(features, bundle, options)
    system, features = prepared.system, prepared.features
    tunables = check_tunable(system, system.tunable(bundle.weights, prepared.options))
    progress = Progress(quiet)
    with progress.stage("features"), told_of_compiling(progress.compiling):
        checked = checked_rows(features, options.duplicates, on_bad, bad_list, LEFT_OUT)
    if checked.told:
        truth, pairs = of_good_rows(truth, pairs, checked)
        if truth is not None:
            check_truth(truth, checked.faces, labels_name, unknown)
    judge: Callable[[np.ndarray], Evaluation]
    if truth is not None:
        judge = partial(evaluate, truth=truth, unknown=unknown)
    else:
        assert pairs is not None  # see check_given
        judge = judge_of(pairs)
    score = scored_by(objective, min_precision)
    with (
        threads_limited(options.cores),
        opened_store(prepared, Path(run_dir) if run_dir else None, scratch_dir) as store,
        told_of_compiling(progress.compiling),
    ):
        started = time.perf_counter()
        run = begin_run(checked, bundle, options, store, progress, final=False)
        as_they_are = [Tunable(one.key, (setting_of(run.settings, one.key),)) for one in tunables]
        (before,) = sweep(run, judge, as_they_are, score, rounds=0)
        seconds = time.perf_counter() - started
        total = int(np.prod([len(tunable.values) for tunable in tunables]))
        # Products are there already: what is left shows one bar.
        run.progress = Progress()
        with progress.bar("tuning", total, unit="settings") as bar:
            trials = sweep(run, judge, tunables, score, seen=lambda trial: bar.advance(1))
        computed = what_was_computed(run, bundle)
        store.describe(computed)
        store.drop_scratch()
    best = best_reaching(trials, tunables, objective, min_precision)
    recipe = with_settings(recipe, best.values)
    told = {"notes": run.notes} if run.notes else {}
    sure = (
        estimated(judge, [before, *trials], best, tunables[0].key) if isinstance(judge, PairJudge) else None
    )
    return Tuned(
        objective, tunables, trials, best, before, recipe, {"computed": computed, **told}, sure, seconds
    )


def check_tunable(system: System, tunables: tuple[Tunable, ...]) -> tuple[Tunable, ...]:
    """Return what is to be chosen; raises InputError where a system has nothing of that kind."""
    if not tunables:
        having = [name for name in NAMES if get_system(name).tunable is not type(system).tunable]
        raise InputError(f"{system.title} has no threshold to tune; {', '.join(having)} have.")
    return tunables


def check_given(truth: np.ndarray | None, pairs: CheckedPairs | None, objective: str) -> None:
    """Raise InputError unless either identities are given, or pairs for pairwise F."""
    if (truth is None) == (pairs is None):
        raise InputError("give either the true identities of all faces, or pairs that a person has checked.")
    if pairs is not None and objective != "pairwise":
        raise InputError(
            f"--objective {objective}: pairs tell pairwise F only; leave it out, or give --labels."
        )


def of_good_rows(
    truth: np.ndarray | None, pairs: CheckedPairs | None, checked: Checked
) -> tuple[np.ndarray | None, CheckedPairs | None]:
    """Return identities and pairs of the rows that can be used."""
    if pairs is not None:
        place = np.full(len(checked.scan.states), -1, np.int32)
        place[checked.scan.good] = np.arange(checked.faces.n, dtype=np.int32)
        pairs = pairs.renumbered(place)
    return None if truth is None else truth[checked.scan.good], pairs


def estimated(judge: PairJudge, trials: Sequence[Trial], best: Trial, key: str) -> Estimated:
    """Tell how sure an estimate from pairs is, by drawing them anew; trials: in the order in which they were judged."""
    drawn = judge.drawn_f()
    curve = [at for at, trial in enumerate(trials) if trial in curve_through(trials, best, key)]
    values = np.array([trials[at].values[key] for at in curve], object)
    f = interval(drawn[:, trials.index(best)])
    numbers = all(isinstance(value, (int, float)) for value in values)
    chosen = interval(values[drawn[:, curve].argmax(axis=1)].astype(float)) if numbers else None
    return Estimated(len(judge.ids), int(judge.same.sum()), judge.weighted, f, chosen)


@contextlib.contextmanager
def opened_store(prepared: Prepared, run_dir: Path | None, scratch_dir: Path | str | None) -> Iterator[Store]:
    """Open where artifacts are kept: in ``run_dir``, else in memory, or, where they are too large, in a folder.

    That folder is removed at the end. Raises InputError when another's files are in the place of artifacts.
    """
    artifacts, options = prepared.artifacts(), prepared.options
    with contextlib.ExitStack() as stack:
        folder = run_dir
        if folder is None and sum_of_artifacts(artifacts) > options.budget // 2:
            place = scratch_folder(options.scratch, scratch_dir)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix=SCRATCH_FOLDER, dir=place)))
        if folder is None:
            yield MemoryStore()
            return
        store = stack.enter_context(RunFolder(folder))
        store.check_free([*places_of_run(prepared.system, artifacts), *places_of(ROWS)])
        yield store


def best_reaching(
    trials: Sequence[Trial], tunables: Sequence[Tunable], objective: str, min_precision: float
) -> Trial:
    """Return the best trial; raises InputError when none is as precise as it has to be."""
    best = best_trial(trials, tunables, scored_by(objective, min_precision))
    if min_precision and not best.joins:
        raise InputError(
            f"no setting reaches {objective} precision {min_precision}: none joins two faces of known identity; give "
            "more faces, or the engine of another network."
        )
    if best.measure(objective).precision < min_precision:
        raise InputError(
            f"no setting that joins faces reaches {objective} precision {min_precision}: the highest is "
            f"{best.measure(objective).precision:.4f}, with {describe_values(best.values)} (recall "
            f"{best.measure(objective).recall:.4f}); lower --min-precision."
        )
    return best


def check_truth(truth: np.ndarray, features: Features, where: str, unknown: str = "ignore") -> None:
    """Raise InputError, saying ``where`` the labels come from, when they tell no good threshold from a bad one."""
    check_number(len(truth), features, where)
    check_known(truth, where, unknown)
    known = truth[truth != -1] if unknown == "ignore" else truth
    sizes = np.bincount(identities_of(known))
    if (sizes == 1).all():
        raise InputError(
            f"{where}: puts no two faces together, so that there is nothing to tune on; give faces of people with "
            "several each."
        )
    if len(sizes) == 1:
        raise InputError(
            f"{where}: all {len(known):,} faces are of one identity, for which no threshold is too low; "
            "give faces of several."
        )


def check_number(found: int, features: Features, where: str) -> None:
    """Raise InputError, saying ``where`` the labels come from, when another number of them was ``found``."""
    n = features.n
    if found != n:
        # How many faces a file without a header has follows from the width.
        headless = Path(features.name).suffix != ".npy"
        width = f" of {features.dim} values, the engine's width" if headless else ""
        other = ", or features of this width" if headless else ""
        raise InputError(
            f"{where}: {found:,} labels for {n:,} faces{width}; give the labels of these very faces{other}."
        )


def write_tuned(tuned: Tuned, features: str, output: Path) -> Path:
    """Write the recipe to ``output`` and the precision-recall plot beside it (``.png``), whose path is returned.

    Raises InputError when another picture is there.
    """
    plot = output.with_suffix(".png")
    check_replaceable(plot, is_drawn_here, "the plot")
    lines = [
        f"Tuned on {tuned_on(tuned)} for {tuned.objective} F: {describe_values(tuned.best.values)}.",
        *(f"{name} {figures(tuned.best.measure(name))}." for name in tuned.measures),
    ]
    with atomic_file(output) as file:
        file.write(recipe_text(tuned.recipe, lines).encode())
    curve = tuned.curve()
    draw_precision_recall(
        plot,
        {name: [_point(trial.measure(name)) for trial in curve] for name in tuned.measures},
        {name: _point(tuned.best.measure(name)) for name in tuned.measures},
        f"{Path(features).name}: {describe_values(tuned.best.values)}",
    )
    return plot


def tuned_on(tuned: Tuned) -> str:
    """Say on what settings were chosen: "300 labelled faces"."""
    if tuned.estimated is not None:
        return f"{tuned.estimated.pairs:,} checked pairs"
    return f"{tuned.best.evaluation.faces:,} labelled faces"


def check_outputs(output: Path) -> Path:
    """Return ``output`` when recipe and plot can be written there; raises InputError otherwise."""
    if output.suffix != ".toml":
        raise InputError(f"{output}: a recipe is TOML; give a name that ends in .toml.")
    check_parent(output)
    plot = check_parent(output.with_suffix(".png"))
    check_replaceable(plot, is_drawn_here, "the plot")
    return output


def describe_values(values: Mapping[str, Value]) -> str:
    """Say settings as a recipe has them: "links.tau = 0.74"."""
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return ", ".join(f"{key} = {value}" for key, value in said.items())


def figures(measure: PrecisionRecall) -> str:
    """Say a measure as in "F 0.8123 (precision 0.9, recall 0.74)"."""
    return f"F {measure.f:.4f} (precision {measure.precision:.4f}, recall {measure.recall:.4f})"


def as_dict(tuned: Tuned) -> dict[str, object]:
    """Return what ``fcdeploy tune --json`` prints."""
    return {
        "objective": tuned.objective,
        **({"unknown": unknown} if (unknown := tuned.best.evaluation.unknown) else {}),
        **({"estimated": asdict(tuned.estimated)} if tuned.estimated is not None else {}),
        "best": _row(tuned.best, tuned.measures),
        "before": _row(tuned.before, tuned.measures),
        **tuned.summary,
        "trials": [_row(trial, tuned.measures) for trial in tuned.trials],
    }


def _row(trial: Trial, measures: Sequence[str]) -> dict[str, object]:
    return {"values": dict(trial.values), "clusters": trial.evaluation.clusters} | {
        name: trial.measure(name).as_dict() for name in measures
    }


def _point(measure: PrecisionRecall) -> tuple[float, float]:
    return measure.recall, measure.precision
