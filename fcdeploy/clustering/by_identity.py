"""Clusters measured identity by identity: for sets of other people, drawn again or of another size."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.metrics import PrecisionRecall
from fcdeploy.data.labels import renumber

EVERYBODY_ONCE = 1.0


@dataclass(frozen=True)
class Spread:
    """How the faces of each identity are spread over clusters; faces of unknown identity are not in it.

    Entry e says that ``faces[e]`` faces of identity ``identity[e]`` are in cluster ``cluster[e]``, all (m,) int64;
    sizes: faces of each identity, (p,) int64; clusters: how many there are.
    """

    identity: np.ndarray
    cluster: np.ndarray
    faces: np.ndarray
    sizes: np.ndarray
    clusters: int

    @property
    def largest(self) -> int:
        """The faces of known identity in the largest cluster."""
        return int(np.bincount(self.cluster, self.faces).max())

    def measures(
        self, others: float = 1.0, weights: np.ndarray | float = EVERYBODY_ONCE
    ) -> tuple[PrecisionRecall, PrecisionRecall]:
        """Return pairwise and BCubed precision and recall of a set in which people occur ``weights`` (p,) times.

        others: by how many times a face meets other people's faces more often than here. In a set of twice as many
        people, of each person's pairs there are as many as here, and each face has twice as many others that it can be
        wrongly joined with: 2. With 1 and everybody once the figures are those of ``evaluate``. A person who occurs
        twice counts as two people that are never joined with each other.
        """
        often = np.broadcast_to(np.asarray(weights, np.float64), self.sizes.shape)
        of_cell = often[self.identity]
        weighted = of_cell * self.faces
        in_cluster = np.bincount(self.cluster, weighted, self.clusters)
        strangers = others * np.maximum(
            in_cluster[self.cluster] - weighted, 0
        )  # whom a face of an entry meets
        right = float((weighted * (self.faces - 1)).sum())
        wrong = float((weighted * strangers).sum())
        true = float((often * self.sizes * (self.sizes - 1)).sum())
        total = float(weighted.sum())
        pairwise = PrecisionRecall(
            right / (right + wrong) if right + wrong else 1.0, right / true if true else 1.0
        )
        if not total:
            return pairwise, PrecisionRecall(1.0, 1.0)
        precise = float((weighted * (self.faces / (self.faces + strangers))).sum() / total)
        complete = float((weighted * (self.faces / self.sizes[self.identity])).sum() / total)
        return pairwise, PrecisionRecall(precise, complete)

    def drawn(self, draws: int, seed: int, others: float = 1.0) -> Iterator[tuple[float, float]]:
        """Yield pairwise F and BCubed F of ``draws`` sets of as many people, drawn from these with replacement."""
        rng = np.random.default_rng(seed)
        people = len(self.sizes)
        for _ in range(draws):
            weights = np.bincount(rng.integers(0, people, people), minlength=people).astype(np.float64)
            pairwise, bcubed = self.measures(others, weights)
            yield pairwise.f, bcubed.f


def spread_of(labels: np.ndarray, identity: np.ndarray) -> Spread:
    """Return how identities are spread over clusters; both (n,) int64.

    A face of identity -1 is left out; one of label -1 is a cluster of its own.
    """
    known = identity >= 0
    labels, identity = labels[known].astype(np.int64), renumber(identity[known])
    alone = np.flatnonzero(labels < 0)
    labels[alone] = labels.max(initial=-1) + 1 + np.arange(len(alone))
    labels = renumber(labels)
    clusters = int(labels.max(initial=-1)) + 1
    cells, faces = np.unique(identity * max(clusters, 1) + labels, return_counts=True)
    return Spread(
        cells // max(clusters, 1),
        cells % max(clusters, 1),
        faces.astype(np.int64),
        np.bincount(identity),
        clusters,
    )
