"""Clusters keep their numbers, and what becomes of them is listed."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.identity import MERGE, SPLIT, Change, changes_between, keep_numbers

partitions = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
    )
)


def dense(labels: list[int]) -> np.ndarray:
    return np.array(labels, np.int64)


def test_numbers_by_hand() -> None:
    """Old 5 has grown, 3 has lost a face to a new cluster, 8 and 9 have become one, where 9 had more."""
    old = np.array([5, 5, 3, 3, 3, 8, 9, 9, -1, -1, -1])
    new = np.array([0, 0, 1, 1, 2, 3, 3, 3, 0, 4, -1])
    labels = keep_numbers(old, new, 10)
    assert labels.tolist() == [5, 5, 3, 3, 10, 9, 9, 9, 5, 11, -1]
    assert changes_between(old, labels) == [Change(8, 9, 1, MERGE), Change(3, 10, 1, SPLIT)]


def test_of_equal_overlaps_the_lowest_number_stays() -> None:
    assert keep_numbers(np.array([7, 4]), np.array([0, 0]), 8).tolist() == [4, 4]
    assert keep_numbers(np.array([4, 4]), np.array([1, 0]), 8).tolist() == [8, 4]


@given(partitions)
@settings(deadline=None)
def test_numbers_are_the_partition_by_other_names(both: tuple[list[int], list[int]]) -> None:
    old, new = map(dense, both)
    labels = keep_numbers(old, new, 7)
    assert np.array_equal(labels < 0, new < 0)
    known = new >= 0
    assert len(set(zip(labels[known].tolist(), new[known].tolist(), strict=True))) == len(
        set(new[known].tolist())
    )
    assert len(set(labels[known].tolist())) == len(set(new[known].tolist()))
    shares = {number for number, cluster in zip(both[0], labels.tolist(), strict=True) if number == cluster}
    given_anew = set(labels[known].tolist()) - shares
    assert all(
        number >= 7 for number in given_anew
    )  # nobody has the number of a cluster that it shares no face with


@given(partitions)
@settings(deadline=None)
def test_unchanged_clusters_keep_their_numbers_whatever_they_are_called(
    both: tuple[list[int], list[int]],
) -> None:
    old = dense(both[0])
    shuffled = np.random.default_rng(0).permutation(7)
    new = np.where(old < 0, -1, shuffled[np.maximum(old, 0)])
    assert np.array_equal(keep_numbers(old, new, 7), old)
    assert changes_between(old, old) == []


@given(partitions)
@settings(deadline=None)
def test_a_cluster_is_merged_with_one_that_was_there_and_split_off_to_any_other(
    both: tuple[list[int], list[int]],
) -> None:
    """Counted face by face: what is with another number than it had, and of that most of an old cluster."""
    old = dense(both[0])
    labels = keep_numbers(old, dense(both[1]), 7)
    found = {(one.old, one.new): one for one in changes_between(old, labels)}
    placed = [(a, b) for a, b in zip(old.tolist(), labels.tolist(), strict=True) if a >= 0 and b >= 0]
    assert found.keys() == {(a, b) for a, b in placed if a != b}
    for (a, b), one in found.items():
        assert one.faces == placed.count((a, b))
        others = [placed.count((a, other)) for other in {y for x, y in placed if x == a} - {b}]
        if one.kind == MERGE:
            assert b in {x for x, _ in placed}
            assert one.faces >= max(others, default=0)
            assert one.faces > placed.count((a, a))
        else:
            assert b not in {x for x, _ in placed} or one.faces <= max(others, default=0)
