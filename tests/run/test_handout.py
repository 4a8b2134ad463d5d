"""The handing-out of blocks: whatever workers do, every row is done once, none is lost, and leases come back."""

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from fcdeploy.run.handout import (
    LEAST_PATIENCE,
    LEAST_ROWS,
    LEAST_SECONDS,
    MOST_LOSSES,
    GivenUpError,
    Handout,
)
from fcdeploy.run.store import missing_blocks

ROWS, SIZE, WHOLE = 40, 8, 2


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_blocks_go_out_in_order_and_a_done_one_does_not_come_back() -> None:
    handout = Handout([(0, 20), (30, 35)], 8)
    spans = [handout.take(f"w{at}") for at in range(5)]
    assert spans == [(0, 8), (8, 16), (16, 20), (30, 35), None]
    assert all(handout.done(f"w{at}", span) for at, span in enumerate(spans) if span)
    assert handout.finished
    assert handout.take("w9") is None


def test_a_lost_workers_block_is_the_next_to_go_out() -> None:
    handout = Handout([(0, 24)], 8)
    assert handout.take("a") == (0, 8)
    assert handout.take("b") == (8, 16)
    handout.lost("a", "gone")
    assert handout.take("c") == (0, 8)
    assert handout.again == 1


def test_a_slow_workers_block_goes_to_one_other_and_the_first_result_counts() -> None:
    clock = Clock()
    handout = Handout([(0, 8)], 8, clock=clock)
    assert handout.take("slow") == (0, 8)
    assert handout.take("b") is None
    clock.now = LEAST_PATIENCE + 1
    assert handout.take("slow") is None, "it has it already"
    assert handout.take("b") == (0, 8)
    clock.now *= 3
    assert handout.take("c") is None, "two are enough"
    assert handout.done("b", (0, 8))
    assert not handout.done("slow", (0, 8))


def test_patience_grows_with_the_slowest_block() -> None:
    clock = Clock()
    handout = Handout([(0, 16)], 8, clock=clock)
    handout.take("a")
    clock.now = 100.0
    assert handout.done("a", (0, 8))
    handout.take("a")
    clock.now = 100.0 + 4 * 100.0 - 1
    assert handout.take("b") is None
    clock.now += 2
    assert handout.take("b") == (8, 16)


def test_a_block_that_ends_one_worker_after_the_other_is_given_up_with_the_last_reason() -> None:
    handout = Handout([(0, 16)], 8)
    for number in range(MOST_LOSSES - 1):
        assert handout.take(f"w{number}") == (0, 8)
        handout.lost(f"w{number}", "a cosmic ray")
    assert handout.take("last") == (0, 8)
    with pytest.raises(GivenUpError, match="no memory at all") as caught:
        handout.lost("last", "no memory at all")
    assert caught.value.span == (0, 8)


def test_halves_are_multiples_of_what_stays_together_and_the_smallest_is_not_halved() -> None:
    handout = Handout([(0, 12), (20, 32)], 12, whole=4)
    assert handout.take("a") == (0, 12)
    assert handout.halve("a", (0, 12))
    assert [handout.take("a") for _ in range(4)] == [(0, 8), (8, 12), (20, 28), (28, 32)]
    assert handout.halve("a", (0, 8))
    assert [handout.take("a") for _ in range(2)] == [(0, 4), (4, 8)]
    assert not handout.halve("a", (0, 4))


def sizes_of(handout: Handout, clock: Clock, seconds_per_row: float = 0.01) -> list[int]:
    """Rows of the blocks that one worker takes one after the other."""
    sizes = []
    while span := handout.take("a"):
        sizes.append(span[1] - span[0])
        clock.now += seconds_per_row * sizes[-1]
        assert handout.done("a", span)
    return sizes


def test_blocks_become_smaller_towards_the_end_and_hold_every_row() -> None:
    """Half a worker's share of what is left: of two workers, a quarter."""
    clock = Clock()
    sizes = sizes_of(Handout([(0, 60_000), (70_000, 110_000)], 65_536, clock=clock, workers=lambda: 2), clock)
    assert sizes[:3] == [25_000, 18_750, -(-(100_000 - 43_750) // 4)]
    assert sum(sizes) == 100_000
    assert sizes[-1] <= LEAST_ROWS
    assert len(sizes) < 40
    shrinking = [size for size in sizes if size >= LEAST_ROWS]
    assert sum(one < other for one, other in pairwise(shrinking)) <= 1  # a run's end


def test_blocks_are_no_larger_than_asked_for_and_multiples_of_what_stays_together() -> None:
    clock = Clock()
    most = sizes_of(Handout([(0, 10_000_000)], 8192, clock=clock, workers=lambda: 2), clock)
    assert max(most) == 8192
    assert sum(most) == 10_000_000
    together = sizes_of(Handout([(0, 100_000)], 65_536, 96, clock, lambda: 8), clock)
    assert all(size % 96 == 0 for size in together[:-1])
    assert sizes_of(Handout([(0, 100)], 50, 96, clock, lambda: 8), clock) == [96, 4]


def test_blocks_of_a_quick_stage_are_not_so_small_that_handing_them_out_is_what_takes_time() -> None:
    """A million rows per second: no block of less than LEAST_SECONDS of work, the last one apart."""
    clock = Clock()
    sizes = sizes_of(Handout([(0, 200_000)], 65_536, clock=clock, workers=lambda: 2), clock, 1e-6)
    assert min(sizes[:-1]) == pytest.approx(1e6 * LEAST_SECONDS, rel=0.01)
    assert sum(sizes) == 200_000


def test_more_workers_are_given_smaller_blocks_from_then_on() -> None:
    clock, crew = Clock(), [1]
    handout = Handout([(0, 100_000)], 65_536, clock=clock, workers=lambda: crew[0])
    assert handout.take("a") == (0, 50_000)
    crew[0] = 5
    assert handout.take("b") == (50_000, 55_000)


class Workers(RuleBasedStateMachine):
    """Workers take blocks, finish, fail, are slow, come back late, and run out of memory, in any order."""

    workers: Callable[[], int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.handout = Handout([(0, 25), (27, ROWS)], SIZE, WHOLE, self.clock, self.workers, 2)
        self.journal: list[tuple[int, int]] = []
        self.busy: dict[str, tuple[int, int]] = {}
        self.late: list[tuple[str, tuple[int, int]]] = []  # who was taken for lost, and writes all the same
        self.given_up = False

    @rule(worker=st.sampled_from("abcd"))
    def take(self, worker: str) -> None:
        if worker not in self.busy and (span := self.handout.take(worker)):
            self.busy[worker] = span

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.busy)))
        span = self.busy.pop(worker)
        if self.handout.done(worker, span):
            self.journal.append(span)

    @precondition(lambda self: self.busy)
    @rule(data=st.data(), writes=st.booleans())
    def lose(self, data: st.DataObject, writes: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.busy)))
        span = self.busy.pop(worker)
        if writes:
            self.late.append((worker, span))
        try:
            self.handout.lost(worker, "gone")
        except GivenUpError:
            self.handout._losses.clear()  # another driver goes on
            self.handout._put_back(span)

    @precondition(lambda self: self.late)
    @rule()
    def come_back(self) -> None:
        worker, span = self.late.pop()
        if self.handout.done(worker, span):
            self.journal.append(span)

    @precondition(lambda self: self.busy)
    @rule(data=st.data())
    def no_memory(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.busy)))
        if self.handout.halve(worker, self.busy[worker]):
            del self.busy[worker]

    @rule(seconds=st.sampled_from([1.0, 50.0, 1000.0]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds

    @invariant()
    def no_row_is_done_twice_or_lost(self) -> None:
        rows = [row for start, stop in self.journal for row in range(start, stop)]
        assert len(rows) == len(set(rows)), "in the journal twice"
        assert self.handout.left == ROWS - 2 - len(rows)
        open_rows = {row for start, stop in self.handout.waiting for row in range(start, stop)}
        leased = {row for lease in self.handout._leases for row in range(*lease.span)}
        assert open_rows | leased | set(rows) >= {*range(25), *range(27, ROWS)}
        assert not (open_rows | leased) & set(rows)

    def teardown(self) -> None:
        """Whatever has happened, one worker that lives does the rest."""
        for worker in sorted(self.busy):
            self.busy.pop(worker)
            try:
                self.handout.lost(worker, "gone")
            except GivenUpError as error:
                self.handout._put_back(error.span)
        while span := self.handout.take("survivor"):
            assert self.handout.done("survivor", span)
            self.journal.append(span)
        assert self.handout.finished
        assert not self.handout._leases
        assert list(missing_blocks(self.journal, ROWS)) == [(25, 27)]


class TaperedWorkers(Workers):
    """The same where blocks become smaller."""

    workers = staticmethod(lambda: 2)


TestTaperedWorkers = TaperedWorkers.TestCase
TestTaperedWorkers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestWorkers = Workers.TestCase
TestWorkers.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
