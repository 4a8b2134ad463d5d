"""Which settings suit a training, by figures of the faces: pure functions, and why each setting is what it is.

Constants are those of trainings that gave good clusters of other people (benchmarks/notes/quality.md), written as rules
so that faces of another kind get other settings.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from fcdeploy.training.figures import MOST, Crowd, Dealt, Labelled

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
LONG_LINKS = (
    320  # of lists in which a face of higher confidence is looked for: shorter ones take large people apart
)
HEADS = 8  # of an attention, which share as many values as a list is long and a feature wide
FEW_PEOPLE = 2000  # that a network learns by heart
MIRRORED = 0.15  # of the coordinates
NOISE = 0.45  # of the distance between two faces of a person
LARGEST = (300, 3000)  # faces that a proposal may have, at least and at most


@dataclass(frozen=True)
class Habit:
    """What has suited a network: steps per labelled person, faces or links per step, learning rate.

    share: of the time of its system, where that has several networks; mixed: half-precision products on a CPU that has
    them; settings: the network's own.
    """

    steps: float
    batch: int
    lr: float
    mixed: bool = False
    share: float = 1.0
    settings: Mapping[str, str] = field(default_factory=dict)


HABITS = {
    ("pse-gcn", "refine"): Habit(1.5, 16, 0.03, settings={"nodes": "128", "loss": "multi-similarity"}),
    ("sepfl", "pairwise"): Habit(0.27, 64, 5e-4, settings={"group": "8", "start": "similarity"}),
    ("l-gcn", "links"): Habit(27, 16, 0.05, mixed=True),
    ("gcn-d", "detect"): Habit(5, 32, 0.05, settings={"dropout": "0"}),
    ("gcn-d", "segment"): Habit(5, 32, 0.05, settings={"dropout": "0"}),
    ("nsr-fc", "rescore"): Habit(0.9, 256, 3e-4, mixed=True),
    ("nsr-fc", "lce"): Habit(4, 64, 3e-4, mixed=True, share=0.4),
    ("nsr-fc", "pce"): Habit(2.7, 64, 3e-4, mixed=True, share=0.6, settings={"others": "1"}),
    ("ve-gcn", "vertex"): Habit(5, 256, 0.003, mixed=True, settings={"start": "similarity"}),
    ("ve-gcn", "edge"): Habit(5, 64, 0.01, mixed=True),
}
# Networks that are trained by name only: re-scored distances are worse on other people than similarities are, and
# GCN-V links well without GCN-E.
BY_NAME = {"nsr-fc": ("rescore",), "ve-gcn": ("edge",)}


@dataclass(frozen=True)
class Reason:
    """A setting, and what it was chosen by."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Suited:
    """Settings of a system's training: the split of the faces, the recipe's by their places, networks' own by name."""

    albums: int
    strays: float
    recipe: Mapping[str, object]
    networks: Mapping[str, Habit]
    steps: Mapping[str, int]
    reasons: Sequence[Reason]


def networks_of(system: str, trained: Sequence[str], network: str | None) -> list[str]:
    """Return which of a system's networks are trained, one after the other: all but those that go by name only."""
    if network is not None:
        return [network]
    return [name for name in trained if name not in BY_NAME.get(system, ())]


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


def recipe_for(system: str, k: int, boundary: float, faces: int) -> dict[str, object]:
    """Return a recipe's settings by their places.

    boundary: see ``Labelled``; faces: how many are to be clustered.
    """
    near = {"neighborhood.k": k, "neighborhood.hops": [k, k // 5], "neighborhood.active": 10}
    if system == "pse-gcn":
        return {**near, "links.k": k}
    if system == "sepfl":
        return {"links.k": k, "links.rho": round(boundary + (1 - boundary) / 2, 2)}
    if system == "l-gcn":
        return {"neighborhood.hops": [k, 5], "neighborhood.active": 10}
    if system == "nsr-fc":
        pairs = {"pairs.k": k, "pairs.certain_weights": [1.0, 1.0, 1.0]}
        return {**near, "rescore.k": k, "rescore.batch": 256, "density_peaks.k": k // 2, **pairs}
    if system == "gcn-d":
        size = largest_proposal(faces)
        proposals = [
            {"k": LONGEST, "threshold": threshold, "step": 0.05, "min_size": 2, "max_size": size}
            for threshold in proposal_thresholds(boundary)
        ]
        return {"proposals": proposals, "network.reduce": "mean"}
    return {"graph.k": k, "links.k": min(8 * k, LONG_LINKS)}  # ve-gcn


def largest_proposal(faces: int) -> int:
    """Return how many faces a proposal may have: a quarter of those to be clustered, within bounds."""
    return min(max(faces // 4, LARGEST[0]), LARGEST[1])


def proposal_thresholds(boundary: float) -> list[float]:
    """Return the similarities at which proposals are made: from a sixth of what is above the boundary to two thirds."""
    return [round(boundary + (1 - boundary) * at / 12, 3) for at in range(2, 9)]


def own_settings(system: str, network: str, k: int, labelled: Labelled) -> dict[str, str]:
    """Return a network's own training settings, by name."""
    settings = dict(HABITS[system, network].settings)
    if system == "sepfl":
        settings["reach"] = str(k - 1)
    if system == "pse-gcn" and labelled.people < FEW_PEOPLE:
        settings |= {"flips": str(MIRRORED), "noise": str(noise_for(labelled.same))}
    return settings


def noise_for(same: float) -> float:
    """Return the length of the noise for people whose faces are so similar: less than the distance between two."""
    return round(NOISE * float(2 - 2 * same) ** 0.5, 1)


def suited_to(
    system: str,
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
    k = given or list_length(crowd.typical, fewest)
    habits = {
        name: dataclasses.replace(HABITS[system, name], settings=own_settings(system, name, k, labelled))
        for name in networks
    }
    steps = {name: steps_for(habit, labelled.people) for name, habit in habits.items()}
    recipe = {} if given else recipe_for(system, k, labelled.boundary, faces)
    if system == "gcn-d" and not given:  # two people in equal parts are half as alike as one
        recipe["overlap.min_cohesion"] = round(labelled.same / 2, 2)
    reasons = [
        *reasons_of_split(labelled, split, target),
        *(() if given else reasons_of_recipe(system, k, crowd, recipe, labelled)),
    ]
    for name, habit in habits.items():
        reasons.extend(reasons_of_network(name, habit, steps[name], labelled))
    return Suited(split.albums, split.strays, recipe, habits, steps, reasons)


def reasons_of_split(labelled: Labelled, split: Dealt, target: Crowd | None) -> Iterator[Reason]:
    """Say how the labelled faces are split, and why."""
    own = f"the labelled people have {labelled.typical:.0f} faces each (median)"
    if target is None:
        why = f"{own}; {OWN_FACES} of them or so are in one set, as nothing is known of the faces to be clustered"
        stray = "most people of a collection have few faces; --target takes the share from your own"
    else:
        why = (
            f"{own}; in a set a face then has {split.crowd.typical:.0f} look-alikes (similarity {labelled.boundary:g} "
            f"or more), and {target.typical:.0f} among the faces to be clustered"
        )
        stray = f"{split.crowd.alone:.1%} of the faces are then alone, and {target.alone:.1%} of those to be clustered"
    yield Reason("splits", str(split.albums), why)
    yield Reason("singletons", f"{split.strays:g}", stray)


def reasons_of_recipe(
    system: str, k: int, crowd: Crowd, recipe: Mapping[str, object], labelled: Labelled
) -> Iterator[Reason]:
    """Say what the recipe is, and why."""
    if system != "gcn-d":
        yield Reason("k", str(k), f"a face has {crowd.typical:.0f} look-alikes (median)")
    if "neighborhood.hops" in recipe and system != "nsr-fc":
        yield Reason("hops", str(recipe["neighborhood.hops"]), "k neighbors, and some of each")
    between = f"neighbors are the same person from a similarity of {labelled.boundary:g} on"
    if "links.rho" in recipe:
        yield Reason("rho", str(recipe["links.rho"]), between)
    if system == "gcn-d":
        thresholds = proposal_thresholds(labelled.boundary)
        yield Reason("proposals", f"at {thresholds[0]:g} to {thresholds[-1]:g}", between)
        alike = (
            f"two faces of a person have a similarity of {labelled.same:g}; of a proposal, half that at least"
        )
        yield Reason("min_cohesion", f"{recipe['overlap.min_cohesion']}", alike)
        yield Reason("max_size", f"{recipe['proposals'][0]['max_size']:,}", f"of {crowd.faces:,} faces")  # type: ignore[index]


def reasons_of_network(name: str, habit: Habit, steps: int, labelled: Labelled) -> Iterator[Reason]:
    """Say how a network is trained, and why."""
    yield Reason(
        f"steps of {name}",
        f"{steps:,} of {habit.batch}, rate {habit.lr:g}",
        f"{labelled.people:,} people, {habit.steps:g} steps each: more, and they are learned by heart",
    )
    if "flips" in habit.settings:
        mirrored = f"{habit.settings['flips']} mirrored, noise {habit.settings['noise']}"
        why = f"{labelled.people:,} people are few; two faces of one have a similarity of {labelled.same:g}"
        yield Reason("augmentation", mirrored, why)


def lines_of(reasons: Sequence[Reason]) -> list[str]:
    """Return reasons as lines of a table."""
    names, values = (max(len(getattr(row, part)) for row in reasons) for part in ("name", "value"))
    return [f"{row.name:<{names}}  {row.value:<{values}}  {row.why}" for row in reasons]
