"""Whatever is killed, whenever: nothing half-made bears a final name, and the same command ends as if undisturbed.

Kills come in chains: each run goes on from what the killed one before it left, until one is let live.
"""

import contextlib
import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killable import JOBS, Job, Server, Undisturbed, content_of
from run_folders import finished_in, made

KILLS = 200  # in all, spread over the jobs
CHAIN = 4  # kills in a row


def check_after_kill(folder: Path, job: Job, wanted: Undisturbed, old: dict[str, bytes]) -> None:
    """What has its final name is whole: as undisturbed, or what stood there before."""
    for name, content in wanted.content.items():
        found = content_of(folder / name)
        assert found in (None, content, old.get(name)), f"{name} is not whole"
        if name in old and not job.training:
            assert found is not None, f"{name} was there, and is gone"


def check_end(folder: Path, job: Job, wanted: Undisturbed) -> None:
    """All results as undisturbed, and nothing else but hidden files that killed processes were writing."""
    for name, content in wanted.content.items():
        assert content_of(folder / name) == content, f"{name} is another"
    allowed = {*job.results, *job.beside}
    left = {
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }
    strangers = {name for name in left if not any(name == a or name.startswith(f"{a}/") for a in allowed)}
    assert not strangers


def share_of(name: str) -> int:
    """How many kills a job gets: clusterings more, since they have the most stages."""
    weights = {other: 3 if other.startswith("cluster") else 2 for other in JOBS}
    ends = np.floor(np.cumsum(list(weights.values())) / sum(weights.values()) * KILLS).astype(int)
    return int(np.diff([0, *ends])[list(weights).index(name)])


def test_the_shares_are_two_hundred_kills() -> None:
    assert sum(map(share_of, JOBS)) == KILLS
    assert min(map(share_of, JOBS)) >= 8


def killed_in_chains(
    name: str, kills: int, server: Server, job: Job, wanted: Undisturbed, folder: Path, rng: Any
) -> set[str]:
    """Kill a job ``kills`` times; returns the kinds of moments that were the last.

    Every other kill is by the clock, from outside, at a time uniform over what an undisturbed run takes; the others
    are at a moment of the run's own, uniform over all.
    """
    hit: set[str] = set()
    number = 0
    chains = itertools.count()
    while number < kills:
        chain = next(chains)
        place = folder / str(chain)
        place.mkdir()
        old: dict[str, bytes] = {}
        if chain % 2 and not job.training:  # half of the chains begin where an earlier run has ended
            assert server.run(*job.line(place)).code == 0
            old = dict(wanted.content)
        for _ in range(CHAIN):
            if number == kills:
                break
            by_clock = number % 2 == 0
            fatal = 0 if by_clock else int(rng.integers(1, len(wanted.moments) + 1))
            running = server.start(*job.line(place), fatal=fatal, training=job.training)
            if by_clock:
                time.sleep(rng.uniform(0, wanted.seconds))
                with contextlib.suppress(ProcessLookupError):
                    os.kill(running.pid, signal.SIGKILL)
            done = running.ended()
            if done.code == -signal.SIGKILL:
                number += 1
                hit.add(wanted.moments[fatal - 1] if fatal else "clock")
            else:
                assert done.code == 0, done.err  # it was over before its moment came
            check_after_kill(place, job, wanted, old)
        done = server.run(*job.line(place), training=job.training)
        assert done.code == 0, done.err
        check_end(place, job, wanted)
    return hit


@pytest.mark.faults
@pytest.mark.parametrize("name", JOBS)
def test_kills_leave_no_trace(name: str, server: Server, jobs: Any, undisturbed: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng([JOBS.index(name), 5])
    hit = killed_in_chains(name, share_of(name), server, jobs(name), undisturbed(name), tmp_path, rng)
    assert "clock" in hit
    assert len(hit) > 2


@pytest.mark.faults
@pytest.mark.parametrize("name", ["cluster pse-gcn", "cluster pse-gcn layerwise", "cluster pse-gcn ivf"])
def test_a_kill_at_any_moment_leaves_no_trace_and_what_was_finished_is_kept(
    name: str, server: Server, jobs: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """Of three moments that follow each other, one."""
    job, wanted = jobs(name), undisturbed(name)
    assert len(wanted.moments) > 80
    kept = 0
    for moment in range(1, len(wanted.moments) + 1, 3):
        folder = tmp_path / str(moment)
        folder.mkdir()
        try:
            assert server.run(*job.line(folder), fatal=moment).code == -signal.SIGKILL
            check_after_kill(folder, job, wanted, {})
            finished = finished_files(folder / "run")
            assert server.run(*job.line(folder)).code == 0
            check_end(folder, job, wanted)
            assert finished.items() <= finished_files(folder / "run").items(), "finished, and made again"
        except AssertionError as error:
            raise AssertionError(f"moment {moment}: {wanted.moments[moment - 1]}") from error
        kept += len(finished)
        shutil.rmtree(folder)
    assert kept > 40


def finished_files(run: Path) -> dict[str, tuple[int, int]]:
    """When, and as which file, each array was made that a run folder records as finished and keeps."""
    return {f"{name}/{part}": how for name in finished_in(run) for part, how in made(run / name).items()}


@pytest.mark.faults
@pytest.mark.parametrize("name", [name for name in JOBS if name.split()[0] in ("cluster", "embed", "train")])
def test_ctrl_c_is_one_line_that_says_how_to_go_on(
    name: str, server: Server, jobs: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """Sent from outside, at whatever the run is doing, and again at a moment of its own."""
    job, wanted = jobs(name), undisturbed(name)
    rng = np.random.default_rng([JOBS.index(name), 6])
    interrupts = 0
    while interrupts < 4:
        fatal = -int(rng.integers(1, len(wanted.moments) + 1)) if interrupts % 2 else 0
        running = server.start(*job.line(tmp_path), fatal=fatal, training=job.training)
        if not fatal:
            time.sleep(rng.uniform(0.2, 0.9) * wanted.seconds)
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGINT)
        done = running.ended()
        if done.code == 0:  # over before; begin anew
            for path in sorted(tmp_path.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
            continue
        assert done.code == 130, done.err
        assert done.sentence.startswith("Interrupted"), done.err
        interrupts += 1
        check_after_kill(tmp_path, job, wanted, {})
    assert server.run(*job.line(tmp_path), training=job.training).code == 0
    check_end(tmp_path, job, wanted)
