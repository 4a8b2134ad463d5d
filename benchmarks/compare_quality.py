"""How good are predicted clusters next to methods without a network, each with the parameters that suit it best?

    components    faces are joined when one is in the kNN list of the other and they are similar enough
    denser links  each face is joined to its nearest denser face when similar enough
    DBSCAN        scikit-learn's, on cosine distances: eps and min_samples
    HDBSCAN       scikit-learn's, on unit vectors: min_samples, min_cluster_size, eom or leaf

Parameters are chosen by the truth itself, for pairwise F and, apart, for BCubed F: what nobody has in practice, and
more than a network gets whose threshold was chosen on other faces. `fcdeploy compare` does nearly the same on anybody's
faces; here DBSCAN and HDBSCAN see all pairs of faces, there those of the kNN lists. Faces that they call noise count
as clusters of one. "Without the largest" leaves the faces of the largest identity out before measuring.

    python benchmarks/compare_quality.py features.bin truth.meta --dim 128 --pred pse-gcn=pred_labels.meta
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from compare_cosine import named_labels
from report import write_rows

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.graph.knn import KnnGraph, KnnSearch
from fcdeploy.training.baselines import METHODS

LEAST_COSINE = 0.5  # of pairs that DBSCAN is told of: its eps go up to the distance of these
EPS = np.round(np.arange(0.10, 1 - LEAST_COSINE + 0.001, 0.02), 2)
MIN_SAMPLES = (1, 2, 3, 5, 8, 12)
HDBSCAN_SAMPLES = (1, 2, 4)
CLUSTER_SIZES = (2, 3, 4, 5, 8, 12, 20)
BLOCK = 1024

Tried = tuple[str, np.ndarray]  # parameters, and the labels (n,) that they give


@click.command()
@click.argument("features", type=click.Path(path_type=Path))
@click.argument("truth", type=click.Path(path_type=Path))
@click.option("--dim", type=int, help="Width of a .bin file's rows.")
@click.option("--k", default=80, show_default=True, help="Neighbors a face.")
@click.option(
    "--pred", "preds", multiple=True, metavar="NAME=LABELS", help="Predicted labels; several if need be."
)
@click.option("--skip", multiple=True, help="Names of methods to leave out.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="JSON file of figures, machine and versions."
)
def main(
    features: Path,
    truth: Path,
    dim: int | None,
    k: int,
    preds: tuple[str, ...],
    skip: tuple[str, ...],
    output: Path | None,
) -> None:
    """Print a Markdown table of pairwise and BCubed F."""
    opened = open_features(features, dim)
    identities = read_labels(truth, opened.n)
    vectors = opened.rows(0, opened.n)
    rows: list[dict[str, Any]] = []
    for name, labels in named_labels(preds, opened.n):
        rows.append({"method": name, "parameters": "", **figures(labels, identities)})
    lists = KnnGraph(*KnnSearch(vectors).search(np.arange(opened.n), min(k, opened.n)))
    for name, trials in (
        ("components", by_cosine("components", lists)),
        ("denser links", by_cosine("denser", lists)),
        ("DBSCAN", dbscan(vectors)),
        ("HDBSCAN", hdbscan(vectors)),
    ):
        if name not in skip:
            started = time.perf_counter()
            rows += best_of(name, trials, identities)
            click.echo(f"{name}: {time.perf_counter() - started:.0f} s", err=True)
    click.echo(as_table(rows))
    if output:
        write_rows(output, "quality", rows, {"faces": opened.n, "dim": opened.dim, "k": k})


def figures(labels: np.ndarray, identities: np.ndarray) -> dict[str, float]:
    """Return pairwise and BCubed F, and pairwise F without the largest identity."""
    found = evaluate(labels, identities)
    kinds, counts = np.unique(identities, return_counts=True)
    others = identities != kinds[counts.argmax()]
    return {
        "pairwise F": found.pairwise.f,
        "BCubed F": found.bcubed.f,
        "without the largest": evaluate(labels[others], identities[others]).pairwise.f,
        "clusters": found.clusters,
    }


def best_of(name: str, trials: Iterator[Tried], identities: np.ndarray) -> list[dict[str, Any]]:
    """Return the trials of highest pairwise F, and of highest BCubed F if that is another."""
    rows: list[dict[str, Any]] = [
        {"method": name, "parameters": text, **figures(labels, identities)} for text, labels in trials
    ]
    best = [max(rows, key=lambda row: row[measure]) for measure in ("pairwise F", "BCubed F")]
    return best[:1] if best[0] is best[1] else best


def by_cosine(method: str, lists: KnnGraph) -> Iterator[Tried]:
    """Try a method of ``fcdeploy compare`` whose one setting is a cosine threshold."""
    for values, labels, _ in METHODS[method].trials(lists):
        yield f"cosine {values['cosine']:.2f}", labels


def dbscan(vectors: np.ndarray) -> Iterator[Tried]:
    """Try scikit-learn's DBSCAN on the cosine distances of all pairs that any eps reaches."""
    from scipy.sparse import csr_matrix
    from sklearn.cluster import DBSCAN

    counts, columns, values = [], [], []
    for start in range(0, len(vectors), BLOCK):
        sims = vectors[start : start + BLOCK] @ vectors.T
        found, others = np.nonzero(sims >= LEAST_COSINE)
        counts.append(np.bincount(found, minlength=len(sims)))
        columns.append(others.astype(np.int32))
        values.append(np.maximum(1 - sims[found, others], 1e-7))  # a stored zero is no neighbor to it
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    distances = csr_matrix((np.concatenate(values), np.concatenate(columns), ends), (len(vectors),) * 2)
    for eps in EPS:
        for samples in MIN_SAMPLES:
            fitted = DBSCAN(eps=float(eps), min_samples=samples, metric="precomputed").fit(distances)
            yield f"eps {eps:.2f}, min_samples {samples}", fitted.labels_


def hdbscan(vectors: np.ndarray) -> Iterator[Tried]:
    """Try scikit-learn's HDBSCAN; the tree, which takes most of the time, is made once for each min_samples."""
    from sklearn.cluster import HDBSCAN
    from sklearn.cluster._hdbscan._tree import tree_to_labels

    for samples in HDBSCAN_SAMPLES:
        fitted = HDBSCAN(min_cluster_size=2, min_samples=samples, algorithm="ball_tree", copy=True).fit(
            vectors
        )
        for size in CLUSTER_SIZES:
            for selection in ("eom", "leaf"):
                labels, _ = tree_to_labels(fitted._single_linkage_tree_, size, selection)
                yield f"min_samples {samples}, min_cluster_size {size}, {selection}", labels


def as_table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| method | parameters | pairwise F | BCubed F | pairwise F without the largest | clusters |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        cells = [f"{row[name]:.3f}" for name in ("pairwise F", "BCubed F", "without the largest")]
        lines.append(f"| {row['method']} | {row['parameters']} | {' | '.join(cells)} | {row['clusters']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
