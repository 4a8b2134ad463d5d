"""What follows for pairs of faces when a person splits a cluster, moves faces, or merges two clusters.

A run takes what is known as pairs. So faces that leave a cluster are said to be different from its most typical face,
and those of the rest that are linked to them are said to be the same as that one.
"""

from collections.abc import Sequence

import numpy as np

from fcdeploy.data.checked_pairs import DIFFERENT, NOT_A_FACE, SAME
from fcdeploy.errors import InputError
from fcdeploy.report.decisions import Said
from fcdeploy.report.overview import Clusters


def of_pair(a: int, b: int, answer: str) -> list[Said]:
    """Two faces are the same, or different."""
    return [(a, b, answer)]


def of_not_faces(faces: Sequence[int]) -> list[Said]:
    """Faces are none."""
    return [(face, None, NOT_A_FACE) for face in faces]


def of_split(clusters: Clusters, faces: Sequence[int]) -> list[Said]:
    """Faces of one cluster are another person, all of them the same one."""
    leaving, rest = leaving_and_rest(clusters, faces)
    core = most_typical(clusters, rest)
    said: list[Said] = [(int(leaving[0]), core, DIFFERENT)]
    said += [(int(leaving[0]), int(other), SAME) for other in leaving[1:]]
    return said + held_together(clusters, leaving, rest, core)


def of_move(clusters: Clusters, faces: Sequence[int], target: int) -> list[Said]:
    """Faces of one cluster, or single ones, belong to the cluster ``target``."""
    check_cluster(clusters, target)
    labels = clusters.placed.labels
    if any(int(labels[face]) == target for face in faces):
        raise InputError(f"these faces are in cluster {target} already; choose another one.")
    core_of_target = most_typical(clusters, clusters.rows(target))
    said: list[Said] = [(int(face), core_of_target, SAME) for face in faces]
    for cluster in sorted({int(labels[face]) for face in faces} - {-1}):
        own = [face for face in faces if labels[face] == cluster]
        if len(set(own)) == len(clusters.rows(cluster)):
            continue  # all of it moves
        leaving, rest = leaving_and_rest(clusters, own)
        core = most_typical(clusters, rest)
        said += [(int(face), core, DIFFERENT) for face in leaving]
        said += held_together(clusters, leaving, rest, core)
    return said


def of_merge(clusters: Clusters, one: int, other: int) -> tuple[list[Said], list[int]]:
    """Two clusters are one person; returns also the two faces that stand for them."""
    for cluster in (one, other):
        check_cluster(clusters, cluster)
    if one == other:
        raise InputError("a cluster cannot be merged with itself; give another one.")
    a, b = (most_typical(clusters, clusters.rows(cluster)) for cluster in (one, other))
    return [(a, b, SAME)], [a, b]


def check_cluster(clusters: Clusters, cluster: int) -> None:
    """Raise InputError for a cluster that there is not."""
    if not 0 <= cluster < clusters.count:
        raise InputError(f"there is no cluster {cluster}; they go from 0 to {clusters.count - 1:,}.")


def most_typical(clusters: Clusters, rows: np.ndarray) -> int:
    """Return the row of a cluster that is most similar to the others."""
    return int(clusters.typical(rows, 1)[0])


def leaving_and_rest(clusters: Clusters, faces: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the faces that leave their cluster, with copies of them, and the rest of it; raises InputError."""
    labels, face = clusters.placed.labels, clusters.placed.face
    of = {int(labels[one]) for one in faces}
    if len(of) != 1 or of == {-1}:
        raise InputError("choose faces of one cluster.")
    rows = clusters.rows(of.pop())
    leaves = np.isin(face[rows], face[list(faces)]) if len(rows) else np.empty(0, bool)
    if leaves.all():
        raise InputError("these are all faces of the cluster (with copies of them); leave one or more.")
    return rows[leaves], rows[~leaves]


def held_together(clusters: Clusters, leaving: np.ndarray, rest: np.ndarray, core: int) -> list[Said]:
    """Return what keeps the rest of a cluster with its core: each face of it that a link leads from to a leaving one.

    Otherwise such a link, where it is a strong one, would take that face along.
    """
    face = clusters.placed.face
    links = clusters.links_of(int(clusters.placed.labels[rest[0]]))
    gone = np.isin(links, face[leaving])
    kept = rest[np.isin(face[rest], np.setdiff1d(links[gone.any(axis=1)], face[leaving]))]
    return [(core, int(row), SAME) for row in kept if row != core]
