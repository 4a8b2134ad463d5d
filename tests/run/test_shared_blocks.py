"""Blocks computed by workers that are threads here: the same bytes as alone, whatever becomes of the workers."""

import ast
import contextlib
import dataclasses
import errno
import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_folders import bytes_of

from fcdeploy.data.features import features_from_array
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.run import follow, handout, messages, shared_blocks
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.block_files import (
    blocks_in,
    look_at_block,
    name_of_block,
    write_block_file,
)
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.follow import (
    FollowedBlocks,
    FollowedStore,
    Follower,
    Line,
    OvertakenError,
    StoppedError,
    UnfitError,
    copied,
    wait_for_folder,
)
from fcdeploy.run.handout import MOST_LOSSES
from fcdeploy.run.messages import Ask, Reply
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.shared_blocks import Asked, Lost, SharedBlocks
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays

N = 2000
OWN = {"fcdeploy": "1", "numpy": "2", "instructions": "avx2 fma"}
Flow = Callable[[Run], np.ndarray]


class Killed(BaseException):
    """A worker's thread ends here, as a process does that is killed."""


class Engines:
    """Networks of one pass."""

    path, system, weights, passes, runtime = Path("made-up.onnx"), "made-up", {}, {}, {"onnxruntime": "1"}

    def digest(self, passes: Collection[str] | None = None) -> str:
        return "digest"

    def device(self, asked: str | None = None) -> str:
        return "cpu"

    def provider(self, asked: str | None = None) -> str:
        return "CPU"

    @contextlib.contextmanager
    def open(self, name: str, **limits: Any) -> Iterator[Any]:
        yield SimpleNamespace(provider="CPU")


def new_run(store: Any) -> Run:
    features = features_from_array(np.eye(4, dtype=np.float32)[np.arange(N) % 4])
    return Run(features, Engines(), None, Options(memory=1 << 40), store, Progress())


def stage_of(run: Run, name: str, block: Callable[..., Arrays], part: str = "x", **more: Any) -> Artifact:
    shapes = more.pop("shapes", {part: ((N,), np.int64)})
    return run.compute(Stage(name=name, text=name, block=block, shapes=shapes, rows=N, **more))


def flow(run: Run) -> np.ndarray:
    """Squares, sets of any size, a stage through both, one in one go that has a stage inside, and one over that."""
    squares = stage_of(run, "squares", lambda rows: {"x": rows.astype(np.int64) ** 2}, size=100)
    _ = squares.arrays

    def members(rows: np.ndarray) -> Arrays:
        found = [np.arange(10 * row, 10 * row + row % 4, dtype=np.int32) for row in rows]
        return {"counts": (rows % 4).astype(np.int32), "members": np.concatenate(found)}

    shapes = {"starts": ((N,), np.int64), "counts": ((N,), np.int32), "members": ((None,), np.int32)}
    sets = stage_of(run, "sets", members, shapes=shapes, size=130, scratch=True)
    sums = stage_of(
        run,
        "sums",
        lambda rows: {
            "x": np.array(
                [
                    sets["members"][s : s + c].sum()
                    for s, c in zip(sets["starts"][rows], sets["counts"][rows], strict=True)
                ]
            )
            + squares["x"][rows]
        },
        made_from=(squares,),
        through=(sets,),
        size=70,
        whole=7,
    )
    _ = sums.arrays

    def make() -> Arrays:
        inner = stage_of(
            run, "inner", lambda rows: {"x": sums["x"][rows] // 2}, made_from=(sums,), size=90, scratch=True
        )
        return {"total": np.array([inner.array.sum(), sums.array.sum()])}

    total = run.collect("total", make, made_from=(sums,))
    last = stage_of(
        run, "last", lambda rows: {"x": sums["x"][rows] % total["total"][0]}, made_from=(sums, total)
    )
    return last.array % 7


class ThreadCrew:
    """Workers that are threads; ``fate(worker, ask)`` may raise Killed before a message, or after it (ask None)."""

    def __init__(
        self,
        folder: Path,
        own: Path,
        workers: int = 2,
        flow: Flow = flow,
        fate: Callable[[str, Ask], None] = lambda worker, ask: None,
        prints: Callable[[str], dict[str, str]] = lambda worker: OWN,
        copies: bool = False,
    ) -> None:
        self.folder, self.own, self.flow, self.fate, self.prints = folder, own, flow, fate, prints
        self.copies = own / "copies" if copies else None
        self.asks: queue.SimpleQueue[Asked | Lost] = queue.SimpleQueue()
        self.replies: dict[str, queue.SimpleQueue[Reply]] = {}
        self.threads: list[threading.Thread] = []
        self.dismissed: list[str] = []
        self.expected = workers
        self.failed: list[BaseException] = []
        for _ in range(workers):
            self.add()

    @property
    def count(self) -> int:
        return len(self.replies)

    needs = "a thread"

    def add(self) -> None:
        name = f"w{len(self.threads)}"
        self.replies[name] = queue.SimpleQueue()
        thread = threading.Thread(target=self.work, args=(name,), daemon=True)
        self.threads.append(thread)
        thread.start()

    def work(self, name: str) -> None:
        replies = self.replies[name]

        def send(ask: Ask) -> Reply:
            self.fate(name, ask)
            self.asks.put(Asked(name, ask))
            return replies.get()

        line = Line(send)
        try:
            reply = send(Ask(messages.HELLO, text=json.dumps(self.prints(name))))
            while reply.kind != messages.STOP:
                line.begun, told = reply, json.loads(reply.text)
                store = FollowedStore(self.folder, line, self.own, self.copies)
                run = new_run(store)
                run.blocks = FollowedBlocks(line, 1 << 40, name)
                run.follows = Follower(line, store, told["identity"])
                try:
                    self.flow(run)
                    line.ask(messages.NEXT)
                except OvertakenError as error:
                    time.sleep(0.01)
                    reply = error.reply
        except StoppedError:
            pass
        except UnfitError as error:
            send(Ask(messages.UNFIT, text=str(error)))
        except Killed as error:
            self.asks.put(Lost(name, str(error) or "killed"))
        except BaseException as error:
            self.failed.append(error)
            self.asks.put(Lost(name, f"{type(error).__name__}: {error}"))

    def poll(self, wait: bool = True) -> list[Asked | Lost]:
        with contextlib.suppress(queue.Empty):
            event = self.asks.get(timeout=0.05 if wait else 0.001)
            if isinstance(event, Lost):
                if self.replies.pop(event.worker, None) is None:
                    return []
                self.add()
            return [event] if event.worker in self.replies or isinstance(event, Lost) else []
        if not self.replies:
            raise FcdeployError("no worker is left.")
        return []

    def answer(self, worker: str, reply: Reply) -> None:
        self.replies[worker].put(reply)

    def dismiss(self, worker: str, reason: str) -> None:
        self.replies.pop(worker).put(Reply(messages.STOP))
        self.dismissed.append(reason)

    def describe(self, worker: str) -> str:
        return f"worker {worker}"

    def close(self) -> None:
        until = time.monotonic() + 10
        while any(thread.is_alive() for thread in self.threads) and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                event = self.asks.get(timeout=0.05)
                if isinstance(event, Asked) and event.worker in self.replies:
                    self.answer(event.worker, Reply(messages.STOP))
        assert not any(thread.is_alive() for thread in self.threads), "a worker hangs"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "LOOK_SECONDS", 0.01)


@pytest.fixture(autouse=True, scope="module")
def one_parser() -> Iterator[None]:
    """NumPy parses headers with ast, whose depth is counted for all threads together (CPython issue 106905).

    In 3.11 a thread that is interrupted there makes others fail with a SystemError. Workers are threads in these
    tests alone.
    """
    lock, parse = threading.Lock(), ast.literal_eval

    def one_at_a_time(text: str | ast.AST) -> Any:
        with lock:
            return parse(text)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ast, "literal_eval", one_at_a_time)
        yield


def driven(
    place: Path,
    notes: list[str] | None = None,
    flow: Flow = flow,
    options: Options | None = None,
    **crew: Any,
) -> tuple[np.ndarray, SharedBlocks, ThreadCrew]:
    """Run the flow with workers; returns its result."""
    own = place.parent / "own"
    own.mkdir(exist_ok=True)
    with RunFolder(place, shared=True) as folder:
        workers = ThreadCrew(place, own, flow=flow, **crew)
        chosen = options or Options(memory=1 << 40)
        blocks = SharedBlocks(workers, folder, chosen, OWN, (notes if notes is not None else []).append)
        run = new_run(folder)
        blocks.begin({"identity": run.identity})
        run.blocks = blocks
        try:
            found = np.array(flow(run))
        finally:
            blocks.close()
        folder.drop_scratch()
    return found, blocks, workers


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, dict[str, bytes]]:
    """What the flow gives and keeps without workers."""
    place = tmp_path_factory.mktemp("alone") / "run"
    with RunFolder(place) as folder:
        found = np.array(flow(new_run(folder)))
        folder.drop_scratch()
    return found, kept_in(place)


def kept_in(place: Path) -> dict[str, bytes]:
    return {path.name: bytes_of(path) for path in sorted(place.iterdir()) if path.is_dir()}


def check(place: Path, found: np.ndarray, alone: tuple[np.ndarray, dict[str, bytes]]) -> None:
    """The same labels, artifacts to the byte, and nothing else in the folder."""
    assert np.array_equal(found, alone[0])
    assert kept_in(place) == alone[1]
    assert {path.name for path in place.iterdir() if path.is_file()} == {"run.json", "run.lock"}


def test_workers_give_what_one_process_gives(tmp_path: Path, alone: Any) -> None:
    found, _, crew = driven(tmp_path / "run")
    check(tmp_path / "run", found, alone)
    assert not crew.failed


def test_copies_on_a_machines_own_disk_change_nothing_and_go_with_what_they_are_of(
    tmp_path: Path, alone: Any
) -> None:
    found, _, crew = driven(tmp_path / "run", copies=True)
    check(tmp_path / "run", found, alone)
    names = {
        path.name.rpartition("-")[0] for path in (tmp_path / "own" / "copies").iterdir() if path.is_dir()
    }
    assert {"squares", "sums"} <= names
    assert not crew.failed


def test_every_block_is_computed_by_a_worker_and_committed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.run.folder import FolderPartial

    committed: dict[str, list[tuple[int, int]]] = {}
    commit = FolderPartial.commit

    def watched(self: FolderPartial, start: int, stop: int) -> None:
        committed.setdefault(self._name, []).append((start, stop))
        commit(self, start, stop)

    monkeypatch.setattr(FolderPartial, "commit", watched)
    driven(tmp_path / "run", workers=3)
    assert committed.keys() == {"squares", "sets", "sums", "inner", "last"}
    for spans in committed.values():
        assert sorted(spans)[0][0] == 0
        assert all(one[1] == other[0] for one, other in zip(sorted(spans), sorted(spans)[1:], strict=False))
        assert len(spans) > 1


@pytest.mark.parametrize("seed", range(6))
def test_workers_killed_at_random_moments_leave_no_trace(tmp_path: Path, alone: Any, seed: int) -> None:
    """A tenth of all messages is the last of a worker: before it is sent, with a block written or not."""
    dice = random.Random(seed)
    deaths: list[tuple[str, int]] = []

    def fate(worker: str, ask: Ask) -> None:
        what = f"{ask.name} {ask.kind}", ask.start
        few = len(deaths) < 15 and deaths.count(what) < 2  # of a third, the run would be given up
        if ask.kind != messages.HELLO and few and dice.random() < 0.1:
            if ask.kind == messages.DONE and dice.random() < 0.5:
                for path in (tmp_path / "run").glob("*.part/blocks/*.block"):
                    if path.name == name_of_block((ask.start, ask.stop), worker):
                        path.rename(path.with_name(f".{path.name}.{worker}.tmp"))  # killed in the middle
            deaths.append(what)
            raise Killed

    found, blocks, crew = driven(tmp_path / "run", fate=fate)
    check(tmp_path / "run", found, alone)
    assert crew.failed == []
    assert blocks.lost > 3


def test_a_worker_that_is_suspended_is_told_of_once(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only worker stops at two blocks, each time until something is told, or for longer than that takes."""
    monkeypatch.setattr(shared_blocks, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(handout, "LEAST_PATIENCE", 0.3)
    notes: list[str] = []
    stopped: list[Ask] = []

    def fate(worker: str, ask: Ask) -> None:
        if ask.kind == messages.DONE and len(stopped) < 2 and ask.name not in [one.name for one in stopped]:
            stopped.append(ask)
            until = time.monotonic() + (60 if not notes else 1)
            while time.monotonic() < until and not (len(stopped) == 1 and notes):
                time.sleep(0.01)

    found, *_ = driven(tmp_path / "run", notes, workers=1, fate=fate)
    check(tmp_path / "run", found, alone)
    first = stopped[0]
    assert len(stopped) == 2
    assert len(notes) == 1
    assert f"{first.name}: nothing was heard of worker w0" in notes[0]
    assert f"faces {first.start:,} to {first.stop:,}" in notes[0]


def test_a_worker_that_comes_late_joins_in(tmp_path: Path, alone: Any) -> None:
    asked: dict[str, int] = {}
    crews: list[ThreadCrew] = []

    def fate(worker: str, ask: Ask) -> None:
        asked[worker] = asked.get(worker, 0) + (ask.kind == messages.DONE)
        time.sleep(0.002)

    class Growing(ThreadCrew):
        def poll(self, wait: bool = True) -> list[Asked | Lost]:
            if sum(asked.values()) >= 30 and len(self.threads) < 2:
                self.add()
            crews.append(self)
            return super().poll(wait)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.ThreadCrew", Growing)
        found, *_ = driven(tmp_path / "run", workers=1, fate=fate)
    check(tmp_path / "run", found, alone)
    assert asked["w1"] > 5


@pytest.mark.parametrize("after", [5, 12, 40])
def test_a_run_begun_with_workers_is_finished_without(tmp_path: Path, alone: Any, after: int) -> None:
    place, done = tmp_path / "run", []

    class Ended(Exception):
        pass

    class Ending(ThreadCrew):
        def poll(self, wait: bool = True) -> list[Asked | Lost]:
            if len(done) > after:
                raise Ended
            events = super().poll(wait)
            done.extend(
                event for event in events if isinstance(event, Asked) and event.ask.kind == messages.DONE
            )
            return events

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.ThreadCrew", Ending)
        with pytest.raises(Ended):
            driven(place)
    seen: list[int] = []
    with RunFolder(place) as folder:
        run = new_run(folder)
        run.progress.bar = counting(seen)  # type: ignore[method-assign]
        found = np.array(flow(run))
        folder.drop_scratch()
    check(place, found, alone)
    assert sum(seen) < 5 * N, "nothing was taken up"


def counting(seen: list[int]) -> Any:
    @contextlib.contextmanager
    def bar(text: str, total: int, done: int = 0, unit: str = "faces") -> Iterator[Any]:
        seen.append(total - done)
        yield SimpleNamespace(advance=lambda faces: None, tell=lambda told: None)

    return bar


def test_a_run_begun_alone_is_finished_with_workers(tmp_path: Path, alone: Any) -> None:
    place = tmp_path / "run"

    def error(rows: np.ndarray) -> BaseException | None:
        return KeyboardInterrupt() if rows[0] > N // 2 else None

    with RunFolder(place) as folder, pytest.raises(KeyboardInterrupt):
        failing("sets", error, workers=False)(new_run(folder))
    found, *_ = driven(place)
    check(place, found, alone)


def test_blocks_written_before_a_driver_died_are_taken_up_and_others_deleted(
    tmp_path: Path, alone: Any
) -> None:
    place, computed = tmp_path / "run", []
    with RunFolder(place) as folder:
        run = new_run(folder)
        key = run.compute(
            Stage(name="squares", text="", block=dict, shapes={"x": ((N,), np.int64)}, rows=N, size=100)
        ).key
        partial = folder.begin("squares", key, {"x": ((N,), np.int64)})
        blocks = partial.folder_of_blocks()
        rows = np.arange(100, 1700, dtype=np.int64)
        write_block_file(blocks, (100, 1700), key, {"x": rows**2}, "dead")
        write_block_file(blocks, (1700, 1800), "another key", {"x": rows[:100]}, "dead")
        write_block_file(blocks, (1800, 1900), key, {"x": rows[:100]}, "dead")
        whole = blocks / name_of_block((1800, 1900), "dead")
        whole.write_bytes(whole.read_bytes()[:-300])
        (blocks / ".000000001900-000000002000.block.dead.tmp").write_bytes(b"begun")
        partial.close()

    def fate(worker: str, ask: Ask) -> None:
        if ask.kind == messages.DONE and ask.name == "squares":
            computed.append((ask.start, ask.stop))

    found, *_ = driven(place, fate=fate)
    check(place, found, alone)
    assert sum(stop - start for start, stop in computed) == N - 1600


def test_a_block_file_is_whole_or_none_and_of_its_artifact(tmp_path: Path) -> None:
    arrays = {"a": np.arange(5), "b": np.ones((3, 2), np.float32), "empty": np.empty((0, 4), np.int8)}
    write_block_file(tmp_path, (3, 8), "key", arrays, "me")
    path = tmp_path / name_of_block((3, 8), "me")
    block = look_at_block(path, (3, 8), "key")
    assert block is not None
    found = block.read()
    assert found is not None
    assert found.keys() == arrays.keys()
    assert all(
        np.array_equal(found[name], arrays[name]) and found[name].dtype == arrays[name].dtype
        for name in arrays
    )
    assert list(blocks_in(tmp_path)) == [((3, 8), path)]
    assert look_at_block(path, (3, 8), "other") is None
    assert look_at_block(tmp_path / name_of_block((3, 8), "you"), (3, 8), "key") is None
    content = path.read_bytes()
    for length in [*range(0, len(content) - 1, 37), len(content) - 1]:
        path.write_bytes(content[:length])
        assert look_at_block(path, (3, 8), "key") is None, length
    path.write_bytes(content[:300])
    assert block.read() is None, "cut short behind our back"
    block.remove()
    assert block.read() is None
    block.remove()
    assert not list(tmp_path.iterdir())


def failing(name: str, error: Callable[[np.ndarray], BaseException | None], workers: bool = True) -> Flow:
    """The flow, where a block of a stage raises what ``error`` says of its rows; in workers, or in the driver."""

    def changed(run: Run) -> np.ndarray:
        compute = run.compute

        def other(stage: Stage) -> Artifact:
            block = stage.block

            def raising(rows: np.ndarray, *more: Any) -> Arrays:
                if (
                    stage.name == name
                    and (run.follows is not None) == workers
                    and (found := error(rows)) is not None
                ):
                    raise found
                return block(rows, *more)

            object.__setattr__(stage, "block", raising)
            return compute(stage)

        run.compute = other  # type: ignore[method-assign]
        return flow(run)

    return changed


def test_blocks_for_which_a_worker_has_no_memory_are_halved(tmp_path: Path, alone: Any) -> None:
    most: list[int] = []

    def error(rows: np.ndarray) -> BaseException | None:
        if len(rows) > 20:
            return MemoryError("so many")
        most.append(len(rows))
        return None

    found, *_ = driven(tmp_path / "run", flow=failing("sums", error))
    check(tmp_path / "run", found, alone)
    assert max(most) <= 20
    assert {rows % 7 for rows in most} <= {0, N % 7}  # the last rows of all


def test_no_memory_for_the_smallest_block_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(FcdeployError, match="sums: there is not enough memory for 7 faces"):
        driven(tmp_path / "run", flow=failing("sums", lambda rows: MemoryError("none")))


@pytest.mark.parametrize("kind", [FcdeployError, InputError])
def test_what_cannot_be_computed_is_said_as_one_process_says_it(
    tmp_path: Path, kind: type[FcdeployError]
) -> None:
    with pytest.raises(FcdeployError, match="not finite, in row 5") as caught:
        driven(tmp_path / "run", flow=failing("last", lambda rows: kind("not finite, in row 5.")))
    assert type(caught.value) is kind


def test_a_block_over_which_workers_are_lost_ends_the_run_with_the_reason(tmp_path: Path, alone: Any) -> None:
    notes: list[str] = []
    died: list[str] = []

    def fate(worker: str, ask: Ask) -> None:
        if ask.kind == messages.DONE and ask.name == "sums" and ask.start == 0:
            died.append(worker)
            raise Killed("signal 11")

    with pytest.raises(FcdeployError, match=r"sums: every worker .* 0 to .* is lost, .* signal 11"):
        driven(tmp_path / "run", notes, fate=fate)
    assert len(died) == MOST_LOSSES
    assert sum("was lost (signal 11)" in note for note in notes) == MOST_LOSSES
    found, *_ = driven(tmp_path / "run")
    check(tmp_path / "run", found, alone)


def other_print(worker: str) -> dict[str, str]:
    return {**OWN, "numpy": "1", "instructions": "avx2 avx512f"} if worker == "w0" else OWN


def test_a_worker_that_may_give_other_bytes_is_named(tmp_path: Path, alone: Any) -> None:
    notes: list[str] = []
    found, _, crew = driven(tmp_path / "run", notes, prints=other_print)
    check(tmp_path / "run", found, alone)
    assert len(notes) == 1, notes
    note = notes[0]
    assert "worker w0 has numpy 1 instead of 2, a processor without fma and with avx512f" in note
    assert not crew.dismissed


def test_strict_refuses_it_and_goes_on_with_the_others(tmp_path: Path, alone: Any) -> None:
    notes: list[str] = []
    strict = Options(memory=1 << 40, strict=True)
    found, _, crew = driven(tmp_path / "run", notes, options=strict, prints=other_print)
    check(tmp_path / "run", found, alone)
    assert len(crew.dismissed) == len(notes) == 1
    with pytest.raises(FcdeployError, match="no worker is left"):
        driven(tmp_path / "other", notes, options=strict, prints=lambda worker: {**OWN, "numpy": "1"})


def test_a_worker_whose_files_are_others_is_not_used(tmp_path: Path, alone: Any) -> None:
    """It makes another artifact of the same name."""

    def changed(run: Run) -> np.ndarray:
        if run.follows is not None and threading.current_thread().name == first[0]:
            run.__dict__["features_hash"] = "other"
            digest = run.key_of
            run.key_of = lambda name, made_from: digest(name, {**made_from, "other": 1})  # type: ignore[method-assign]
        return flow(run)

    class Named(ThreadCrew):
        def add(self) -> None:
            super().add()
            first.append(self.threads[0].name)

    first: list[str] = []
    notes: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.ThreadCrew", Named)
        found, _, crew = driven(tmp_path / "run", notes, flow=changed)
    check(tmp_path / "run", found, alone)
    assert len(crew.dismissed) == 1
    assert "computes a different squares" in notes[0]


class Driver:
    """Gives a driver's own run other keys."""

    def __init__(self, identity: dict[str, Any]) -> None:
        self.identity = identity

    def collected(self, name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        return make()


def test_workers_begin_anew_when_the_driver_begins_another_run(tmp_path: Path) -> None:
    """As it does when near-copies are left out: the same names, other keys."""

    def numbered(number: int) -> Flow:
        def of(run: Run) -> np.ndarray:
            first = stage_of(
                run,
                "squares",
                lambda rows: {"x": rows + np.int64(number)},
                settings={"number": number},
                size=50,
            )
            return np.array(first.array)

        return of

    runs: list[int] = []

    def worker(run: Run) -> np.ndarray:
        assert isinstance(run.follows, Follower)
        runs.append(run.follows.identity["number"])
        return numbered(runs[-1])(run)

    place, own = tmp_path / "run", tmp_path / "own"
    own.mkdir()
    with RunFolder(place, shared=True) as folder:
        blocks = SharedBlocks(
            ThreadCrew(place, own, flow=worker), folder, Options(memory=1 << 40), OWN, print
        )
        try:
            for number in (1, 2):
                run = new_run(folder)
                run.follows = Driver({**run.identity, "number": number})  # by whose keys both go
                blocks.begin({"identity": run.follows.identity})
                run.blocks = blocks
                assert np.array_equal(numbered(number)(run), np.arange(N) + number)
        finally:
            blocks.close()
    assert set(runs) == {1, 2}


def test_a_paused_worker_that_writes_late_changes_nothing(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its block goes to another one; when it goes on, the stage is over and its folder of blocks is gone."""
    monkeypatch.setattr("fcdeploy.run.handout.LEAST_PATIENCE", 0.2)
    paused, over = [], threading.Event()

    def changed(run: Run) -> np.ndarray:
        compute = run.compute

        def other(stage: Stage) -> Artifact:
            if run.follows is None:
                if stage.name == "last":
                    over.set()
                return compute(stage)
            block = stage.block

            def pausing(rows: np.ndarray, *more: Any) -> Arrays:
                if stage.name == "squares" and not paused:
                    paused.append(rows[0])
                    assert over.wait(30)
                return block(rows, *more)

            return compute(dataclasses.replace(stage, block=pausing))

        run.compute = other  # type: ignore[method-assign]
        return flow(run)

    found, blocks, crew = driven(tmp_path / "run", flow=changed)
    check(tmp_path / "run", found, alone)
    assert paused
    assert blocks.again == 1
    assert blocks.lost == 0
    assert not crew.failed


def test_a_late_file_of_another_run_replaces_nobodys(tmp_path: Path, alone: Any) -> None:
    """Of a worker that stood still since then: the same name of an artifact, the same rows, another key."""
    place = tmp_path / "run"

    def fate(worker: str, ask: Ask) -> None:
        if ask.kind == messages.DONE:
            blocks = place / f"{ask.name}.part/blocks"
            with contextlib.suppress(FileNotFoundError):
                write_block_file(blocks, (ask.start, ask.stop), "old key", {"x": np.zeros(3)}, "late")

    found, blocks, crew = driven(place, fate=fate)
    check(place, found, alone)
    assert (blocks.again, blocks.lost, crew.dismissed) == (0, 0, [])


def test_a_worker_whose_blocks_never_appear_is_not_used(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where another folder has the run folder's name: the others do its blocks, and it gets no more."""
    monkeypatch.setattr("fcdeploy.run.shared_blocks.APPEARS_SECONDS", 0.01)
    notes: list[str] = []

    def fate(worker: str, ask: Ask) -> None:
        if worker == "w0" and ask.kind == messages.DONE:
            (tmp_path / f"run/{ask.name}.part/blocks" / name_of_block((ask.start, ask.stop), worker)).unlink()

    found, _, crew = driven(tmp_path / "run", notes, fate=fate)
    check(tmp_path / "run", found, alone)
    assert len(notes) == 1, notes
    note = notes[0]
    assert note.startswith("worker w0 is not used")
    assert len(crew.dismissed) == 1


def test_a_worker_that_lacks_something_is_named_and_not_used(tmp_path: Path, alone: Any) -> None:
    notes: list[str] = []

    def changed(run: Run) -> np.ndarray:
        if run.follows is not None and threading.current_thread() is crews[0].threads[0]:
            wait_for_folder(tmp_path / "nowhere" / "run", tmp_path / "nowhere" / "run" / "told")
        return flow(run)

    crews: list[ThreadCrew] = []

    class Known(ThreadCrew):
        def add(self) -> None:
            if self not in crews:
                crews.append(self)
            super().add()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.ThreadCrew", Known)
        found, _, crew = driven(tmp_path / "run", notes, flow=changed)
    check(tmp_path / "run", found, alone)
    assert len(notes) == 1, notes
    note = notes[0]
    assert f"{tmp_path / 'nowhere' / 'run'}: is not there on {os.uname().nodename}" in note
    assert len(crew.dismissed) == 1


def test_a_run_folder_is_known_by_what_only_its_run_has_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follow, "SEEN_SECONDS", 0.3)
    place = tmp_path / "run"
    told = place / "workers" / "d00d"
    appears = threading.Timer(0.1, lambda: told.mkdir(parents=True))  # a file server shows it a little later
    appears.start()
    wait_for_folder(place, told)
    appears.join()
    with pytest.raises(UnfitError, match="is another folder on"):
        wait_for_folder(place, place / "workers" / "beef")


def test_a_full_disk_of_a_worker_means_no_copy_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "vectors"
    place.mkdir()
    np.save(place / "x.npy", np.arange(5))
    assert copied(place, ["x"], tmp_path / "disk" / "one") == tmp_path / "disk" / "one"

    def full(source: Any, target: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fcdeploy.run.follow.shutil.copyfile", full)
    assert copied(place, ["x"], tmp_path / "disk" / "two") == place
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"one", "one.lock", "two.lock"}


@pytest.mark.parametrize("most", [None, 1000])
def test_blocks_are_the_same_however_the_system_copies_them(
    tmp_path: Path, alone: Any, monkeypatch: pytest.MonkeyPatch, most: int | None
) -> None:
    """Not at all, between file systems for example, or a few bytes per call."""
    calls, copy = [], os.copy_file_range

    def copying(source: int, target: int, count: int, *offsets: int) -> int:
        calls.append(count)
        if most is None:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return copy(source, target, min(count, most), *offsets)

    monkeypatch.setattr("fcdeploy.run.folder.os.copy_file_range", copying)
    found, *_ = driven(tmp_path / "run")
    check(tmp_path / "run", found, alone)
    assert calls
