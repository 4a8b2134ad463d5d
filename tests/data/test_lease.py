"""A folder that a run on another machine has: seen by its lease, and free again when that no longer goes on."""

import contextlib
import time
from pathlib import Path

import pytest

from fcdeploy.data import lease
from fcdeploy.data.lease import LEASE, Lease, LostError, check_not_leased
from fcdeploy.data.locks import BusyError
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.run.folder import RunFolder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWED", 0.05)
    monkeypatch.setattr(lease, "PATIENCE", 0.4)


@contextlib.contextmanager
def elsewhere(name: str = "other-host"):
    """On another machine, whose locks do not reach this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lease, "host_name", lambda: name)
        yield


def test_a_lease_that_goes_on_is_seen_from_another_host_and_from_no_other(tmp_path: Path) -> None:
    held = Lease(tmp_path / LEASE)
    check_not_leased(tmp_path / LEASE)  # here the lock is what counts
    with elsewhere(), pytest.raises(BusyError, match=r"process .* on "):
        check_not_leased(tmp_path / LEASE)
    held.close()
    assert not (tmp_path / LEASE).exists()
    with elsewhere():
        check_not_leased(tmp_path / LEASE)


def test_a_lease_of_a_run_that_is_gone_is_nobodys_after_a_while(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text("dead-host 4711 000000000007\n")
    started = time.monotonic()
    check_not_leased(tmp_path / LEASE)
    assert time.monotonic() - started >= 0.4


def test_what_is_no_lease_is_none(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text("some text of the user's\n")
    check_not_leased(tmp_path / LEASE)


def test_a_second_run_from_another_host_is_refused_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "run"
    with RunFolder(place, shared=True):
        before = (place / "run.json").read_bytes()
        with elsewhere():
            monkeypatch.setattr("fcdeploy.run.folder.Lock", NoLock)
            with pytest.raises(InputError, match=r"another run is using this folder \(process \d+ on "):
                RunFolder(place)
            monkeypatch.undo()
        assert (place / "run.json").read_bytes() == before
    assert not (place / LEASE).exists()
    with RunFolder(place):
        pass


class NoLock:
    """A lock of a file system whose locks other machines do not see."""

    def __init__(self, file, place, told=True) -> None:
        self.file = file

    def close(self) -> None:
        self.file.close()


def test_a_folder_that_is_removed_leaves_no_lease(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run", shared=True) as folder:
        folder.remove()
        assert not (tmp_path / "run").exists()
    assert not (tmp_path / "run").exists()


def test_a_run_in_one_process_on_a_local_disk_needs_no_lease(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"):
        assert not (tmp_path / "run" / LEASE).exists()


@pytest.mark.parametrize("shared", [False, True])
def test_the_lease_of_a_killed_run_is_taken_over_on_the_same_host(tmp_path: Path, shared: bool) -> None:
    place = tmp_path / "run"
    with RunFolder(place, shared=True):
        content = (place / LEASE).read_text()
    record = (place / "run.json").read_text()
    (place / LEASE).write_text(content)
    (place / "run.json").write_text(record.replace('"run.lock"', '"run.lock",\n  "run.lease"'))
    with RunFolder(place, shared=shared):
        assert (place / LEASE).exists() == shared
    assert not (place / LEASE).exists()


def test_of_two_that_find_an_old_lease_at_the_same_time_one_gets_it(tmp_path: Path) -> None:
    path = tmp_path / LEASE
    path.write_text("dead-host 4711 000000000007\n")
    gone = check_not_leased(path)
    assert gone == ("dead-host", 4711, 7)
    first = Lease(path, gone)
    with elsewhere(), pytest.raises(BusyError):
        Lease(path, gone)
    first.check()
    first.close()
    assert not path.exists()


@pytest.mark.parametrize("ended", [False, True])
def test_a_run_that_stood_still_for_long_writes_nothing_into_a_folder_that_another_has(
    tmp_path: Path, ended: bool
) -> None:
    """A machine that slept: the other one may have ended in the meantime, and what is here is no longer as it was."""
    place = tmp_path / "run"
    with RunFolder(place, shared=True) as folder:
        held = folder._lease
        assert held is not None
        partial = folder.begin("ids", "key", {"ids": ((5000,), "<i4")})
        partial.commit(0, 10)
        held._over.set()  # it sleeps
        held._thread.join()
        (place / LEASE).unlink() if ended else (place / LEASE).write_text("other-host 99 000000000001\n")
        before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
        held._renewed -= 1000
        for write in (
            lambda: partial.commit(10, 20),
            lambda: folder.begin("other", "key", {"ids": ((5000,), "<i4")}),
            lambda: folder.drop("ids"),
            folder.drop_scratch,
            folder.remove,
            partial.finish,
        ):
            with pytest.raises(FcdeployError, match="was taken over by"):
                write()
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_a_lease_that_was_taken_stays_lost(tmp_path: Path) -> None:
    held = Lease(tmp_path / LEASE)
    until = time.monotonic() + 5
    while not held._lost and time.monotonic() < until:
        # Again and again: a beat that had read its own line before would write over the first one.
        (tmp_path / LEASE).write_text("other-host 99 000000000001\n")
        time.sleep(0.01)
    with pytest.raises(LostError, match="process 99 on other-host"):
        held.check()
    (tmp_path / LEASE).unlink()
    with pytest.raises(LostError):
        held.check()
    held.close()
    assert not (tmp_path / LEASE).exists()
