"""The blocks of a stage, computed for a run elsewhere: a worker's side.

A worker runs the flow of its driver and computes the blocks that it is given. Whatever else an artifact takes the
driver does; the worker waits for it and maps what is finished, from the run folder or from a copy on its own disk.
It writes nothing into the run folder but files of blocks.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from fcdeploy.data.atomic import remove_folder
from fcdeploy.data.damaged import DAMAGED
from fcdeploy.data.run_record import UNFINISHED
from fcdeploy.errors import FcdeployError
from fcdeploy.run import messages
from fcdeploy.run.block_files import BLOCKS, write_block_file
from fcdeploy.run.blocks import OpenEngine, opened, rows_of_block
from fcdeploy.run.folder import places_of
from fcdeploy.run.maps import Maps, map_arrays, size_on_disk
from fcdeploy.run.memory import resident_bytes
from fcdeploy.run.messages import Ask, Reply
from fcdeploy.run.progress import Progress
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, Partial, Shapes, Span, Store

SEEN_SECONDS = 90.0  # for which a file server may hide what another machine has written
LOOK_SECONDS = 0.2


class OvertakenError(Exception):
    """The driver is further on, or at another run; the flow has to begin again. reply: what it says."""

    def __init__(self, reply: Reply) -> None:
        super().__init__("the driver is further on")
        self.reply = reply


class StoppedError(Exception):
    """There is nothing left to do."""


class UnfitError(FcdeployError):
    """This machine lacks what every worker needs."""


class Line:
    """What a worker says to its driver; begun: how it was told to begin the run that both are at."""

    def __init__(self, send: Callable[[Ask], Reply]) -> None:
        self._send = send
        self.begun = Reply(messages.BEGIN)

    @property
    def run(self) -> int:
        return self.begun.start

    def ask(self, kind: str, name: str = "", key: str = "", span: Span = (0, 0), text: str = "") -> Reply:
        """Return the answer; raises OvertakenError and StoppedError."""
        reply = self._send(Ask(kind, self.run, name, key, *span, text))
        if reply.kind == messages.STOP:
            raise StoppedError
        if reply.kind == messages.BEGIN:
            raise OvertakenError(reply)
        return reply


class FollowedStore:
    """The finished artifacts of a driver, see ``Store``; what is written, the driver writes.

    copies: where artifacts are copied to before they are read.
    """

    def __init__(self, folder: Path, line: Line, own: Path, copies: Path | None = None) -> None:
        self.folder, self._line, self._own, self._copies = folder, line, own, copies
        self._maps = Maps()

    def load(self, name: str, key: str) -> Arrays | None:
        return self.kept(self._line.ask(messages.FIND, name, key), name, key)

    def kept(self, reply: Reply, name: str, key: str) -> Arrays | None:
        """Map the artifact that a driver has said to be finished; None for any other answer."""
        if reply.kind != messages.FINISHED:
            return None
        told = json.loads(reply.text)
        kept = self.folder / places_of(name, told["scratch"])[1]
        until = time.monotonic() + SEEN_SECONDS
        while True:
            with contextlib.suppress(*DAMAGED):  # deleted just now, or not yet seen from here
                if size_on_disk(kept, told["parts"]) == told["bytes"]:
                    place = kept
                    if self._copies is not None:
                        place = copied(kept, told["parts"], self._copies / f"{name}-{key[:16]}")
                    return self._maps.watch(map_arrays(place, told["parts"]))
            if time.monotonic() > until:
                raise FcdeployError(f"{kept}: is missing or incomplete on {os.uname().nodename}.")
            time.sleep(LOOK_SECONDS)
            if self._line.ask(messages.FIND, name, key).kind != messages.FINISHED:
                raise OvertakenError(self._line.begun)  # it was needed, and is no more

    def begin(
        self,
        name: str,
        key: str,
        shapes: Shapes,
        visit: str = "",
        *,
        durable: bool = False,
        scratch: bool = False,
    ) -> "FollowedPartial":
        return FollowedPartial(self, self._line, name, key)

    def unfinished(self, prefix: str) -> list[tuple[str, str, Arrays]]:
        """Nothing: it is the driver who continues with it."""
        return []

    def drop(self, name: str) -> None:
        if self._copies is not None:
            for copy in self._copies.glob(f"{name}-*"):
                if len(copy.name) == len(name) + 1 + 16:
                    shutil.rmtree(copy, ignore_errors=True)

    def drop_scratch(self) -> None:
        """Do nothing: it is the driver who keeps artifacts."""

    def scratch_file(self, name: str) -> Path | None:
        path = self._own / name
        remove_folder(path)
        return path

    def release_pages(self) -> None:
        self._maps.release_pages()

    def describe(self, computed: Mapping[str, object]) -> None:
        """Do nothing: the driver does."""


class FollowedPartial:
    """An artifact that a driver makes, see ``Partial``."""

    def __init__(self, store: FollowedStore, line: Line, name: str, key: str) -> None:
        self._store, self._line, self._name, self.key = store, line, name, key
        self.arrays: Arrays = {}
        self.finished: list[Span] = []
        self.blocks = store.folder / f"{name}{UNFINISHED}" / BLOCKS

    def append(self, part: str, rows: object) -> int:
        raise NotImplementedError("blocks go into files")

    def commit(self, start: int, stop: int) -> None:
        raise NotImplementedError("the driver commits")

    def close(self) -> None:
        """Do nothing: nothing is open."""

    def finish(self) -> Arrays:
        """Map the artifact when it is finished."""
        arrays = self._store.kept(self._line.ask(messages.BLOCK, self._name, self.key), self._name, self.key)
        assert arrays is not None, "the driver says that it is finished when no block is left"
        return arrays


class FollowedBlocks:
    """See ``Blocks``: computes what it is given and writes it into files of blocks.

    budget: bytes of memory beyond which pages are let go of; worker: a name that no other worker has.
    """

    def __init__(self, line: Line, budget: int, worker: str) -> None:
        self._line, self._budget, self._worker = line, budget, worker

    def making(self, name: str, key: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def compute(
        self, stage: Stage, partial: Partial, open_engine: OpenEngine, store: Store, progress: Progress
    ) -> None:
        """Compute blocks of a stage for as long as there are any and nobody has finished it."""
        assert isinstance(partial, FollowedPartial)
        reply = self._line.ask(messages.BLOCK, stage.name, partial.key)
        if reply.kind != messages.LEASED:
            return
        with opened(stage, open_engine) as resources:
            while reply.kind == messages.LEASED:
                span = reply.start, reply.stop
                try:
                    arrays = stage.block(rows_of_block(stage, *span), *resources)
                except MemoryError as error:
                    store.release_pages()
                    reply = self._line.ask(messages.NO_MEMORY, stage.name, partial.key, span, str(error))
                    continue
                except FcdeployError as error:  # of what is computed, wherever that is
                    said = {"kind": type(error).__name__, "sentence": str(error)}
                    self._line.ask(messages.REFUSED, stage.name, partial.key, span, json.dumps(said))
                    raise
                # Where the folder is gone, so is who would have wanted the block: another is further on.
                with contextlib.suppress(FileNotFoundError):
                    write_block_file(partial.blocks, span, partial.key, arrays, self._worker)
                del arrays
                reply = self._line.ask(messages.DONE, stage.name, partial.key, span)
                if resident_bytes() > self._budget:
                    store.release_pages()


def wait_for_folder(folder: Path, told: Path) -> None:
    """Wait until the driver's run folder is seen from here, and in it ``told``, a place that no other run has.

    Raises UnfitError when it is not, as where it is not mounted, or where another one has its name.
    """
    until = time.monotonic() + (SEEN_SECONDS if folder.parent.is_dir() else 0)
    while not told.is_dir():
        if time.monotonic() >= until:
            found = "is another folder" if folder.is_dir() else "is not there"
            raise UnfitError(
                f"{folder}: {found} on {os.uname().nodename}; every machine has to see the run folder at the same path."
            )
        time.sleep(LOOK_SECONDS)


class Follower:
    """See ``Follows``; identity: what the driver's keys hold beside inputs and code."""

    def __init__(self, line: Line, store: FollowedStore, identity: Mapping[str, object]) -> None:
        self._line, self._store, self.identity = line, store, identity

    def collected(self, name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """Return an artifact that the driver makes in one go, when it is there.

        Where the driver shares out something on the way, the same is done here to get there; what comes of it is the
        driver's to keep.
        """
        while True:
            reply = self._line.ask(messages.WAIT, name, key)
            arrays = self._store.kept(reply, name, key)
            if arrays is not None:
                return arrays
            make()
            time.sleep(LOOK_SECONDS)


def copied(place: Path, parts: list[str], copy: Path) -> Path:
    """Copy an artifact once for all workers of this machine; returns where the copy is, ``place`` on a full disk."""
    try:
        return _copied(place, parts, copy)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return place


def _copied(place: Path, parts: list[str], copy: Path) -> Path:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with open(copy.with_name(f"{copy.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            part = copy.with_name(f"{copy.name}.part")
            remove_folder(part)
            part.mkdir()
            try:
                for name in parts:
                    shutil.copyfile(place / f"{name}.npy", part / f"{name}.npy")
                os.rename(part, copy)
            except BaseException:
                shutil.rmtree(part, ignore_errors=True)
                raise
    return copy
