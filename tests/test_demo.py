"""The pages' own commands on the demo's faces end in the figures that the demo's card promises."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from test_readme import FENCE, ROOT

from fcdeploy.data.features import open_features
from fcdeploy.data.labels import read_labels

DEMO = ROOT / "benchmarks/demo"
LISTED = re.compile(r"^  \| demo, 2,670 .*?\| (0\.\d+) / (0\.\d+) \|", re.MULTILINE)


def promised() -> list[tuple[float, float]]:
    """Pairwise F and BCubed F of the demo's two systems, as their card has them."""
    return [(float(one), float(other)) for one, other in LISTED.findall((DEMO / "README.md").read_text())]


def sequence(page: str, *verbs: str) -> list[str]:
    """Return the first lines of a page that follow each other in a block and call these verbs."""
    for block in FENCE.findall((ROOT / page).read_text()):
        lines = [line for line in block.splitlines() if line.startswith("fcdeploy ")]
        for at in range(len(lines)):
            part = lines[at : at + len(verbs)]
            if tuple(line.split()[1] for line in part) == verbs:
                return part
    raise AssertionError(f"{page}: no commands {', '.join(verbs)} one after the other")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the demo's files under the names that the pages use."""
    monkeypatch.chdir(tmp_path)
    for name in ("features.bin", "val.bin"):
        (tmp_path / name).symlink_to(DEMO / "features.bin")
    for name in ("truth.meta", "val.meta"):
        (tmp_path / name).symlink_to(DEMO / "labels.meta")
    return tmp_path


def leave(checkpoint: Path, weights: str, recipe: str) -> None:
    """Leave weights and a recipe as train would."""
    checkpoint.parent.mkdir(exist_ok=True)
    shutil.copy(DEMO / weights, checkpoint)
    shutil.copy(ROOT / "export" / recipe, checkpoint.with_suffix(".toml"))


def run(fcdeploy: Command, lines: list[str], *more: str) -> str:
    """Run command lines as they are written, the last one with ``more`` behind it; return what the last one prints."""
    pytest.importorskip("onnxscript")
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        done = fcdeploy(*words, *(more if line == lines[-1] else ()))
        assert done.code == 0, done.err
    return done.out


def figures(text: str) -> tuple[float, float]:
    measures = json.loads(text)
    return measures["pairwise"]["f"], measures["bcubed"]["f"]


def test_the_card_promises_what_the_pages_say() -> None:
    assert promised() == [(0.857, 0.866), (0.888, 0.889)]


def test_readme_s_export_cluster_evaluate_ends_in_the_promised_figures(fcdeploy: Command, here: Path) -> None:
    """With the recipe beside the checkpoint, as `fcdeploy train` writes it; with the published settings F is 0.145."""
    leave(here / "saves/checkpoint.pth", "pse-gcn-128.pth", "pse-gcn-demo.toml")
    text = run(fcdeploy, sequence("README.md", "export", "cluster", "evaluate"), "--json")
    assert figures(text) == pytest.approx(promised()[0], abs=0.003)
    manifest = json.loads((here / "pse.onnx/manifest.json").read_text())
    assert manifest["recipe_from"] == {"source": "beside the checkpoint", "files": ["checkpoint.toml"]}


@pytest.mark.slow
def test_the_training_page_s_pair_networks_end_in_the_promised_figures(fcdeploy: Command, here: Path) -> None:
    """The checkpoints are in half precision."""
    leave(here / "lce-pcenet/checkpoint-lce.pth", "lce-128.pth", "lce-pcenet-demo.toml")
    leave(here / "lce-pcenet/checkpoint-pce.pth", "pce-128.pth", "lce-pcenet-demo.toml")
    export = sequence("docs/how-to/train-each-system.md", "train", "export")[-1:]
    after = sequence("README.md", "cluster", "evaluate")
    text = run(
        fcdeploy, [*export, *(line.replace("pse.onnx", "lce-pcenet.onnx") for line in after)], "--json"
    )
    assert figures(text) == pytest.approx(promised()[1], abs=0.003)


VERBS = ("train", "export", "tune", "export")


@pytest.mark.slow
def test_train_export_tune_export_hands_each_recipe_to_the_next(fcdeploy: Command, here: Path) -> None:
    """Two steps on a part of the demo; what is pinned is whose settings end up in the engine."""
    faces = 500
    rows = np.fromfile(DEMO / "features.bin", "<f4").reshape(-1, 128)[:faces]
    truth = read_labels(DEMO / "labels.meta")[:faces]
    for name in ("f", "val"):
        (here / f"{name}.bin").unlink(missing_ok=True)
        (here / f"{name}.meta").unlink(missing_ok=True)
        rows.tofile(here / f"{name}.bin")
        (here / f"{name}.meta").write_text("".join(f"{label}\n" for label in truth))
    train, export, tune, again = sequence("docs/tutorials/training.md", *VERBS)
    few = "--recipe pse-gcn-demo --steps 2 --batch 2 --validation 0 --threads 1 --set nodes=64 --quiet"
    run(fcdeploy, [train], *few.split())
    for line, verb_recipe in ((export, "saves/checkpoint.toml"), (again, "tuned.toml")):
        run(fcdeploy, [line])
        manifest = json.loads((here / "pse.onnx/manifest.json").read_text())
        assert manifest["recipe"]["neighborhood"]["k"] == 40
        assert manifest["recipe_from"]["files"] == [Path(verb_recipe).name]
        if line == export:
            tuned = json.loads(run(fcdeploy, [tune], "--json"))
    assert manifest["recipe"]["links"]["tau"] == tuned["best"]["values"]["links.tau"]


@pytest.mark.slow
def test_the_training_page_s_whole_sequence_on_the_demo_is_no_worse_than_promised(
    fcdeploy: Command, here: Path
) -> None:
    """The trained weights are the demo's own; tuned on the very faces, F can only be higher."""
    leave(here / "saves/checkpoint.pth", "pse-gcn-128.pth", "pse-gcn-demo.toml")
    lines = sequence(
        "docs/tutorials/training.md", "train", "export", "tune", "export", "cluster", "evaluate"
    )[1:]
    assert figures(run(fcdeploy, lines, "--json"))[0] > promised()[0][0] - 0.001


def test_the_demo_is_what_its_card_says() -> None:
    truth = read_labels(DEMO / "labels.meta")
    sizes = np.bincount(np.unique(truth, return_inverse=True)[1])
    assert (len(truth), len(sizes)) == (2670, 360)
    assert open_features(DEMO / "features.bin", 128).n == 2670
