"""Which people train a network and which tell how good it is: whole identities, never some faces of one."""

import numpy as np

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.data.features import Features
from fcdeploy.errors import InputError, counted

SHOTS_BLOCK = 1024  # faces compared with all of their identity at a time
UNEVEN = 0.5  # of the Dirichlet distribution: below 1, few albums have most of a person's faces


def identities_of(labels: np.ndarray) -> np.ndarray:
    """Number identities from 0: (n,) int64 -> (n,) int64; each face labelled -1 is an identity of its own."""
    labels = labels.copy()
    unknown = np.flatnonzero(labels == -1)
    labels[unknown] = labels.max(initial=0) + 1 + np.arange(len(unknown))
    return np.unique(labels, return_inverse=True)[1]


def split_identities(identity: np.ndarray, share: float, seed: int, where: str) -> np.ndarray:
    """Tell which faces are kept for validation, (n,) bool: all those of a random ``share`` of the identities.

    identity: (n,) from ``identities_of``. At least two identities are on either side, and on either side one that has
    two faces or more; only ``share`` 0 keeps nobody. Raises InputError, saying ``where`` they come from, when there
    are too few.
    """
    sizes = np.bincount(identity)
    several = int((sizes > 1).sum())
    needed = 2 if share else 1
    if len(sizes) < 2 * needed or several < needed:
        half = ", half of them for validation (--validation 0 does without)" if share else ""
        raise InputError(
            f"{where}: {counted(len(sizes), 'identity', 'identities')}, {several:,} of them with two faces or "
            "more; training needs at least "
            f"{2 * needed} and {needed}{half}."
        )
    kept = np.zeros(len(sizes), dtype=bool)
    if share:
        rng = np.random.default_rng([seed, 0])
        order = rng.permutation(len(sizes))
        # One with several faces first on each side: without pairs there is nothing to learn or to measure.
        order = np.concatenate([order[sizes[order] > 1], order[sizes[order] == 1]])
        order = np.concatenate([order[:1], order[2:][rng.permutation(len(order) - 2)], order[1:2]])
        kept[order[: min(max(2, round(share * len(order))), len(order) - 2)]] = True
    return kept[identity]


def deal_faces(
    identity: np.ndarray, albums: int, seed: int, shots: np.ndarray | None = None, strays: float = 0.0
) -> np.ndarray:
    """Deal faces into albums as different as real ones: of some people an album has many faces, of others few.

    identity: (n,) from ``identities_of``. Each identity's shares of the albums are drawn from a Dirichlet distribution,
    and its faces fall by these shares; those of one of ``shots`` (n,), numbered from 0, fall together. But a share of
    ``strays`` falls anywhere, one by one, where many are alone: real albums have people with a single face. Returns
    the album of each face, (n,) int32 of 0 to albums - 1.
    """
    rng = np.random.default_rng([seed, 3])
    shares = rng.dirichlet(np.full(albums, UNEVEN), int(identity.max(initial=0)) + 1)
    upto = np.cumsum(shares, axis=1)[:, :-1]
    shots = np.arange(len(identity)) if shots is None else shots
    drawn = rng.random((int(shots.max(initial=0)) + 1, 1))[shots]
    album = (drawn > upto[identity]).sum(axis=1, dtype=np.int32)
    stray = rng.random(len(identity)) < strays
    album[stray] = rng.integers(0, albums, stray.sum(), dtype=np.int32)
    return album


def alike_shots(features: Features, identity: np.ndarray) -> np.ndarray:
    """Number the groups of faces that look like shots of one moment, as frames of a video do: (n,) int32 from 0.

    Each face stands with the face of its identity that is most like it. What was photographed together is found
    together: dealt apart, an identity would be easier to find from few faces than it is. identity: (n,).
    """
    n = features.n
    nearest = np.arange(n, dtype=np.int32)
    order = np.argsort(identity, kind="stable").astype(np.int32)
    for members in np.split(order, np.flatnonzero(np.diff(identity[order])) + 1):
        if len(members) < 2:
            continue
        own = features.take(members)
        for start, stop in (
            (at, min(at + SHOTS_BLOCK, len(members))) for at in range(0, len(members), SHOTS_BLOCK)
        ):
            sims = own[start:stop] @ own.T
            sims[np.arange(stop - start), np.arange(start, stop)] = -np.inf
            nearest[members[start:stop]] = members[sims.argmax(axis=1)]
    forest = new_forest(n)
    join(forest, np.arange(n, dtype=np.int32), nearest)
    return labels_from_forest(forest).astype(np.int32)


def check_albums(albums: np.ndarray, dealt: int, k: int, side: str) -> np.ndarray:
    """Return how many faces each of the ``dealt`` albums has: (n,) -> (dealt,).

    Raises InputError when one has fewer than k, the length of its lists, saying of which ``side`` the faces are.
    """
    sizes = np.bincount(albums, minlength=dealt)
    if sizes.min() < k:
        without = " or --validation 0" if side == "validation" else ""
        raise InputError(
            f"--splits {dealt}: one of them has {sizes.min():,} of the {len(albums):,} {side} faces, fewer than the "
            f"k = {k} neighbors of each; give fewer splits{without}."
        )
    return sizes


def people_of(identity: np.ndarray, albums: np.ndarray | None) -> np.ndarray:
    """Number identities again, the faces of one in different albums being of different ones: (n,) -> (n,) int64."""
    if albums is None:
        return identity
    return np.unique(identity * (int(albums.max(initial=0)) + 1) + albums, return_inverse=True)[1]


def faces_where(features: Features, identity: np.ndarray, chosen: np.ndarray) -> tuple[Features, np.ndarray]:
    """Return the chosen faces with their identities numbered from 0 again."""
    if chosen.all():
        return features, identity
    return features.select(np.flatnonzero(chosen)), identities_of(identity[chosen])
