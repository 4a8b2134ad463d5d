"""NSR-FC from features to labels; the algorithm, top to bottom.

Every stage reads the first so many columns of the same kNN lists. Re-scored distances stay in the order of these
lists; density peaks sort them, the pair networks do not.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.graph.connectivity import (
    candidates_and_certain,
    density_from_scores,
    symmetric_scores,
    weighted_largest,
)
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.links import NO_LINK
from fcdeploy.graph.transition import add_received, link_to_peaks, shares, transition_distances
from fcdeploy.systems.nsr_fc.decode import distance, probability
from fcdeploy.systems.nsr_fc.inputs import list_batches, position_batches, position_code
from fcdeploy.systems.nsr_fc.spec import ENGINE_ROWS, PAIRS, link_of, longest_list, positions_a_call
from fcdeploy.systems.pse_gcn.flow import refined_exactly, refined_layerwise, reranked_lists

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

RESCORE_BLOCK = 512  # faces between two commits, rounded to whole batches
CONNECT_BLOCK = 2048
LINK_BLOCK = 65536
CONFIRM_BLOCK = 2048
RESCORE_PASSES = ("rescore_first", "rescore", "rescore_neighbors")
NEAR = 0.5  # similarity of the neighbors whose recall is told apart

Made = dict[str, Any]  # what a product was made of
Work = Callable[[np.ndarray], dict[str, np.ndarray]]


def cluster(run: "Run") -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    networks = run.bundle.weights
    run.read_features()
    with run.stage("knn"):
        knn, knn_made_of = nearest_neighbors(run)
    features, made_of = refined_features(run, knn, knn_made_of)
    dists, made_of = distances(run, features, knn, {"knn": knn_made_of, "features": made_of})
    if link_of(networks, run.options.link) == PAIRS:
        with run.stage("connect"):
            scores, scores_made_of = connectivity(run, knn, knn_made_of)
        with run.stage("links"):
            sims = similarities(knn, dists, run.settings.pairs.k)
            links = pair_links(run, knn, sims, scores, {"sims": made_of, "scores": scores_made_of})
    else:
        assert dists is not None  # a bundle without re-scoring has no density peaks
        with run.stage("links"):
            links = peak_links(run, knn, dists, made_of)
    with run.stage("clusters"):
        forest = new_forest(run.n)
        join(forest, links[:, 0], links[:, 1])
        return labels_from_forest(forest)


def nearest_neighbors(run: "Run") -> tuple[KnnGraph, Made]:
    """The nearest neighbors of the input features, most similar first, as many as the longest stage reads."""
    k = longest_list(run.bundle.weights, run.settings, link_of(run.bundle.weights, run.options.link))
    if run.knn_file is not None:
        return run.lists_from_file("knn.npz", run.knn_file, k, "kNN")
    return run.knn(
        "knn.npz",
        run.vectors,
        k,
        run.made_of_features,
        "kNN",
        clip=True,
        above=NEAR,
        cells=lambda: run.cells,
    )


def refined_features(run: "Run", knn: KnnGraph, knn_made_of: Made) -> tuple[np.ndarray, Made]:
    """What the re-scoring is given of each face, (n, d) float32: refined features, or the input."""
    if "refine" not in run.bundle.weights:
        return run.vectors, run.made_of_features
    near = first_columns(knn, run.settings.neighborhood.k)
    near_made_of = {**knn_made_of, "columns": near.k}
    with run.stage("rerank"):
        ranked, ranked_made_of = reranked_lists(run, near, near_made_of)
    with run.stage("refine"):
        refine = {"exact": refined_exactly, "layerwise": refined_layerwise}[run.options.inference]
        return refine(run, near, ranked, {"knn": near_made_of, "ranked": ranked_made_of})


def distances(
    run: "Run", features: np.ndarray, knn: KnnGraph, made_of: Made
) -> tuple[np.ndarray | None, Made]:
    """Re-scored distances, (n, k) float32; none, and cosine similarities stand for them, without the network."""
    if "rescore" not in run.bundle.weights:
        return None, made_of
    with run.stage("rescore"):
        return rescored_distances(run, features, knn, made_of)


def first_columns(knn: KnnGraph, k: int) -> KnnGraph:
    """The same lists, cut to k."""
    return knn if k == knn.k else KnnGraph(knn.ids[:, :k], knn.sims[:, :k])


def rescored_distances(
    run: "Run", features: np.ndarray, knn: KnnGraph, lists_made_of: Made
) -> tuple[np.ndarray, Made]:
    """What the transformer makes of the distance to each neighbor, (n, k) float32, in the order of the kNN lists.

    features: (n, d) float32, refined ones or the input. Batch-wise attention reads a face's scores off the whole
    batch, so batches are those of the recipe, in the order of the file, whatever else a run is told.
    """
    rescore = run.settings.rescore
    ids = knn.ids[:, : rescore.k]
    made_of = {
        **lists_made_of,
        "engine": run.bundle.digest(RESCORE_PASSES),
        "k": ids.shape[1],
        "attention": rescore.attention,
    }
    if rescore.attention == "batch":
        made_of["batch"] = rescore.batch
    across = {"batch": across_batch, "neighbors": across_neighbors}[rescore.attention]
    code = position_code(ids.shape[1], features.shape[1])

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with across(run, features, code) as logits_of:

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                logits = np.empty((len(faces), ids.shape[1]), dtype=np.float32)
                for start in range(0, len(faces), rescore.batch):  # blocks start where a batch does
                    batch = faces[start : start + rescore.batch]
                    logits[start : start + len(batch)] = logits_of(ids[batch])
                run.check_finite(logits, faces, "logit")
                return {"array": distance(logits)}

            yield work

    block = max(1, RESCORE_BLOCK // rescore.batch) * rescore.batch
    arrays = run.make("rescored.npy", made_of, worker, text="re-scoring", block=block, whole=rescore.batch)
    return arrays["array"], made_of


@contextlib.contextmanager
def across_batch(
    run: "Run", features: np.ndarray, code: np.ndarray
) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Score lists (b, k) that are one batch, its faces attending to each other at each position: logits (b, k)."""
    with run.engine("rescore_first", 2) as first_engine, run.engine("rescore", 2) as engine:

        def batches(ids: np.ndarray) -> Iterator[tuple[slice, dict[str, Any]]]:
            first = run.finite(first_engine.run({"features": features[ids[:, 0]]}), ids[:, 0], "first row")[
                "first"
            ]
            for part, feeds in position_batches(features, ids, code, positions_a_call(len(ids))):
                yield part, {**feeds, "first": first}

        def logits_of(ids: np.ndarray) -> np.ndarray:
            logits = np.empty(ids.shape, dtype=np.float32)
            for part, outputs in engine.run_each(batches(ids)):
                logits[:, part] = outputs["logits"].T
            return logits

        yield logits_of


@contextlib.contextmanager
def across_neighbors(
    run: "Run", features: np.ndarray, code: np.ndarray
) -> Iterator[Callable[[np.ndarray], np.ndarray]]:
    """Score lists (b, k), the neighbors in each attending to each other: logits (b, k)."""
    with run.engine("rescore_neighbors") as engine:

        def batches(ids: np.ndarray) -> Iterator[tuple[slice, dict[str, Any]]]:
            for part, feeds in list_batches(features, ids, lists_a_call(run, ids.shape[1])):
                yield part, {**feeds, "code": code}

        def logits_of(ids: np.ndarray) -> np.ndarray:
            logits = np.empty(ids.shape, dtype=np.float32)
            for part, outputs in engine.run_each(batches(ids)):
                logits[part] = outputs["logits"]
            return logits

        yield logits_of


def lists_a_call(run: "Run", width: int) -> int:
    """How many lists of ``width`` faces go into one engine call."""
    return run.options.batch or max(1, ENGINE_ROWS // width)


def peak_links(run: "Run", knn: KnnGraph, dists: np.ndarray, dists_made_of: Made) -> np.ndarray:
    """Links (m, 2) int32 of less than tau, each from a face to the nearest faces that are at least as dense."""
    peaks = run.settings.density_peaks
    lists_made_of = {"dists": dists_made_of, "sigma": peaks.transition_sigma}
    sorted_lists = resorted_lists(run, knn, dists, lists_made_of)
    near = transitions(run, sorted_lists, lists_made_of) if peaks.transition_sigma > 0 else sorted_lists()
    made_of = {
        **lists_made_of,
        "density": [peaks.k, peaks.sigma],
        "tau": peaks.tau,
        "max_links": peaks.max_links,
    }

    def maker() -> dict[str, np.ndarray]:
        lists = sorted_lists()
        density = np.zeros(run.n, dtype=np.float64)
        for start in range(0, run.n, LINK_BLOCK):
            block = slice(start, start + LINK_BLOCK)
            given = shares(lists["dists"][block, : peaks.k], peaks.sigma)
            add_received(np.ascontiguousarray(lists["ids"][block, : peaks.k]), given, density)
        pairs, reached = [], []
        for start in range(0, run.n, LINK_BLOCK):
            block = slice(start, start + LINK_BLOCK)
            ids, to = link_to_peaks(near["ids"][block], near["dists"][block], density, start, peaks.max_links)
            row, at = np.nonzero((ids != NO_LINK) & (to < np.float32(peaks.tau)))
            pairs.append(np.stack([start + row, ids[row, at]], axis=1).astype(np.int32))
            reached.append(to[row, at])
        return {"ids": np.concatenate(pairs), "dists": np.concatenate(reached), "density": density}

    links = run.keep("links.npz", made_of, maker)["ids"]
    run.drop("resorted")
    return links


def resorted_lists(
    run: "Run", knn: KnnGraph, dists: np.ndarray, made_of: Made
) -> Callable[[], dict[str, np.ndarray]]:
    """Lists sorted by re-scored distance: ids and dists (n, k), and the weights of their transitions.

    Made when they are first asked for: a finished product needs no scratch.
    """
    k, sigma = dists.shape[1], run.settings.density_peaks.transition_sigma

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        def work(faces: np.ndarray) -> dict[str, np.ndarray]:
            order = np.argsort(dists[faces], axis=1, kind="stable")
            lists = {
                "ids": np.take_along_axis(knn.ids[faces][:, :k], order, axis=1),
                "dists": np.take_along_axis(dists[faces], order, axis=1),
            }
            if sigma > 0:
                lists["weights"] = np.sqrt(shares(lists["dists"], sigma))
            return lists

        yield work

    return lambda: run.make("resorted", {"lists": made_of}, worker, text="sorting by re-scored distance")


def transitions(
    run: "Run", sorted_lists: Callable[[], dict[str, np.ndarray]], made_of: Made
) -> dict[str, np.ndarray]:
    """Transition distances to the neighbors in lists sorted by re-scored distance: ids and dists (n, k)."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        lists = sorted_lists()

        def work(faces: np.ndarray) -> dict[str, np.ndarray]:
            faces = np.ascontiguousarray(faces)
            found = transition_distances(lists["ids"], lists["weights"], faces)
            return {"ids": lists["ids"][faces], "dists": found}

        yield work

    return run.make("transitions.npz", made_of, worker, text="transition distances", order=run.order)


def connectivity(run: "Run", knn: KnnGraph, knn_made_of: Made) -> tuple[np.ndarray, Made]:
    """LCENet's probability that a face and each of its neighbors are one person, (n, k) float32."""
    ids = knn.ids[:, : run.settings.pairs.k]
    made_of = {
        "knn": knn_made_of,
        **run.made_of_features,
        "k": ids.shape[1],
        "engine": run.bundle.digest(("connect",)),
    }

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine("connect") as engine:

            def batches(faces: np.ndarray) -> Iterator[tuple[slice, dict[str, Any]]]:
                yield from list_batches(run.vectors, ids[faces], lists_a_call(run, ids.shape[1]))

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                logits = np.empty((len(faces), ids.shape[1], 2), dtype=np.float32)
                for part, outputs in engine.run_each(batches(faces)):
                    logits[part] = outputs["logits"]
                run.check_finite(logits.reshape(len(faces), -1), faces, "logit")
                return {"array": probability(logits)}

            yield work

    arrays = run.make(
        "connectivity.npy", made_of, worker, text="connectivity", order=run.order, block=CONNECT_BLOCK
    )
    return arrays["array"], made_of


def similarities(knn: KnnGraph, dists: np.ndarray | None, k: int) -> Callable[[slice], np.ndarray]:
    """Similarities of a block of faces to their first k neighbors: 1 - re-scored distance, or cosine."""
    if dists is None:
        return lambda block: knn.sims[block, :k]
    return lambda block: np.float32(1) - dists[block, :k]


def pair_links(
    run: "Run",
    knn: KnnGraph,
    sims: Callable[[slice], np.ndarray],
    scores: np.ndarray,
    made_of: Made,
) -> np.ndarray:
    """Links (m, 2) int32: candidates that PCENet confirms, and certain ones."""
    pairs = run.settings.pairs
    ids = first_columns(knn, pairs.k).ids
    least = pairs.min_probability if run.options.min_probability is None else run.options.min_probability
    weighted = {"candidates": made_of, "certain_weights": list(pairs.certain_weights)}
    found = run.keep("candidates.npz", weighted, lambda: candidate_links(run, ids, sims, scores))
    denser, certain = found["ids"], found["certain"]
    # Which links are certain changes no candidate.
    made_of = {"candidates": made_of, "engine": run.bundle.digest(("confirm",))}
    confirmed = confirmation(run, ids, denser, made_of)
    made_of = {"confirmed": made_of, **weighted}

    def maker() -> dict[str, np.ndarray]:
        kept = np.flatnonzero((denser != NO_LINK) & (confirmed > np.float32(least)))
        links = np.stack([kept, denser[kept]], axis=1).astype(np.int32)
        asked = np.concatenate([confirmed[kept], np.ones(len(certain), np.float32)])
        return {
            "ids": np.concatenate([links, certain]),
            "probability": asked,
            "certain": np.arange(len(asked)) >= len(kept),
        }

    return run.keep("links.npz", {**made_of, "min_probability": least}, maker)["ids"]


def candidate_links(
    run: "Run", ids: np.ndarray, sims: Callable[[slice], np.ndarray], scores: np.ndarray
) -> dict[str, np.ndarray]:
    """Each face's density (n,) float64 and candidate ids (n,) int32, and the certain links (m, 2) int32.

    A candidate, NO_LINK where there is none, is the denser neighbor of the largest score times similarity. threshold:
    (1,) float64, what a certain link reaches (infinite when there shall be none).
    """
    weights = np.array(run.settings.pairs.certain_weights)
    density, largest = np.empty(run.n, dtype=np.float64), np.empty(run.n, dtype=np.float64)

    def blocks() -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
        for start in range(0, run.n, LINK_BLOCK):
            block = slice(start, min(start + LINK_BLOCK, run.n))
            faces = np.arange(block.start, block.stop, dtype=np.int32)
            yield block, symmetric_scores(ids, scores, faces), sims(block)

    for block, means, near in blocks():
        density[block] = density_from_scores(means, near)
        if len(weights):
            largest[block] = weighted_largest(near, weights)
    threshold = float(largest.mean()) if len(weights) else np.inf
    denser = np.empty(run.n, dtype=np.int32)
    certain = []
    for block, means, near in blocks():
        denser[block], marked = candidates_and_certain(ids[block], means * near, density, threshold)
        row, at = np.nonzero(marked)
        pairs = np.sort(np.stack([block.start + row, ids[block][row, at]], axis=1), axis=1)
        certain.append(pairs[:, 0] * run.n + pairs[:, 1])  # one number a pair
    together = np.unique(np.concatenate(certain))
    return {
        "density": density,
        "ids": denser,
        "certain": np.stack([together // run.n, together % run.n], axis=1).astype(np.int32),
        "threshold": np.array([threshold]),
    }


def confirmation(run: "Run", ids: np.ndarray, denser: np.ndarray, made_of: Made) -> np.ndarray:
    """PCENet's probability that a face and its candidate are one person, (n,) float32; 0 without a candidate."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine("confirm") as engine:

            def batches(links: np.ndarray) -> Iterator[tuple[slice, dict[str, Any]]]:
                both = np.concatenate([ids[links], ids[denser[links]]], axis=1)  # (b, 2k)
                yield from list_batches(run.vectors, both, lists_a_call(run, both.shape[1]))

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                links = faces[denser[faces] != NO_LINK]
                logits = np.empty((len(links), 2), dtype=np.float32)
                for part, outputs in engine.run_each(batches(links)):
                    logits[part] = outputs["logits"]
                run.check_finite(logits, links, "logit")
                confirmed = np.zeros(len(faces), dtype=np.float32)
                confirmed[denser[faces] != NO_LINK] = probability(logits)
                return {"array": confirmed}

            yield work

    return run.make(
        "confirmed.npy", made_of, worker, text="confirmation", order=run.order, block=CONFIRM_BLOCK
    )["array"]
