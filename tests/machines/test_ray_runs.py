"""Runs whose blocks workers on a Ray cluster compute: labels and artifacts of a run in one process, to the byte."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import pictures_of, write_embedder
from PIL import Image
from ray_runs import check_folder, clustered, kept_in
from system_cases import CASES, Case

import fcdeploy
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.run import fingerprint, handout

SYSTEMS = [case for case in CASES if not case.networks]
SEARCHES = [*((case, knn) for knn in ("cells", "exact") for case in SYSTEMS), (CASES[0], "ivf")]


@pytest.fixture(autouse=True)
def many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of few faces, however quick they are: there is something to share out and to lose."""
    monkeypatch.setattr(handout, "LEAST_SECONDS", 0.0)


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let workers of a run in this folder die at the moments that it is called with; see ``dying_worker``."""
    monkeypatch.setattr("fcdeploy.runtime.workers.TARGET", "dying_worker:work")

    def planned(moments: list[int]) -> None:
        (tmp_path / "plan.json").write_text(json.dumps(moments))
        (tmp_path / "moments").unlink(missing_ok=True)

    return planned


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_workers_give_the_bytes_of_one_process(
    cluster: Any, case: Case, bundle_of: Any, faces: Path, tmp_path: Path
) -> None:
    bundle = bundle_of(case)
    wanted = clustered(faces, bundle, tmp_path / "alone")
    found = clustered(faces, bundle, tmp_path / "shared", ray=cluster.address)
    assert np.array_equal(found, wanted)
    check_folder(tmp_path / "shared", kept_in(tmp_path / "alone"))


@pytest.mark.parametrize(("case", "knn"), SEARCHES, ids=str)
def test_of_twenty_thousand_faces_too_however_neighbors_are_found(
    cluster: Any, case: Case, knn: str, bundle_of: Any, many_faces: Path, tmp_path: Path
) -> None:
    bundle = bundle_of(case)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)  # of generated faces and networks that never saw any
        wanted = clustered(many_faces, bundle, tmp_path / "alone", knn=knn, inference="auto")
        found = clustered(many_faces, bundle, tmp_path / "shared", knn=knn, ray=cluster.address)
    assert np.array_equal(found, wanted)
    check_folder(tmp_path / "shared", kept_in(tmp_path / "alone"))


@pytest.mark.parametrize("seed", range(4))
def test_workers_that_are_killed_leave_no_trace(
    cluster: Any, pse: Any, faces: Path, alone: Any, tmp_path: Path, plan: Any, seed: int
) -> None:
    """Five at random moments of each run: before a block, with it written but not named, named but not reported."""
    rng = np.random.default_rng(seed)
    moments = (np.cumsum(rng.integers(9, 14, 5)) + rng.integers(0, 5)).tolist()
    plan(moments)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = clustered(faces, pse, tmp_path / "run", ray=cluster.address)
    assert np.array_equal(found, alone[0])
    check_folder(tmp_path / "run", alone[1])
    assert sum(line.endswith("killed") for line in lines_of(tmp_path / "moments")) == 5
    assert sum("was lost (its process ended)" in str(one.message) for one in told) == 5


def test_a_block_that_kills_every_worker_ends_the_run_with_a_sentence(
    cluster: Any, pse: Any, faces: Path, alone: Any, tmp_path: Path, plan: Any
) -> None:
    plan([*range(1, 400)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        with pytest.raises(FcdeployError, match=r"lost|fails every time") as caught:
            clustered(faces, pse, tmp_path / "run", ray=cluster.address)
    assert "its process ended" in str(caught.value)
    assert len(lines_of(tmp_path / "moments")) <= 2 * handout.MOST_LOSSES + 2
    plan([])
    assert np.array_equal(clustered(faces, pse, tmp_path / "run"), alone[0])  # and one process goes on
    check_folder(tmp_path / "run", alone[1])


def test_a_machine_may_be_lost_and_another_one_come(
    cluster: Any, pse: Any, faces: Path, alone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A third one is there at the beginning and is gone after the 12th block; a fourth comes after the 24th."""
    from fcdeploy.run.folder import FolderPartial

    objects = 78 << 20
    third = cluster.add_node(num_cpus=1, object_store_memory=objects)
    nodes, commits, commit = [], [], FolderPartial.commit

    def counting(self: FolderPartial, start: int, stop: int) -> None:
        commit(self, start, stop)
        commits.append(start)
        if len(commits) == 12:
            cluster.remove_node(third, allow_graceful=False)
        if len(commits) == 24:
            nodes.append(cluster.add_node(num_cpus=1, object_store_memory=objects))

    monkeypatch.setattr(FolderPartial, "commit", counting)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FcdeployWarning)
        found = clustered(faces, pse, tmp_path / "run", ray=cluster.address)
    cluster.remove_node(nodes[0], allow_graceful=False)
    assert np.array_equal(found, alone[0])
    check_folder(tmp_path / "run", alone[1])
    assert len(commits) > 30


def command(*args: object, **more: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "fcdeploy", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(fcdeploy.__file__).parents[1])},
        **more,
    )


def test_a_killed_driver_is_followed_by_another_or_by_one_process(
    cluster: Any, pse: Any, faces: Path, alone: Any, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    line = ("cluster", faces, "--engine", pse.path, "-o", tmp_path / "pred.meta", "--run-dir", place)
    for killed, last in ((("--ray", cluster.address), ()), ((), ("--ray", cluster.address))):
        first = command(*line, "--quiet", *killed)
        until = time.monotonic() + 120
        while not (place / "knn").exists() and first.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if killed:  # a second one is refused in the meantime
            second = command(*line, "--quiet", "--ray", cluster.address)
            told = second.communicate(timeout=120)[1]
            if first.poll() is None:
                assert second.returncode == 2
                assert "another run is using this folder" in told
        first.send_signal(signal.SIGKILL)
        first.communicate(timeout=60)
        done = command(*line, *last)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
        assert np.array_equal(np.loadtxt(tmp_path / "pred.meta", dtype=np.int64), alone[0])
        check_folder(place, alone[1])
        if last:
            assert "worker" in err
            assert "blocks)" in err
        for path in sorted(place.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()


def test_copies_on_each_machine_give_the_same_and_go_with_the_run(
    cluster: Any, pse: Any, faces: Path, alone: Any, tmp_path: Path
) -> None:
    scratch = tmp_path / "disk"
    scratch.mkdir()
    found = clustered(faces, pse, tmp_path / "run", ray=cluster.address, scratch=scratch)
    assert np.array_equal(found, alone[0])
    check_folder(tmp_path / "run", alone[1])
    assert not list(scratch.iterdir())


def test_workers_on_this_machine_need_no_cluster(pse: Any, faces: Path, alone: Any, tmp_path: Path) -> None:
    before = set(Path("/tmp").glob("fcd-*"))
    features = np.fromfile(faces, "<f4").reshape(-1, pse.feature_dim)
    found = fcdeploy.cluster(features, engine=pse.path, run_dir=tmp_path / "run", ray="local:2")
    assert np.array_equal(found, alone[0])
    assert kept_in(tmp_path / "run") == alone[1]
    assert set(Path("/tmp").glob("fcd-*")) == before


def test_copies_of_faces_count_once_with_workers_too(
    cluster: Any, pse: Any, faces: Path, tmp_path: Path
) -> None:
    """Near-copies are found in the lists of all rows; then the run begins anew without them."""
    rows = np.fromfile(faces, "<f4").reshape(-1, pse.feature_dim)[:300]
    rng = np.random.default_rng(0)
    near = rows[:4].repeat(60, axis=0)
    path = tmp_path / "copies.bin"
    (np.concatenate([rows, near + 1e-5 * rng.standard_normal(near.shape)])).astype("<f4").tofile(path)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        wanted = clustered(path, pse, tmp_path / "alone")
        found = clustered(path, pse, tmp_path / "run", ray=cluster.address)
    assert any("near-copies" in str(one.message) for one in told)
    assert np.array_equal(found, wanted)
    check_folder(tmp_path / "run", kept_in(tmp_path / "alone"))


def test_new_faces_are_assigned_by_workers(cluster: Any, pse: Any, faces: Path, tmp_path: Path) -> None:
    rows = np.fromfile(faces, "<f4").reshape(-1, 32)
    rows[:900].tofile(tmp_path / "old.bin")
    new = np.concatenate([rows[900:] + np.float32(at / 100) for at in range(4)])
    new.tofile(tmp_path / "new.bin")
    clustered(tmp_path / "old.bin", pse, tmp_path / "run")
    line = ("assign", tmp_path / "new.bin", "--run-dir", tmp_path / "run", "--unmatched", "singleton")
    for name, more in (("alone", ()), ("shared", ("--ray", cluster.address))):
        (tmp_path / name).mkdir()
        done = command(*line, "-o", tmp_path / name / "assigned.csv", *more)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
        assert [path.name for path in (tmp_path / name).iterdir()] == ["assigned.csv"]
    wanted = (tmp_path / "alone/assigned.csv").read_bytes()
    assert (tmp_path / "shared/assigned.csv").read_bytes() == wanted
    found = fcdeploy.assign(new, run_dir=tmp_path / "run", ray=cluster.address)
    alone = fcdeploy.assign(new, run_dir=tmp_path / "run")
    for part in ("labels", "similarity", "margin"):
        assert np.array_equal(getattr(found, part), getattr(alone, part), equal_nan=True), part
    assert {path.name for path in tmp_path.iterdir()} == {"old.bin", "new.bin", "run", "alone", "shared"}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 300 pictures, one missing and one broken, with an embedder of 32-d beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    write_embedder(folder / "embedder.onnx")
    for at, picture in enumerate(pictures_of(300)):
        Image.fromarray(picture).save(folder / f"{at}.png")
    (folder / "7.png").write_bytes((folder / "7.png").read_bytes()[:200])
    (folder / "faces.txt").write_text(
        "".join(f"{at}.png\n" if at != 17 else "none.png\n" for at in range(300))
    )
    return folder / "faces.txt"


def test_embedding_is_shared_out_too(
    cluster: Any, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcdeploy.runtime.embed.COMMIT_LINES", 32)
    model = pictures.parent / "embedder.onnx"
    line = ("embed", pictures, "--model", model, "--batch", 8, "--on-bad", "skip")
    for name, more in (("alone", ()), ("shared", ("--ray", cluster.address))):
        (tmp_path / name).mkdir()
        done = command(*line, "-o", tmp_path / name / "features.npy", *more)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
    files = {path.name for path in (tmp_path / "alone").iterdir()}
    assert files == {path.name for path in (tmp_path / "shared").iterdir()}
    for name in files:
        assert (tmp_path / "shared" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes(), name
    with pytest.warns(FcdeployWarning, match="2 of 300 lines could not be embedded"):
        rows = fcdeploy.embed(
            pictures, model=model, batch=8, on_bad="zero", run_dir=tmp_path / "run", ray=cluster.address
        )
    kept = np.delete(np.arange(300), [7, 17])
    assert np.array_equal(rows[kept], np.load(tmp_path / "alone" / "features.npy"))
    assert not rows[[7, 17]].any()
    assert not (tmp_path / "run").exists()


def test_face_crops_are_embedded_and_clustered_by_workers(
    cluster: Any, pse: Any, pictures: Path, tmp_path: Path
) -> None:
    line = ("cluster", pictures, "--engine", pse.path, "--embedder", pictures.parent / "embedder.onnx")
    for name, more in (("alone", ()), ("shared", ("--ray", cluster.address))):
        (tmp_path / name).mkdir()
        place = (
            "-o",
            tmp_path / name / "pred.meta",
            "--run-dir",
            tmp_path / name / "run",
            "--on-bad",
            "skip",
        )
        done = command(*line, *place, *more)
        _, err = done.communicate(timeout=300)
        assert done.returncode == 0, err
    assert (tmp_path / "shared/pred.meta").read_bytes() == (tmp_path / "alone/pred.meta").read_bytes()
    check_folder(tmp_path / "shared" / "run", kept_in(tmp_path / "alone" / "run"))


def test_doctor_compares_machines(cluster: Any) -> None:
    done = command("doctor", "--ray", cluster.address)
    out, err = done.communicate(timeout=120)
    assert done.returncode == 0, err
    assert out.count("as this machine") >= 2
    assert "may give other bytes" not in out


def test_strict_refuses_workers_that_are_not_as_the_driver(
    cluster: Any, pse: Any, faces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fingerprint, "instructions", lambda: ["avx2", "made_up"])  # here, and not in workers
    with (
        pytest.warns(FcdeployWarning, match="is not used: it has a processor without made_up"),
        pytest.raises(
            FcdeployError, match=r"no worker is left: strict refuses|no worker is left: --strict refuses"
        ),
    ):
        clustered(faces, pse, tmp_path / "run", ray=cluster.address, strict=True)


def test_a_cluster_that_is_not_there_is_one_sentence(pse: Any, faces: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no cluster can be reached"):
        clustered(faces, pse, tmp_path / "run", ray="127.0.0.1:1")
