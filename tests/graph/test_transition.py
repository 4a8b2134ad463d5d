import numpy as np
import oracles_nsr
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.graph.links import NO_LINK
from fcdeploy.graph.transition import add_received, link_to_peaks, shares, transition_distances


def random_lists(seed, n=40, k=7):
    """Lists of faces in any order, mostly with themselves in them, sorted by distance."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    for i in range(n):
        if i not in ids[i] and rng.random() < 0.9:
            ids[i, rng.integers(k)] = i
    return ids, np.sort(rng.random((n, k)), axis=1).astype(np.float32)


def density_of(ids, dists, sigma, k, cut):
    density = np.zeros(len(ids))
    for start in range(0, len(ids), cut):
        block = slice(start, start + cut)
        add_received(np.ascontiguousarray(ids[block, :k]), shares(dists[block, :k], sigma), density)
    return density


def test_a_face_is_as_dense_as_what_it_is_given():
    """By hand: with ln 2 as sigma a distance of 0 gives 1, one of ln^2 2 a half: shares 2/3 and 1/3."""
    half = np.float32(np.log(2) ** 2)
    ids = np.array([[0, 1], [1, 0], [2, 0]], dtype=np.int32)
    dists = np.array([[0, half]] * 3, dtype=np.float32)
    found = density_of(ids, dists, np.log(2), 2, 3)
    assert np.abs(found - [4 / 3, 1, 2 / 3]).max() < 1e-4
    assert (found < [4 / 3, 1, 2 / 3]).all()  # the 1e-5 in every sum


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 41))
def test_densities_are_the_definition_s_however_rows_are_cut(seed, k, cut):
    ids, dists = random_lists(seed)
    found = density_of(ids, dists, 0.5, k, cut)
    assert np.array_equal(found, density_of(ids, dists, 0.5, k, 40))
    assert np.abs(found - oracles_nsr.density(ids, dists, 0.5, k)).max() < 1e-6


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.02, 1))
def test_transition_distances_are_the_definition_s(seed, sigma):
    ids, dists = random_lists(seed)
    weights = np.sqrt(shares(dists, sigma))
    faces = np.random.default_rng(seed).permutation(len(ids)).astype(np.int32)
    found = transition_distances(ids, weights, faces)
    assert np.abs(found - oracles_nsr.transitions(ids, dists, sigma)[faces]).max() < 1e-6
    assert np.array_equal(found[3:9], transition_distances(ids, weights, faces[3:9]))


def test_faces_with_the_same_list_are_at_no_distance_and_those_with_nothing_in_common_at_one():
    ids = np.array([[0, 1], [1, 0], [2, 3], [3, 2]], dtype=np.int32)
    dists = np.array([[0.1, 0.1]] * 4, dtype=np.float32)
    found = transition_distances(ids, np.sqrt(shares(dists, 0.05)), np.arange(4, dtype=np.int32))
    assert np.abs(found).max() < 2e-4  # not 0: the 1e-5 in every sum
    ids = np.array([[1, 2], [0, 3], [4, 5], [4, 5], [4, 5], [4, 5]], dtype=np.int32)
    dists = np.full((6, 2), 0.1, dtype=np.float32)
    found = transition_distances(ids, np.sqrt(shares(dists, 0.05)), np.arange(6, dtype=np.int32))
    assert found[0].tolist() == [1, 1]


def test_links_go_to_the_nearest_faces_that_are_as_dense_and_never_to_oneself():
    """By hand: face 0 is less dense than 1, as dense as 2; face 3 is the densest."""
    ids = np.array([[0, 1, 2, 3], [1, 0, 3, 2], [0, 2, 1, 3], [3, 2, 1, 0]], dtype=np.int32)
    dists = np.array([[0, 0.5, 0.4, 0.4], [0, 0.1, 0.3, 0.2], [0.2, 0, 0.1, 0.3], [0.9, 0, 0, 0]], np.float32)
    density = np.array([1.0, 2.0, 1.0, 3.0])
    peaks, reached = link_to_peaks(ids, dists, density, 0, 2)
    assert peaks.tolist() == [[2, 3], [3, NO_LINK], [1, 0], [NO_LINK, NO_LINK]]
    assert reached.tolist() == np.array([[0.4, 0.4], [0.3, 0], [0.1, 0.2], [0, 0]], np.float32).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(0, 30))
def test_links_are_the_definition_s_in_any_block(seed, most, start):
    ids, dists = random_lists(seed)
    rng = np.random.default_rng(seed)
    dists = np.round(rng.permuted(dists, axis=1), 1)  # unsorted, with ties
    density = np.round(rng.random(40) * 5)
    block = slice(start, start + 10)
    peaks, reached = link_to_peaks(ids[block], dists[block], density, start, most)
    expected = oracles_nsr.peaks(ids.tolist(), dists.tolist(), density.tolist(), most)[block]
    found = [
        [(int(j), float(d)) for j, d in zip(*rows, strict=True) if j != NO_LINK]
        for rows in zip(peaks, reached, strict=True)
    ]
    assert found == expected


@pytest.mark.parametrize("sigma", [0.05, 1e-4])
def test_far_neighbors_of_a_small_sigma_give_shares_of_zero_not_nan(sigma):
    found = shares(np.array([[0.9, 0.95]], dtype=np.float32), sigma)
    assert np.isfinite(found).all()
    assert found.dtype == np.float32
