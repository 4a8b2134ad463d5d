"""Artifacts of stages that are made up: what their keys follow from, and how they go on after an interruption."""

import contextlib
import itertools
import json
import os
import random
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from run_folders import bytes_of, load_artifact, made

from fcdeploy.data.features import features_from_array
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import MemoryStore

N = 20
Sets = list[tuple[int, ...]]


class TwoPasses:
    """A network of two passes, each told by a digest."""

    path, system, weights, passes, runtime = Path("made-up.onnx"), "made-up", {}, {}, {"onnxruntime": "1"}

    def __init__(self, first: str = "a", second: str = "b") -> None:
        self.digests = {"first": first, "second": second}

    def digest(self, passes: Collection[str] | None = None) -> str:
        return " ".join(self.digests[name] for name in sorted(passes or self.digests))

    def device(self, asked: str | None = None) -> str:
        return "cpu"

    def provider(self, asked: str | None = None) -> str:
        return "CPU"

    @contextlib.contextmanager
    def open(self, name: str, **limits: Any) -> Iterator[Any]:
        yield SimpleNamespace(provider="CPU")


def new_run(store: Any = None, engines: Any = None) -> Run:
    features = features_from_array(np.eye(N, dtype=np.float32))
    return Run(
        features, engines or TwoPasses(), None, Options(memory=1 << 40), store or MemoryStore(), Progress()
    )


def squares(run: Run, seen: list[list[int]] | None = None, name: str = "squares", **changed: Any) -> Artifact:
    """The square of each face's number; ``seen`` gets the faces of every block."""

    def block(faces: np.ndarray, *engines: Any) -> dict[str, np.ndarray]:
        if seen is not None:
            seen.append(faces.tolist())
        return {"squares": faces.astype(np.int64) ** 2}

    given = {"settings": {"power": 2}, "passes": ("first",), "size": 6, **changed}
    shapes = {"squares": ((N,), np.int64)}
    return run.compute(Stage(name=name, text=name, block=block, shapes=shapes, rows=N, **given))


def members_of(run: Run, stop_at: int = N, size: int = 3) -> Artifact:
    """Of face i the numbers 10 i, ..., 10 i + i % 4 - 1: any number per face; a Ctrl-C at face ``stop_at``."""

    def block(faces: np.ndarray) -> dict[str, np.ndarray]:
        if faces[-1] >= stop_at:
            raise KeyboardInterrupt
        members = [np.arange(10 * face, 10 * face + face % 4, dtype=np.int32) for face in faces]
        return {"counts": (faces % 4).astype(np.int32), "members": np.concatenate(members)}

    shapes: Any = {
        "starts": ((N,), np.int64),
        "counts": ((N,), np.int32),
        "members": ((None,), np.int32),
    }
    return run.compute(Stage(name="sets", text="sets", block=block, shapes=shapes, rows=N, size=size))


def sets_in(arrays: Any) -> Sets:
    pairs = zip(arrays["starts"], arrays["counts"], strict=True)
    return [tuple(arrays["members"][start : start + count].tolist()) for start, count in pairs]


# The journal is a set of blocks


def test_a_gap_in_the_journal_is_filled_and_nothing_else_is_computed(tmp_path: Path) -> None:
    """Blocks of any size, finished in any order, as several workers would finish them: 12 to 17 and 3 to 4."""
    seen: list[list[int]] = []
    with RunFolder(tmp_path) as folder:
        artifact = squares(new_run(folder), seen)
        partial = folder.begin("squares", artifact.key, artifact.shapes)
        for start, stop in ((12, 18), (3, 5)):
            partial.arrays["squares"][start:stop] = np.arange(start, stop) ** 2
            partial.commit(start, stop)
        partial.close()
    with RunFolder(tmp_path) as folder:
        found = squares(new_run(folder), seen).array
        assert np.array_equal(found, np.arange(N) ** 2)
    assert seen == [[0, 1, 2], [*range(5, 11)], [11], [18, 19]]
    with RunFolder(tmp_path) as folder:
        _ = squares(new_run(folder), seen).array
    assert len(seen) == 4


@pytest.mark.parametrize("seed", range(5))
def test_blocks_in_any_order_give_the_same_bytes(tmp_path: Path, seed: int) -> None:
    with RunFolder(tmp_path / "straight") as folder:
        artifact = squares(new_run(folder))
        _ = artifact.array
    rng = random.Random(seed)
    cuts = [0, *sorted(rng.sample(range(1, N), 5)), N]
    blocks = list(itertools.pairwise(cuts))
    rng.shuffle(blocks)
    for at, (start, stop) in enumerate(blocks):  # each by a process of its own
        with RunFolder(tmp_path / "shuffled") as folder:
            partial = folder.begin("squares", artifact.key, artifact.shapes)
            assert partial.finished == blocks[:at]
            partial.arrays["squares"][start:stop] = np.arange(start, stop) ** 2
            partial.commit(start, stop)
            if at == len(blocks) - 1:
                partial.finish()
            else:
                partial.close()
    assert bytes_of(tmp_path / "shuffled/squares") == bytes_of(tmp_path / "straight/squares")


@pytest.mark.parametrize("stop_at", [1, 4, 11, 19])
def test_an_artifact_of_any_length_goes_on_and_gives_the_same_sets(tmp_path: Path, stop_at: int) -> None:
    wanted: Sets = [tuple(range(10 * face, 10 * face + face % 4)) for face in range(N)]
    with RunFolder(tmp_path) as folder, pytest.raises(KeyboardInterrupt):
        _ = members_of(new_run(folder), stop_at).arrays
    part = tmp_path / "sets.part"
    blocks = (part / "journal").read_text().splitlines()[1:]
    assert blocks == [f"{start} {start + 3}" for start in range(0, stop_at // 3 * 3, 3)]
    with open(part / "members.npy", "ab") as file:
        file.write(b"\1" * 6)  # a row and a half of a block that was never committed
    with RunFolder(tmp_path) as folder:
        assert sets_in(members_of(new_run(folder), size=4).arrays) == wanted
    assert sets_in(load_artifact(tmp_path / "sets")) == wanted
    assert sets_in(members_of(new_run()).arrays) == wanted


# Keys


def test_a_key_changes_with_all_that_decides_the_content_and_with_nothing_else() -> None:
    run = new_run()
    base = squares(run, made_from=(squares(run, name="other"),)).key
    same: list[Callable[[], Artifact]] = [
        lambda: squares(run, made_from=(squares(run, name="other"),), size=1),
        lambda: squares(run, made_from=(squares(run, name="other", size=3, unit="rows"),)),
        lambda: squares(run, made_from=(squares(run, name="other"),), share=2, scratch=True),
        lambda: squares(new_run(engines=TwoPasses(second="c")), made_from=(squares(run, name="other"),)),
    ]
    assert {artifact().key for artifact in same} == {base}
    other = squares(run, name="other")
    keys = [
        base,
        squares(run).key,  # made from nothing
        squares(run, made_from=(other, other)).key,
        squares(run, made_from=(squares(run, name="another"),)).key,
        squares(run, made_from=(squares(run, name="other", settings={"power": 3}),)).key,
        squares(run, made_from=(other,), settings={"power": 3}).key,
        squares(run, made_from=(other,), settings={}).key,
        squares(run, made_from=(other,), passes=()).key,
        squares(run, made_from=(other,), passes=("first", "second")).key,
        squares(new_run(engines=TwoPasses(first="c")), made_from=(other,)).key,
        squares(run, made_from=(other,), name="renamed").key,
    ]
    assert len(set(keys)) == len(keys)


def test_passes_of_artifacts_on_the_way_are_in_the_key() -> None:
    """They decide the content, although the artifact's own blocks evaluate others."""
    keys = set()
    for second in ("b", "c"):
        run = new_run(engines=TwoPasses(second=second))
        on_the_way = squares(run, name="scratch", passes=("second",), scratch=True)
        keys.add(squares(run, through=(on_the_way,)).key)
    assert len(keys) == 2


def test_a_changed_setting_computes_again_what_depends_on_it_and_nothing_else(tmp_path: Path) -> None:
    def stages(power: int) -> list[list[int]]:
        seen: list[list[int]] = []
        with RunFolder(tmp_path) as folder:
            run = new_run(folder)
            first = squares(run, seen, name="first", size=N)
            second = squares(run, seen, made_from=(first,), settings={"power": power}, size=N - 1)
            third = squares(run, seen, name="third", made_from=(second,), size=N - 2)
            for artifact in (first, second, third):
                _ = artifact.array
        return [[len(block) for block in seen]]

    assert stages(2) == [[N, N - 1, 1, N - 2, 2]]
    assert stages(2) == [[]]
    assert stages(3) == [[N - 1, 1, N - 2, 2]]


# What is the user's


@pytest.mark.parametrize("way", ["recomputed", "dropped", "removed"])
def test_a_users_file_in_an_artifacts_folder_survives(tmp_path: Path, way: str) -> None:
    run_dir = tmp_path / "run"
    with RunFolder(run_dir) as folder:
        _ = squares(new_run(folder)).array
    theirs = {"notes.txt": b"mine", "more.npy": b"mine, too", "sub/a.npy": b"and mine"}
    (run_dir / "squares/sub").mkdir()
    for name, content in theirs.items():
        (run_dir / "squares" / name).write_bytes(content)
    with RunFolder(run_dir) as folder:
        _ = squares(new_run(folder)).array  # taken as it is
        if way == "recomputed":
            found = squares(new_run(folder), settings={"power": 3}).array
            assert np.array_equal(found, np.arange(N) ** 2)
        elif way == "dropped":
            folder.drop("squares")
        else:
            folder.remove()
    assert (run_dir / "squares/squares.npy").exists() == (way == "recomputed")
    for name, content in theirs.items():
        assert (run_dir / "squares" / name).read_bytes() == content
    if way == "recomputed":
        before = made(run_dir / "squares")
        with RunFolder(run_dir) as folder:
            _ = squares(new_run(folder), settings={"power": 3}).array
        assert made(run_dir / "squares") == before
        assert {path.name for path in run_dir.iterdir()} == {"squares", "run.json", "run.lock"}


@pytest.mark.parametrize("then", ["the same", "another", "removed"])
@pytest.mark.parametrize("moves", [0, 1, 2])
def test_a_kill_while_arrays_get_their_names_leaves_nothing_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str, moves: int
) -> None:
    """Beside a file of the user's they are moved one by one; the kill comes before the second and the third, too."""
    run_dir, straight = tmp_path / "run", os.replace

    def killed(source: Any, target: Any) -> None:
        nonlocal moves
        if Path(source).suffix == ".npy":
            if not moves:
                raise KeyboardInterrupt
            moves -= 1
        straight(source, target)

    with RunFolder(run_dir) as folder:
        _ = members_of(new_run(folder)).arrays
    (run_dir / "sets/members.npy").unlink()  # so that it is computed again
    (run_dir / "sets/notes.txt").write_text("mine")
    with monkeypatch.context() as patch, RunFolder(run_dir) as folder:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            _ = members_of(new_run(folder)).arrays
    with RunFolder(run_dir) as folder:
        if then == "the same":
            assert sets_in(members_of(new_run(folder)).arrays) == sets_in(members_of(new_run()).arrays)
        elif then == "another":
            folder.drop("sets")
        else:
            folder.remove()
    left = {path.name for path in (run_dir / "sets").iterdir()}
    arrays = {"starts.npy", "counts.npy", "members.npy"} if then == "the same" else set()
    assert left == {"notes.txt", *arrays}
    assert not (run_dir / "sets.part").exists()


# Folders of other versions

OURS = ("knn.npz", "refined.npy.part", "tables.scratch", "summary.json")


def old_folder(run_dir: Path, version: object) -> dict[str, bytes]:
    """A run folder of another version with files of the user's; returns these."""
    for name in ("refined.npy.part", "tables.scratch", "photos.part"):
        (run_dir / name).mkdir(parents=True)
    np.savez(run_dir / "knn.npz", ids=np.zeros((N, 3), np.int32), sims=np.ones((N, 3), np.float32))
    (run_dir / "refined.npy.part/journal").write_text(f"{'0' * 64} - boot\n10\n")
    (run_dir / "summary.json").write_text("{}")
    products = {"knn.npz": {"key": "k", "bytes": (run_dir / "knn.npz").stat().st_size, "boot": ""}}
    record = {"format": "fcdeploy-run", "format_version": version, "names": [*OURS, "run.json", "run.lock"]}
    (run_dir / "run.json").write_text(json.dumps({**record, "products": products}))
    theirs = {"refined.npy": b"mine", "mine.npz": b"mine", "photos.part/1.npy": b"mine", "notes": b"mine"}
    for name, content in theirs.items():
        (run_dir / name).write_bytes(content)
    return theirs


def test_a_folder_of_format_version_1_is_begun_anew_with_a_sentence(tmp_path: Path) -> None:
    theirs = old_folder(tmp_path / "run", 1)
    with pytest.warns(FcdeployWarning, match=r"run: was written by an earlier version .* computed again\."):
        folder = RunFolder(tmp_path / "run")
    with folder:
        assert folder.load("knn", "k") is None
        _ = squares(new_run(folder)).array
    assert {name: (tmp_path / "run" / name).read_bytes() for name in theirs} == theirs
    left = {path.name for path in (tmp_path / "run").iterdir()} - {name.split("/")[0] for name in theirs}
    assert left == {"squares", "run.json", "run.lock", "summary.json"}
    with RunFolder(tmp_path / "run") as folder:  # without another word
        seen: list[list[int]] = []
        _ = squares(new_run(folder), seen).array
        assert not seen


def test_a_folder_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    old_folder(tmp_path / "run", 3)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="newer version of fcdeploy; upgrade fcdeploy, or choose another"):
        RunFolder(tmp_path / "run")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(("resident", "released"), [(1 << 40, True), (1 << 20, False)])
def test_after_a_stage_mapped_pages_are_let_go_of_where_they_take_the_budget(
    monkeypatch: pytest.MonkeyPatch, resident: int, released: bool
) -> None:
    """Also before and after what is done with a whole artifact, which may read all of others."""
    monkeypatch.setattr("fcdeploy.run.run.resident_bytes", lambda: resident)
    did: list[str] = []
    run = new_run()
    monkeypatch.setattr(run.store, "release_pages", lambda: did.append("release"))
    kept = squares(run, then=lambda arrays: did.append("then"))
    assert kept["squares"].tolist() == [face**2 for face in range(N)]
    assert did == (["release", "then", "release"] if released else ["then"])
    _ = run.collect("one", lambda: {"one": np.ones(1)}).arrays
    assert did[3 if released else 1 :] == (["release"] if released else [])
