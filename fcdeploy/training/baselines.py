"""Clusters without a network, from lists of nearest neighbors: what a learned system has to beat.

Memory is that of the lists (n, k), never of all pairs of faces.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.graph.cells import cell_count
from fcdeploy.graph.density import density_from_sums, sum_similarities
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.partition import make_cells
from fcdeploy.graph.search import Room, search_named
from fcdeploy.packages import import_package
from fcdeploy.systems.training_types import Tunable, Value, thresholds

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Values = Mapping[str, Value]
LabelsOf = Callable[
    [Values], np.ndarray
]  # values of the settings -> labels (n,) int64, every face in a cluster

COSINES = thresholds(0.2, 0.95, 0.01)
EPS = thresholds(0.06, 0.7, 0.02)
MIN_SAMPLES = (2, 3, 5, 8, 12)
TREE_SAMPLES = (1, 2, 4)
CLUSTER_SIZES = (2, 3, 5, 8, 12, 20)
SCIKIT_LEARN_FACES = (
    200_000  # beyond which all settings of one of its methods take more than some ten minutes
)
GRAPH_BYTES = (
    128  # per entry of the lists: both directions in float64 and int32, in the copies that are made of them
)
APART = 2.0  # cosine distance of opposite directions, the largest there is
CLOSEST = 1e-7  # a stored zero is no neighbor in a sparse matrix


@dataclass(frozen=True)
class Method:
    """One way to cluster without a network.

    settings: what is tried of it, all combinations; the first is the threshold that a curve is drawn over. opened:
    makes what all settings have in common. most: the number of faces beyond which it takes too long; bytes: memory
    per entry of the lists. load: imports what it needs, which is no part of its time.
    """

    name: str
    title: str
    settings: tuple[Tunable, ...]
    opened: Callable[[KnnGraph], LabelsOf]
    most: int | None = None
    bytes: int = 0
    load: Callable[[], object] = lambda: None

    def trials(self, lists: KnnGraph) -> Iterator[tuple[dict[str, Value], np.ndarray, float]]:
        """Yield the values of each setting, the labels (n,) int64 and the seconds that one clustering takes.

        Raises MissingDependencyError when the method's package is not installed.
        """
        self.load()
        started = time.perf_counter()
        labels_of = self.opened(lists)
        common = time.perf_counter() - started
        for combination in itertools.product(*(one.values for one in reversed(self.settings))):
            by_key = dict(zip([one.key for one in reversed(self.settings)], combination, strict=True))
            values = {one.key: by_key[one.key] for one in self.settings}
            started = time.perf_counter()
            labels = labels_of(values)
            yield values, labels, common + time.perf_counter() - started

    @property
    def count(self) -> int:
        """How many combinations of settings are tried."""
        return int(np.prod([len(one.values) for one in self.settings]))


def nearest_neighbors(
    vectors: np.ndarray, k: int, memory: int, advance: Callable[[int], None] = lambda faces: None
) -> KnnGraph:
    """Return the k nearest neighbors of unit rows (n, d) float32, each face itself first.

    memory: in bytes, for the index; advance is called with the number of faces done.
    """
    n = len(vectors)
    k = min(k, n)
    search = search_named("auto", n)
    cells = make_cells(vectors, cell_count(n)) if search.in_cells else None
    order = np.arange(n, dtype=np.int32) if cells is None else cells.order()
    ids, sims = np.empty((n, k), np.int32), np.empty((n, k), np.float32)
    with search.open(vectors, cells, k, Room(memory)) as find:
        for start in range(0, n, search.block):
            faces = order[start : start + search.block]
            ids[faces], sims[faces] = find(faces)
            advance(len(faces))
    return KnnGraph(ids, sims)


def components(lists: KnnGraph) -> LabelsOf:
    """Join faces of which one is in the list of the other, where they are similar enough."""
    faces = np.repeat(np.arange(len(lists.ids), dtype=np.int32), lists.ids.shape[1])
    return joined(len(lists.ids), faces, lists.ids.ravel(), lists.sims.ravel())


def denser_links(lists: KnnGraph) -> LabelsOf:
    """Join each face with its nearest denser face, where they are similar enough."""
    return joined(len(lists.ids), *links_to_denser(lists))


def links_to_denser(lists: KnnGraph) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each face that has a denser neighbor, that neighbor, and their similarity, all (m,)."""
    sums = np.empty(len(lists.ids), dtype=np.float32)
    sum_similarities(lists.sims, sums)
    denser, best = link_to_denser(lists.ids, lists.sims, density_from_sums(sums), 0)
    faces = np.flatnonzero(denser != NO_LINK)
    return faces, denser[faces], best[faces]


def joined(n: int, faces: np.ndarray, others: np.ndarray, similarity: np.ndarray) -> LabelsOf:
    """Join n faces by those links (m,) whose similarity reaches the value of "cosine"."""

    def labels_of(values: Values) -> np.ndarray:
        kept = similarity >= np.array(values["cosine"], np.float64)
        forest = new_forest(n)
        join(forest, faces[kept], others[kept])
        return labels_from_forest(forest)

    return labels_of


def dbscan(lists: KnnGraph) -> LabelsOf:
    """Cluster by scikit-learn's DBSCAN: faces are neighbors when one is in the list of the other, within eps."""
    cluster = scikit_learn("cluster")
    graph = scikit_learn("neighbors").sort_graph_by_row_values(
        distances_of(lists), copy=False, warn_when_not_sorted=False
    )

    def labels_of(values: Values) -> np.ndarray:
        fitted = cluster.DBSCAN(**values, metric="precomputed").fit(graph)
        return noise_singled_out(fitted.labels_)

    return labels_of


def hdbscan(lists: KnnGraph) -> LabelsOf:
    """Cluster by scikit-learn's HDBSCAN: on the distances of faces of which one is in the list of the other."""
    cluster = scikit_learn("cluster")
    graph = connected(distances_of(lists))

    def labels_of(values: Values) -> np.ndarray:
        fitted = cluster.HDBSCAN(**values, metric="precomputed", copy=True).fit(graph)
        return noise_singled_out(fitted.labels_)

    return labels_of


def scikit_learn(module: str) -> ModuleType:
    """Import a module of scikit-learn; raises MissingDependencyError when it is not installed."""
    return import_package(f"sklearn.{module}", "scikit-learn", "pip install scikit-learn")


def distances_of(lists: KnnGraph) -> "csr_matrix":
    """Return the cosine distances between faces of which one is in the list of the other, (n, n) float64.

    Symmetric, with the diagonal; what is in no list is not stored.
    """
    from scipy.sparse import csr_matrix  # scikit-learn needs it

    n, k = lists.ids.shape
    near = np.maximum(1 - lists.sims.ravel().astype(np.float64), CLOSEST)
    graph = csr_matrix((near, lists.ids.ravel(), np.arange(0, n * k + 1, k)), (n, n))
    return graph.maximum(graph.T).tocsr()


def connected(graph: "csr_matrix") -> "csr_matrix":
    """Join the parts of a graph of distances at the largest distance, without which HDBSCAN has no tree."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import connected_components

    count, part = connected_components(graph, directed=False)
    if count == 1:
        return graph
    first = np.unique(part, return_index=True)[1]
    rows, columns = np.full(count - 1, first[0]), first[1:]
    bridges = csr_matrix((np.full(count - 1, APART), (rows, columns)), graph.shape)
    return graph.maximum(bridges).maximum(bridges.T).tocsr()


def noise_singled_out(labels: np.ndarray) -> np.ndarray:
    """Return labels (n,) int64 in which each face labelled -1 is a cluster of its own."""
    labels = labels.astype(np.int64)
    noise = np.flatnonzero(labels < 0)
    labels[noise] = labels.max(initial=-1) + 1 + np.arange(len(noise))
    return labels


METHODS = {
    one.name: one
    for one in (
        Method("components", "components", (Tunable("cosine", COSINES),), components),
        Method("denser", "links to denser faces", (Tunable("cosine", COSINES),), denser_links),
        Method(
            "dbscan",
            "DBSCAN",
            (Tunable("eps", EPS), Tunable("min_samples", MIN_SAMPLES)),
            dbscan,
            SCIKIT_LEARN_FACES,
            GRAPH_BYTES,
            lambda: scikit_learn("cluster"),
        ),
        Method(
            "hdbscan",
            "HDBSCAN",
            (
                Tunable("min_cluster_size", CLUSTER_SIZES),
                Tunable("min_samples", TREE_SAMPLES),
                Tunable("cluster_selection_method", ("eom", "leaf")),
            ),
            hdbscan,
            SCIKIT_LEARN_FACES,
            GRAPH_BYTES,
            lambda: scikit_learn("cluster"),
        ),
    )
}
