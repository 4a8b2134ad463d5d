"""Clusters and faces that a person should look at first, told without labels.

A flag is a suspicion with a definition, not a verdict. What each means, and on which faces its thresholds were chosen,
is in docs/how-to/confidence.md.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.confidence import (
    NO_CLUSTER,
    Joins,
    joins_of,
    near_of,
    nearest_clusters,
    support_between,
)
from fcdeploy.clustering.evidence import Evidence
from fcdeploy.clustering.groups import offsets_from_sizes

GARBAGE, MEGA, CHAIN, DUPLICATE, COPIES, STRAY, BORDERLINE = (1 << bit for bit in range(7))
FLAGS = {
    "garbage": GARBAGE,
    "mega-cluster": MEGA,
    "chain": CHAIN,
    "duplicate": DUPLICATE,
    "copies": COPIES,
    "stray": STRAY,
    "borderline": BORDERLINE,
}
SEPARATOR = ";"  # between flags in a cell

# Chosen on other people's faces than those that figures are of: benchmarks/notes/confidence.md.
LOOSE = 0.5  # cohesion below which neighbors do not hold a cluster together
UNLIKE = 0.36  # of the usual similarity of nearest faces: below it the pairs of a cluster are hardly alike
MEGA_UNLIKE = 0.45  # the same for clusters of MEGA_SHARE of all faces and MEGA_LEAST or more
MEGA_SHARE, MEGA_LEAST = 0.01, 50
CLOSE = 0.06  # of the usual similarity: mean margin below which a cluster is as near to another one
CHAIN_SIDE, CHAIN_SHARE = 5, 0.1  # faces, and share of the cluster, that hang on one link
CHAIN_SUPPORT = 0.2  # share of their neighbors that speak for it, at most
CHAIN_WEAK = 0.1  # quantile of the strength of all links, below which it is weak
DUPLICATE_SUPPORT, DUPLICATE_LEAST = (
    0.5,
    2,
)  # of neighbors that speak for joining two clusters, of so many faces
DUPLICATE_STRONG = 0.75  # quantile of the links between clusters, above which one counts
DUPLICATE_NEAR = 0.5  # of what links inside clusters have that are hardly weak: how strong it is at least
COPIES_SHARE, COPIES_LEAST = 0.5, 10  # of a cluster's rows that are copies of one face
RANDOM = 0.9  # share of random directions that are a stray by their nearest face


@dataclass(frozen=True)
class FaceMeasures:
    """How sure the place of each of n faces is; float32, NaN where nothing says it.

    confidence: strength of the link that joined it to the larger part of its cluster; support: see ``Joins``; margin:
    see ``Near``; similarity: mean cosine to the others of its cluster; flags: uint8, bits of FLAGS.
    """

    confidence: np.ndarray
    support: np.ndarray
    margin: np.ndarray
    similarity: np.ndarray
    flags: np.ndarray


@dataclass(frozen=True)
class ClusterMeasures:
    """How sure each of c clusters is, by label; float32, NaN where nothing says it.

    size: (c,) int64, rows, copies included. weakest: strength of its weakest link, at which it would come apart.
    cohesion: mean share of its faces' first neighbors that are in it. similarity: mean cosine of all its pairs.
    nearest: (c,) int64, the other cluster that its lists lead to most often, -1 for none; share: of their entries.
    flags: (c,) uint8; duplicate_of: (c,) int64, the cluster that seems to be of the same person, -1 for none.
    """

    size: np.ndarray
    weakest: np.ndarray
    cohesion: np.ndarray
    similarity: np.ndarray
    nearest: np.ndarray
    share: np.ndarray
    flags: np.ndarray
    duplicate_of: np.ndarray


def names_of(flags: int) -> str:
    """Say flags by their names, as in "garbage;chain"; nothing for none."""
    return SEPARATOR.join(name for name, bit in FLAGS.items() if flags & bit)


@dataclass(frozen=True)
class Confidence:
    """How sure clusters are; strength: what ``confidence`` and ``weakest`` are, a similarity or a probability."""

    faces: FaceMeasures
    clusters: ClusterMeasures
    strength: str


def measured(evidence: Evidence, labels: np.ndarray, counts: np.ndarray, sizes: np.ndarray) -> Confidence:
    """Measure how sure the clusters of n faces are, and flag those to look at.

    labels: (n,) int64, -1 in no cluster; counts: (n,) rows that go with each face, itself included; sizes: (c,) rows of
    each cluster. Neither blocks nor threads change the outcome.
    """
    clusters = len(sizes)
    own = np.bincount(labels[labels >= 0], minlength=clusters)
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    starts = offsets_from_sizes(own)
    joins = joins_of(evidence)
    near = near_of(evidence.lists, labels, own)
    nearest, share = nearest_clusters(evidence.lists.ids, labels, order, starts, clusters)
    of_link = labels[evidence.links[:, 0]]
    weakest = np.full(clusters, np.nan, np.float32)
    np.fmin.at(weakest, of_link, evidence.strength)
    cohesion = means_of(near.intra, labels, own)
    similarity = means_of(evidence.within, labels, own)
    usual = float(np.median(evidence.near)) if len(evidence.near) else 0.0
    several = own > 1
    flags = np.zeros(clusters, np.uint8)
    flags[several & ((cohesion < LOOSE) | (similarity < UNLIKE * usual))] |= GARBAGE
    least = max(MEGA_LEAST, MEGA_SHARE * len(labels))
    flags[(own >= least) & (similarity < MEGA_UNLIKE * usual)] |= MEGA
    flags[chained(evidence, joins, of_link, own)] |= CHAIN
    # A list that holds nobody else says how near others may be at most.
    margins = np.where(near.beside, near.margin, near.best)
    flags[several & (means_of(margins, labels, own) < CLOSE * usual)] |= BORDERLINE
    duplicate_of = duplicates(evidence, labels, own, order, starts)
    flags[duplicate_of >= 0] |= DUPLICATE
    most = np.zeros(clusters, np.int64)
    np.maximum.at(most, labels[labels >= 0], counts[labels >= 0])
    flags[(most >= COPIES_LEAST) & (most >= COPIES_SHARE * sizes)] |= COPIES
    strays = np.where(evidence.near <= random_nearest(len(labels), evidence.dim), STRAY, 0).astype(np.uint8)
    faces = FaceMeasures(joins.face_strength, joins.face_support, near.margin, evidence.within, strays)
    measures = ClusterMeasures(sizes, weakest, cohesion, similarity, nearest, share, flags, duplicate_of)
    return Confidence(faces, measures, evidence.name)


def chained(evidence: Evidence, joins: Joins, of_link: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the clusters in which a part of some size hangs on one weak link that its neighbors do not speak for.

    of_link: (f,) int64, the cluster of each link; sizes: (c,) faces.
    """
    if not len(of_link):
        return of_link
    part = (joins.side >= CHAIN_SIDE) & (joins.side >= CHAIN_SHARE * sizes[of_link])
    weak = evidence.strength < np.quantile(evidence.strength, CHAIN_WEAK)
    return np.unique(of_link[part & weak & (joins.support < CHAIN_SUPPORT)])


def duplicates(
    evidence: Evidence, labels: np.ndarray, sizes: np.ndarray, order: np.ndarray, starts: np.ndarray
) -> np.ndarray:
    """Return the cluster (c,) int64 that each one seems to be a part of, by the strongest link that would join them.

    NO_CLUSTER for none. The smaller of two is a duplicate of the larger, of equally large ones the later. order and
    starts: as of ``nearest_clusters``.
    """
    found = np.full(len(sizes), NO_CLUSTER, np.int64)
    if not len(evidence.beyond):
        return found
    strong = evidence.beyond_strength >= np.quantile(evidence.beyond_strength, DUPLICATE_STRONG)
    if len(evidence.strength):
        strong &= evidence.beyond_strength >= DUPLICATE_NEAR * np.quantile(evidence.strength, CHAIN_WEAK)
    ends = labels[evidence.beyond[strong]]
    swap = (sizes[ends[:, 0]] > sizes[ends[:, 1]]) | (
        (sizes[ends[:, 0]] == sizes[ends[:, 1]]) & (ends[:, 0] < ends[:, 1])
    )
    ends[swap] = ends[swap][:, ::-1]
    ends = ends[sizes[ends[:, 0]] >= DUPLICATE_LEAST]
    support = support_between(evidence.lists.ids, labels, ends, sizes, order, starts)
    chosen = np.flatnonzero(support >= DUPLICATE_SUPPORT)[::-1]  # the strongest is written last
    found[ends[chosen, 0]] = ends[chosen, 1]
    return found


def random_nearest(n: int, d: int) -> float:
    """Return below which cosine the nearest of n random directions in d dimensions is for RANDOM of all directions.

    Faces are not spread over all directions: a random one is at most as near to them. For d below 2 nothing is.
    """
    if d < 2:
        return -np.inf
    angle = np.linspace(0, np.pi, 1 << 16)
    density = np.sin(angle) ** (d - 2)
    share = np.cumsum(density) / density.sum()  # of directions within this angle
    return float(np.cos(angle[np.searchsorted(share, 1 - RANDOM ** (1 / max(1, n - 1)))]))


def means_of(values: np.ndarray, labels: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the mean (c,) float32 of each cluster's ``values`` (n,), NaN where it has a NaN or no face."""
    placed = labels >= 0
    sums = np.bincount(labels[placed], values[placed].astype(np.float64), minlength=len(sizes))
    with np.errstate(invalid="ignore"):
        return (sums / np.where(sizes > 0, sizes, np.nan)).astype(np.float32)
