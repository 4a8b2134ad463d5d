"""VE-GCN from features to labels; the algorithm, top to bottom."""

from collections.abc import Mapping

import numpy as np

from fcdeploy.clustering.evidence import SIMILARITY, Accepted, links_from
from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.entering import place_of_follower
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import blocks_of
from fcdeploy.run.carried import rows_stay, unless_changed
from fcdeploy.run.extended import Extended, Offers, Rule, offers_of_lists
from fcdeploy.run.features import read_features, unit_rows
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition, visit_to_write
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, Shapes
from fcdeploy.systems.pse_gcn.flow import clusters
from fcdeploy.systems.ve_gcn.decode import best_candidates, score_candidates
from fcdeploy.systems.ve_gcn.edges import Edges, edges_of_rows, sum_over_edges
from fcdeploy.systems.ve_gcn.inputs import candidate_batches, candidates_of, ignored_faces
from fcdeploy.systems.ve_gcn.spec import ENGINE_ROWS

EDGES_BLOCK = 65536
TYPICAL_ROW = (
    1.3  # entries of a row of the graph, in lists of 1: some faces list others that do not list them
)
CONFIDENCE_BLOCK = 4096
UNIT_BLOCK = 65536
ENCODE_BLOCK = 4096
CONNECT_BLOCK = 2048
LINK_BLOCK = 65536


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    _, _, peaks = peaks_of_faces(run)
    links = short_links(run, peaks)
    return clusters(run, links)


def peaks_of_faces(run: Run) -> tuple[Artifact, Artifact, Artifact]:
    """The lists in which links are looked for, every face's confidence, and the one that it may be linked to."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = nearest_neighbors(run, vectors, cells)
    vertex = confidences(run, vectors, cells, knn)
    features, lists = vectors, knn
    if run.settings.transforms:
        features = transformed_features(run, vertex)
        cells = partition(run, "transformed_cells", features)
        lists = transformed_neighbors(run, features, cells)
    if "edge" in run.engines.weights:
        peaks = connected_peaks(run, features, cells, lists, vertex)
    else:
        peaks = nearest_peaks(run, lists, vertex)
    return lists, vertex, peaks


def assign(run: Extended) -> Rule:
    """Link new faces to the stored face of higher confidence that the networks choose, if it is near enough.

    One that is linked to none goes with the nearest stored face of lower confidence that has no nearer link.
    """
    lists, vertex, peaks = peaks_of_faces(run)
    k = run.settings.links.k
    stored, confidence = lists["sims"][: run.n, :k], vertex["confidence"][: run.n]
    linked = (peaks["ids"][: run.n] != NO_LINK) & is_short(run, peaks["sims"][: run.n])
    reached, floor = np.where(linked, peaks["sims"][: run.n], np.float32(-2)), stored.min(axis=1)

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids, sims = np.ascontiguousarray(lists["ids"][rows, :k]), lists["sims"][rows, :k]
        chosen, near = peaks["ids"][rows], peaks["sims"][rows]
        taken = (chosen != NO_LINK) & is_short(run, near)
        denser = (ids == chosen[:, None]).argmax(axis=1)
        wanted = np.where(is_short(run, sims), sims, np.float32(-3))
        follower = place_of_follower(
            ids, wanted, confidence, vertex["confidence"][rows], reached, floor, sims
        )
        return offers_of_lists(ids, sims, np.where(taken, denser, follower), run.n)

    return rule


def evidence(run: Run, kept: Mapping[str, Artifact]) -> Accepted:
    """Each face's neighbor of higher confidence, whatever tau is, and the lists that it was chosen from."""
    lists = "transformed_knn" if run.settings.transforms else "knn"
    peaks = kept["connected" if "edge" in run.engines.weights else "nearest"]
    return Accepted(lambda: links_from(peaks["ids"], peaks["sims"]), SIMILARITY, lists)


def neighbors(run: Run) -> Artifact:
    """The kNN lists of the features, with which a run begins."""
    vectors = read_features(run)
    return nearest_neighbors(run, vectors, partition(run, "cells", vectors))


@step("knn")
def nearest_neighbors(run: Run, vectors: Artifact, cells: Partition) -> Artifact:
    """The nearest neighbors of the input features, most similar first; similarities are clipped, as published."""
    k = run.settings.input_k
    if "knn" in run.given:
        return lists_from_file(run, "knn", run.given["knn"], vectors, k, cells, "kNN")
    return find_neighbors(run, "knn", vectors, k, cells, text="kNN", clip=True, above=run.settings.links.tau)


def edges_of(run: Run, name: str, lists: Artifact, k: int, th_sim: float) -> Artifact:
    """The graph of the first k entries of lists, see ``Edges``; a block reads all lists and holds its own rows."""

    def block(rows: np.ndarray) -> Arrays:
        counts, ids, sims = edges_of_rows(
            lists["ids"], lists["sims"], int(rows[0]), int(rows[-1]) + 1, k, th_sim
        )
        return {"counts": counts, "ids": ids, "sims": sims}

    return run.compute(
        Stage(
            name=name,
            text="edges",
            block=block,
            shapes={
                "starts": ((run.n,), np.int64),
                "counts": ((run.n,), np.int32),
                "ids": ((None,), np.int32),
                "sims": ((None,), np.float32),
            },
            made_from=(lists,),
            settings={"k": k, "th_sim": th_sim},
            rows=run.n,
            size=EDGES_BLOCK,
            scratch=True,
            about=int(TYPICAL_ROW * k * run.n),
        )
    )


def edges_in(artifact: Artifact) -> Edges:
    return Edges(*(artifact[part] for part in ("starts", "counts", "ids", "sims")))


@step("confidence")
def confidences(run: Run, vectors: Artifact, cells: Partition, knn: Artifact) -> Artifact:
    """GCN-V: the confidence of every face, (n,) float32, and where it is needed its hidden feature, (n, h) float32.

    One graph convolution: means over edges, a sparse product, and then a pass over rows.
    """
    graph, hidden = run.settings.graph, run.settings.transforms
    edges = edges_of(run, "edges", knn, graph.k, graph.th_sim)

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        faces = np.ascontiguousarray(faces)
        feeds = {
            "features": vectors.array[faces],
            "connected": sum_over_edges(edges_in(edges), faces, vectors.array),
        }
        found = run.finite(engine.run(feeds), faces, "confidence")
        return found if hidden else {"confidence": found["confidence"]}

    width = run.engines.weights["vertex"]["hidden"]
    shapes: Shapes = {
        "confidence": ((run.n,), np.float32),
        **({"hidden": ((run.n, width), np.float32)} if hidden else {}),
    }
    return run.compute(
        Stage(
            name="confidence",
            text="confidence",
            block=block,
            shapes=shapes,
            made_from=(vectors, knn),
            settings={"k": graph.k, "th_sim": graph.th_sim, "hidden": hidden},
            passes=("confidence",),
            through=(edges,),
            rows=run.n,
            size=CONFIDENCE_BLOCK,
            visit=visit_to_write(cells, run.n, shapes),
            carry=rows_stay,
        )
    )


def transformed_features(run: Run, vertex: Artifact) -> Artifact:
    """GCN-V's hidden features as unit vectors, (n, h) float32; a feature of zeros stays one."""

    def block(faces: np.ndarray) -> Arrays:
        return {"transformed": unit_rows(vertex["hidden"][faces])}

    return run.compute(
        Stage(
            name="transformed",
            text="transformed features",
            block=block,
            shapes={"transformed": vertex.shapes["hidden"]},
            made_from=(vertex,),
            rows=run.n,
            size=UNIT_BLOCK,
            scratch=True,
        )
    )


@step("transformed_knn")
def transformed_neighbors(run: Run, features: Artifact, cells: Partition) -> Artifact:
    """The nearest neighbors among transformed features."""
    links = run.settings.links
    return find_neighbors(
        run,
        "transformed_knn",
        features,
        links.k,
        cells,
        text="kNN of transformed",
        clip=False,
        above=links.tau,
    )


def nearest_peaks(run: Run, lists: Artifact, vertex: Artifact) -> Artifact:
    """Each face's nearest face of higher confidence: ids (n,) int32, NO_LINK where there is none, and sims (n,)."""
    k = run.settings.links.k

    def make() -> Arrays:
        ids, sims = np.empty(run.n, dtype=np.int32), np.empty(run.n, dtype=np.float32)
        for block in blocks_of(run.n, LINK_BLOCK):
            ids[block], sims[block] = link_to_denser(
                lists["ids"][block, :k], lists["sims"][block, :k], vertex["confidence"], block.start
            )
        return {"ids": ids, "sims": sims}

    def rows(faces: np.ndarray) -> Arrays:
        of = lists["ids"][faces, :k], lists["sims"][faces, :k], vertex["confidence"], int(faces[0])
        return dict(zip(("ids", "sims"), link_to_denser(*of), strict=True))

    return run.collect("nearest", make, made_from=(lists, vertex), settings={"k": k}, scratch=True, rows=rows)


@step("connect")
def connected_peaks(
    run: Run, features: Artifact, cells: Partition, lists: Artifact, vertex: Artifact
) -> Artifact:
    """Each face's neighbor of higher confidence that GCN-E finds best: ids (n,) int32 and sims (n,) float32.

    The nearest one where there is no other, and for the faces of lowest confidence; NO_LINK where there is none.
    """
    settings = run.settings.edge
    k = run.settings.links.k
    edges = edges_of(run, "connected_edges", lists, k, settings.th_sim)
    tables = encoded_tables(run, features)
    ignored = ignored_in(run, vertex, settings.ignore_ratio)

    def block(faces: np.ndarray, encode: Engine, convolve: Engine, score: Engine) -> Arrays:
        ids, sims, confidence = lists["ids"][:, :k], lists["sims"], vertex["confidence"]
        found = candidates_of(ids, confidence, np.ascontiguousarray(faces))
        place = np.zeros(len(faces), dtype=np.int64)
        some = np.flatnonzero(found.counts)
        place[some] = found.places[found.starts[some]]
        asked = np.flatnonzero((found.counts > 1) & ~ignored["ignored"][faces])
        if len(asked):
            origin = encode.run({"features": np.zeros((1, features.array.shape[1]), dtype=np.float32)})
            run.check_row(origin)
            chosen = candidates_of(ids, confidence, np.ascontiguousarray(faces[asked]))
            logits = np.empty((len(chosen.faces), 2), dtype=np.float32)
            batches = candidate_batches(
                edges_in(edges), chosen, rows=ENGINE_ROWS, most=run.options.batch or len(asked)
            )
            engines = {"encode": encode, "convolve": convolve, "score": score}
            for part, scored in score_candidates(engines, tables.arrays, origin, batches):
                logits[chosen.starts[part.start] : chosen.starts[part.stop]] = scored
            run.check_finite(logits, np.repeat(chosen.centres, chosen.counts), "logit")
            place[asked] = chosen.places[best_candidates(logits, chosen.starts)]
        linked = found.counts > 0
        return {
            "ids": np.where(linked, ids[faces, place], np.int32(NO_LINK)),
            "sims": np.where(linked, sims[faces, place], np.float32(0)),
        }

    return run.compute(
        Stage(
            name="connected",
            text="connectivity",
            block=block,
            shapes={"ids": ((run.n,), np.int32), "sims": ((run.n,), np.float32)},
            made_from=(features, lists, vertex),
            settings={"k": k, "th_sim": settings.th_sim, "ignore_ratio": settings.ignore_ratio},
            passes=("encode", "convolve", "score"),
            through=(edges, tables, ignored),
            rows=run.n,
            size=CONNECT_BLOCK,
            visit=cells,
            carry=unless_changed(lists.name, lists, k),
        )
    )


def encoded_tables(run: Run, features: Artifact) -> Artifact:
    """What each face brings to GCN-E wherever it is a candidate: two tables (n, h) float32."""
    width = run.engines.weights["edge"]["hidden"]

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        return run.finite(engine.run({"features": features.array[faces]}), faces, "encoded face")

    return run.compute(
        Stage(
            name="encoded",
            text="encoding",
            block=block,
            shapes=dict.fromkeys(("own", "near"), ((run.n, width), np.float32)),
            made_from=(features,),
            passes=("encode",),
            rows=run.n,
            size=ENCODE_BLOCK,
            scratch=True,
        )
    )


def ignored_in(run: Run, vertex: Artifact, ratio: float) -> Artifact:
    """Which faces GCN-E is not asked about, (n,) bool."""

    def make() -> Arrays:
        return {"ignored": ignored_faces(vertex["confidence"][: run.n], ratio)}

    def rows(faces: np.ndarray) -> Arrays:
        rank = int(ratio * run.n)  # among the stored faces
        least = np.partition(vertex["confidence"][: run.n], rank)[rank] if rank < run.n else np.inf
        return {"ignored": vertex["confidence"][faces] < least}

    return run.collect(
        "ignored", make, made_from=(vertex,), settings={"ratio": ratio}, scratch=True, rows=rows
    )


@step("links")
def short_links(run: Run, peaks: Artifact) -> Artifact:
    """Links shorter than 1 - tau, strictly: ids (m, 2) int32 and sims (m,) float32.

    Distances are rounded to float32 and compared in float64, as published.
    """
    tau = run.settings.links.tau

    def make() -> Arrays:
        pairs, sims = [], []
        for block in blocks_of(run.n, LINK_BLOCK):
            ids, near = peaks["ids"][block], peaks["sims"][block]
            kept = np.flatnonzero((ids != NO_LINK) & is_short(run, near))
            pairs.append(np.stack([block.start + kept, ids[kept]], axis=1).astype(np.int32))
            sims.append(near[kept])
        return {"ids": np.concatenate(pairs), "sims": np.concatenate(sims)}

    return run.collect("links", make, made_from=(peaks,), settings={"tau": tau})


def is_short(run: Run, sims: np.ndarray) -> np.ndarray:
    """Which links of similarities ``sims`` are short enough, bool."""
    short: np.ndarray = (np.float32(1) - sims).astype(np.float64) < 1 - run.settings.links.tau
    return short
