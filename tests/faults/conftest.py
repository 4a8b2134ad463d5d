"""Commands in processes that may be killed, and what each of them should leave when it is not."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from embedders import pictures_of, write_embedder
from killable import CLUSTERINGS, FACES, TRAININGS, Job, Server, Undisturbed, content_of, new_server
from PIL import Image
from system_cases import CASES


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = new_server(tmp_path_factory.mktemp("server"))
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(timeout=30)


@pytest.fixture(scope="session")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 faces of 15 people, 32-d."""
    rng = np.random.default_rng(0)
    people = np.repeat(rng.standard_normal((15, 32)), FACES // 15, axis=0)
    path = tmp_path_factory.mktemp("faces") / "features.bin"
    (people + 0.45 * rng.standard_normal(people.shape)).astype("<f4").tofile(path)
    (path.parent / "labels.meta").write_text("".join(f"{at // 10}\n" for at in range(FACES)))
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A list of 60 pictures, one of them missing, with an embedder of 32-d beside it."""
    folder = tmp_path_factory.mktemp("pictures")
    write_embedder(folder / "embedder.onnx")
    for at, picture in enumerate(pictures_of(60)):
        Image.fromarray(picture).save(folder / f"{at}.png")
    (folder / "faces.txt").write_text(
        "".join(f"{at}.png\n" if at != 17 else "none.png\n" for at in range(60))
    )
    return folder / "faces.txt"


@pytest.fixture(scope="session")
def jobs(
    exported: Any,
    cut_bundle: Any,
    checkpoint: Any,
    faces: Path,
    pictures: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Job]:
    """Give a job by its name, one of JOBS."""
    recipes = tmp_path_factory.mktemp("recipes")
    known: dict[str, Job] = {}

    def bundle_of(case: Any) -> Path:
        whole = exported(case)
        if not case.networks:
            return whole.path
        return cut_bundle(whole, case.networks, tmp_path_factory.mktemp("cut") / "bundle.onnx").path

    def clustering(name: str, what: str) -> Job:
        case, options = CLUSTERINGS[what]
        bundle = bundle_of(case)
        return Job(
            name,
            lambda folder: (
                *("cluster", faces, "--engine", bundle, "-o", folder / "pred.meta"),
                *("--run-dir", folder / "run", "--quiet", *options),
            ),
            ("pred.meta", *(f"run/{kept}" for kept in case.kept)),
            (
                "run/run.json",
                "run/run.lock",
                "run/summary.json",
                "run/state.json",
                "run/labels",
                "run/vectors",
            ),
        )

    def new(name: str) -> Job:
        verb, _, what = name.partition(" ")
        if name == "cluster pictures":
            bundle, model = bundle_of(CASES[0]), pictures.parent / "embedder.onnx"
            return Job(
                name,
                lambda folder: (
                    *("cluster", pictures, "--engine", bundle, "--embedder", model, "--on-bad", "skip"),
                    *("-o", folder / "clusters.txt", "--quiet"),
                ),
                ("clusters.txt", "clusters.bad.txt"),
            )
        if verb == "cluster":
            return clustering(name, what)
        if verb == "embed":
            return Job(
                name,
                lambda folder: (
                    *("embed", pictures, "--model", pictures.parent / "embedder.onnx", "--batch", 4),
                    *("--on-bad", "skip", "--quiet", "-o", folder / "features.npy"),
                ),
                ("features.npy", "features.npy.json", "features.bad.txt", "features.filelist.txt"),
            )
        if verb == "triton":
            bundle = bundle_of(next(case for case in CASES if case.name == "sepfl"))
            return Job(
                name,
                lambda folder: ("triton", bundle, "-o", folder / "models", "--quiet"),
                ("models",),
            )
        recipe = recipes / f"{name}.toml"
        case = next(case for case in CASES if case.name == what and not case.networks)
        if verb == "export":
            recipe.write_text(f'system = "{what}"\nfeature_dim = 32\n\n{case.recipe}')
            given = [word for each in case.checkpoints for word in ("--ckpt", checkpoint(each))]
            return Job(
                name,
                lambda folder: ("export", *given, "--recipe", recipe, "-o", folder / "b.onnx", "--quiet"),
                ("b.onnx",),
            )
        recipe.write_text(f'system = "{what}"\nfeature_dim = 32\n\n{TRAININGS[what]}')
        return Job(
            name,
            lambda folder: (
                *("train", what, "--features", faces, "--labels", faces.parent / "labels.meta"),
                *("--recipe", recipe, "-o", folder / "c.pth", "--steps", 6, "--batch", 8, "--threads", 1),
                *("--lr", 0.01, "--validation", 0.2, "--quiet"),
            ),
            ("c.pth", "c.toml", "c.run/best.pth"),
            ("c.run",),
            training=True,
        )

    def job(name: str) -> Job:
        if name not in known:
            known[name] = new(name)
        return known[name]

    return job


@pytest.fixture(scope="session")
def undisturbed(
    server: Server, jobs: Callable[[str], Job], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Undisturbed]:
    """Run a job to its end, twice: the first time may compile."""
    known: dict[str, Undisturbed] = {}

    def run(name: str) -> Undisturbed:
        if name in known:
            return known[name]
        job = jobs(name)
        for _ in range(2):
            folder = tmp_path_factory.mktemp("undisturbed")
            started = time.monotonic()
            done = server.run(*job.line(folder), training=job.training)
            seconds = time.monotonic() - started
            assert done.code == 0, done.err
            content = {result: content_of(folder / result) for result in job.results}
            assert None not in content.values(), [name for name, found in content.items() if found is None]
            if name in known:
                shutil.rmtree(folder)
                assert content == known[name].content, f"{name} gives something else each time"
            known[name] = Undisturbed(content, done.moments, seconds)  # type: ignore[arg-type]
        return known[name]

    return run
