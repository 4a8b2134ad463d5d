"""Synthetic faces and the golden checkpoint's bundle; runs in this process and in others."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dying_run import KEPT
from run_folders import bytes_of
from stored_runs import bundle_of, golden_faces
from system_cases import Case

import fcdeploy
from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import Result, run_clustering

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import faces as synthetic

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def bundle(pse_bundle: Bundle) -> Path:
    """The goldens' checkpoint, exported; shared by all tests and not to be written to."""
    return pse_bundle.path


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A file of n synthetic faces, d = 32; shared, and not to be written to."""
    folder = tmp_path_factory.mktemp("faces")

    def features(n: int) -> Path:
        path = folder / f"{n}.bin"
        if not path.exists():
            synthetic.make_faces(n, 32, 1, 30.0)[0].astype("<f4").tofile(path)
        return path

    return features


@pytest.fixture
def cluster(bundle: Path) -> Callable[..., Result]:
    """Cluster features (n, 32) or a file of them in this process; fields of Options by name."""

    def run(features: Any, run_dir: Path | None = None, engine: Path | None = None, **options: Any) -> Result:
        from fcdeploy.data.features import features_from_array, open_features

        opened = open_features(features, 32) if isinstance(features, Path) else features_from_array(features)
        return run_clustering(opened, read_bundle(engine or bundle), Options(**options), run_dir=run_dir)

    return run


@dataclass
class Command:
    """``fcdeploy cluster`` in a process of its own, which may die."""

    bundle: Path

    def line(
        self, features: Path, run_dir: Path, output: Path, *options: object, moment: int = 0
    ) -> list[str]:
        args = ("cluster", features, "--engine", self.bundle, "--run-dir", run_dir, "-o", output, *options)
        return [sys.executable, str(HERE / "dying_run.py"), str(moment), *map(str, args)]

    def start(self, *args: Any, **moment: int) -> "subprocess.Popen[str]":
        """Start it and return when it has its run folder."""
        process = subprocess.Popen(
            self.line(*args, **moment), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n", process.communicate()
        return process

    def finished(self, *args: Any, **moment: int) -> "subprocess.CompletedProcess[str]":
        """Run it to its end, whatever that is."""
        return subprocess.run(self.line(*args, **moment), capture_output=True, text=True, timeout=300)

    def moments(self, *args: Any) -> list[str]:
        """Run it undisturbed and return the names of all its moments."""
        done = self.finished(*args)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def command(bundle: Path) -> Command:
    return Command(bundle)


@dataclass(frozen=True)
class Undisturbed:
    """What a run should end with: bytes of every result by name, labels among them, and the moments it had."""

    features: Path
    options: tuple[str, ...]
    results: dict[str, bytes]
    moments: list[str]
    seconds: float


@pytest.fixture(scope="session")
def undisturbed(
    command: Command, many: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Undisturbed]:
    """Run n faces with options to the end, once, with small blocks."""
    known: dict[tuple[int, tuple[str, ...]], Undisturbed] = {}

    def run(n: int, *options: str) -> Undisturbed:
        if (n, options) not in known:
            folder = tmp_path_factory.mktemp("undisturbed")
            moments = command.moments(many(n), folder / "run", folder / "pred.meta", "--quiet", *options)
            results = {name: bytes_of(folder / "run" / name) for name in KEPT}
            results["pred.meta"] = (folder / "pred.meta").read_bytes()
            stages = json.loads((folder / "run/summary.json").read_text())["stages"]
            seconds = sum(stage["seconds"] for stage in stages.values())
            known[n, options] = Undisturbed(many(n), options, results, moments, seconds)
        return known[n, options]

    return run


@pytest.fixture(scope="session")
def faces_in_parts(golden: Path) -> tuple[np.ndarray, np.ndarray]:
    """Golden faces, and which of them are new to the runs of ``stored_run``."""
    return golden_faces(golden)


@pytest.fixture(scope="session")
def stored_run(
    exported: Any, cut_bundle: Any, faces_in_parts: Any, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Case], tuple[Path, Path, np.ndarray]]:
    """Give the engine, run folder and labels of a case over the old faces; not to be written to."""
    made: dict[str, tuple[Path, Path, np.ndarray]] = {}

    def run(case: Case) -> tuple[Path, Path, np.ndarray]:
        if str(case) not in made:
            folder = tmp_path_factory.mktemp("stored")
            engine = bundle_of(case, exported, cut_bundle, folder)
            rows, new = faces_in_parts
            labels = fcdeploy.cluster(rows[~new], engine=engine, run_dir=folder / "run")
            made[str(case)] = engine, folder / "run", labels
        return made[str(case)]

    return run
