"""What a person knows: faces that are one person, and faces that are two, held against the links of a run.

Faces that are the same are joined first. Then links join parts, the strongest first, unless a face of one part and a
face of the other are known to be different: such a link is refused, and with it nothing but this link. A part holds
what it must not be joined with by its faces; the smaller part is asked, so that n faces cost O(n log n).
"""

from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.components import find_root, join, join_two, labels_from_forest, new_forest
from fcdeploy.clustering.groups import offsets_from_sizes
from fcdeploy.data.labels import renumber
from fcdeploy.graph.kernels import njit

NO_PHOTO = -1
DIFFERENT, SAME_PHOTO = 1, 2  # why a link was refused


@dataclass(frozen=True)
class Constraints:
    """What is known of n faces: pairs that are the same (s, 2) and different (d, 2), int32.

    photo: (n,) int32, the photo that each face is in, NO_PHOTO where nobody knows, None where nothing follows from
    photos. Two faces of one photo are different, unless pairs say that they are the same.
    """

    same: np.ndarray
    different: np.ndarray
    photo: np.ndarray | None = None


@dataclass(frozen=True)
class Constrained:
    """labels: (n,) int64; links: (m,) bool, which were taken (or joined nothing that was apart).

    refused: (r,) int64, the others, strongest first; why: (r,) int8, DIFFERENT or SAME_PHOTO; between: (r, 2) int32,
    the two faces that are known to be different, which it would have joined.
    """

    labels: np.ndarray
    links: np.ndarray
    refused: np.ndarray
    why: np.ndarray
    between: np.ndarray


def constrain(
    labels: np.ndarray, ids: np.ndarray, order: np.ndarray, constraints: Constraints
) -> Constrained:
    """Make clusters of links again, so that what is known holds; without constraints they stay as they are.

    labels: (n,) int64, -1 in no cluster, whose clusters are the components of the links ids (m, 2) int32; order: (m,),
    links from the strongest on. A face in no cluster stays there unless it is the same as another. The constraints
    have to be free of contradictions, see ``contradiction``. Of faces of one photo that are the same by pairs the
    photo's others are different anyway.
    """
    n = len(labels)
    parts = new_forest(n)
    join(parts, constraints.same[:, 0], constraints.same[:, 1])
    apart = _grouped(n, np.concatenate([constraints.different, constraints.different[:, ::-1]]))
    if constraints.photo is None:
        photo, photos = np.full(n, NO_PHOTO, np.int32), (np.zeros(1, np.int64), np.empty(0, np.int32))
    else:
        photo = renumber(constraints.photo).astype(np.int32)
        known = np.flatnonzero(photo >= 0)
        pairs = np.stack([photo[known], known], axis=1).astype(np.int32)
        photos = _grouped(int(photo.max(initial=NO_PHOTO)) + 1, pairs)
    why = np.zeros(len(ids), np.int8)
    between = np.zeros((len(ids), 2), np.int32)
    _join_allowed(parts, ids, order, *apart, photo, *photos, why, between)
    joined = labels_from_forest(parts)
    alone = np.bincount(joined, minlength=1)[joined] == 1
    made = np.where(alone & (labels < 0), -1, joined)
    refused = order[why[order] > 0]
    return Constrained(renumber(made), why == 0, refused, why[refused], between[refused])


def contradiction(n: int, same: np.ndarray, different: np.ndarray) -> tuple[int, list[int]] | None:
    """Find a pair that is different and, by other pairs, the same; None where there is none.

    same: (s, 2), different: (d, 2) integers below n. Returns its number in ``different``, and the numbers in ``same``
    of as few pairs as lead from one of its faces to the other.
    """
    forest = new_forest(n)
    join(forest, same[:, 0].astype(np.int32), same[:, 1].astype(np.int32))
    parts = labels_from_forest(forest)
    wrong = np.flatnonzero(parts[different[:, 0]] == parts[different[:, 1]])
    if not len(wrong):
        return None
    first, last = different[wrong[0]].tolist()
    near: dict[int, list[tuple[int, int]]] = {}
    for number, (a, b) in enumerate(same.tolist()):
        near.setdefault(a, []).append((b, number))
        near.setdefault(b, []).append((a, number))
    came: dict[int, tuple[int, int]] = {first: (first, -1)}
    waiting = [first]
    for face in waiting:  # breadth first; grows while it is walked
        for other, number in near.get(face, ()):
            if other not in came:
                came[other] = face, number
                waiting.append(other)
    path, face = [], last
    while face != first:
        face, number = came[face]
        path.append(number)
    return int(wrong[0]), path[::-1]


def _grouped(groups: int, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group pairs (m, 2) by their first: offsets (groups + 1,) int64 and seconds (m,) int32."""
    order = np.argsort(pairs[:, 0], kind="stable")
    offsets = offsets_from_sizes(np.bincount(pairs[:, 0], minlength=groups))
    return offsets, np.ascontiguousarray(pairs[order, 1], dtype=np.int32)


@njit(cache=True, nogil=True)
def _join_allowed(
    forest: np.ndarray,
    ids: np.ndarray,
    order: np.ndarray,
    apart_offsets: np.ndarray,
    apart: np.ndarray,
    photo: np.ndarray,
    photo_offsets: np.ndarray,
    in_photo: np.ndarray,
    why: np.ndarray,
    between: np.ndarray,
) -> None:
    """Join parts of ``forest`` by links in ``order``, and fill why (m,) and between (m, 2) of those refused.

    Faces of a part are a ring of ``following``, so that the smaller part alone is walked.
    """
    n = len(forest)
    part = np.empty(n, np.int32)
    sizes = np.zeros(n, np.int32)
    following = np.arange(n).astype(np.int32)
    for face in range(n):
        root = find_root(forest, face)
        part[face] = root
        sizes[root] += 1
        if root != face:
            following[root], following[face] = following[face], following[root]
    for t in order:
        small, large = part[ids[t, 0]], part[ids[t, 1]]
        if small == large:
            continue
        if sizes[small] > sizes[large]:
            small, large = large, small
        face = small
        for _ in range(sizes[small]):
            for at in range(apart_offsets[face], apart_offsets[face + 1]):
                if part[apart[at]] == large:
                    why[t], between[t, 0], between[t, 1] = DIFFERENT, face, apart[at]
                    break
            if why[t] == 0 and photo[face] >= 0:
                for at in range(photo_offsets[photo[face]], photo_offsets[photo[face] + 1]):
                    if part[in_photo[at]] == large:
                        why[t], between[t, 0], between[t, 1] = SAME_PHOTO, face, in_photo[at]
                        break
            if why[t] != 0:
                break
            face = following[face]
        if why[t] != 0:
            continue
        for _ in range(sizes[small]):
            part[face] = large
            face = following[face]
        sizes[large] += sizes[small]
        following[small], following[large] = following[large], following[small]
        join_two(forest, small, large)
