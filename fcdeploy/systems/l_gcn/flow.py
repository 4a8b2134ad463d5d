"""L-GCN from features to labels; the algorithm, top to bottom."""

from collections.abc import Iterator, Mapping

import numpy as np

from fcdeploy.clustering.evidence import PROBABILITY, Accepted
from fcdeploy.clustering.propagation import NO_CLUSTER, Cuts, pool_links, propagate_and_tell
from fcdeploy.data.labels import renumber
from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.alike import FEWEST
from fcdeploy.graph.subgraphs import own_positions
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import blocks_of
from fcdeploy.run.carried import unless_changed
from fcdeploy.run.extended import Extended, Offers, Rule, offers_of_lists
from fcdeploy.run.features import read_features, unit_rows
from fcdeploy.run.neighbors import lists_from_file, partition
from fcdeploy.run.neighbors import nearest_neighbors as find_neighbors
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run, step
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays
from fcdeploy.systems.l_gcn.decode import probability, score_links
from fcdeploy.systems.l_gcn.inputs import subgraph_batches
from fcdeploy.systems.l_gcn.spec import WIDTHS
from fcdeploy.systems.limits import EXPORT, nearest_similarities, note_divided, note_united, persons_divided

ENCODE_BLOCK = 4096
SCORE_BLOCK = 2048
ENGINE_ROWS = 4096  # faces of sub-graphs per engine call: full-speed matrix products that stay in the cache
UNIT_BLOCK = 65536
OWN_BLOCK = 65536
MAX_SIZE = "propagation.max_size"
ACCEPTED = 0.5  # the score of a link that the network finds more likely than not
UNASKED = 0.5  # share of the faces, joined whatever the network says, that is worth a note


def cluster(run: Run) -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    vectors = read_features(run)
    unit = unit_vectors(run, vectors)
    cells = partition(run, "cells", unit)
    knn = nearest_neighbors(run, unit, cells)
    links = scored_links(run, vectors, cells, knn)
    return propagated_labels(run, vectors, knn, links)


def evidence(run: Run, kept: Mapping[str, Artifact]) -> Accepted:
    """All scored links, pooled as clusters are made of them; those inside clusters are what holds these together."""

    def links() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        a, b, scores = pooled_links(run, kept["links"])
        yield np.stack([a, b], axis=1), scores

    return Accepted(links, PROBABILITY, "knn")


def assign(run: Extended) -> Rule:
    """Let new faces go with the stored neighbor to which the network gives the most probable link, above one half.

    The propagation that makes clusters of scored links is not repeated.
    """
    vectors = read_features(run)
    unit = unit_vectors(run, vectors)
    cells = partition(run, "cells", unit)
    knn = nearest_neighbors(run, unit, cells)
    links = scored_links(run, vectors, cells, knn)

    def rule(rows: np.ndarray, labels: np.ndarray) -> Offers:
        ids, scores = links["ids"][rows], links["probability"][rows]
        if not ids.shape[1]:
            return offers_of_lists(ids, scores, np.full(len(rows), -1), run.n, np.full(len(rows), np.nan))
        best = scores.argmax(axis=1)
        value = scores[np.arange(len(rows)), best]
        return offers_of_lists(ids, scores, np.where(value > ACCEPTED, best, -1), run.n, value)

    return rule


def neighbors(run: Run) -> Artifact:
    """The kNN lists of the features, with which a run begins."""
    unit = unit_vectors(run, read_features(run))
    return nearest_neighbors(run, unit, partition(run, "cells", unit))


def unit_vectors(run: Run, vectors: Artifact) -> Artifact:
    """The features divided by their 2-norms, (n, d) float32, whether or not the network takes them so."""
    if run.features.normalize:
        return vectors

    def block(faces: np.ndarray) -> Arrays:
        return {"unit": unit_rows(vectors.array[faces])}

    return run.compute(
        Stage(
            name="unit",
            text="unit vectors",
            block=block,
            shapes={"unit": ((run.n, run.features.dim), np.float32)},
            made_from=(vectors,),
            rows=run.n,
            size=UNIT_BLOCK,
            scratch=True,
        )
    )


@step("knn")
def nearest_neighbors(run: Run, unit: Artifact, cells: Partition) -> Artifact:
    """The lists that sub-graphs are made of: hops[0] neighbors and the face itself, by cosine similarity.

    Lists of a file are sorted by similarity if it holds any, as in learn-to-cluster; ids alone stay as they come.
    """
    k = run.settings.neighborhood.k
    if "knn" in run.given:
        return lists_from_file(run, "knn", run.given["knn"], unit, k, cells, "kNN")
    return find_neighbors(run, "knn", unit, k, cells, text="kNN", clip=True, above=0.5)


@step("links")
def scored_links(run: Run, vectors: Artifact, cells: Partition, knn: Artifact) -> Artifact:
    """The links from every face to its one-hop neighbors: ids (n, hops[0]) int32 and probability (n, hops[0]) float32.

    In the order of the face's list.
    """
    near = run.settings.neighborhood
    one = near.hops[0]
    tables, own = encoded_tables(run, vectors), own_places(run, knn)

    def block(faces: np.ndarray, encode: Engine, convolve: Engine, score: Engine) -> Arrays:
        faces, ids = np.ascontiguousarray(faces), knn["ids"]
        engines = {"encode": encode, "convolve": convolve, "score": score}
        logits = np.empty((len(faces), one, 2), dtype=np.float32)
        if one:  # not a single face
            origin = encode.run({"features": np.zeros((1, run.features.dim), dtype=np.float32)})
            run.check_row(origin)
            most = run.options.batch or len(faces)
            batches = subgraph_batches(ids, own["own"], faces, near, rows=ENGINE_ROWS, most=most)
            for part, scored in score_links(engines, tables.arrays, origin, batches):
                logits[part] = scored
            run.check_finite(logits.reshape(len(faces), -1), faces, "logit")
        others = ids[faces][np.arange(ids.shape[1]) != own["own"][faces][:, None]]
        return {"ids": others.reshape(len(faces), one), "probability": probability(logits)}

    return run.compute(
        Stage(
            name="links",
            text="links",
            block=block,
            shapes={"ids": ((run.n, one), np.int32), "probability": ((run.n, one), np.float32)},
            made_from=(vectors, knn),
            settings={"hops": list(near.hops), "active": near.active},
            passes=("encode", "convolve", "score"),
            through=(tables, own),
            rows=run.n,
            size=SCORE_BLOCK,
            visit=cells,
            carry=unless_changed("knn", knn),
        )
    )


def own_places(run: Run, knn: Artifact) -> Artifact:
    """Where each face stands in its own list, (n,)."""

    def make() -> Arrays:
        blocks = (np.arange(part.start, part.stop, dtype=np.int32) for part in blocks_of(run.n, OWN_BLOCK))
        return {"own": np.concatenate([rows(faces)["own"] for faces in blocks])}

    def rows(faces: np.ndarray) -> Arrays:
        return {"own": own_positions(knn["ids"][faces], faces)}

    return run.collect("own", make, made_from=(knn,), scratch=True, rows=rows)


def encoded_tables(run: Run, vectors: Artifact) -> Artifact:
    """What each face brings to the sub-graphs it is in: two tables (n, 512) float32."""

    def block(faces: np.ndarray, engine: Engine) -> Arrays:
        return run.finite(engine.run({"features": vectors.array[faces]}), faces, "encoded face")

    return run.compute(
        Stage(
            name="encoded",
            text="encoding",
            block=block,
            shapes=dict.fromkeys(("own", "near"), ((run.n, WIDTHS[0]), np.float32)),
            made_from=(vectors,),
            passes=("encode",),
            rows=run.n,
            size=ENCODE_BLOCK,
            scratch=True,
        )
    )


@step("clusters")
def propagated_labels(run: Run, vectors: Artifact, knn: Artifact, links: Artifact) -> np.ndarray:
    """Labels (n,) int64 of the clusters of scored links; a face in no link is one of its own."""
    after = run.settings.propagation
    scores = links["probability"].ravel()
    labels, cuts = propagate_and_tell(
        run.n,
        *pooled_links(run, links),
        max_size=after.max_size,
        step=after.step,
        max_rounds=after.max_rounds,
        threshold=float(scores.min(initial=1.0)),
        wanted=ACCEPTED,
    )
    alone = np.flatnonzero(labels == NO_CLUSTER)
    labels[alone] = run.n + np.arange(len(alone))
    labels = renumber(labels)
    tell(run, vectors, knn, labels, cuts)
    return labels


def pooled_links(run: Run, links: Artifact) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every pair of linked faces with one score, see ``pool_links``."""
    ids, scores = links["ids"], links["probability"].ravel()
    faces = np.repeat(np.arange(run.n, dtype=np.int32), ids.shape[1])
    return pool_links(faces, ids.ravel(), scores, run.settings.propagation.pooling)


def tell(run: Run, vectors: Artifact, knn: Artifact, labels: np.ndarray, cuts: Cuts) -> None:
    """Tell whom max_size cut, whom it joined unasked, and what was left of the rounds."""
    if not run.final:
        return
    after = run.settings.propagation
    if cuts.united:
        note_united(run, *cuts.left(), MAX_SIZE, after.max_rounds)
    persons = persons_divided(cuts, vectors.array, nearest_similarities(vectors.array, knn.lists))
    note_divided(run, labels, persons, MAX_SIZE, after.max_size)
    if cuts.unasked >= max(FEWEST, run.n * UNASKED):
        run.note(
            f"{cuts.unasked:,} faces are in components of at most {MAX_SIZE} = {after.max_size:,} faces, each of "
            "which became one cluster whatever the network says of its links, as published; a lower value splits them: "
            f"give --set {MAX_SIZE}=N, or lower it in the recipe and {EXPORT}.",
            clustered_unasked=cuts.unasked,
        )
