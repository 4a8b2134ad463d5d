import itertools

import numpy as np
import oracles
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.forest import UNSUPPORTED, completed, strongest_forest


@st.composite
def scored_links(draw):
    """Faces, links among them with few different strengths (many are equal), and clusters that links may cross."""
    n = draw(st.integers(1, 25))
    face = st.integers(0, n - 1)
    links = draw(st.lists(st.tuples(face, face, st.sampled_from([0.1, 0.5, 0.5, 0.9])), max_size=60))
    labels = draw(st.lists(st.integers(-1, 3), min_size=n, max_size=n))
    return n, links, np.array(labels, np.int64)


def as_block(links):
    ids = np.array([link[:2] for link in links], np.int32).reshape(-1, 2)
    return ids, np.array([link[2] for link in links], np.float32)


def brute_force(n, links, labels):
    """Kruskal's algorithm, link by link, over sets of faces."""
    parts = {face: {face} for face in range(n)}
    inside = {
        (-np.float32(s), min(a, b), max(a, b)) for a, b, s in links if labels[a] == labels[b] >= 0 and a != b
    }
    forest = []
    for minus, a, b in sorted(inside):
        if parts[a] is not parts[b]:
            joined = parts[a] | parts[b]
            parts.update(dict.fromkeys(joined, joined))
            forest.append((a, b, -minus))
    return forest


@settings(max_examples=200, deadline=None)
@given(scored_links(), st.integers(1, 7), st.randoms())
def test_the_forest_is_kruskals_whatever_the_blocks_the_order_and_the_direction(case, size, random):
    n, links, labels = case
    shuffled = [(b, a, s) if random.random() < 0.5 else (a, b, s) for a, b, s in links]
    random.shuffle(shuffled)
    blocks = [as_block(shuffled[at : at + size]) for at in range(0, len(shuffled), size)]
    ids, strength = strongest_forest(n, blocks, labels)
    found = [(a, b, s) for (a, b), s in zip(ids.tolist(), strength, strict=True)]
    assert found == brute_force(n, links, labels)


@settings(max_examples=200, deadline=None)
@given(scored_links())
def test_a_completed_forest_has_the_clusters_as_its_components(case):
    n, links, labels = case
    ids, strength = completed(*strongest_forest(n, [as_block(links)], labels), labels)
    forest = new_forest(n)
    join(forest, ids[:, 0], ids[:, 1])
    parts = labels_from_forest(forest)
    clusters = len(set(labels[labels >= 0].tolist()))
    assert len(ids) == np.count_nonzero(labels >= 0) - clusters
    for a, b in itertools.combinations(range(n), 2):
        assert (parts[a] == parts[b]) == (labels[a] == labels[b] >= 0)
    added = oracles.components(n, brute_pairs(n, links, labels))
    lacking = np.count_nonzero(labels >= 0) - clusters - (n - len(set(added)))
    assert np.count_nonzero(strength == UNSUPPORTED) == lacking


def brute_pairs(n, links, labels):
    return [(a, b) for a, b, _ in links if labels[a] == labels[b] >= 0]


def test_an_answer_worked_by_hand():
    """0-1 (.9) and 1-2 (.5) hold 0, 1, 2 together, 0-2 (.5) comes after 0-1 and before 1-2: it is taken instead."""
    links = [(1, 2, 0.5), (0, 2, 0.5), (1, 0, 0.9), (3, 0, 0.7)]
    labels = np.array([0, 0, 0, 1, 0])
    ids, strength = completed(*strongest_forest(5, [as_block(links)], labels), labels)
    assert ids.tolist() == [[0, 1], [0, 2], [0, 4]]
    assert strength.tolist() == [np.float32(0.9), 0.5, 0]
