"""From logits to distances, probabilities and decisions."""

from collections.abc import Callable

import numpy as np

from fcdeploy.graph.entering import Entering, strongest_place
from fcdeploy.graph.links import NO_LINK


def distance(logits: np.ndarray) -> np.ndarray:
    """Return 1 - sigmoid(logits), float32 like the published one: 0 for "surely the same person"."""
    return np.float32(1) - _sigmoid(logits.astype(np.float64))


def probability(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of ``logits`` (..., 2) at class 1, float32."""
    return _sigmoid(logits[..., 1].astype(np.float64) - logits[..., 0])


def place_of_link(
    links: Entering,
    strengths: np.ndarray,
    clusters: np.ndarray,
    least: np.float32,
    ask: Callable[[np.ndarray, bool], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Return the place (m,) int64 of the link that decides where each new face belongs, and its probability (m,).

    That is the link to a denser face, if PCENet confirms it, else the strongest certain one, else the strongest of
    those from faces that would link to the new one that PCENet confirms. strengths: (m, k); clusters: (m, k), of each
    entry. ask(place, follows): PCENet's probability (m,) of links to places (m,), or with follows from there, NaN where
    the place is NO_LINK; it is not asked where a certain link leads to the same cluster. A link holds above ``least``.
    NO_LINK where none does, with the probability of the first that was refused.
    """
    at = np.arange(len(strengths))
    denser, certain = (strongest_place(some, strengths) for some in (links.denser, links.certain))
    sure = certain != NO_LINK
    asked = np.where(sure & (clusters[at, denser] == clusters[at, certain]), NO_LINK, denser)
    value = ask(asked, False)
    confirmed = value > least
    place = np.where(confirmed, denser, certain)
    value = np.where(sure & ~confirmed, np.float32(1), value)
    left = links.followers & (place == NO_LINK)[:, None]
    while left.any():
        follower = strongest_place(left, strengths)
        theirs = ask(follower, True)
        joined = theirs > least
        place = np.where(joined, follower, place)
        value = np.where(joined | np.isnan(value), theirs, value)
        left[at, follower] = False
        left &= ~joined[:, None]
    return place, value


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return ((1 + np.tanh(x / 2)) / 2).astype(np.float32)
