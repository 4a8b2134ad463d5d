"""What a tuning found: the trials, the setting that was chosen, and what it is worth."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from fcdeploy.systems import Recipe, Tunable
from fcdeploy.systems.recipe import Tuning
from fcdeploy.systems.training_types import Value
from fcdeploy.training.elsewhere import Elsewhere, Expected
from fcdeploy.training.sweep import MEAN, OBJECTIVES, Trial, best_trial, curve_through

SHOWN, NEARBY = 12, 3  # rows of the trade-off table over the whole range, and on either side of the best
PRECISIONS = (0.9, 0.95, 0.98, 0.99, 0.999)
CHOICES = (MEAN, *OBJECTIVES)
TITLES = {MEAN: "mean", "pairwise": "pairwise", "bcubed": "BCubed"}
DIGITS = 4  # of F in a recipe


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

    highest: the trial of highest F on these same faces. people: how many identities are known. elsewhere: what the
    choice is worth on other people, where that was asked for and can be told; untold: why it cannot. excluded: settings
    that were left out because clusters fall apart with them. estimated: how sure the figures are, where it was chosen
    by checked pairs. seconds: of one clustering, with the settings as they were, from the checked features on.
    all_alike: whether every setting gives the same F, so that the settings stay as they were.
    """

    objective: str
    tunables: Sequence[Tunable]
    trials: Sequence[Trial]
    best: Trial
    before: Trial
    recipe: Recipe
    highest: Trial
    summary: Mapping[str, object] = field(default_factory=dict)
    people: int = 0
    elsewhere: Elsewhere | None = None
    untold: str = ""
    excluded: int = 0
    falls_apart: bool = False
    without: Mapping[str, Trial] = field(default_factory=dict)
    estimated: Estimated | None = None
    seconds: float = 0.0
    all_alike: bool = False

    @property
    def expected(self) -> Mapping[str, Expected]:
        """What is expected of each measure on other people; empty where that is not known."""
        return {} if self.elsewhere is None else self.elsewhere.expected(self.best)

    @property
    def measures(self) -> tuple[str, ...]:
        """The F that are known: of pairs that were checked the pairwise one alone."""
        return OBJECTIVES if self.estimated is None else OBJECTIVES[:1]

    @property
    def joins_hardly_anybody(self) -> bool:
        """Whether all settings that are any good fall apart, and what is left has less than half of the highest F."""
        return self.best.f(self.objective) < self.highest.f(self.objective) / 2

    def on_halves(self) -> dict[int, dict[str, float]]:
        """Return the mean F on the halves by measure, of each trial by its ``id``; empty where there are none."""
        if self.elsewhere is None:
            return {}
        return {
            id(trial): {
                name: sum(sample.trials[at].measure(name).f for sample in self.elsewhere.samples)
                / len(self.elsewhere.samples)
                for name in self.measures
            }
            for at, trial in enumerate(self.trials)
        }

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
            if best.joins and best.precision(self.objective) >= precision:
                found[precision] = best
        return found

    def tuning(self) -> Tuning:
        """Return what the recipe says of the choice, see ``Tuning``."""
        told: dict[str, float | tuple[float, float] | None] = {}
        for name in self.measures:
            told[f"{name}_f"] = round(self.best.measure(name).f, DIGITS)
            if name in self.expected:
                low, high = self.expected[name].interval
                told[f"expected_{name}_f"] = round(self.expected[name].f, DIGITS)
                told[f"expected_{name}_range"] = (round(low, DIGITS), round(high, DIGITS))
        return Tuning(self.best.evaluation.faces, self.people, self.objective, **told)  # type: ignore[arg-type]


def scored_by(objective: str, min_precision: float) -> Callable[[Trial], tuple[bool, bool, float]]:
    """Return what makes a trial the best: that it reaches the precision, then F; where none does, precision.

    A setting that joins no two faces makes no wrong pair: that is no precision that anybody could want, and such a
    setting comes last when a precision was asked for.
    """

    def score(trial: Trial) -> tuple[bool, bool, float]:
        precision = trial.precision(objective)
        joins = trial.joins or not min_precision
        precise = joins and precision >= min_precision
        return joins, precise, trial.f(objective) if precise else precision

    return score


def describe_values(values: Mapping[str, Value]) -> str:
    """Say settings as a recipe has them: "links.tau = 0.74"."""
    said = {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
    return ", ".join(f"{key} = {value}" for key, value in said.items())
