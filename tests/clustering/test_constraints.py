import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.constraints import Constraints, constrain, contradiction
from fcdeploy.data.labels import renumber


@st.composite
def constrained_faces(draw):
    """Faces with links, strongest first, pairs without contradictions, and perhaps photos."""
    n = draw(st.integers(2, 16))
    face = st.integers(0, n - 1)
    pair = st.tuples(face, face).filter(lambda ends: ends[0] != ends[1])
    links = draw(st.lists(pair, max_size=30))
    same = draw(st.lists(pair, max_size=4))
    different = draw(st.lists(pair, max_size=6))
    parts = parts_of(n, same)
    different = [(a, b) for a, b in different if parts[a] is not parts[b]]
    photo = draw(st.none() | st.lists(st.integers(-1, 5), min_size=n, max_size=n))
    return n, links, same, different, photo


def parts_of(n, links):
    parts = {face: {face} for face in range(n)}
    for a, b in links:
        joined = parts[a] | parts[b]
        parts.update(dict.fromkeys(joined, joined))
    return parts


def brute_force(n, links, same, different, photo):
    """Sets of faces; a link is taken unless a pair of its two sets is known to be different."""
    apart = {frozenset(pair) for pair in different}
    if photo is not None:
        apart |= {
            frozenset(pair)
            for pair in itertools.combinations(range(n), 2)
            if photo[pair[0]] == photo[pair[1]] >= 0
        }
    parts = parts_of(n, same)
    refused = []
    for at, (a, b) in enumerate(links):
        if parts[a] is parts[b]:
            continue
        if any(frozenset((x, y)) in apart for x in parts[a] for y in parts[b]):
            refused.append(at)
            continue
        joined = parts[a] | parts[b]
        parts.update(dict.fromkeys(joined, joined))
    return [min(parts[face]) for face in range(n)], refused


def array_of(pairs):
    return np.array(pairs, np.int32).reshape(-1, 2)


def clusters_of(n, links):
    forest = new_forest(n)
    ids = array_of(links)
    join(forest, ids[:, 0], ids[:, 1])
    return labels_from_forest(forest)


def run(n, links, same, different, photo, labels=None):
    constraints = Constraints(
        array_of(same), array_of(different), None if photo is None else np.array(photo, np.int32)
    )
    labels = clusters_of(n, links) if labels is None else labels
    return constrain(labels, array_of(links), np.arange(len(links)), constraints)


@settings(max_examples=300, deadline=None)
@given(constrained_faces())
def test_clusters_and_refused_links_are_those_of_sets_joined_one_by_one(case):
    expected, refused = brute_force(*case)
    found = run(*case)
    assert found.labels.tolist() == renumber(np.array(expected)).tolist()
    assert found.refused.tolist() == refused
    assert np.flatnonzero(~found.links).tolist() == refused


@settings(max_examples=300, deadline=None)
@given(constrained_faces())
def test_what_is_known_holds(case):
    n, _, same, different, photo = case
    found = run(*case)
    labels = found.labels
    assert all(labels[a] == labels[b] for a, b in same)
    assert all(labels[a] != labels[b] for a, b in different)
    vouched = parts_of(n, same)
    if photo is not None:
        for a, b in itertools.combinations(range(n), 2):
            # Only a person who says so brings faces of one photo together.
            if photo[a] == photo[b] >= 0 and not any(len(part) > 1 for part in vouched.values()):
                assert labels[a] != labels[b]
    for (a, b), why in zip(found.between.tolist(), found.why.tolist(), strict=True):
        assert ((a, b) in different or (b, a) in different) if why == 1 else photo[a] == photo[b] >= 0


@settings(max_examples=100, deadline=None)
@given(constrained_faces())
def test_without_constraints_the_partition_stays_as_it_is(case):
    n, links, *_ = case
    labels = clusters_of(n, links)
    alone = np.bincount(labels)[labels] == 1
    labels = renumber(np.where(alone & (np.arange(n) % 2 == 0), -1, labels))  # some are in no cluster
    found = run(n, links, [], [], None, labels)
    assert np.array_equal(found.labels, labels)
    assert not len(found.refused)


@settings(max_examples=200, deadline=None)
@given(constrained_faces(), st.data())
def test_a_contradiction_is_found_with_pairs_that_lead_from_one_face_to_the_other(case, data):
    n, _, same, different, _ = case
    assert contradiction(n, array_of(same), array_of(different)) is None
    parts = parts_of(n, same)
    wrong = [pair for pair in itertools.combinations(range(n), 2) if parts[pair[0]] is parts[pair[1]]]
    if not wrong:
        return
    a, b = data.draw(st.sampled_from(wrong))
    at, path = contradiction(n, array_of(same), array_of([*different, (a, b)]))
    assert at == len(different)
    assert parts_of(n, [same[number] for number in path])[a] >= {a, b}
    for left_out in path:  # none of them is there for nothing
        fewer = [same[number] for number in path if number != left_out]
        assert b not in parts_of(n, fewer)[a]


def test_the_stronger_of_two_links_is_taken_when_one_has_to_be_refused():
    """1 and 2 are different; 0-1 comes first, so that 0-2 is refused, and 2-3 stays."""
    found = run(4, [(0, 1), (0, 2), (2, 3)], [], [(2, 1)], None)
    assert found.labels.tolist() == [0, 0, 1, 1]
    assert found.refused.tolist() == [1]
    assert sorted(found.between[0].tolist()) == [1, 2]


def test_a_crowd_of_one_photo_stays_apart_in_reasonable_time():
    """3,000 faces of one photo, all linked to one face outside of it: the first comes to it, the others stay alone."""
    n = 3001
    links = np.stack([np.zeros(n - 1, np.int32), np.arange(1, n, dtype=np.int32)], axis=1)
    photo = np.zeros(n, np.int32)
    photo[0] = -1
    none = np.empty((0, 2), np.int32)
    found = constrain(np.zeros(n, np.int64), links, np.arange(n - 1), Constraints(none, none, photo))
    assert found.labels.tolist() == [0, 0, *range(1, n - 1)]
    assert (found.why == 2).all()
