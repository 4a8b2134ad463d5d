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
    system = get_system(run.engines.system)
    trials: list[Trial] = []

    def attempt(values: Mapping[str, Value]) -> None:
        values = {tunable.key: values[tunable.key] for tunable in tunables}  # named in this order
        changed = with_settings(recipe, values)
        if changed.problem():
            return
        run.settings = changed
        run.planned.clear()
        labels = run.labels_of_all(system.cluster(run))
        trials.append(Trial(values, judge(labels)))
        seen(trials[-1])

    try:
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
    finally:
        run.settings = recipe
    return trials


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
