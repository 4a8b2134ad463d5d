"""The blocks of a stage, computed by workers elsewhere: the driver's side.

The driver runs the flow and keeps folder, lock and journal. Workers run the same flow behind it and ask for blocks;
what they write is taken into the artifact here, and nobody else writes there. Workers may come late, be slow, or be
lost at any time.
"""

import contextlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fcdeploy.data.run_record import Entry
from fcdeploy.errors import FcdeployError, InputError, counted
from fcdeploy.run import messages
from fcdeploy.run.block_files import BlockFile, blocks_in, look_at_block, name_of_block
from fcdeploy.run.blocks import OpenEngine, follows_rows, rows_of_block, smaller, write_block
from fcdeploy.run.fingerprint import differences
from fcdeploy.run.folder import FolderPartial, RunFolder
from fcdeploy.run.handout import GivenUpError, Handout
from fcdeploy.run.memory import resident_bytes
from fcdeploy.run.messages import Ask, Reply
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Bar, Progress
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Partial, Span, Store, missing_blocks
from fcdeploy.run.summary import WorkersFigures

MOST_RESTARTS = 200  # of a worker's flow one behind the other, which then goes elsewhere than ours

ALONE_SECONDS = 60.0  # without any worker, behind which the user is told
SILENT_SECONDS = 180.0  # without a word of any worker that has come, likewise
MOST_NOTES = 5  # of lost workers; the bar counts them all
APPEARS_SECONDS = 1.0  # for which a file server may hide a file that is there
MOST_WRITTEN = 2  # blocks of each worker that wait to be taken in while workers are answered first


@dataclass(frozen=True)
class Asked:
    """A worker asks for something."""

    worker: str
    ask: Ask


@dataclass(frozen=True)
class Lost:
    """A worker is no more."""

    worker: str
    reason: str


class Crew(Protocol):
    """Workers elsewhere, and how they are reached."""

    def poll(self, wait: bool = True) -> list[Asked | Lost]:
        """Return what has happened, after waiting a little for it; starts workers where there is room for one.

        wait: or what has happened by now.

        Raises FcdeployError when there is none and none can be had.
        """

    def answer(self, worker: str, reply: Reply) -> None:
        """Answer what a worker has asked."""

    def dismiss(self, worker: str, reason: str) -> None:
        """Do without a worker, and without others in its place."""

    def describe(self, worker: str) -> str:
        """Return where a worker is, for people."""

    @property
    def count(self) -> int:
        """How many workers there are."""

    @property
    def needs(self) -> str:
        """What a machine has to have free for a worker, for people."""

    @property
    def expected(self) -> int:
        """How many there will be, as far as is known."""

    def close(self) -> None:
        """End all workers."""


@dataclass
class Product:
    """An artifact in the making.

    written: blocks that workers have reported and that are to be taken in. in_order: whether they are one behind the
    other; at: what is missing then, and ready: blocks that wait for those before them, by their first row. taken: how
    many were taken in.
    """

    stage: Stage
    partial: FolderPartial
    handout: Handout
    blocks: Path
    bar: Bar
    in_order: bool
    at: list[Span] = field(default_factory=list)
    written: deque[BlockFile] = field(default_factory=deque)
    ready: dict[int, BlockFile] = field(default_factory=dict)
    taken: int = 0


class SharedBlocks:
    """See ``Blocks``; own: the fingerprint of this process; note: tells the user a sentence.

    lost: workers that were, blocks: how many were taken in, and again: handed out more than once, so far. seconds: of
    each stage, from the first block that was handed out until all were taken in.
    """

    def __init__(
        self,
        crew: Crew,
        folder: RunFolder,
        options: Options,
        own: Mapping[str, str],
        note: Callable[[str], None],
    ) -> None:
        self._crew, self._folder, self._options = crew, folder, options
        self._own, self._note = own, note
        self._asking: dict[str, Ask] = {}
        self._restarts: dict[str, int] = {}
        self._inside: list[tuple[str, str]] = []
        self._product: Product | None = None
        self._run, self._described = 0, ""
        self.lost, self.blocks, self.again = 0, 0, 0
        self.seconds: dict[str, float] = {}
        self._first = 0.0
        self._told_of_waiting, self._told_of_silence = False, False

    @property
    def summary(self) -> WorkersFigures:
        """What the summary of a run says of workers."""
        return {
            "workers": self._crew.count,
            "blocks": self.blocks,
            "blocks_again": self.again,
            "workers_lost": self.lost,
            "seconds": dict(self.seconds),
        }

    def begin(self, described: Mapping[str, object]) -> None:
        """Let workers begin another run; described: what it is of, plain values."""
        self._run += 1
        self._described = json.dumps(described)

    def close(self) -> None:
        """Let workers go."""
        for worker in self._asking:
            self._crew.answer(worker, Reply(messages.STOP))
        self._crew.close()

    @contextlib.contextmanager
    def making(self, name: str, key: str) -> Iterator[None]:
        """Make an artifact in one go, here; what is computed on the way is shared out anyway."""
        self._inside.append((name, key))
        try:
            yield
        finally:
            self._inside.pop()

    def compute(
        self, stage: Stage, partial: Partial, open_engine: OpenEngine, store: Store, progress: Progress
    ) -> None:
        """Hand out what ``partial`` lacks, and take in what is written, until all is there."""
        assert isinstance(partial, FolderPartial), "shared out over a run folder only"
        missing = list(missing_blocks(partial.finished, stage.count))
        left = sum(stop - start for start, stop in missing)
        with progress.bar(stage.text, stage.count, stage.count - left, stage.unit) as bar:
            blocks = partial.folder_of_blocks()
            growing = stage.in_order or any(None in shape for shape, _ in stage.shapes.values())
            product = Product(stage, partial, Handout([], 1), blocks, bar, growing, missing)
            adopted = self._adopted(product, missing)
            gaps = list(missing_blocks([*partial.finished, *adopted], stage.count))
            # As everywhere where engines are: sums are rounded otherwise in other batches.
            workers = None if stage.passes else lambda: self._crew.expected
            product.handout = Handout(gaps, stage.size, stage.whole, workers=workers)
            self._product, self._first = product, 0.0
            try:
                started = heard = time.monotonic()
                while product.written or not product.handout.finished:
                    if not self._crew.count and time.monotonic() - started > ALONE_SECONDS:
                        self._tell_of_waiting()
                    self._serve()
                    events = self._crew.poll(wait=not product.written)
                    if events or product.written:
                        heard = time.monotonic()
                    else:
                        self._tell_of_silence(product, time.monotonic() - heard)
                    for event in events:
                        self._handle(event, product)
                        self._serve()
                    # Behind the answers, so that nobody waits for the copying.
                    full = len(product.written) > MOST_WRITTEN * max(1, self._crew.count)
                    if product.written and (full or not events):
                        self._take(product, product.written.popleft())
                    if resident_bytes() > self._options.budget:
                        store.release_pages()
            finally:
                self._product = None
                self.blocks, self.again = self.blocks + product.taken, self.again + product.handout.again
                if self._first:
                    self.seconds[stage.name] = time.perf_counter() - self._first

    def _tell_of_waiting(self) -> None:
        """Tell, once, that there are no workers."""
        if not self._told_of_waiting:
            self._told_of_waiting = True
            self._note(
                f"no worker has started yet: each needs a machine with {self._crew.needs}; `ray status` shows what is "
                "in use."
            )

    def _tell_of_silence(self, product: Product, seconds: float) -> None:
        """Tell, once, that nothing is heard of the workers that there are."""
        handout = product.handout
        if self._told_of_silence or not self._crew.count or seconds < max(SILENT_SECONDS, handout.patience):
            return
        self._told_of_silence = True
        who, what = "any worker", ""
        if lease := handout.oldest:
            start, stop = lease.span
            who = self._crew.describe(lease.worker)
            what = f", which has {product.stage.unit} {start:,} to {stop:,}"
        self._note(
            f"{product.stage.text}: nothing was heard of {who} for {seconds / 60:.0f} minutes{what}; the run waits. If "
            "it is suspended, or its machine is out of reach, resume or end it: its block then goes to another worker."
        )

    def _adopted(self, product: Product, missing: list[Span]) -> list[Span]:
        """Take in blocks that were written before a driver ended, and delete other files."""
        adopted: list[Span] = []
        for span, path in blocks_in(product.blocks):
            inside = any(start <= span[0] < span[1] <= stop for start, stop in missing)
            apart = all(span[1] <= other[0] or other[1] <= span[0] for other in adopted)
            block = look_at_block(path, span, product.partial.key) if inside and apart else None
            if block is None:
                path.unlink(missing_ok=True)
            else:
                adopted.append(span)
                self._take(product, block)
        for part in product.blocks.glob(".*.tmp"):  # of a worker that was killed; a late one begins anew
            part.unlink(missing_ok=True)
        return adopted

    def _take(self, product: Product, block: BlockFile) -> None:
        """Take a block into the artifact, or keep it until those before it are there where they go in order."""
        if not product.in_order:
            self._commit(product, block)
            return
        product.ready[block.span[0]] = block
        while product.at and (found := product.ready.pop(product.at[0][0], None)) is not None:
            self._commit(product, found)
            stop, end = found.span[1], product.at[0][1]
            product.at = ([(stop, end)] if stop < end else []) + product.at[1:]

    def _commit(self, product: Product, block: BlockFile) -> None:
        start, stop = block.span
        if not (follows_rows(product.stage) and copied_rows(product.partial, block)):
            arrays = block.read()
            if arrays is None:
                raise FcdeployError(
                    f"{product.blocks}: a block of {product.stage.text} is missing or damaged; run the same command "
                    "again."
                )
            write_block(product.stage, product.partial, rows_of_block(product.stage, start, stop), arrays)
        product.partial.commit(start, stop)
        block.remove()
        product.taken += 1
        product.bar.advance(stop - start)
        product.bar.tell(self._told(product))

    def _told(self, product: Product) -> str:
        told = f"{counted(self._crew.count, 'worker')}, {counted(product.taken, 'block')}"
        if product.handout.again:
            told += f", {product.handout.again:,} handed out again"
        return told + (f", {counted(self.lost, 'worker')} lost" if self.lost else "")

    def _handle(self, event: Asked | Lost, product: Product) -> None:
        if isinstance(event, Lost):
            self._lose(event.worker, event.reason, product)
            return
        worker, ask = event.worker, event.ask
        if ask.kind == messages.HELLO:
            self._welcome(worker, ask)
            return
        if ask.kind == messages.UNFIT:
            self._do_without(worker, ask.text, product)
            return
        current = ask.run == self._run and (ask.name, ask.key) == (product.stage.name, product.partial.key)
        span = ask.start, ask.stop
        self._asking[worker] = ask  # whatever comes: it waits for an answer
        if ask.kind == messages.REFUSED and ask.run == self._run:
            raise refused(ask.text)
        if ask.kind == messages.DONE and current:
            path = product.blocks / name_of_block(span, worker)
            block = look_at_block(path, span, ask.key)
            if block is None and product.handout.is_open(worker, span):
                time.sleep(APPEARS_SECONDS)
                block = look_at_block(path, span, ask.key)
                if block is None:
                    self._do_without(worker, f"{path}, which it reported as written, is missing.", product)
                    return
            if block is None:
                pass  # somebody else's was first
            elif product.handout.done(worker, span):
                product.written.append(block)
            else:
                block.remove()
        elif ask.kind == messages.NO_MEMORY and current and not product.handout.halve(worker, span):
            smaller(product.stage, span[1] - span[0], MemoryError(ask.text))  # which raises
        if ask.kind in (messages.DONE, messages.NO_MEMORY):
            ask = ask._replace(kind=messages.BLOCK)
        self._asking[worker] = ask

    def _lose(self, worker: str, reason: str, product: Product) -> None:
        self._asking.pop(worker, None)
        self.lost += 1
        if self.lost <= MOST_NOTES:
            self._note(f"{self._crew.describe(worker)} was lost ({reason}); its blocks go to others.")
        self._lose_block(worker, reason, product)
        product.bar.tell(self._told(product))

    def _do_without(self, worker: str, reason: str, product: Product) -> None:
        """Go on without a worker whose machine lacks something, and without others in its place."""
        where = self._crew.describe(worker)
        self._asking.pop(worker, None)
        self._note(f"{where} is not used: {reason}")
        self._lose_block(worker, reason, product)
        self._crew.dismiss(worker, f"{where} is not used: {reason.rstrip('.')}")

    def _lose_block(self, worker: str, reason: str, product: Product) -> None:
        try:
            product.handout.lost(worker, reason)
        except GivenUpError as error:
            start, stop = error.span
            raise FcdeployError(
                f"{product.stage.text}: every worker that computes {product.stage.unit} {start:,} to {stop:,} is lost, "
                f"the last one because of: {error}; what is done is kept."
            ) from None

    def _welcome(self, worker: str, ask: Ask) -> None:
        found = differences(self._own, json.loads(ask.text))
        where = self._crew.describe(worker)
        if found and self._options.strict:
            self._note(f"{where} is not used: it has {', '.join(found)}.")
            self._crew.dismiss(worker, f"--strict refuses {where}: it has {', '.join(found)}")
            return
        if found:
            self._note(f"{where} has {', '.join(found)}; its results may differ in the last digits.")
        self._crew.answer(worker, self._begin())

    def _begin(self) -> Reply:
        return Reply(messages.BEGIN, self._run, 0, self._described)

    def _serve(self) -> None:
        """Answer whom there is an answer for."""
        for worker, ask in list(self._asking.items()):
            reply = self._reply(worker, ask)
            if reply is None:
                continue
            del self._asking[worker]
            self._restarts[worker] = self._restarts.get(worker, 0) + 1 if reply.kind == messages.BEGIN else 0
            if self._restarts[worker] > MOST_RESTARTS:
                where = self._crew.describe(worker)
                self._note(f"{where} is not used: it does not reach the stage {ask.name}.")
                self._crew.dismiss(worker, f"{where} does not reach the stage {ask.name}")
            else:
                self._crew.answer(worker, reply)

    def _reply(self, worker: str, ask: Ask) -> Reply | None:
        """Return what a worker is to be told now; None while it has to wait."""
        if ask.run != self._run:
            return self._begin()
        if ask.kind == messages.NEXT:
            return None
        entry = self._folder.entry(ask.name, ask.key)
        if entry is not None:
            return Reply(messages.FINISHED, text=described(entry))
        if ask.kind == messages.FIND:
            return Reply(messages.NOT_YET)
        product = self._product
        if product is None:
            return None
        if ask.name == product.stage.name:
            if ask.key != product.partial.key:
                where = self._crew.describe(worker)
                self._note(
                    f"{where} is not used: it computes a different {ask.name}; its code or its files differ."
                )
                self._crew.dismiss(worker, f"{where} has different code or reads different files")
                del self._asking[worker]
                return None
            span = product.handout.take(worker)
            self._first = self._first or time.perf_counter()
            return Reply(messages.LEASED, *span) if span else None
        if (ask.name, ask.key) in self._inside:
            return Reply(messages.INSIDE)
        return self._begin()  # it has fallen behind: what it asks for was needed, and is no more


def copied_rows(partial: FolderPartial, block: BlockFile) -> bool:
    """Let the system copy a block, one run of rows in all arrays, into an artifact; False where it cannot."""
    rows = block.span[1] - block.span[0]
    if block.arrays.keys() != partial.arrays.keys():
        return False
    for name, within in block.arrays.items():
        array = partial.arrays[name]
        if (within.dtype, within.shape) != (array.dtype, (rows, *array.shape[1:])):
            return False
    try:
        file = os.open(block.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return all(
            partial.copy_rows(name, block.span[0], file, within.at, rows)
            for name, within in block.arrays.items()
        )
    finally:
        os.close(file)


def described(entry: Entry) -> str:
    """Return how a finished artifact is kept, as JSON."""
    return json.dumps({"parts": entry.parts, "bytes": entry.bytes, "scratch": bool(entry.boot)})


def refused(text: str) -> FcdeployError:
    """Return what a worker could not go on for, as an error of this process."""
    found: dict[str, object] = json.loads(text)
    kind = InputError if found["kind"] == InputError.__name__ else FcdeployError
    return kind(found["sentence"])
