"""Which merges and splits of old clusters are made: the clear ones, or those that somebody chose."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.decided import Named, Rests, named, named_again, usual_weakest
from fcdeploy.clustering.forest import strongest_forest
from fcdeploy.clustering.identity import MERGE, NO_NUMBER, SPLIT, Change, changes_between, keep_numbers

NONE = np.empty((0, 2), np.int64)
NO_LINKS = Rests(NONE, np.empty(0), NONE)
partitions = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
        st.lists(st.integers(-1, 6), min_size=n, max_size=n),
    )
)


@st.composite
def grown(draw: st.DrawFn, *, whole: bool = False) -> tuple[np.ndarray, np.ndarray, Rests]:
    """Old clusters (-1 for new faces), links that make the new ones, and those that made the old ones.

    whole: the links that made the old ones are still among those that make the new ones, of drawn strength.
    """
    n = draw(st.integers(2, 25))
    old = np.array(draw(st.lists(st.integers(-1, 5), min_size=n, max_size=n)), np.int64)
    faces = st.integers(0, n - 1)
    drawn = draw(st.lists(st.tuples(faces, faces, st.integers(1, 9)), max_size=40))
    pairs = np.array([one[:2] for one in drawn], np.int64).reshape(-1, 2)
    strength = np.array([one[2] / 10 for one in drawn])
    held = [
        (faces[0], other)
        for faces in map(np.flatnonzero, old == np.arange(6)[:, None])
        for other in faces[1:]
    ]
    still = np.array(held, np.int64).reshape(-1, 2)
    if whole:
        tenths = draw(st.lists(st.integers(1, 9), min_size=len(still), max_size=len(still)))
        pairs = np.concatenate([pairs, still])
        strength = np.concatenate([strength, np.array(tenths, np.int64) / 10])
    least = draw(st.sampled_from([0.0, 0.35, 0.65, 2.0]))
    return old, components(n, pairs), Rests(pairs, strength, still, least)


def components(n: int, pairs: np.ndarray) -> np.ndarray:
    forest = new_forest(n)
    join(forest, pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32))
    return labels_from_forest(forest)


def decided(old: np.ndarray, new: np.ndarray, merges: bool, splits: bool, rests: Rests = NO_LINKS) -> Named:
    first = int(old.max(initial=-1)) + 1
    return named(old, new, rests, first, merges=lambda change: merges, splits=lambda change: splits)


@given(partitions)
@settings(deadline=None)
def test_what_is_refused_does_not_happen(both: tuple[list[int], list[int]]) -> None:
    """Without merges no two old clusters share one; without splits as well, every old face stays where it was."""
    old, new = (np.array(labels, np.int64) for labels in both)
    old[new < 0] = -1  # in no cluster any more, which is no change of clusters
    apart = decided(old, new, merges=False, splits=True)
    assert all(change.kind == SPLIT for change in apart.changes)
    stays = decided(old, new, merges=False, splits=False)
    assert stays.changes == []
    assert np.array_equal(stays.labels[old >= 0], old[old >= 0])
    assert np.array_equal(stays.labels < 0, new < 0)


@given(partitions)
@settings(deadline=None)
def test_what_everybody_agrees_to_is_the_partition_with_its_numbers(
    both: tuple[list[int], list[int]],
) -> None:
    """And where nothing holds what was split, and any link merges, all of it is clear."""
    old, new = (np.array(labels, np.int64) for labels in both)
    first = int(old.max(initial=-1)) + 1
    wanted = keep_numbers(old, new, first)
    inside = [np.flatnonzero(new == number) for number in range(7)]
    links = np.array([(at[0], other) for at in inside for other in at[1:]], np.int64).reshape(-1, 2)
    clear = named(old, new, Rests(links, np.zeros(len(links)), NONE), first)
    for found in (decided(old, new, merges=True, splits=True), clear):
        assert np.array_equal(found.labels, wanted)
        assert (found.changes, found.refused) == (changes_between(old, wanted), [])


@given(grown())
@settings(deadline=None, max_examples=200)
def test_clear_changes_leave_old_clusters_whole_and_join_them_by_strong_links_alone(
    case: tuple[np.ndarray, np.ndarray, Rests],
) -> None:
    """With all that held them still there, no old cluster is split; two in one are connected by strong links."""
    old, new, rests = case
    found = named(old, new, rests, 6)
    assert np.array_equal(found.labels < 0, new < 0)
    assert all(change.kind == MERGE for change in found.changes)
    assert found.changes == changes_between(old, found.labels)
    strong = rests.links[rests.strength >= rests.least]
    same = [(at[0], other) for at in map(np.flatnonzero, old == np.arange(6)[:, None]) for other in at[1:]]
    joined = components(len(old), np.concatenate([strong, np.array(same, np.int64).reshape(-1, 2)]))
    stored = np.flatnonzero(old >= 0)
    together = found.labels[stored][:, None] == found.labels[stored]
    assert together[old[stored][:, None] == old[stored]].all()
    assert (joined[stored][:, None] == joined[stored])[together].all()


@given(grown(whole=True))
@settings(deadline=None, max_examples=100)
def test_a_spanning_forest_of_the_strongest_links_decides_as_all_links_do(
    case: tuple[np.ndarray, np.ndarray, Rests],
) -> None:
    """Where no old cluster falls apart; a face that goes back to its old cluster takes the forest's links along."""
    old, new, rests = case
    forest = strongest_forest(len(old), [(rests.links, rests.strength.astype(np.float32))], new)
    found = named(old, new, rests, 6)
    again = named(old, new, Rests(*forest, rests.held, np.float32(rests.least)), 6)
    assert np.array_equal(again.labels[old >= 0], found.labels[old >= 0])
    assert set(again.refused) == set(found.refused)


@pytest.mark.parametrize(
    ("least", "labels", "merges"),
    [(0.5, [6, 6, 6, 6, 6, 6, 6], [Change(4, 6, 2, MERGE)]), (0.82, [4, 4, 6, 6, 6, 4, 6], [])],
)
def test_two_old_clusters_become_one_when_the_weakest_link_between_them_is_strong(
    least: float, labels: list[int], merges: list[Change]
) -> None:
    """Faces 0, 1 of 4 and 2, 3, 4 of 6; the new 5 is linked to 1 by 0.9 and to 6 by 0.8, 6 to 2 by 0.85."""
    old = np.array([4, 4, 6, 6, 6, -1, -1])
    links = np.array([[0, 1], [2, 3], [3, 4], [5, 1], [5, 6], [6, 2]])
    rests = Rests(links, np.array([0.7, 0.7, 0.7, 0.9, 0.8, 0.85]), links[:3], least)
    found = named(old, np.zeros(7, np.int64), rests, 7)
    assert found.labels.tolist() == labels
    assert found.changes == merges
    assert found.refused == ([] if merges else [Change(4, 6, 2, MERGE)])


def test_of_three_old_clusters_two_become_one() -> None:
    """1 and 2 are linked by 0.9, and 3, the largest, to 2 by 0.6: whoever has the number, 3 stays apart."""
    old = np.array([1, 1, 2, 2, 2, 3, 3, 3, 3, 3, 3])
    links = np.array([[1, 2], [4, 5], *([at, at + 1] for at in (0, 2, 3, 5, 6, 7, 8, 9))])
    rests = Rests(links, np.array([0.9, 0.6, *[0.5] * 8]), links[2:], 0.8)
    found = named(old, np.zeros(11, np.int64), rests, 4)
    assert found.labels.tolist() == [2] * 5 + [3] * 6
    assert found.changes == [Change(1, 2, 2, MERGE)]
    assert set(found.refused) == {Change(1, 3, 2, MERGE), Change(2, 3, 3, MERGE)}


def test_a_cluster_falls_apart_where_faces_that_held_it_are_gone_and_nowhere_else() -> None:
    """Old 1 was 0-1-2-x-3-4, and x is gone: 3 and 4 go, 2 stays though nothing new links it; all of 2 stays one."""
    old = np.array([1, 1, 1, 1, 1, 2, 2, 2])
    new = np.array([0, 0, 1, 2, 2, 3, 3, 4])
    held = np.array([[0, 1], [1, 2], [3, 4], [5, 6], [6, 7]])
    rests = Rests(np.array([[0, 1], [3, 4], [5, 6]]), np.full(3, 0.9), held)
    found = named(old, new, rests, 3)
    assert found.labels.tolist() == [1, 1, 1, 3, 3, 2, 2, 2]
    assert found.changes == [Change(1, 3, 2, SPLIT)]
    assert found.refused == [Change(1, NO_NUMBER, 1, SPLIT), Change(2, NO_NUMBER, 1, SPLIT)]


def test_new_faces_go_along_with_a_part_that_comes_back() -> None:
    """Faces 2 and 3 of old 1 are split off with the new 4; face 5 of 2 was split off to where 6 of old 3 is."""
    old = np.array([1, 1, 1, 1, -1, 2, 3, 2, 2])
    new = np.array([0, 0, 1, 1, 1, 2, 2, 3, 3])
    links = np.array([[0, 1], [2, 3], [3, 4], [5, 6], [7, 8]])
    held = np.array([[0, 1], [1, 2], [2, 3], [5, 7], [7, 8]])
    found = named(old, new, Rests(links, np.full(5, 0.9), held), 4)
    assert found.labels.tolist() == [1, 1, 1, 1, 1, 2, 3, 2, 2]
    assert found.changes == []


def test_an_old_cluster_goes_as_a_whole_where_most_of_it_goes() -> None:
    """Of old 1 three faces are with 2 now, by strong links, and the fourth, that links still hold, goes with them."""
    old = np.array([1, 1, 1, 1, 2, 2, 2, 2, 2])
    new = np.array([0, 0, 0, 1, 0, 0, 0, 0, 0])
    links = np.array([[0, 1], [1, 2], [2, 4], [4, 5], [5, 6], [6, 7], [7, 8]])
    held = np.array([[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 7], [7, 8]])
    assert named(old, new, Rests(links, np.full(7, 0.9), held, 0.8), 3).labels.tolist() == [2] * 9
    apart = named(old, new, Rests(links, np.full(7, 0.7), held, 0.8), 3)
    assert apart.labels.tolist() == [1] * 4 + [2] * 5
    assert apart.changes == []


def test_new_faces_between_clusters_that_stay_apart_go_where_the_stronger_links_lead() -> None:
    """Faces 0, 1 of 4 and 2, 3, 4 of 6; the new 5 is linked to 1 by 0.9 and to 6 by 0.8, 6 to 2 by 0.85."""
    old = np.array([4, 4, 6, 6, 6, -1, -1])
    new = np.zeros(7, np.int64)
    rests = Rests(
        np.array([[0, 1], [2, 3], [3, 4], [5, 1], [5, 6], [6, 2]]),
        np.array([0.7, 0.7, 0.7, 0.9, 0.8, 0.85]),
        NONE,
    )
    assert decided(old, new, merges=True, splits=True, rests=rests).labels.tolist() == [6] * 7
    found = decided(old, new, merges=False, splits=True, rests=rests)
    assert found.labels.tolist() == [4, 4, 6, 6, 6, 4, 6]
    assert found.refused == [Change(4, 6, 2, MERGE)]


def test_each_change_is_decided_by_itself() -> None:
    old = np.array([1, 2, 2, 3, 3, 3, 3])
    new = np.zeros(7, np.int64)
    found = named(old, new, NO_LINKS, 4, merges=lambda change: change.old == 1, splits=lambda change: True)
    assert found.labels.tolist() == [3, 2, 2, 3, 3, 3, 3]
    assert (found.changes, found.refused) == ([Change(1, 3, 1, MERGE)], [Change(2, 3, 2, MERGE)])


def test_nobody_is_asked_twice_about_a_part_that_gets_another_number() -> None:
    """Old 1 falls into faces 0 and 1, face 2, and 3 and 4; 2 comes back, and 3 and 4 are then the first new cluster."""
    old, asked = np.ones(5, np.int64), []

    def one_face_stays(change: Change) -> bool:
        asked.append(change)
        return change.faces > 1

    found = named(
        old, np.array([0, 0, 1, 2, 2]), NO_LINKS, 2, merges=lambda change: True, splits=one_face_stays
    )
    assert asked == [Change(1, 2, 1, SPLIT), Change(1, 3, 2, SPLIT)]
    assert found.labels.tolist() == [1, 1, 1, 2, 2]
    assert (found.changes, found.refused) == (
        [Change(1, 2, 2, SPLIT)],
        [Change(1, NO_NUMBER, 1, SPLIT)],
    )


def test_a_part_that_would_go_to_another_old_cluster_comes_back_alone() -> None:
    """Old 1 loses its last face to old 2; refused, only that face goes back, and not all of 2 with it."""
    old = np.array([1, 1, 1, 2, 2, -1])
    new = np.array([0, 0, 1, 1, 1, 1])
    assert changes_between(old, keep_numbers(old, new, 3)) == [Change(1, 2, 1, SPLIT)]
    assert decided(old, new, merges=True, splits=False).labels.tolist() == [1, 1, 1, 2, 2, 2]


def test_what_a_person_knows_is_numbered_like_anything_else() -> None:
    """Face 2 of old 1 is known to be somebody else, and old 3 to be the same as old 2: no matter who refused that."""
    old = np.array([1, 1, 1, 2, 2, 3])
    before = Named(old, [], [Change(3, 2, 1, MERGE), Change(1, 2, 3, MERGE)])
    found = named_again(old, np.array([0, 0, 1, 2, 2, 2]), 4, before)
    assert found.labels.tolist() == [1, 1, 4, 2, 2, 2]
    assert found.changes == [Change(3, 2, 1, MERGE), Change(1, 4, 1, SPLIT)]
    assert found.refused == [Change(1, 2, 3, MERGE)]


def test_the_usual_weakest_link_is_the_median_of_the_clusters_that_links_hold() -> None:
    """0.9 and 0.5 of cluster 0, 0.8 of 1, 0.7 of 3; 2 is alone, and no accepted link holds 4 together."""
    labels = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 4])
    links = np.array([[0, 1], [3, 4], [6, 7], [1, 2], [8, 9]])
    strength = np.array([0.9, 0.8, 0.7, 0.5, 0.0], np.float32)
    assert usual_weakest(links, strength, labels) == pytest.approx(0.7)
    assert usual_weakest(links[4:], strength[4:], labels) == -np.inf
    assert usual_weakest(NONE, np.empty(0, np.float32), np.full(3, -1)) == -np.inf
