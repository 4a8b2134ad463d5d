import numpy as np
import oracles_nsr
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.graph.connectivity import (
    candidates_and_certain,
    density_from_scores,
    symmetric_scores,
    weighted_largest,
)
from fcdeploy.graph.links import NO_LINK


def test_a_score_that_only_one_direction_has_is_halved():
    """By hand: 0 and 1 score each other, 2 scores 0 and is scored by nobody; a face's own score stays."""
    ids = np.array([[0, 1], [1, 0], [2, 0]], dtype=np.int32)
    scores = np.array([[1, 0.5], [0.75, 0.25], [1, 0.5]], dtype=np.float32)
    found = symmetric_scores(ids, scores, np.arange(3, dtype=np.int32))
    assert found.tolist() == [[1, 0.375], [0.75, 0.375], [1, 0.25]]
    assert symmetric_scores(ids, scores, np.array([2], np.int32)).tolist() == [[1, 0.25]]


def test_the_largest_similarities_are_weighted_smallest_first_and_the_face_itself_does_not_count():
    """By hand: (0.1 * 0.2 + 0.2 * 0.4 + 0.7 * 0.8) = 0.66; weights that are not normalised give the same."""
    sims = np.array([[1.0, 0.4, 0.8, 0.1, 0.2]], dtype=np.float32)
    assert abs(weighted_largest(sims, np.array([0.1, 0.2, 0.7]))[0] - 0.66) < 1e-7
    assert abs(weighted_largest(sims, np.array([1.0, 2.0, 7.0]))[0] - 0.66) < 1e-7
    assert abs(weighted_largest(sims, np.array([1.0]))[0] - 0.8) < 1e-7


def test_the_strongest_denser_neighbor_is_the_candidate_and_other_strong_ones_are_certain():
    """By hand, one list: 1 is strongest but not denser, 2 and 4 tie and the first is taken, 3 is too weak."""
    ids = np.array([[0, 1, 2, 3, 4]], dtype=np.int32)
    strengths = np.array([[1, 0.9, 0.8, 0.3, 0.8]])
    density = np.array([1.0, 1.0, 2.0, 2.0, 2.0])
    strongest, certain = candidates_and_certain(ids, strengths, density, 0.8)
    assert strongest.tolist() == [2]
    assert certain.tolist() == [[False, False, False, False, True]]
    _, certain = candidates_and_certain(ids, strengths, density, 0.2)
    assert certain.tolist() == [[False, False, False, True, True]]


def test_without_a_denser_neighbor_of_positive_strength_there_is_no_candidate():
    ids = np.array([[0, 1, 2]], dtype=np.int32)
    density = np.array([1.0, 2.0, 0.5])
    strongest, certain = candidates_and_certain(ids, np.array([[1, 0.0, 0.9]]), density, 0.5)
    assert (strongest.tolist(), certain.any()) == ([NO_LINK], False)


def test_density_is_compared_with_that_of_column_0_as_published():
    """Where a list starts with another face, that face's density is what counts."""
    ids = np.array([[1, 0, 2]], dtype=np.int32)  # the list of face 0
    strongest, _ = candidates_and_certain(ids, np.array([[1, 0.9, 0.5]]), np.array([1.0, 3.0, 2.0]), 2.0)
    assert strongest.tolist() == [NO_LINK]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 9), st.sampled_from([(0.1, 0.2, 0.7), (1, 1, 1), (1.0,)]))
def test_links_are_those_of_a_dense_matrix(seed, k, weights):
    rng = np.random.default_rng(seed)
    n = 30
    others = [np.setdiff1d(rng.permutation(n), i)[rng.permutation(n - 1)[: k - 1]] for i in range(n)]
    ids = np.array([[i, *row] for i, row in enumerate(others)], dtype=np.int32)
    scores = rng.random((n, k)).astype(np.float32)
    sims = rng.uniform(0, 1, (n, k)).astype(np.float32)
    means = symmetric_scores(ids, scores, np.arange(n, dtype=np.int32))
    density = density_from_scores(means, sims)
    threshold = (
        weighted_largest(sims, np.array(weights)).mean() * 0.7
    )  # lower than published: some are certain
    strongest, certain = candidates_and_certain(ids, means * sims, density, threshold)
    expected = oracles_nsr.pair_links(ids, sims, scores, weights)
    assert np.abs(density - expected[0]).max() < 1e-12
    assert {i: int(j) for i, j in enumerate(strongest) if j != NO_LINK} == expected[1]
    assert abs(threshold / 0.7 - expected[3]) < 1e-6
    pairs = {(min(i, int(ids[i, p])), max(i, int(ids[i, p]))) for i, p in np.argwhere(certain)}
    assert expected[2] <= pairs
    strict = candidates_and_certain(ids, means * sims, density, expected[3])[1]
    assert {(min(i, int(ids[i, p])), max(i, int(ids[i, p]))) for i, p in np.argwhere(strict)} == expected[2]
