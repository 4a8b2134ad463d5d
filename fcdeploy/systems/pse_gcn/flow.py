"""PSE-GCN from features to labels; the algorithm, top to bottom."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployError
from fcdeploy.graph.aggregation_cuda import Sums, sums_on
from fcdeploy.graph.density import density_from_sums, sum_similarities
from fcdeploy.graph.halves import LARGEST, bits_of, floats_from_halves, halves_from_floats
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.rerank import expand_reciprocal, mark_mutual, rank_candidates
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, Shapes
from fcdeploy.systems.pse_gcn.inputs import neighborhood_batches
from fcdeploy.systems.pse_gcn.spec import TABLES

REFINE_BLOCK = 2048
ENGINE_ROWS = 4096  # nodes an engine call: enough for full-speed matrix products, small enough for the cache
SETS_BLOCK = 2048
BESIDE_SUMS = 2  # an engine and the tables of the sums, which take half of the device memory each
LINK_BLOCK = 65536


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    ranked = reranked_lists(run, vectors, cells, knn)
    refined = refined_features(run, vectors, cells, knn, ranked)
    near = refined_neighbors(run, refined)
    links = links_to_denser(run, near)
    return clusters(run, links)


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
    placed = knn_by_place(run, cells, knn, k)
    mutual = mutual_neighbors(run, cells, placed)
    sets = reciprocal_sets(run, cells, placed, mutual)

    def block(faces: np.ndarray) -> Arrays:
        ranked, overlaps = rank_candidates(
            placed["ids"],
            knn["sims"][faces][:, :k],
            vectors.array,
            cells.order,
            sets["starts"],
            sets["counts"],
            sets["members"],
            cells.place[faces],
            run.marks,
        )
        return {"ids": cells.order[ranked], "sims": overlaps}

    return run.compute(
        Stage(
            name="reranked",
            text="re-ranking",
            block=block,
            shapes={"ids": ((run.n, k), np.int32), "sims": ((run.n, k), np.float32)},
            made_from=(vectors, knn),
            settings={"k": k},
            through=(placed, mutual, sets),
            rows=run.n,
            visit=cells,
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


def mutual_neighbors(run: Run, cells: Partition, placed: Artifact) -> Artifact:
    """Which neighbors in lists by place have each other, (n, k) uint8; see ``mark_mutual``."""
    return run.compute(
        Stage(
            name="mutual",
            text="mutual neighbors",
            block=lambda places: {"mutual": mark_mutual(placed["ids"], places)},
            shapes={"mutual": (placed.shapes["ids"][0], np.uint8)},
            made_from=(placed,),
            rows=run.n,
            scratch=True,
        )
    )


def reciprocal_sets(run: Run, cells: Partition, placed: Artifact, mutual: Artifact) -> Artifact:
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
        )
    )


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
            first_columns(knn.lists, near.k),
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
    docs/inference.md for how much its clusters differ.

    Between the layers faces are numbered by their place in the order of visits: tables are then written from front to
    back, and a neighborhood's rows lie near each other. With ``--tables float16`` they are rounded to half precision.
    """
    near = run.settings.neighborhood
    lists = lists_by_place(run, cells, knn, ranked)
    layer = functools.partial(one_layer, run, cells, lists)

    def features(places: np.ndarray) -> np.ndarray:
        return vectors.array[cells.order[places]]

    def connected(places: np.ndarray, sums: Sums, times: int, table: np.ndarray) -> np.ndarray:
        ranked, ids, sims = (lists[part] for part in ("ranked", "ids", "sims"))
        return sums.sum_connected(
            ranked, ids, sims, places, near.hops, near.active, times, bits_of(table), run.marks
        )

    def similar(places: np.ndarray, sums: Sums, directions: np.ndarray, table: np.ndarray) -> np.ndarray:
        return sums.sum_similar(
            lists["ranked"], places, near.hops, bits_of(directions), bits_of(table), run.marks
        )

    near1 = layer(
        "near1",
        ("near1",),
        (vectors,),
        lambda places, sums: {"features": features(places)},
    )
    similar1 = layer(
        "similar1",
        ("h1", "near_drawn1"),
        (vectors, near1),
        lambda places, sums: {
            "features": features(places),
            "connected": connected(places, sums, 1, near1["near1"]),
        },
        through=(near1,),
    )
    block1 = layer(
        "block1",
        ("x1", "near2"),
        (vectors, similar1),
        lambda places, sums: {
            "features": features(places),
            "drawn": similar(places, sums, similar1["h1"], similar1["near_drawn1"]),
        },
        through=(similar1,),
    )
    similar2 = layer(
        "similar2",
        ("h2",),
        (block1,),
        lambda places, sums: {
            "x1": floats_from_halves(block1["x1"][places]),
            # The fixed graph is normalised twice, as published.
            "connected": connected(places, sums, 2, block1["near2"]),
        },
    )

    def block2(faces: np.ndarray, sums: Sums, engine: Engine) -> Arrays:
        places = cells.place[faces]
        feeds = {
            "features": vectors.array[faces],
            "x1": floats_from_halves(block1["x1"][places]),
            "drawn": similar(places, sums, similar2["h2"], block1["x1"]),
        }
        refined = engine.run(feeds)["refined"]
        run.check_finite(refined, faces, "refined feature")
        return {"refined": refined}

    return run.compute(
        Stage(
            name="refined",
            text="refinement, block2",
            block=block2,
            shapes=shapes_of(run, "refined"),
            made_from=(vectors, knn, ranked),
            settings={"hops": list(near.hops), "active": near.active, "tables": run.options.tables},
            passes=("block2",),
            through=(lists, block1, similar2),
            rows=run.n,
            size=ENGINE_ROWS,
            visit=cells,
            opened=lambda: sums_on(gpu=run.on_gpu, vram=run.options.vram),
            share=BESIDE_SUMS,
        )
    )


def one_layer(
    run: Run,
    cells: Partition,
    lists: Artifact,
    name: str,
    outputs: tuple[str, ...],
    made_from: tuple[Artifact, ...],
    feeds: Callable[[np.ndarray, Sums], dict[str, Any]],
    through: tuple[Artifact, ...] = (),
) -> Artifact:
    """Run the pass ``name`` over all places; feeds: its inputs for some of them. Its tables (n, 2d) are scratch."""
    half = run.options.tables == "float16"

    def block(places: np.ndarray, sums: Sums, engine: Engine) -> Arrays:
        tables = run.finite(engine.run(feeds(places, sums)), cells.order[places], "value")
        return {part: halved(run, rows) for part, rows in tables.items()} if half else tables

    return run.compute(
        Stage(
            name=name,
            text=f"refinement, {name}",
            block=block,
            shapes=shapes_of(run, *outputs, half=half),
            made_from=(lists, *made_from),
            passes=(name,),
            through=through,
            settings={"tables": run.options.tables},
            rows=run.n,
            size=ENGINE_ROWS,
            opened=lambda: sums_on(gpu=run.on_gpu, vram=run.options.vram),
            share=BESIDE_SUMS,
            scratch=True,
        )
    )


def halved(run: Run, rows: np.ndarray) -> np.ndarray:
    """Round a table to half precision; raises FcdeployError for values too large for it."""
    if (largest := np.abs(rows).max()) > LARGEST:
        raise FcdeployError(
            f"{run.engines.path}: gives values up to {largest:.3g}, too large for float16; give --tables float32."
        )
    return halves_from_floats(rows)


def shapes_of(run: Run, *names: str, half: bool = False) -> Shapes:
    """Tables of all faces, (n, 2d)."""
    return dict.fromkeys(names, ((run.n, 2 * run.features.dim), np.float16 if half else np.float32))


def lists_by_place(run: Run, cells: Partition, knn: Artifact, ranked: Artifact) -> Artifact:
    """The part of the lists that neighborhoods are made of, with places in the order of visits instead of faces."""
    near = run.settings.neighborhood
    reach = max(near.hops[0], near.hops[1] + 1)

    def block(places: np.ndarray) -> Arrays:
        faces = cells.order[places]
        return {
            "ranked": cells.place[ranked["ids"][faces][:, :reach]],
            "ids": cells.place[knn["ids"][faces][:, : near.active]],
            "sims": knn["sims"][faces][:, : near.active],
        }

    return run.compute(
        Stage(
            name="lists",
            text="lists by place",
            block=block,
            shapes={
                "ranked": ((run.n, reach), np.int32),
                "ids": ((run.n, near.active), np.int32),
                "sims": ((run.n, near.active), np.float32),
            },
            made_from=(knn, ranked, cells.artifact),
            settings={"reach": reach, "active": near.active},
            rows=run.n,
            scratch=True,
        )
    )


def first_columns(lists: KnnGraph, k: int) -> KnnGraph:
    """The same lists, cut to k."""
    return lists if k == lists.k else KnnGraph(lists.ids[:, :k], lists.sims[:, :k])


@step("refined_knn")
def refined_neighbors(run: Run, refined: Artifact) -> Artifact:
    """The k nearest neighbors among refined features."""
    links = run.settings.links
    cells = partition(run, "refined_cells", refined)
    return find_neighbors(
        run, "refined_knn", refined, links.k, cells, text="kNN of refined", clip=False, above=links.tau
    )


@step("links")
def links_to_denser(run: Run, near: Artifact) -> Artifact:
    """Links of similarity tau or more, each from a face to its nearest denser face; section 3.4 of the paper.

    Gives ids (m, 2) int32 and sims (m,) float32.
    """
    tau = np.float32(run.settings.links.tau)

    def blocks() -> Iterator[slice]:
        for start in range(0, run.n, LINK_BLOCK):
            yield slice(start, min(start + LINK_BLOCK, run.n))

    def make() -> Arrays:
        sums = np.empty(run.n, dtype=np.float32)
        for block in blocks():
            sum_similarities(near["sims"][block], sums[block])
        density = density_from_sums(sums)
        pairs, sims = [], []
        for block in blocks():
            denser, best = link_to_denser(near["ids"][block], near["sims"][block], density, block.start)
            kept = np.flatnonzero((denser != NO_LINK) & (best >= tau))
            pairs.append(np.stack([block.start + kept, denser[kept]], axis=1).astype(np.int32))
            sims.append(best[kept])
        return {"ids": np.concatenate(pairs), "sims": np.concatenate(sims)}

    return run.collect("links", make, made_from=(near,), settings={"tau": float(tau)})


@step("clusters")
def clusters(run: Run, links: Artifact) -> np.ndarray:
    """Labels (n,) int64 of the connected components of links ``ids`` (m, 2)."""
    forest = new_forest(run.n)
    join(forest, links["ids"][:, 0], links["ids"][:, 1])
    return labels_from_forest(forest)
