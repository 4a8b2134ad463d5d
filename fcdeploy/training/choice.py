"""Which of the settings that were tried is taken: one that stays good where people and thresholds move a little.

The highest F on some faces is partly chance: the next threshold may let clusters run together, on these faces or on
others. So a setting counts by the lowest F of its neighborhood, over all faces and over halves of the people.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fcdeploy.systems.training_types import Tunable
from fcdeploy.training.sweep import Trial, best_trial

MOST = 1.5  # times the faces of the largest person: a larger cluster holds many people, whatever F says


@dataclass(frozen=True)
class Sample:
    """The same settings tried on some faces: one trial for each; largest: the faces of their largest identity."""

    trials: Sequence[Trial]
    largest: int

    def fell_apart(self) -> np.ndarray:
        """Tell which settings put far more faces into a cluster than anybody has, (t,) bool."""
        return np.array([trial.evaluation.largest > MOST * self.largest for trial in self.trials], bool)


@dataclass(frozen=True)
class Scores:
    """What makes a setting the best, one entry per setting: what can be said of it, the first that differs decides.

    stays: no cluster falls apart, with this value of the threshold or the next ones; joins: two faces are joined;
    precise: the precision asked for is reached; worth: F, or, where it is not reached, the precision.
    """

    stays: np.ndarray
    joins: np.ndarray
    precise: np.ndarray
    worth: np.ndarray

    def of(self, at: int) -> tuple[bool, bool, bool, float]:
        """Return the score of one setting."""
        return bool(self.stays[at]), bool(self.joins[at]), bool(self.precise[at]), float(self.worth[at])


def nearby(trials: Sequence[Trial], tunables: Sequence[Tunable]) -> list[np.ndarray]:
    """Return for each trial those (m,) of the values around its own of the first tunable, the others being the same.

    Around: up to the next ones that are always tried. Values between these, near the best, are tried, too; they make no
    neighborhood narrower.
    """
    first = tunables[0]
    steps = sorted(value for value in first.values if isinstance(value, (int, float)))
    groups: dict[tuple[object, ...], list[int]] = {}
    for at, trial in enumerate(trials):
        groups.setdefault(tuple(value for key, value in trial.values.items() if key != first.key), []).append(
            at
        )
    found: list[np.ndarray] = [np.array([at]) for at in range(len(trials))]
    for group in groups.values():
        values = [trials[at].values[first.key] for at in group]
        if not all(isinstance(value, (int, float)) for value in values):
            continue
        numbers, members = np.array(values, np.float64), np.array(group)
        for at, value in zip(group, numbers, strict=True):
            low = max((step for step in steps if step < value), default=value)
            high = min((step for step in steps if step > value), default=value)
            found[at] = members[(numbers >= low) & (numbers <= high)]
    return found


def lowest_of(values: np.ndarray, around: Sequence[np.ndarray]) -> np.ndarray:
    """Return the lowest of the values (t,) around each setting, (t,)."""
    return np.array([values[near].min() for near in around])


def scores_of(
    samples: Sequence[Sample],
    weights: Sequence[float],
    tunables: Sequence[Tunable],
    objective: str,
    min_precision: float,
) -> Scores:
    """Score the settings of some samples, which are all tried on each.

    weights: of the samples, in the mean F that counts. A setting is precise when it is so on the first sample, and,
    where any is, on the mean of all.
    """
    trials = samples[0].trials
    around = nearby(trials, tunables)
    out = np.zeros(len(trials), bool)
    floor, precision = np.zeros(len(trials)), np.zeros(len(trials))
    for sample, weight in zip(samples, np.array(weights) / sum(weights), strict=True):
        out |= sample.fell_apart()
        floor += weight * lowest_of(np.array([trial.f(objective) for trial in sample.trials]), around)
        precision += weight * np.array([trial.precision(objective) for trial in sample.trials])
    joins = np.array([trial.joins for trial in trials]) | (min_precision == 0)
    first = np.array([trial.precision(objective) for trial in trials])
    precise = joins & (np.minimum(first, precision) >= min_precision)
    if not precise.any():
        precise = joins & (first >= min_precision)
    stays = np.array([not out[near].any() for near in around])
    if not stays.any():
        stays = ~out  # at a coarse step, none but the last may stay
    return Scores(stays, joins, precise, np.where(precise, floor, precision))


def chosen_of(trials: Sequence[Trial], tunables: Sequence[Tunable], scores: Scores) -> int:
    """Return the place of the best setting; of equally good ones along the first tunable, the middle one."""
    place = {id(trial): at for at, trial in enumerate(trials)}
    return place[id(best_trial(trials, tunables, lambda trial: scores.of(place[id(trial)])))]
