"""Batches for PSE-GCN's passes, gathered from tables."""

from collections.abc import Iterator, Mapping

import numpy as np

from fcdeploy.engine.batching import Rows, groups_by_size
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.neighborhoods import connect_neighborhoods, gather_neighborhoods
from fcdeploy.systems.pse_gcn.spec import TABLES, NeighborhoodSettings


def neighborhood_batches(
    tables: Mapping[str, np.ndarray],
    ranked: np.ndarray,
    knn: KnnGraph,
    centres: np.ndarray,
    near: NeighborhoodSettings,
    scratch: np.ndarray,
    *,
    rows: int,
    most: int,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray | Rows]]]:
    """Yield the neighborhoods of ``centres`` in groups of nearly equal size, ready for the engine.

    tables: the encode pass's outputs, (n, 2d) each; ranked: (n, k) re-ranked ids; knn: the original lists, of which
    the first near.active columns count; scratch: ``new_scratch(n)``; rows: nodes a group at most; most: neighborhoods
    a group at most.
    Yields (positions in centres, feeds); every position comes once, in no particular order.
    """
    nodes, sizes = gather_neighborhoods(ranked, centres, *near.hops, scratch)
    for group in groups_by_size(sizes, rows, most):
        width = int(sizes[group[0]])
        faces = np.ascontiguousarray(nodes[group, :width])
        feeds: dict[str, np.ndarray | Rows] = {name: Rows(tables[name], faces) for name in TABLES}
        feeds["out"] = tables["out"][faces[:, 0]]
        feeds["adj"] = adjacent = np.empty((len(group), width, width), dtype=np.float32)
        connect_neighborhoods(faces, sizes[group], knn.ids, knn.sims, near.active, adjacent)
        feeds["mask"] = (faces >= 0).astype(np.float32)
        yield group, feeds
