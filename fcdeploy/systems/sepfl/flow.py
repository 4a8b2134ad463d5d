"""SEPFL from features to labels; the algorithm, top to bottom."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.graph.density import density_from_sums_and_counts, sum_and_count_similarities
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.systems.sepfl.decode import accepted, probability
from fcdeploy.systems.sepfl.inputs import face_batches
from fcdeploy.systems.sepfl.spec import ACCEPTED

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

NEAR_BLOCK = 4096
ENCODE_BLOCK = 2048
ENGINE_ROWS = 1280  # neighbors an engine call: full-speed matrix products that stay in the cache
LINK_BLOCK = 65536
PAIR_BLOCK = 4096

Made = dict[str, Any]  # what a product was made of
Work = Callable[[np.ndarray], dict[str, np.ndarray]]


def cluster(run: "Run") -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    run.read_features()
    with run.stage("knn"):
        knn, knn_made_of = nearest_neighbors(run)
    with run.stage("encode"):
        encoded, made_of = encoded_faces(run, knn, knn_made_of)
    with run.stage("links"):
        candidates, made_of = candidate_links(run, knn, encoded, made_of)
        faces, denser = accepted_links(run, candidates, made_of)
    with run.stage("clusters"):
        forest = new_forest(run.n)
        join(forest, faces, denser)
        return labels_from_forest(forest)


def nearest_neighbors(run: "Run") -> tuple[KnnGraph, Made]:
    """The k nearest neighbors of the input features, most similar first; k is a length of the weights."""
    k = run.settings.links.k
    if run.knn_file is not None:
        return run.lists_from_file("knn.npz", run.knn_file, k, "kNN")
    return run.knn(
        "knn.npz",
        run.vectors,
        k,
        run.made_of_features,
        "kNN",
        clip=True,
        above=run.settings.links.rho,
        cells=lambda: run.cells,
    )


def encoded_faces(run: "Run", knn: KnnGraph, knn_made_of: Made) -> tuple[np.ndarray, Made]:
    """Each face with what it attends to among its neighbors, (n, 2d) float32."""
    made_of = {"knn": knn_made_of, **run.made_of_features, "engine": run.bundle.digest()}
    most = run.options.batch or max(1, ENGINE_ROWS // knn.k)

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        near = near_products(run)
        with run.engine("encode") as engine:

            def batches(faces: np.ndarray) -> Iterator[tuple[slice, dict[str, Any]]]:
                yield from face_batches(run.vectors, near, knn.ids, faces, most)

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                encoded = np.empty((len(faces), 2 * run.features.dim), dtype=np.float32)
                for part, outputs in engine.run_each(batches(faces)):
                    encoded[part] = outputs["encoded"]
                run.check_finite(encoded, faces, "encoded face")
                return {"array": encoded}

            yield work

    arrays = run.make("encoded.npy", made_of, worker, text="encoding", order=run.order, block=ENCODE_BLOCK)
    run.drop("near")
    return arrays["array"], made_of


def near_products(run: "Run") -> np.ndarray:
    """What each face brings to the channel mixer of those it is a neighbor of, (n, 4d) float32."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine("near") as engine:
            yield lambda faces: run.finite(
                engine.run({"features": run.vectors[faces]}), faces, "product of a neighbor"
            )

    made_of = {**run.made_of_features, "engine": run.bundle.digest()}
    return run.make("near", made_of, worker, text="products of neighbors", block=NEAR_BLOCK)["near"]


def density_of_faces(run: "Run", knn: KnnGraph) -> np.ndarray:
    """How central each face is, (n,) float64: half by its neighbors' similarity, half by the number of near ones."""
    sums, counts = np.empty(run.n, dtype=np.float32), np.empty(run.n, dtype=np.int32)
    for start in range(0, run.n, LINK_BLOCK):
        block = slice(start, start + LINK_BLOCK)
        sum_and_count_similarities(knn.sims[block], run.settings.links.rho, sums[block], counts[block])
    return density_from_sums_and_counts(sums, counts)


def candidate_links(
    run: "Run", knn: KnnGraph, encoded: np.ndarray, encoded_made_of: Made
) -> tuple[dict[str, np.ndarray], Made]:
    """Each face's nearest denser neighbor and what the network says of the two.

    Returns ids (n,) int32, NO_LINK where no neighbor is denser, sims (n,) float32 and logits (n, 2) float32, 0 there.
    """

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        density = density_of_faces(run, knn)
        denser, sims = np.empty(run.n, dtype=np.int32), np.empty(run.n, dtype=np.float32)
        for start in range(0, run.n, LINK_BLOCK):
            block = slice(start, start + LINK_BLOCK)
            denser[block], sims[block] = link_to_denser(knn.ids[block], knn.sims[block], density, start)
        with run.engine("pair") as engine:

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                logits = np.zeros((len(faces), 2), dtype=np.float32)
                linked = np.flatnonzero(denser[faces] != NO_LINK)
                if len(linked):
                    pairs = {"face": encoded[faces[linked]], "denser": encoded[denser[faces[linked]]]}
                    logits[linked] = engine.run(pairs)["logits"]
                run.check_finite(logits, faces, "logit")
                return {"ids": denser[faces], "sims": sims[faces], "logits": logits}

            yield work

    made_of = {"encoded": encoded_made_of, "rho": run.settings.links.rho}
    arrays = run.make(
        "candidates.npz", made_of, worker, text="candidate links", order=run.order, block=PAIR_BLOCK
    )
    return arrays, made_of


def accepted_links(
    run: "Run", candidates: dict[str, np.ndarray], candidates_made_of: Made
) -> tuple[np.ndarray, np.ndarray]:
    """Candidate links whose logit 1 is above logit 0, and as probable as the user asks for.

    A recipe that is content with less than half accepts links that the network refuses.
    """
    wanted, asked = run.settings.links.min_probability, run.options.min_probability
    least = max(ACCEPTED, asked) if asked is not None else wanted

    def maker() -> dict[str, np.ndarray]:
        ids, sims, probabilities = [], [], []
        for start in range(0, run.n, LINK_BLOCK):
            denser, logits = (candidates[name][start : start + LINK_BLOCK] for name in ("ids", "logits"))
            probable = probability(logits)
            keep = (denser != NO_LINK) & (probable >= np.float32(least))
            if least >= ACCEPTED:
                keep &= accepted(logits)
            kept = np.flatnonzero(keep)
            ids.append(np.stack([start + kept, denser[kept]], axis=1).astype(np.int32))
            sims.append(candidates["sims"][start : start + LINK_BLOCK][kept])
            probabilities.append(probable[kept])
        return {
            "ids": np.concatenate(ids),
            "sims": np.concatenate(sims),
            "probability": np.concatenate(probabilities),
        }

    links = run.keep("links.npz", {"candidates": candidates_made_of, "min_probability": least}, maker)
    return links["ids"][:, 0], links["ids"][:, 1]
