"""What ``fcdeploy tune`` leaves: the recipe, the picture beside it, and figures for a table and for JSON."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from fcdeploy.clustering.metrics import PrecisionRecall
from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.side_files import check_replaceable
from fcdeploy.deploy.recipe import recipe_text
from fcdeploy.errors import InputError
from fcdeploy.training.curves import MeasureToDraw, TradeOffToDraw, draw_trade_off, is_drawn_here
from fcdeploy.training.elsewhere import Expected
from fcdeploy.training.sweep import MEAN, Trial
from fcdeploy.training.tuned import TITLES, Tuned, describe_values


def check_outputs(output: Path) -> Path:
    """Return ``output`` when recipe and plot can be written there; raises InputError otherwise."""
    if output.suffix != ".toml":
        raise InputError(f"{output}: a recipe is TOML; give a name that ends in .toml.")
    check_parent(output)
    plot = check_parent(output.with_suffix(".png"))
    check_replaceable(plot, is_drawn_here, "the plot")
    return output


def write_tuned(tuned: Tuned, output: Path) -> Path:
    """Write the recipe to ``output`` and the plot of the trade-off beside it (``.png``), whose path is returned.

    Raises InputError when another picture is there.
    """
    plot = output.with_suffix(".png")
    check_replaceable(plot, is_drawn_here, "the plot")
    lines = [
        f"Tuned on {tuned_on(tuned)} for {tuned.objective} F: {describe_values(tuned.best.values)}.",
        *(f"{TITLES[name]} {figures(tuned.best.measure(name))}." for name in tuned.measures),
        *(f"{line}." for line in expected_lines(tuned)),
    ]
    with atomic_file(output) as file:
        file.write(recipe_text(tuned.recipe, lines).encode())
    draw_trade_off(plot, trade_off(tuned))
    return plot


def expected_lines(tuned: Tuned) -> list[str]:
    """Say what is expected on other people, a line for each measure; none where that is not known."""
    return [
        f"Expected on other people: {TITLES[name]} F {said(expected)}"
        for name, expected in tuned.expected.items()
    ]


def said(expected: Expected) -> str:
    """Say an expected F with its interval: "0.812 (0.76 to 0.85)"."""
    low, high = expected.interval
    return f"{expected.f:.3f} ({low:.2f} to {high:.2f})"


def trade_off(tuned: Tuned) -> TradeOffToDraw:
    """Return what the picture shows: the curve of the first setting that was chosen, and what is expected elsewhere."""
    key, curve = tuned.tunables[0].key, tuned.curve()
    places = [at for at, trial in enumerate(tuned.trials) if any(trial is shown for shown in curve)]
    places.sort(key=lambda at: tuned.trials[at].values[key])
    measures = {}
    for name in tuned.measures:
        samples = [] if tuned.elsewhere is None else tuned.elsewhere.samples
        expected = tuned.expected.get(name)
        measures[TITLES[name]] = MeasureToDraw(
            [point(trial.measure(name)) for trial in curve],
            np.array([[sample.trials[at].measure(name).f for at in places] for sample in samples]),
            None if expected is None else (expected.f, expected.interval),
            [(title, *point(trial.measure(name))) for title, trial in tuned.without.items()],
        )
    return TradeOffToDraw(
        key, [trial.values[key] for trial in curve], curve.index(tuned.best), measures, concluded(tuned)
    )


def concluded(tuned: Tuned) -> str:
    """Say in a line what a tuning came to: what was chosen, and what F it gives here and elsewhere."""
    here = " / ".join(f"{tuned.best.measure(name).f:.3f}" for name in tuned.measures)
    names = " / ".join(TITLES[name] for name in tuned.measures)
    chosen = describe_values(tuned.best.values)
    if tuned.elsewhere is None:
        return f"{chosen}: {names} F {here} on the faces tuned on"
    there = " / ".join(f"{tuned.expected[name].f:.3f}" for name in tuned.measures)
    return f"{chosen}: {names} F {there} expected on other people, {here} on the faces tuned on"


def tuned_on(tuned: Tuned) -> str:
    """Say on what settings were chosen: "300 labelled faces"."""
    if tuned.estimated is not None:
        return f"{tuned.estimated.pairs:,} checked pairs"
    return f"{tuned.best.evaluation.faces:,} labelled faces"


def figures(measure: PrecisionRecall) -> str:
    """Say a measure as in "F 0.8123 (precision 0.9, recall 0.74)"."""
    return f"F {measure.f:.4f} (precision {measure.precision:.4f}, recall {measure.recall:.4f})"


def figures_of(trial: Trial, objective: str) -> str:
    """Say a trial's figures of the objective, of both F where that is their mean."""
    if objective != MEAN:
        return f"{TITLES[objective]} {figures(trial.measure(objective))}"
    both = trial.evaluation
    return (
        f"pairwise / BCubed F {both.pairwise.f:.4f} / {both.bcubed.f:.4f} (precision {both.pairwise.precision:.4f} / "
        f"{both.bcubed.precision:.4f})"
    )


def as_dict(tuned: Tuned) -> dict[str, object]:
    """Return what ``fcdeploy tune --json`` prints."""
    return {
        "objective": tuned.objective,
        **({"unknown": unknown} if (unknown := tuned.best.evaluation.unknown) else {}),
        **({"people": tuned.people} if tuned.people else {}),
        **({"estimated": asdict(tuned.estimated)} if tuned.estimated is not None else {}),
        **({"expected": expected_as_dict(tuned)} if tuned.elsewhere is not None else {}),
        **({"not_expected": tuned.untold} if tuned.untold else {}),
        **({"all_alike": True} if tuned.all_alike else {}),
        "best": _row(tuned.best, tuned.measures),
        "highest": _row(tuned.highest, tuned.measures),
        "before": _row(tuned.before, tuned.measures),
        **tuned.summary,
        "trials": [_row(trial, tuned.measures) for trial in tuned.trials],
    }


def expected_as_dict(tuned: Tuned) -> dict[str, object]:
    """Return what is expected on other people, ready for JSON."""
    assert tuned.elsewhere is not None
    return {
        **{name: asdict(one) for name, one in tuned.expected.items()},
        "chosen": [dict(values) for values in tuned.elsewhere.chosen],
        "excluded": tuned.excluded,
    }


def _row(trial: Trial, measures: Sequence[str]) -> dict[str, object]:
    return {
        "values": dict(trial.values),
        "clusters": trial.evaluation.clusters,
        "largest": trial.evaluation.largest,
    } | {name: trial.measure(name).as_dict() for name in measures}


def point(measure: PrecisionRecall) -> tuple[float, float]:
    """Return where a measure stands in the picture: recall and precision."""
    return measure.recall, measure.precision
