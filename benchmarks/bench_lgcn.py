"""L-GCN's links against the plain PyTorch module: faces a second, same weights, same faces, same threads, one run.

The plain module is L-GCN as published: every sub-graph padded to 881 rows at hops [80, 10], all rows computed, batches
of 16; its batches are made before the clock starts. Ours is what `fcdeploy cluster` does from kNN lists to scored
links: encode every face, gather the sub-graphs, run the engine, write the links.

    python benchmarks/bench_lgcn.py --faces 2000 --plain-faces 32
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from faces import make_faces
from report import write_report

from fcdeploy.data.features import features_from_array, open_features
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.engine.bundle import Bundle
from fcdeploy.graph.subgraphs import gather_subgraphs
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.store import MemoryStore
from fcdeploy.systems.l_gcn import flow
from fcdeploy.systems.l_gcn.decode import probability
from fcdeploy.systems.l_gcn.network import LGcn, padded_subgraphs
from fcdeploy.systems.l_gcn.spec import NeighborhoodSettings, Recipe


@click.command()
@click.option("--faces", default=2000, show_default=True, help="Faces whose links the engine scores.")
@click.option(
    "--features", type=click.Path(path_type=Path), help="A .bin file of them instead of generated ones."
)
@click.option("--plain-faces", default=32, show_default=True, help="Faces for the plain module.")
@click.option("--plain-batch", default=16, show_default=True, help="Sub-graphs a call of the plain module.")
@click.option("--dim", default=256, show_default=True)
@click.option("--hops", default=(80, 10), type=(int, int), show_default=True)
@click.option("--active", default=10, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(
    faces: int,
    features: Path | None,
    plain_faces: int,
    plain_batch: int,
    dim: int,
    hops: tuple[int, int],
    active: int,
    threads: int,
    repeats: int,
    seed: int,
) -> None:
    """Measure scored faces a second."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if features is None:
        vectors, _ = make_faces(faces, dim, seed)
    else:
        opened = open_features(features, dim)
        vectors, faces = opened.rows(0, min(faces, opened.n)), min(faces, opened.n)
    net = random_network(dim)
    recipe = Recipe(feature_dim=dim, neighborhood=NeighborhoodSettings(hops, active))
    padded = hops[0] * (hops[1] + 1) + 1
    with tempfile.TemporaryDirectory() as scratch, threads_limited(threads):
        checkpoint = Path(scratch) / "checkpoint.pth"
        torch.save(net.state_dict(), checkpoint)
        bundle, parities = export_checkpoint(checkpoint, Path(scratch) / "l-gcn.onnx", recipe)
        run = new_run(vectors, bundle, recipe, threads)
        unit = read_features(run)  # as this recipe takes them
        cells = partition(run, "cells", unit)
        knn = flow.nearest_neighbors(run, unit, cells)
        sizes = gather_subgraphs(
            knn["ids"], np.zeros(faces, np.int32), np.arange(faces, dtype=np.int32), hops, active
        ).within[:, -1]

        ours = []
        for _ in range(repeats + 1):  # the first compiles kernels and is not counted
            again = new_run(vectors, bundle, recipe, threads)
            started = time.perf_counter()
            links = flow.scored_links(again, unit, cells, knn)
            ours.append(time.perf_counter() - started)
        batches = [
            padded_subgraphs(
                unit.array,
                knn["ids"],
                np.arange(at, min(at + plain_batch, plain_faces)),
                hops,
                active,
                padded,
            )
            for at in range(0, plain_faces, plain_batch)
        ]
        plain = [score_plainly(net, batches) for _ in range(repeats)]
    scores = links["probability"][:plain_faces]
    error = float(np.abs(scores - plain[0][1]).max())
    rates = {
        f"plain PyTorch, {padded} rows": plain_faces / float(np.median([took for took, _ in plain])),
        "fcdeploy": faces / float(np.median(ours[1:])),
    }
    slowest = min(rates.values())
    rows = [
        {"links": name, "faces_per_s": rate, "links_per_s": rate * hops[0], "ratio": rate / slowest}
        for name, rate in rates.items()
    ]
    write_report(
        "lgcn" if features is None else f"lgcn-{features.parent.name}",
        rows,
        {
            "faces": faces,
            "plain_faces": plain_faces,
            "plain_batch": plain_batch,
            "dim": dim,
            "hops": list(hops),
            "active": active,
            "threads": threads,
            "repeats": repeats,
            "subgraph_faces": {
                "median": float(np.median(sizes)),
                "mean": float(sizes.mean()),
                "p95": float(np.percentile(sizes, 95)),
                "max": int(sizes.max()),
            },
            "largest_difference_of_scores": error,
            "parity": parities["links"].as_dict(),
        },
    )


def new_run(features: np.ndarray, bundle: Bundle, recipe: Recipe, threads: int) -> Run:
    """A run in memory."""
    options = Options(threads=threads)
    return Run(features_from_array(features), bundle, recipe, options, MemoryStore(), Progress(quiet=True))


def random_network(dim: int) -> LGcn:
    """Weights as after initialisation, with the statistics of centred features in bn0."""
    net = LGcn(dim)
    net.bn0.running_mean.normal_(0, 0.01)  # type: ignore[union-attr]
    net.bn0.running_var.uniform_(0.5 / dim, 1.5 / dim)  # type: ignore[union-attr]
    return net.eval()


def score_plainly(
    net: LGcn, batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> tuple[float, np.ndarray]:
    """Seconds that the plain module took, and its scores (faces, hops[0])."""
    with torch.inference_mode():
        started = time.perf_counter()
        logits = [net(*batch) for batch in batches]
        took = time.perf_counter() - started
    return took, probability(torch.cat(logits).numpy())


if __name__ == "__main__":
    main()
