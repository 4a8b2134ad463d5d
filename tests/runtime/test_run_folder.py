"""Where products are kept: what is taken from an earlier run, and what is not."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcdeploy.errors import InputError
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.store import MemoryStore
from fcdeploy.runtime import run_folder

PAIR = {"ids": ((5, 3), np.int32), "sims": ((5, 3), np.float32)}
ONE = {"array": ((5, 2), np.float32)}
WIDE = {"array": ((3000, 4), np.float32)}  # more than a page, so it is mapped
FORMS = [("pair.npz", PAIR), ("one.npy", ONE), ("scratch", PAIR), ("wide.npy", WIDE), ("wide", WIDE)]


def fill(partial: Any) -> dict[str, np.ndarray]:
    """Write other numbers into every array; returns copies."""
    wanted = {}
    for number, (name, array) in enumerate(partial.arrays.items()):
        array[:] = (np.arange(array.size).reshape(array.shape) + 100 * number).astype(array.dtype)
        wanted[name] = np.array(array)
    return wanted


def make(folder: RunFolder, name: str, key: str, shapes: Any) -> dict[str, np.ndarray]:
    partial = folder.begin(name, key, shapes)
    wanted = fill(partial)
    partial.commit(5)
    partial.finish()
    return wanted


def assert_equal(found: Any, wanted: dict[str, np.ndarray]) -> None:
    assert found is not None
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert not found[name].flags.writeable


@pytest.mark.parametrize(("name", "shapes"), FORMS)
def test_a_finished_product_is_loaded_by_its_key_and_by_no_other(
    tmp_path: Path, name: str, shapes: Any
) -> None:
    with RunFolder(tmp_path / "run") as folder:
        assert folder.load(name, "key") is None
        wanted = make(folder, name, "key", shapes)
        assert_equal(folder.load(name, "key"), wanted)
        assert folder.load(name, "other") is None
    with RunFolder(tmp_path / "run") as folder:
        assert_equal(folder.load(name, "key"), wanted)
        assert folder.load(name, "other") is None
    assert not list((tmp_path / "run").glob("*.part"))


@pytest.mark.parametrize(("name", "shapes"), FORMS)
def test_after_a_restart_of_the_machine_only_results_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, shapes: Any
) -> None:
    with RunFolder(tmp_path) as folder:
        wanted = make(folder, name, "key", shapes)
    monkeypatch.setattr(run_folder, "boot_id", lambda: "another")
    with RunFolder(tmp_path) as folder:
        if Path(name).suffix:
            assert_equal(folder.load(name, "key"), wanted)
        else:
            assert folder.load(name, "key") is None


@pytest.mark.parametrize(("name", "shapes"), FORMS)
@pytest.mark.parametrize("change", [-1, 1], ids=["shorter", "longer"])
def test_a_product_of_another_size_is_not_loaded(tmp_path: Path, name: str, shapes: Any, change: int) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, name, "key", shapes)
        place = folder.place(name)
        file = next(place.glob("*.npy")) if place.is_dir() else place
        content = file.read_bytes()
        file.write_bytes(content[:-1] if change < 0 else content + b"\0")
        assert folder.load(name, "key") is None
        file.unlink()
        assert folder.load(name, "key") is None


def test_the_npz_is_what_numpy_reads_and_its_members_are_mapped(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair.npz", "key", PAIR)
        wanted = fill(partial)
        for arrays in (partial.finish(), folder.load("pair.npz", "key")):
            assert arrays is not None
            assert all(isinstance(array, np.memmap) for array in arrays.values())
            assert_equal(arrays, wanted)
    with np.load(tmp_path / "pair.npz") as saved:
        content = {name: saved[name] for name in saved.files}
    assert content.keys() == wanted.keys()
    assert all(np.array_equal(content[name], wanted[name]) for name in wanted)
    with zipfile.ZipFile(tmp_path / "pair.npz") as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        assert archive.testzip() is None


@pytest.mark.parametrize("name", ["wide.npy", "wide"])
def test_large_arrays_are_mapped(tmp_path: Path, name: str) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, name, "key", WIDE)
        arrays = folder.load(name, "key")
        assert arrays is not None
        assert isinstance(arrays["array"], np.memmap)


def test_letting_go_of_pages_changes_no_value(tmp_path: Path) -> None:
    """Written and read maps alike: the kernel keeps what is dirty."""
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("wide.npy", "key", WIDE)
        wanted = fill(partial)
        folder.relieve()
        assert np.array_equal(partial.arrays["array"], wanted["array"])
        done = partial.finish()
        folder.relieve()
        assert_equal(done, wanted)


@pytest.mark.parametrize("name", ["none.npz", "none.npy", "none"])
def test_arrays_without_rows_are_kept(tmp_path: Path, name: str) -> None:
    shapes: Any = {"ids": ((0, 2), np.int32), "sims": ((0,), np.float32)}
    if name.endswith(".npy"):
        shapes = {"array": ((0, 2), np.int32)}
    with RunFolder(tmp_path) as folder:
        partial = folder.begin(name, "key", shapes)
        partial.finish()
    with RunFolder(tmp_path) as folder:
        found = folder.load(name, "key")
    assert found is not None
    assert {part: (array.shape, array.dtype) for part, array in found.items()} == {
        part: (shape, np.dtype(dtype)) for part, (shape, dtype) in shapes.items()
    }


# Unfinished products


@pytest.mark.parametrize(("name", "shapes"), FORMS)
def test_an_interrupted_product_goes_on_where_it_was_committed(
    tmp_path: Path, name: str, shapes: Any
) -> None:
    with RunFolder(tmp_path) as folder:
        partial = folder.begin(name, "key", shapes, "visit")
        assert partial.done == 0
        wanted = fill(partial)
        for array in partial.arrays.values():
            array[3:] = 0
        partial.commit(1)
        partial.commit(3)
        assert not (tmp_path / name).exists()
        assert folder.load(name, "key") is None
    with RunFolder(tmp_path) as folder:
        partial = folder.begin(name, "key", shapes, "visit")
        assert partial.done == 3
        for part, array in partial.arrays.items():
            assert np.array_equal(array[:3], wanted[part][:3])
            array[3:] = wanted[part][3:]
        partial.commit(5)
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
        "half a line",
    ],
)
def test_what_cannot_be_trusted_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: str
) -> None:
    """Half a line: a full disk cut it short, and the next number would be appended to it."""
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair.npz", "key", PAIR, "visit")
        fill(partial)
        partial.commit(3)
    part = tmp_path / "pair.npz.part"
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
        journal.write_text(journal.read_text() + "three\n")
    elif spoil == "half a line":
        journal.write_text(journal.read_text() + "4")
    with RunFolder(tmp_path) as folder:
        partial = folder.begin("pair.npz", key, PAIR, visit)
        assert partial.done == 0
        wanted = fill(partial)
        assert_equal(partial.finish(), wanted)
    if spoil == "array elsewhere":
        assert (tmp_path / "elsewhere.npy").read_bytes() == elsewhere


def test_beginning_again_forgets_the_finished_one_but_leaves_its_file(tmp_path: Path) -> None:
    """Until the new one is whole there is no product, and what stands there is never half of one."""
    with RunFolder(tmp_path) as folder:
        make(folder, "pair.npz", "key", PAIR)
        before = (tmp_path / "pair.npz").read_bytes()
        folder.begin("pair.npz", "other", PAIR).commit(2)
        assert (tmp_path / "pair.npz").read_bytes() == before
    with RunFolder(tmp_path) as folder:
        assert folder.load("pair.npz", "key") is None
        assert folder.load("pair.npz", "other") is None


def test_the_same_arrays_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with RunFolder(tmp_path / name) as folder:
            make(folder, "pair.npz", "key", PAIR)
    assert (tmp_path / "first/pair.npz").read_bytes() == (tmp_path / "second/pair.npz").read_bytes()


# Dropping


@pytest.mark.parametrize(("name", "shapes"), FORMS)
@pytest.mark.parametrize("finished", [True, False])
def test_dropping_removes_everything(tmp_path: Path, name: str, shapes: Any, finished: bool) -> None:
    with RunFolder(tmp_path) as folder:
        if finished:
            make(folder, name, "key", shapes)
        else:
            folder.begin(name, "key", shapes).commit(2)
        folder.drop(name)
        folder.drop(name)  # once more does no harm
        assert folder.load(name, "key") is None
        assert {path.name for path in tmp_path.iterdir()} <= {"run.json", "run.lock"}
        assert folder.begin(name, "key", shapes).done == 0


def test_dropping_scratch_leaves_results_and_everything_of_somebody_else(tmp_path: Path) -> None:
    theirs = ("tables", "vectors.part", "notes", "half.part", "mine.scratch")
    with RunFolder(tmp_path):
        pass  # ours from now on
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.npy").write_bytes(b"theirs")
    (tmp_path / "song.part").write_bytes(b"theirs")
    with RunFolder(tmp_path) as folder:
        make(folder, "tables", "key", PAIR)
        wanted = make(folder, "pair.npz", "key", PAIR)
        folder.begin("near1", "key", PAIR).commit(2)
        folder.begin("one.npy", "key", ONE).commit(2)
        scratch = folder.scratch_file("pair.npz.lists")
        assert scratch is not None
        scratch.write_bytes(b"ours")
    with RunFolder(tmp_path) as folder:  # by another run than the one that made them
        folder.drop_scratch()
        assert folder.load("tables", "key") is None
        assert_equal(folder.load("pair.npz", "key"), wanted)
    ours = {"run.json", "run.lock", "pair.npz"}
    assert {path.name for path in tmp_path.iterdir()} == {*ours, *theirs, "song.part"}
    assert all((tmp_path / name / "a.npy").read_bytes() == b"theirs" for name in theirs)


@pytest.mark.parametrize("deleted", [0, 1, 2])
def test_a_kill_during_the_deletion_of_something_unfinished_leaves_what_a_later_run_deletes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, deleted: int
) -> None:
    """Also when that run has no use for the product, and does not begin it."""
    with RunFolder(tmp_path / "run") as folder:
        partial = folder.begin("images-1", "key", PAIR, durable=True)
        fill(partial)
        partial.commit(5)
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
    """It may be anybody's; nothing else says that pair.npz is ours."""
    with RunFolder(tmp_path) as folder:
        make(folder, "pair.npz", "key", PAIR)
    (tmp_path / "run.json").write_text(text, encoding="latin-1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match=r"run\.json there is not the record .* choose another --run-dir"):
        RunFolder(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    "products",
    [1, None, {"pair.npz": {"key": "key"}}, {"pair.npz": {"key": "key", "bytes": "many", "boot": ""}}],
)
def test_what_is_damaged_in_a_record_means_that_everything_is_made_again(
    tmp_path: Path, products: Any
) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair.npz", "key", PAIR)
    record = json.loads((tmp_path / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**record, "products": products}))
    with RunFolder(tmp_path) as folder:
        assert folder.load("pair.npz", "key") is None
        wanted = make(folder, "pair.npz", "key", PAIR)
        assert_equal(folder.load("pair.npz", "key"), wanted)


@pytest.mark.parametrize(("name", "shapes"), FORMS)
def test_a_product_with_a_damaged_header_is_made_again(tmp_path: Path, name: str, shapes: Any) -> None:
    """Of the right size, and no longer readable."""
    with RunFolder(tmp_path) as folder:
        wanted = make(folder, name, "key", shapes)
        place = folder.place(name)
        for file in place.iterdir() if place.is_dir() else [place]:
            with open(file, "r+b") as opened:
                opened.write(b"\0" * 100)
                opened.seek(-60, 2)
                opened.write(b"\0" * 60)
        assert folder.load(name, "key") is None
        make(folder, name, "key", shapes)
        assert_equal(folder.load(name, "key"), wanted)


def test_the_manifest_holds_key_size_and_boot(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair.npz", "one", PAIR)
        make(folder, "scratch", "two", ONE)
    products = json.loads((tmp_path / "run.json").read_text())["products"]
    assert products == {
        "pair.npz": {"key": "one", "bytes": (tmp_path / "pair.npz").stat().st_size, "boot": ""},
        "scratch": {"key": "two", "bytes": 128 + 5 * 2 * 4, "boot": run_folder.boot_id()},
    }


def test_a_folder_is_for_one_run_at_a_time(tmp_path: Path) -> None:
    with RunFolder(tmp_path) as folder:
        make(folder, "pair.npz", "key", PAIR)
        owner = (tmp_path / "run.lock").read_text()
        with pytest.raises(InputError, match="another run is using this folder"):
            RunFolder(tmp_path)
        assert (tmp_path / "run.lock").read_text() == owner  # the second left it as it was
        assert folder.load("pair.npz", "key") is not None
    with RunFolder(tmp_path):
        pass


@pytest.mark.parametrize("place", ["file", "file/in", "none/in"])
def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_bytes(b"theirs")
    with pytest.raises(InputError, match="--run-dir"):
        RunFolder(tmp_path / place)
    assert (tmp_path / "file").read_bytes() == b"theirs"


# In memory


def test_products_in_memory_are_read_only_once_finished_and_gone_once_dropped() -> None:
    store = MemoryStore()
    assert store.load("pair.npz", "key") is None
    partial = store.begin("pair.npz", "key", PAIR)
    assert partial.done == 0
    wanted = fill(partial)
    partial.commit(5)
    assert_equal(partial.finish(), wanted)
    assert_equal(store.load("pair.npz", "key"), wanted)
    store.begin("scratch", "key", ONE).finish()
    store.relieve()
    assert store.scratch_file("lists") is None
    store.drop_scratch()
    assert store.load("scratch", "key") is None
    assert_equal(store.load("pair.npz", "key"), wanted)
    store.drop("pair.npz")
    store.drop("pair.npz")
    assert store.load("pair.npz", "key") is None
