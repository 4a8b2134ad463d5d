"""Refinement against the plain PyTorch module: faces a second, same weights, same faces, same threads, one run.

The plain module is PSE-GCN as published: every neighborhood padded to 801 rows, all rows computed, batches of 64.
Ours is what `fcdeploy cluster` does from re-ranked lists to refined features: encode every face, build the
neighborhoods, run the engine.

    python benchmarks/bench_refine.py --faces 20000 --dim 256 --repeats 3
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
from fcdeploy.graph.knn import KnnGraph, KnnSearch
from fcdeploy.graph.marks import new_scratch
from fcdeploy.graph.neighborhoods import connect_neighborhoods, gather_neighborhoods
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.store import MemoryStore
from fcdeploy.systems.pse_gcn import flow
from fcdeploy.systems.pse_gcn.network import PseGcn
from fcdeploy.systems.pse_gcn.spec import Recipe

PADDED = 801


@click.command()
@click.option("--faces", default=20_000, show_default=True, help="Faces to refine with the engine.")
@click.option("--plain-faces", default=64, show_default=True, help="Faces to refine with the plain module.")
@click.option(
    "--plain-batch", default=64, show_default=True, help="Neighborhoods a call of the plain module."
)
@click.option("--dim", default=256, show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(
    faces: int, plain_faces: int, plain_batch: int, dim: int, threads: int, repeats: int, seed: int
) -> None:
    """Measure refinement in faces a second."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    features, _ = make_faces(faces, dim, seed)
    net = random_network(dim)
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as scratch, threads_limited(threads):
        checkpoint = Path(scratch) / "checkpoint.pth"
        torch.save(net.state_dict(), checkpoint)
        bundle, parities = export_checkpoint(checkpoint, Path(scratch) / "pse.onnx")
        run = new_run(features, bundle, threads)
        vectors = read_features(run)
        cells = partition(run, "cells", vectors)
        knn = flow.nearest_neighbors(run, vectors, cells)
        ranked = flow.reranked_lists(run, vectors, cells, knn)
        hops = run.settings.neighborhood.hops
        sizes = gather_neighborhoods(ranked["ids"], np.arange(faces), hops[0], hops[1], new_scratch(faces))[1]

        batches = padded_batches(run, vectors.array, knn.lists, ranked["ids"], plain_faces, plain_batch)
        plain = [timed(lambda: refine_plainly(net, batches)) for _ in range(repeats)]
        ours: dict[str, list[tuple[float, np.ndarray]]] = {}
        for inference, refine in (("exact", flow.refined_exactly), ("layerwise", flow.refined_layerwise)):
            ours[inference] = []
            for _ in range(repeats + 1):  # the first compiles kernels and is not counted
                again = new_run(features, bundle, threads, inference)
                lists = vectors, cells, knn, ranked
                _ = cells.order
                seconds, refined = timed(lambda: refine(again, *lists).array)  # noqa: B023
                ours[inference].append((seconds, refined))
        expected = np.concatenate([chunk.numpy() for chunk in plain[0][1]])
        error = float(np.abs(ours["exact"][-1][1][: len(expected)] - expected).max())
    plain_rate = plain_faces / float(np.median([seconds for seconds, _ in plain]))
    for name, count, runs in (
        (f"plain PyTorch, {PADDED} rows", plain_faces, plain),
        ("fcdeploy, exact", faces, ours["exact"][1:]),
        ("fcdeploy, layerwise", faces, ours["layerwise"][1:]),
    ):
        seconds = float(np.median([seconds for seconds, _ in runs]))
        rate = count / seconds
        rows.append(
            {
                "refinement": name,
                "faces": count,
                "seconds": seconds,
                "faces_per_s": rate,
                "ratio": rate / plain_rate,
            }
        )
    write_report(
        "refine",
        rows,
        {
            "dim": dim,
            "hops": list(hops),
            "threads": threads,
            "repeats": repeats,
            "neighborhood_nodes": {
                "median": float(np.median(sizes)),
                "mean": float(sizes.mean()),
                "p95": float(np.percentile(sizes, 95)),
                "max": int(sizes.max()),
            },
            "largest_difference_of_exact": error,
            "parity": parities["refine"].as_dict(),
        },
    )


def new_run(features: np.ndarray, bundle: Bundle, threads: int, inference: str = "exact") -> Run:
    """A run in memory with the published settings."""
    return Run(
        features_from_array(features),
        bundle,
        Recipe(feature_dim=features.shape[1]),
        Options(threads=threads, inference=inference),
        MemoryStore(),
        Progress(quiet=True),
    )


def random_network(dim: int) -> PseGcn:
    """Weights as after initialisation, fitted to faces as training would begin to.

    BatchNorms get the statistics of generated faces, and the output's mean is taken off: refined features then
    point in all directions, as trained ones do, instead of sharing one, which would make their kNN needlessly slow.
    """
    net = PseGcn(dim)
    features, _ = make_faces(4000, dim, 99)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    ids, sims = KnnSearch(features).search(np.arange(64), 80)
    adj = np.clip(features[ids] @ features[ids].transpose(0, 2, 1), 0, 1) * (sims[:, :, None] > 0.3)
    tensors = [
        torch.from_numpy(array) for array in (features[ids], adj.astype(np.float32), np.ones_like(adj))
    ]
    outputs: list[torch.Tensor] = []
    for layer in net.modules():
        if isinstance(layer, torch.nn.BatchNorm1d):
            layer.momentum = None  # a plain mean over the batches seen
    net.classifier_out.register_forward_hook(lambda module, args, output: outputs.append(output))
    with torch.no_grad():
        net.train()(*tensors)
        net.eval()(*tensors)
        net.classifier_out.bias.sub_(outputs[-1].mean(dim=(0, 1)))
    net.classifier_out._forward_hooks.clear()
    return net.eval()


def padded_batches(
    run: Run, vectors: np.ndarray, knn: KnnGraph, ranked: np.ndarray, faces: int, batch: int
) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Neighborhoods of the first faces as the published loader makes them; made before the clock starts."""
    near = run.settings.neighborhood
    nodes, sizes = gather_neighborhoods(
        ranked, np.arange(faces), near.hops[0], near.hops[1], new_scratch(run.n)
    )
    nodes, sizes = np.ascontiguousarray(nodes[:, :PADDED]), np.minimum(sizes, PADDED)
    features = vectors[nodes] * (nodes >= 0)[:, :, None]
    adj = np.empty((faces, PADDED, PADDED), dtype=np.float32)
    connect_neighborhoods(nodes, sizes, knn.ids, knn.sims, near.active, adj)
    mask = (nodes >= 0).astype(np.float32)
    tensors = [torch.from_numpy(array) for array in (features, adj, mask)]
    return [
        (tensors[0][at : at + batch], tensors[1][at : at + batch], tensors[2][at : at + batch])
        for at in range(0, faces, batch)
    ]


def refine_plainly(
    net: PseGcn, batches: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
) -> list[torch.Tensor]:
    """Centre rows of the plain module."""
    with torch.inference_mode():
        return [
            net(features, adj, mask[:, :, None] * mask[:, None, :])[:, 0].clone()
            for features, adj, mask in batches
        ]


def timed(function):  # type: ignore[no-untyped-def]
    """Return (seconds, result) of one call."""
    started = time.perf_counter()
    result = function()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
