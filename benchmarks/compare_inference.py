"""How far do layer-wise clusters, with float32 or float16 tables, differ from exact ones? Quality and agreement.

    python benchmarks/compare_inference.py --engine pse.onnx features.bin labels.meta [features.bin labels.meta ...]

Each pair of files is one set. With --project P.npy the features are multiplied by that (d, e) matrix first.
"""

import tempfile
from pathlib import Path

import click
import numpy as np
from report import write_report

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import features_from_array, open_features
from fcdeploy.data.labels import read_labels
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import run_clustering

WAYS = (("exact", "float32"), ("layerwise", "float32"), ("layerwise", "float16"))


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--engine", required=True, type=click.Path(path_type=Path))
@click.option(
    "--project", type=click.Path(exists=True, path_type=Path), help="Matrix to apply to the features."
)
@click.option("--tau", type=float, help="Similarity a link needs.  [default: the recipe's]")
def main(files: tuple[Path, ...], engine: Path, project: Path | None, tau: float | None) -> None:
    """Compare exact and layer-wise inference on labelled sets."""
    bundle = read_bundle(engine)
    matrix = np.load(project) if project else None
    rows = []
    for at in range(0, len(files), 2):
        width = len(matrix) if matrix is not None else bundle.feature_dim
        opened = open_features(files[at], width)
        if matrix is not None and files[at].stat().st_size % (4 * width) == 0:
            opened = features_from_array(np.asarray(opened.array) @ matrix)
        truth = read_labels(files[at + 1], opened.n)
        found = {}
        with tempfile.TemporaryDirectory() as scratch:
            for inference, tables in WAYS:
                options = Options(tau=tau, inference=inference, tables=tables)
                # One folder: kNN and re-ranked lists are the same for all.
                result = run_clustering(opened, bundle, options, run_dir=scratch)
                refined = np.load(Path(scratch) / "refined/refined.npy")
                found[inference, tables] = (result, evaluate(result.labels, truth), refined)
        exact = found[WAYS[0]]
        for (inference, tables), (result, quality, refined) in found.items():
            agreement = evaluate(result.labels, exact[0].labels)
            cosine = (exact[2] * refined).sum(axis=1)
            rows.append(
                {
                    "set": files[at].parent.name,
                    "faces": opened.n,
                    "inference": inference,
                    "tables": tables,
                    "clusters": quality.clusters,
                    "pairwise F": round(quality.pairwise.f, 4),
                    "BCubed F": round(quality.bcubed.f, 4),
                    "refine faces/s": round(result.summary["stages"]["refine"]["faces_per_s"]),
                    "pairwise F with exact": round(agreement.pairwise.f, 4),
                    "median cosine": round(float(np.median(cosine)), 5),
                }
            )
    write_report("inference", rows, {"engine": bundle.manifest["recipe"], "tau": tau})


if __name__ == "__main__":
    main()
