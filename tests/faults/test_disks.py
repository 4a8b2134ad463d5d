"""Disks that are full, may not be written to, or take away what is being read; runs that meet each other."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killable import JOBS, Job, Server, Undisturbed, content_of, new_server

KB = 1024
# Not of pictures: their run folder is no result, and changed ones are tested with embed.
OF_FEATURES = [name for name in JOBS if name.startswith("cluster") and name != "cluster pictures"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """A disk of so many bytes, perhaps read-only; called again, it changes and keeps what it holds."""
    place, mounted = tmp_path / "disk", False

    def mount(size: int, how: str = "rw") -> Path:
        nonlocal mounted
        place.mkdir(exist_ok=True)
        options = f"size={size},{how}" + (",remount" if mounted else "")
        try:
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True
            )
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if done.returncode:
            pytest.skip("mounting a small disk is not permitted here")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def check_whole(folder: Path, wanted: Undisturbed) -> None:
    for name, content in wanted.content.items():
        assert content_of(folder / name) in (None, content), f"{name} is not whole"


@pytest.mark.faults
@pytest.mark.parametrize("name", JOBS)
def test_a_full_disk_is_one_sentence_and_with_room_the_same_command_goes_on(
    name: str, server: Server, jobs: Any, undisturbed: Any, disk: Any
) -> None:
    """Disks of a twentieth to nine tenths of what the job needs, one after the other."""
    job, wanted = jobs(name), undisturbed(name)
    large = 400_000 * KB
    needed = max(sum(map(len, wanted.content.values())), 64 * KB)
    stops = 0
    for share in (0.05, 0.3, 0.6, 0.9):
        folder = disk(large) / f"{share}"
        folder.mkdir()
        disk(max(int(share * needed), 4 * KB) // 4096 * 4096 + 8 * KB)
        done = server.run(*job.line(folder), training=job.training)
        assert done.code in (0, 1), done.err
        if done.code:
            assert done.sentence.startswith("Error: "), done.err
            assert "disk is full" in done.sentence or "No space left" in done.sentence, done.err
            stops += 1
        check_whole(folder, wanted)
        disk(large)
        done = server.run(*job.line(folder), training=job.training)
        assert done.code == 0, done.err
        for result, content in wanted.content.items():
            assert content_of(folder / result) == content
        shutil.rmtree(folder)
    assert stops


@pytest.mark.faults
@pytest.mark.parametrize("name", JOBS)
def test_a_folder_that_may_not_be_written_to_is_one_sentence(
    name: str, server: Server, jobs: Any, undisturbed: Any, disk: Any
) -> None:
    job, wanted = jobs(name), undisturbed(name)
    folder = disk(400_000 * KB)
    disk(400_000 * KB, "ro")
    done = server.run(*job.line(folder), training=job.training)
    assert done.code in (1, 2)
    assert done.sentence.startswith("Error: "), done.err
    assert "writable" in done.sentence or "Read-only" in done.sentence, done.err
    disk(400_000 * KB, "rw")
    assert not list(folder.iterdir())
    done = server.run(*job.line(folder), training=job.training)
    assert done.code == 0, done.err
    check_whole(folder, wanted)


# Files that change while they are read


@pytest.mark.faults
@pytest.mark.parametrize("name", OF_FEATURES)
@pytest.mark.parametrize("stage", ["features", "knn", "links", "clusters"])
def test_a_file_cut_short_while_it_is_mapped_is_one_sentence(
    name: str, stage: str, server: Server, jobs: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """What a stage needs, emptied as the stage begins: the features at first, the neighbor lists later.

    A map of an emptied file has no pages, and reading them would kill the process without a word.
    """
    job, wanted = jobs(name), undisturbed(name)
    if stage == "links" and name == "cluster gcn-d":
        stage = "detect"  # what reads the lists there
    line = [*job.line(tmp_path)]
    features = tmp_path / "features.bin"
    shutil.copy(line[1], features)
    line[1] = features
    refined = stage == "links" and name.startswith("cluster pse-gcn")
    lists = tmp_path / ("run/refined_knn/ids.npy" if refined else "run/knn/ids.npy")
    lost = features if stage in ("features", "knn") else lists
    done = server.run(*line, truncate=[str(lost), stage])
    if stage == "knn":  # the features have been read, and are not looked at again
        assert done.code == 0, done.err
        return
    if done.code == 0:  # small lists are read, not mapped; those of a finished stage are not read again
        assert stage == "clusters"
        return
    assert done.code == 1, done.err
    assert done.sentence.startswith("Error: ")
    assert "became shorter" in done.sentence or "changed while" in done.sentence, done.err
    assert not (tmp_path / "pred.meta").exists()
    shutil.copy(job.line(tmp_path)[1], features)  # type: ignore[arg-type]
    done = server.run(*line)
    assert done.code == 0, done.err
    for result, content in wanted.content.items():
        assert content_of(tmp_path / result) == content


@pytest.mark.faults
@pytest.mark.parametrize("name", OF_FEATURES)
def test_inputs_changed_between_runs_leave_nothing_of_the_old(
    name: str, server: Server, jobs: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """A run that is killed half way goes on with other features as if there had been no run before it."""
    job, wanted = jobs(name), undisturbed(name)
    line = [*job.line(tmp_path)]
    line[1] = tmp_path / "features.bin"
    rows = np.fromfile(job.line(tmp_path)[1], "<f4").reshape(-1, 32)  # type: ignore[arg-type]
    other = rows.copy()
    other[::3] = rows[::-1][::3]
    ends = {}
    for kind, content in (("new", other), ("old", rows)):
        for folder in ("used", "fresh"):
            place = tmp_path / folder if folder == "used" else tmp_path / f"fresh {kind}"
            place.mkdir(exist_ok=True)
            given = [*job.line(place)]
            given[1] = line[1]
            content.tofile(line[1])
            if folder == "used":
                rows.tofile(line[1])
                done = server.run(*given, fatal=2 * len(wanted.moments) // 3)
                assert done.code in (0, -signal.SIGKILL), done.err
                content.tofile(line[1])
            assert server.run(*given).code == 0
            ends[kind, folder] = {result: content_of(place / result) for result in job.results}
    assert ends["new", "used"] == ends["new", "fresh"]
    assert ends["old", "used"] == ends["old", "fresh"] == wanted.content
    assert ends["new", "used"] != ends["old", "used"]


@pytest.mark.faults
@pytest.mark.parametrize("name", JOBS)
@pytest.mark.parametrize("years", [-30, 30])
def test_a_clock_that_goes_back_changes_nothing(
    name: str, years: int, server: Server, jobs: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """A run is killed half way, and all that it left is dated into the future, or long ago; the next one goes on."""
    job, wanted = jobs(name), undisturbed(name)
    fatal = max(1, len(wanted.moments) // 2)
    done = server.run(*job.line(tmp_path), fatal=fatal, training=job.training)
    assert done.code == -signal.SIGKILL
    then = time.time() + years * 365 * 86400
    for path in tmp_path.rglob("*"):
        os.utime(path, (then, then))
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*") if path.suffix == ".npy"}
    done = server.run(*job.line(tmp_path), training=job.training)
    assert done.code == 0, done.err
    for result, content in wanted.content.items():
        assert content_of(tmp_path / result) == content
    for result in job.results:  # what was finished is not made again
        for path in (tmp_path / result).glob("*.npy"):
            if path in before and result.startswith("run/"):
                assert path.stat().st_ino == before[path]


# Two at a time


@pytest.fixture(scope="module")
def second_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = new_server(tmp_path_factory.mktemp("second server"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(timeout=30)


@pytest.mark.faults
@pytest.mark.parametrize("name", JOBS)
def test_two_processes_with_one_output_do_not_disturb_each_other(
    name: str, server: Server, second_server: Server, jobs: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """The second says that there is a first, or both write the same thing, each whole."""
    job, wanted = jobs(name), undisturbed(name)
    first = server.start(*job.line(tmp_path), training=job.training)
    time.sleep(0.6 * wanted.seconds)
    with contextlib.suppress(ProcessLookupError):  # it may have ended
        os.kill(first.pid, signal.SIGSTOP)
    second = second_server.run(*job.line(tmp_path), training=job.training)
    with contextlib.suppress(ProcessLookupError):
        os.kill(first.pid, signal.SIGCONT)
    done = first.ended()
    locked = name.split()[0] in ("cluster", "embed", "train")
    assert second.code == 0 or second.sentence.startswith("Error: "), second.err
    if second.code and locked:
        assert second.code == 2
        assert "another run is using this folder" in second.sentence
        assert f"process {first.pid}" in second.sentence
    assert done.code == 0 or (not locked and done.sentence.startswith("Error: ")), done.err
    assert 0 in (done.code, second.code)
    check_end(tmp_path, job, wanted)


def check_end(folder: Path, job: Job, wanted: Undisturbed) -> None:
    for result, content in wanted.content.items():
        assert content_of(folder / result) == content
    strays = [path for path in folder.iterdir() if path.name.startswith(".")]
    assert not strays
