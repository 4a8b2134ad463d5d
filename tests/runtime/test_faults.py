"""A run that is killed and started again gives, to the byte, what an undisturbed one gives."""

import itertools
import json
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying_run import KEPT, ROWS
from run_folders import bytes_of, finished_in, made
from small_blocks import set_blocks

from fcdeploy.run import folder as run_folder

EXACT = (3000,)
LAYERWISE = (3000, "--inference", "layerwise")
CELLS = (4500, "--knn", "ivf")
CELLS_LAYERWISE = (4500, "--knn", "ivf", "--inference", "layerwise")
CELLS_ON_DISK = (4500, "--knn", "ivf", "--memory", "200K")
ALL = pytest.mark.parametrize(
    "case",
    [EXACT, LAYERWISE, CELLS, CELLS_LAYERWISE, CELLS_ON_DISK],
    ids=lambda case: " ".join(map(str, case)),
)


Made = dict[str, tuple[int, int]]


def check_after_kill(folder: Path, whole: dict[str, bytes]) -> dict[str, Made]:
    """Nothing half-written may bear a final name. Returns when and as which files each recorded result was made."""
    run = folder / "run"
    for name, content in whole.items():
        if name == "pred.meta":
            assert not (folder / name).exists() or (folder / name).read_bytes() == content
        elif (run / name).exists():
            assert bytes_of(run / name) == content, f"{name} is not whole"
    if (run / "summary.json").exists():
        json.loads((run / "summary.json").read_text())
    return {name: made(run / name) for name in finished_in(run)}


def check_end(folder: Path, whole: dict[str, bytes], kept: dict[str, Made]) -> None:
    """All results are those of an undisturbed run, those that were finished before are the same files, and
    nothing else is left."""
    check_after_kill(folder, whole)
    for name, was in kept.items():
        assert made(folder / "run" / name) == was, f"{name} was finished and made again"
    outside = {path.name for path in folder.iterdir() if not path.name.startswith(".pred.meta.")}
    assert outside == {"run", "pred.meta"}
    names = {path.name for path in (folder / "run").iterdir()}
    assert names == {*KEPT, "run.json", "run.lock", "summary.json", "state.json", "labels", "vectors"}


def end_of(command: Any, wanted: Any, folder: Path, kept: dict[str, Made]) -> None:
    """Start a killed run again and let it finish."""
    done = command.finished(wanted.features, folder / "run", folder / "pred.meta", "--quiet", *wanted.options)
    assert (done.returncode, done.stderr) == (0, "")
    check_end(folder, wanted.results, kept)


def killed_at_random(command: Any, wanted: Any, folder: Path, kills: int, seed: int) -> int:
    """Kill a run again and again, at moments uniform over what an undisturbed one takes, then let it finish.

    A run that is over before its moment came is started in a new folder. Returns how many kills hit.
    """
    rng = np.random.default_rng(seed)
    folders = (folder / str(i) for i in itertools.count())
    kept: dict[str, Made] = {}
    place = next(folders)
    place.mkdir()
    hits = 0
    while hits < kills:
        process = command.start(
            wanted.features, place / "run", place / "pred.meta", "--quiet", *wanted.options
        )
        time.sleep(rng.uniform(0, wanted.seconds))
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            hits += 1
            found = check_after_kill(place, wanted.results)
            for name, was in kept.items():
                assert found[name] == was, f"{name} was finished and made again"
            kept = found
        else:
            assert process.returncode == 0
            check_end(place, wanted.results, kept)
            place, kept = next(folders), {}
            place.mkdir()
    end_of(command, wanted, place, kept)
    return hits


def test_three_random_kills_leave_no_trace(command: Any, undisturbed: Any, tmp_path: Path) -> None:
    assert killed_at_random(command, undisturbed(*EXACT), tmp_path, 3, seed=1) == 3


@pytest.mark.faults
@ALL
def test_more_random_kills_leave_no_trace(
    command: Any, undisturbed: Any, tmp_path: Path, case: tuple[Any, ...]
) -> None:
    assert killed_at_random(command, undisturbed(*case), tmp_path, 6, seed=2) == 6


def test_kills_in_a_row_at_chosen_moments_leave_no_trace(
    command: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """Each run goes on from what the killed one before it left, and is killed in its turn some moments later."""
    wanted = undisturbed(*CELLS_LAYERWISE)
    kept: dict[str, Made] = {}
    kills = 0
    for moment in (23, 44, 60, 30, 12):
        line = (wanted.features, tmp_path / "run", tmp_path / "pred.meta", "--quiet", *wanted.options)
        done = command.finished(*line, moment=moment)
        assert done.returncode == -signal.SIGKILL
        kills += 1
        found = check_after_kill(tmp_path, wanted.results)
        for name, was in kept.items():
            assert found[name] == was, f"{name} was finished and made again"
        kept = found
    assert kills == 5
    end_of(command, wanted, tmp_path, kept)


def killed_after(name: str, times: int, command: Any, wanted: Any, folder: Path) -> dict[str, Made]:
    """Kill a run at the given occurrence of a moment."""
    at = [i for i, moment in enumerate(wanted.moments, 1) if moment == name][times - 1]
    line = (wanted.features, folder / "run", folder / "pred.meta", "--quiet", *wanted.options)
    assert command.finished(*line, moment=at).returncode == -signal.SIGKILL
    return check_after_kill(folder, wanted.results)


def test_the_next_run_starts_behind_the_last_committed_block(
    command: Any, undisturbed: Any, tmp_path: Path
) -> None:
    """Blocks of 1,000: the features take three commits, so after the fifth 2,000 faces have neighbors."""
    wanted = undisturbed(*EXACT)
    killed_after("after commit", 5, command, wanted, tmp_path)
    assert (tmp_path / "run/knn.part/journal").read_text().splitlines()[1:] == ["0 1000", "1000 2000"]
    done = command.finished(wanted.features, tmp_path / "run", tmp_path / "pred.meta")
    assert "kNN: 1,000 faces in" in done.stderr
    assert "features: " not in done.stderr  # finished before
    assert "refinement: 3,000 faces in" in done.stderr
    check_end(tmp_path, wanted.results, {})


def test_after_a_restart_of_the_machine_results_are_trusted_and_nothing_unsynced_is(
    command: Any, undisturbed: Any, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scratch and journals are written without a sync; a restart may have lost any of it."""
    wanted = undisturbed(*EXACT)
    kept = killed_after("after commit", 26, command, wanted, tmp_path)  # refined: two blocks of three
    assert kept.keys() == {"vectors", "knn", "reranked"}
    run = tmp_path / "run"
    assert (run / "refined.part/journal").read_text().splitlines()[1:] == ["0 1000", "1000 2000"]
    # As after a power cut: what was not synced is there, by name and size, and full of zeros.
    unsynced = [path for path in run.glob("*/*.npy") if path.parent.suffix in (".part", ".scratch")]
    assert len(unsynced) > 5
    for path in unsynced:
        damaged = np.load(path, mmap_mode="r+")
        damaged[:] = 0
        damaged.flush()
        del damaged

    monkeypatch.setattr(run_folder, "boot_id", lambda: "another")
    set_blocks(ROWS, monkeypatch.setattr)
    labels = cluster(wanted.features, run).labels
    assert "".join(f"{label}\n" for label in labels).encode() == wanted.results["pred.meta"]
    for name, was in kept.items():
        assert made(run / name) == was
    for name in KEPT:
        assert bytes_of(run / name) == wanted.results[name]


@pytest.mark.parametrize("damage", ["cut short", "longer", "gone"])
def test_results_of_another_size_are_made_again(
    undisturbed: Any, cluster: Any, tmp_path: Path, many: Any, damage: str
) -> None:
    features = many(700)
    labels = cluster(features, tmp_path / "run").labels
    files = [file for name in KEPT for file in sorted((tmp_path / "run" / name).iterdir())]
    assert len(files) > len(KEPT)
    for file in files:
        content = file.read_bytes()
        before = {other: made(tmp_path / "run" / other) for other in KEPT}
        if damage == "gone":
            file.unlink()
        else:
            file.write_bytes(content[:-1] if damage == "cut short" else content + b"\0")
        assert np.array_equal(cluster(features, tmp_path / "run").labels, labels)
        assert file.read_bytes() == content
        for other in KEPT:
            assert other == file.parent.name or made(tmp_path / "run" / other) == before[other]


@pytest.mark.parametrize("case", [EXACT, CELLS_LAYERWISE], ids=["exact", "layerwise"])
def test_ctrl_c_is_one_line_and_exit_code_130_and_the_next_run_goes_on(
    command: Any, undisturbed: Any, tmp_path: Path, case: tuple[Any, ...]
) -> None:
    wanted = undisturbed(*case)
    line = (wanted.features, tmp_path / "run", tmp_path / "pred.meta", "--quiet", *wanted.options)
    kept: dict[str, Made] = {}
    for moment in (48, 36):
        done = command.finished(*line, moment=-moment)
        assert done.returncode == 130
        err = done.stderr.removeprefix("\n")  # behind the ^C of a terminal
        assert err.startswith(f"Interrupted; the same command continues from {tmp_path / 'run'}.")
        assert len(err.splitlines()) == 1
        found = check_after_kill(tmp_path, wanted.results)
        for name, was in kept.items():
            assert found[name] == was, f"{name} was finished and made again"
        kept = found
    end_of(command, wanted, tmp_path, kept)


@pytest.mark.faults
@ALL
def test_ctrl_c_at_any_time_is_one_line_and_exit_code_130(
    command: Any, undisturbed: Any, tmp_path: Path, case: tuple[Any, ...]
) -> None:
    """Sent from outside, into whatever the run is doing."""
    wanted = undisturbed(*case)
    rng = np.random.default_rng(3)
    for number in range(3):
        folder = tmp_path / str(number)
        folder.mkdir()
        line = (wanted.features, folder / "run", folder / "pred.meta", "--quiet", *wanted.options)
        process = command.start(*line)
        time.sleep(rng.uniform(0, wanted.seconds / 2))
        process.send_signal(signal.SIGINT)
        err = process.communicate()[1].removeprefix("\n")
        assert process.returncode == 130, err
        assert len(err.splitlines()) == 1, err
        end_of(command, wanted, folder, check_after_kill(folder, wanted.results))
