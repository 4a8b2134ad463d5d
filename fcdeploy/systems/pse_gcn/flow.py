"""PSE-GCN from features to labels; the algorithm, top to bottom."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numba
import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.engine.batching import ahead
from fcdeploy.graph.density import density_from_sums, sum_similarities
from fcdeploy.graph.knn import KnnGraph, similarities_of_lists
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.rerank import expand_reciprocal, mark_mutual, rank_candidates
from fcdeploy.systems.pse_gcn.inputs import neighborhood_batches
from fcdeploy.systems.pse_gcn.spec import TABLES

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

RERANK_BLOCK = 8192
ENCODE_BLOCK = 4096
REFINE_BLOCK = 2048
ENGINE_ROWS = 4096  # nodes an engine call: enough for full-speed matrix products, small enough for the cache
LINK_BLOCK = 65536

Made = dict[str, Any]  # what a product was made of
Work = Callable[[int, int], dict[str, np.ndarray]]


def cluster(run: "Run") -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    run.read_features()
    with run.stage("knn"):
        knn, made_of = nearest_neighbors(run)
    with run.stage("rerank"):
        ranked, made_of = reranked_lists(run, knn, made_of)
    with run.stage("refine"):
        refined, made_of = refined_features(run, knn, ranked, made_of)
    with run.stage("links"):
        faces, denser = links_to_denser(run, refined, made_of)
    with run.stage("clusters"):
        forest = new_forest(run.n)
        join(forest, faces, denser)
        return labels_from_forest(forest)


def nearest_neighbors(run: "Run") -> tuple[KnnGraph, Made]:
    """The k nearest neighbors of the input features, similarities clipped to 0..1 as published."""
    k = run.settings.neighborhood.k
    if run.knn_file is not None:
        return run.lists_from_file(
            "knn.npz",
            run.knn_file,
            k,
            lambda start, ids: similarities_of_lists(run.vectors, ids, start),
            "kNN",
        )
    made_of = {"features": run.features_hash, "normalize": run.features.normalize}
    return run.knn("knn.npz", run.vectors, k, made_of, "kNN", clip=True)


def reranked_lists(run: "Run", knn: KnnGraph, made_of: Made) -> tuple[np.ndarray, Made]:
    """Lists re-ranked by k-reciprocal sets, (n, k) int32; section 3.2 of the paper."""
    if run.options.reranked is not None:
        # The similarities of re-ranked lists are overlaps; nothing after this reads them.
        lists, file_made_of = run.lists_from_file(
            "reranked.npz",
            run.options.reranked,
            None,
            lambda start, ids: np.zeros(ids.shape, np.float32),
            "re-ranking",
        )
        run.settings.check_reranked(lists.k, str(run.options.reranked))
        return lists.ids, {**made_of, "reranked": file_made_of}

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        mutual = np.empty(knn.ids.shape, dtype=np.uint8)
        for start in range(0, run.n, RERANK_BLOCK):
            stop = min(start + RERANK_BLOCK, run.n)
            mutual[start:stop] = mark_mutual(knn.ids, start, stop)
        offsets, members = reciprocal_sets(knn.ids, mutual)

        def work(start: int, stop: int) -> dict[str, np.ndarray]:
            ids, sims = rank_candidates(knn.ids, knn.sims, run.vectors, offsets, members, start, stop)
            return {"ids": ids, "sims": sims}

        yield work

    arrays = run.make(
        "reranked.npz",
        {"ids": (knn.ids.shape, np.int32), "sims": (knn.ids.shape, np.float64)},
        {"rerank": made_of},
        worker,
        block=RERANK_BLOCK,
        text="re-ranking",
    )
    return arrays["ids"], {"rerank": made_of}


def reciprocal_sets(ids: np.ndarray, mutual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R* of all faces: offsets (n + 1,) int64 and members int32."""
    offsets, members = [np.zeros(1, np.int64)], []
    for start in range(0, len(ids), RERANK_BLOCK):
        ends, faces = expand_reciprocal(ids, mutual, start, min(start + RERANK_BLOCK, len(ids)))
        offsets.append(ends[1:] + offsets[-1][-1])
        members.append(faces)
    return np.concatenate(offsets), np.concatenate(members)


def refined_features(run: "Run", knn: KnnGraph, ranked: np.ndarray, made_of: Made) -> tuple[np.ndarray, Made]:
    """The centre's output of every neighborhood, (n, 2d) float32 unit rows; section 3.3 of the paper."""
    near = run.settings.neighborhood
    width = 2 * run.features.dim
    tables = encoded_tables(run)
    made_of = {
        "lists": made_of,
        "engine": run.bundle.digest(),
        "inference": run.options.inference,
        "hops": list(near.hops),
        "active": near.active,
    }

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        threads = numba.get_num_threads()
        with run.engine("neighborhood") as engine:

            def batches(start: int, stop: int) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
                numba.set_num_threads(threads)  # a setting of each thread, and this runs in one of its own
                yield from neighborhood_batches(
                    tables,
                    ranked,
                    knn,
                    np.arange(start, stop),
                    near,
                    rows=ENGINE_ROWS,
                    most=run.options.batch or ENGINE_ROWS,
                )

            def work(start: int, stop: int) -> dict[str, np.ndarray]:
                refined = np.empty((stop - start, width), dtype=np.float32)
                for group, feeds in ahead(batches(start, stop)):
                    refined[group] = engine.run(feeds)["refined"]
                run.check_finite(refined, start, "refined feature")
                return {"array": refined}

            yield work

    arrays = run.make(
        "refined.npy",
        {"array": ((run.n, width), np.float32)},
        made_of,
        worker,
        block=REFINE_BLOCK,
        text="refinement",
    )
    return arrays["array"], made_of


def encoded_tables(run: "Run") -> dict[str, np.ndarray]:
    """What each face brings to every neighborhood it is in: six tables (n, 2d) float32."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine("encode") as engine:
            yield lambda start, stop: engine.run({"features": run.vectors[start:stop]})

    return run.make(
        "tables.npz",
        dict.fromkeys((*TABLES, "out"), ((run.n, 2 * run.features.dim), np.float32)),
        {"features": run.features_hash, "normalize": run.features.normalize, "engine": run.bundle.digest()},
        worker,
        block=ENCODE_BLOCK,
        text="encoding",
    )


def links_to_denser(run: "Run", refined: np.ndarray, made_of: Made) -> tuple[np.ndarray, np.ndarray]:
    """Links of similarity tau or more, each from a face to its nearest denser face; section 3.4 of the paper."""
    k, tau = run.settings.links.k, np.float32(run.settings.links.tau)
    near = run.knn("refined_knn.npz", refined, k, {"refined": made_of}, "kNN of refined", clip=False)[0]
    sums = np.empty(run.n, dtype=np.float32)
    for start in range(0, run.n, LINK_BLOCK):
        sum_similarities(near.sims[start : start + LINK_BLOCK], sums[start : start + LINK_BLOCK])
    density = density_from_sums(sums)
    pairs, sims = [], []
    for start in range(0, run.n, LINK_BLOCK):
        stop = min(start + LINK_BLOCK, run.n)
        denser, best = link_to_denser(near.ids[start:stop], near.sims[start:stop], density, start)
        kept = np.flatnonzero((denser != NO_LINK) & (best >= tau))
        pairs.append(np.stack([start + kept, denser[kept]], axis=1).astype(np.int32))
        sims.append(best[kept])
    links = run.keep(
        "links.npz",
        {"ids": np.concatenate(pairs), "sims": np.concatenate(sims)},
        {"refined": made_of, "k": k, "tau": float(tau)},
    )
    return links["ids"][:, 0], links["ids"][:, 1]
