"""Every command and every piece of Python on every page, run as written on small files under the names of the pages.

Weights are the goldens', 32-d; a recipe for other widths is replaced by theirs, and trainings take one step.
"""

import re
import shlex
import shutil
import subprocess
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import Command
from embedders import pictures_of, write_embedder
from nsr_case import CHAIN
from system_cases import CASES
from test_readme import FENCE, PAGES, ROOT

pytestmark = pytest.mark.slow
DATA = ROOT / "tests/golden/dev/data"
PHOTOS = ROOT / "benchmarks/photos"
# What does not run here, and why; each has tests of its own.
ELSEWHERE = {
    r"--device cuda|--engine pse\.plan": "needs a GPU",
    r"--ray auto": "needs a cluster: tests/machines",
    r"^fcdeploy review": "serves until it is interrupted: tests/report",
    r"--merges ask": "asks at a terminal: tests/cli",
}
RUN_ELSEWHERE = {"first-clusters.md"}  # at full size: tests/test_tutorial.py
FEW_STEPS = "--steps 1 --batch 2 --threads 1 --quiet"
# Before the first line of a page: what the reader has done on another one.
BEFORE = {
    "triton.md": ["fcdeploy cluster features.bin --engine pse.onnx --run-dir run -o labels.meta"],
    "files.md": ["fcdeploy cluster features.bin --engine pse.onnx --run-dir run -o labels.meta"],
    "biometric-data.md": ["fcdeploy cluster features.bin --engine pse.onnx --run-dir run -o labels.meta"],
}
WITH_CODE = [page for page in PAGES if page.name != "cli.md"]


def lines_of(page: Path) -> list[str]:
    """Return the lines of fcdeploy in the page's code for the shell."""
    code = [block for block in FENCE.findall(page.read_text()) if block.startswith("```sh\n")]
    return [
        line.strip() for block in code for line in block.splitlines() if line.strip().startswith("fcdeploy ")
    ]


def python_of(page: Path) -> list[str]:
    """Return the pieces of Python of a page."""
    code = [block for block in FENCE.findall(page.read_text()) if block.startswith("```python\n")]
    return [block.partition("\n")[2].removesuffix("```") for block in code]


def why_elsewhere(line: str) -> str | None:
    return next((why for pattern, why in ELSEWHERE.items() if re.search(pattern, line)), None)


@pytest.fixture
def world(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Callable, checkpoint: Callable
) -> Path:
    """A folder with everything that the page names, in its words."""
    pytest.importorskip("PIL")
    from PIL import Image

    monkeypatch.chdir(tmp_path)
    labels = DATA / "labels.meta"
    (tmp_path / "data/features").mkdir(parents=True)
    (tmp_path / "data/labels").mkdir()
    (tmp_path / "data/knns/part1_test").mkdir(parents=True)
    for name in ("features.bin", "f.bin", "val.bin", "data/features/part1_test.bin"):
        shutil.copy(DATA / "features.bin", name)
    for name in ("truth.meta", "f.meta", "val.meta", "data/labels/part1_test.meta"):
        shutil.copy(labels, name)
    features = np.fromfile(DATA / "features.bin", "<f4").reshape(-1, 32)
    np.save("features.npy", features)
    np.save("512.fea.npy", features)
    np.save("512.labels.npy", np.loadtxt(labels, np.int64))
    (features[:30] + 0.01 * np.random.default_rng(1).standard_normal((30, 32))).astype("<f4").tofile(
        "new.bin"
    )
    for name in ("data/knns/part1_test/faiss_k_80.npz", "faiss_k_80.npz"):
        shutil.copy(DATA / "faiss_k_20.npz", name)
    np.savez("lists.npz", ids=np.load(DATA / "faiss_k_20.npz")["data"][:, 0].astype(np.int32))
    np.save("knn.graph.512.bf.npy", np.load(DATA / "faiss_k_20.npz")["data"][:, 0].astype(np.int64))
    np.save("reranking_knn_part1_test.npy", np.load(DATA.parent / "pse/reranking.npz")["knn"])
    Path("pairs.csv").write_text("a,b,answer\n0,1,same\n")
    Path("photos.txt").write_text("".join(f"{number}.jpg\n" for number in range(len(features))))
    Path("decisions.csv").write_text("a,b,answer\n0,6,same\n")
    Path("ids.txt").write_text("3\n4\n")
    np.zeros((500, 32), "<f4").tofile("later.bin")

    pictures = pictures_of(60)
    for number, picture in enumerate(pictures):
        Path(f"people/{number % 6}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(f"people/{number % 6}/{number}.png")
    Path("faces.txt").write_text("".join(f"people/{number % 6}/{number}.png\n" for number in range(60)))
    write_embedder(tmp_path / "embedder.onnx")
    shutil.copytree(PHOTOS / "album", "photos")
    shutil.copy(PHOTOS / "yunet.onnx", "yunet.onnx")
    for name in ("benchmarks", "engines", "export"):
        Path(name).symlink_to(ROOT / name)

    text = "\n".join([page.read_text(), *BEFORE.get(page.name, [])])
    for case in CASES:
        if not case.networks and f"{case.name}.onnx" in text:
            shutil.copytree(exported(case).path, f"{case.name}.onnx")
    if "pse.onnx" in text:
        shutil.copytree(exported(CASES[0]).path, "pse.onnx")
    if "lce-pcenet.onnx" in text:
        shutil.copytree(exported(lce_pcenet()).path, "lce-pcenet.onnx")
    if "-o saves/checkpoint.pth" not in text:  # else the page trains it
        Path("saves").mkdir()
        shutil.copy(checkpoint("pse/checkpoint.pth"), "saves/checkpoint.pth")
        Path("saves/checkpoint.toml").write_text(golden_recipe("pse-gcn"))
    return tmp_path


def lce_pcenet() -> SimpleNamespace:
    recipe = "[pairs]\nk = 16\n"
    return SimpleNamespace(name="nsr-fc", checkpoints=CHAIN.checkpoints[2:], recipe=recipe)


def golden_recipe(system: str) -> str:
    case = next(case for case in CASES if case.name == system)
    return f'system = "{system}"\nfeature_dim = 32\n\n{case.recipe}'


def system_of(recipe: str) -> str:
    """Return the system of a built-in recipe."""
    from fcdeploy.deploy.recipe import load_recipe

    return load_recipe(recipe).system


def for_goldens(words: list[str], checkpoint: Callable) -> list[str]:
    """Put golden checkpoints under the names of a line that exports, and their recipe in place of a built-in one."""
    from fcdeploy.deploy.recipe import built_in_names

    at = words.index("--recipe") + 1 if "--recipe" in words else 0
    if not at or words[at] not in built_in_names():
        return words
    name = words[at]
    system = system_of(name)
    names = [words[i + 1] for i, word in enumerate(words) if word == "--ckpt"]
    recipe = golden_recipe(system)
    checkpoints = next(case for case in CASES if case.name == system).checkpoints
    if name.startswith("lce-pcenet"):
        checkpoints, recipe = (
            lce_pcenet().checkpoints,
            f'system = "nsr-fc"\nfeature_dim = 32\n\n{lce_pcenet().recipe}',
        )
    if words[0] == "export":
        for place, golden in zip(names, checkpoints, strict=False):
            Path(place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(checkpoint(golden), place)
    Path(f"golden-{name}.toml").write_text(recipe)
    return [*words[:at], f"golden-{name}.toml", *words[at + 1 :]]


def run(line: str, fcdeploy: Command, checkpoint: Callable) -> None:
    """Run a line; one with a pipe or a file behind it as the shell would."""
    if "|" in line or " > " in line:
        head, _, rest = line.partition(" | ") if " | " in line else line.partition(" > ")
        done = fcdeploy(*shlex.split(head)[1:])
        assert done.code == 0, f"{line}: {done.err}"
        shell = rest if " | " in line else f"cat > {rest}"
        subprocess.run(["bash", "-c", shell], input=done.out, text=True, check=True)
        return
    line = line.replace("SYSTEM", "gcn-d")  # the one whose bundle the page exports next
    words = for_goldens(shlex.split(line, comments=True)[1:], checkpoint)
    if words[0] == "train":
        words += shlex.split(FEW_STEPS)
        words += ["--minutes", "0.01"] if "--target" in words else []
        words += ["--set", "nodes=64"] if words[1] == "pse-gcn" else []
    if words[0] == "bench":
        words += ["--seconds", "0", "--faces", "0", "--nodes", "16"]
    if words[0] == "doctor":
        assert fcdeploy(*words).code in (0, 1), line
        return
    done = fcdeploy(*words)
    assert done.code == 0, f"{line}: {done.err}"
    if words[0] == "pairs":
        answer(Path(words[words.index("-o") + 1]))


def answer(pairs: Path) -> None:
    """Fill in the answers of pairs, by the truth."""
    truth = Path("truth.meta").read_text().split()
    head, *rows = [row.split(",") for row in pairs.read_text().splitlines()]
    at = head.index("answer")
    for row in rows:
        row[at] = (
            "same" if truth[int(row[head.index("a")])] == truth[int(row[head.index("b")])] else "different"
        )
    pairs.write_text("".join(",".join(row) + "\n" for row in [head, *rows]))


def has_code(page: Path) -> bool:
    return bool(python_of(page) or lines_of(page)) and page.name not in RUN_ELSEWHERE


@pytest.mark.parametrize("page", [page for page in WITH_CODE if has_code(page)], ids=lambda page: page.stem)
def test_every_line_of_a_page_runs(page: Path, world: Path, fcdeploy: Command, checkpoint: Callable) -> None:
    for name in ("onnxscript", "pyarrow", "jinja2", "tensorrt_rtx"):
        pytest.importorskip(name)
    for line in [*BEFORE.get(page.name, []), *lines_of(page)]:
        if why_elsewhere(line) is None:
            run(line, fcdeploy, checkpoint)
    import fcdeploy as module

    features = np.load("features.npy")
    names = {"np": np, "fcdeploy": module, "features": features, "embeddings": features[:5]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", module.FcdeployWarning)  # notes, e.g. on few faces
        for code in python_of(page):
            exec(code, names)


def test_what_runs_elsewhere_is_on_a_page() -> None:
    lines = [line for page in WITH_CODE for line in lines_of(page)]
    assert len(lines) > 80
    for pattern in ELSEWHERE:
        assert any(re.search(pattern, line) for line in lines), pattern
    left_out = [line for line in lines if why_elsewhere(line)]
    assert len(left_out) < len(lines) / 5
