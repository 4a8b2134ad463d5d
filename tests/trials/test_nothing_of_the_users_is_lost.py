"""Whatever a folder holds that is not ours stays as it is, whichever command writes there.

Reported at: found by reading (a web application's manifest.json, notes inside a bundle, a folder of somebody's arrays
given as --run-dir) and by trying (models of others in a Triton repository).
"""

import dataclasses
import hashlib
import json
import os
import random
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from embedders import pictures_of, write_embedder
from PIL import Image
from system_cases import CASES

import fcdeploy as package
from fcdeploy.data.atomic_folder import atomic_folder
from fcdeploy.data.run_record import JOURNAL, LOCK, RECORD
from fcdeploy.engine.bundle import MANIFEST, Bundle
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.run.folder import SUMMARY, RunFolder, places_of
from fcdeploy.run.options import Options
from fcdeploy.runtime.prepare import prepare
from fcdeploy.runtime.stored import places_of_clusters
from fcdeploy.runtime.survey import places_of_run
from fcdeploy.systems import get_system

N, DIM = 60, 32
QUICK, MANY, PARTS = 34, 500, 10  # situations, and parts of the long form
OURS_BESIDE = (
    *(
        "pred.bad.txt",
        "pred.filelist.txt",
        "pred.meta.part",
        "tuned.png",
        "c.toml",
        "c.run",
        "checkpoint.toml",
    ),
    *(
        "features.bad.txt",
        "features.filelist.txt",
        "features.npy.part",
        "features.npy.json",
        "checkpoint.run",
    ),
    *(
        "pred_labels.meta",
        "features.bin",
        "features.bin.json",
        "tuned.toml",
        "checkpoint.pth",
        "pse-gcn.onnx",
    ),
    *("model_repository", "b.plan.log", "b.plan.timing", ".b.onnx.a1b2c3d4.part", ".pred.meta.a1b2c3d4.part"),
)
THEIRS = ("notes.txt", "tuned.toml", "mine", "data.npy", "mine.scratch", "mine.part", "index.html")


@pytest.fixture
def command(fcdeploy: Command) -> Callable[..., tuple[int, str]]:
    """Call ``fcdeploy ARGS`` in this process; its exit code and the last line of stderr."""

    def call(*args: object) -> tuple[int, str]:
        done = fcdeploy(*args)
        return done.code, (done.err.splitlines() or [""])[-1]

    return call


@pytest.fixture(scope="session")
def shelf(
    exported: Any, cut_bundle: Any, checkpoint: Any, tmp_path_factory: pytest.TempPathFactory
) -> "Shelf":
    """Inputs of every command, shared and not to be written to."""
    folder = tmp_path_factory.mktemp("shelf")
    rng = np.random.default_rng(0)
    people = np.repeat(rng.standard_normal((12, DIM)), N // 12, axis=0)
    (people + 0.4 * rng.standard_normal(people.shape)).astype("<f4").tofile(folder / "f.bin")
    (folder / "f.meta").write_text("".join(f"{at // 5}\n" for at in range(N)))
    write_embedder(folder / "embedder.onnx")
    for at, picture in enumerate(pictures_of(N)):
        Image.fromarray(picture).save(folder / f"{at}.png")
    (folder / "faces.txt").write_text("".join(f"{at}.png\n" for at in range(N)))
    (folder / "recipe.toml").write_text(f'system = "pse-gcn"\nfeature_dim = {DIM}\n\n{CASES[0].recipe}')
    bundles = {
        str(case): exported(dataclasses.replace(case, networks=())) for case in CASES if not case.networks
    }
    return Shelf(folder, bundles, [checkpoint(each) for each in CASES[0].checkpoints])


@dataclasses.dataclass(frozen=True)
class Shelf:
    folder: Path
    bundles: dict[str, Bundle]
    checkpoints: list[Path]

    @property
    def engine(self) -> Path:
        return self.bundles["pse-gcn"].path


def names_in_run_folders(bundles: dict[str, Bundle]) -> list[str]:
    """Every name that some run of some system uses in its run folder, derived from what the systems say."""
    places = {
        place
        for name in ("embedded", "embedded_lines", "embedding-0123456789abcdef")
        for place in places_of(name)
    }
    places |= {place for name in ("vectors", "knn.lists") for place in places_of(name, scratch=True)}
    from fcdeploy.data.features import features_from_array

    for name, bundle in bundles.items():
        features = features_from_array(np.eye(N, DIM, dtype=np.float32), DIM)
        for inference in get_system(name).inferences:
            for tables in ("float32", "float16") if inference == "layerwise" else ("float32",):
                prepared = prepare(features, bundle, Options(inference=inference, tables=tables))
                places |= {*places_of_run(prepared.system, prepared.artifacts())}
    return sorted({*places, RECORD, LOCK, SUMMARY, JOURNAL, f".{RECORD}.a1b2c3d4.part"})


def names_in_bundles(bundles: dict[str, Bundle]) -> list[str]:
    graphs = {
        f"{name}.{kind}" for bundle in bundles.values() for name in bundle.passes for kind in ("onnx", "plan")
    }
    return sorted({MANIFEST, *graphs})


def names_in_repositories(bundles: dict[str, Bundle]) -> list[str]:
    models = {f"{bundle.system}_{name}" for bundle in bundles.values() for name in bundle.passes}
    return sorted({"fcdeploy.json", "config.pbtxt", "1", *models})


def names_in_trainings() -> list[str]:
    from fcdeploy.training.places import KEPT

    return [*KEPT, RECORD, LOCK]


def put(path: Path, rng: random.Random, victim: Path) -> None:
    """Put something of the user's at a path: a file, a folder, or a link to ``victim``."""
    kind = rng.choice(("file", "file", "empty folder", "folder", "symlink", "hard link", "look-alike"))
    content = rng.randbytes(rng.randint(1, 40))
    if kind == "file":
        path.write_bytes(content)
    elif kind == "look-alike":
        path.write_text(
            json.dumps(
                {
                    "name": "mine",
                    "artifacts": {},
                    "products": {},
                    "format": "mine",
                    "models": {},
                    "config": {},
                }
            )
        )
    elif kind == "symlink":
        path.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, path)
    else:
        path.mkdir()
        if kind == "folder":
            for name in rng.sample(("a.npy", JOURNAL, "model.onnx", "x.onnx", RECORD), 2):
                (path / name).write_bytes(content)
    if not path.is_symlink():
        os.utime(path, (1_000_000_000 + rng.randint(0, 9), 1_000_000_000))


def state_of(path: Path) -> tuple[Any, ...]:
    """What must not change of a file, a folder or a link."""
    if path.is_symlink():
        return "link", os.readlink(path)
    found = path.stat()
    if path.is_dir():
        return ("folder",)
    return "file", hashlib.sha256(path.read_bytes()).hexdigest(), found.st_mtime_ns


def states_below(*places: Path) -> dict[Path, tuple[Any, ...]]:
    every = [
        path for place in places for path in (place, *(place.rglob("*") if not place.is_symlink() else ()))
    ]
    return {path: state_of(path) for path in every}


@dataclasses.dataclass(frozen=True)
class Situation:
    """A command that writes; ``target`` is the folder it writes into, if it does, made by an earlier run or not.

    line(work): its arguments. names: those that are ours in the target, ``beside`` those beside it.
    """

    line: Callable[[Path], tuple[object, ...]]
    output: str
    target: str | None = None
    names: tuple[str, ...] = ()


def situations(shelf: Shelf) -> dict[str, Situation]:
    folder, engine = shelf.folder, shelf.engine
    in_runs = tuple(names_in_run_folders(shelf.bundles))
    in_bundles = tuple(names_in_bundles(shelf.bundles))
    features, labels = folder / "f.bin", folder / "f.meta"
    clustering = ("cluster", features, "--engine", engine, "--quiet")
    pictures = (folder / "faces.txt", "--quiet")
    embedder = folder / "embedder.onnx"
    given = [word for path in shelf.checkpoints for word in ("--ckpt", path)]
    training = (
        *("train", "pse-gcn", "--features", features, "--labels", labels, "--recipe", folder / "recipe.toml"),
        *("--steps", 1, "--batch", 4, "--threads", 1, "--quiet", "--validation", 0),
    )
    tuning = (
        "tune",
        "--engine",
        shelf.bundles["sepfl"].path,
        "--features",
        features,
        "--labels",
        labels,
        "--quiet",
    )
    return {
        "cluster": Situation(lambda w: (*clustering, "-o", w / "pred.meta"), "pred.meta"),
        "cluster by default": Situation(lambda w: clustering, ""),
        "cluster --run-dir": Situation(
            lambda w: (*clustering, "-o", w / "pred.meta", "--run-dir", w / "run"),
            "pred.meta",
            "run",
            in_runs,
        ),
        "cluster --run-dir layerwise": Situation(
            lambda w: (*clustering, "-o", w / "pred.npy", "--run-dir", w / "run", "--inference", "layerwise"),
            *("pred.npy", "run", in_runs),
        ),
        "cluster pictures": Situation(
            lambda w: (
                "cluster",
                *pictures,
                "--engine",
                engine,
                "--embedder",
                embedder,
                "-o",
                w / "pred.meta",
            ),
            *("pred.meta", "pred.meta.part", in_runs),
        ),
        "cluster pictures --run-dir": Situation(
            lambda w: (
                *("cluster", *pictures, "--engine", engine, "--embedder", embedder),
                *("-o", w / "pred.meta", "--run-dir", w / "run"),
            ),
            *("pred.meta", "run", in_runs),
        ),
        "embed": Situation(
            lambda w: ("embed", *pictures, "--model", embedder, "-o", w / "features.npy"),
            *("features.npy", "features.npy.part", in_runs),
        ),
        "embed by default": Situation(lambda w: ("embed", *pictures, "--model", embedder), ""),
        "embed --on-bad skip": Situation(
            lambda w: ("embed", *pictures, "--model", embedder, "-o", w / "features.npy", "--on-bad", "skip"),
            *("features.npy", "features.npy.part", in_runs),
        ),
        "tune": Situation(
            lambda w: (*tuning, "-o", w / "tuned.toml", "--run-dir", w / "run"), "tuned.toml", "run", in_runs
        ),
        "tune by default": Situation(lambda w: tuning, ""),
        "train": Situation(
            lambda w: (*training, "-o", w / "c.pth"), "c.pth", "c.run", tuple(names_in_trainings())
        ),
        "train by default": Situation(lambda w: training, "", "checkpoint.run", tuple(names_in_trainings())),
        "train --run-dir": Situation(
            lambda w: (*training, "-o", w / "c.pth", "--run-dir", w / "run"),
            *("c.pth", "run", tuple(names_in_trainings())),
        ),
        "export": Situation(
            lambda w: ("export", *given, "--recipe", folder / "recipe.toml", "-o", w / "b.onnx", "--quiet"),
            *("", "b.onnx", in_bundles),
        ),
        "build": Situation(
            lambda w: ("build", engine, "--profile", "cpu", "-o", w / "b.plan", "--quiet"),
            *("", "b.plan", in_bundles),
        ),
        "triton": Situation(
            lambda w: ("triton", engine, "-o", w / "models", "--quiet"),
            *("", "models", tuple(names_in_repositories(shelf.bundles))),
        ),
    }


SLOW = ("export", "train", "train by default", "train --run-dir", "tune", "tune by default")


@pytest.fixture(scope="session")
def made_before(shelf: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Any], Path | None]:
    """Give the folder that an earlier run of a command has left, made once; None where it leaves none."""
    known: dict[str, Path | None] = {}

    def made(name: str, command: Any) -> Path | None:
        if name not in known:
            situation, work = situations(shelf)[name], tmp_path_factory.mktemp("before")
            before = os.getcwd()
            os.chdir(work)
            try:
                if situation.target in ("pred.meta.part", "features.npy.part"):
                    with RunFolder(work / situation.target):  # as of a killed run
                        pass
                elif name == "export":
                    shutil.copytree(shelf.engine, work / "b.onnx")
                else:
                    code, said = command(*situation.line(work))
                    assert code == 0, said
            finally:
                os.chdir(before)
            known[name] = work / situation.target if situation.target else None
        return known[name]

    return made


@pytest.mark.parametrize(
    "numbers",
    [
        pytest.param(range(QUICK), id="quick"),
        *(
            pytest.param(range(at, at + MANY // PARTS), id=f"from {at}", marks=pytest.mark.faults)
            for at in range(0, MANY, MANY // PARTS)
        ),
    ],
)
def test_nothing_that_is_not_ours_is_changed(
    numbers: range,
    shelf: Shelf,
    made_before: Any,
    command: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The user's files of random kinds, under names that we use and others, in the target and beside it."""
    known, quick = situations(shelf), len(numbers) == QUICK
    outcomes: dict[int, int] = {}
    for number in numbers:
        rng = random.Random(number)
        name = list(known)[number % len(known)]
        situation = known[name]
        work = tmp_path / str(number)
        work.mkdir()
        monkeypatch.chdir(work)
        victim = tmp_path / f"victim{number}"
        victim.write_bytes(b"precious")
        ours = False
        if situation.target is not None:
            again = rng.random() < 0.6 and not (quick and name in SLOW)
            before = made_before(name, command) if again else None
            ours = before is not None
            if before is not None:
                shutil.copytree(before, work / situation.target, symlinks=True)
            elif rng.random() < 0.9:
                (work / situation.target).mkdir()
        mine: list[Path] = []
        if situation.target is not None and (work / situation.target).is_dir():
            target = work / situation.target
            chosen = rng.sample(situation.names, min(2, len(situation.names))) + rng.sample(THEIRS, 2)
            for path in (target / each for each in rng.sample(chosen, rng.randint(1, 4))):
                if not os.path.lexists(path):
                    put(path, rng, victim)
                    mine.append(path)
        beside = [each for each in OURS_BESIDE if each not in (situation.output, situation.target)]
        for path in (work / each for each in rng.sample(beside, rng.randint(0, 3))):
            put(path, rng, victim)
            mine.append(path)
        inside = [path for path in mine if path.parent != work]
        wanted = states_below(*mine, victim)
        listing = set(work.rglob("*"))
        code, said = command(*situation.line(work))
        found = {path: state_of(path) if os.path.lexists(path) else None for path in wanted}
        assert found == wanted, (number, name, said)
        assert code in (0, 2), (number, name, said)
        if code == 2:
            assert said.startswith("Error: "), (number, name, said)
            assert set(work.rglob("*")) - listing <= {work / "pred.bad.txt"} | own_records(work, ours), (
                number,
                name,
            )
        if inside and not ours and situation.target is not None and name != "triton":
            assert code == 2, (number, name, "took the user's folder for one of ours")
        outcomes[code] = outcomes.get(code, 0) + 1
        shutil.rmtree(work)
    assert min(outcomes.get(0, 0), outcomes.get(2, 0)) > len(numbers) // 8, outcomes


def own_records(work: Path, ours: bool) -> set[Path]:
    """What a refused run may leave that is new: our records in a folder that was empty or ours."""
    return {path for path in work.rglob("*") if path.name in (RECORD, LOCK)} if ours else set()


# One by one


def manifest_of_somebody(folder: Path) -> None:
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my app"}')
    (folder / "index.html").write_text("mine")


@pytest.mark.parametrize("verb", ["export", "build"])
def test_a_folder_with_anybodys_manifest_is_refused_before_the_work(
    verb: str, shelf: Shelf, command: Any, tmp_path: Path
) -> None:
    known = situations(shelf)[verb]
    assert known.target is not None
    folder = tmp_path / known.target
    manifest_of_somebody(folder)
    code, said = command(*known.line(tmp_path))
    assert (code, str(folder) in said) == (2, True)
    assert "was not written by fcdeploy" in said
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "manifest.json": '{"name": "my app"}',
        "index.html": "mine",
    }


def test_a_bundle_is_replaced_and_the_users_files_in_it_stay(
    shelf: Shelf, command: Any, tmp_path: Path
) -> None:
    """Sub-folders, links and times included; graphs of ours that the new bundle has not, go."""
    line = situations(shelf)["build"].line(tmp_path)
    assert command(*line)[0] == 0
    bundle = tmp_path / "b.plan"
    manifest = json.loads((bundle / MANIFEST).read_text())
    (bundle / "gone.onnx").write_text("of ours, once")
    manifest["passes"]["gone"] = {**next(iter(manifest["passes"].values())), "file": "gone.onnx"}
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    (bundle / "notes.txt").write_text("mine")
    (bundle / "runs/one").mkdir(parents=True)
    (bundle / "runs/one/tuned.toml").write_text("mine")
    (bundle / "link").symlink_to("notes.txt")
    os.chmod(bundle / "runs/one", 0o755)
    os.utime(bundle / "runs/one", (1, 1))
    os.utime(bundle / "notes.txt", (1, 1))
    mine = [bundle / name for name in ("notes.txt", "runs", "link")]
    before, inode = states_below(*mine), (bundle / "notes.txt").stat().st_ino
    assert command(*line)[0] == 0
    assert states_below(*mine) == before
    assert (bundle / "notes.txt").stat().st_ino == inode
    assert (bundle / "runs/one").stat().st_mtime == 1
    assert not (bundle / "gone.onnx").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b.plan"]
    package.engine.bundle.read_bundle(bundle).check_files()


def test_a_file_of_the_users_with_a_name_that_the_new_bundle_needs_is_named(
    shelf: Shelf, command: Any, tmp_path: Path
) -> None:
    line = situations(shelf)["build"].line(tmp_path)
    assert command(*line)[0] == 0
    bundle = tmp_path / "b.plan"
    manifest = json.loads((bundle / MANIFEST).read_text())
    taken = manifest["passes"].popitem()[1]["file"]
    (bundle / MANIFEST).write_text(json.dumps(manifest))
    before = states_below(bundle)
    code, said = command(*line)
    assert (code, str(bundle / taken) in said) == (2, True)
    assert states_below(bundle) == before


def test_two_engines_and_models_of_others_share_a_repository(
    shelf: Shelf, command: Any, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    (models / "face_detector/1").mkdir(parents=True)
    (models / "face_detector/1/model.onnx").write_text("mine")
    for system in ("pse-gcn", "sepfl", "pse-gcn"):
        code, said = command("triton", shelf.bundles[system].path, "-o", models, "--quiet")
        assert code == 0, said
    passes = {f"{name}_{each}" for name in ("pse-gcn", "sepfl") for each in shelf.bundles[name].passes}
    assert {path.name for path in models.iterdir()} == {*passes, "face_detector", "fcdeploy.json"}
    model = models / f"sepfl_{next(iter(shelf.bundles['sepfl'].passes))}"
    (model / "2").mkdir()
    (model / "2/model.onnx").write_text("mine")  # a version of the user's
    assert command("triton", shelf.bundles["sepfl"].path, "-o", models, "--quiet")[0] == 0
    assert (model / "2/model.onnx").read_text() == "mine"
    with open(model / "config.pbtxt", "a") as file:
        file.write("# mine\n")
    code, said = command("triton", shelf.bundles["sepfl"].path, "-o", models, "--quiet")
    assert (code, str(model / "config.pbtxt") in said, "--prefix" in said) == (2, True, True)
    assert (model / "config.pbtxt").read_text().endswith("# mine\n")


def test_a_model_of_the_same_name_is_named(shelf: Shelf, command: Any, tmp_path: Path) -> None:
    """Of somebody else's, and of another bundle of ours."""
    first, models = next(iter(shelf.bundles["pse-gcn"].passes)), tmp_path / "models"
    (models / f"pse-gcn_{first}/1").mkdir(parents=True)
    (models / f"pse-gcn_{first}/1/model.onnx").write_text("mine")
    code, said = command("triton", shelf.engine, "-o", models)
    assert (code, str(models / f"pse-gcn_{first}") in said, "--prefix" in said) == (2, True, True)
    assert command("triton", shelf.engine, "-o", models, "--prefix", "a", "--quiet")[0] == 0
    code, said = command("triton", shelf.bundles["sepfl"].path, "-o", models, "--prefix", "a")
    assert (code, "another bundle" in said, "--prefix" in said) == (2, True, True)


def test_the_places_of_artifacts_are_told_before_a_run(shelf: Shelf, tmp_path: Path) -> None:
    """What a run records is what its survey says, so that nothing of the user's is met on the way."""
    straight = RunFolder.begin
    for name, bundle in shelf.bundles.items():
        features = shelf.folder / "f.bin"
        seen: set[str] = set()

        def begin(self: RunFolder, artifact: str, *args: Any, seen: set[str] = seen, **more: Any) -> Any:
            seen |= {*places_of(artifact, more.get("scratch", False))}
            return straight(self, artifact, *args, **more)

        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setattr(RunFolder, "begin", begin)
            package.cluster(features, engine=bundle.path, run_dir=tmp_path / name)
        opened = package.data.features.open_features(features, bundle.feature_dim)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepared = prepare(opened, bundle, Options())
        assert len(seen) > 10
        assert seen <= {*places_of_clusters(prepared.system, prepared.artifacts())}, name


def test_from_python_a_folder_of_somebodys_is_no_run_folder(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "links").write_bytes(b"mine")
    features = np.fromfile(shelf.folder / "f.bin", "<f4").reshape(N, DIM)
    with pytest.raises(InputError, match=r"holds links, and no run\.json"):
        package.cluster(features, engine=shelf.engine, run_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"links": b"mine"}


@pytest.mark.parametrize("left", ["nothing", "lock", "half a record"])
def test_what_a_kill_leaves_at_the_very_start_is_ours(left: str, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "other"):
        record = (tmp_path / "other" / RECORD).read_bytes()
    folder = tmp_path / "run"
    folder.mkdir()
    if left != "nothing":
        (folder / LOCK).write_text("")
    if left == "half a record":
        (folder / f".{RECORD}.a1b2c3d4.part").write_bytes(record[: len(record) // 2])
    with RunFolder(folder):
        pass
    assert {path.name for path in folder.iterdir()} == {RECORD, LOCK}


@pytest.mark.parametrize("recorded", ["artifacts alone", "names, too"])
def test_the_run_folder_of_an_earlier_version_is_begun_anew(
    recorded: str, shelf: Shelf, tmp_path: Path
) -> None:
    """Its ``knn.npz`` and what it had not finished go, with a sentence; of the user's own files none does."""
    run = tmp_path / "run"
    finished = {
        "knn.npz": {"key": "a", "bytes": 4, "boot": ""},
        "tables": {"key": "b", "bytes": 4, "boot": "c"},
    }
    ours = ["knn.npz", "refined.npy.part", "tables.scratch", "summary.json"]
    old = {
        "format": "fcdeploy-run",
        "format_version": 1,
        "names": [*ours, RECORD, LOCK],
        "products": finished,
    }
    for name in ("refined.npy.part", "tables.scratch", "knn", "mine.part", "mine.scratch"):
        (run / name).mkdir(parents=True)
    (run / "refined.npy.part" / JOURNAL).write_text(f"{'0' * 64} - boot\n10\n")
    (run / "knn.npz").write_bytes(b"ours")
    (run / LOCK).touch()
    (run / "summary.json").write_text(json.dumps({"faces": 1, "clusters": 1, "stages": {}}))
    (run / RECORD).write_text(json.dumps({"products": finished} if recorded == "artifacts alone" else old))
    (run / "knn").rename(run / "photos")
    theirs = ("photos/a.npy", "mine.part/a", "mine.scratch/a", "mine.npz", "refined.npy", "notes.txt")
    for name in theirs:
        (run / name).write_bytes(b"theirs")
    with pytest.warns(
        FcdeployWarning, match="an earlier version of fcdeploy, .* all stages are computed again"
    ):
        labels = package.cluster(shelf.folder / "f.bin", engine=shelf.engine, run_dir=run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.array_equal(package.cluster(shelf.folder / "f.bin", engine=shelf.engine), labels)
    assert all((run / name).read_bytes() == b"theirs" for name in theirs)
    left = {path.name for path in run.iterdir()} - {name.split("/")[0] for name in theirs}
    assert left == {*CASES[0].kept, "labels", "vectors", "state.json", RECORD, LOCK, SUMMARY}
    assert json.loads((run / RECORD).read_text())["format_version"] == 2


def test_a_default_output_is_not_written_over(
    shelf: Shelf, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pred_labels.meta").write_text("mine")
    line = ("cluster", shelf.folder / "f.bin", "--engine", shelf.engine, "--quiet")
    code, said = command(*line)
    assert (code, "-o pred_labels.meta" in said) == (2, True)
    assert (tmp_path / "pred_labels.meta").read_text() == "mine"
    assert command(*line, "-o", "pred_labels.meta")[0] == 0


def test_a_file_written_while_a_folder_is_replaced_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the second names and the exchange: a new one, one changed in place, one saved by a rename."""
    from fcdeploy.data import atomic

    def ours(folder: Path) -> set[str]:
        return {"marker"}

    place = tmp_path / "folder"
    with atomic_folder(place, ours) as folder:
        (folder / "marker").write_text("old")
    for name in ("in place", "renamed"):
        (place / name).write_text("before")
    straight = atomic.exchange

    def meanwhile(first: Path, second: Path) -> None:
        (place / "new").write_text("new")
        (place / "in place").write_text("after")
        (place / "x").write_text("after")
        (place / "x").rename(place / "renamed")
        straight(first, second)

    monkeypatch.setattr(atomic, "exchange", meanwhile)
    with atomic_folder(place, ours) as folder:
        (folder / "marker").write_text("new")
    assert {path.name: path.read_text() for path in place.iterdir()} == {
        "marker": "new",
        "new": "new",
        "in place": "after",
        "renamed": "after",
    }
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_without_hard_links_files_are_taken_along_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **named: Any) -> None:
        raise PermissionError(1, "Operation not permitted", str(args[0]))

    monkeypatch.setattr(os, "link", refuse)
    for text in ("old", "new"):
        with atomic_folder(tmp_path / "folder", lambda folder: {"marker"}) as folder:
            (folder / "marker").write_text(text)
        (tmp_path / "folder/mine").write_text("mine") if text == "old" else None
    assert (tmp_path / "folder/mine").read_text() == "mine"
    assert (tmp_path / "folder/marker").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
