"""A full disk is one sentence and exit code 1; with more room the same command goes on."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import pictures_of, write_embedder
from PIL import Image
from run_folders import bytes_of

from fcdeploy.data.filelist import read_filelist
from fcdeploy.data.labels import write_labels
from fcdeploy.errors import FcdeployError
from fcdeploy.runtime.embed import embed_to_file, new_job

SMALL = (3000,)
ON_DISK = (4500, "--knn", "ivf", "--memory", "200K")
KB = 1024


def mount(*args: object) -> bool:
    done = subprocess.run(["mount", *map(str, args)], capture_output=True)
    return done.returncode == 0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A disk of so many bytes; called again, it grows and keeps what it holds."""
    place = tmp_path / "disk"
    mounted = False

    def resize(size: int) -> Path:
        nonlocal mounted
        place.mkdir(exist_ok=True)
        how = f"remount,size={size}" if mounted else f"size={size}"
        try:
            done = mount("-t", "tmpfs", "-o", how, "tmpfs", place)
        except FileNotFoundError:
            done = False
        if not done:
            pytest.skip("mounting a small disk is not permitted here")
        mounted = True
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


def check_whole(run: Path, whole: dict[str, bytes]) -> None:
    for name, content in whole.items():
        if name != "pred.meta" and (run / name).exists():
            assert bytes_of(run / name) == content, f"{name} is not whole"
    if (run / "run.json").exists():
        json.loads((run / "run.json").read_text())


def says_that_the_disk_is_full(err: str) -> bool:
    """Whether one sentence says so; a note that it will be may come before."""
    err = "".join(
        line for line in err.splitlines(True) if not (line.startswith("Note: ") and "free for it" in line)
    )
    return err.startswith("Error: ") and len(err.splitlines()) == 1 and "disk is full" in err


@pytest.mark.parametrize(
    ("case", "kilobytes"), [(SMALL, 8), (SMALL, 1100), (SMALL, 6000), (ON_DISK, 1700)], ids=str
)
def test_with_more_room_the_same_command_goes_on(
    command: Any, undisturbed: Any, disk: Any, tmp_path: Path, case: tuple[Any, ...], kilobytes: int
) -> None:
    """The disk is full with the first file, with lists, with the refined features, and with an index's own lists."""
    wanted = undisturbed(*case)
    run = disk(kilobytes * KB) / "run"
    line = (wanted.features, run, tmp_path / "pred.meta", "--quiet", *wanted.options)
    done = command.finished(*line)
    assert done.returncode == 1, done
    assert says_that_the_disk_is_full(done.stderr), done.stderr
    assert not (tmp_path / "pred.meta").exists()
    check_whole(run, wanted.results)

    disk(200_000 * KB)
    done = command.finished(*line)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "pred.meta").read_bytes() == wanted.results["pred.meta"]
    check_whole(run, wanted.results)


@pytest.mark.faults
@pytest.mark.parametrize("case", [SMALL, ON_DISK, (3000, "--inference", "layerwise")], ids=str)
def test_a_disk_may_be_full_at_any_time(
    command: Any, undisturbed: Any, disk: Any, tmp_path: Path, case: tuple[Any, ...]
) -> None:
    """A disk that grows by a little each time the run stops."""
    wanted = undisturbed(*case)
    size, stops = 4, 0
    run = disk(size * KB) / "run"
    line = (wanted.features, run, tmp_path / "pred.meta", "--quiet", *wanted.options)
    while (done := command.finished(*line)).returncode == 1:
        assert says_that_the_disk_is_full(done.stderr), (size, done.stderr)
        check_whole(run, wanted.results)
        stops += 1
        size += 4 if size < 32 else 300
        disk(size * KB)
    assert (done.returncode, done.stderr) == (0, ""), size
    assert stops > 10
    assert (tmp_path / "pred.meta").read_bytes() == wanted.results["pred.meta"]
    check_whole(run, wanted.results)


@pytest.mark.parametrize("kilobytes", [4, 24, 44])
def test_features_that_do_not_fit_leave_the_old_ones(disk: Any, tmp_path: Path, kilobytes: int) -> None:
    """100 rows of 64-d are 26 KB: the disk is full with the folder, with what is being embedded, with the output."""
    write_embedder(tmp_path / "embedder.onnx", dim=64)
    for at, picture in enumerate(pictures_of(100)):
        Image.fromarray(picture).save(tmp_path / f"{at}.png")
    (tmp_path / "faces.txt").write_text("".join(f"{at}.png\n" for at in range(100)))
    job = new_job(read_filelist(tmp_path / "faces.txt"), tmp_path / "embedder.onnx")
    embed_to_file(job, tmp_path / "whole.bin")

    output = disk(kilobytes * KB) / "features.bin"
    output.write_text("old\n")
    with pytest.raises((FcdeployError, OSError), match=r"disk is full|No space left"):
        embed_to_file(job, output)
    assert output.read_text() == "old\n"
    assert {path.name for path in output.parent.iterdir()} <= {"features.bin", "features.bin.part"}
    disk(1000 * KB)
    embed_to_file(job, output)
    assert output.read_bytes() == (tmp_path / "whole.bin").read_bytes()
    assert {path.name for path in output.parent.iterdir()} == {"features.bin", "features.bin.json"}


def test_labels_that_do_not_fit_leave_the_old_ones(
    command: Any, undisturbed: Any, disk: Any, tmp_path: Path
) -> None:
    wanted = undisturbed(*SMALL)
    output = disk(8 * KB) / "pred.meta"
    output.write_text("old\n")
    line = (wanted.features, tmp_path / "run", output, "--quiet")
    done = command.finished(*line)
    assert done.returncode == 1, done
    assert says_that_the_disk_is_full(done.stderr), done.stderr
    assert output.read_text() == "old\n"
    assert [path.name for path in output.parent.iterdir()] == ["pred.meta"]
    check_whole(tmp_path / "run", wanted.results)

    disk(1000 * KB)
    done = command.finished(*line)
    assert (done.returncode, done.stderr) == (0, "")
    assert output.read_bytes() == wanted.results["pred.meta"]


@pytest.mark.parametrize("name", ["a.meta", "a.npy", "clusters.txt"])
def test_no_form_of_labels_is_written_by_half(disk: Any, name: str) -> None:
    folder = disk(8 * KB)
    with pytest.raises(FcdeployError, match="disk is full"):
        write_labels(folder / name, np.zeros(100_000, dtype=np.int64))
    assert not list(folder.iterdir())
