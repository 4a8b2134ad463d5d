"""PSE-GCN from features to labels; the algorithm, top to bottom."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.evidence import SIMILARITY, Accepted
from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.cells import REFINED_PER_ROOT
from fcdeploy.graph.density import density_from_sums, sum_similarities
from fcdeploy.graph.entering import mark_entering, place_of_denser, place_of_follower
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.marks import new_counters
from fcdeploy.graph.rerank import (
    Ragged,
    expand_reciprocal,
    holders_of,
    largest_set,
    mark_mutual,
    rank_candidates,
)
from fcdeploy.graph.rerank_cuda import Ranking, ranking_on_device, reranks_on_device
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import blocks_of
from fcdeploy.run.carried import rows_stay
from fcdeploy.run.extended import Extended, Offers, Rule, offers_of_lists
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays
from fcdeploy.systems.pse_gcn.inputs import neighborhood_batches
from fcdeploy.systems.pse_gcn.layers import Layers, lists_by_place, shapes_of
from fcdeploy.systems.pse_gcn.layers_cuda import layers_fit, refined_on_device
from fcdeploy.systems.pse_gcn.spec import TABLES

REFINE_BLOCK = 2048
ENGINE_ROWS = 4096  # nodes per engine call: enough for full-speed matrix products, small enough for the cache
SETS_BLOCK = 2048
HOLDERS_BLOCKS = 16  # at most: each looks through all sets
MEMBERS = 2.4  # of a reciprocal set, in lists of k: what generated faces have at k = 80
LINK_BLOCK = 65536


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    near = refined_lists(run)
    links = links_to_denser(run, near)
    return clusters(run, links)


def refined_lists(run: Run) -> Artifact:
    """The nearest neighbors by refined features: all that a face's link depends on."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    ranked = reranked_lists(run, vectors, cells, knn)
    refined = refined_features(run, vectors, cells, knn, ranked)
    return refined_neighbors(run, refined)


def assign(run: Extended) -> Rule:
    """Link new faces of similarity tau or more to the nearest denser stored face.

    One that is denser than all around it goes with the stored face that would most nearly link to it.
    """
    near = refined_lists(run)
    stored = near["sims"][: run.n]
    density = np.empty(run.n, dtype=np.float32)
    sum_similarities(stored, density)
    reached = link_to_denser(near["ids"][: run.n], stored, density, 0)[1]
    tau, floor = np.float32(run.settings.links.tau), stored.min(axis=1)
    reached = np.maximum(reached, np.nextafter(tau, np.float32(-2)))

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids, sims = near["ids"][rows], near["sims"][rows]
        own = np.empty(len(rows), dtype=np.float32)
        sum_similarities(sims, own)
        denser = place_of_denser(ids, density, own, run.n)
        denser[sims[np.arange(len(rows)), denser] < tau] = NO_LINK
        follower = place_of_follower(ids, sims, density, own, reached, floor, sims)
        place = np.where(denser != NO_LINK, denser, follower)
        return offers_of_lists(ids, sims, place, run.n)

    return rule


def evidence(run: Run, kept: Mapping[str, Artifact]) -> Accepted:
    """Each face's nearest denser face, whatever tau is, and the lists that it was chosen from."""
    return Accepted(lambda: denser_links(run, kept["refined_knn"]), SIMILARITY, "refined_knn")


def neighbors(run: Run) -> Artifact:
    """The kNN lists of the features, with which a run begins."""
    vectors = read_features(run)
    return nearest_neighbors(run, vectors, partition(run, "cells", vectors))


@step("knn")
def nearest_neighbors(run: Run, vectors: Artifact, cells: Partition) -> Artifact:
    """The k nearest neighbors of the input features; similarities we compute are clipped to 0..1, as published."""
    k = run.settings.neighborhood.k
    if "knn" in run.given:
        return lists_from_file(run, "knn", run.given["knn"], vectors, k, cells, "kNN")
    return find_neighbors(run, "knn", vectors, k, cells, text="kNN", clip=True, above=run.settings.links.tau)


@step("rerank")
def reranked_lists(run: Run, vectors: Artifact, cells: Partition, knn: Artifact) -> Artifact:
    """Lists re-ranked by k-reciprocal sets, ids (n, k) int32; section 3.2 of the paper.

    The sets are made of lists with places in the order of visits instead of faces: neighbors lie near each other then.
    """
    if "reranked" in run.given:
        return lists_from_file(run, "reranked", run.given["reranked"], vectors, None, cells, "re-ranking")
    k = run.settings.neighborhood.k
    gpu = run.on_gpu and not run.survey
    if reranks_on_device(run.n, k, run.features.dim, gpu=gpu, vram=run.options.vram, resident=run.resident):
        return reranked_on_device(run, vectors, cells, knn, k)
    placed = knn_by_place(run, cells, knn, k)
    mutual = mutual_neighbors(run, cells, placed, knn)
    sets = reciprocal_sets(run, placed, mutual)
    holders = holders_of_sets(run, sets)

    def block(faces: np.ndarray, shared: np.ndarray) -> Arrays:
        ranked, overlaps = rank_candidates(
            placed["ids"],
            knn["sims"][faces][:, :k],
            vectors.array,
            cells.order,
            ragged(sets),
            ragged(holders),
            cells.place[faces],
            shared,
        )
        return {"ids": cells.order[ranked], "sims": overlaps}

    def opened() -> AbstractContextManager[np.ndarray]:
        return nullcontext(new_counters(run.marks.shape[1], largest_set(k)))

    return ranked_by_blocks(
        run, vectors, cells, knn, k, block, through=(placed, mutual, sets, holders), opened=opened
    )


def reranked_on_device(run: Run, vectors: Artifact, cells: Partition, knn: Artifact, k: int) -> Artifact:
    """The same on the GPU, where the lists, their sets and the vectors fit."""

    def block(faces: np.ndarray, ranking: Ranking) -> Arrays:
        ranked, overlaps = ranking.rank(cells.place[faces], knn["sims"][faces][:, :k])
        return {"ids": cells.order[ranked], "sims": overlaps}

    def opened() -> AbstractContextManager[Ranking]:
        lists = knn["ids"]
        return ranking_on_device(
            lists, k, cells.order, cells.place, vectors.array, run.options.vram, run.resident
        )

    return ranked_by_blocks(run, vectors, cells, knn, k, block, opened=opened)


def ranked_by_blocks(
    run: Run,
    vectors: Artifact,
    cells: Partition,
    knn: Artifact,
    k: int,
    block: Callable[..., Arrays],
    *,
    through: tuple[Artifact, ...] = (),
    opened: Callable[[], AbstractContextManager[object]],
) -> Artifact:
    """The re-ranked lists, ids (n, k) int32 and overlaps, wherever blocks are computed."""
    return run.compute(
        Stage(
            name="reranked",
            text="re-ranking",
            block=block,
            shapes={"ids": ((run.n, k), np.int32), "sims": ((run.n, k), np.float32)},
            made_from=(vectors, knn),
            settings={"k": k},
            through=through,
            rows=run.n,
            visit=cells,
            opened=opened,
            carry=rows_stay,
        )
    )


def knn_by_place(run: Run, cells: Partition, knn: Artifact, k: int) -> Artifact:
    """The kNN lists with places in the order of visits instead of faces, (n, k) int32."""
    return run.compute(
        Stage(
            name="placed",
            text="lists by place",
            block=lambda places: {"ids": cells.place[knn["ids"][cells.order[places]][:, :k]]},
            shapes={"ids": ((run.n, k), np.int32)},
            made_from=(knn, cells.artifact),
            settings={"k": k},
            rows=run.n,
            scratch=True,
        )
    )


def mutual_neighbors(run: Run, cells: Partition, placed: Artifact, knn: Artifact) -> Artifact:
    """Which neighbors in lists by place have each other, (n, k) uint8; see ``mark_mutual`` and ``mark_entering``."""
    return run.compute(
        Stage(
            name="mutual",
            text="mutual neighbors",
            block=lambda places: {"mutual": mark_mutual(placed["ids"], places)},
            unlisted=lambda places: {
                "mutual": mark_entering(placed["ids"], knn["sims"], cells.order, places, run.n)
            },
            shapes={"mutual": (placed.shapes["ids"][0], np.uint8)},
            made_from=(placed,),
            rows=run.n,
            scratch=True,
        )
    )


def reciprocal_sets(run: Run, placed: Artifact, mutual: Artifact) -> Artifact:
    """R* of all places: starts (n,) int64, counts (n,) int32 and members int32; see ``rank_candidates``."""

    def block(places: np.ndarray) -> Arrays:
        counts, members = expand_reciprocal(placed["ids"], mutual["mutual"], places, run.marks)
        return {"counts": counts, "members": members}

    return run.compute(
        Stage(
            name="reciprocal",
            text="reciprocal sets",
            block=block,
            shapes={
                "starts": ((run.n,), np.int64),
                "counts": ((run.n,), np.int32),
                "members": ((None,), np.int32),
            },
            made_from=(placed, mutual),
            rows=run.n,
            size=SETS_BLOCK,
            scratch=True,
            about=int(MEMBERS * run.n * int(placed.shapes["ids"][0][1] or 0)),
        )
    )


def holders_of_sets(run: Run, sets: Artifact) -> Artifact:
    """In whose R* each place is, laid out like the sets; see ``holders_of``."""

    def block(places: np.ndarray) -> Arrays:
        counts, members = holders_of(*ragged(sets), places)
        return {"counts": counts, "members": members}

    return run.compute(
        Stage(
            name="holders",
            text="holders of reciprocal sets",
            block=block,
            unlisted=lambda places: {
                "counts": np.zeros(len(places), np.int32),
                "members": np.empty(0, np.int32),
            },
            shapes=sets.shapes,
            made_from=(sets,),
            rows=run.n,
            size=max(SETS_BLOCK, -(-run.n // HOLDERS_BLOCKS)),
            scratch=True,
            about=sets.about,
        )
    )


def ragged(lists: Artifact) -> Ragged:
    """Starts, counts and members of lists of any length, as kernels take them."""
    return lists["starts"], lists["counts"], lists["members"]


@step("refine")
def refined_features(
    run: Run, vectors: Artifact, cells: Partition, knn: Artifact, ranked: Artifact
) -> Artifact:
    """Refined features, (n, 2d) float32 unit rows; section 3.3 of the paper.

    The fixed graph comes from the original lists, the neighborhoods from the re-ranked ones.
    """
    refine = {"exact": refined_exactly, "layerwise": refined_layerwise}[run.options.inference]
    return refine(run, vectors, cells, knn, ranked)


def refined_exactly(
    run: Run, vectors: Artifact, cells: Partition, knn: Artifact, ranked: Artifact
) -> Artifact:
    """The centre's output of every neighborhood."""
    near = run.settings.neighborhood
    tables = encoded_tables(run, vectors)

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        batches = neighborhood_batches(
            tables.arrays,
            ranked["ids"],
            knn.lists,
            faces,
            near,
            run.marks,
            rows=ENGINE_ROWS,
            most=run.options.batch or ENGINE_ROWS,
        )
        refined = np.empty((len(faces), 2 * run.features.dim), dtype=np.float32)
        for group, outputs in engine.run_each(batches):
            refined[group] = outputs["refined"]
        run.check_finite(refined, faces, "refined feature")
        return {"refined": refined}

    return run.compute(
        Stage(
            name="refined",
            text="refinement",
            block=block,
            shapes=shapes_of(run, "refined"),
            made_from=(vectors, knn, ranked),
            settings={"hops": list(near.hops), "active": near.active},
            passes=("neighborhood",),
            through=(tables,),
            rows=run.n,
            size=REFINE_BLOCK,
            visit=cells,
            carry=rows_stay,
        )
    )


def encoded_tables(run: Run, vectors: Artifact) -> Artifact:
    """What each face brings to every neighborhood it is in: six tables (n, 2d) float32."""

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        return run.finite(engine.run({"features": vectors.array[faces]}), faces, "encoded face")

    return run.compute(
        Stage(
            name="tables",
            text="encoding",
            block=block,
            shapes=shapes_of(run, *TABLES, "out"),
            made_from=(vectors,),
            passes=("encode",),
            rows=run.n,
            size=ENGINE_ROWS,
            scratch=True,
        )
    )


def refined_layerwise(
    run: Run, vectors: Artifact, cells: Partition, knn: Artifact, ranked: Artifact
) -> Artifact:
    """Each block once per face, each face in its own neighborhood.

    Not the published function: a neighbor's x1 is the one computed with that neighbor as the centre; see
    docs/explanation/inference.md for how much its clusters differ.
    """
    if layers_fit(run):
        return refined_on_device(run, vectors, cells, knn, ranked)
    layers = Layers(run, vectors, cells, lists_by_place(run, vectors, cells, knn, ranked))
    near = layers.near1()
    similar = layers.similar1(near)
    first = layers.block1(similar)
    second = layers.similar2(first)
    return layers.refined(first, second, made_from=(vectors, knn, ranked))


@step("refined_knn")
def refined_neighbors(run: Run, refined: Artifact) -> Artifact:
    """The k nearest neighbors among refined features."""
    links = run.settings.links
    cells = partition(run, "refined_cells", refined, REFINED_PER_ROOT)
    return find_neighbors(
        run, "refined_knn", refined, links.k, cells, text="kNN of refined", clip=False, above=links.tau
    )


@step("links")
def links_to_denser(run: Run, near: Artifact) -> Artifact:
    """Links of similarity tau or more, each from a face to its nearest denser face; section 3.4 of the paper.

    Gives ids (m, 2) int32 and sims (m,) float32.
    """
    tau = np.float32(run.settings.links.tau)

    def make() -> Arrays:
        pairs, sims = [], []
        for ids, best in denser_links(run, near):
            kept = np.flatnonzero(best >= tau)
            pairs.append(ids[kept])
            sims.append(best[kept])
        return {"ids": np.concatenate(pairs), "sims": np.concatenate(sims)}

    return run.collect("links", make, made_from=(near,), settings={"tau": float(tau)})


def denser_links(run: Run, near: Artifact) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the links from faces to their nearest denser face, in blocks: ids (m, 2) int32 and sims (m,) float32."""
    sums = np.empty(run.n, dtype=np.float32)
    for block in blocks_of(run.n, LINK_BLOCK):
        sum_similarities(near["sims"][block], sums[block])
    density = density_from_sums(sums)
    for block in blocks_of(run.n, LINK_BLOCK):
        denser, best = link_to_denser(near["ids"][block], near["sims"][block], density, block.start)
        linked = np.flatnonzero(denser != NO_LINK)
        yield np.stack([block.start + linked, denser[linked]], axis=1).astype(np.int32), best[linked]


@step("clusters")
def clusters(run: Run, links: Artifact) -> np.ndarray:
    """Labels (n,) int64 of the connected components of links ``ids`` (m, 2)."""
    forest = new_forest(run.n)
    join(forest, links["ids"][:, 0], links["ids"][:, 1])
    return labels_from_forest(forest)
