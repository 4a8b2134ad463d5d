"""Which settings suit a training, by figures of the faces: pure functions, and why each setting is what it is.

How the faces are split and how long lists are is the same for all systems; the rest are habits of each
(``fcdeploy.systems.habits``). Constants are those of trainings that gave good clusters of other people
(benchmarks/notes/quality.md), written as rules so that faces of another kind get other settings.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fcdeploy.systems import System
from fcdeploy.systems.habits import Figures, Habit, Labelled, Reason, SuitedRecipe
from fcdeploy.training.figures import MOST, Crowd, Dealt

OWN_FACES = 12  # of a person in one set, where nothing is known of the faces to be clustered
STRAYS = 0.4  # of the faces, likewise: enough that some are alone
MANY_SINGLES = 0.3  # of the labelled people: where as many have one face, no strays are needed
ALBUMS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 24)  # that are tried
STRAY_SHARES = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6)
FEWEST_FACES = 4  # of a typical person in one set
CLOSE = 1.1  # times the least difference: splits that are about as alike as the best one
# Up to so many look-alikes, lists of so many neighbors; where there are as many as are counted, the published 80.
LISTS = ((4, 24), (MOST - 1, 40))
LONGEST = 80
HEADS = 8  # of an attention, which share as many values as a list is long and a feature wide


@dataclass(frozen=True)
class Suited:
    """Settings of a system's training: the split of the faces, the recipe's by their places, networks' own by name."""

    albums: int
    strays: float
    recipe: Mapping[str, object]
    networks: Mapping[str, Habit]
    steps: Mapping[str, int]
    reasons: Sequence[Reason]


def networks_of(system: System, network: str | None) -> list[str]:
    """Return which of a system's networks are trained, one after the other: all but those that go by name only."""
    if network is not None:
        return [network]
    return [name for name, training in system.trainings().items() if not training.habit.by_name]


def usual_split(typical: float, singles: float) -> tuple[int, float]:
    """Return albums and strays where nothing is known of the faces to be clustered.

    typical: faces of a labelled person; singles: the share of people with one face.
    """
    albums = max(1, round(typical / OWN_FACES))
    return albums, 0.0 if albums == 1 or singles >= MANY_SINGLES else STRAYS


def splits_to_try(typical: float, faces: int) -> list[tuple[int, float]]:
    """Return the splits among which the one is chosen that looks most like the faces to be clustered.

    typical: faces of a labelled person; faces: how many there are.
    """
    counts = [n for n in ALBUMS if n == 1 or (typical / n >= FEWEST_FACES and faces / n >= 2 * LONGEST)]
    return [(n, strays) for n in counts for strays in (STRAY_SHARES if n > 1 else (0.0,))]


def closest_split(splits: Sequence[Dealt], target: Crowd) -> Dealt:
    """Return the split whose faces have as many look-alikes as those to be clustered.

    Of splits that are about as close as the closest, the one with as many single faces.
    """
    least = min(split.crowd.unlike(target) for split in splits)
    close = [split for split in splits if split.crowd.unlike(target) <= CLOSE * least]
    return min(close, key=lambda split: abs(split.crowd.alone - target.alone))


def list_length(look_alikes: float, fewest: int) -> int:
    """Return k: neighbors per face, itself counted, where faces have so many look-alikes.

    fewest: faces on the smaller side, training or validation, more than which no list holds.
    """
    wanted = next((k for most, k in LISTS if look_alikes <= most), LONGEST)
    return max(HEADS, min(wanted, fewest // HEADS * HEADS))


def steps_for(habit: Habit, people: int) -> int:
    """Return how many steps suit so many people: with more of them it takes longer to learn them by heart."""
    return max(10, round(habit.steps * people))


def suited_to(
    system: System,
    networks: Sequence[str],
    labelled: Labelled,
    split: Dealt,
    target: Crowd | None,
    fewest: int,
    given: int = 0,
) -> Suited:
    """Return the settings that suit the labelled faces, split so, and those to be clustered where these are known.

    networks: those that are trained, see ``networks_of``; fewest: see ``list_length``; given: k of a recipe that is
    not to be chosen, 0 where there is none.
    """
    crowd, faces = (split.crowd, labelled.faces) if target is None else (target, target.faces)
    figures = Figures(given or list_length(crowd.typical, fewest), crowd.typical, faces, labelled)
    habits = {name: adapted(system.trainings()[name].habit, figures) for name in networks}
    steps = {name: steps_for(habit, labelled.people) for name, habit in habits.items()}
    recipe = SuitedRecipe({}, ()) if given else system.suited_recipe(figures)
    reasons = [*reasons_of_split(labelled, split, target), *recipe.reasons]
    for name, habit in habits.items():
        reasons.extend(reasons_of_network(name, habit, steps[name], labelled))
    return Suited(split.albums, split.strays, recipe.values, habits, steps, reasons)


def adapted(habit: Habit, figures: Figures) -> Habit:
    """Return a habit with the settings that follow from the faces."""
    return dataclasses.replace(habit, settings={**habit.settings, **habit.adapted(figures)})


def reasons_of_split(labelled: Labelled, split: Dealt, target: Crowd | None) -> Iterator[Reason]:
    """Say how the labelled faces are split, and why."""
    own = f"the labelled people have {labelled.typical:.0f} faces each (median)"
    if target is None:
        why = f"{own}; without --target, about {OWN_FACES} of them are put into one set"
        stray = "most people of a collection have few faces; --target takes the share from your own"
    else:
        why = (
            f"{own}; in a set a face then has {split.crowd.typical:.0f} look-alikes (similarity {labelled.boundary:g} "
            f"or more), and {target.typical:.0f} among the faces to be clustered"
        )
        stray = f"{split.crowd.alone:.1%} of the faces then have none, and {target.alone:.1%} of those to be clustered"
    yield Reason("splits", str(split.albums), why)
    yield Reason("singletons", f"{split.strays:g}", stray)


def reasons_of_network(name: str, habit: Habit, steps: int, labelled: Labelled) -> Iterator[Reason]:
    """Say how a network is trained, and why."""
    yield Reason(
        f"steps of {name}",
        f"{steps:,} of {habit.batch}, rate {habit.lr:g}",
        f"{labelled.people:,} people, {habit.steps:g} steps each; with more, the network overfits",
    )
    if "flips" in habit.settings:
        value = f"flips {habit.settings['flips']}, noise {habit.settings['noise']}"
        why = f"{labelled.people:,} people are few; two faces of one have a similarity of {labelled.same:g}"
        yield Reason("augmentation", value, why)


def lines_of(reasons: Sequence[Reason]) -> list[str]:
    """Return reasons as lines of a table."""
    names, values = (max(len(getattr(row, part)) for row in reasons) for part in ("name", "value"))
    return [f"{row.name:<{names}}  {row.value:<{values}}  {row.why}" for row in reasons]
