"""What of a run a person should see: some hundred clusters, pairs and faces out of all, chosen without labels."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from fcdeploy.clustering.flags import DUPLICATE, FLAGS, SEPARATOR, Confidence, names_of
from fcdeploy.clustering.groups import groups_from_labels
from fcdeploy.data.mapped import release_pages
from fcdeploy.runtime.evidence import Placed, rows_of_faces

LARGEST, LARGEST_FACES = 40, 24
FLAGGED, FLAGGED_FACES, FLAGGED_LINKS = 60, 12, 3
SUSPECTS, SUSPECT_FACES = 40, 8
SINGLES = 60
SAMPLE, SAMPLE_FACES = 50, 12
BLOCK = 4096  # single faces whose lists are read at a time


@dataclass(frozen=True)
class Pair:
    """Two faces by their rows, the clusters that they are in, and the strength (or similarity) between them."""

    a: int
    b: int
    clusters: tuple[int, int]
    strength: float


@dataclass(frozen=True)
class Sheet:
    """A cluster to look at: some of its faces, from the most to the least typical, and its measures.

    weakest, cohesion and similarity are NaN where nothing says them; links: its weakest ones, the weakest first.
    """

    cluster: int
    size: int
    faces: tuple[int, ...]
    flags: tuple[str, ...]
    weakest: float
    cohesion: float
    similarity: float
    nearest: int
    links: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Suspect:
    """Two clusters that may be of one person, the larger first, and the link that would join them."""

    large: Sheet
    small: Sheet
    link: Pair


@dataclass(frozen=True)
class Overview:
    """The sections of the page, each in the order in which it is shown."""

    largest: tuple[Sheet, ...]
    suspicious: tuple[Sheet, ...]
    suspects: tuple[Suspect, ...]
    singles: tuple[Pair, ...]
    sample: tuple[Sheet, ...]

    def faces(self) -> np.ndarray:
        """Return the rows (m,) int64 of all faces that are shown, ascending."""
        sheets = [*self.largest, *self.suspicious, *self.sample]
        for suspect in self.suspects:
            sheets += [suspect.large, suspect.small]
        pairs = [link for sheet in sheets for link in sheet.links]
        pairs += [*self.singles, *(suspect.link for suspect in self.suspects)]
        rows = [face for sheet in sheets for face in sheet.faces]
        rows += [face for pair in pairs for face in (pair.a, pair.b)]
        return np.unique(np.array(rows, np.int64))


class Clusters:
    """The clusters of a run by label: their rows, their measures and their links."""

    def __init__(self, placed: Placed, confidence: Confidence) -> None:
        self.placed, self.confidence = placed, confidence
        self._offsets, self._rows = groups_from_labels(placed.labels, 1)

    @property
    def count(self) -> int:
        return len(self._offsets) - 1

    @property
    def sizes(self) -> np.ndarray:
        """How many rows each cluster has, (c,) int64."""
        return np.diff(self._offsets)

    @cached_property
    def rows_of_faces(self) -> np.ndarray:
        """The row of each face that links are between, (n,) int64."""
        return rows_of_faces(self.placed.face)

    def rows(self, cluster: int) -> np.ndarray:
        """Return the rows (m,) of a cluster, ascending."""
        return self._rows[self._offsets[cluster] : self._offsets[cluster + 1]]

    def typical(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Return up to ``count`` of the rows of a cluster, evenly spread from the most to the least typical.

        Typical is who is similar to the others of the cluster; of equally typical ones the first comes first.
        """
        similarity = np.nan_to_num(self.confidence.faces.similarity[rows], nan=-2.0)
        ordered = rows[np.argsort(-similarity, kind="stable")]
        if len(ordered) <= count:
            return ordered
        return ordered[np.linspace(0, len(ordered) - 1, count).round().astype(np.int64)]

    @cached_property
    def _links_by_cluster(self) -> tuple[np.ndarray, np.ndarray]:
        links = self.placed.evidence.links
        of = self.placed.labels[self.rows_of_faces[links[:, 0]]]
        order = np.argsort(of, kind="stable")  # strongest first within a cluster
        return order, of[order]

    def links_of(self, cluster: int) -> np.ndarray:
        """Return the links that hold a cluster together, (m, 2) faces, the strongest first."""
        order, of = self._links_by_cluster
        begin, end = np.searchsorted(of, cluster, "left"), np.searchsorted(of, cluster, "right")
        return self.placed.evidence.links[order[begin:end]]

    def weakest_links(self, cluster: int, count: int) -> tuple[Pair, ...]:
        """Return the weakest links that hold a cluster together, the weakest first."""
        order, of = self._links_by_cluster
        begin, end = np.searchsorted(of, cluster, "left"), np.searchsorted(of, cluster, "right")
        return tuple(self.link(int(at)) for at in order[max(begin, end - count) : end][::-1])

    def link(self, at: int, *, beyond: bool = False) -> Pair:
        """Return link ``at`` of those inside clusters, or of those beyond, as a pair of rows."""
        evidence = self.placed.evidence
        links = evidence.beyond if beyond else evidence.links
        strength = evidence.beyond_strength if beyond else evidence.strength
        a, b = self.rows_of_faces[links[at]].tolist()
        return self.pair(a, b, float(strength[at]))

    def pair(self, a: int, b: int, strength: float) -> Pair:
        labels = self.placed.labels
        return Pair(a, b, (int(labels[a]), int(labels[b])), strength)

    def sheet(self, cluster: int, faces: int, links: int = 0) -> Sheet:
        """Return a cluster as it is shown, with up to so many of its faces and of its weakest links."""
        measures = self.confidence.clusters
        flags = names_of(int(measures.flags[cluster]))
        return Sheet(
            cluster,
            int(measures.size[cluster]),
            tuple(self.typical(self.rows(cluster), faces).tolist()),
            tuple(flags.split(SEPARATOR)) if flags else (),
            float(measures.weakest[cluster]),
            float(measures.cohesion[cluster]),
            float(measures.similarity[cluster]),
            int(measures.nearest[cluster]),
            self.weakest_links(cluster, links) if links else (),
        )


def overview_of(clusters: Clusters, seed: int = 0) -> Overview:
    """Choose what of a run's clusters is shown; the same for the same run and seed."""
    sizes = clusters.sizes
    largest_first = np.argsort(-sizes, kind="stable")
    several = largest_first[sizes[largest_first] > 1]
    drawn = np.random.default_rng(seed).permutation(len(several))[:SAMPLE]
    return Overview(
        tuple(clusters.sheet(one, LARGEST_FACES) for one in several[:LARGEST].tolist()),
        tuple(
            clusters.sheet(one, FLAGGED_FACES, FLAGGED_LINKS) for one in flagged(clusters, several).tolist()
        ),
        suspects_of(clusters),
        singles_near(clusters),
        tuple(clusters.sheet(one, SAMPLE_FACES) for one in several[drawn].tolist()),
    )


def flagged(clusters: Clusters, largest_first: np.ndarray) -> np.ndarray:
    """Return the flagged clusters to show, largest first, of each flag about equally many; duplicates are apart."""
    flags = clusters.confidence.clusters.flags[largest_first]
    bits = [bit for bit in FLAGS.values() if bit != DUPLICATE and (flags & bit).any()]
    chosen = np.zeros(len(flags), bool)
    for number, bit in enumerate(bits):
        share = -(-(FLAGGED - int(chosen.sum())) // (len(bits) - number))
        chosen[np.flatnonzero((flags & bit).astype(bool) & ~chosen)[:share]] = True
    return largest_first[chosen]


def suspects_of(clusters: Clusters) -> tuple[Suspect, ...]:
    """Return pairs of clusters that may be one person: those flagged so, by the strength of what would join them."""
    evidence, measures = clusters.placed.evidence, clusters.confidence.clusters
    ends = clusters.placed.labels[clusters.rows_of_faces[evidence.beyond]]
    flagged_so = (measures.duplicate_of[ends[:, 0]] == ends[:, 1]) | (
        measures.duplicate_of[ends[:, 1]] == ends[:, 0]
    )
    found = []
    for at in np.flatnonzero(flagged_so)[:SUSPECTS].tolist():
        small, large = sorted(ends[at].tolist(), key=lambda one: (measures.size[one], -one))
        link = clusters.link(at, beyond=True)
        found.append(
            Suspect(clusters.sheet(large, SUSPECT_FACES), clusters.sheet(small, SUSPECT_FACES), link)
        )
    return tuple(found)


def singles_near(clusters: Clusters) -> tuple[Pair, ...]:
    """Return single faces with the nearest face of a cluster, the most similar first.

    A face counts when the nearest of all others is in a cluster of two or more.
    """
    lists, labels, rows = clusters.placed.evidence.lists, clusters.placed.labels, clusters.rows_of_faces
    own = labels[rows]
    sizes = clusters.sizes
    alone = np.flatnonzero((own < 0) | (sizes[own] == 1))
    best: list[tuple[np.ndarray, ...]] = [
        (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))
    ]
    for start in range(0, len(alone), BLOCK):
        faces = alone[start : start + BLOCK]
        ids, sims = np.asarray(lists.ids[faces]), np.asarray(lists.sims[faces])
        others = (ids >= 0) & (ids != faces[:, None])
        at = others.argmax(axis=1)
        line = np.arange(len(faces))
        nearest = ids[line, at]
        placed = own[nearest]
        near = others[line, at] & (placed >= 0) & (sizes[placed] > 1)
        best.append((faces[near], nearest[near], sims[line, at][near]))
        release_pages(lists.ids, lists.sims)
    face, near_face, similarity = (np.concatenate(parts) for parts in zip(*best, strict=True))
    order = np.argsort(-similarity, kind="stable")[:SINGLES]
    return tuple(
        clusters.pair(int(rows[face[at]]), int(rows[near_face[at]]), float(similarity[at])) for at in order
    )
