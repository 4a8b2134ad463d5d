"""An update that is killed, whenever: the run folder is the old one or the new one, and works."""

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killable import Server
from system_cases import CASES

NEW = 15
EVERY = 4  # of so many moments that follow each other, one
BY_CLOCK = 12


def contents(run: Path) -> dict[str, bytes]:
    """What a run folder holds; the times in its history and its lock are left out."""
    found = {
        str(file.relative_to(run)): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.name not in ("run.lock", "history.csv", "summary.json", "run.json")
    }
    lines = (run / "history.csv").read_text().splitlines() if (run / "history.csv").exists() else []
    return {**found, "history": "\n".join(",".join(line.split(",")[2:]) for line in lines).encode()}


@pytest.mark.faults
@pytest.mark.parametrize("name", ["pse-gcn", "sepfl"])
def test_a_kill_leaves_the_old_state_or_the_new_one(
    name: str, server: Server, exported: Any, faces: Path, tmp_path: Path
) -> None:
    engine = exported(next(case for case in CASES if case.name == name)).path
    rows = np.fromfile(faces, "<f4").reshape(-1, 32)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    rows[NEW:].tofile(tmp_path / "old.bin")
    rows[:NEW].tofile(tmp_path / "new.bin")
    (tmp_path / "gone.txt").write_text("3\n4\n70\n")
    (tmp_path / "start").mkdir()
    start = tmp_path / "start/run"
    line = ("cluster", tmp_path / "old.bin", "--engine", engine, "-o", tmp_path / "old.meta", "--quiet")
    assert server.run(*line, "--run-dir", start).code == 0

    def update(folder: Path) -> tuple[object, ...]:
        given = ("--add", tmp_path / "new.bin", "--remove", tmp_path / "gone.txt")
        return "update", folder / "run", *given, "-o", folder / "updated.csv", "--quiet"

    def fresh(at: str) -> Path:
        folder = tmp_path / at
        folder.mkdir()
        shutil.copytree(start, folder / "run")
        (folder / "run/mine.txt").write_text("mine")
        return folder

    first = fresh("first")
    old = contents(first / "run")
    begun = time.monotonic()
    done = server.run(*update(first))
    seconds = time.monotonic() - begun
    assert done.code == 0, done.err
    new = contents(first / "run")
    assert new.keys() != old.keys()
    table = (first / "updated.csv").read_bytes()
    # Of the last moments all: few are left once the new state is there.
    last = len(done.moments)
    moments = sorted({*range(1, last + 1, EVERY), *range(last - 2, last + 1)})
    assert len(moments) > 10
    states = {"old": 0, "new": 0}
    rng = np.random.default_rng(1)
    for number, fatal in enumerate([*moments, *[0] * BY_CLOCK]):
        folder = fresh(str(number))
        running = server.start(*update(folder), fatal=fatal)
        if not fatal:
            time.sleep(rng.uniform(0, seconds))
            with contextlib.suppress(ProcessLookupError):  # it was over before
                os.kill(running.pid, signal.SIGKILL)
        ended = running.ended()
        found = contents(folder / "run")
        where = done.moments[fatal - 1] if fatal else "clock"
        assert found in (old, new), where
        assert (folder / "run/mine.txt").read_text() == "mine"
        states["new" if found == new else "old"] += 1
        if found == new:
            assert (folder / "updated.csv").read_bytes() == table
        if found == old:
            assert ended.code == -signal.SIGKILL
            again = server.run(*update(folder))
            assert again.code == 0, again.err
            assert contents(folder / "run") == new
            assert (folder / "updated.csv").read_bytes() == table
        assigned = (
            "assign",
            tmp_path / "new.bin",
            "--run-dir",
            folder / "run",
            "-o",
            folder / "a.csv",
            "--quiet",
        )
        assert server.run(*assigned).code == 0
        shutil.rmtree(folder)
    assert min(states.values()) > 0, states
