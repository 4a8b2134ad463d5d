"""Where artifacts are kept: what is taken from an earlier run, and what is not."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import bytes_of

from fcdeploy.errors import InputError
from fcdeploy.run import folder as run_folder
from fcdeploy.run.folder import RunFolder, places_of
from fcdeploy.run.store import MemoryStore

PAIR = {"ids": ((5, 3), np.int32), "sims": ((5, 3), np.float32)}
ONE = {"array": ((5, 2), np.float32)}
WIDE = {"array": ((3000, 4), np.float32)}  # more than a page, so it is mapped
FORMS = [  # name, shapes, scratch
    ("pair", PAIR, False),
    ("one", ONE, False),
    ("tables", PAIR, True),
    ("wide", WIDE, False),
    ("wide tables", WIDE, True),
]
forms = pytest.mark.parametrize(("name", "shapes", "scratch"), FORMS)


def fill(partial: Any) -> dict[str, np.ndarray]:
    """Write other numbers into every array; returns copies."""
    wanted = {}
    for number, (name, array) in enumerate(partial.arrays.items()):
        array[:] = (np.arange(array.size).reshape(array.shape) + 100 * number).astype(array.dtype)
        wanted[name] = np.array(array)
    return wanted


def make(folder: RunFolder, name: str, key: str, shapes: Any, scratch: bool = False) -> dict[str, np.ndarray]:
    partial = folder.begin(name, key, shapes, scratch=scratch)
    wanted = fill(partial)
    partial.commit(0, 5)
    partial.finish()
    return wanted


def assert_equal(found: Any, wanted: dict[str, np.ndarray]) -> None:
    assert found is not None
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert not found[name].flags.writeable


@forms
def test_a_finished_artifact_is_loaded_by_its_key_and_by_no_other(
    tmp_path: Path, name: str, shapes: Any, scratch: bool
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        assert folder.load(name, "key") is None
        wanted = make(folder, name, "key", shapes, scratch)
        assert_equal(folder.load(name, "key"), wanted)
        assert folder.load(name, "other") is None
    with RunFolder(tmp_path / "run") as folder:
        assert_equal(folder.load(name, "key"), wanted)
        assert folder.load(name, "other") is None
    assert not list((tmp_path / "run").glob("*.part"))


@forms
def test_after_a_restart_of_the_machine_only_results_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shapes: Any, scratch: bool
) -> None:
    with RunFolder(tmp_path) as folder:
        wanted = make(folder, name, "key", shapes, scratch)
    monkeypatch.setattr(run_folder, "boot_id", lambda: "another")
    with RunFolder(tmp_path) as folder:
        if not scratch:
            assert_equal(folder.load(name, "key"), wanted)
        else:
            assert folder.load(name, "key") is None


@forms
@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_an_artifact_of_another_size_is_not_loaded(
    tmp_path: Path, name: str, shapes: Any, scratch: bool, change: int
) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, name, "key", shapes, scratch)
        (*_, file) = (tmp_path / places_of(name, scratch)[1]).glob("*.npy")
        content = file.read_bytes()
        file.write_bytes(content[:-1] if change < 0 else content + b"\0")
        assert folder.load(name, "key") is None
        file.unlink()
        assert folder.load(name, "key") is None


def test_each_array_is_a_file_that_numpy_reads_and_large_ones_are_mapped(tmp_path: Path) -> None:
    shapes: Any = {"ids": ((3000, 3), np.int32), "sims": ((3000,), np.float32), "few": ((3,), np.int64)}
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("lists", "key", shapes)
        wanted = fill(partial)
        for arrays in (partial.finish(), folder.load("lists", "key")):
            assert arrays is not None
            assert all(isinstance(arrays[name], np.memmap) for name in ("ids", "sims"))
            assert_equal(arrays, wanted)
    assert {path.name for path in (tmp_path / "lists").iterdir()} == {"ids.npy", "sims.npy", "few.npy"}
    for name, array in wanted.items():
        found = np.load(tmp_path / "lists" / f"{name}.npy")
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)


def test_letting_go_of_pages_changes_no_value(tmp_path: Path) -> None:
    """Written and read maps alike: the kernel keeps what is dirty."""
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("wide", "key", WIDE)
        wanted = fill(partial)
        folder.release_pages()
        assert np.array_equal(partial.arrays["array"], wanted["array"])
        done = partial.finish()
        folder.release_pages()
        assert_equal(done, wanted)


@pytest.mark.parametrize("scratch", [False, True])
def test_arrays_without_rows_are_kept(tmp_path: Path, scratch: bool) -> None:
    shapes: Any = {"ids": ((0, 2), np.int32), "sims": ((0,), np.float32)}
    with RunFolder(tmp_path) as folder:
        folder.begin("none", "key", shapes, scratch=scratch).finish()
    with RunFolder(tmp_path) as folder:
        found = folder.load("none", "key")
    assert found is not None
    assert {part: (array.shape, array.dtype) for part, array in found.items()} == {
        part: (shape, np.dtype(dtype)) for part, (shape, dtype) in shapes.items()
    }


# Unfinished artifacts


@forms
def test_an_interrupted_artifact_goes_on_where_it_was_committed(
    tmp_path: Path, name: str, shapes: Any, scratch: bool
) -> None:
    with RunFolder(tmp_path) as folder:
        partial = folder.begin(name, "key", shapes, "visit", scratch=scratch)
        assert partial.finished == []
        wanted = fill(partial)
        for array in partial.arrays.values():
            array[3:] = 0
        partial.commit(0, 1)
        partial.commit(1, 3)
        assert not (tmp_path / places_of(name, scratch)[1]).exists()
        assert folder.load(name, "key") is None
    with RunFolder(tmp_path) as folder:
        partial = folder.begin(name, "key", shapes, "visit", scratch=scratch)
        assert partial.finished == [(0, 1), (1, 3)]
        for part, array in partial.arrays.items():
            assert np.array_equal(array[:3], wanted[part][:3])
            array[3:] = wanted[part][3:]
        partial.commit(3, 5)
        assert_equal(partial.finish(), wanted)


@pytest.mark.parametrize(
    "spoil",
    [
        "key",
        "visit",
        "boot",
        "array gone",
        "array cut short",
        "array of another shape",
        "array elsewhere",
        "no journal",
        "empty journal",
        "no number",
    ],
)
def test_what_cannot_be_trusted_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair", "key", PAIR, "visit")
        fill(partial)
        partial.commit(0, 3)
    part = tmp_path / "pair.part"
    journal = part / "journal"
    key = "other" if spoil == "key" else "key"
    visit = "other" if spoil == "visit" else "visit"
    if spoil == "boot":
        monkeypatch.setattr(run_folder, "boot_id", lambda: "another")
    elif spoil == "array gone":
        (part / "sims.npy").unlink()
    elif spoil == "array cut short":
        os.truncate(part / "sims.npy", 130)
    elif spoil == "array of another shape":
        np.save(part / "sims.npy", np.zeros((2, 2), np.float32))
    elif spoil == "array elsewhere":
        (part / "sims.npy").rename(tmp_path / "elsewhere.npy")
        (part / "sims.npy").symlink_to(tmp_path / "elsewhere.npy")
        elsewhere = (tmp_path / "elsewhere.npy").read_bytes()
    elif spoil == "no journal":
        journal.unlink()
    elif spoil == "empty journal":
        journal.write_text("")
    elif spoil == "no number":
        journal.write_text(journal.read_text() + "3 three\n")
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair", key, PAIR, visit)
        assert partial.finished == []
        wanted = fill(partial)
        assert_equal(partial.finish(), wanted)
    if spoil == "array elsewhere":
        assert (tmp_path / "elsewhere.npy").read_bytes() == elsewhere


def test_half_a_line_at_a_journals_end_is_none(tmp_path: Path) -> None:
    """A full disk cut it short: its block is computed again, and the next line does not continue it."""
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair", "key", PAIR)
        wanted = fill(partial)
        partial.commit(0, 3)
    journal = tmp_path / "pair.part/journal"
    first, *_ = journal.read_text().splitlines()
    journal.write_text(journal.read_text() + "3 4")
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair", "key", PAIR)
        assert partial.finished == [(0, 3)]
        partial.commit(3, 5)
        assert journal.read_text().splitlines() == [first, "0 3", "3 5"]
        assert_equal(partial.finish(), wanted)


def test_until_the_new_one_is_whole_there_is_no_artifact_and_never_half_of_one(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair", "key", PAIR)
        folder.begin("pair", "other", PAIR).commit(0, 2)
        assert not (tmp_path / "pair").exists()
    with RunFolder(tmp_path) as folder:
        assert folder.load("pair", "key") is None
        assert folder.load("pair", "other") is None


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with RunFolder(tmp_path / name) as folder:
            make(folder, "pair", "key", PAIR)
    assert bytes_of(tmp_path / "first/pair") == bytes_of(tmp_path / "second/pair")


# Dropping


@forms
@pytest.mark.parametrize("finished", [True, False])
def test_dropping_removes_everything(
    tmp_path: Path, name: str, shapes: Any, scratch: bool, finished: bool
) -> None:
    with RunFolder(tmp_path) as folder:
        if finished:
            make(folder, name, "key", shapes, scratch)
        else:
            folder.begin(name, "key", shapes, scratch=scratch).commit(0, 2)
        folder.drop(name)
        folder.drop(name)  # once more does no harm
        assert folder.load(name, "key") is None
        assert {path.name for path in tmp_path.iterdir()} <= {"run.json", "run.lock"}
        assert folder.begin(name, "key", shapes, scratch=scratch).finished == []


def test_dropping_scratch_leaves_results_and_everything_of_somebody_else(tmp_path: Path) -> None:
    theirs = ("tables", "vectors.part", "notes", "half.part", "mine.scratch")
    with RunFolder(tmp_path):
        pass  # ours from now on
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").write_bytes(b"theirs")
    (tmp_path / "song.part").write_bytes(b"theirs")
    with RunFolder(tmp_path) as folder:
        make(folder, "tables", "key", PAIR, scratch=True)
        wanted = make(folder, "pair", "key", PAIR)
        folder.begin("near1", "key", PAIR, scratch=True).commit(0, 2)
        folder.begin("one", "key", ONE).commit(0, 2)
        scratch = folder.scratch_file("pair.lists")
        assert scratch is not None
        scratch.write_bytes(b"ours")
    with RunFolder(tmp_path) as folder:  # by another run than the one that made them
        folder.drop_scratch()
        assert folder.load("tables", "key") is None
        assert_equal(folder.load("pair", "key"), wanted)
    ours = {"run.json", "run.lock", "pair"}
    assert {path.name for path in tmp_path.iterdir()} == {*ours, *theirs, "song.part"}
    assert all((tmp_path / name / "a.npy").read_bytes() == b"theirs" for name in theirs)


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_kill_during_the_deletion_of_something_unfinished_leaves_what_a_later_run_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    """Also when that run has no use for the artifact, and does not begin it."""
    with RunFolder(tmp_path / "run") as folder:
        partial = folder.begin("images-1", "key", PAIR, durable=True)
        fill(partial)
        partial.commit(0, 5)
        partial.close()
        straight, calls = run_folder.remove_folder, []

        def killed(path: Path) -> None:
            if path.parent.name == "images-1.part" or path.name == "images-1.part":
                calls.append(path)
                if len(calls) > deleted:
                    raise KeyboardInterrupt
            straight(path)

        monkeypatch.setattr(run_folder, "remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.drop("images-1")
        monkeypatch.setattr(run_folder, "remove_folder", straight)
    left = {path.name for path in (tmp_path / "run/images-1.part").iterdir()}
    assert len(left) == 3 - deleted
    assert "journal" in left
    with RunFolder(tmp_path / "run") as folder:
        folder.remove()
    assert not (tmp_path / "run").exists()


def test_what_killed_processes_left_of_small_files_is_removed(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "another"):
        record = (tmp_path / "another/run.json").read_bytes()
    (tmp_path / "run").mkdir()
    (tmp_path / "run/.run.json.abcd.part").write_bytes(record[:40])
    with RunFolder(tmp_path / "run"):
        (tmp_path / "run/.run.json.efgh.part").write_bytes(b"mine")
    with RunFolder(tmp_path / "run"):
        pass
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        ".run.json.efgh.part",
        "run.json",
        "run.lock",
    }


# The manifest and the lock


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '{"products": 1}', "\xff"])
def test_a_folder_without_its_record_is_nobodys_to_write_to(tmp_path: Path, text: str) -> None:
    """It may be anybody's; nothing else says that pair is ours."""
    with RunFolder(tmp_path) as folder:
        make(folder, "pair", "key", PAIR)
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"run\.json that fcdeploy did not write.* choose another run_dir"):
        RunFolder(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "artifacts",
    [
        *(1, None, {"pair": {"key": "key"}}),
        {"pair": {"key": "key", "bytes": "many", "boot": "", "parts": ["ids", "sims"]}},
        {"pair": {"key": "key", "bytes": 376, "boot": "", "parts": ["../run"]}},
    ],
)
def test_what_is_damaged_in_a_record_means_that_everything_is_made_again(
    tmp_path: Path, artifacts: Any
) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair", "key", PAIR)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "artifacts": artifacts}))
    with RunFolder(tmp_path) as folder:
        assert folder.load("pair", "key") is None
        wanted = make(folder, "pair", "key", PAIR)
        assert_equal(folder.load("pair", "key"), wanted)


@forms
def test_an_artifact_with_a_damaged_header_is_made_again(
    tmp_path: Path, name: str, shapes: Any, scratch: bool
) -> None:
    """Of the right size, and no longer readable."""
    with RunFolder(tmp_path) as folder:
        wanted = make(folder, name, "key", shapes, scratch)
        for file in (tmp_path / places_of(name, scratch)[1]).iterdir():
            with open(file, "r+b") as opened:
                opened.write(b"\0" * 100)
                opened.seek(-60, 2)
                opened.write(b"\0" * 60)
        assert folder.load(name, "key") is None
        make(folder, name, "key", shapes, scratch)
        assert_equal(folder.load(name, "key"), wanted)


def test_the_record_holds_key_size_boot_and_parts(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair", "one", PAIR)
        make(folder, "tables", "two", ONE, scratch=True)
    artifacts = json.loads((tmp_path / "run.json").read_text())["artifacts"]
    size, boot = 128 + 5 * 3 * 4, run_folder.boot_id()
    assert artifacts == {
        "pair": {"key": "one", "bytes": 2 * size, "boot": "", "parts": ["ids", "sims"]},
        "tables": {"key": "two", "bytes": 128 + 5 * 2 * 4, "boot": boot, "parts": ["array"]},
    }


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair", "key", PAIR)
        owner = (tmp_path / "run.lock").read_text()
        with pytest.raises(InputError, match="another run is using this folder"):
            RunFolder(tmp_path)
        assert (tmp_path / "run.lock").read_text() == owner  # the second left it as it was
        assert folder.load("pair", "key") is not None
    with RunFolder(tmp_path):
        pass


@pytest.mark.parametrize("place", ["file", "file/in", "none/in"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(InputError, match="choose another run_dir"):
        RunFolder(tmp_path / place)
    assert (tmp_path / "file").read_bytes() == b"theirs"


# In memory


def test_artifacts_in_memory_are_read_only_once_finished_and_gone_once_dropped() -> None:
    store = MemoryStore()
    assert store.load("pair", "key") is None
    partial = store.begin("pair", "key", PAIR)
    assert partial.finished == []
    wanted = fill(partial)
    partial.commit(0, 5)
    assert_equal(partial.finish(), wanted)
    assert_equal(store.load("pair", "key"), wanted)
    store.begin("scratch", "key", ONE, scratch=True).finish()
    store.release_pages()
    assert store.scratch_file("lists") is None
    store.drop_scratch()
    assert store.load("scratch", "key") is None
    assert_equal(store.load("pair", "key"), wanted)
    store.drop("pair")
    store.drop("pair")
    assert store.load("pair", "key") is None


def test_a_kill_between_the_last_block_and_the_name_leaves_nothing_in_the_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where workers write their blocks is renamed, then deleted: the one killed in between is followed by another."""

    class Killed(Exception):
        pass

    def killed(path: Path) -> None:
        if path.exists():
            raise Killed

    with RunFolder(tmp_path / "run") as folder:
        partial = folder.begin("wide", "key", WIDE)
        wanted = fill(partial)
        partial.commit(0, 3000)
        (partial.folder_of_blocks() / "a.block").write_bytes(b"late")
        with monkeypatch.context() as patch:
            patch.setattr(run_folder, "remove_folder", killed)
            with pytest.raises(Killed):
                partial.finish()
        again = folder.begin("wide", "key", WIDE)
        again.folder_of_blocks()
        assert_equal(again.finish(), wanted)
        assert [path.name for path in (tmp_path / "run/wide").iterdir()] == ["array.npy"]
