"""L-GCN from features to labels; the algorithm, top to bottom."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdeploy.clustering.propagation import NO_CLUSTER, Cuts, pool_links, propagate_and_tell
from fcdeploy.data.labels import renumber
from fcdeploy.graph.alike import FEWEST
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.subgraphs import own_positions
from fcdeploy.systems.l_gcn.decode import probability, score_links
from fcdeploy.systems.l_gcn.inputs import subgraph_batches
from fcdeploy.systems.limits import EXPORT, nearest_similarities, note_divided, note_united, persons_divided

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

ENCODE_BLOCK = 4096
SCORE_BLOCK = 2048
ENGINE_ROWS = 4096  # faces of sub-graphs an engine call: full-speed matrix products that stay in the cache
UNIT_BLOCK = 65536
MAX_SIZE = "propagation.max_size"
ACCEPTED = 0.5  # the score of a link that the network finds more likely than not
UNASKED = 0.5  # share of the faces, joined whatever the network says, that is worth a note

Made = dict[str, Any]  # what a product was made of
Work = Callable[[np.ndarray], dict[str, np.ndarray]]


def cluster(run: "Run") -> np.ndarray:
    """Return the labels (n,) int64 of a run's faces."""
    run.read_features()
    with run.stage("knn"):
        knn, knn_made_of = nearest_neighbors(run)
    with run.stage("links"):
        links = scored_links(run, knn, knn_made_of)
    with run.stage("clusters"):
        return propagated_labels(run, knn, links["ids"], links["probability"])


def nearest_neighbors(run: "Run") -> tuple[KnnGraph, Made]:
    """The lists that sub-graphs are made of: hops[0] neighbors and the face itself, by cosine similarity.

    Lists of a file are sorted by similarity if it holds any, as in learn-to-cluster; ids alone stay as they come.
    """
    k = run.settings.neighborhood.k
    if run.knn_file is not None:
        return run.lists_from_file("knn.npz", run.knn_file, k, "kNN")
    return run.knn(
        "knn.npz",
        unit_vectors(run),
        k,
        run.made_of_features,
        "kNN",
        clip=True,
        above=0.5,
        cells=lambda: unit_cells(run),
    )


def unit_vectors(run: "Run") -> np.ndarray:
    """The features divided by their 2-norms, (n, d) float32, whether or not the network takes them so."""
    if run.features.normalize:
        return run.vectors

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        def work(faces: np.ndarray) -> dict[str, np.ndarray]:
            rows = run.vectors[faces]
            return {"unit": rows / np.linalg.norm(rows, axis=1, keepdims=True)}

        yield work

    return run.make("unit", run.made_of_features, worker, text="unit vectors", block=UNIT_BLOCK)["unit"]


def unit_cells(run: "Run") -> Cells:
    """The partition of the features by direction."""
    if run.features.normalize:
        return run.cells
    return run.partition("unit_cells", unit_vectors(run), {"unit": run.made_of_features})


def scored_links(run: "Run", knn: KnnGraph, knn_made_of: Made) -> dict[str, np.ndarray]:
    """The link from every face to each of its one-hop neighbors: ids (m, 2) int32 and probability (m,) float32.

    Links of a face stand together, in the order of its list; those of face i at i hops[0].
    """
    near = run.settings.neighborhood
    made_of = {
        "knn": knn_made_of,
        **run.made_of_features,
        "engine": run.bundle.digest(),
        "hops": list(near.hops),
        "active": near.active,
    }

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        tables = encoded_tables(run)
        own = own_positions(knn.ids, np.arange(run.n, dtype=np.int32))
        with contextlib.ExitStack() as stack:
            names = ("encode", "convolve", "score")
            engines = {name: stack.enter_context(run.engine(name, len(names))) for name in names}
            origin = engines["encode"].run({"features": np.zeros((1, run.features.dim), dtype=np.float32)})
            run.check_row(origin)

            def work(faces: np.ndarray) -> dict[str, np.ndarray]:
                faces = np.ascontiguousarray(faces)
                logits = np.empty((len(faces), near.hops[0], 2), dtype=np.float32)
                most = run.options.batch or len(faces)
                batches = subgraph_batches(knn.ids, own, faces, near, rows=ENGINE_ROWS, most=most)
                for part, scored in score_links(engines, tables, origin, batches):
                    logits[part] = scored
                run.check_finite(logits.reshape(len(faces), -1), faces, "logit")
                others = knn.ids[faces][np.arange(knn.k) != own[faces][:, None]]
                ids = np.stack([np.repeat(faces, near.hops[0]), others], axis=1)
                return {"ids": ids, "probability": probability(logits).ravel()}

            yield work

    if not near.hops[0]:  # a single face
        nothing = {"ids": np.empty((0, 2), dtype=np.int32), "probability": np.empty(0, dtype=np.float32)}
        return run.keep("links.npz", made_of, lambda: nothing)
    order = unit_cells(run).order()
    links = run.make(
        "links.npz", made_of, worker, text="links", order=order, block=SCORE_BLOCK, each=near.hops[0]
    )
    run.drop("encoded")
    return links


def encoded_tables(run: "Run") -> dict[str, np.ndarray]:
    """What each face brings to the sub-graphs it is in: two tables (n, 512) float32."""

    @contextlib.contextmanager
    def worker() -> Iterator[Work]:
        with run.engine("encode") as engine:
            yield lambda faces: run.finite(
                engine.run({"features": run.vectors[faces]}), faces, "encoded face"
            )

    made_of = {**run.made_of_features, "engine": run.bundle.digest()}
    return run.make("encoded", made_of, worker, text="encoding", block=ENCODE_BLOCK)


def propagated_labels(run: "Run", knn: KnnGraph, ids: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Clusters of the scored links; a face in no link is one of its own."""
    after = run.settings.propagation
    labels, cuts = propagate_and_tell(
        run.n,
        *pool_links(ids[:, 0], ids[:, 1], scores, after.pooling),
        max_size=after.max_size,
        step=after.step,
        max_rounds=after.max_rounds,
        threshold=float(scores.min(initial=1.0)),
        wanted=ACCEPTED,
    )
    alone = np.flatnonzero(labels == NO_CLUSTER)
    labels[alone] = run.n + np.arange(len(alone))
    labels = renumber(labels)
    tell(run, knn, labels, cuts)
    return labels


def tell(run: "Run", knn: KnnGraph, labels: np.ndarray, cuts: Cuts) -> None:
    """Tell whom max_size cut, whom it joined unasked, and what was left of the rounds."""
    if not run.final:
        return
    after = run.settings.propagation
    if cuts.united:
        note_united(run, *cuts.left(), MAX_SIZE, after.max_rounds)
    persons = persons_divided(cuts, run.vectors, nearest_similarities(run.vectors, knn))
    note_divided(run, labels, persons, MAX_SIZE, after.max_size)
    if cuts.unasked >= max(FEWEST, run.n * UNASKED):
        run.note(
            f"{cuts.unasked:,} faces are in clusters of at most {MAX_SIZE} = {after.max_size:,} faces that were made "
            "of all links, those that the network refuses, too: only what is larger comes apart, as published; lower "
            f"{MAX_SIZE} in the recipe and {EXPORT}.",
            clustered_unasked=cuts.unasked,
        )
