"""``fcdeploy evaluate``: predicted clusters against the truth."""

from pathlib import Path

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.label_options import label_column_option, unknown_option
from fcdeploy.cli.shared_options import json_option
from fcdeploy.cli.text import PlainConsole
from fcdeploy.cli.types import PathType


@click.command("evaluate", cls=grouped())
@click.argument("pred", type=PathType)
@click.argument("truth", type=PathType)
@label_column_option
@unknown_option
@json_option("the measures")
def command(pred: Path, truth: Path, label_column: str | None, unknown: str, as_json: bool) -> None:
    """Measure the quality of predicted clusters against true identities.

    PRED and TRUTH are label files of the same faces: .meta or ...labels.txt (one label per line), .npy, .npz, CSV, TSV,
    MXNet .lst, Parquet, Feather, or any other .txt (one cluster per line). Labels are whole numbers or names. A face
    without a cluster in PRED (label -1, or in no line) counts as a cluster of its own. Faces whose identity in TRUTH is
    unknown (-1, empty, NaN) are left out, unless --unknown says otherwise.

    \b
    Example:
      fcdeploy evaluate pred_labels.meta part1_test.meta
    """
    from fcdeploy.clustering.metrics import evaluate
    from fcdeploy.data.labels import check_known, read_pair

    pred_labels, true_labels = read_pair(pred, truth, label_column)
    check_known(true_labels, str(truth), unknown)
    evaluation = evaluate(pred_labels, true_labels, unknown=unknown)
    if as_json:
        import json

        click.echo(json.dumps(evaluation.as_dict(), indent=2))
        return

    from rich.table import Table

    table = Table("", "precision", "recall", "F", box=None, pad_edge=False)
    for numbers in table.columns[1:]:
        numbers.justify = "right"
    for name, measure in (("pairwise", evaluation.pairwise), ("BCubed", evaluation.bcubed)):
        table.add_row(name, f"{measure.precision:.4f}", f"{measure.recall:.4f}", f"{measure.f:.4f}")
    table.add_row("NMI", "", "", f"{evaluation.nmi:.4f}")
    table.add_row("ARI", "", "", f"{evaluation.ari:.4f}")
    table.add_row("faces", "", "", f"{evaluation.faces:,}")
    table.add_row("clusters", "", "", f"{evaluation.clusters:,}")
    if evaluation.unknown:
        table.add_row("unknown, left out", "", "", f"{evaluation.unknown:,}")
    PlainConsole().print(table)
