"""What a killed process leaves is removed by the next one that writes there; nothing else is, and nothing too early."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest

from fcdeploy import machine
from fcdeploy.data import leftovers
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.atomic_folder import atomic_folder
from fcdeploy.data.scratch import scratch_folder, temporary_folder
from fcdeploy.run.folder import SCRATCH_FOLDER, RunFolder

WRITERS = {
    "file": """
from fcdeploy.data.atomic import atomic_file
with atomic_file(here / "x.bin") as f:
 f.write(b"half")
""",
    "long name": """
from fcdeploy.data.atomic import atomic_file
with atomic_file(here / ("é" * 127)) as f:
 f.write(b"half")
""",
    "folder": """
from fcdeploy.data.atomic_folder import atomic_folder
with atomic_folder(here / "b.onnx", lambda path: ()) as f:
 (f / "made").write_bytes(b"half")
""",
    "temporary": """
from fcdeploy.data.scratch import temporary_folder
with temporary_folder(here) as f:
 Path(f, "made").write_bytes(b"half")
""",
    "run": """
from tempfile import TemporaryDirectory
from fcdeploy.run.folder import SCRATCH_FOLDER, RunFolder
with TemporaryDirectory(prefix=SCRATCH_FOLDER, dir=here) as f, RunFolder(f):
""",
}
START = "import sys, time\nfrom pathlib import Path\nhere = Path(sys.argv[1])\n"
WAIT = " print('written', flush=True)\n time.sleep(600)\n"


@pytest.fixture(autouse=True)
def never_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process looks into a folder once; each look here is that of another process."""

    class Nothing(set[Any]):
        def add(self, element: Any) -> None:
            pass

    monkeypatch.setattr(leftovers, "_looked", Nothing())
    monkeypatch.setattr(leftovers, "is_local", lambda folder: True)


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A process in the middle of writing."""
    code = START + WRITERS[request.param] + WAIT
    with subprocess.Popen([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        yield process
        process.kill()


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write_there(folder: Path) -> None:
    with atomic_file(folder / "other") as file:
        file.write(b"whole")


def test_what_a_kill_leaves_goes_when_somebody_writes_there_and_not_before_it_ended(
    writer: "subprocess.Popen[bytes]", tmp_path: Path
) -> None:
    (left,) = names_in(tmp_path)
    write_there(tmp_path)
    assert names_in(tmp_path) == sorted([left, "other"])  # it lives
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert names_in(tmp_path) == sorted([left, "other"])
    write_there(tmp_path)
    assert names_in(tmp_path) == ["other"]


@pytest.mark.parametrize("writes", ["folder", "temporary", "scratch"])
def test_whatever_writes_there_removes_it(writes: str, tmp_path: Path) -> None:
    (tmp_path / ".x.fcdeploy-a1b2c3d4.part").write_bytes(b"half")
    if writes == "folder":
        with atomic_folder(tmp_path / "new", lambda path: ()):
            pass
    elif writes == "temporary":
        with temporary_folder(tmp_path):
            pass
    else:
        scratch_folder(tmp_path)
    assert ".x.fcdeploy-a1b2c3d4.part" not in names_in(tmp_path)


def test_nothing_else_is_removed(tmp_path: Path) -> None:
    """Names that are nearly ours, links, a folder that was exchanged for one of the user's, locks that nobody took."""
    names = (
        *(".x.a1b2c3d4.part", ".x.part", "x.fcdeploy-a1b2c3d4.part", ".x.fcdeploy-a1b2c3d4.part.bak"),
        *(
            ".x.fcdeploy-a1b2c3d4.swap",
            ".fcdeploy-a1b2c3d4",
            ".fcdeploy-tmp-a1b2c3d4.txt",
            ".fcdeploy-run-short",
        ),
    )
    for name in names:
        (tmp_path / name).write_bytes(b"theirs")
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs/photo.jpg").write_bytes(b"theirs")
    (tmp_path / ".y.fcdeploy-a1b2c3d4.part").symlink_to("theirs")
    (tmp_path / ".fcdeploy-tmp-a1b2c3d4").symlink_to("theirs")
    (tmp_path / ".fcdeploy-run-a1b2c3d4").mkdir()  # of a run that has no lock yet
    (tmp_path / ".fcdeploy-run-e5f6g7h8").mkdir()
    (tmp_path / ".fcdeploy-run-e5f6g7h8/run.lock").touch()
    before = names_in(tmp_path)
    write_there(tmp_path)
    assert names_in(tmp_path) == sorted([*before, "other"])
    assert names_in(tmp_path / "theirs") == ["photo.jpg"]


def test_on_a_file_system_that_others_may_have_mounted_nothing_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".x.fcdeploy-a1b2c3d4.part").write_bytes(b"half")
    monkeypatch.setattr(leftovers, "is_local", lambda folder: False)
    write_there(tmp_path)
    assert names_in(tmp_path) == [".x.fcdeploy-a1b2c3d4.part", "other"]
    (tmp_path / "new").mkdir()
    with atomic_file(tmp_path / "new/x"), temporary_folder(tmp_path / "new"):
        assert not any("fcdeploy-tmp" in name or "x.fcdeploy" in name for name in names_in(tmp_path / "new"))


@pytest.mark.parametrize(
    ("kind", "local"), [("ext4", True), ("tmpfs", True), ("nfs4", False), ("fuse.sshfs", False)]
)
def test_a_file_system_is_local_by_its_kind(kind: str, local: bool, tmp_path: Path) -> None:
    number = os.stat(tmp_path).st_dev
    (tmp_path / "proc/self").mkdir(parents=True)
    line = f"1 1 {os.major(number)}:{os.minor(number)} / / rw - {kind} none rw\n"
    (tmp_path / machine.MOUNTS).write_text(line)
    assert machine.is_local(tmp_path, tmp_path) == local
    assert not machine.is_local(tmp_path / "none", tmp_path)


def test_a_file_is_written_although_others_clean_up_all_the_time(tmp_path: Path) -> None:
    """One that is made is a leftover to others until it is locked; then another is made."""
    stop = threading.Event()

    def clean() -> None:
        while not stop.is_set():
            leftovers.remove_leftovers(tmp_path)

    cleaner = threading.Thread(target=clean)
    cleaner.start()
    try:
        for at in range(300):
            with atomic_file(tmp_path / "x") as file:
                file.write(b"%d" % at)
            assert (tmp_path / "x").read_bytes() == b"%d" % at
    finally:
        stop.set()
        cleaner.join()
    assert names_in(tmp_path) == ["x"]


def test_a_folder_that_others_take_for_a_leftover_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may look between a folder and its lock, and delete it."""
    made, make = [], tempfile.mkdtemp

    def looked_at(*args: Any, **more: Any) -> str:
        made.append(make(*args, **more))
        if len(made) == 1:
            os.rmdir(made[0])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", looked_at)
    with leftovers.temporary_folder_in(tmp_path) as folder:
        assert folder == made[1]
        assert os.listdir(tmp_path) == [os.path.basename(folder)]
    assert not os.listdir(tmp_path)
    with pytest.raises(FileNotFoundError), leftovers.temporary_folder_in(tmp_path / "none"):
        pass


def test_a_run_that_goes_on_keeps_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / f"{SCRATCH_FOLDER}a1b2c3d4"
    folder.mkdir()
    with RunFolder(folder):
        write_there(tmp_path)
        assert folder.is_dir()
    write_there(tmp_path)
    assert not folder.exists()
