"""PSE-GCN from features to labels; the algorithm, top to bottom."""

import contextlib
import functools
import hashlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.errors import FcdeployError
from fcdeploy.graph.aggregation_cuda import sums_on
from fcdeploy.graph.density import density_from_sums, sum_similarities
from fcdeploy.graph.halves import LARGEST, bits_of, floats_from_halves, halves_from_floats
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.marks import new_scratch
from fcdeploy.graph.rerank import expand_reciprocal, mark_mutual, rank_candidates
from fcdeploy.systems.pse_gcn.inputs import neighborhood_batches

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

REFINE_BLOCK = 2048
ENGINE_ROWS = 4096  # nodes an engine call: enough for full-speed matrix products, small enough for the cache
SETS_BLOCK = 2048
BESIDE_SUMS = 2  # an engine and the tables of the sums, which take half of the device memory each
LINK_BLOCK = 65536
REFINE_PASSES = (
    "encode",
    "neighborhood",
    "near1",
    "similar1",
    "block1",
    "similar2",
    "block2",
)  # of either inference

Made = dict[str, Any]  # what a product was made of
Work = Callable[[np.ndarray], dict[str, np.ndarray]]


def cluster(run: "Run") -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    run.read_features()
    with run.stage("knn"):
        knn, knn_made_of = nearest_neighbors(run)
    with run.stage("rerank"):
        ranked, ranked_made_of = reranked_lists(run, knn, knn_made_of)
    with run.stage("refine"):
        # The fixed graph comes from the original lists, the neighborhoods from the re-ranked ones.
        made_of = {"knn": knn_made_of, "ranked": ranked_made_of}
        refine = {"exact": refined_exactly, "layerwise": refined_layerwise}[run.options.inference]
        refined, made_of = refine(run, knn, ranked, made_of)
    with run.stage("refined_knn"):
        near, made_of = refined_neighbors(run, refined, made_of)
    with run.stage("links"):
        faces, denser = links_to_denser(run, near, made_of)
    with run.stage("clusters"):
        forest = new_forest(run.n)
        join(forest, faces, denser)
        return labels_from_forest(forest)


def nearest_neighbors(run: "Run") -> tuple[KnnGraph, Made]:
    """The k nearest neighbors of the input features; similarities we compute are clipped to 0..1, as published."""
    k = run.settings.neighborhood.k
    if run.knn_file is not None:
        return run.lists_from_file("knn.npz", run.knn_file, k, "kNN")
    return run.knn(
        "knn.npz",
        run.vectors,
        k,
        run.made_of_features,
        "kNN",
        clip=True,
        above=run.settings.links.tau,
        cells=lambda: run.cells,
    )


def reranked_lists(run: "Run", knn: KnnGraph, knn_made_of: Made) -> tuple[np.ndarray, Made]:
    """Lists re-ranked by k-reciprocal sets, (n, k) int32; section 3.2 of the paper."""
    if run.options.reranked is not None:
        lists, made_of = run.lists_from_file("reranked.npz", run.options.reranked, None, "re-ranking")
        return lists.ids, made_of

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        scratch, place = new_scratch(run.n), places_in(run.order)
        ids = knn_by_place(run, knn, place, knn_made_of)
        starts, counts, members = reciprocal_sets(run, ids, knn_made_of, scratch)

        def work(faces: np.ndarray) -> dict[str, np.ndarray]:
            ranked, overlaps = rank_candidates(
                ids,
                knn.sims[faces],
                run.vectors,
                run.order,
                starts,
                counts,
                members,
                place[faces],
                scratch,
            )
            return {"ids": run.order[ranked], "sims": overlaps}

        yield work

    made_of = {"rerank": knn_made_of}
    arrays = run.make("reranked.npz", made_of, worker, text="re-ranking", order=run.order)
    run.drop("placed", "mutual")
    return arrays["ids"], made_of


def knn_by_place(run: "Run", knn: KnnGraph, place: np.ndarray, made_of: Made) -> np.ndarray:
    """The kNN lists with places in ``run.order`` instead of faces, (n, k) int32: neighbors lie near each other."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        yield lambda places: {"ids": place[knn.ids[run.order[places]]]}

    return run.make("placed", {"placed": made_of, **order_made_of(run)}, worker, text="lists by place")["ids"]


def reciprocal_sets(
    run: "Run", ids: np.ndarray, made_of: Made, scratch: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R* of all places: starts (n,) int64, counts (n,) int32 and members int32; see ``rank_candidates``."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        yield lambda places: {"mutual": mark_mutual(ids, places)}

    made_of = {"mutual": made_of, **order_made_of(run)}
    mutual = run.make("mutual", made_of, worker, text="mutual neighbors")["mutual"]
    counts = np.empty(run.n, np.int32)
    members = []
    for start in range(0, run.n, SETS_BLOCK):
        places = np.arange(start, min(start + SETS_BLOCK, run.n), dtype=np.int32)
        counts[places], found = expand_reciprocal(ids, mutual, places, scratch)
        members.append(found)
    return np.cumsum(counts, dtype=np.int64) - counts, counts, np.concatenate(members)


def refined_exactly(
    run: "Run", knn: KnnGraph, ranked: np.ndarray, lists_made_of: Made
) -> tuple[np.ndarray, Made]:
    """The centre's output of every neighborhood, (n, 2d) float32 unit rows; section 3.3 of the paper."""
    near = run.settings.neighborhood
    made_of = made_of_refined(run, lists_made_of)

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        tables = encoded_tables(run)
        scratch = new_scratch(run.n)
        with run.engine("neighborhood") as engine:

            def batches(faces: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
                most = run.options.batch or ENGINE_ROWS
                yield from neighborhood_batches(
                    tables, ranked, knn, faces, near, scratch, rows=ENGINE_ROWS, most=most
                )

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                refined = np.empty((len(faces), 2 * run.features.dim), dtype=np.float32)
                for group, outputs in engine.run_each(batches(faces)):
                    refined[group] = outputs["refined"]
                run.check_finite(refined, faces, "refined feature")
                return {"array": refined}

            yield work

    arrays = run.make("refined.npy", made_of, worker, text="refinement", order=run.order, block=REFINE_BLOCK)
    run.drop("tables")
    return arrays["array"], made_of


def encoded_tables(run: "Run") -> dict[str, np.ndarray]:
    """What each face brings to every neighborhood it is in: six tables (n, 2d) float32."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine("encode") as engine:
            yield lambda faces: run.finite(
                engine.run({"features": run.vectors[faces]}), faces, "encoded face"
            )

    made_of = {**run.made_of_features, "engine": run.bundle.digest(REFINE_PASSES)}
    return run.make("tables", made_of, worker, text="encoding", block=ENGINE_ROWS)


def refined_layerwise(
    run: "Run", knn: KnnGraph, ranked: np.ndarray, lists_made_of: Made
) -> tuple[np.ndarray, Made]:
    """Each block once a face, each face in its own neighborhood, (n, 2d) float32 unit rows.

    Not the published function: a neighbor's x1 is the one computed with that neighbor as the centre; see
    docs/inference.md for how much its clusters differ.

    Between the layers faces are numbered by their place in ``run.order``: tables are then written from front to
    back, and a neighborhood's rows lie near each other. With ``--tables float16`` they are rounded to half precision.
    """
    made_of = made_of_refined(run, lists_made_of)
    near = run.settings.neighborhood
    scratch = new_scratch(run.n)
    layer_made_of = {**made_of, **order_made_of(run)}
    lists = functools.cache(lambda: lists_by_place(run, knn, ranked, layer_made_of))

    def layer(name: str, inputs: Callable[[], Work]) -> dict[str, np.ndarray]:
        """Run one pass over all places; ``inputs`` makes what it needs and returns its feeds for a block of them."""

        @contextlib.contextmanager
        def worker() -> Iterator[Work]:
            feeds = inputs()
            with run.engine(name, BESIDE_SUMS) as engine:

                def work(places: np.ndarray) -> dict[str, np.ndarray]:
                    outputs = engine.run(feeds(places))
                    for output in outputs.values():
                        run.check_finite(output, run.order[places], "value")
                    return {name: kept(output) for name, output in outputs.items()}

                yield work

        return run.make(name, layer_made_of, worker, text=f"refinement, {name}", block=ENGINE_ROWS)

    def kept(rows: np.ndarray) -> np.ndarray:
        if run.options.tables == "float32":
            return rows
        if (largest := np.abs(rows).max()) > LARGEST:
            raise FcdeployError(
                f"{run.bundle.path}: gives values up to {largest:.3g}, too large for float16; "
                "give --tables float32."
            )
        return halves_from_floats(rows)

    def features(places: np.ndarray) -> np.ndarray:
        return run.vectors[run.order[places]]

    def connected(places: np.ndarray, times: int, table: np.ndarray) -> np.ndarray:
        return sums.sum_connected(
            lists()["ranked"],
            lists()["ids"],
            lists()["sims"],
            places,
            near.hops,
            near.active,
            times,
            bits_of(table),
            scratch,
        )

    def similar(places: np.ndarray, directions: np.ndarray, table: np.ndarray) -> np.ndarray:
        return sums.sum_similar(
            lists()["ranked"], places, near.hops, bits_of(directions), bits_of(table), scratch
        )

    # Each layer asks for the ones before it only when it is not finished itself.
    def near1() -> dict[str, np.ndarray]:
        return layer("near1", lambda: lambda places: {"features": features(places)})

    def similar1() -> dict[str, np.ndarray]:
        def inputs() -> Work:
            table = near1()["near1"]
            return lambda places: {"features": features(places), "connected": connected(places, 1, table)}

        return layer("similar1", inputs)

    def block1() -> dict[str, np.ndarray]:
        def inputs() -> Work:
            tables = similar1()
            run.drop("near1")
            return lambda places: {
                "features": features(places),
                "drawn": similar(places, tables["h1"], tables["near_drawn1"]),
            }

        return layer("block1", inputs)

    def similar2(first: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # The fixed graph is normalised twice, as published.
        return layer(
            "similar2",
            lambda: (
                lambda places: {
                    "x1": floats_from_halves(first["x1"][places]),
                    "connected": connected(places, 2, first["near2"]),
                }
            ),
        )

    @contextlib.contextmanager
    def block2() -> Iterator[Work]:
        first = block1()
        run.drop("similar1")
        directions = similar2(first)["h2"]
        place = places_in(run.order)
        with run.engine("block2", BESIDE_SUMS) as engine:

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                places = place[faces]
                drawn = similar(places, directions, first["x1"])
                feeds = {
                    "features": run.vectors[faces],
                    "x1": floats_from_halves(first["x1"][places]),
                    "drawn": drawn,
                }
                refined = engine.run(feeds)["refined"]
                run.check_finite(refined, faces, "refined feature")
                return {"array": refined}

            yield work

    with sums_on(gpu=run.on_gpu, vram=run.options.vram) as sums:
        refined = run.make(
            "refined.npy", made_of, block2, text="refinement, block2", order=run.order, block=ENGINE_ROWS
        )["array"]
    run.drop("block1", "similar2", "lists")
    return refined, made_of


def lists_by_place(run: "Run", knn: KnnGraph, ranked: np.ndarray, made_of: Made) -> dict[str, np.ndarray]:
    """The part of the lists that neighborhoods are made of, with places in ``run.order`` instead of faces."""
    near = run.settings.neighborhood
    reach = max(near.hops[0], near.hops[1] + 1)

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        place = places_in(run.order)

        def work(places: np.ndarray) -> dict[str, np.ndarray]:
            faces = run.order[places]
            return {
                "ranked": place[ranked[faces][:, :reach]],
                "ids": place[knn.ids[faces][:, : near.active]],
                "sims": knn.sims[faces][:, : near.active],
            }

        yield work

    return run.make("lists", {"lists": made_of}, worker, text="lists by place")


def order_made_of(run: "Run") -> Made:
    """What decides places."""
    return {"order": hashlib.sha256(run.order.data).hexdigest()}


def places_in(order: np.ndarray) -> np.ndarray:
    """Return where each face stands in ``order`` (n,), a permutation: (n,) int32."""
    places = np.empty(len(order), dtype=np.int32)
    places[order] = np.arange(len(order), dtype=np.int32)
    return places


def made_of_refined(run: "Run", lists_made_of: Made) -> Made:
    """Everything that decides refined features."""
    near = run.settings.neighborhood
    return {
        "lists": lists_made_of,
        "engine": run.bundle.digest(REFINE_PASSES),
        "inference": run.options.inference,
        "tables": run.options.tables if run.options.inference == "layerwise" else "float32",
        "hops": list(near.hops),
        "active": near.active,
    }


def refined_neighbors(run: "Run", refined: np.ndarray, refined_made_of: Made) -> tuple[KnnGraph, Made]:
    """The k nearest neighbors among refined features."""
    return run.knn(
        "refined_knn.npz",
        refined,
        run.settings.links.k,
        refined_made_of,
        "kNN of refined",
        clip=False,
        above=run.settings.links.tau,
        cells=lambda: run.partition("refined_cells", refined, refined_made_of),
    )


def links_to_denser(run: "Run", near: KnnGraph, made_of: Made) -> tuple[np.ndarray, np.ndarray]:
    """Links of similarity tau or more, each from a face to its nearest denser face; section 3.4 of the paper."""
    tau = np.float32(run.settings.links.tau)

    def maker() -> dict[str, np.ndarray]:
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
        return {"ids": np.concatenate(pairs), "sims": np.concatenate(sims)}

    links = run.keep("links.npz", {**made_of, "tau": float(tau)}, maker)
    return links["ids"][:, 0], links["ids"][:, 1]
