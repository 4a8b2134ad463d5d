"""Figures of labelled faces, and of the faces to be clustered, from which the settings of a training follow."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcdeploy.data.features import Features
from fcdeploy.systems.habits import Labelled
from fcdeploy.training.identities import deal_faces

SAMPLED = 1500  # faces whose neighbors are counted
PAIRS = 20_000  # pairs of faces that are compared
BLOCK_BYTES = 256 << 20  # of similarities at a time
WIDE = 4096  # nearest neighbors of a face, in all sets together, among which those of its own set are found
MOST = 39  # neighbors that are counted, as many as lists of 40 have beside the face itself
LEVELS = np.linspace(0.01, 0.99, 50)  # quantiles at which two distributions are compared


@dataclass(frozen=True)
class Crowd:
    """What faces have around them in one set.

    faces: how many the set has; alike: (m,) int64, ascending: of a sample of them, how many of a face's nearest
    neighbors look like it (``MOST`` at most).
    """

    faces: int
    alike: np.ndarray

    @property
    def alone(self) -> float:
        """The share of faces that no other looks like."""
        return float((self.alike == 0).mean())

    @property
    def typical(self) -> float:
        """The median number of look-alikes."""
        return float(np.median(self.alike))

    def unlike(self, other: "Crowd") -> float:
        """How far two crowds are from each other: the mean difference of their quantiles, look-alikes in doublings.

        Once with each face weighing alike, and once with each person, of whom there are fewer the more look-alikes
        their faces have: otherwise the few people with many faces decide.
        """
        return sum(
            float(np.abs(mine - theirs).mean())
            for mine, theirs in zip(self._quantiles(), other._quantiles(), strict=True)
        )

    def _quantiles(self) -> tuple[np.ndarray, np.ndarray]:
        upto = np.cumsum(1 / (1 + self.alike))  # people, about, a face being a part of one
        of_people = np.searchsorted(upto, LEVELS * upto[-1])
        doublings = np.log2(1 + self.alike)
        return np.quantile(doublings, LEVELS), doublings[of_people]


@dataclass(frozen=True)
class Dealt:
    """A way of splitting the labelled faces, and what faces then have around them."""

    albums: int
    strays: float
    crowd: Crowd


class Sample:
    """Some labelled faces, and the neighbors of each that are nearest to it in all sets together."""

    def __init__(self, features: Features, identity: np.ndarray, shots: np.ndarray, seed: int = 0) -> None:
        """identity, shots: (n,), numbered from 0, see ``identities_of`` and ``alike_shots``."""
        self.features, self.identity, self.shots, self.seed = features, identity, shots, seed
        self.chosen = sampled(features.n, np.random.default_rng([seed, 4]))
        found = list(_nearest(features, self.chosen, WIDE))
        self.ids, self.sims = (np.concatenate(parts) for parts in zip(*found, strict=True))

    def neighbors(self, albums: int, strays: float) -> tuple[np.ndarray, np.ndarray]:
        """Return similarities (m, <= MOST) of nearest neighbors, most similar first, and which are the same person.

        Neighbors are those in a face's own one of so many ``albums``; similarities of what an album lacks are -1.
        """
        album = deal_faces(self.identity, albums, self.seed, self.shots, strays)
        mine = np.where(album[self.ids] == album[self.chosen][:, None], self.sims, np.float32(-1))
        order = np.argsort(-mine, axis=1, kind="stable")[:, :MOST]
        same = self.identity[np.take_along_axis(self.ids, order, 1)] == self.identity[self.chosen][:, None]
        return np.take_along_axis(mine, order, 1), same

    def dealt(self, albums: int, strays: float, boundary: float) -> Dealt:
        """Return what faces have around them when they are split so; see ``crowd_of``."""
        sims, _ = self.neighbors(albums, strays)
        return Dealt(albums, strays, _crowd(self.features.n // albums, sims, boundary))


def labelled_figures(sample: Sample, albums: int, strays: float) -> Labelled:
    """Return what labelled faces are like; ``boundary`` is that of neighbors in so many ``albums``."""
    features, identity = sample.features, sample.identity
    sims, same = sample.neighbors(albums, strays)
    return Labelled(
        features.n,
        int(identity.max()) + 1,
        np.sort(np.bincount(identity)),
        similarity_within(features, identity, sample.seed),
        boundary_between(sims[sims > -1], same[sims > -1]),
    )


def crowd_of(features: Features, boundary: float, seed: int = 0) -> Crowd:
    """Return what faces nobody has labelled have around them: how many are as similar as ``boundary`` or more."""
    chosen = sampled(features.n, np.random.default_rng([seed, 5]))
    found = [sims for _, sims in _nearest(features, chosen, MOST)]
    return _crowd(features.n, np.concatenate(found), boundary)


def boundary_between(sims: np.ndarray, same: np.ndarray) -> float:
    """Return the similarity at and above which most neighbors are the same person, and below which most are not.

    sims: (m,) similarities of neighbors; same: (m,) bool. Both kinds count alike, however many there are of each; the
    lowest of equally good similarities is taken, and 0.5 where there is one kind only.
    """
    if same.all() or not same.any():
        return 0.5
    order = np.argsort(-sims, kind="stable")
    right = np.cumsum(same[order]) / same.sum() - np.cumsum(~same[order]) / (~same).sum()
    return round(float(sims[order][len(right) - 1 - np.argmax(right[::-1])]), 2)


def similarity_within(features: Features, identity: np.ndarray, seed: int) -> float:
    """Return the median similarity of two faces of one person, people weighing alike; 1 where nobody has two."""
    rng = np.random.default_rng([seed, 6])
    order = np.argsort(identity, kind="stable")
    sizes = np.bincount(identity)
    starts = np.cumsum(sizes) - sizes
    several = np.flatnonzero(sizes > 1)
    if not len(several):
        return 1.0
    people = rng.choice(several, min(PAIRS, 50 * len(several)))
    first = rng.integers(0, sizes[people])
    second = (first + 1 + rng.integers(0, sizes[people] - 1)) % sizes[people]
    left, right = (features.take(order[starts[people] + at]) for at in (first, second))
    return round(float(np.median(np.einsum("ij,ij->i", left, right))), 2)


def sampled(n: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the faces that are looked at, (m,) int64, ascending: all of a few, ``SAMPLED`` of many."""
    return np.sort(rng.choice(n, min(n, SAMPLED), replace=False))


def _nearest(features: Features, chosen: np.ndarray, most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Give the nearest neighbors of ``chosen`` faces and their similarities, (b, <= most) each, in blocks of faces."""
    size = max(1, BLOCK_BYTES // (4 * features.n))
    most = min(most, features.n - 1)
    for start in range(0, len(chosen), size):
        faces = chosen[start : start + size]
        own = features.take(faces)
        sims = np.empty((len(faces), features.n), np.float32)
        for at, rows in features.blocks():
            sims[:, at : at + len(rows)] = own @ rows.T
        sims[np.arange(len(faces)), faces] = -np.inf
        ids = np.argpartition(-sims, most - 1, axis=1)[:, :most]
        yield ids.astype(np.int32), np.take_along_axis(sims, ids, 1)


def _crowd(faces: int, sims: np.ndarray, boundary: float) -> Crowd:
    return Crowd(faces, np.sort((sims >= boundary).sum(axis=1)))
