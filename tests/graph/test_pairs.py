import numpy as np
import oracles_gcn_d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.graph.pairs import NOBODY, connect_members, first_neighbors, similar_pairs


def random_lists(n, k, seed, gaps=False):
    """Lists whose two directions sometimes differ in similarity, as those of a file may; some end early."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    sims = rng.integers(0, 8, (n, k)).astype(np.float32) / 8
    if gaps:
        ids[rng.random((n, k)) < 0.2] = NOBODY
    return ids, sims


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 25), st.integers(1, 8), st.integers(0, 8), st.booleans(), st.integers(0, 2**32 - 1))
def test_pairs_are_those_of_either_list_with_the_smaller_id_s_similarity(n, k, eighths, gaps, seed):
    ids, sims = random_lists(n, min(n, 8), seed, gaps)
    k = min(k, n)
    a, b, scores = similar_pairs(ids, sims, k, eighths / 8)
    expected = oracles_gcn_d.similar_pairs(ids, sims, k, eighths / 8)
    assert len(a) == len(expected)
    assert dict(zip(zip(a.tolist(), b.tolist(), strict=True), scores.tolist(), strict=True)) == expected


def test_similarity_and_threshold_are_compared_in_float64():
    ids = np.array([[0, 1], [1, 0]], dtype=np.int32)
    sims = np.array([[1, 0.7], [1, 0.7]], dtype=np.float32)  # float32's 0.7 is below float64's
    assert len(similar_pairs(ids, sims, 2, 0.7)[0]) == 0
    assert len(similar_pairs(ids, sims, 2, float(np.float32(0.7)))[0]) == 1


@pytest.mark.parametrize("weighted", [True, False])
def test_members_are_connected_as_defined_and_padding_is_zero(weighted):
    ids, sims = random_lists(60, 12, 5)
    rng = np.random.default_rng(6)
    sizes = np.array([1, 2, 9, 30])
    ks = np.array([12, 12, 5, 12], dtype=np.int32)
    members = np.full((4, 32), -1, dtype=np.int32)
    for row, size in enumerate(sizes):
        members[row, :size] = np.sort(rng.permutation(60)[:size])
    adj = np.full((4, 32, 32), np.nan, dtype=np.float32)
    degrees = np.full((4, 32), np.nan)
    connect_members(members, sizes, ks, ids, sims, weighted, adj, degrees)
    for row, size in enumerate(sizes):
        expected, sums = oracles_gcn_d.adjacency(members[row, :size].tolist(), ks[row], ids, sims, weighted)
        assert np.array_equal(adj[row, :size, :size], expected.astype(np.float32))
        assert np.array_equal(degrees[row, :size], sums)
        assert not adj[row, size:].any()
        assert not adj[row, :, size:].any()
        assert not degrees[row, size:].any()
    assert (adj[3, :30, :30] > 0).sum() > 100


def test_a_row_that_is_not_among_its_own_nearest_has_one_neighbor_more():
    """By hand: of inner products, the second row's own 0.25 is beaten by 0.5 and 0.4, a third 0.25 ties with it."""
    ids = np.array([[0, 3, 1, 2], [1, 0, 2, 3]], dtype=np.int32)
    sims = np.array([[1, 0.5, 0.4, 0.3], [0.25, 0.5, 0.4, 0.25]], dtype=np.float32)
    assert first_neighbors(ids, sims, 1).tolist() == [[NOBODY], [0]]
    assert first_neighbors(ids, sims, 2).tolist() == [[3, NOBODY], [0, 2]]
    assert first_neighbors(ids, sims, 3).tolist() == [[3, 1, NOBODY], [0, 2, NOBODY]]


def test_lists_that_hold_everybody_have_everybody_else_as_neighbors():
    ids = np.array([[0, 2, 1]], dtype=np.int32)
    sims = np.array([[0.1, 0.5, 0.4]], dtype=np.float32)
    assert first_neighbors(ids, sims, 5).tolist() == [[2, 1]]
