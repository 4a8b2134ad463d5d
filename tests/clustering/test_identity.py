"""Clusters keep their numbers, and what becomes of them is listed and decided."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.identity import MERGE, SPLIT, Change, Named, changes_between, keep_numbers, named

NO_LINKS = np.empty((0, 2), np.int64), np.empty(0)
partitions = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
    )
)


def dense(labels: list[int]) -> np.ndarray:
    return np.array(labels, np.int64)


def decided(old: np.ndarray, new: np.ndarray, merges: bool, splits: bool, links=NO_LINKS) -> Named:  # type: ignore[no-untyped-def]
    first = int(old.max(initial=-1)) + 1
    return named(old, new, links, first, merges=lambda change: merges, splits=lambda change: splits)


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
def test_what_is_refused_does_not_happen(both: tuple[list[int], list[int]]) -> None:
    """Without merges no two old clusters share one; without splits as well, every old face stays where it was."""
    old, new = map(dense, both)
    old[new < 0] = -1  # in no cluster any more, which is no change of clusters
    apart = decided(old, new, merges=False, splits=True)
    assert all(change.kind == SPLIT for change in apart.changes)
    stays = decided(old, new, merges=False, splits=False)
    assert stays.changes == []
    assert np.array_equal(stays.labels[old >= 0], old[old >= 0])
    assert np.array_equal(stays.labels < 0, new < 0)


def test_new_faces_between_clusters_that_stay_apart_go_where_the_stronger_links_lead() -> None:
    """Faces 0, 1 of 4 and 2, 3, 4 of 6; the new 5 is linked to 1 by 0.9 and to 6 by 0.8, 6 to 2 by 0.85."""
    old = np.array([4, 4, 6, 6, 6, -1, -1])
    new = np.zeros(7, np.int64)
    links = (
        np.array([[0, 1], [2, 3], [3, 4], [5, 1], [5, 6], [6, 2]]),
        np.array([0.7, 0.7, 0.7, 0.9, 0.8, 0.85]),
    )
    assert decided(old, new, merges=True, splits=True, links=links).labels.tolist() == [6] * 7
    found = decided(old, new, merges=False, splits=True, links=links)
    assert found.labels.tolist() == [4, 4, 6, 6, 6, 4, 6]
    assert found.refused == [Change(4, 6, 2, MERGE)]


def test_each_change_is_decided_by_itself() -> None:
    old = np.array([1, 2, 2, 3, 3, 3, 3])
    new = np.zeros(7, np.int64)
    found = named(old, new, NO_LINKS, 4, merges=lambda change: change.old == 1, splits=lambda change: True)
    assert found.labels.tolist() == [3, 2, 2, 3, 3, 3, 3]
    assert (found.changes, found.refused) == ([Change(1, 3, 1, MERGE)], [Change(2, 3, 2, MERGE)])


def test_a_part_that_would_go_to_another_old_cluster_comes_back_alone() -> None:
    """Old 1 loses its last face to old 2; refused, only that face goes back, and not all of 2 with it."""
    old = np.array([1, 1, 1, 2, 2, -1])
    new = np.array([0, 0, 1, 1, 1, 1])
    assert changes_between(old, keep_numbers(old, new, 3)) == [Change(1, 2, 1, SPLIT)]
    assert decided(old, new, merges=True, splits=False).labels.tolist() == [1, 1, 1, 2, 2, 2]
