"""What settings that are chosen on some people are worth on others, measured on halves of them."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import PrecisionRecall
from fcdeploy.data.features import Features
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options
from fcdeploy.systems.training_types import Tunable, Value
from fcdeploy.training.checked import interval
from fcdeploy.training.choice import Sample, chosen_of, scores_of
from fcdeploy.training.halves import halves_of, opened_half, spread_with, trials_of
from fcdeploy.training.sweep import OBJECTIVES, Trial

HALVES = "halves"  # in a run folder
DRAWS = 200  # sets of people drawn from each half, for the interval


@dataclass(frozen=True)
class Expected:
    """A measure on other people: its F, in which ``interval`` 19 of 20 such sets lie, its precision and its recall."""

    f: float
    interval: tuple[float, float]
    precision: float
    recall: float


@dataclass(frozen=True)
class Elsewhere:
    """What a choice is worth on other people, as many as it was made on.

    own, others: by measure, what each half's choice gives on that half, and on the other one; chosen: these choices.
    draws: F on sets of people drawn from the other halves, (draws, 2), pairwise and BCubed. samples: the trials of each
    half, measured as if it was as large as all faces.
    """

    own: Mapping[str, Sequence[PrecisionRecall]]
    others: Mapping[str, Sequence[PrecisionRecall]]
    chosen: Sequence[Mapping[str, Value]]
    draws: np.ndarray
    samples: Sequence[Sample]

    def expected(self, best: Trial) -> dict[str, Expected]:
        """Return what is expected of each measure of the setting that was chosen; best: its trial on all faces.

        F on all faces, less by what a choice on half of the people promises too much for the others. So the figure is
        one of as many faces as all are: in halves, which have fewer, F is higher at any setting. The interval is that
        of the drawn sets: one of half as many people varies by more than one of all, by a factor of the square root of
        two, and that is as much as two sets of all differ, of which one is known here.
        """
        found = {}
        for at, (name, own) in enumerate(self.own.items()):
            here, other, draws = best.measure(name), self.others[name], self.draws[:, at]
            promised = {
                part: mean_of(own, part) - mean_of(other, part) for part in ("f", "precision", "recall")
            }
            f = max(0.0, here.f - max(0.0, promised["f"]))
            low, high = interval(np.clip(f + draws - draws.mean(), 0, 1))
            found[name] = Expected(
                f,
                (low, high),
                float(np.clip(here.precision - promised["precision"], 0, 1)),
                float(np.clip(here.recall - promised["recall"], 0, 1)),
            )
        return found

    def fell_apart(self) -> np.ndarray:
        """Tell which settings fall apart in any half, (t,) bool."""
        out: np.ndarray = np.any([sample.fell_apart() for sample in self.samples], axis=0)
        return out


def mean_of(measures: Sequence[PrecisionRecall], part: str) -> float:
    """Return the mean "f", "precision" or "recall" of some measures."""
    return float(np.mean([getattr(one, part) for one in measures]))


@dataclass(frozen=True)
class Task:
    """What halves are asked: settings, tried on each of them, how one is chosen, and how often people are dealt."""

    settings: Sequence[Mapping[str, Value]]
    tunables: Sequence[Tunable]
    objective: str
    min_precision: float
    repeats: int

    @property
    def trials(self) -> int:
        """How many settings are tried on halves in all."""
        return 2 * self.repeats * len(self.settings)

    def chosen(self, sample: Sample) -> int:
        """Return the place of the setting that some faces alone would choose."""
        scores = scores_of([sample], [1], self.tunables, self.objective, self.min_precision)
        return chosen_of(sample.trials, self.tunables, scores)


def judged_elsewhere(
    faces: Features,
    identity: np.ndarray,
    bundle: Bundle,
    task: Task,
    options: Options,
    kept: Path | None,
    scratch_dir: Path | str | None,
    seen: Callable[[], None],
) -> Elsewhere | str:
    """Choose on one half of the people and judge on the other, and the other way round, as often as the task says.

    faces: good rows; identity: (n,) int64 of these, -1 where unknown; kept: a folder in which
    the halves' run folders go, to be taken up again. Returns a sentence where halves cannot be judged.
    """
    own: dict[str, list[PrecisionRecall]] = {name: [] for name in OBJECTIVES}
    others: dict[str, list[PrecisionRecall]] = {name: [] for name in OBJECTIVES}
    draws: list[tuple[float, float]] = []
    samples, chosen = [], []
    for repeat in range(task.repeats):
        halves = halves_of(identity, repeat)
        if halves is None:
            return "there are too few people with several faces to measure a choice on other people"
        try:
            with contextlib.ExitStack() as stack:
                runs = [
                    stack.enter_context(
                        opened_half(
                            half, faces, bundle, options, kept and kept / f"{repeat}{'ab'[side]}", scratch_dir
                        )
                    )
                    for side, half in enumerate(halves)
                ]
                pair = [
                    Sample(trials_of(run, half, task.settings, lambda trial: seen()), half.largest)
                    for run, half in zip(runs, halves, strict=True)
                ]
                for side in (0, 1):
                    here, there = task.chosen(pair[side]), 1 - side
                    chosen.append(task.settings[here])
                    for name in OBJECTIVES:
                        own[name].append(pair[side].trials[here].measure(name))
                        others[name].append(pair[there].trials[here].measure(name))
                    spread = spread_with(runs[there], halves[there], task.settings[here])
                    draws += spread.drawn(DRAWS, 2 * repeat + there, halves[there].others)
                samples += pair
        except InputError as error:
            return f"half of the people cannot be clustered alone: {error}"
    return Elsewhere(own, others, chosen, np.array(draws), samples)
