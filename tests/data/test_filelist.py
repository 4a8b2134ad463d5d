"""Lists of image files: every line counts, paths are the user's bytes, and a stamp tells when a file is another."""

import os
import time
from pathlib import Path

import pytest

from fcdeploy.data.filelist import (
    NO_STAMP,
    Filelist,
    filelist_from_paths,
    look_up,
    look_up_all,
    read_filelist,
)
from fcdeploy.data.images import State
from fcdeploy.errors import InputError


def list_of(folder: Path, text: bytes) -> Filelist:
    (folder / "faces.txt").write_bytes(text)
    return read_filelist(folder / "faces.txt")


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        (b"a.jpg\nb.jpg\n", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\nb.jpg", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\r\nb.jpg\r\n", [b"a.jpg", b"b.jpg"]),
        (b"a.jpg\n\nb.jpg\n", [b"a.jpg", b"", b"b.jpg"]),  # b.jpg stays line 2
        (b"\r\na.jpg\r\n", [b"", b"a.jpg"]),
        (b"a.jpg\n\n \r\n\n", [b"a.jpg"]),
        (b"# a.jpg\na.jpg # no\n", [b"# a.jpg", b"a.jpg # no"]),
        (b" a b .jpg \nc.jpg \n", [b" a b .jpg ", b"c.jpg "]),
        (b"\xef\xbb\xbfa.jpg\n", [b"a.jpg"]),
        (b"caf\xe9.jpg\n\xff\n", [b"caf\xe9.jpg", b"\xff"]),
        (b"a\rb.jpg\n", [b"a\rb.jpg"]),
    ],
)
def test_every_line_but_blank_ones_at_the_end_is_an_id(
    tmp_path: Path, text: bytes, lines: list[bytes]
) -> None:
    files = list_of(tmp_path, text)
    assert [files.line(at) for at in range(files.n)] == lines


def test_paths_are_relative_to_the_list_and_absolute_ones_stay(tmp_path: Path) -> None:
    files = list_of(tmp_path, b"sub/a.jpg\n/data/b.jpg\n../c\xe9.jpg\n")
    folder = os.fsencode(tmp_path)
    assert [files.path(at) for at in range(3)] == [
        folder + b"/sub/a.jpg",
        b"/data/b.jpg",
        folder + b"/../c\xe9.jpg",
    ]
    assert files.shown(2) == "../c\\xe9.jpg"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "is empty"),
        (b"\n \r\n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ("a.jpg\n".encode("utf-16"), "UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "not a text file"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, text: bytes, says: str) -> None:
    with pytest.raises(InputError, match=says):
        list_of(tmp_path, text)


def test_missing_lists_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read_filelist(tmp_path / "none.txt")
    with pytest.raises(InputError, match="is a folder"):
        read_filelist(tmp_path)


def test_paths_from_python_are_a_list_too(tmp_path: Path) -> None:
    files = filelist_from_paths(["a.jpg", tmp_path / "b", b"\xe9", ""])
    assert [files.line(at) for at in range(4)] == [b"a.jpg", os.fsencode(tmp_path / "b"), b"\xe9", b""]
    assert files.path(0) == b"a.jpg"
    with pytest.raises(InputError, match="none"):
        filelist_from_paths([])
    with pytest.raises(InputError, match="path 1 holds a line break"):
        filelist_from_paths(["a", "b\nc"])


def test_lines_that_name_no_file_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(b"x")
    (tmp_path / "empty").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("good")
    (tmp_path / "dangling").symlink_to("nothing")
    (tmp_path / "loop").symlink_to("loop")
    files = list_of(tmp_path, b"good\nempty\nfolder\npipe\nlink\ndangling\nnone\ngood/x\nloop\n\nn\ngood\n")
    states, stamps = look_up(files, 0, files.n)
    assert [State(state).name for state in states] == [
        *("GOOD", "EMPTY", "NOT_A_FILE", "NOT_A_FILE", "GOOD", "MISSING", "MISSING", "MISSING"),
        *("UNREADABLE", "BLANK", "MISSING", "GOOD"),
    ]
    assert ((stamps != NO_STAMP) == (states == State.GOOD)).all()
    assert stamps[0] == stamps[4] == stamps[11]
    assert look_up(filelist_from_paths([b"a\0b"]), 0, 1)[0][0] == State.MISSING
    counted: list[int] = []
    again = look_up_all(files, 2, counted.append)
    assert sum(counted) == files.n
    assert (again[0] == states).all()
    assert (again[1] == stamps).all()


def test_a_changed_file_has_another_stamp_even_with_the_old_times_and_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"one")
    (tmp_path / "b").write_bytes(b"two")
    os.utime(tmp_path / "a", ns=(1, 1))
    os.utime(tmp_path / "b", ns=(1, 1))
    files = list_of(tmp_path, b"a\nb\n")
    before = look_up(files, 0, 2)[1]
    assert before[0] != before[1]
    time.sleep(0.02)  # the clock of a file system ticks every few milliseconds
    (tmp_path / "b").write_bytes(b"six")
    os.utime(tmp_path / "b", ns=(1, 1))
    assert look_up(files, 1, 2)[1][0] != before[1]
    (tmp_path / "b").replace(tmp_path / "a")
    assert look_up(files, 0, 1)[1][0] != before[0]
    assert (look_up(list_of(tmp_path, b"a\nb\n"), 0, 1)[1][0] == look_up(files, 0, 1)[1][0]).all()


def test_the_digest_is_of_the_lines_and_their_order(tmp_path: Path) -> None:
    digest = list_of(tmp_path, b"a\nb\n").digest()
    assert list_of(tmp_path, b"a\r\nb\r\n\r\n").digest() == digest
    for other in (b"b\na\n", b"a\n\nb\n", b"ab\n", b"a\nb\nc\n"):
        assert list_of(tmp_path, other).digest() != digest
