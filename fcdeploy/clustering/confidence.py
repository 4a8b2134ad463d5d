"""How sure a run's clusters are, face by face and cluster by cluster, without labels.

All of it follows from the links that hold clusters together and from neighbor lists, in O(n k): links are taken again
from the strongest on, and whenever one joins two parts the smaller part is asked whether its neighbors lie in the
other. Only as many entries of a list count as there are others in the cluster (or in both parts): a person of three
faces cannot fill a list of eighty.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.evidence import Evidence
from fcdeploy.data.mapped import release_pages
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.knn import KnnGraph

NO_CLUSTER = -1
BLOCK = 65536


@dataclass(frozen=True)
class Joins:
    """How clusters came together, link by link, strongest first.

    side: (f,) int32, faces of the smaller of the two parts that a link joined; support: (f,) float32, the share of
    what its faces list outside of it that lies in the larger part, see the module. Of faces, (n,) float32: strength of
    the link that joined a face to the larger part of its cluster, the weakest of its way into the cluster's core, and
    its support; for the core itself, those of the first link. NaN for a face without a link.
    """

    side: np.ndarray
    support: np.ndarray
    face_strength: np.ndarray
    face_support: np.ndarray


def joins_of(evidence: Evidence) -> Joins:
    """Take the links of a forest again, from the strongest on."""
    n, f = len(evidence.lists.ids), len(evidence.links)
    side, support = np.zeros(f, np.int32), np.zeros(f, np.float32)
    strengths, supports = np.full(n, np.nan, np.float32), np.full(n, np.nan, np.float32)
    _rejoin(
        evidence.links,
        evidence.strength,
        evidence.lists.ids,
        np.arange(n, dtype=np.int32),
        np.arange(n, dtype=np.int32),
        np.ones(n, np.int32),
        side,
        support,
        strengths,
        supports,
    )
    return Joins(side, support, strengths, supports)


@njit(cache=True, nogil=True)
def _rejoin(
    links: np.ndarray,
    strength: np.ndarray,
    ids: np.ndarray,
    part: np.ndarray,
    following: np.ndarray,
    sizes: np.ndarray,
    side: np.ndarray,
    support: np.ndarray,
    strengths: np.ndarray,
    supports: np.ndarray,
) -> None:
    """Fill side, support (f,), strengths and supports (n,); part, following (n,): each face, sizes (n,): ones.

    Faces of a part are a ring of ``following``, so that the smaller part alone is walked and renumbered.
    """
    k = ids.shape[1]
    for t in range(len(links)):
        small, large = part[links[t, 0]], part[links[t, 1]]
        if sizes[small] > sizes[large] or (sizes[small] == sizes[large] and small < large):
            small, large = large, small
        reach = min(k, sizes[small] + sizes[large] - 1)
        inside, outside = 0, 0
        face = small
        for _ in range(sizes[small]):
            seen = 0
            for p in range(k):
                other = ids[face, p]
                if other == face or other < 0:
                    continue
                if seen == reach:
                    break
                seen += 1
                if part[other] == large:
                    inside += 1
                elif part[other] != small:
                    outside += 1
            face = following[face]
        side[t] = sizes[small]
        support[t] = inside / (inside + outside) if inside + outside else 0.0
        for _ in range(sizes[small]):
            part[face] = large
            strengths[face] = strength[t]
            supports[face] = support[t]
            face = following[face]
        if sizes[large] == 1:
            strengths[large] = strength[t]
            supports[large] = support[t]
        sizes[large] += sizes[small]
        following[small], following[large] = following[large], following[small]


@njit(cache=True, nogil=True, parallel=True)
def _margins(
    ids: np.ndarray,
    sims: np.ndarray,
    start: int,
    labels: np.ndarray,
    sizes: np.ndarray,
    margin: np.ndarray,
    intra: np.ndarray,
    best: np.ndarray,
    beside: np.ndarray,
) -> None:
    """Fill the arrays of ``Near`` (n,) for the faces of a block of lists that begins at ``start``."""
    m, k = ids.shape
    for row in prange(m):
        face = start + row
        label = labels[face]
        others = sizes[label] - 1 if label >= 0 else 0
        own, strange, last = -np.inf, -np.inf, np.inf
        seen, inside = 0, 0
        for p in range(k):
            other = ids[row, p]
            if other == face or other < 0:
                continue
            sim = np.float64(sims[row, p])
            same = label >= 0 and labels[other] == label
            if seen < others:
                seen += 1
                inside += same
            if same:
                own = max(own, sim)
            else:
                strange = max(strange, sim)
            last = min(last, sim)
        beside[face] = strange > -np.inf
        if last < np.inf:
            best[face] = max(own, strange)
            if others > 0:
                intra[face] = inside / seen
                margin[face] = (own if own > -np.inf else last) - (strange if strange > -np.inf else last)


@dataclass(frozen=True)
class Near:
    """What neighbor lists say of faces, (n,) float32 each, NaN where they say nothing.

    margin: best similarity to the own cluster minus best to any other; where a list holds only one of them, the last
    similarity of the list stands for the other, so that it is the least (or the most) that the margin may be. intra:
    share of the first neighbors that are in the own cluster, as many as the cluster has other faces. best: similarity
    of the nearest neighbor. beside: bool, whether a face that is not of the own cluster is in the list.
    """

    margin: np.ndarray
    intra: np.ndarray
    best: np.ndarray
    beside: np.ndarray


def near_of(lists: KnnGraph, labels: np.ndarray, sizes: np.ndarray) -> Near:
    """Read neighbor lists against labels (n,) int64, -1 in no cluster; sizes: (clusters,) of these faces."""
    n = len(labels)
    margin, intra, best = (np.full(n, np.nan, np.float32) for _ in range(3))
    found = Near(margin, intra, best, np.zeros(n, bool))
    for start in range(0, n, BLOCK):
        ids, sims = (np.asarray(part[start : start + BLOCK]) for part in (lists.ids, lists.sims))
        _margins(ids, sims, start, labels, sizes, found.margin, found.intra, found.best, found.beside)
        release_pages(lists.ids, lists.sims)
    return found


@njit(cache=True, nogil=True)
def nearest_clusters(
    ids: np.ndarray, labels: np.ndarray, order: np.ndarray, starts: np.ndarray, clusters: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find the other cluster that most entries of each cluster's lists lead to, and which share of all they are.

    order: (m,) the faces of clusters, those of cluster c at order[starts[c]:starts[c + 1]]. Returns (clusters,) int64,
    NO_CLUSTER where lists lead to none, of equally many the first that was met, and (clusters,) float32.
    """
    nearest, share = np.full(clusters, NO_CLUSTER, np.int64), np.zeros(clusters, np.float32)
    counts = np.zeros(clusters, np.int32)
    met = np.empty(clusters, np.int64)
    for cluster in range(clusters):
        found, total = 0, 0
        for at in range(starts[cluster], starts[cluster + 1]):
            face = order[at]
            for p in range(ids.shape[1]):
                other = ids[face, p]
                if other == face or other < 0:
                    continue
                total += 1
                label = labels[other]
                if label < 0 or label == cluster:
                    continue
                if counts[label] == 0:
                    met[found] = label
                    found += 1
                counts[label] += 1
        most = 0
        for at in range(found):
            if counts[met[at]] > most:
                most = counts[met[at]]
                nearest[cluster] = met[at]
            counts[met[at]] = 0
        if total:
            share[cluster] = most / total
    return nearest, share


@njit(cache=True, nogil=True)
def support_between(
    ids: np.ndarray,
    labels: np.ndarray,
    pairs: np.ndarray,
    sizes: np.ndarray,
    order: np.ndarray,
    starts: np.ndarray,
) -> np.ndarray:
    """Return how far the neighbors of one cluster speak for joining it to another, (m,) float32; see ``Joins.support``.

    pairs: (m, 2) int64, the cluster that is asked and the other; sizes: (c,) faces; order, starts: as of
    ``nearest_clusters``.
    """
    support = np.zeros(len(pairs), np.float32)
    for at in range(len(pairs)):
        asked, other = pairs[at, 0], pairs[at, 1]
        reach = sizes[asked] + sizes[other] - 1
        inside, outside = 0, 0
        for t in range(starts[asked], starts[asked + 1]):
            seen = 0
            for p in range(ids.shape[1]):
                near = ids[order[t], p]
                if near == order[t] or near < 0:
                    continue
                if seen == reach:
                    break
                seen += 1
                if labels[near] == other:
                    inside += 1
                elif labels[near] != asked:
                    outside += 1
        if inside + outside:
            support[at] = inside / (inside + outside)
    return support
