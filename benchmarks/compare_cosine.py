"""How good is plain cosine linking on the same faces, at the threshold that suits it best?

Two baselines without a network, each at the threshold that gives it the highest pairwise F (and, apart, BCubed F):

    components    faces are joined when one is in the kNN list of the other and they are similar enough
    denser links  each face is joined to its nearest denser face when similar enough (PSE-GCN's rule, raw features)

    python benchmarks/compare_cosine.py features.bin truth.meta --dim 128 --pred pse-gcn=pred_labels.meta
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.graph.knn import KnnGraph, KnnSearch
from fcdeploy.training.baselines import links_to_denser

THRESHOLDS = np.arange(0.2, 0.96, 0.01)


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--dim", type=int, help="Width of a .bin file's rows.")
@click.option("--k", default=40, show_default=True, help="Neighbors a face.")
@click.option(
    "--pred",
    "preds",
    multiple=True,
    metavar="NAME=LABELS",
    help="Predicted labels to show above the baselines.",
)
def main(features: Path, truth: Path, dim: int | None, k: int, preds: tuple[str, ...]) -> None:
    """Print pairwise and BCubed F of predictions and of cosine linking at its best threshold."""
    opened = open_features(features, dim)
    true_labels = read_labels(truth, opened.n)
    vectors = opened.rows(0, opened.n)
    ids, sims = KnnSearch(vectors).search(np.arange(opened.n), min(k, opened.n))
    lists = KnnGraph(ids, sims)
    rows: list[tuple[str, str, float, float]] = []
    for name, labels in named_labels(preds, opened.n):
        found = evaluate(labels, true_labels)
        rows.append((name, "the recipe's", found.pairwise.f, found.bcubed.f))
    for name, faces, others, strength in (
        ("cosine components", np.repeat(np.arange(opened.n), ids.shape[1]), ids.ravel(), sims.ravel()),
        ("cosine, denser links", *links_to_denser(lists)),
    ):
        scores = []
        for threshold in THRESHOLDS:
            kept = strength >= threshold
            forest = new_forest(opened.n)
            join(forest, faces[kept], others[kept])
            scores.append(evaluate(labels_from_forest(forest), true_labels))
        for text, best in (
            ("best pairwise", max(range(len(scores)), key=lambda at: scores[at].pairwise.f)),
            ("best BCubed", max(range(len(scores)), key=lambda at: scores[at].bcubed.f)),
        ):
            threshold = f"{THRESHOLDS[best]:.2f} ({text})"
            rows.append((name, threshold, scores[best].pairwise.f, scores[best].bcubed.f))
    table = Table(box=None, pad_edge=False)
    for heading in ("method", "threshold", "pairwise F", "BCubed F"):
        table.add_column(heading, justify="right" if heading.endswith("F") else "left")
    for row in rows:
        table.add_row(row[0], row[1], f"{row[2]:.3f}", f"{row[3]:.3f}")
    Console().print(table)


def named_labels(preds: Iterable[str], n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Read each NAME=LABELS of ``--pred``: the name, and labels (n,); raises click.BadParameter without a name."""
    for pred in preds:
        name, _, path = pred.partition("=")
        if not path:
            raise click.BadParameter(f"{pred}: write it as NAME=LABELS.", param_hint="--pred")
        yield name, read_labels(path, n)


if __name__ == "__main__":
    main()
