import numpy as np
import oracles_gcn_d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.overlap import (
    UNCOVERED,
    cohesion_of,
    first_cohesive_holders,
    first_holders,
    lengths_of,
    rank_proposals,
    select_members,
    suppress,
)


def as_arrays(proposals):
    """Offsets and nodes of a list of sets."""
    offsets = np.cumsum([0, *map(len, proposals)]).astype(np.int64)
    nodes = [face for faces in proposals for face in sorted(faces)]
    return offsets, np.array(nodes, dtype=np.int32)


def kept(n, proposals, max_iou):
    order = np.arange(len(proposals))
    return np.flatnonzero(suppress(n, *as_arrays(proposals), order, max_iou)).tolist()


def test_a_proposal_is_dropped_by_a_better_one_above_the_limit_and_not_at_it():
    """By hand: {0,1,2} and {1,2,3} share two faces of four, IoU 0.5; {0,1,2} and {0,1} two of three."""
    proposals = [{0, 1, 2}, {1, 2, 3}, {0, 1}]
    assert kept(4, proposals, 0.5) == [0, 1]
    assert kept(4, proposals, 0.49) == [0]
    assert kept(4, proposals, 0.7) == [0, 1, 2]


def test_a_dropped_proposal_drops_nobody():
    """{1,2,3} is dropped by {0,1,2,3}; {1,2} would have been dropped by it (2/3) but is half of the better one."""
    assert kept(4, [{0, 1, 2, 3}, {1, 2, 3}, {1, 2}], 0.6) == [0, 2]


def test_at_one_nothing_is_dropped_not_even_a_repetition_and_below_it_repetitions_are():
    assert kept(3, [{0, 1}, {0, 1}, {2}], 1.0) == [0, 1, 2]
    assert kept(3, [{0, 1}, {0, 1}, {2}], 0.999) == [0, 2]


def test_at_zero_proposals_that_share_a_face_exclude_each_other():
    assert kept(5, [{0, 1}, {1, 2}, {2, 3}, {4}], 0.0) == [0, 2, 3]


sets_of_faces = st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=8), max_size=25)


@settings(max_examples=300, deadline=None)
@given(sets_of_faces, st.floats(0, 1.2))
def test_the_index_keeps_what_comparing_every_pair_keeps(proposals, max_iou):
    expected = oracles_gcn_d.suppress(proposals, max_iou)
    assert kept(12, proposals, max_iou) == (list(range(len(proposals))) if max_iou >= 1 else expected)


@settings(max_examples=100, deadline=None)
@given(sets_of_faces, st.sampled_from([1 / 3, 0.5, 2 / 3, 0.25, 0.6, 0.2]))
def test_limits_that_overlaps_meet_exactly_are_compared_alike(proposals, max_iou):
    assert kept(12, proposals, max_iou) == oracles_gcn_d.suppress(proposals, max_iou)


@settings(max_examples=100, deadline=None)
@given(sets_of_faces, st.randoms(use_true_random=False))
def test_each_face_goes_to_the_first_that_holds_it(proposals, random):
    order = list(range(len(proposals)))
    random.shuffle(order)
    found = first_holders(12, *as_arrays(proposals), np.array(order, dtype=np.int64))
    owners = oracles_gcn_d.owner_of_faces(12, [proposals[p] for p in order])
    assert found.tolist() == [order[at] if at >= 0 else UNCOVERED for at in owners]


def test_proposals_rank_by_score_and_equal_ones_as_they_come():
    scores = np.array([0.5, 0.9, 0.5, -2, 0.9], dtype=np.float32)
    assert rank_proposals(scores, -1.0).tolist() == [1, 4, 0, 2]
    assert rank_proposals(scores, -np.inf).tolist() == [1, 4, 0, 2, 3]
    assert rank_proposals(scores, 0.5).tolist() == [1, 4, 0, 2]
    assert rank_proposals(scores, 0.9).tolist() == []  # float32's 0.9 is below float64's


def test_chosen_members_are_taken_in_the_order_asked_for():
    offsets, nodes = as_arrays([{1, 2, 3}, {4}, {0, 5}])
    chosen = np.array([True, False, True, False, False, True])
    found = select_members(offsets, nodes, np.array([2, 1, 0]), chosen)
    assert [part.tolist() for part in found] == [[0, 1, 1, 3], [5, 1, 3]]


def test_no_proposals_are_no_problem():
    nothing = np.zeros(1, dtype=np.int64), np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64)
    assert suppress(3, *nothing, 0.5).tolist() == []
    assert first_holders(3, *nothing).tolist() == [UNCOVERED] * 3


@pytest.mark.parametrize("max_iou", [0.3, 0.6])
def test_thousands_of_proposals_round_few_faces_are_kept_alike(max_iou):
    rng = np.random.default_rng(3)
    centres = rng.integers(0, 200, 800)
    proposals = [set((c + rng.permutation(18)[: rng.integers(3, 12)]).tolist()) for c in centres]
    expected = oracles_gcn_d.suppress(proposals, max_iou)
    assert kept(220, proposals, max_iou) == expected
    assert 20 < len(expected) < 780


def mean_cosine(faces, vectors):
    """The mean cosine of all pairs, one by one; of a single face 1."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    pairs = [float(unit[a] @ unit[b]) for a in faces for b in faces if a < b]
    return sum(pairs) / len(pairs) if pairs else 1.0


@settings(max_examples=100, deadline=None)
@given(sets_of_faces, st.floats(-0.3, 0.6), st.integers(0, 99))
def test_what_a_proposal_gets_is_alike_and_what_is_not_stays_free(proposals, least, seed):
    """As going through the proposals one by one, with every pair compared; vectors of any length."""
    vectors = np.random.default_rng(seed).normal(0.4, 1, (12, 3)).astype(np.float32)
    holder = {}
    for at, faces in enumerate(proposals):
        free = [face for face in sorted(faces) if face not in holder]
        cohesion = mean_cosine(free, vectors)
        if abs(cohesion - least) < 1e-6:
            return  # rounding decides
        if cohesion >= least:
            holder |= dict.fromkeys(free, at)
    offsets, nodes = as_arrays(proposals)
    lengths, order = lengths_of(vectors), np.arange(len(proposals))
    found = first_cohesive_holders(12, offsets, nodes, order, vectors, lengths, least)
    assert found.tolist() == [holder.get(face, UNCOVERED) for face in range(12)]
    whole = cohesion_of(offsets, nodes, order, vectors, lengths)
    np.testing.assert_allclose(whole, [mean_cosine(sorted(faces), vectors) for faces in proposals], atol=1e-6)


def test_the_lowest_cohesion_asks_nothing():
    proposals = [{0, 1, 2}, {2, 3}, {4}]
    vectors = np.random.default_rng(0).normal(0, 1, (6, 4)).astype(np.float32)
    arrays, order = as_arrays(proposals), np.array([1, 0, 2])
    found = first_cohesive_holders(6, *arrays, order, vectors, lengths_of(vectors), -1.0)
    np.testing.assert_array_equal(found, first_holders(6, *arrays, order))
