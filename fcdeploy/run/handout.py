"""Who computes which block of a stage: blocks are handed out on lease, and handed out again when a worker is lost.

Nothing here knows where workers are or how they are reached. A block may be computed twice, by a worker that was taken
for lost or is slow and by the one behind it; whichever is first counts.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from fcdeploy.run.store import Span

MOST_LOSSES = 3  # workers lost over one block, behind which the block is given up
LEAST_PATIENCE = 30.0  # seconds that a block may take before another worker is given it, too
SLOWER = 4  # times as long as the slowest block so far, likewise
HOLDERS = 2  # workers at the same block, at most
SHARES = 2  # a worker is given so much less than its share of what is left, so that all end at nearly the same time
LEAST_ROWS = 256  # of a block, where there are as many
LEAST_SECONDS = (
    0.02  # that a block takes at least: by so much workers may end apart, and handing out costs a tenth
)


@dataclass(frozen=True)
class Lease:
    """A block that a worker has, and since when."""

    span: Span
    worker: str
    since: float


class GivenUpError(Exception):
    """A block that workers are lost over, one after the other; span: its rows, the text: the last one's reason."""

    def __init__(self, span: Span, reason: str) -> None:
        super().__init__(reason)
        self.span = span


class Handout:
    """The blocks of one stage: what is waiting, what is leased, what is done.

    missing: the runs of rows to compute; size: rows of a block, a multiple of ``whole``, rows that stay together, in
    the visit's own counting from 0. workers: how many there are, if blocks may be smaller: they begin large, and become
    smaller towards the end, down to ``least`` rows. Without it all have ``size`` rows.
    """

    def __init__(
        self,
        missing: Iterable[Span],
        size: int,
        whole: int = 1,
        clock: Callable[[], float] = time.monotonic,
        workers: Callable[[], int] | None = None,
        least: int = LEAST_ROWS,
    ) -> None:
        self._size, self._whole, self._clock = size, whole, clock
        self._workers, self._least = workers, least
        self._runs = deque(missing)  # of which no block was cut yet
        self._waiting: deque[Span] = deque()  # blocks that were handed out before
        self._leases: list[Lease] = []
        self._done: list[Span] = []
        self._losses: dict[Span, int] = {}
        self._slowest, self._rate = 0.0, 0.0  # seconds of a block, rows per second and worker
        self.left = _rows(self._runs)
        self.again = 0  # blocks that were handed out once more

    @property
    def finished(self) -> bool:
        return not self.left

    @property
    def waiting(self) -> list[Span]:
        """The rows that nobody has."""
        return [*self._waiting, *self._runs]

    @property
    def patience(self) -> float:
        """The seconds that a block may take before another worker is given it, too."""
        return max(LEAST_PATIENCE, SLOWER * self._slowest)

    @property
    def oldest(self) -> Lease | None:
        """The block that a worker has had for longest, if any has one."""
        return min(self._leases, key=lambda lease: lease.since, default=None)

    def take(self, worker: str) -> Span | None:
        """Lease a worker the next block, or one that another has had for too long; None when there is none."""
        if self._waiting:
            return self._lease(self._waiting.popleft(), worker)
        if self._runs:
            start, end = self._runs.popleft()
            stop = min(start + self._next_size(end - start), end)
            if stop < end:
                self._runs.appendleft((stop, end))
            return self._lease((start, stop), worker)
        for lease in sorted(self._leases, key=lambda lease: lease.since):
            holders = [other.worker for other in self._leases if other.span == lease.span]
            late = self._clock() - lease.since > self.patience
            if late and worker not in holders and len(holders) < HOLDERS:
                self.again += 1
                return self._lease(lease.span, worker)
        return None

    def _next_size(self, first: int) -> int:
        """Return how many rows the next block has; first: rows of the run that it is cut from."""
        if self._workers is None:
            return self._size
        left = first + _rows(self._runs)
        fair = -(-left // (SHARES * max(1, self._workers())))
        rows = min(self._size, max(fair, self._least, int(self._rate * LEAST_SECONDS)))
        return max(self._whole, -(-rows // self._whole) * self._whole)

    def _lease(self, span: Span, worker: str) -> Span:
        self._leases.append(Lease(span, worker, self._clock()))
        return span

    def done(self, worker: str, span: Span) -> bool:
        """Tell whether a block that a worker has computed counts: none of its rows were done before."""
        for lease in self._leases:
            if lease.worker == worker and lease.span == span:
                seconds = self._clock() - lease.since
                self._slowest = max(self._slowest, seconds)
                self._rate = (span[1] - span[0]) / max(seconds, 1e-6)
        self._return(worker, span)
        if any(_overlap(span, other) for other in self._done):
            return False
        self._done.append(span)
        self.left -= span[1] - span[0]
        self._waiting = deque(other for other in self._waiting if not _overlap(span, other))
        self._leases = [lease for lease in self._leases if not _overlap(span, lease.span)]
        return True

    def is_open(self, worker: str, span: Span) -> bool:
        """Tell whether a worker has a block that nobody has done."""
        return any((lease.worker, lease.span) == (worker, span) for lease in self._leases)

    def lost(self, worker: str, reason: str) -> None:
        """Take back what a worker has; raises GivenUpError when MOST_LOSSES workers were lost over one block."""
        for span in [lease.span for lease in self._leases if lease.worker == worker]:
            self._return(worker, span)
            self._losses[span] = self._losses.get(span, 0) + 1
            if self._losses[span] >= MOST_LOSSES:
                raise GivenUpError(span, reason)
            self._put_back(span)

    def halve(self, worker: str, span: Span) -> bool:
        """Let a block for which a worker has no memory, and all behind it, be computed in halves; False where it is
        the smallest."""
        rows = span[1] - span[0]
        half = -(-(rows // 2) // self._whole) * self._whole
        if not 0 < half < rows:
            return False
        self._return(worker, span)
        self._put_back(span)
        self._waiting = deque(part for waiting in self._waiting for part in _cut(waiting, half))
        self._size = min(self._size, half)
        return True

    def _return(self, worker: str, span: Span) -> None:
        self._leases = [lease for lease in self._leases if (lease.worker, lease.span) != (worker, span)]

    def _put_back(self, span: Span) -> None:
        """Let a block wait again, before all others, unless somebody else has it or it is done."""
        taken = [lease.span for lease in self._leases] + self._done + self.waiting
        if not any(_overlap(span, other) for other in taken):
            self.again += 1
            self._waiting.appendleft(span)


def _rows(spans: Iterable[Span]) -> int:
    return sum(stop - start for start, stop in spans)


def _overlap(one: Span, other: Span) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _cut(span: Span, size: int) -> list[Span]:
    return [(start, min(start + size, span[1])) for start in range(*span, size)]
