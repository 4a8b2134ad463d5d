import numpy as np
import oracles
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.graph.density import density_from_sums, sum_similarities
from fcdeploy.graph.links import NO_LINK, link_to_denser

TAUS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.87, 0.9)


def density(sims, block=1000):
    sums = np.empty(len(sims), dtype=np.float32)
    for start in range(0, len(sims), block):
        sum_similarities(sims[start : start + block], sums[start : start + block])
    return density_from_sums(sums)


@st.composite
def lists(draw):
    n = draw(st.integers(1, 40))
    k = draw(st.integers(1, n))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    ids = np.stack([rng.permutation(n)[:k] for _ in range(n)]).astype(np.int32)
    sims = rng.uniform(-1, 1, (n, k)).astype(np.float32)
    if draw(st.booleans()):  # few values: many equal densities
        sims = rng.choice(np.float32([0, 0.5, 1]), (n, k))
    return ids, -np.sort(-sims, axis=1)


@settings(max_examples=100, deadline=None)
@given(lists(), st.integers(1, 40))
def test_density_is_the_float32_sum_in_order_over_the_largest_in_any_blocks(case, block):
    """Exactly: densities are compared with each other for strict inequality."""
    _, sims = case
    assert density(sims, block).tolist() == oracles.density(sims)


def test_the_order_of_additions_counts():
    """2^24 + 1 is no float32: one by one from the large end the ones are lost, from the small end they add up."""
    large = np.float32(2**24)
    sims = np.array([[large, 1, 1], [1, 1, large]], dtype=np.float32)
    sums = np.empty(2, dtype=np.float32)
    sum_similarities(sims, sums)
    assert sums.tolist() == [2**24, 2**24 + 2]


def test_densities_of_faces_that_resemble_nobody_are_zero_and_not_nan():
    assert density(np.zeros((3, 2), dtype=np.float32)).tolist() == [0, 0, 0]


def test_the_largest_magnitude_divides():
    """Sums 1, -4 and 2: divided by 4."""
    assert density_from_sums(np.float32([1, -4, 2])).tolist() == [0.25, -1, 0.5]


@settings(max_examples=100, deadline=None)
@given(lists(), st.integers(1, 40))
def test_links_go_to_the_first_strictly_denser_neighbor_in_any_blocks(case, block):
    ids, sims = case
    dense = density(sims)
    expected = oracles.link_to_denser(ids, sims, dense)
    for start in range(0, len(ids), block):
        denser, best = link_to_denser(ids[start : start + block], sims[start : start + block], dense, start)
        for row, (face, sim) in enumerate(zip(denser, best, strict=True)):
            if expected[start + row] is None:
                assert (face, sim) == (NO_LINK, 0)
            else:
                assert (face, sim) == expected[start + row]


def test_links_worked_by_hand():
    """Densities 2 3 3 1. 0 meets itself, then 3 (thinner), then 1; 1 and 2 are equal and do not link; 3's first
    denser neighbor is 0, though 1 is denser still."""
    ids = np.array([[0, 3, 1], [1, 2, 0], [2, 1, 0], [3, 0, 1]], dtype=np.int32)
    sims = np.array([[1, 0.9, 0.8], [1, 0.9, 0.8], [1, 0.9, 0.7], [1, 0.9, 0.6]], dtype=np.float32)
    denser, best = link_to_denser(ids, sims, np.float32([2, 3, 3, 1]), 0)
    assert denser.tolist() == [1, NO_LINK, NO_LINK, 0]
    assert best.tolist() == [np.float32(0.8), 0, 0, np.float32(0.9)]


def assert_golden_clustering(theirs, taus):
    conf, knn, sim = theirs["conf"], theirs["knn"], theirs["sim"]
    assert np.array_equal(density(sim), conf)
    denser, best = link_to_denser(knn, sim, conf, 0)
    for tau in taus:
        kept = np.flatnonzero((denser != NO_LINK) & (best >= np.float32(tau)))
        mine = set(zip(kept.tolist(), denser[kept].tolist(), strict=True))
        assert mine == set(map(tuple, theirs[f"edges_{tau}"].tolist())), tau
        forest = new_forest(len(knn))
        join(forest, kept, denser[kept])
        found = labels_from_forest(forest)
        assert oracles.partition(found) == oracles.partition(theirs[f"labels_{tau}"]), tau


def test_golden_densities_links_and_labels_are_met_exactly_for_eight_tau(golden):
    """dev/pse/clustering.npz: densities bit for bit, links as sets, labels as partitions."""
    assert_golden_clustering(np.load(golden / "dev/pse/clustering.npz"), TAUS)


def test_golden_densities_links_and_labels_of_real_faces_are_met_exactly(shared):
    theirs = np.load(shared / "golden/lfw/pse_clustering_raw.npz")
    assert_golden_clustering(theirs, (0.3, 0.35, 0.4, 0.45, 0.5, 0.6))


@pytest.mark.parametrize("seed", range(3))
def test_a_link_never_leads_round(seed):
    """Densities rise along links, so n faces of one component have n - 1 links or fewer."""
    rng = np.random.default_rng(seed)
    ids = np.stack([rng.permutation(200)[:10] for _ in range(200)]).astype(np.int32)
    sims = -np.sort(-rng.random((200, 10), dtype=np.float32), axis=1)
    dense = density(sims)
    denser, _ = link_to_denser(ids, sims, dense, 0)
    linked = np.flatnonzero(denser != NO_LINK)
    assert (dense[denser[linked]] > dense[linked]).all()
    labels = oracles.components(200, list(zip(linked.tolist(), denser[linked].tolist(), strict=True)))
    assert len(set(labels)) == 200 - len(linked)
