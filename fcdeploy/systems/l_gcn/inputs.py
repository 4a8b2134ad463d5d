"""Batches for L-GCN's passes: sub-graphs in portions."""

from collections.abc import Iterator

import numpy as np

from fcdeploy.graph.subgraphs import Subgraphs, gather_subgraphs
from fcdeploy.systems.l_gcn.spec import NeighborhoodSettings

GATHERED = 64  # sub-graphs gathered at a time


def subgraph_batches(
    ids: np.ndarray, own: np.ndarray, faces: np.ndarray, near: NeighborhoodSettings, *, rows: int, most: int
) -> Iterator[tuple[slice, Subgraphs]]:
    """Yield the sub-graphs of ``faces`` (m,) int32 in portions for the engine: (where in faces, sub-graphs), in order.

    ids: (n, k) int32 kNN lists; own: (n,) int32, see ``own_positions``; rows: per engine call at most (or those of a
    single sub-graph); most: sub-graphs a portion at most.
    """
    for start in range(0, len(faces), GATHERED):
        graphs = gather_subgraphs(ids, own, faces[start : start + GATHERED], near.hops, near.active)
        sizes = graphs.within[:, 2]
        begin = 0
        while begin < len(sizes):
            fits = max(1, int(np.searchsorted(np.cumsum(sizes[begin:]), rows, side="right")))
            end = min(begin + min(fits, most), len(sizes))
            yield slice(start + begin, start + end), graphs[begin:end]
            begin = end
