"""Batches for GCN-D's passes: the graphs of proposals."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.pairs import connect_members

WIDTHS = ((32, 4), (64, 8), (256, 16))  # up to this size, graphs are padded to a multiple of this
LARGE = 64


@dataclass(frozen=True)
class Proposals:
    """Proposal p holds the faces nodes[offsets[p]:offsets[p + 1]], ascending.

    offsets (p + 1,) int64, nodes int32; ks (p,) int32, the length of the kNN lists that its edges come from; sets (p,)
    int32, which of the recipe's parameter sets it is of.
    """

    offsets: np.ndarray
    nodes: np.ndarray
    ks: np.ndarray
    sets: np.ndarray

    def __len__(self) -> int:
        return len(self.ks)

    @property
    def sizes(self) -> np.ndarray:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Graphs:
    """Some proposals side by side, padded to one size.

    at: (b,) which ones; members (b, w) int32, padded with -1; adj (b, w, w) float32 and degrees (b, w) float64, see
    ``connect_members``.
    """

    at: np.ndarray
    members: np.ndarray
    adj: np.ndarray
    degrees: np.ndarray


def padded_sizes(sizes: np.ndarray) -> np.ndarray:
    """Return the size that each graph is padded to; it depends on nothing but the graph's own size."""
    padded = -(-sizes // 32) * 32
    for most, step in reversed(WIDTHS):
        padded = np.where(sizes <= most, -(-sizes // step) * step, padded)
    return padded


def proposal_graphs(
    proposals: Proposals, chosen: np.ndarray, knn: KnnGraph, weighted: bool, *, rows: int, most: int
) -> Iterator[Graphs]:
    """Yield the graphs of the proposals ``chosen`` (m,), those padded to one size together.

    rows: nodes a group at most (or a single graph); most: graphs a group at most. Every proposal comes once.
    """
    sizes = proposals.sizes[chosen]
    padded = padded_sizes(sizes)
    order = np.argsort(padded, kind="stable")
    widths, begins = np.unique(padded[order], return_index=True)
    ends = np.append(begins, len(order))[1:]
    for width, begin, end in zip(widths, begins, ends, strict=True):
        fits = max(1, min(most, rows // int(width)))
        for start in range(begin, end, fits):
            group = order[start : min(start + fits, end)]
            at = chosen[group]
            members = np.full((len(at), width), -1, dtype=np.int32)
            _fill_members(proposals.offsets, proposals.nodes, at, members)
            adj = np.empty((len(at), width, width), dtype=np.float32)
            degrees = np.empty((len(at), width), dtype=np.float64)
            connect_members(
                members, sizes[group], proposals.ks[at], knn.ids, knn.sims, weighted, adj, degrees
            )
            yield Graphs(at, members, adj, degrees)


@njit(cache=True, nogil=True)
def _fill_members(offsets: np.ndarray, nodes: np.ndarray, at: np.ndarray, members: np.ndarray) -> None:
    for row in range(len(at)):
        begin = offsets[at[row]]
        for t in range(begin, offsets[at[row] + 1]):
            members[row, t - begin] = nodes[t]


def seeds_of(graphs: Graphs, kind: str) -> np.ndarray:
    """Return the node (b,) of each graph that a segmentation starts from.

    kind: "degree", the node of the largest row sum, the first of equal ones; or "random", a node that the proposal's
    faces decide on.
    """
    if kind == "degree":
        return np.argmax(graphs.degrees, axis=1)
    real = graphs.members >= 0
    mixed = np.where(real, graphs.members, 0).astype(np.uint64).sum(axis=1) * np.uint64(0x9E3779B97F4A7C15)
    return ((mixed >> np.uint64(33)) % real.sum(axis=1).astype(np.uint64)).astype(np.int64)
