"""``fcdeploy tune``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import click

from fcdeploy.cli.features import column_option, open_and_tell
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.label_options import label_column_option, unknown_option
from fcdeploy.cli.outputs import check_default_output
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import (
    engine_option,
    json_option,
    labelled_duplicates_option,
    labelled_on_bad_option,
    quiet_option,
    scratch_option,
)
from fcdeploy.cli.text import PlainConsole
from fcdeploy.cli.types import PathType, Real, Whole
from fcdeploy.errors import counted

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from rich.table import Table

    from fcdeploy.data.features import Features
    from fcdeploy.engine.bundle import Bundle
    from fcdeploy.run.options import Options
    from fcdeploy.training.tuned import Tuned


GROUPS = {
    "Input": (
        *("features", "column", "labels", "pairs", "unlabelled", "label_column", "unknown"),
        *("on_bad", "duplicates"),
    ),
    "Engine": ("engine", "inference", "link"),
    "Choice": ("objective", "min_precision", "repeats"),
    "Output": ("output", "run_dir", "as_json", "quiet"),
    "Machine": ("threads", "scratch"),
}


@click.command("tune", cls=grouped(GROUPS))
@engine_option
@click.option("--features", required=True, type=PathType, help="Features of the faces to choose on.")
@column_option
@click.option("--labels", type=PathType, help="Their true identities, -1 where unknown.")
@click.option(
    "--pairs",
    type=PathType,
    help="Instead of identities, a few hundred pairs of faces that a person has checked (see `fcdeploy pairs`).",
)
@click.option(
    "--unlabelled",
    is_flag=True,
    help="Without identities or pairs: suggest the threshold at which neighbors agree most with the clusters.",
)
@label_column_option
@unknown_option
@click.option(
    "--objective",
    type=click.Choice(["mean", "pairwise", "bcubed"]),
    help="Metric to maximise: pairwise F, BCubed F, or the mean of both.  [default: mean; with --pairs pairwise]",
)
@click.option(
    "--min-precision",
    type=Real(0, 1),
    default=0.0,
    help="Minimum precision that the choice must reach, in the metric of --objective.  [default: any]",
)
@click.option(
    "--repeats",
    type=Whole(min=0),
    default=3,
    show_default=True,
    help="Number of random splits of the people into halves, each half clustered again, to find a setting that stays "
    "good on other people and to estimate its F there; 0: take the highest F on these faces.",
)
@click.option(
    "-o",
    "--output",
    type=PathType,
    default=Path("tuned.toml"),
    show_default=True,
    help="Recipe to write, with a plot beside it (.png).",
)
@run_option("inference")
@run_option("link", help="NSR-FC only: way of clustering to tune.  [default: the engine's]")
@labelled_duplicates_option
@labelled_on_bad_option("They are listed in OUTPUT.bad.txt.")
@run_option("threads")
@click.option(
    "--run-dir", type=PathType, help="Folder that keeps all results, to continue an interrupted run."
)
@scratch_option
@json_option("all settings that were tried, with their measures,")
@quiet_option
def command(
    engine: Path,
    features: Path,
    column: str | None,
    labels: Path | None,
    pairs: Path | None,
    unlabelled: bool,
    label_column: str | None,
    unknown: str,
    objective: str | None,
    min_precision: float,
    repeats: int,
    output: Path,
    on_bad: str,
    run_dir: Path | None,
    as_json: bool,
    quiet: bool,
    **chosen: object,
) -> None:
    """Choose the thresholds of an engine on labelled faces, or on pairs of faces that a person has checked.

    Every setting is tried on all faces and on random halves of the people, each clustered on its own; what is chosen on
    one half is measured on the other. The setting that stays good everywhere is chosen. The F to expect on other people
    is printed beside the F on these faces, and written into the recipe. Give faces of people that the network was not
    trained on.

    \b
    Example:
      fcdeploy tune --engine pse.onnx --features val.bin --labels val.meta --min-precision 0.99
      fcdeploy tune --engine pse.onnx --features features.bin --pairs pairs.csv
      fcdeploy tune --engine pse.onnx --features features.bin --unlabelled
      fcdeploy export --ckpt saves/checkpoint.pth --recipe tuned.toml -o pse.onnx
    """
    from fcdeploy.data.bad_list import bad_list_of
    from fcdeploy.data.checked_pairs import read_pairs
    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.run.options import options_from_values
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.training.tune import tune

    options = options_from_values(chosen)
    _check(labels, pairs, unlabelled, label_column, objective, min_precision)
    _check_output(output, (features, labels, pairs))
    bundle = read_bundle(engine)
    opened = open_and_tell(
        features,
        None,
        width=bundle.feature_dim,
        column=column,
        output=output,
        scratch=options.scratch,
        quiet=quiet,
    )
    surroundings: Surroundings = {
        "options": options,
        "on_bad": on_bad,
        "bad_list": bad_list_of(output),
        "run_dir": run_dir,
        "scratch_dir": output.parent,
        "quiet": quiet or as_json,
    }
    if unlabelled:
        _suggest(opened, bundle, surroundings, output, as_json, quiet)
        return
    truth = None if labels is None else _read_truth(labels, opened, label_column)
    checked = None if pairs is None else read_pairs(pairs, opened.n)
    with resumable(_advice(run_dir)), sigbus_guard():
        tuned = tune(
            opened,
            bundle,
            truth,
            pairs=checked,
            objective=objective,
            min_precision=min_precision,
            repeats=repeats,
            unknown=unknown,
            labels_name=str(labels),
            **surroundings,
        )
    _write(tuned, output, as_json, quiet)


class Surroundings(TypedDict):
    """Options of the run and where it keeps what, as ``tune`` takes them."""

    options: "Options"
    on_bad: str
    bad_list: Path
    run_dir: Path | None
    scratch_dir: Path
    quiet: bool


def _check(
    labels: Path | None,
    pairs: Path | None,
    unlabelled: bool,
    label_column: str | None,
    objective: str | None,
    min_precision: float,
) -> None:
    """Raise InputError unless options go together."""
    from fcdeploy.errors import InputError

    if (labels is not None) + (pairs is not None) + unlabelled != 1:
        raise InputError(
            "give --labels, the true identities of all faces, or --pairs, some that were checked, or --unlabelled."
        )
    if unlabelled and (min_precision or objective is not None):
        raise InputError(
            "--unlabelled: knows no precision and no F; leave --min-precision and --objective out."
        )
    if pairs is not None and label_column is not None:
        raise InputError("--label-column is for --labels, which is not given; leave it out.")


def _check_output(output: Path, inputs: tuple[Path | None, ...]) -> None:
    """Raise InputError when recipe, plot or list of bad rows cannot be written where they are to go."""
    from fcdeploy.data.bad_list import bad_list_of, check_bad_list
    from fcdeploy.data.side_files import check_not_an_input
    from fcdeploy.deploy.recipe import is_written_recipe
    from fcdeploy.training.tuned_files import check_outputs

    check_outputs(output)
    check_not_an_input(output, inputs)
    check_default_output("output", output, is_written_recipe)
    check_bad_list(bad_list_of(output), inputs)


def _advice(run_dir: Path | None) -> str:
    return f"the same command continues from {run_dir}" if run_dir else ""


def _read_truth(labels: Path, opened: "Features", label_column: str | None) -> "np.ndarray":
    """Read the true identities, (n,) int64; raises InputError when they are not as many as the features."""
    from fcdeploy.data.labels import WrongNumberOfLabels, read_labels
    from fcdeploy.training.tune import check_number

    try:
        return read_labels(labels, opened.n, label_column)
    except WrongNumberOfLabels as error:
        check_number(error.found, opened, str(labels))
        raise


def _suggest(
    opened: "Features",
    bundle: "Bundle",
    surroundings: Surroundings,
    output: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Suggest a threshold without labels, and print how stable clusters are over its values."""
    from rich.table import Table

    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.training.unlabelled import tune_unlabelled, unlabelled_as_dict, write_unlabelled

    with resumable(_advice(surroundings["run_dir"])), sigbus_guard():
        found = tune_unlabelled(opened, bundle, **surroundings)
    plot = write_unlabelled(found, opened.name, output)
    if as_json:
        click.echo(json.dumps(unlabelled_as_dict(found), indent=1))
        return
    if quiet:
        return
    table = Table(box=None, pad_edge=False)
    for heading in (found.tunable.key, "votes", "agreement", "clusters", "largest"):
        table.add_column(heading, justify="right")
    for at, point in enumerate(found.points):
        if point is found.best or at % max(1, len(found.points) // 25) == 0:
            mark = " *" if point is found.best else "  "
            agreement = "" if point.agreement != point.agreement else f"{point.agreement:.3f}"
            table.add_row(
                f"{point.value}",
                f"{point.votes:.4f}",
                agreement,
                f"{point.clusters:,}",
                f"{point.largest:.1%}{mark}",
                style="bold" if point is found.best else "",
            )
    PlainConsole().print(table)
    first, last = found.close
    click.echo(
        f"* suggested: {found.tunable.key} = {found.best.value}, at which neighbors agree most with the clusters; "
        f"within 1 % of it: {first} to {last}; the recipe's: {found.before}"
    )
    click.echo(f"recipe in {output}, plot in {plot}")


def _write(tuned: "Tuned", output: Path, as_json: bool, quiet: bool) -> None:
    """Write the recipe and its plot, and print what was found."""
    from fcdeploy.training.tuned_files import as_dict, write_tuned

    plot = write_tuned(tuned, output)
    if as_json:
        click.echo(json.dumps(as_dict(tuned), indent=1))
    elif not quiet:
        _print(tuned, output, plot)


def _print(tuned: "Tuned", output: Path, plot: Path) -> None:
    from fcdeploy.training.tuned import TITLES, describe_values
    from fcdeploy.training.tuned_files import expected_lines, figures_of

    console = PlainConsole()
    console.print(_table(tuned))
    if len(tuned.tunables) > 1:
        others = {other.key: tuned.best.values[other.key] for other in tuned.tunables[1:]}
        console.print(f"with {describe_values(others)}")
    name = TITLES[tuned.objective]
    for precision, trial in tuned.at_precision().items():
        found = figures_of(trial, tuned.objective)
        click.echo(f"{name} precision {precision} or more: {found}, {describe_values(trial.values)}")
    click.echo(
        f"* chosen: {describe_values(tuned.best.values)}, {figures_of(tuned.best, tuned.objective)} on these faces; "
        f"the recipe's: {describe_values(tuned.before.values)}, F {tuned.before.f(tuned.objective):.4f}"
    )
    for line in expected_lines(tuned):
        click.echo(line)
    for line in _worth(tuned):
        click.echo(line)
    if left_out := tuned.best.evaluation.unknown:
        click.echo(f"{counted(left_out, 'face')} of unknown identity left out of all figures")
    click.echo(f"recipe in {output}, plot in {plot}")


def _table(tuned: "Tuned") -> "Table":
    """Return the trade-off: of each measure F, F on halves of the people where it is known, precision and recall."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    first = tuned.tunables[0]
    elsewhere = tuned.on_halves()
    table.add_column(first.key, justify="right", overflow="fold")
    for measure in ("pairwise", "BCubed")[: len(tuned.measures)]:
        for heading in (f"{measure} F", *(["halves"] if elsewhere else []), "precision", "recall"):
            table.add_column(heading, justify="right")
    table.add_column("clusters", justify="right")
    for trial in tuned.table():
        cells = []
        for name in tuned.measures:
            known = trial.measure(name)
            halves = [elsewhere[id(trial)][name]] if elsewhere else []
            cells += [f"{value:.4f}" for value in (known.f, *halves, known.precision, known.recall)]
        mark = " *" if trial is tuned.best else "  "
        table.add_row(
            f"{trial.values[first.key]}",
            *cells,
            f"{trial.evaluation.clusters:,}{mark}",
            style="bold" if trial is tuned.best else "",
        )
    return table


def _worth(tuned: "Tuned") -> "Iterator[str]":
    """Say how sure the choice is: by halves of the people, or by pairs drawn again."""
    first = tuned.tunables[0]
    if tuned.all_alike:
        more = "check more pairs of `fcdeploy pairs`" if tuned.estimated else "give more labelled faces"
        yield (
            f"every setting gives the same F, {tuned.best.f(tuned.objective):.4f}, so the settings stay as they are; "
            f"{more}"
        )
    if tuned.elsewhere is not None:
        values = [values[first.key] for values in tuned.elsewhere.chosen]
        yield (
            f"(in brackets: 95 % interval for other sets of as many people, from {len(values)} choices on half of the "
            f"people, measured on the other half; these chose {first.key} {min(values)} to {max(values)})"
        )
        if tuned.falls_apart:
            yield (
                "every setting merges people: a cluster has more than 1.5 times as many faces as the largest person, "
                "on all faces or on a half; expect such clusters on other faces, too"
            )
        elif tuned.excluded:
            yield (
                f"{tuned.excluded:,} of {len(tuned.trials):,} settings excluded: with these, a cluster has more than "
                "1.5 times as many faces as the largest person, on all faces or on a half"
            )
        if tuned.joins_hardly_anybody:
            yield (
                f"the other settings join hardly any faces (the highest F of an excluded setting is "
                f"{tuned.highest.f(tuned.objective):.3f}): the network does not distinguish these people; train it "
                "longer, or on these embeddings"
            )
    elif tuned.untold:
        yield f"no estimate for other people: {tuned.untold}"
    if sure := tuned.estimated:
        low, high = sure.f
        told = f"from {sure.pairs:,} checked pairs, {sure.same:,} of the same person: F is {low:.3f} to {high:.3f}"
        if sure.chosen is not None:
            told += f", the best {first.key} {sure.chosen[0]:g} to {sure.chosen[1]:g}"
        yield f"{told} (95 % intervals)"
        if not sure.weighted:
            yield "the pairs were not drawn by `fcdeploy pairs`: all figures are for these pairs, not for all faces"
