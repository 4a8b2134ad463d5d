import itertools

import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.data.features import open_features
from fcdeploy.graph.marks import new_counters, new_scratch
from fcdeploy.graph.rerank import (
    IN_FULL,
    IN_HALF,
    expand_reciprocal,
    holders_of,
    largest_set,
    mark_mutual,
    rank_candidates,
    sets_and_holders,
)

HALVES = np.array(list(np.ndindex(2, 2, 2, 2)), dtype=np.float32) - np.float32(0.5)


def rerank(ids, sims, vectors):
    """Re-rank whole lists in one block."""
    faces = np.arange(len(ids), dtype=np.int32)
    counters = new_counters(len(ids), largest_set(ids.shape[1]))
    return rank_candidates(ids, sims, vectors, faces, *sets_and_holders(ids), faces, counters)


@st.composite
def list_sets(draw):
    """Faces with lists of k neighbors: ids, sims, vectors.

    Faces are drawn from 16 unit vectors of halves, so that many are the same and every cosine is exact in
    float32, in whatever order it is added up. Lists are the true nearest neighbors, equal ones by id, or any.
    """
    n = draw(st.integers(1, 40))
    k = draw(st.one_of(st.sampled_from([1, 2, n]), st.integers(1, n)).map(lambda k: min(k, n)))
    kinds = draw(st.integers(1, 16))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    vectors = HALVES[rng.permutation(16)[:kinds][rng.integers(0, kinds, n)]]
    cosines = vectors @ vectors.T
    nearest = draw(st.booleans())
    ids = np.empty((n, k), dtype=np.int32)
    for i in range(n):
        others = [int(j) for j in rng.permutation(n) if j != i]
        if nearest:
            others.sort(key=lambda j: (-cosines[i, j], j))
        ids[i] = [i, *others][:k]
        if not nearest and draw(st.booleans()):  # the face itself anywhere, or nowhere
            ids[i] = rng.permutation(n)[:k]
    return ids, np.take_along_axis(cosines, ids, axis=1), vectors


def in_blocks(ids, sims, vectors, order, cuts):
    """Re-rank faces in ``order``, each pass over blocks of them that end at ``cuts``."""
    n = len(ids)
    blocks = [block for block in np.split(order, sorted(cut % n for cut in cuts)) if len(block)]
    mutual, scratch = np.empty(ids.shape, dtype=np.uint8), new_scratch(n)
    for block in blocks:
        mutual[block] = mark_mutual(ids, block)
    starts, counts = np.empty(n, dtype=np.int64), np.empty(n, dtype=np.int32)
    members, at = [], 0
    for block in blocks:
        counts[block], faces = expand_reciprocal(ids, mutual, block, scratch)
        starts[block] = at + np.cumsum(counts[block]) - counts[block]
        members.append(faces)
        at += len(faces)
    sets = starts, counts, np.concatenate(members)
    ranked, overlaps, names = np.empty_like(ids), np.empty(ids.shape), np.arange(n, dtype=np.int32)
    holders = held_in_parts(sets, sorted({0, *(cut % n for cut in cuts), n}))
    counters = new_counters(n, largest_set(ids.shape[1]))
    for block in blocks:
        ranked[block], overlaps[block] = rank_candidates(
            ids, sims[block], vectors, names, sets, holders, block, counters
        )
    assert not scratch.any()
    assert not counters.any()
    return ranked, overlaps


def held_in_parts(sets, borders):
    """Holders of the faces between two borders each, put together."""
    parts = [
        holders_of(*sets, np.arange(start, stop, dtype=np.int32))
        for start, stop in itertools.pairwise(borders)
    ]
    times, held_by = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return np.cumsum(times, dtype=np.int64) - times, times, held_by


def sets_of(ids):
    """R* of all faces as lists, in the order in which they are kept."""
    faces = np.arange(len(ids), dtype=np.int32)
    counts, members = expand_reciprocal(ids, mark_mutual(ids, faces), faces, new_scratch(len(ids)))
    assert counts.sum() == len(members)
    return [part.tolist() for part in np.split(members, np.cumsum(counts)[:-1])]


def assert_equal_up_to_ties(ids, expected_ids, expected_sims):
    """Every candidate above a row's cut value is in both; the rest of the row has the cut value in both."""
    for row, (mine, theirs, sims) in enumerate(zip(ids, expected_ids, expected_sims, strict=True)):
        above = set(theirs[sims > sims[-1]].tolist())
        assert len(set(mine.tolist())) == len(mine)
        assert set(mine[: len(above)].tolist()) == above, row


@settings(max_examples=150, deadline=None)
@given(list_sets(), st.randoms(use_true_random=False), st.lists(st.integers(0, 39), max_size=4))
def test_reranked_lists_and_the_order_of_ties_are_those_of_the_definition_in_any_blocks(case, random, cuts):
    ids, sims, vectors = case
    ranked, overlaps = rerank(ids, sims, vectors)
    assert ranked.dtype == np.int32
    assert overlaps.dtype == np.float64
    for i, row in enumerate(oracles.reranked(ids)):
        expected = oracles.ties_by_cosine(row, ids[i], sims[i], vectors @ vectors[i])[: ids.shape[1]]
        assert ranked[i].tolist() == expected
        assert overlaps[i].tolist() == [row[j] for j in expected]
    order = np.array(random.sample(range(len(ids)), len(ids)), dtype=np.int32)
    cut_ids, cut_overlaps = in_blocks(ids, sims, vectors, order, cuts)
    assert np.array_equal(cut_ids, ranked)
    assert np.array_equal(cut_overlaps, overlaps)


@settings(max_examples=100, deadline=None)
@given(list_sets(), st.randoms(use_true_random=False))
def test_faces_numbered_by_place_are_ranked_as_under_their_own_numbers(case, random):
    """Ties still go by the face, not by its place."""
    ids, sims, vectors = case
    n = len(ids)
    order = np.array(random.sample(range(n), n), dtype=np.int32)  # place -> face
    place = np.argsort(order).astype(np.int32)
    placed, scratch, places = place[ids[order]], new_scratch(n), np.arange(n, dtype=np.int32)
    counts, members = expand_reciprocal(placed, mark_mutual(placed, places), places, scratch)
    starts = np.cumsum(counts, dtype=np.int64) - counts
    sets = starts, counts, members
    ranked, overlaps = rank_candidates(
        placed, sims[order], vectors, order, sets, held_in_parts(sets, [0, n]), places, new_counters(n, n)
    )
    expected, expected_overlaps = rerank(ids, sims, vectors)
    assert np.array_equal(order[ranked[place]], expected)
    assert np.array_equal(overlaps[place], expected_overlaps)


@settings(max_examples=100, deadline=None)
@given(list_sets())
def test_marks_and_expanded_sets_are_those_of_the_definition(case):
    ids, _, _ = case
    k = ids.shape[1]
    marks = mark_mutual(ids, np.arange(len(ids), dtype=np.int32))
    for i, found in enumerate(sets_of(ids)):
        assert set(ids[i][marks[i] == IN_HALF].tolist()) == oracles.reciprocal(ids, i, k // 2)
        full = ids[i][(marks[i] == IN_HALF) | (marks[i] == IN_FULL)].tolist()
        assert set(full) == oracles.reciprocal(ids, i, k)
        assert found[: len(full)] == full
        assert len(found) == len(set(found))
        assert set(found) == oracles.expanded(ids, i)


@settings(max_examples=100, deadline=None)
@given(list_sets(), st.lists(st.integers(0, 39), max_size=4))
def test_holders_are_the_faces_in_whose_sets_one_is(case, cuts):
    ids, _, _ = case
    n = len(ids)
    found = sets_of(ids)
    counts = np.array([len(members) for members in found], dtype=np.int32)
    members = np.array([member for members in found for member in members], dtype=np.int32)
    sets = np.cumsum(counts, dtype=np.int64) - counts, counts, members
    starts, times, held_by = held_in_parts(sets, sorted({0, *(cut % n for cut in cuts), n}))
    for face in range(n):
        own = held_by[starts[face] : starts[face] + times[face]].tolist()
        assert own == [i for i in range(n) if face in found[i]]


def test_no_set_is_larger_than_counters_hold():
    assert new_counters(3, largest_set(80)).dtype == np.uint16
    assert new_counters(3, largest_set(1500)).dtype == np.uint32
    assert np.iinfo(np.uint16).max < largest_set(400)  # so that the larger ones are needed


@pytest.mark.parametrize("k", [6, 19, 24, 25, 40])
def test_candidates_reach_to_ten_whatever_half_of_k_is(k):
    """k = 24, 25 and 40 have halves of 12 and 20, k = 6 and 19 of 3 and 9: N_10 and N_half are told apart.

    150 faces around 12 points: lists of 40 leave most faces out, so that second neighbors bring new ones.
    """
    rng = np.random.default_rng(k)
    points = rng.standard_normal((12, 8))
    vectors = points[rng.integers(0, 12, 150)] + 0.8 * rng.standard_normal((150, 8))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    cosines = vectors @ vectors.T
    ids = np.argsort(-cosines, axis=1, kind="stable")[:, :k].astype(np.int32)
    sims = np.take_along_axis(cosines, ids, axis=1)
    ranked, overlaps = rerank(ids, sims, vectors)
    brought = 0
    for i, row in enumerate(oracles.reranked(ids)):
        assert overlaps[i].tolist() == sorted(row.values(), reverse=True)[:k]
        assert all(row[j] == overlaps[i, at] for at, j in enumerate(ranked[i].tolist()))
        brought += len(set(ranked[i].tolist()) - set(ids[i].tolist()))
    assert brought > 0


def test_an_answer_worked_by_hand():
    """Faces 0 1 2 know each other, face 3 knows 0 and 1 but nobody knows it; k = 3, half = 1.

    R_3: {0 1 2} for 0, 1 and 2; {3} for 3. R_1 of each is the face itself and joins. Overlaps within 0 1 2 are
    1. Candidates of 3: N_3(3) = 3 0 1, and with N_10(0) also 2; it overlaps with itself by 1 and by 0 with the
    others: of these 0 and 1 are in N_3(3) and go first, by cosine 0.5 and 0.25: 3 0 1. Face 2, nearest of all
    by its vector, is not taken.
    """
    ids = np.array([[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 1, 0]], dtype=np.int32)
    sims = np.array([[1, 0.9, 0.8], [1, 0.9, 0.8], [1, 0.8, 0.8], [1, 0.25, 0.5]], dtype=np.float32)
    vectors = np.array([[0, 1], [0, 1], [1, 0], [1, 0]], dtype=np.float32)
    ranked, overlaps = rerank(ids, sims, vectors)
    assert ranked.tolist() == [[0, 1, 2], [1, 0, 2], [2, 0, 1], [3, 0, 1]]
    assert overlaps.tolist() == [[1, 1, 1], [1, 1, 1], [1, 1, 1], [1, 0, 0]]


def test_all_faces_the_same_are_ranked_by_id():
    """Thirty copies of one face, lists 0..9 everywhere: R* of 0..9 is all ten, of the others empty."""
    n, k = 30, 10
    vectors = np.tile(HALVES[3], (n, 1))
    ids = np.tile(np.arange(k, dtype=np.int32), (n, 1))
    ranked, overlaps = rerank(ids, np.ones((n, k), np.float32), vectors)
    assert np.array_equal(ranked, ids)
    assert (overlaps[:k] == 1).all()
    assert (overlaps[k:] == 0).all()


def test_sets_may_grow_beyond_k():
    """400 faces near a circle: R* takes in what lies on either side, and outgrows the list of 48."""
    rng = np.random.default_rng(5)
    vectors = rng.standard_normal((400, 3)) * [1, 1, 0.05]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    ids = np.argsort(-(vectors @ vectors.T), axis=1, kind="stable")[:, :48].astype(np.int32)
    sets = sets_of(ids)
    for i in range(0, 400, 10):
        assert set(sets[i]) == oracles.expanded(ids, i)
    assert max(map(len, sets)) > 48


def golden_lists(path):
    data = np.load(path)["data"]
    return data[:, 0].astype(np.int32), (1 - data[:, 1]).astype(np.float32)


def test_golden_lists_of_k_20_are_met_up_to_ties_and_their_similarities_bit_for_bit(golden):
    """dev/pse/reranking.npz; 187 rows have a tie at the cut, so the tie rule is exercised."""
    ids, sims = golden_lists(golden / "dev/data/faiss_k_20.npz")
    vectors = open_features(golden / "dev/data/features.bin", 32).rows(0, len(ids))
    theirs = np.load(golden / "dev/pse/reranking.npz")
    ranked, overlaps = rerank(ids, sims, vectors)
    assert np.array_equal(overlaps, theirs["sim"])
    assert_equal_up_to_ties(ranked, theirs["knn"], theirs["sim"])


def test_golden_lists_of_k_30_are_met_up_to_ties_and_their_similarities_bit_for_bit(golden):
    """dev/pse/rerank_k30.npz; half is 15 here, so that N_half is not N_10."""
    theirs = np.load(golden / "dev/pse/rerank_k30.npz")
    vectors = open_features(golden / "dev/data/features.bin", 32).rows(0, len(theirs["knn_ids"]))
    ranked, overlaps = rerank(theirs["knn_ids"], 1 - theirs["knn_dist"], vectors)
    assert np.array_equal(overlaps, theirs["similarity"])
    assert_equal_up_to_ties(ranked, theirs["reranked"], theirs["similarity"])


def test_golden_lists_of_real_faces_are_met_up_to_ties_and_their_similarities_bit_for_bit(shared):
    folder = shared / "golden/lfw"
    ids, sims = golden_lists(folder / "data/faiss_k_20.npz")
    vectors = open_features(folder / "data/features.bin", 256).rows(0, len(ids))
    theirs = np.load(folder / "rerank.npz")
    ranked, overlaps = rerank(ids, sims, vectors)
    assert np.array_equal(overlaps, theirs["sim"])
    assert_equal_up_to_ties(ranked, theirs["knn"], theirs["sim"])
