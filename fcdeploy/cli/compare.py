"""``fcdeploy compare``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.features import column_option, open_and_tell
from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.interrupts import resumable
from fcdeploy.cli.label_options import label_column_option, unknown_option
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import (
    dim_option_of,
    json_option,
    labelled_duplicates_option,
    labelled_on_bad_option,
    quiet_option,
    scratch_option,
)
from fcdeploy.cli.text import PlainConsole
from fcdeploy.cli.types import PathType, Whole
from fcdeploy.errors import counted

if TYPE_CHECKING:
    from fcdeploy.training.comparison import Comparison

GROUPS = {
    "Input": ("column", "dim", "label_column", "unknown", "on_bad", "duplicates"),
    "Engines and methods": ("engines", "methods", "k", "objective"),
    "Output": ("output", "plot", "as_json", "quiet"),
    "Machine": ("threads", "memory", "scratch"),
}


@click.command("compare", cls=grouped(GROUPS))
@click.argument("features", type=PathType)
@click.argument("labels", type=PathType)
@click.option(
    "--engine", "engines", multiple=True, type=PathType, help="Engine bundle to compare; may be repeated."
)
@click.option(
    "--methods",
    default="components,denser,dbscan,hdbscan",
    show_default=True,
    metavar="NAME,...",
    help="Methods without a network to compare with, or none. dbscan and hdbscan need scikit-learn.",
)
@column_option
@dim_option_of("the engines'")
@label_column_option
@unknown_option
@click.option(
    "--objective",
    type=click.Choice(["pairwise", "bcubed"]),
    default="pairwise",
    show_default=True,
    help="Metric by which the best settings are chosen: pairwise F or BCubed F.",
)
@click.option(
    "--k",
    type=Whole(2),
    default=80,
    show_default=True,
    help="Number of nearest neighbors per face, for the methods without a network.",
)
@click.option("-o", "--output", type=PathType, help="JSON file to write, with all results.")
@click.option("--plot", type=PathType, help="Plot of precision against recall to write (.png, .svg).")
@labelled_duplicates_option
@labelled_on_bad_option("With -o, they are listed in OUTPUT.bad.txt.")
@run_option("threads")
@run_option("memory")
@scratch_option
@json_option("all results")
@quiet_option
def command(
    features: Path,
    labels: Path,
    engines: tuple[Path, ...],
    methods: str,
    column: str | None,
    dim: int | None,
    label_column: str | None,
    unknown: str,
    objective: str,
    k: int,
    output: Path | None,
    plot: Path | None,
    on_bad: str,
    as_json: bool,
    quiet: bool,
    **chosen: object,
) -> None:
    """Compare engines, and methods without a network, on labelled faces.

    FEATURES holds a sample of your own faces, LABELS their true identities, -1 where unknown. Each engine is measured
    with the settings of its recipe and with its best settings, each method without a network with its best. The best
    settings are chosen on these same faces: expect lower quality on others.

    \b
    Example:
      fcdeploy compare val.bin val.meta --engine pse.onnx --engine lce.onnx --plot compare.png
      fcdeploy compare val.npy val.csv --methods components,hdbscan -o compare.json
    """
    from fcdeploy.data.bad_list import bad_list_of, check_bad_list
    from fcdeploy.engine.bundle import read_bundle
    from fcdeploy.run.options import options_from_values
    from fcdeploy.runtime.lost_pages import sigbus_guard
    from fcdeploy.training.compare import check_written, common_width, truth_of, write_found
    from fcdeploy.training.comparison import check_names, compare_on, comparison_as_dict

    options = options_from_values(chosen)
    bundles = [read_bundle(engine) for engine in engines]
    names = [] if methods == "none" else [name.strip() for name in methods.split(",")]
    check_names(bundles, names, objective, k)
    check_written(output, plot, (features, labels))
    bad_list = None if output is None else bad_list_of(output)
    if bad_list is not None:
        check_bad_list(bad_list, (features, labels))
    opened = open_and_tell(
        features,
        dim,
        width=common_width(bundles),
        column=column,
        output=output,
        scratch=options.scratch,
        quiet=quiet,
    )
    truth = truth_of(labels, opened, label_column)
    with resumable(""), sigbus_guard():
        found = compare_on(
            opened,
            truth,
            bundles,
            names,
            objective=objective,
            unknown=unknown,
            k=k,
            options=options,
            on_bad=on_bad,
            bad_list=bad_list,
            scratch_dir=None if output is None else output.parent,
            labels_name=str(labels),
            quiet=quiet or as_json,
        )
    write_found(found, opened, output, plot)
    if as_json:
        click.echo(json.dumps(comparison_as_dict(found), indent=1))
    elif not quiet:
        _print(found)
        for written, what in ((output, "figures"), (plot, "plot")):
            if written is not None:
                click.echo(f"{what} in {written}")


def _print(found: "Comparison") -> None:
    from rich.table import Table

    from fcdeploy.training.comparison import settings_shown

    table = Table(box=None, pad_edge=False)
    table.add_column("method", overflow="fold")
    table.add_column("settings", overflow="fold")
    for heading in ("pairwise F", "precision", "recall", "BCubed F", "clusters", "seconds"):
        table.add_column(heading, justify="right")
    highest = max((row.best.measure(found.objective).f for row in found.rows), default=0.0)
    for row in found.rows:
        lines = [(row.own, "its own")] if row.own is not None else []
        for at, (trial, which) in enumerate([*lines, (row.best, "best")]):
            evaluation = trial.evaluation
            pairwise = evaluation.pairwise
            figures = (pairwise.f, pairwise.precision, pairwise.recall, evaluation.bcubed.f)
            first = which == "best" and trial.measure(found.objective).f == highest
            table.add_row(
                row.name if at == 0 else "",
                f"{settings_shown(trial)} ({which})",
                *(f"{figure:.4f}" for figure in figures),
                f"{evaluation.clusters:,}",
                f"{row.seconds:.1f}" if at == 0 else "",
                style="bold" if first else "",
            )
    PlainConsole().print(table)
    measure = "pairwise" if found.objective == "pairwise" else "BCubed"
    known = f"{counted(found.faces, 'face')} of {counted(found.identities, 'person', 'people')}"
    click.echo(
        f"best: the settings of highest {measure} F on these same labels (in-sample), {known}; expect lower quality on "
        "other faces"
    )
    if any(row.own is not None for row in found.rows):
        click.echo(
            "its own: the settings of the engine's recipe, in-sample only if they were tuned on these faces"
        )
    if found.unknown:
        click.echo(f"{counted(found.unknown, 'face')} of unknown identity left out of all figures")
