"""What is told of new faces without changing a list is what lists would say that they had entered."""

import numpy as np
import pytest

from fcdeploy.graph.connectivity import candidates_and_certain, symmetric_scores
from fcdeploy.graph.entering import (
    entering_scores,
    links_of_entering,
    lists_with,
    mark_entering,
    place_of_denser,
    place_of_follower,
)
from fcdeploy.graph.links import NO_LINK, link_to_denser
from fcdeploy.graph.rerank import mark_mutual

N, K = 60, 8


def nearest(sims: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k most similar of each row, itself first, equal ones by number."""
    own = sims.copy()
    np.fill_diagonal(own, 2)
    ids = np.argsort(-own, axis=1, kind="stable")[:, :k].astype(np.int32)
    return ids, np.take_along_axis(sims, ids, axis=1)


@pytest.fixture(params=range(5), ids=lambda seed: f"seed {seed}")
def lists(request: pytest.FixtureRequest) -> tuple[np.ndarray, ...]:
    """Lists of N stored faces and one new one, without and with it; the last row is its own."""
    rng = np.random.default_rng(request.param)
    rows = rng.standard_normal((N + 1, 4)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    sims = rows @ rows.T
    stored, stored_sims = nearest(sims[:N, :N], K)
    whole, whole_sims = nearest(sims, K)
    ids = np.concatenate([stored, whole[N:]])
    return ids, np.concatenate([stored_sims, whole_sims[N:]]), whole, whole_sims


NEW = np.array([N], np.int32)


def test_mutual_neighbors_are_those_of_lists_that_it_has_entered(lists: tuple[np.ndarray, ...]) -> None:
    ids, sims, whole, _ = lists
    found = mark_entering(ids, sims, np.arange(N + 1, dtype=np.int32), NEW, N)
    assert np.array_equal(found, mark_mutual(whole, NEW))
    assert found.any()
    shuffled = np.random.default_rng(0).permutation(N + 1).astype(np.int32)  # lists that lie elsewhere
    moved = np.empty_like(sims)
    moved[shuffled] = sims
    assert np.array_equal(mark_entering(ids, moved, shuffled, NEW, N), found)


def test_scores_are_means_where_both_directions_are_alike(lists: tuple[np.ndarray, ...]) -> None:
    """Scores that do not depend on the direction: a face's in a list is a function of the two."""
    ids, sims, whole, whole_sims = lists
    floor = sims[:N].min(axis=1)
    found = entering_scores(ids[N:], floor, sims[N:], np.abs(sims[N:]))
    wanted = symmetric_scores(whole, np.abs(whole_sims), NEW)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    outside = entering_scores(ids[N:], np.ones(N, np.float32), sims[N:], np.abs(sims[N:]))
    np.testing.assert_allclose(outside[0, 1:], np.abs(sims[N, 1:]) / 2, rtol=1e-6)
    assert outside[0, 0] == abs(sims[N, 0])


def test_a_list_with_a_face_that_entered_is_the_list_of_all(lists: tuple[np.ndarray, ...]) -> None:
    ids, sims, whole, _ = lists
    others = np.arange(N)
    both = sims[N:][0]
    near = dict(zip(ids[N].tolist(), both.tolist(), strict=True))
    some = np.array([j for j in others if j in near])
    faces, similar = np.full(len(some), N, np.int32), np.array([near[j] for j in some], np.float32)
    found = lists_with(ids[some], sims[some], faces, similar)
    assert np.array_equal(found, whole[some])
    assert (found == N).any()


def test_the_first_denser_face_is_the_one_that_links_to_denser_finds(lists: tuple[np.ndarray, ...]) -> None:
    ids, sims, *_ = lists
    density = np.random.default_rng(1).random(N + 1).astype(np.float32)
    place = place_of_denser(ids[N:], density[:N], density[N:], N)[0]
    wanted = link_to_denser(ids[N:], sims[N:], density, N)[0][0]
    assert (wanted == NO_LINK) == (place == NO_LINK)
    assert place == NO_LINK or ids[N, place] == wanted
    assert place_of_denser(ids[N:], density[:N], np.array([2.0], np.float32), N)[0] == NO_LINK


def test_links_are_those_of_lists_that_it_has_entered(lists: tuple[np.ndarray, ...]) -> None:
    """Its own link, those that would lead to it, and certain ones either way, from what clustering all finds."""
    ids, sims, whole, whole_sims = lists
    seen = 0
    for seed, threshold in ((0, 0.9), (1, 0.7), (2, 0.5)):
        density = np.random.default_rng(seed).random(N + 1)
        density[N] = np.median(density)
        reached = np.zeros(N)
        for face in range(N):
            above = density[ids[face]] > density[face]
            reached[face] = max(0, np.where(above, sims[face], 0).max())
        found = links_of_entering(
            ids[N:],
            sims[N:].astype(float),
            density[:N],
            density[N:],
            reached,
            sims[:N].min(axis=1),
            sims[N:],
            threshold,
        )
        strongest, certain = candidates_and_certain(whole, whole_sims.astype(float), density, threshold)
        for p, other in enumerate(ids[N].tolist()):
            if other == N:
                continue
            listed = np.flatnonzero(whole[other] == N)
            assert found.denser[0, p] == (strongest[N] == other)
            assert found.followers[0, p] == (strongest[other] == N)
            assert found.certain[0, p] == bool(certain[N, p] or certain[other, listed].any())
            seen += int(found.denser[0, p]) + int(found.followers[0, p]) + int(found.certain[0, p])
    assert seen > 3


def test_followers_by_hand() -> None:
    """Of faces 0 to 3 the new one, 4, is denser than 0, 1 and 2; 0 has a stronger link, 1 would not list it."""
    ids = np.array([[4, 0, 1, 2, 3]], np.int32)
    sims = np.array([[1, 0.9, 0.8, 0.7, 0.6]], np.float32)
    density, own = np.array([1, 1, 1, 9.0]), np.array([5.0])
    reached, floor = np.array([0.95, 0, 0.2, 0]), np.array([0, 0.85, 0.3, 0], np.float32)
    assert place_of_follower(ids, sims, density, own, reached, floor, sims).tolist() == [3]
    reached[0] = 0.5
    assert place_of_follower(ids, sims, density, own, reached, floor, sims).tolist() == [1]
    assert place_of_follower(ids, sims, density, own - 4, reached, floor, sims).tolist() == [NO_LINK]
