import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.dendrogram import dendrogram_of
from fcdeploy.clustering.evidence import SIMILARITY, Evidence
from fcdeploy.clustering.forest import strongest_between, strongest_forest
from fcdeploy.clustering.sampling import cuts_of, draw_pairs
from fcdeploy.data.labels import renumber
from fcdeploy.graph.knn import KnnGraph


@st.composite
def clustered_faces(draw):
    """Faces in a few clusters, held together by some links and hardly linked to each other."""
    n = draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    ids = rng.integers(0, n, (3 * n, 2)).astype(np.int32)
    strength = np.round(rng.random(3 * n), 2).astype(np.float32)
    everyone = np.zeros(n, np.int64)
    tree, weights = strongest_forest(n, [(ids, strength)], everyone)
    taken = weights >= draw(st.sampled_from([0.0, 0.5, 0.8, 1.1]))
    labels = renumber(parts_of(n, tree[taken]))
    links = strongest_forest(n, [(ids, strength)], labels)
    beyond = strongest_between([(ids, strength)], labels)
    lists = KnnGraph(np.arange(n, dtype=np.int32)[:, None], np.ones((n, 1), np.float32))
    nothing = np.zeros(n, np.float32)
    return labels, Evidence(*links, *beyond, SIMILARITY, lists, nothing, nothing, 2)


def parts_of(n, links):
    parts = list(range(n))
    for a, b in np.asarray(links).tolist():
        old, new = parts[a], parts[b]
        parts = [new if part == old else part for part in parts]
    return np.array(parts)


def all_links(evidence):
    links = np.concatenate([evidence.links, evidence.beyond])
    return links, np.concatenate([evidence.strength, evidence.beyond_strength])


def number_of_link(links, n):
    """Of every pair of faces: the number of the link that brings them together, taken one by one."""
    found = {}
    for t in range(len(links) + 1):
        parts = parts_of(n, links[:t])
        for pair in itertools.combinations(range(n), 2):
            if parts[pair[0]] == parts[pair[1]]:
                found.setdefault(pair, t - 1)
    return found


@settings(max_examples=100, deadline=None)
@given(clustered_faces())
def test_every_link_joins_two_runs_next_to_each_other(case):
    labels, evidence = case
    n, (links, strength) = len(labels), all_links(evidence)
    tree = dendrogram_of(n, links, strength)
    assert sorted(tree.order.tolist()) == list(range(n))
    expected = number_of_link(links, n)
    for t in range(len(links)):
        left = tree.order[tree.begin[t] : tree.middle[t]].tolist()
        right = tree.order[tree.middle[t] : tree.end[t]].tolist()
        assert {tuple(sorted(pair)) for pair in itertools.product(left, right)} == {
            pair for pair, number in expected.items() if number == t
        }


@settings(max_examples=100, deadline=None)
@given(clustered_faces(), st.integers(1, 60))
def test_strata_hold_the_pairs_by_the_link_that_brings_them_together(case, count):
    labels, evidence = case
    n, (links, strength) = len(labels), all_links(evidence)
    drawn = draw_pairs(evidence, count)
    assert len(drawn.ids) <= count
    ids = np.sort(drawn.ids, axis=1)
    assert len(np.unique(ids, axis=0)) == len(ids)
    expected = number_of_link(links, n)
    for (a, b), strong, together in zip(ids.tolist(), drawn.strength, drawn.together, strict=True):
        assert strong == strength[expected[a, b]]
        assert together == (labels[a] == labels[b])
    for stratum in np.unique(drawn.stratum):
        (size,) = np.unique(drawn.pairs[drawn.stratum == stratum])
        assert np.count_nonzero(drawn.stratum == stratum) <= size
    total = sum(labels[a] == labels[b] for a, b in expected)
    inside = {int(s): int(p) for s, p, t in zip(drawn.stratum, drawn.pairs, drawn.together, strict=True) if t}
    assert sum(inside.values()) <= total
    if count >= len(expected) and total:
        assert sum(inside.values()) == total  # every pair that is in a cluster is drawn


@settings(max_examples=100, deadline=None)
@given(clustered_faces(), st.integers(1, 60), st.integers(0, 100))
def test_every_link_has_its_share_of_what_is_drawn_of_a_stratum(case, count, seed):
    """To within a pair, however many pairs it brings together: they are often all of one person or none."""
    labels, evidence = case
    n, (links, _) = len(labels), all_links(evidence)
    drawn = draw_pairs(evidence, count, seed)
    expected = number_of_link(links, n)
    numbers = np.array([expected[a, b] for a, b in np.sort(drawn.ids, axis=1).tolist()])
    ends = np.cumsum(np.bincount(list(expected.values()), minlength=len(links)))
    inside = int(ends[len(evidence.links) - 1]) if len(evidence.links) else 0
    cuts = cuts_of(inside, len(expected))
    for stratum in np.unique(drawn.stratum):
        of = drawn.stratum == stratum
        assert drawn.pairs[of][0] == cuts[stratum + 1] - cuts[stratum]
        for number, end in enumerate(ends.tolist()):
            begin = max(cuts[stratum], int(ends[number - 1]) if number else 0)
            share = max(0, min(cuts[stratum + 1], end) - begin) / drawn.pairs[of][0]
            assert abs((numbers[of] == number).sum() - share * of.sum()) < 1


def test_an_estimate_from_drawn_pairs_is_right_on_average():
    """Two persons in one cluster of 20 and 10 faces: half of the pairs are wrong, whatever is drawn."""
    n = 30
    person = np.repeat([0, 1], [20, 10])
    rng = np.random.default_rng(0)
    links = np.array([[0, face] for face in range(1, n)], np.int32)
    strength = np.sort(rng.random(n - 1).astype(np.float32))[::-1]
    lists = KnnGraph(np.arange(n, dtype=np.int32)[:, None], np.ones((n, 1), np.float32))
    nothing = np.zeros(n, np.float32)
    none = np.empty((0, 2), np.int32), np.empty(0, np.float32)
    evidence = Evidence(links, strength, *none, SIMILARITY, lists, nothing, nothing, 2)
    estimates = []
    for seed in range(200):
        drawn = draw_pairs(evidence, 30, seed)
        same = person[drawn.ids[:, 0]] == person[drawn.ids[:, 1]]
        shares = [
            same[drawn.stratum == s].mean() * drawn.pairs[drawn.stratum == s][0] for s in set(drawn.stratum)
        ]
        estimates.append(sum(shares))
    truth = 20 * 19 / 2 + 10 * 9 / 2
    spread = np.std(estimates) / np.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * spread)
    assert spread > 0


def test_strata_are_narrow_on_both_sides_of_the_threshold():
    assert cuts_of(1000, 10**6) == [0, 250, 500, 750, 900, 1000, 1100, 1400, 2000, 4000, 16000]
    assert cuts_of(1000, 1200) == [0, 250, 500, 750, 900, 1000, 1100, 1200]
    assert cuts_of(0, 50) == [0, 10, 50]
