import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.metrics import share_in_same_cluster
from fcdeploy.data.generated import generated_faces
from fcdeploy.errors import InputError


def test_a_face_that_changes_sides_takes_two_clusters_with_it():
    """{0 1 2} {3 4} {5}: face 2 moves to the second cluster; only face 5 keeps its cluster."""
    assert share_in_same_cluster([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 2]) == 1 / 6
    assert share_in_same_cluster([0, 0, 0, 1, 1, 2], [7, 7, 7, 3, 3, 0]) == 1
    assert share_in_same_cluster([0, 0, 1, 1], [0, 0, 0, 0]) == 0


def test_faces_in_no_cluster_agree_with_themselves_only():
    assert share_in_same_cluster([-1, -1, 0, 0], [-1, 0, 1, 1]) == 3 / 4
    assert share_in_same_cluster([-1, 0], [-1, 0]) == 1
    assert share_in_same_cluster([], []) == 1


def test_clusterings_of_other_faces_are_refused():
    with pytest.raises(InputError, match="3 faces, the second 2"):
        share_in_same_cluster([0, 1, 2], [0, 1])


labels = st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), min_size=1, max_size=40)


@settings(deadline=None)
@given(labels)
def test_the_share_is_that_of_python_sets(pairs):
    one, other = zip(*pairs, strict=True)

    def cluster(labels, face):
        return {at for at, label in enumerate(labels) if label == labels[face]} if labels[face] >= 0 else None

    same = [cluster(one, face) == cluster(other, face) for face in range(len(pairs))]
    assert share_in_same_cluster(one, other) == pytest.approx(np.mean(same))
    assert share_in_same_cluster(other, one) == share_in_same_cluster(one, other)


def test_generated_faces_are_the_same_every_time_and_of_several_people():
    faces = generated_faces(500, 24)
    assert (faces.shape, faces.dtype) == ((500, 24), np.float32)
    assert np.array_equal(faces, generated_faces(500, 24))
    assert not np.array_equal(faces, generated_faces(500, 24, seed=1))
    unit = faces / np.linalg.norm(faces, axis=1, keepdims=True)
    sims = np.sort((unit @ unit.T)[np.triu_indices(500, 1)])
    assert sims[int(0.99 * len(sims))] > 0.5 > sims[int(0.9 * len(sims))]
