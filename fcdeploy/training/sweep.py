"""Many settings of links and clusters tried on one run: what comes before them is made once."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING

import numpy as np

from fcdeploy.clustering.metrics import Evaluation, PrecisionRecall
from fcdeploy.run.run import Run
from fcdeploy.systems import Tunable, get_system
from fcdeploy.systems.settings import setting_of, with_settings
from fcdeploy.systems.training_types import Value

if TYPE_CHECKING:
    from _typeshed import SupportsRichComparison

OBJECTIVES = ("pairwise", "bcubed")
MEAN = "mean"  # of the two F
PARTS = 4  # parts into which the interval between two tried values is cut, near the best
ROUNDS = 2


@dataclass(frozen=True)
class Trial:
    """Settings by their place in the recipe, and how good the clusters that they give are."""

    values: Mapping[str, Value]
    evaluation: Evaluation

    @property
    def joins(self) -> bool:
        """Whether two faces of known identity are in one cluster; where none are, no precision says anything."""
        return self.evaluation.pairs > 0

    def measure(self, objective: str) -> PrecisionRecall:
        """Return the precision and recall of "pairwise" or "bcubed"."""
        return self.evaluation.pairwise if objective == "pairwise" else self.evaluation.bcubed

    def f(self, objective: str) -> float:
        """Return the F of "pairwise", of "bcubed", or the "mean" of both."""
        if objective == MEAN:
            return (self.evaluation.pairwise.f + self.evaluation.bcubed.f) / 2
        return self.measure(objective).f

    def precision(self, objective: str) -> float:
        """Return the precision of "pairwise" or "bcubed"; with "mean", the lower of both."""
        if objective == MEAN:
            return min(self.evaluation.pairwise.precision, self.evaluation.bcubed.precision)
        return self.measure(objective).precision


def sweep(
    run: Run,
    judge: Callable[[np.ndarray], Evaluation],
    tunables: Sequence[Tunable],
    score: Callable[[Trial], "SupportsRichComparison"],
    *,
    rounds: int = ROUNDS,
    seen: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Try all combinations of the tunables' values, then values between them near the best one; in that order.

    judge: how good labels (n,) int64 are. score: what makes a trial the best. rounds: how often values
    between those tried so far are tried, where a tunable allows it. seen is called with each trial. The run's settings
    stay as they are.
    """
    recipe = run.settings
    trials: list[Trial] = []

    def attempt(values: Mapping[str, Value]) -> None:
        values = {tunable.key: values[tunable.key] for tunable in tunables}  # named in this order
        if with_settings(recipe, values).problem():
            return
        trials.append(Trial(values, judge(labels_with(run, values))))
        seen(trials[-1])

    # The first tunable varies fastest: products that do not depend on it are then made once.
    for combination in product(*(tunable.values for tunable in reversed(tunables))):
        names = [tunable.key for tunable in reversed(tunables)]
        attempt(dict(zip(names, combination, strict=True)))
    if not trials:
        attempt({tunable.key: setting_of(recipe, tunable.key) for tunable in tunables})

    def tried_with_best(tunable: Tunable) -> tuple[list[Value], Trial]:
        best = best_trial(trials, tunables, score)
        return [trial.values[tunable.key] for trial in curve_through(trials, best, tunable.key)], best

    def complete(tunable: Tunable) -> None:
        """Try the values of one with the best of the others, which may lie between theirs by now."""
        tried, best = tried_with_best(tunable)
        for value in tunable.values:
            if value not in tried:
                attempt({**best.values, tunable.key: value})

    for _ in range(rounds):
        for tunable in tunables:
            complete(tunable)
            tried, best = tried_with_best(tunable)
            for value in near(tried, best.values[tunable.key]) if tunable.between else ():
                attempt({**best.values, tunable.key: value})
    if rounds and tunables:
        complete(tunables[0])  # what a table and a plot show
    return trials


def labels_with(run: Run, values: Mapping[str, Value]) -> np.ndarray:
    """Return the labels (n,) int64 that a run gives with other settings; its own stay as they are."""
    recipe = run.settings
    run.settings = with_settings(recipe, values)
    run.planned.clear()
    try:
        return run.labels_of_all(get_system(run.engines.system).cluster(run))
    finally:
        run.settings = recipe


def try_settings(
    run: Run,
    settings: Sequence[Mapping[str, Value]],
    judge: Callable[[np.ndarray], Evaluation],
    seen: Callable[[Trial], None] = lambda trial: None,
) -> list[Trial]:
    """Try settings that are given; the trials in their order."""
    groups: dict[tuple[Value, ...], list[int]] = {}  # by all but the first: what depends on them is made once
    for at, values in enumerate(settings):
        groups.setdefault(tuple(values.values())[1:], []).append(at)
    trials: dict[int, Trial] = {}
    for group in groups.values():
        for at in group:
            trials[at] = Trial(settings[at], judge(labels_with(run, settings[at])))
            seen(trials[at])
    return [trials[at] for at in range(len(settings))]


def curve_through(trials: Sequence[Trial], trial: Trial, key: str) -> list[Trial]:
    """Return the trials that differ from ``trial`` in one setting only, in its order."""
    curve = [
        other
        for other in trials
        if all(other.values[name] == value for name, value in trial.values.items() if name != key)
    ]
    return sorted(curve, key=lambda other: other.values[key])


def best_trial(
    trials: Sequence[Trial], tunables: Sequence[Tunable], score: Callable[[Trial], "SupportsRichComparison"]
) -> Trial:
    """Return the trial of highest score; of equally good ones along the first tunable, the middle one.

    A threshold in the middle of those that make no difference is the safest on other faces.
    """
    best = max(trials, key=score)
    if not tunables:
        return best
    curve = curve_through(trials, best, tunables[0].key)
    first = last = curve.index(best)
    while last + 1 < len(curve) and score(curve[last + 1]) == score(best):
        last += 1
    return curve[(first + last) // 2]


def near(tried: Sequence[Value], value: Value) -> Iterator[float]:
    """Give numbers between one of those tried, sorted, and its neighbors there."""
    at = tried.index(value)
    for low, high in pairwise(tried[max(0, at - 1) : at + 2]):
        if not isinstance(low, (int, float)) or not isinstance(high, (int, float)):
            continue
        for part in range(1, PARTS):
            between = low + (high - low) * part / PARTS
            between = round(between) if isinstance(low, int) and isinstance(high, int) else round(between, 6)
            if low < between < high:
                yield between
