"""Choose a bundle's thresholds on labelled faces: everything before links and clusters is computed once.

Needs no PyTorch: the engine does the work.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import Evaluation, check_unknown, evaluate
from fcdeploy.data.checked_pairs import CheckedPairs
from fcdeploy.data.features import Features
from fcdeploy.data.labels import check_known
from fcdeploy.engine.bundle import MANIFEST, Bundle
from fcdeploy.errors import InputError, counted
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.store import Store
from fcdeploy.runtime.bad_rows import LEFT_OUT, check_on_bad
from fcdeploy.runtime.checked import Checked, checked_rows
from fcdeploy.runtime.computed import what_was_computed
from fcdeploy.runtime.pipeline import begin_run
from fcdeploy.runtime.prepare import prepare
from fcdeploy.systems import NAMES, Recipe, System, get_system
from fcdeploy.systems.settings import setting_of, settings_from_dict, with_settings
from fcdeploy.systems.training_types import Tunable
from fcdeploy.training.baselines import METHODS
from fcdeploy.training.checked import PairJudge, interval, judge_of
from fcdeploy.training.choice import Sample, chosen_of, scores_of
from fcdeploy.training.elsewhere import HALVES, Elsewhere, Task, judged_elsewhere
from fcdeploy.training.identities import identities_of
from fcdeploy.training.stores import opened_store
from fcdeploy.training.sweep import MEAN, Trial, best_trial, curve_through, sweep
from fcdeploy.training.tuned import CHOICES, TITLES, Estimated, Tuned, describe_values, scored_by

DEFAULTS = Options()
PLAIN = ("components", "denser")  # methods to compare with
REPEATS = 3  # times that the people are dealt into halves


def tune(
    features: Features,
    bundle: Bundle,
    truth: np.ndarray | None = None,
    *,
    pairs: CheckedPairs | None = None,
    objective: str | None = None,
    min_precision: float = 0.0,
    repeats: int = REPEATS,
    unknown: str = "ignore",
    options: Options = DEFAULTS,
    on_bad: str = "stop",
    bad_list: Path | None = None,
    run_dir: Path | str | None = None,
    scratch_dir: Path | str | None = None,
    labels_name: str = "labels",
    quiet: bool = True,
) -> Tuned:
    """Find the settings of links and clusters that give faces like ``features`` the best clusters.

    truth: (n,) identities, -1 where unknown: such faces are clustered with the others and left out of the measures, or,
    with ``unknown`` "singleton", each is an identity of its own. pairs: instead of these, pairs that a person has
    checked, by which pairwise F is estimated. objective: which F to maximise, "pairwise", "bcubed" or the "mean" of
    both (None: the mean, of pairs pairwise F), among settings that join faces with a precision of at least
    ``min_precision``. repeats: how often the people are dealt into two halves, each clustered anew, to tell what a
    choice is worth on others and to take a setting that stays good there; with 0, and with pairs, the setting of
    highest F on these faces is taken. on_bad: rows that cannot be used raise InputError with 'stop' and are left out,
    with their labels, with 'skip' and 'zero'; all are listed in the file ``bad_list``, where one is named. With
    ``run_dir`` products are kept there and taken up again; without it, what does not fit into half of the memory budget
    lies in a folder that is removed at the end, in ``options.scratch`` or ``scratch_dir``, where the output goes.
    Raises InputError when a system has nothing to choose, no setting is that precise, or the labels, which come from
    ``labels_name``, cannot tell.
    """
    objective = objective or (MEAN if pairs is None else "pairwise")
    check_asked(objective, min_precision, repeats, unknown)
    check_given(truth, pairs, objective)
    if truth is not None:
        check_truth(truth, features, labels_name, unknown)
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
    judge = judge_from(truth, pairs, unknown)
    recipe = settings_from_dict(bundle.about.recipe, f"{bundle.path}/{MANIFEST}")
    identity = None if truth is None else people_in(truth, unknown)
    found: Elsewhere | str | None = None
    with (
        threads_limited(options.cores),
        opened_store(prepared, Path(run_dir) if run_dir else None, scratch_dir) as store,
        told_of_compiling(progress.compiling),
    ):
        run = begin_run(checked, bundle, options, store, progress, final=False)
        tried = try_all(run, bundle, judge, tunables, objective, min_precision, methods=repeats > 0)
        store.describe(tried.computed)
        if identity is not None and repeats:
            task = Task([trial.values for trial in tried.trials], tunables, objective, min_precision, repeats)
            # Two halves at a time, computed the way that all faces are.
            way = prepared.options.inference
            half = dataclasses.replace(options, memory=options.budget // 2, inference=way)
            kept = claimed_folder(store) if run_dir else None
            with progress.bar("halves", task.trials, unit="settings") as bar:
                seen = partial(bar.advance, 1)
                found = judged_elsewhere(checked.faces, identity, bundle, task, half, kept, scratch_dir, seen)
        store.drop_scratch()
    return told_of(tried, judge, tunables, objective, min_precision, identity, found, recipe)


@dataclass(frozen=True)
class Tried:
    """The trials on all faces, that of the settings as they were, how long one took, and what the run says of itself.

    without: methods without a network by title, each at its best.
    """

    trials: Sequence[Trial]
    before: Trial
    seconds: float
    computed: Mapping[str, object]
    notes: Sequence[str]
    without: Mapping[str, Trial]


def try_all(
    run: Run,
    bundle: Bundle,
    judge: Callable[[np.ndarray], Evaluation],
    tunables: Sequence[Tunable],
    objective: str,
    min_precision: float,
    *,
    methods: bool,
) -> Tried:
    """Try the settings as they are, and then all others, with further ones near the best.

    methods: whether those without a network are tried, too.
    """
    score = scored_by(objective, min_precision)
    started = time.perf_counter()
    as_they_are = [Tunable(one.key, (setting_of(run.settings, one.key),)) for one in tunables]
    (before,) = sweep(run, judge, as_they_are, score, rounds=0)
    seconds = time.perf_counter() - started
    total = int(np.prod([len(tunable.values) for tunable in tunables]))
    progress, run.progress = (
        run.progress,
        Progress(),
    )  # artifacts are there already: what is left shows one bar
    with progress.bar("tuning", total, unit="settings") as bar:
        trials = sweep(run, judge, tunables, score, seen=lambda trial: bar.advance(1))
    computed = what_was_computed(run, bundle)
    notes = list(run.notes)  # of all faces: methods have none
    without = methods_at_best(run, judge, objective) if methods else {}
    return Tried(trials, before, seconds, computed, notes, without)


def methods_at_best(run: Run, judge: Callable[[np.ndarray], Evaluation], objective: str) -> dict[str, Trial]:
    """Return methods without a network that need nothing but the run's lists, each at its best on these faces."""
    lists = get_system(run.engines.system).neighbors(run).lists
    found = {}
    for name in PLAIN:
        method = METHODS[name]
        trials = [
            Trial(values, judge(run.labels_of_all(labels))) for values, labels, _ in method.trials(lists)
        ]
        found[method.title] = best_trial(trials, method.settings, scored_by(objective, 0.0))
    return found


def told_of(
    tried: Tried,
    judge: Callable[[np.ndarray], Evaluation],
    tunables: Sequence[Tunable],
    objective: str,
    min_precision: float,
    identity: np.ndarray | None,
    found: Elsewhere | str | None,
    recipe: Recipe,
) -> Tuned:
    """Choose among what was tried; found: what halves tell of its worth, or why they cannot."""
    highest = best_reaching(tried.trials, tunables, objective, min_precision)
    best, excluded, apart = highest, 0, False
    if isinstance(found, Elsewhere):
        assert identity is not None
        best, excluded, apart = flattest(tried.trials, tunables, objective, min_precision, identity, found)
    trials = list(tried.trials)
    if no_better := not min_precision and all_alike(tried, found, objective):
        best = next((trial for trial in trials if trial.values == tried.before.values), tried.before)
        trials += [] if best in trials else [best]
    people = 0 if identity is None else len(np.unique(identity[identity >= 0]))
    sure = None
    if isinstance(judge, PairJudge):
        sure = estimated(judge, [tried.before, *tried.trials], best, tunables[0].key)
        sure = dataclasses.replace(sure, chosen=None) if no_better else sure
    tuned = Tuned(
        objective,
        tunables,
        trials,
        best,
        tried.before,
        recipe,
        highest,
        {"computed": tried.computed, **({"notes": list(tried.notes)} if tried.notes else {})},
        people,
        found if isinstance(found, Elsewhere) else None,
        found if isinstance(found, str) else "",
        excluded,
        apart,
        tried.without,
        sure,
        tried.seconds,
        no_better,
    )
    chosen = dataclasses.replace(with_settings(recipe, best.values), tuned=tuned.tuning())
    return dataclasses.replace(tuned, recipe=chosen)


def all_alike(tried: Tried, found: Elsewhere | str | None, objective: str) -> bool:
    """Tell whether no setting is better than another, on these faces and on halves: there is nothing to choose by."""
    halves = (
        [trial for sample in found.samples for trial in sample.trials] if isinstance(found, Elsewhere) else []
    )
    alike = len({trial.f(objective) for trial in [tried.before, *tried.trials]}) == 1
    return alike and len({trial.f(objective) for trial in halves}) <= 1


def flattest(
    trials: Sequence[Trial],
    tunables: Sequence[Tunable],
    objective: str,
    min_precision: float,
    identity: np.ndarray,
    found: Elsewhere,
) -> tuple[Trial, int, bool]:
    """Return the trial that stays good on all faces and on halves, and how many settings fall apart on any of them.

    And whether all of them do. All faces count as much as all halves together.
    """
    everybody = Sample(trials, int(np.bincount(identity[identity >= 0]).max()))
    samples = [everybody, *found.samples]
    weights = [len(found.samples), *(1 for _ in found.samples)]
    scores = scores_of(samples, weights, tunables, objective, min_precision)
    out = everybody.fell_apart() | found.fell_apart()
    return trials[chosen_of(trials, tunables, scores)], int(out.sum()), bool(out.all())


def claimed_folder(store: Store) -> Path:
    """Return the folder of the halves inside of a run folder; raises InputError when somebody else's stands there."""
    assert isinstance(store, RunFolder)
    store.claims.claim(HALVES)
    folder = store.path / HALVES
    folder.mkdir(exist_ok=True)
    return folder


def judge_from(
    truth: np.ndarray | None, pairs: CheckedPairs | None, unknown: str
) -> Callable[[np.ndarray], Evaluation]:
    """Return what tells how good labels (n,) are: by identities, else by pairs."""
    if truth is not None:
        return partial(evaluate, truth=truth, unknown=unknown)
    assert pairs is not None  # see check_given
    return judge_of(pairs)


def people_in(truth: np.ndarray, unknown: str) -> np.ndarray:
    """Number people from 0: (n,) int64, -1 for faces of unknown identity, unless each is one of its own."""
    if unknown == "singleton":
        return identities_of(truth)
    identity = np.full(len(truth), -1, np.int64)
    known = truth != -1
    identity[known] = identities_of(truth[known])
    return identity


def check_asked(objective: str, min_precision: float, repeats: int, unknown: str) -> None:
    """Raise InputError unless there is such a measure, such a precision, and so on."""
    if objective not in CHOICES:
        raise InputError(f"--objective {objective}: is none of {', '.join(CHOICES)}.")
    if not 0 <= min_precision <= 1:
        raise InputError(f"--min-precision {min_precision}: is no precision (0 to 1).")
    if repeats < 0:
        raise InputError(f"--repeats {repeats}: is negative; 0 does without halves.")
    check_unknown(unknown)


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
            f"--objective {objective}: checked pairs give pairwise F only; leave it out, or give --labels."
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


def best_reaching(
    trials: Sequence[Trial], tunables: Sequence[Tunable], objective: str, min_precision: float
) -> Trial:
    """Return the best trial; raises InputError when none is as precise as it has to be."""
    best = best_trial(trials, tunables, scored_by(objective, min_precision))
    which = "pairwise and BCubed" if objective == MEAN else TITLES[objective]
    if min_precision and not best.joins:
        raise InputError(
            f"no setting reaches {which} precision {min_precision}: none joins two faces of known identity; give "
            "more faces, or the engine of another network."
        )
    if best.precision(objective) < min_precision:
        raise InputError(
            f"no setting that joins faces reaches {which} precision {min_precision}: the highest is "
            f"{best.precision(objective):.4f}, with {describe_values(best.values)} (recall "
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
            f"{where}: has no identity with two faces, so there is nothing to tune on; give faces of people with "
            "several each."
        )
    if len(sizes) == 1:
        raise InputError(
            f"{where}: all {len(known):,} faces are of one identity, for which no threshold would be too low; "
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
            f"{where}: {counted(found, 'label')} for {counted(n, 'face')}{width}; give the labels of these "
            f"faces{other}."
        )
