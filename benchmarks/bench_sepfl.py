"""SEPFL's links against the plain PyTorch module: links a second, same weights, same links, same threads, one run.

The plain module is SEPFL as published: both faces of every link with all their neighbors, batches of 512; its batches
are gathered before the clock starts. Ours is what `fcdeploy cluster` does from kNN lists to logits: the products of
all faces, the branch of every face once, density, and the head of every link.

    python benchmarks/bench_sepfl.py --faces 3000 --dim 256 --repeats 3
"""

import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch
from faces import make_faces
from report import write_report

from fcdeploy.data.features import features_from_array
from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.engine.bundle import Bundle
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.links import NO_LINK
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.store import MemoryStore
from fcdeploy.systems.sepfl import flow
from fcdeploy.systems.sepfl.network import Sepfl
from fcdeploy.systems.sepfl.spec import LinkSettings, Recipe


@click.command()
@click.option("--faces", default=3000, show_default=True)
@click.option("--plain-batch", default=512, show_default=True, help="Links a call of the plain module.")
@click.option("--dim", default=256, show_default=True)
@click.option("--k", default=80, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(faces: int, plain_batch: int, dim: int, k: int, threads: int, repeats: int, seed: int) -> None:
    """Measure links a second."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    features, _ = make_faces(faces, dim, seed)
    net = random_network(dim, k)
    with tempfile.TemporaryDirectory() as scratch, threads_limited(threads):
        checkpoint = Path(scratch) / "checkpoint.pth"
        torch.save(net.state_dict(), checkpoint)
        bundle, parities = export_checkpoint(checkpoint, Path(scratch) / "sepfl.onnx")
        run = new_run(features, bundle, k, threads)
        vectors = read_features(run)
        cells = partition(run, "cells", vectors)
        knn = flow.nearest_neighbors(run, vectors, cells)

        ours = []
        for _ in range(repeats + 1):  # the first compiles kernels and is not counted
            again = new_run(features, bundle, k, threads)
            started = time.perf_counter()
            encoded = flow.encoded_faces(again, vectors, cells, knn)
            candidates = flow.candidate_links(again, cells, knn, encoded)
            ours.append(time.perf_counter() - started)
        linked = np.flatnonzero(candidates["ids"] != NO_LINK)
        links = np.stack([linked, candidates["ids"][linked]], axis=1)
        plain = [score_plainly(net, vectors.array, knn.lists, links, plain_batch) for _ in range(repeats)]
    error = float(np.abs(candidates["logits"][linked] - plain[0][1]).max())
    seconds = {
        f"plain PyTorch, batches of {plain_batch}": float(np.median([took for took, _ in plain])),
        "fcdeploy, ONNX Runtime": float(np.median(ours[1:])),
    }
    slowest = max(seconds.values())
    rows = [
        {
            "links": name,
            "faces": faces,
            "count": len(links),
            "seconds": took,
            "links_per_s": len(links) / took,
            "ratio": slowest / took,
        }
        for name, took in seconds.items()
    ]
    write_report(
        "sepfl",
        rows,
        {
            "dim": dim,
            "k": k,
            "threads": threads,
            "repeats": repeats,
            "largest_difference": error,
            "largest_logit": float(np.abs(plain[0][1]).max()),
            "parity": parities["pairwise"].as_dict(),
        },
    )


def new_run(features: np.ndarray, bundle: Bundle, k: int, threads: int) -> Run:
    """A run in memory with the published settings."""
    recipe = Recipe(feature_dim=features.shape[1], links=LinkSettings(k=k))
    options = Options(threads=threads)
    return Run(features_from_array(features), bundle, recipe, options, MemoryStore(), Progress(quiet=True))


def random_network(dim: int, k: int) -> Sepfl:
    """Weights as after initialisation, with BatchNorm statistics that are not trivial."""
    net = Sepfl(dim, k)
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.running_mean.normal_(0, 0.01)  # type: ignore[union-attr]
            layer.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return net.eval()


def score_plainly(
    net: Sepfl, vectors: np.ndarray, knn: KnnGraph, links: np.ndarray, batch: int
) -> tuple[float, np.ndarray]:
    """Seconds that the plain module took and its logits (m, 2)."""
    took, logits = 0.0, []
    for at in range(0, len(links), batch):
        inputs = []
        for faces in links[at : at + batch].T:
            inputs += [torch.from_numpy(vectors[rows]) for rows in (faces, knn.ids[faces])]
        started = time.perf_counter()
        with torch.inference_mode():
            logits.append(net(*inputs).numpy())
        took += time.perf_counter() - started
    return took, np.concatenate(logits)


if __name__ == "__main__":
    main()
