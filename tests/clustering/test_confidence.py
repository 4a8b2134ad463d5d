import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering import confidence as module
from fcdeploy.clustering.confidence import joins_of, near_of, nearest_clusters
from fcdeploy.clustering.evidence import SIMILARITY, Evidence, similarity_within
from fcdeploy.clustering.forest import completed, strongest_forest
from fcdeploy.clustering.groups import offsets_from_sizes
from fcdeploy.data.labels import renumber
from fcdeploy.graph.knn import KnnGraph


@st.composite
def clustered_faces(draw):
    """Faces with clusters, a few links and short neighbor lists, the face itself first."""
    n = draw(st.integers(2, 18))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    k = draw(st.integers(1, min(n, 6)))
    labels = renumber(rng.integers(-1, 5, n))
    similar = np.round(rng.random((n, n)), 2)
    similar = np.maximum(similar, similar.T)
    np.fill_diagonal(similar, 2)
    ids = np.argsort(-similar, axis=1, kind="stable")[:, :k].astype(np.int32)
    sims = np.take_along_axis(similar, ids, axis=1).astype(np.float32)
    links = rng.integers(0, n, (draw(st.integers(0, 30)), 2)).astype(np.int32)
    strength = similar[links[:, 0], links[:, 1]].astype(np.float32)
    forest = completed(*strongest_forest(n, [(links, strength)], labels), labels)
    vectors = rng.standard_normal((n, 3)).astype(np.float32)
    within = similarity_within(vectors, labels)
    return labels, Evidence(*forest, *forest, SIMILARITY, KnnGraph(ids, sims), within, within, 3), vectors


def others_in(row, face):
    return [other for other in row.tolist() if other != face]


def joined_by_hand(evidence):
    """Sets of faces, joined link by link; what each face was joined by last, in the smaller set."""
    n, k = evidence.lists.ids.shape
    parts = {face: {face} for face in range(n)}
    first = dict(enumerate(range(n)))  # of each face: the face that stands for its part
    strength, support = [np.nan] * n, [np.nan] * n
    sides, supports = [], []
    for (a, b), strong in zip(evidence.links.tolist(), evidence.strength.tolist(), strict=True):
        small, large = parts[a], parts[b]
        if (len(small), -first[a]) > (len(large), -first[b]):
            small, large, a, b = large, small, b, a
        reach = min(k, len(small) + len(large) - 1)
        listed = [other for face in small for other in others_in(evidence.lists.ids[face], face)[:reach]]
        outside = [other for other in listed if other not in small]
        inside = [other for other in outside if other in large]
        share = len(inside) / len(outside) if outside else 0
        for face in small if len(large) > 1 else small | large:
            strength[face], support[face] = strong, share
        sides.append(len(small))
        supports.append(share)
        joined, stands = small | large, first[b]
        for face in joined:
            parts[face], first[face] = joined, stands
    return sides, supports, strength, support


@settings(max_examples=200, deadline=None)
@given(clustered_faces())
def test_joins_are_those_of_sets_joined_link_by_link(case):
    _, evidence, _ = case
    sides, supports, strength, support = joined_by_hand(evidence)
    found = joins_of(evidence)
    assert found.side.tolist() == sides
    assert found.support == pytest.approx(supports)
    assert found.face_strength == pytest.approx(strength, nan_ok=True)
    assert found.face_support == pytest.approx(support, nan_ok=True)


@settings(max_examples=200, deadline=None)
@given(clustered_faces(), st.integers(1, 5))
def test_margins_and_shares_are_read_off_the_lists_whatever_the_blocks(case, block):
    labels, evidence, _ = case
    lists, n = evidence.lists, len(labels)
    sizes = np.bincount(labels[labels >= 0], minlength=1)
    before, module.BLOCK = module.BLOCK, block
    try:
        found = near_of(lists, labels, sizes)
    finally:
        module.BLOCK = before
    for face in range(n):
        listed = [
            (o, s) for o, s in zip(lists.ids[face].tolist(), lists.sims[face], strict=True) if o != face
        ]
        own = [s for o, s in listed if labels[o] == labels[face] >= 0]
        strange = [s for o, s in listed if not labels[o] == labels[face] >= 0]
        alone = labels[face] < 0 or sizes[labels[face]] == 1
        assert found.beside[face] == bool(strange)
        if not listed or alone:
            assert np.isnan(found.margin[face])
            assert np.isnan(found.intra[face])
            continue
        last = min(s for _, s in listed)
        margin = (max(own) if own else last) - (max(strange) if strange else last)
        assert found.margin[face] == pytest.approx(margin, abs=1e-6)
        first = listed[: sizes[labels[face]] - 1]
        assert found.intra[face] == pytest.approx(np.mean([labels[o] == labels[face] for o, _ in first]))


@settings(max_examples=200, deadline=None)
@given(clustered_faces())
def test_the_nearest_cluster_is_the_one_that_most_entries_lead_to(case):
    labels, evidence, _ = case
    ids = evidence.lists.ids
    clusters = int(labels.max()) + 1
    order = np.argsort(labels, kind="stable")[np.count_nonzero(labels < 0) :]
    sizes = np.bincount(labels[labels >= 0], minlength=clusters)
    nearest, share = nearest_clusters(ids, labels, order, offsets_from_sizes(sizes), clusters)
    for cluster in range(clusters):
        faces = np.flatnonzero(labels == cluster)
        entries = [other for face in faces for other in others_in(ids[face], face)]
        counts = {}
        for other in entries:
            if labels[other] not in (-1, cluster):
                counts[labels[other]] = counts.get(labels[other], 0) + 1
        if not counts:
            assert (nearest[cluster], share[cluster]) == (-1, 0)
            continue
        assert counts[nearest[cluster]] == max(counts.values())
        assert share[cluster] == pytest.approx(max(counts.values()) / len(entries))


@settings(max_examples=100, deadline=None)
@given(clustered_faces())
def test_similarity_within_is_the_mean_over_all_others_of_the_cluster(case):
    labels, evidence, vectors = case
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    for face in range(len(labels)):
        others = [o for o in range(len(labels)) if o != face and labels[o] == labels[face] >= 0]
        expected = np.mean(unit[others] @ unit[face]) if others else np.nan
        assert evidence.within[face] == pytest.approx(expected, abs=1e-5, nan_ok=True)


def test_a_face_has_the_confidence_of_the_weakest_link_on_its_way_to_the_core():
    """0-1-2 hold together by .9; 3-4 (.8) come to them by .5: both have .5, and the link 3-4 is not theirs alone."""
    links = np.array([[0, 1], [1, 2], [3, 4], [2, 3]], np.int32)
    strength = np.array([0.9, 0.9, 0.8, 0.5], np.float32)
    ids = np.arange(5, dtype=np.int32)[:, None]
    nothing = np.zeros(5, np.float32)
    lists = KnnGraph(ids, np.ones((5, 1), np.float32))
    evidence = Evidence(links, strength, links, strength, SIMILARITY, lists, nothing, nothing, 3)
    assert joins_of(evidence).face_strength.tolist() == np.float32([0.9, 0.9, 0.9, 0.5, 0.5]).tolist()
