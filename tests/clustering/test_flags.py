"""Each flag on a case made for it; and what is no such case has none."""

import numpy as np
import pytest

from fcdeploy.clustering.evidence import SIMILARITY, Evidence, similarity_within
from fcdeploy.clustering.flags import (
    BORDERLINE,
    CHAIN,
    COPIES,
    DUPLICATE,
    FLAGS,
    GARBAGE,
    MEGA,
    STRAY,
    measured,
    names_of,
    random_nearest,
)
from fcdeploy.clustering.forest import completed, strongest_between, strongest_forest
from fcdeploy.graph.knn import KnnGraph

K, DIM = 12, 128


def persons(rng, sizes, spread=0.4):
    """Unit vectors around as many random directions, and whose they are."""
    centres = rng.standard_normal((len(sizes), DIM))
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    person = np.repeat(np.arange(len(sizes)), sizes)
    vectors = centres[person] + spread * rng.standard_normal((len(person), DIM)) / np.sqrt(DIM)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), person


def measure(vectors, labels, counts=None, more_links=()):
    """Measure clusters of vectors; links are the entries of neighbor lists, and ``more_links`` (a, b, strength)."""
    similar = vectors @ vectors.T
    np.fill_diagonal(similar, 2)
    ids = np.argsort(-similar, axis=1, kind="stable")[:, :K].astype(np.int32)
    sims = np.take_along_axis(similar, ids, axis=1)
    links = np.stack([np.repeat(np.arange(len(ids)), K), ids.ravel()], axis=1)
    more = np.array([link[:2] for link in more_links], np.int64).reshape(-1, 2)
    strong = np.array([link[2] for link in more_links], np.float32)
    blocks = [(links, sims.ravel()), (more, strong)]
    evidence = Evidence(
        *completed(*strongest_forest(len(labels), blocks, labels), labels),
        *strongest_between(blocks, labels),
        SIMILARITY,
        KnnGraph(ids, sims),
        similarity_within(vectors, labels),
        sims[:, 1].copy(),
        DIM,
    )
    counts = np.ones(len(labels), np.int64) if counts is None else counts
    sizes = np.bincount(labels, weights=counts).astype(np.int64)
    return measured(evidence, labels, counts, sizes)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def test_persons_that_stand_apart_have_no_flag(rng):
    vectors, person = persons(rng, [30, 20, 10, 5, 2])
    found = measure(vectors, person)
    assert not found.clusters.flags.any()
    assert not found.faces.flags.any()
    assert found.clusters.cohesion.min() > 0.9


def test_a_cluster_of_single_faces_of_many_persons_is_garbage_and_a_large_one_mega(rng):
    vectors, person = persons(rng, [40, 40, *[1] * 60])
    labels = np.minimum(person, 2)
    found = measure(vectors, labels)
    assert found.clusters.flags[2] & GARBAGE
    assert found.clusters.flags[2] & MEGA
    assert not found.clusters.flags[:2].any()


def test_two_persons_on_one_weak_link_are_a_chain(rng):
    vectors, person = persons(rng, [30, 30, 30, 30])
    labels = np.array([0, 0, 1, 2])[person]
    found = measure(vectors, labels, more_links=[(3, 33, 0.05)])
    assert (found.clusters.flags & CHAIN).astype(bool).tolist() == [True, False, False]
    assert found.clusters.weakest[0] == np.float32(0.05)


def test_a_part_of_a_person_is_a_duplicate_of_the_rest(rng):
    vectors, person = persons(rng, [20, 20, 20])
    labels = np.where(np.arange(60) < 4, 3, person)  # four faces of the first person stand apart
    found = measure(vectors, labels)
    assert found.clusters.duplicate_of.tolist() == [-1, -1, -1, 0]
    assert found.clusters.flags[3] & DUPLICATE
    assert found.clusters.nearest[3] == 0


def test_a_cluster_whose_faces_lie_as_near_to_another_is_borderline(rng):
    """Every other face of a person: each half's nearest faces are as often in the other half."""
    vectors, person = persons(rng, [20, 20, 20])
    labels = np.where((person == 0) & (np.arange(60) % 2 == 0), 3, person)
    found = measure(vectors, labels)
    assert (found.clusters.flags & BORDERLINE).astype(bool).tolist() == [True, False, False, True]


def test_a_cluster_of_copies_is_flagged_by_its_rows(rng):
    vectors, person = persons(rng, [20, 20])
    counts = np.ones(40, np.int64)
    counts[3] = 200
    found = measure(vectors, person, counts)
    assert (found.clusters.flags & COPIES).astype(bool).tolist() == [True, False]
    assert found.clusters.size.tolist() == [219, 20]


def test_random_directions_are_strays_and_faces_of_persons_are_not(rng):
    vectors, person = persons(rng, [20] * 20)
    noise = rng.standard_normal((100, DIM))
    noise = (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)
    labels = np.concatenate([person, 20 + np.arange(100)])
    found = measure(np.concatenate([vectors, noise]), labels)
    stray = (found.faces.flags & STRAY).astype(bool)
    assert not stray[:400].any()
    assert stray[400:].mean() >= 0.85


@pytest.mark.parametrize(("n", "d"), [(50, 2), (300, 8), (1000, 64)])
def test_nine_in_ten_random_directions_have_no_nearer_one(n, d):
    rng = np.random.default_rng(n)
    others, asked = rng.standard_normal((n - 1, d)), rng.standard_normal((600, d))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    asked /= np.linalg.norm(asked, axis=1, keepdims=True)
    nearest = (asked @ others.T).max(axis=1)
    # Within what 600 draws and one set of others scatter.
    assert np.mean(nearest <= random_nearest(n, d)) == pytest.approx(0.9, abs=0.08)


def test_names_of_flags():
    assert names_of(0) == ""
    assert names_of(GARBAGE | CHAIN) == "garbage;chain"
    assert names_of(sum(FLAGS.values())).split(";") == list(FLAGS)
