"""File systems without locks, maps or reserved space, and temporary folders that are memory.

Reported at nipype/nipype#1370 and tox-dev/filelock#6 (no locks on NFS), borgbackup/borg#5170 (fsync of folders on
SMB), h5py/h5py#1101 (locks on Lustre) and huggingface/datasets#1785 (temporary files fill a /tmp that is memory).
"""

import errno
import fcntl
import mmap
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdeploy.data import locks, scratch
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import open_features
from fcdeploy.data.scratch import scratch_folder
from fcdeploy.engine.bundle import Bundle
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import run_clustering


def failing(number: int) -> Any:
    def call(*arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number))

    return call


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, failing(request.param))


@pytest.mark.usefixtures("no_locks")
def test_without_locks_a_run_goes_on_with_a_note(tmp_path: Path) -> None:
    with (
        pytest.warns(FcdeployWarning, match=f"{tmp_path / 'run'}.*has no locks"),
        RunFolder(tmp_path / "run"),
    ):
        pass
    with pytest.warns(FcdeployWarning, match="has no locks"), RunFolder(tmp_path / "run"):  # and again
        pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")
def test_without_locks_a_second_run_is_refused_all_the_same(tmp_path: Path) -> None:
    """In another process, and in another thread of this one."""
    folder = tmp_path / "run"
    with RunFolder(folder):
        with pytest.raises(InputError, match=f"another run is using this folder .process {os.getpid()}"):
            RunFolder(folder)
        code = (
            "import errno, fcntl, sys\n"
            "def fails(*a): raise OSError(errno.ENOLCK, 'No locks available')\n"
            "fcntl.flock = fcntl.lockf = fails\n"
            "from fcdeploy.run.folder import RunFolder\n"
            "RunFolder(sys.argv[1])"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
        )
        assert f"process {os.getpid()}" in done.stderr.splitlines()[-1]
    with RunFolder(folder):
        pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")
def test_what_a_killed_run_left_is_no_lock_but_that_of_another_machine_is(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with RunFolder(folder):
        pass
    ours, host = folder / "run.lock", locks.host_name()
    for dead in (f"{os.getpid()} 1 {host}\n", f"999999999 77 {host}\n", "4711\n", ""):
        ours.write_text(dead)
        with RunFolder(folder):
            pass
    ours.write_text("4711 77 another-machine\n")
    with pytest.raises(InputError, match=r"4711 on another-machine.*delete .*run\.lock"):
        RunFolder(folder)


def test_locks_of_posix_stand_in_for_those_of_bsd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS has them; they do not hold between threads, for which there is a list of our own."""
    monkeypatch.setattr(fcntl, "flock", failing(errno.EOPNOTSUPP))
    refused: list[str] = []

    def second() -> None:
        try:
            RunFolder(tmp_path / "run")
        except InputError as error:
            refused.append(str(error))

    with RunFolder(tmp_path / "run"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another run" in refused[0]
    with RunFolder(tmp_path / "run"):
        pass


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS])
def test_space_that_cannot_be_reserved_is_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "posix_fallocate", failing(number))
    with RunFolder(tmp_path / "run") as folder:
        partial = folder.begin("rows", "key", {"array": ((3000, 5), np.float32)})
        partial.arrays["array"][:] = 7
        partial.commit(0, 3000)
        assert (partial.finish()["array"] == 7).all()


def test_a_file_system_that_cannot_map_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "f.npy", np.ones((9, 4), np.float32))
    with RunFolder(tmp_path / "run") as folder:
        monkeypatch.setattr(mmap, "mmap", failing(errno.ENODEV))
        with pytest.raises(FcdeployError, match=f"{tmp_path / 'run'}: its file system cannot map"):
            folder.begin("rows", "key", {"array": ((3000, 5), np.float32)})
        with pytest.raises(InputError, match=r"f\.npy.*its file system cannot map"):
            open_features(tmp_path / "f.npy", 4)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EOPNOTSUPP])
def test_folders_that_cannot_be_synced_and_files_without_modes_are_written(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def of_files_only(handle: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        sync(handle)

    monkeypatch.setattr(os, "fsync", of_files_only)
    monkeypatch.setattr(os, "fchmod", failing(errno.EPERM))
    with atomic_file(tmp_path / "out") as file:
        file.write(b"whole")
    assert (tmp_path / "out").read_bytes() == b"whole"


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Let folders be in memory by their names, and the temporary folder be one of them."""
    places = {name: tmp_path / name for name in ("tmp", "out", "disk", "var")}
    for place in places.values():
        place.mkdir()
    kept: set[Path] = {places["tmp"]}
    monkeypatch.setattr(scratch, "is_in_memory", lambda place: Path(place) in kept)
    monkeypatch.setattr(scratch.tempfile, "gettempdir", lambda: str(places["tmp"]))
    monkeypatch.setattr(scratch, "ELSEWHERE", (str(places["var"]),))
    monkeypatch.chdir(places["disk"])
    return places, kept


def test_scratch_is_beside_the_output_and_never_in_memory(in_memory) -> None:
    places, kept = in_memory
    assert scratch_folder(beside=places["out"]) == places["out"]
    assert scratch_folder() == places["var"]
    kept |= {places["out"], places["var"]}
    assert scratch_folder(beside=places["out"]) == places["disk"]
    kept.add(places["disk"])
    with pytest.raises(InputError, match="scratch"):
        scratch_folder(beside=places["out"])
    assert scratch_folder(beside=places["out"], needed=False) == places["out"]
    assert scratch_folder(places["tmp"]) == places["tmp"]  # as the user says
    for wrong in (places["tmp"] / "none", Path(__file__)):
        with pytest.raises(InputError, match="scratch"):
            scratch_folder(wrong)


def test_a_run_keeps_its_scratch_where_it_is_told_to_and_deletes_it(
    pse_bundle: Bundle, golden: Path, in_memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    places, _ = in_memory
    used: list[Path] = []
    begin = RunFolder.begin

    def watched(folder: RunFolder, *arguments: Any, **named: Any) -> Any:
        used.append(folder.path.parent)
        return begin(folder, *arguments, **named)

    monkeypatch.setattr(RunFolder, "begin", watched)
    features = open_features(golden / "dev/data/features.bin", 32)
    for chosen, beside, wanted in (
        (places["out"], None, "out"),
        (None, places["disk"], "disk"),
        (None, None, "var"),
    ):
        used.clear()
        options = Options(memory=1 << 20, k=20, scratch=chosen)
        run_clustering(features, pse_bundle, options, scratch_dir=beside)
        assert set(used) == {places[wanted]}
        assert not any(list(place.iterdir()) for place in places.values())
