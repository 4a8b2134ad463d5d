"""The commands of the pages for newcomers, run as they are written, on the demo's faces."""

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from test_readme import FENCE, ROOT

pytestmark = pytest.mark.slow
DEMO = ROOT / "benchmarks/demo"


def blocks(page: str, language: str) -> list[str]:
    """Return the code of a page in a language, block by block."""
    found = [
        block for block in FENCE.findall((ROOT / page).read_text()) if block.startswith(f"```{language}\n")
    ]
    return [block.partition("\n")[2].removesuffix("```") for block in found]


def commands(page: str) -> list[list[str]]:
    """Return the words behind ``fcdeploy`` of each of a page's command lines."""
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("fcdeploy ")]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that looks like a clone, as far as the pages need it."""
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    return tmp_path


def done(fcdeploy: Command, words: list[str]) -> str:
    outcome = fcdeploy(*words)
    assert outcome.code == 0, f"{words}: {outcome.err}"
    return outcome.out


def test_first_clusters_are_those_that_the_page_promises(fcdeploy: Command, clone: Path) -> None:
    lines = commands("docs/tutorials/first-clusters.md")
    assert [line[0] for line in lines[:4]] == ["export", "cluster", "cluster", "evaluate"]
    for line in lines:
        done(fcdeploy, line)
    measures = json.loads(done(fcdeploy, [*lines[3], "--json"]))
    text = (ROOT / "docs/tutorials/first-clusters.md").read_text()
    said = re.search(r"Pairwise F is (0\.\d+) and BCubed F (0\.\d+)", text)
    assert said
    found = (measures["pairwise"]["f"], measures["bcubed"]["f"])
    assert found == pytest.approx([float(one) for one in said.groups()], abs=0.003)
    before = [line.split() for line in Path("pred_labels.meta").read_text().splitlines()]
    after = [line.split() for line in Path("purer.meta").read_text().splitlines()]
    assert len({*map(tuple, after)}) > len({*map(tuple, before)}), "a higher threshold gives more clusters"
    for code in blocks("docs/tutorials/first-clusters.md", "python"):
        exec(code, {})


def test_lists_of_one_s_own_give_the_clusters_of_the_search(fcdeploy: Command, clone: Path) -> None:
    """The page's Python makes lists of 80 for an engine of k = 40; two equal similarities may change sides."""
    done(fcdeploy, commands("docs/tutorials/first-clusters.md")[0])
    features = np.fromfile(DEMO / "features.bin", "<f4").reshape(-1, 128)
    np.save("features.npy", features)
    code = blocks("docs/how-to/own-neighbor-lists.md", "python")
    exec(code[0], {})
    line = next(line for line in commands("docs/how-to/own-neighbor-lists.md") if "lists.npz" in line)
    done(fcdeploy, line)
    done(fcdeploy, ["cluster", "features.npy", "--engine", "pse.onnx", "-o", "searched.meta"])
    measures = json.loads(done(fcdeploy, ["evaluate", "pred_labels.meta", "searched.meta", "--json"]))
    assert measures["pairwise"]["f"] > 0.99
    exec(code[1], {})


def test_the_three_thresholds_of_the_page_give_ever_more_clusters(fcdeploy: Command, clone: Path) -> None:
    done(fcdeploy, commands("docs/tutorials/first-clusters.md")[0])
    Path("features.bin").symlink_to(DEMO / "features.bin")
    lines = [line for line in commands("docs/how-to/threshold.md") if line[0] == "cluster"]
    counts = [json.loads(done(fcdeploy, [*line, "--json"]))["clusters"] for line in lines]
    assert len(counts) == 3
    assert counts == sorted(set(counts))
