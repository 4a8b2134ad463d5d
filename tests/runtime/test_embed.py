"""From a list of images to features: what becomes of every line, and of runs that stop in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import embed_plainly, pictures_of, write_embedder
from PIL import Image

import fcdeploy
from fcdeploy.data.filelist import read_filelist
from fcdeploy.data.images import State
from fcdeploy.engine.embedder import Embedder
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.store import MemoryStore
from fcdeploy.runtime import embed

N = 40
HERE = Path(__file__).parent


@pytest.fixture
def pictures() -> np.ndarray:
    return pictures_of(N)


@pytest.fixture
def faces(tmp_path: Path, pictures: np.ndarray) -> Path:
    """A list of 40 pictures of 16 x 16 pixels and an embedder of such."""
    write_embedder(tmp_path / "embedder.onnx")
    (tmp_path / "faces").mkdir()
    for at, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"faces/{at:02}.png")
    path = tmp_path / "faces.txt"
    path.write_text("".join(f"faces/{at:02}.png\n" for at in range(N)))
    return path


@pytest.fixture
def run(faces: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Embed the list in this process, to ``features.bin`` beside it, with a commit every 8 lines."""
    monkeypatch.setattr(embed, "COMMIT_LINES", 8)

    def call(name: str = "features.bin", on_bad: str = "stop", **options: Any) -> dict[str, Any]:
        job = embed.new_job(read_filelist(faces), faces.parent / "embedder.onnx", **{"batch": 4, **options})
        return embed.embed_to_file(job, faces.parent / name, on_bad=on_bad)

    return call


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many pictures every engine call was given, but for those of loading."""
    counts: list[int] = []
    original = Embedder.embed

    def counted(self: Embedder, pictures: Any) -> np.ndarray:
        counts.append(len(pictures))
        return original(self, pictures)

    monkeypatch.setattr(Embedder, "embed", counted)
    return counts


def rows_of(path: Path) -> np.ndarray:
    return np.load(path) if path.suffix == ".npy" else np.fromfile(path, "<f4").reshape(-1, 32)


def names_in(folder: Path) -> set[str]:
    """What a run left, its features without the note that is beside each."""
    names = {path.name for path in folder.iterdir()} - {"faces", "faces.txt", "embedder.onnx"}
    features = {name for name in names if name.endswith((".bin", ".npy"))}
    assert {name for name in names if name.endswith(".json")} == {f"{name}.json" for name in features}
    return names - {f"{name}.json" for name in features}


def spoil(faces: Path) -> list[int]:
    """Break three files and a line; returns the bad lines."""
    folder = faces.parent / "faces"
    os.truncate(folder / "03.png", 200)
    (folder / "17.png").write_text("hello")
    (folder / "39.png").write_bytes(b"")
    faces.write_text(faces.read_text().replace("faces/20.png", "faces/none.png"))
    return [3, 17, 20, 39]


REASONS = {
    3: "damaged or cut short",
    17: "not an image of a known format",
    20: "no such file",
    39: "empty file",
}


@pytest.mark.parametrize("name", ["features.bin", "features.npy"])
def test_row_i_is_the_embedding_of_line_i(run: Any, faces: Path, pictures: np.ndarray, name: str) -> None:
    summary = run(name)
    rows = rows_of(faces.parent / name)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, embed_plainly(pictures), rtol=0, atol=2e-5)  # float32 sums of 48 terms
    assert names_in(faces.parent) == {name}
    assert [summary[key] for key in ("lines", "rows", "bad", "dim", "resized")] == [N, N, 0, 32, 0]


@pytest.mark.parametrize("options", [{"batch": 1}, {"batch": 7}, {"batch": None}, {"threads": 1}], ids=str)
def test_batches_and_threads_change_no_bit(run: Any, faces: Path, options: dict[str, Any]) -> None:
    run()
    run("other.bin", **options)
    assert (faces.parent / "other.bin").read_bytes() == (faces.parent / "features.bin").read_bytes()


@pytest.mark.gpu
def test_on_a_gpu_the_embeddings_are_those_of_the_cpu(run: Any, faces: Path, pictures: np.ndarray) -> None:
    run(device="cuda")
    rows = rows_of(faces.parent / "features.bin")
    np.testing.assert_allclose(rows, embed_plainly(pictures), rtol=0, atol=2e-5)


def test_by_default_bad_lines_are_listed_and_nothing_is_written(run: Any, faces: Path) -> None:
    bad = spoil(faces)
    (faces.parent / "features.bin").write_bytes(b"old")
    with pytest.raises(InputError) as error:
        run()
    assert "4 of 40 lines" in str(error.value)
    assert "the first is line 3, counted from 0, 'faces/03.png'" in str(error.value)
    assert (faces.parent / "features.bin").read_bytes() == b"old"
    listed = (faces.parent / "features.bad.txt").read_text().splitlines()
    lines = faces.read_text().splitlines()
    assert listed == [f"{line}\t{lines[line]}\t{REASONS[line]}" for line in bad]


def test_skipped_lines_have_no_row_and_the_kept_ones_are_listed(
    run: Any, faces: Path, pictures: np.ndarray
) -> None:
    bad = spoil(faces)
    with pytest.warns(FcdeployWarning, match="4 of 40 lines .* they are left out"):
        summary = run(on_bad="skip")
    kept = np.delete(np.arange(N), bad)
    np.testing.assert_allclose(
        rows_of(faces.parent / "features.bin"), embed_plainly(pictures)[kept], rtol=0, atol=2e-5
    )
    lines = faces.read_text().splitlines()
    assert (faces.parent / "features.filelist.txt").read_text().splitlines() == [lines[i] for i in kept]
    assert names_in(faces.parent) == {"features.bin", "features.bad.txt", "features.filelist.txt"}
    assert (summary["rows"], summary["bad"]) == (36, 4)
    assert summary["reasons"] == {"damaged": 1, "not_an_image": 1, "missing": 1, "empty": 1}


def test_rows_of_bad_lines_may_be_zero(run: Any, faces: Path, pictures: np.ndarray) -> None:
    bad = spoil(faces)
    with pytest.warns(FcdeployWarning, match="their rows are zero"):
        run(on_bad="zero")
    wanted = embed_plainly(pictures)
    wanted[bad] = 0
    np.testing.assert_allclose(rows_of(faces.parent / "features.bin"), wanted, rtol=0, atol=2e-5)
    assert names_in(faces.parent) == {"features.bin", "features.bad.txt"}


def test_lists_of_an_earlier_run_do_not_stay_beside_features_they_are_not_of(run: Any, faces: Path) -> None:
    original = faces.read_text()
    good = {path: path.read_bytes() for path in (faces.parent / "faces").iterdir()}
    spoil(faces)
    with pytest.warns(FcdeployWarning):
        run(on_bad="skip")
    faces.write_text(original)
    for path, content in good.items():
        path.write_bytes(content)
    run()
    assert names_in(faces.parent) == {"features.bin"}


def test_after_a_stop_only_what_was_bad_is_tried_again(run: Any, faces: Path, embedded: list[int]) -> None:
    """The list is the same; one of the bad files is mended, another good one is exchanged."""
    folder = faces.parent / "faces"
    whole = (folder / "03.png").read_bytes()
    (folder / "03.png").write_bytes(whole[:100])
    (folder / "39.png").write_bytes(b"")
    with pytest.raises(InputError):
        run()
    assert sum(embedded) == 38
    embedded.clear()
    (folder / "03.png").write_bytes(whole)
    shutil.copy(folder / "00.png", folder / "10.png")
    with pytest.warns(FcdeployWarning, match="1 of 40 lines"):
        run(on_bad="skip")
    assert sum(embedded) == 2
    rows = rows_of(faces.parent / "features.bin")
    with pytest.warns(FcdeployWarning):
        run("fresh.bin", on_bad="skip")
    assert np.array_equal(rows, rows_of(faces.parent / "fresh.bin"))
    assert np.array_equal(rows[10], rows[0])


def test_another_list_takes_over_what_is_done_of_the_same_files(
    run: Any, faces: Path, pictures: np.ndarray, embedded: list[int]
) -> None:
    """After a stop the bad lines are taken out, the others come in another order, one twice, and two are new."""
    bad = spoil(faces)
    with pytest.raises(InputError):
        run()
    embedded.clear()
    kept = np.delete(np.arange(N), bad)[::-1]
    for at in (40, 41):
        Image.fromarray(pictures[at - 40] // 2).save(faces.parent / f"faces/{at}.png")
    order = [41, *kept, kept[5], 40]
    faces.write_text("".join(f"faces/../faces/{at:02}.png\n" for at in order))
    run()
    assert sum(embedded) == 2
    every = np.concatenate([pictures, pictures[:2] // 2])[order]
    rows = rows_of(faces.parent / "features.bin")
    np.testing.assert_allclose(rows, embed_plainly(every), rtol=0, atol=2e-5)
    assert names_in(faces.parent) == {"features.bin"}


def test_taking_over_may_be_interrupted(
    run: Any, faces: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.run.folder import FolderPartial

    (faces.parent / "faces/39.png").write_bytes(b"")
    with pytest.raises(InputError):
        run()
    embedded.clear()
    lines = faces.read_text().splitlines()
    faces.write_text("\n".join([*lines[20:], *lines[:20]]))

    def dies(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderPartial, "commit", dies)
        with pytest.raises(KeyboardInterrupt):
            run()
    with pytest.warns(FcdeployWarning):
        run(on_bad="skip")
    assert not embedded
    with pytest.warns(FcdeployWarning):
        run("fresh.bin", on_bad="skip")
    assert (faces.parent / "features.bin").read_bytes() == (faces.parent / "fresh.bin").read_bytes()


@pytest.mark.parametrize("change", ["model", "model and list", "settings", "max_pixels"])
def test_nothing_is_taken_from_a_run_of_something_else(
    run: Any, faces: Path, embedded: list[int], change: str
) -> None:
    (faces.parent / "faces/39.png").write_bytes(b"")
    with pytest.raises(InputError):
        run()
    embedded.clear()
    options = {}
    if change.startswith("model"):
        write_embedder(faces.parent / "embedder.onnx", factor=2.0)
        if "list" in change:
            lines = faces.read_text().splitlines()
            faces.write_text("\n".join([*lines[20:], *lines[:20]]))
    elif change == "settings":
        (faces.parent / "embedder.toml").write_text("mean = 100\n")
    else:
        options = {"max_pixels": 1000}
    with pytest.warns(FcdeployWarning):
        run(on_bad="skip", **options)
    assert sum(embedded) == 39
    rows = rows_of(faces.parent / "features.bin")
    with pytest.warns(FcdeployWarning):
        run("fresh.bin", on_bad="skip", **options)
    assert np.array_equal(rows, rows_of(faces.parent / "fresh.bin"))


def test_the_same_stop_again_says_the_same(run: Any, embedded: list[int], faces: Path) -> None:
    spoil(faces)
    said = []
    for _ in range(2):
        with pytest.raises(InputError) as error:
            run()
        said.append((str(error.value), (faces.parent / "features.bad.txt").read_bytes()))
    assert said[0] == said[1]
    assert sum(embedded) == 36


def test_embeddings_that_are_not_finite_or_zero_are_bad_by_line(run: Any, faces: Path) -> None:
    """With a mean of 128, a picture of 128 is zeros and one of 129 ones; for all others weights of 1e17 overflow."""
    for at in (5, 6):
        Image.new("RGB", (16, 16), (123 + at,) * 3).save(faces.parent / f"faces/0{at}.png")
    (faces.parent / "embedder.toml").write_text("mean = 128\nscale = 1\n")
    write_embedder(faces.parent / "embedder.onnx", factor=1e17)
    with pytest.warns(FcdeployWarning, match=r"38 embedding not finite, 1 embedding all zero"):
        run(on_bad="zero")
    rows = rows_of(faces.parent / "features.bin")
    assert np.flatnonzero(rows.any(axis=1)).tolist() == [6]
    assert np.isfinite(rows).all()
    assert "\n5\tfaces/05.png\tembedding all zero\n" in (faces.parent / "features.bad.txt").read_text()
    write_embedder(faces.parent / "embedder.onnx", factor=np.nan)
    with pytest.raises(InputError, match=r"40 embedding not finite;.*nothing is left"):
        run(on_bad="zero")


def test_a_file_that_could_not_be_read_for_a_while_is_tried_again(
    run: Any, faces: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = embed.read_image

    def fails(path: bytes, *args: Any) -> Any:
        return (State.UNREADABLE, None) if path.endswith(b"11.png") else original(path, *args)

    with monkeypatch.context() as patch:
        patch.setattr(embed, "read_image", fails)
        with pytest.raises(InputError, match="1 may not be read"):
            run()
    embedded.clear()
    run()
    assert embedded == [1]


def test_pictures_of_another_shape_are_stretched_and_told(run: Any, faces: Path) -> None:
    Image.new("RGB", (64, 16), (9, 9, 200)).save(faces.parent / "faces/07.png")
    Image.new("RGB", (32, 32), (9, 9, 200)).save(faces.parent / "faces/08.png")
    with pytest.warns(FcdeployWarning, match="^1 of 40 images .*line 7"):
        summary = run()
    assert (summary["resized"], summary["stretched"]) == (2, 1)


def test_names_of_any_bytes_come_back_as_they_were(run: Any, faces: Path) -> None:
    folder = os.fsencode(faces.parent / "faces")
    names = [b"caf\xe9.png", b"two  words .png", b"tab\t.png", b"#5.png", "läuft.png".encode()]
    for name in names:
        shutil.copy(faces.parent / "faces/00.png", os.path.join(folder, name))
    inside = [b"faces/" + name for name in names] + [os.path.join(folder, b"01.png")]
    faces.write_bytes(b"\r\n".join([*inside, b"faces/none\xff.png", b"", inside[0]]) + b"\r\n")
    with pytest.warns(FcdeployWarning):
        run(on_bad="skip")
    kept = (faces.parent / "features.filelist.txt").read_bytes()
    assert kept == b"\n".join([*inside, inside[0]]) + b"\n"
    listed = (faces.parent / "features.bad.txt").read_bytes()
    assert listed == b"6\tfaces/none\xff.png\tno such file\n7\t\tblank line\n"


@pytest.mark.parametrize("name", ["features.npz", "features", "features.txt"])
def test_features_of_another_form_are_refused(run: Any, faces: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"name the output .bin"):
        run(name)
    assert names_in(faces.parent) == set()


def test_an_output_is_no_input(run: Any, faces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    faces.rename(faces.parent / "features.filelist.txt")
    faces.symlink_to("features.filelist.txt")
    run()
    assert (faces.parent / "features.filelist.txt").exists()
    with pytest.raises(InputError, match="is also an input"):
        run(on_bad="skip")
    faces.unlink()
    (faces.parent / "features.filelist.txt").rename(faces.parent / "features.bad.txt")
    faces.symlink_to("features.bad.txt")
    with pytest.raises(InputError, match=r"features\.bad\.txt: is not a list of what could not be used"):
        run()
    assert len((faces.parent / "features.bad.txt").read_text().splitlines()) == N


def test_a_folder_of_somebody_else_is_refused(run: Any, faces: Path) -> None:
    theirs = faces.parent / "features.bin.part"
    theirs.mkdir()
    (theirs / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"features\.bin\.part: holds mine\.txt, .* choose another output"):
        run()
    assert [path.name for path in theirs.iterdir()] == ["mine.txt"]
    assert not (faces.parent / "features.bin").exists()


def test_files_of_somebody_else_in_our_folder_are_left(run: Any, faces: Path) -> None:
    """With the folder, which is known as ours the next time."""
    with RunFolder(faces.parent / "features.bin.part"):
        pass
    theirs = faces.parent / "features.bin.part/mine.txt"
    theirs.write_text("mine")
    for _ in range(2):
        run()
        assert {path.name for path in theirs.parent.iterdir()} == {"mine.txt", "run.json", "run.lock"}
        assert theirs.read_text() == "mine"


def test_a_small_scale_is_told(run: Any, faces: Path) -> None:
    (faces.parent / "embedder.toml").write_text("scale = 0.0078125\n")
    with pytest.warns(FcdeployWarning, match="one below 1"):
        run()


# From Python


def test_python_gives_the_rows_of_the_command(run: Any, faces: Path) -> None:
    run()
    model = faces.parent / "embedder.onnx"
    rows = fcdeploy.embed(faces, model=model)
    assert np.array_equal(rows, rows_of(faces.parent / "features.bin"))
    paths = [faces.parent / line for line in faces.read_text().split()]
    assert np.array_equal(fcdeploy.embed(paths[::-1], model=str(model)), rows[::-1])
    other = fcdeploy.embed(paths[:3], model=model, channels="bgr", mean=(1, 2, 3), scale=100, size=16)
    assert not np.allclose(other, rows[:3])
    assert names_in(faces.parent) == {"features.bin"}


def test_python_stops_at_bad_images_or_gives_zeros(faces: Path) -> None:
    bad = spoil(faces)
    model = faces.parent / "embedder.onnx"
    with pytest.raises(ValueError, match=r"4 of 40 lines .* on_bad='zero'"):
        fcdeploy.embed(faces, model=model)
    with pytest.warns(FcdeployWarning, match="their rows are zero"):
        rows = fcdeploy.embed(faces, model=model, on_bad="zero")
    assert np.flatnonzero(~rows.any(axis=1)).tolist() == bad
    with pytest.raises(InputError, match="should be 'stop'"):
        fcdeploy.embed(faces, model=model, on_bad="skip")
    with pytest.raises(InputError, match="channels should be"):
        fcdeploy.embed(faces, model=model, channels="rbg")


@pytest.mark.parametrize(("name", "value"), [("batch", 0), ("batch", -1), ("threads", -1), ("max_pixels", 0)])
def test_python_refuses_numbers_that_the_command_refuses(faces: Path, name: str, value: int) -> None:
    with pytest.raises(InputError, match=f"^{name} = {value}: should be"):
        fcdeploy.embed(faces, model=faces.parent / "embedder.onnx", **{name: value})


# Runs that stop in the middle


def finished(faces: Path, *options: object, moment: int = 0) -> "subprocess.CompletedProcess[str]":
    """Run ``fcdeploy embed`` in a process of its own, which may die."""
    args = ["embed", faces, "--model", faces.parent / "embedder.onnx", "--batch", 4, *options]
    output = ("-o", faces.parent / "features.bin")
    line = [sys.executable, HERE / "dying_embed.py", moment, *args, *(() if "-o" in options else output)]
    return subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=100)


def test_killed_and_interrupted_runs_go_on_and_end_with_the_same_bytes(faces: Path) -> None:
    spoil(faces)
    folder = faces.parent
    skip = ("--on-bad", "skip", "--quiet")
    done = finished(faces, *skip, "-o", folder / "whole.bin")
    assert done.returncode == 0, done.stderr
    moments = json.loads(done.stdout.splitlines()[-1])
    after_third = [at for at, name in enumerate(moments, 1) if name == "after commit"][2]
    assert finished(faces, *skip, moment=after_third).returncode == -signal.SIGKILL
    (journal,) = folder.glob("features.bin.part/embedding-*.part/journal")
    assert journal.read_text().splitlines()[1:] == ["0 8", "0 16", "0 24"]
    assert names_in(folder) == {"features.bin.part", "whole.bin", "whole.bad.txt", "whole.filelist.txt"}
    # Two bad lines of those behind us are tried again, then the next eight; a Ctrl-C in them.
    done = finished(faces, *skip, moment=-after_third)
    assert done.returncode == 130
    assert done.stderr.strip().splitlines() == [done.stderr.strip()]
    assert done.stderr.strip().startswith("Interrupted")
    assert not (folder / "features.bin").exists()
    done = finished(faces, *skip)
    assert done.returncode == 0
    for name in ("bin", "bad.txt", "filelist.txt"):
        assert (folder / f"features.{name}").read_bytes() == (folder / f"whole.{name}").read_bytes()
    assert not (folder / "features.bin.part").exists()


@pytest.mark.faults
def test_a_kill_at_any_moment_leaves_no_trace(faces: Path) -> None:
    spoil(faces)
    folder = faces.parent
    skip = ("--on-bad", "skip", "--quiet")
    done = finished(faces, *skip, "-o", folder / "whole.bin")
    moments = json.loads(done.stdout.splitlines()[-1])
    assert len(moments) > 15
    for moment in range(1, len(moments) + 1):
        assert finished(faces, *skip, moment=moment).returncode == -signal.SIGKILL
        assert finished(faces, *skip).returncode == 0, moments[moment - 1]
        for name in ("bin", "bad.txt", "filelist.txt"):
            path = folder / f"features.{name}"
            assert path.read_bytes() == (folder / f"whole.{name}").read_bytes(), moments[moment - 1]
            path.unlink()


def test_a_second_run_of_the_same_output_is_refused(run: Any, faces: Path) -> None:
    from fcdeploy.run.folder import RunFolder

    with (
        RunFolder(faces.parent / "features.bin.part"),
        pytest.raises(InputError, match=r"another run .* choose another output"),
    ):
        run()


def test_a_row_that_was_being_replaced_when_a_run_died_is_not_trusted(
    run: Any, faces: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed file is embedded again behind the journal; its stamp comes back last."""
    (faces.parent / "faces/39.png").write_bytes(b"")
    with pytest.raises(InputError):
        run()
    shutil.copy(faces.parent / "faces/00.png", faces.parent / "faces/10.png")

    def dies(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(embed, "_stamp", dies)
        with pytest.raises(KeyboardInterrupt):
            run()
    (part,) = faces.parent.glob("features.bin.part/embedding-*.part")
    assert np.load(part / "stamps.npy")[10] == 0
    damaged = np.load(part / "features.npy", mmap_mode="r+")
    damaged[10] = 7  # half-written
    del damaged
    with pytest.warns(FcdeployWarning):
        run(on_bad="skip")
    rows = rows_of(faces.parent / "features.bin")
    assert np.array_equal(rows[10], rows[0])


def test_after_a_restart_of_the_machine_a_run_goes_on(
    run: Any, faces: Path, embedded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every commit is synced, so it is worth as much on another day."""
    from fcdeploy.run import folder as run_folder

    (faces.parent / "faces/39.png").write_bytes(b"")
    with pytest.raises(InputError):
        run()
    embedded.clear()
    monkeypatch.setattr(run_folder, "boot_id", lambda: "another")
    with pytest.warns(FcdeployWarning):
        run(on_bad="skip")
    assert not embedded


# Real faces


def test_the_shared_embedder_gives_the_reference_embeddings(shared: Path, tmp_path: Path) -> None:
    model, images = shared / "models/face-embedder.onnx", shared / "data/images"
    if not model.is_file() or not images.is_dir():
        pytest.skip("the images are not beside this clone")
    rows = fcdeploy.embed(images / "filelist.txt", model=model, mean=127, scale=128)
    reference = np.fromfile(images / "reference.bin", "<f4").reshape(-1, 512)
    cosine = (rows * reference).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(reference, axis=1)
    assert rows.shape == (180, 512)
    assert cosine.min() > 0.99999


def test_what_a_kill_left_of_earlier_rows_is_not_taken_over() -> None:
    """Of two sources the first lacks an array, which its deletion had come to."""
    stamps = np.array([5, 6, 7], np.uint64)
    whole = {"features": np.ones((3, 2), np.float32), "states": np.zeros(3, np.uint8), "stamps": stamps}
    for part in whole:
        lacking = {name: array for name, array in whole.items() if name != part}
        partial = MemoryStore().begin("a", "key", embed.shapes_of(3, 2))
        embed.take_over(partial, stamps, [lacking])
        assert partial.finished == []
        embed.take_over(partial, stamps, [lacking, whole])
        assert partial.finished == [(0, 3)]
        assert (partial.arrays["features"] == 1).all()
