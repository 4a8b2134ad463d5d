import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.groups import (
    groups_from_labels,
    join_groups,
    mark_first,
    mean_rows,
    number_parts,
    offsets_from_sizes,
    take_groups,
)

labellings = st.lists(st.integers(-1, 6), min_size=1, max_size=40).map(
    lambda labels: np.array(labels, dtype=np.int64)
)


def as_lists(offsets, nodes):
    return [nodes[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@settings(deadline=None)
@given(labellings, st.integers(1, 4), st.integers(1, 9))
def test_groups_hold_the_faces_of_a_label_in_order_and_only_sizes_asked_for(labels, least, most):
    groups = [np.flatnonzero(labels == label).tolist() for label in range(labels.max() + 1)]
    found = as_lists(*groups_from_labels(labels, least, most))
    assert found == [group for group in groups if least <= len(group) <= most]
    assert as_lists(*groups_from_labels(labels, least)) == [group for group in groups if len(group) >= least]


@settings(deadline=None)
@given(labellings)
def test_parts_are_labels_and_single_faces_numbered_by_first_appearance(labels):
    numbers = {}
    expected = [
        numbers.setdefault(label if label >= 0 else ("alone", at), len(numbers))
        for at, label in enumerate(labels.tolist())
    ]
    parts, count = number_parts(labels)
    assert parts.tolist() == expected
    assert count == len(numbers)


def test_means_are_numpys_to_the_bit():
    rng = np.random.default_rng(0)
    table = rng.standard_normal((300, 7)).astype(np.float32)
    nodes = np.sort(rng.permutation(300)[:200]).astype(np.int32)
    offsets = offsets_from_sizes(np.array([1, 150, 2, 47]))
    found = mean_rows(offsets, nodes, np.array([1, 0, 3]), table)
    for row, group in zip(found, (1, 0, 3), strict=True):
        assert np.array_equal(row, table[nodes[offsets[group] : offsets[group + 1]]].mean(axis=0))


groups_of_faces = st.lists(st.tuples(st.sets(st.integers(0, 5), min_size=1), st.integers(0, 1)), max_size=30)


@settings(deadline=None)
@given(groups_of_faces)
def test_a_repetition_has_the_faces_and_the_kind_of_one_before(groups):
    offsets, nodes = join_groups(
        [(np.array([0, len(faces)]), np.array(sorted(faces), dtype=np.int32)) for faces, _ in groups]
    )
    found = mark_first(offsets, nodes, np.array([kind for _, kind in groups], dtype=np.int32))
    assert found.tolist() == [group not in groups[:at] for at, group in enumerate(groups)]


@settings(deadline=None)
@given(groups_of_faces, st.randoms(use_true_random=False))
def test_groups_are_taken_in_any_order(groups, random):
    lists = [sorted(faces) for faces, _ in groups]
    offsets, nodes = join_groups(
        [(np.array([0, len(faces)]), np.array(faces, dtype=np.int32)) for faces in lists]
    )
    chosen = [at for at in range(len(lists)) if random.random() < 0.7]
    random.shuffle(chosen)
    found = take_groups(offsets, nodes, np.array(chosen, dtype=np.int64))
    assert as_lists(*found) == [lists[at] for at in chosen]
