"""Kills while a folder is replaced in which the user has put files."""

import contextlib
import json
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

KILLS = 60


def state_below(folder: Path, names: tuple[str, ...]) -> dict[str, Any]:
    found = {}
    for name in names:
        path = folder / name
        found[name] = (path.read_bytes(), path.stat().st_mtime_ns) if path.exists() else None
    return found


@pytest.mark.faults
@pytest.mark.parametrize("verb", ["build", "triton"])
def test_kills_while_a_bundle_is_replaced_leave_the_users_files_and_one_bundle(
    verb: str, server: Server, exported: Any, cut_bundle: Any, tmp_path: Path
) -> None:
    """The old bundle or the new one, each whole, with all of the user's files at every moment."""
    case = next(case for case in CASES if case.name == "nsr-fc" and not case.networks)
    whole = exported(case)
    sources = [tmp_path / name / "engine.onnx" for name in ("a", "b")]
    for source, networks in zip(sources, (tuple(whole.weights), tuple(whole.weights)[:1]), strict=True):
        source.parent.mkdir()
        cut_bundle(whole, networks, source)
    output = tmp_path / "out"

    def line(source: Path) -> tuple[object, ...]:
        if verb == "build":
            return ("build", source, "--profile", "cpu", "-o", output, "--quiet")
        return ("triton", source, "-o", output, "--quiet")

    def ours() -> dict[str, bytes]:
        files = [path for path in output.rglob("*") if path.is_file() and "mine" not in str(path)]
        return {str(path.relative_to(output)): path.read_bytes() for path in files}

    wanted, moments, seconds = [], [], []
    for source in sources:
        started = time.monotonic()
        done = server.run(*line(source))
        assert done.code == 0, done.err
        wanted.append(ours())
        moments.append(len(done.moments))
        seconds.append(time.monotonic() - started)
    assert wanted[0] != wanted[1]
    mine = ("mine.txt", "mine/runs/tuned.toml", "mine/runs/x.npy")
    (output / "mine/runs").mkdir(parents=True)
    for name in mine:
        (output / name).write_text(name)
        os.utime(output / name, (1_000_000_000, 1_000_000_000))
    before = state_below(output, mine)
    rng = np.random.default_rng(8)
    kills = 0
    for number in range(10 * KILLS):
        which = number % 2
        fatal = int(rng.integers(1, moments[which] + 1)) if number % 4 < 2 else 0
        running = server.start(*line(sources[which]), fatal=fatal)
        if not fatal:
            time.sleep(rng.uniform(0, seconds[which]))
            with contextlib.suppress(ProcessLookupError):
                os.kill(running.pid, signal.SIGKILL)
        done = running.ended()
        assert done.code in (0, -signal.SIGKILL), done.err
        kills += done.code != 0
        assert state_below(output, mine) == before
        assert ours() in wanted
        if kills == KILLS:
            break
    assert kills == KILLS
    done = server.run(*line(sources[0]))
    assert done.code == 0, done.err
    assert ours() == wanted[0]
    assert state_below(output, mine) == before
    assert json.loads(next(iter(output.glob("*.json"))).read_text())
    shutil.rmtree(output)
