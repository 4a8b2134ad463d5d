"""What becomes of faces that stand in no list but their own: new ones, beside stored ones whose lists stay as they are.

A new face would enter the list of a stored one if it were more similar than the last entry there. What depends on both
directions of a link is told from this, without changing the list.
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.links import NO_LINK
from fcdeploy.graph.rerank import IN_FULL, IN_HALF


@njit(cache=True, nogil=True, parallel=True)
def mark_entering(
    ids: np.ndarray, sims: np.ndarray, names: np.ndarray, faces: np.ndarray, stored: int
) -> np.ndarray:
    """Mark for each of the new ``faces`` (m,) int32 in whose lists it would be; as ``mark_mutual`` does.

    ids: (n, k) int32; sims: (n, >= k) float32, of which row names[j] is that of the list j; stored: how many faces, the
    first ones, are stored. Of equal similarities the stored ones come first. Returns (m, k) uint8.
    """
    k = ids.shape[1]
    half = k // 2
    marks = np.zeros((len(faces), k), dtype=np.uint8)
    for row in prange(len(faces)):
        face = faces[row]
        for p in range(k):
            other = ids[face, p]
            before = 0
            if other < stored:
                theirs = sims[names[other]]
                own = sims[names[face], p]
                for q in range(k):
                    before += theirs[q] >= own
            if before < half and p < half:
                marks[row, p] = IN_HALF
            elif before < k:
                marks[row, p] = IN_FULL
    return marks


@njit(cache=True, nogil=True, parallel=True)
def entering_scores(ids: np.ndarray, floor: np.ndarray, sims: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return the mean of both directions' scores for lists of new faces, (m, k) float64; as ``symmetric_scores`` does.

    ids: (m, k) int32; sims, scores: (m, k) float32; floor: (n,) float32, the least similarity in each stored list. The
    score of a face whose list the new one would enter is taken to be that of the new one for it; column 0 is the new
    face itself.
    """
    m, k = ids.shape
    means = np.empty((m, k), dtype=np.float64)
    for row in prange(m):
        for p in range(k):
            listed = p == 0 or sims[row, p] > floor[ids[row, p]]
            means[row, p] = np.float64(scores[row, p]) * (1.0 if listed else 0.5)
    return means


@njit(cache=True, nogil=True, parallel=True)
def place_of_denser(ids: np.ndarray, density: np.ndarray, own: np.ndarray, stored: int) -> np.ndarray:
    """Return where in the lists ``ids`` (m, k) int32 of new faces the first denser stored face stands, (m,) int64.

    density: (stored,); own: (m,), of the new ones. NO_LINK where there is none.
    """
    m, k = ids.shape
    places = np.full(m, NO_LINK, dtype=np.int64)
    for row in prange(m):
        for p in range(k):
            if ids[row, p] < stored and density[ids[row, p]] > own[row]:
                places[row] = p
                break
    return places


def place_of_follower(
    ids: np.ndarray,
    strengths: np.ndarray,
    density: np.ndarray,
    own: np.ndarray,
    reached: np.ndarray,
    floor: np.ndarray,
    sims: np.ndarray,
) -> np.ndarray:
    """Return where in lists of new faces the stored face stands that would most strongly link to the new one, (m,).

    ids: (m, k) int32; strengths, sims: (m, k); density, reached, floor: (n,), of stored faces: how strong the link is
    that each has, and the least similarity in its list; own: (m,), the density of the new ones. A face that is less
    dense, would have the new one in its list and has no stronger link would link to it. NO_LINK where there is none.
    """
    below = _entered(ids, density, own, floor, sims)
    return strongest_place(below & (strengths > reached[_stored(ids, len(density))]), strengths)


def strongest_place(marked: np.ndarray, strengths: np.ndarray) -> np.ndarray:
    """Return the place (m,) int64 of the largest of the ``strengths`` (m, k) that are ``marked``, NO_LINK without one.

    The first of equal ones.
    """
    return np.where(marked.any(axis=1), np.where(marked, strengths, -np.inf).argmax(axis=1), NO_LINK)


def _stored(ids: np.ndarray, n: int) -> np.ndarray:
    """Return ``ids`` with a stored face in the place of new ones, of which arrays of n stored ones say nothing."""
    return np.minimum(ids, n - 1)


def _entered(
    ids: np.ndarray, density: np.ndarray, own: np.ndarray, floor: np.ndarray, sims: np.ndarray
) -> np.ndarray:
    """Tell which entries (m, k) of lists of new faces are stored ones, less dense, that would list the new one."""
    other = _stored(ids, len(density))
    return (ids < len(density)) & (density[other] < own[:, None]) & (sims > floor[other])


@dataclass(frozen=True)
class Entering:
    """The links that new faces would be part of, by the places (m, k) of their lists; bool.

    denser: the stored face that each would link to, one per row at most; followers: those that would link to it.
    certain: those of the others whose strength is enough without being confirmed.
    """

    denser: np.ndarray
    certain: np.ndarray
    followers: np.ndarray


def links_of_entering(
    ids: np.ndarray,
    strengths: np.ndarray,
    density: np.ndarray,
    own: np.ndarray,
    reached: np.ndarray,
    floor: np.ndarray,
    sims: np.ndarray,
    threshold: float,
) -> Entering:
    """Return the links of new faces as ``candidates_and_certain`` gives them when these have entered the lists.

    ids, strengths, sims: (m, k); density, reached, floor: (n,) of stored faces, as of ``place_of_follower``; own: (m,)
    densities; threshold: of certain links.
    """
    other = _stored(ids, len(density))
    above = (ids < len(density)) & (density[other] > own[:, None]) & (strengths > 0)
    below = _entered(ids, density, own, floor, sims)
    best = np.where(above, strengths, 0)
    denser = above & (np.arange(ids.shape[1]) == best.argmax(axis=1)[:, None])
    followers = below & (strengths > reached[other])
    return Entering(denser, (strengths >= threshold) & ((above & ~denser) | (below & ~followers)), followers)


@njit(cache=True, nogil=True, parallel=True)
def lists_with(ids: np.ndarray, sims: np.ndarray, faces: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return lists (m, k) int32 as they are when ``faces`` (m,) have entered them, one each.

    ids: (m, k) int32; sims: (m, k) float32, downwards; near: (m,) float32, how similar each face is. One that is no
    more similar than the last entry stays out; entry 0, the owner of the list, stays.
    """
    m, k = ids.shape
    found = np.empty((m, k), dtype=np.int32)
    for row in prange(m):
        entered = False
        for p in range(k):
            if not entered and p > 0 and near[row] > sims[row, p]:
                found[row, p] = faces[row]
                entered = True
            else:
                found[row, p] = ids[row, p - 1] if entered else ids[row, p]
    return found
