"""The wheel, installed into an empty environment, does the main job: ``make test-wheel``."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fcdeploy

pytestmark = pytest.mark.wheel
ROOT = Path(__file__).parent.parent
DEMO = ROOT / "benchmarks/demo"


def run(*command: object, cwd: Path) -> str:
    # No PYTHONPATH or PIP_ variable of the surroundings may stand in for what the wheel lacks.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "PIP_"))}
    done = subprocess.run([str(word) for word in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel, made from the source distribution, as ``python -m build`` does it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    (made,) = folder.glob("*.whl")
    assert list(folder.glob("*.tar.gz"))
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory) -> Path:
    """The folder of an environment that holds the wheel with its extra ``cpu`` and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", folder / "venv", cwd=folder)
    pip = [folder / "venv/bin/python", "-m", "pip", "install", "--quiet"]
    run(*pip, "--constraint", ROOT / "constraints.txt", f"{wheel}[cpu]", cwd=folder)
    return folder


def test_the_wheel_holds_the_package_with_all_its_files_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"fcdeploy", f"fcdeploy-{fcdeploy.__version__}.dist-info"}
    tracked = run("git", "ls-files", "fcdeploy", cwd=ROOT).split()
    assert set(tracked) <= names


def test_it_clusters_the_demo_without_anything_that_only_exports_need(
    installed: Path, tmp_path: Path
) -> None:
    fcdeploy_there, python = installed / "venv/bin/fcdeploy", installed / "venv/bin/python"
    assert fcdeploy.__version__ in run(fcdeploy_there, "--version", cwd=tmp_path)
    packages = {
        entry["name"].lower()
        for entry in json.loads(run(python, "-m", "pip", "list", "--format", "json", cwd=tmp_path))
    }
    assert not packages & {"torch", "onnx", "onnxscript", "scipy", "matplotlib", "pytest"}
    run(python, "-m", "pip", "check", cwd=tmp_path)
    run(
        python, "-c", f"import fcdeploy; assert not fcdeploy.__file__.startswith({str(ROOT)!r})", cwd=tmp_path
    )
    recipe = run(fcdeploy_there, "recipe", "pse-gcn-demo", cwd=tmp_path)
    assert recipe == (ROOT / "export/pse-gcn-demo.toml").read_text()

    bundle = tmp_path / "pse.onnx"
    exporting = [sys.executable, "-m", "fcdeploy", "export", "--quiet", "--ckpt", DEMO / "pse-gcn-128.pth"]
    run(*exporting, "--recipe", ROOT / "export/pse-gcn-demo.toml", "-o", bundle, cwd=ROOT)
    run(fcdeploy_there, "cluster", DEMO / "features.bin", "--engine", bundle, "-o", "l.meta", cwd=tmp_path)
    quality = json.loads(
        run(fcdeploy_there, "evaluate", "l.meta", DEMO / "labels.meta", "--json", cwd=tmp_path)
    )
    assert round(quality["pairwise"]["f"], 3) == 0.857
    assert round(quality["bcubed"]["f"], 3) == 0.866


def test_the_command_that_messages_give_brings_an_extra(installed: Path, tmp_path: Path) -> None:
    """`pip install 'fcdeploy[embed]'` with the package installed takes what is there and adds what the extra needs."""
    python = installed / "venv/bin/python"
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    run(*pip, "fcdeploy[embed]", cwd=tmp_path)
    assert run(python, "-c", "import PIL; print(PIL.__version__)", cwd=tmp_path).strip()
