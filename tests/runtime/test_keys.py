"""Keys follow the code, wherever it lies and in whichever form."""

import compileall
import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import fcdeploy
from fcdeploy.run.keys import FOLDERS, code_digest

PACKAGE = Path(fcdeploy.__file__).parent
CODE = "import fcdeploy; from fcdeploy.run.keys import code_digest; print(code_digest(), fcdeploy.__file__)"


def digest_in(place: Path) -> str:
    """The digest of the package that lies in a folder or an archive, asked in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", CODE]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=place.parent)
    digest, file = done.stdout.split()
    assert file.startswith(str(place))
    return digest


@pytest.fixture
def copy(tmp_path):
    """The package's code in another place."""
    place = tmp_path / "copy"
    shutil.copytree(PACKAGE, place / "fcdeploy", ignore=shutil.ignore_patterns("__pycache__"))
    return place


def test_the_same_code_elsewhere_or_in_an_archive_has_the_same_digest(copy, tmp_path):
    assert digest_in(copy) == code_digest()
    archive = tmp_path / "package.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for file in (copy / "fcdeploy").rglob("*"):
            zipped.write(file, file.relative_to(copy))
    assert digest_in(archive) == code_digest()


def test_one_line_of_a_stage_changes_the_digest(copy):
    file = copy / "fcdeploy/clustering/components.py"
    file.write_text(file.read_text() + "\nOTHER = 1\n")
    assert digest_in(copy) != code_digest()
    shutil.copyfile(PACKAGE / "clustering/components.py", file)
    assert digest_in(copy) == code_digest()
    (copy / "fcdeploy/cli/doctor.py").write_text("")  # no stage
    assert digest_in(copy) == code_digest()


def test_compiled_files_stand_for_sources_that_are_not_installed(copy):
    compileall.compile_dir(copy, legacy=True, quiet=1, stripdir=str(copy))
    for file in copy.rglob("*.py"):
        file.unlink()
    first = digest_in(copy)
    assert digest_in(copy) == first != code_digest()
    compiled = copy / "fcdeploy/graph/knn.pyc"
    compiled.write_bytes(compiled.read_bytes() + b"\0")
    assert digest_in(copy) != first


def test_it_takes_less_than_a_blink_and_covers_every_folder():
    assert all((PACKAGE / folder).is_dir() for folder in FOLDERS)
    code_digest.__wrapped__()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        code_digest.__wrapped__()
        seconds.append(time.perf_counter() - started)
    assert min(seconds) < 0.1
