"""``fcdeploy evaluate``: predicted clusters against the truth."""

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fcdeploy.cli.text import new_console

if TYPE_CHECKING:
    import numpy as np


@click.command("evaluate")
@click.argument("pred", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the measures as JSON.")
def command(pred: Path, truth: Path, as_json: bool) -> None:
    """Compare predicted clusters with the truth.

    PRED and TRUTH are label files of the same faces: .meta or ...labels.txt (one label a line), .npy (an
    integer array) or any other .txt (one cluster a line). A face labelled -1, or in no line of a cluster
    file, counts as a cluster of one.

    \b
    Example:
      fcdeploy evaluate pred_labels.meta part1_test.meta
    """
    from fcdeploy.clustering.metrics import evaluate

    evaluation = evaluate(*_read_both(pred, truth))
    if as_json:
        import json

        click.echo(json.dumps(evaluation.as_dict(), indent=2))
        return

    from rich.table import Table

    table = Table("", "precision", "recall", "F", box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, measure in (("pairwise", evaluation.pairwise), ("BCubed", evaluation.bcubed)):
        table.add_row(name, f"{measure.precision:.4f}", f"{measure.recall:.4f}", f"{measure.f:.4f}")
    table.add_row("NMI", "", "", f"{evaluation.nmi:.4f}")
    table.add_row("ARI", "", "", f"{evaluation.ari:.4f}")
    table.add_row("faces", "", "", f"{evaluation.faces:,}")
    table.add_row("clusters", "", "", f"{evaluation.clusters:,}")
    new_console().print(table)


def _read_both(pred: Path, truth: Path) -> "tuple[np.ndarray, np.ndarray]":
    """Read both files; a clusters.txt takes the number of faces from the other."""
    import numpy as np

    from fcdeploy.data.labels import labels_form, read_labels

    clusters = [labels_form(path) == "clusters" for path in (pred, truth)]
    if clusters == [False, True]:
        pred_labels = read_labels(pred)
        return pred_labels, read_labels(truth, len(pred_labels))
    truth_labels = read_labels(truth)
    if clusters != [True, True]:
        return read_labels(pred, len(truth_labels)), truth_labels
    # Neither says how many faces there are: those after its last id are in none of its clusters.
    pred_labels = read_labels(pred)
    n = max(len(pred_labels), len(truth_labels))
    return (
        np.pad(pred_labels, (0, n - len(pred_labels)), constant_values=-1),
        np.pad(truth_labels, (0, n - len(truth_labels)), constant_values=-1),
    )
