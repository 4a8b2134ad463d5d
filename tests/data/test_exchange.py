"""Folders that take each other's names."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from fcdeploy.data import atomic
from fcdeploy.data.atomic_folder import atomic_folder


@pytest.mark.parametrize("how", ["at once", "without the call", "not on this file system"])
def test_folders_take_each_others_names(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    if how == "without the call":
        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **named: object())
    elif how == "not on this file system":

        class Refusing:
            def renameat2(self, *args: Any) -> int:
                ctypes.set_errno(22)
                return -1

        monkeypatch.setattr(ctypes, "CDLL", lambda *args, **named: Refusing())
    atomic.exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a/b").read_text() == "b"
    assert (tmp_path / "b/a").read_text() == "a"
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}


def test_an_exchange_that_fails_is_an_error_of_the_system(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(FileNotFoundError, match="none"):
        atomic.exchange(tmp_path / "a", tmp_path / "none")
    assert (tmp_path / "a").is_dir()


def test_a_replaced_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "bundle", lambda folder: {"marker"}) as folder:
            (folder / "marker").write_text(text)
    assert (tmp_path / "bundle/marker").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
