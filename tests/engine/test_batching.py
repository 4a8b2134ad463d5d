import itertools
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fcdeploy.engine.batching import gather_rows, groups_by_size, prefetch


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 100), max_size=60), st.integers(1, 400), st.integers(1, 20))
def test_groups_cover_every_position_once_within_their_limits_and_waste_no_call(sizes, rows, most):
    sizes = np.array(sizes, dtype=np.int32)
    groups = list(groups_by_size(sizes, rows, most))
    covered = sorted(itertools.chain.from_iterable(group.tolist() for group in groups))
    assert covered == list(range(len(sizes)))
    for at, group in enumerate(groups):
        largest = sizes[group[0]]
        assert largest == sizes[group].max()
        assert len(group) <= most
        assert len(group) == 1 or len(group) * largest <= rows
        if at + 1 < len(groups):
            assert sizes[group].min() >= sizes[groups[at + 1]].max()
            assert len(group) == most or (len(group) + 1) * largest > rows


def test_groups_worked_by_hand():
    """At most 10 rows: 7 alone (two would be 14), the 5 and 3 together, then 2 2 1 in 6."""
    groups = groups_by_size(np.array([2, 7, 1, 3, 2, 5]), rows=10, most=3)
    assert [group.tolist() for group in groups] == [[1], [5, 3], [0, 4, 2]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32 - 1))
def test_gathered_rows_are_the_table_s_and_zero_in_padding(b, w, h, seed):
    rng = np.random.default_rng(seed)
    table = rng.standard_normal((9, h)).astype(np.float32)
    nodes = rng.integers(-1, 9, (b, w)).astype(np.int32)
    out = np.full((b, w, h), np.float32(np.nan))
    gather_rows(table, nodes, out)
    assert np.array_equal(out, np.where((nodes >= 0)[:, :, None], table[nodes], 0))


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_ahead_gives_every_item_in_order(count, depth):
    """None is an item like any other."""
    items = [None if at % 3 == 0 else at for at in range(count)]
    assert list(prefetch(iter(items), depth)) == items


def test_ahead_works_in_another_thread_and_never_further_than_its_depth():
    made, threads = [], set()

    def items():
        for at in range(20):
            threads.add(threading.get_ident())
            made.append(at)
            yield at

    for taken, at in enumerate(prefetch(items(), depth=2)):
        time.sleep(0.002)
        assert at == taken
        # two wait in the queue, one is made and waits for room, and one more was just taken
        assert len(made) <= taken + 1 + 2 + 1
    assert made == list(range(20))
    assert threads
    assert threading.get_ident() not in threads


class BrokenDisk(Exception):
    pass


@pytest.mark.parametrize("good", [0, 1, 5])
def test_an_error_of_the_source_is_raised_here_after_the_items_before_it(good):
    def items():
        yield from range(good)
        raise BrokenDisk("sector 7")

    before, taken = threading.active_count(), []
    with pytest.raises(BrokenDisk, match="sector 7"):
        taken.extend(prefetch(items()))
    assert taken == list(range(good))
    assert threading.active_count() == before


def test_an_interrupt_of_the_source_is_raised_here_too():
    def items():
        yield 1
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(prefetch(items()))


def test_leaving_early_stops_the_thread_and_the_source():
    """What the source made beyond the queue's depth would show that it went on."""
    before, made = threading.active_count(), []

    def items():
        for at in range(100_000):
            made.append(at)
            yield at

    taking = prefetch(items(), depth=2)
    assert list(itertools.islice(taking, 3)) == [0, 1, 2]
    taking.close()
    assert threading.active_count() == before
    count = len(made)
    assert count <= 3 + 2 + 1
    time.sleep(0.15)
    assert len(made) == count


def test_an_error_of_the_taker_stops_the_thread():
    def take():
        for item in prefetch(range(100_000)):
            if item == 2:
                raise BrokenDisk("engine")

    before = threading.active_count()
    with pytest.raises(BrokenDisk, match="engine"):
        take()
    assert threading.active_count() == before
