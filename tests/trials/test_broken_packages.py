"""Packages that are installed and do not load are told with their reason; doctor survives them.

Reported at microsoft/onnxruntime (libstdc++: version GLIBCXX not found; DLL load failed), numpy/numpy#26710 ("A module
that was compiled using NumPy 1.x cannot be run in NumPy 2") and cupy/cupy#8260 (libcuda missing).
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fcdeploy.errors import BrokenDependencyError, FcdeployWarning, MissingDependencyError
from fcdeploy.packages import import_package, tell_if_broken

REASONS = {
    "raise ImportError('libstdc++.so.6: version GLIBCXX_3.4.99 not found')": "GLIBCXX_3.4.99",
    "raise OSError('libcuda.so.1: cannot open shared object file')": "libcuda.so.1",
    "raise ValueError('numpy.dtype size changed, may indicate binary incompatibility')": "numpy.dtype size changed",
    "raise AttributeError('_ARRAY_API not found')": "_ARRAY_API",
    "raise RuntimeError('module compiled against ABI version 0x1000009')": "0x1000009",
    "raise SystemError": "SystemError",
    "raise SystemExit('no license')": "no license",
    "import a_part_that_is_gone": "a_part_that_is_gone",
    "from . import _core": "_core",
    "def f(:": "invalid syntax",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "their_package", raising=False)

    def written(code: str | None) -> None:
        (tmp_path / "their_package").mkdir()
        if code is not None:
            (tmp_path / "their_package/__init__.py").write_text(code)

    return written


@pytest.mark.parametrize(("code", "reason"), REASONS.items())
def test_the_reason_is_told(package, code: str, reason: str) -> None:
    package(code)
    with pytest.raises(BrokenDependencyError) as broken:
        import_package("their_package", "Theirs", "pip install theirs")
    for words in ("Theirs is installed", reason, "`pip install theirs`"):
        assert words in str(broken.value)
    assert "not installed" not in str(broken.value)
    assert "\n" not in str(broken.value)


def test_what_an_uninstall_left_behind_is_no_package(package) -> None:
    package(None)
    with pytest.raises(BrokenDependencyError, match=r"only parts of it are in .*their_package"):
        import_package("their_package", "Theirs", "pip install theirs")


def test_what_is_not_installed_is_called_so() -> None:
    with pytest.raises(MissingDependencyError, match="Theirs is not installed") as missing:
        import_package("their_other_package.part", "Theirs", "pip install theirs")
    assert not isinstance(missing.value, BrokenDependencyError)
    tell_if_broken(missing.value, "it is left out")  # says nothing


def test_a_run_that_can_do_without_says_that_it_does(package) -> None:
    package("raise ImportError('libcuda.so.1')")
    with pytest.raises(BrokenDependencyError) as broken:
        import_package("their_package", "Theirs", "pip install theirs")
    with pytest.warns(FcdeployWarning, match=r"libcuda.so.1.*it is left out\.$"):
        tell_if_broken(broken.value, "it is left out")


@pytest.fixture
def run_with(tmp_path: Path):
    """Run a command where some packages are others, by name -> code."""

    def run(packages: dict[str, str], *args: object) -> subprocess.CompletedProcess[str]:
        for name, code in packages.items():
            (tmp_path / "path" / name).mkdir(parents=True)
            (tmp_path / "path" / name / "__init__.py").write_text(code)
        path = os.pathsep.join([str(tmp_path / "path"), *filter(None, [os.environ.get("PYTHONPATH")])])
        return subprocess.run(
            [sys.executable, "-m", "fcdeploy", *map(str, args)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
        )

    return run


def test_doctor_survives_whatever_a_package_does(run_with) -> None:
    """It raises, ends the process, prints, or dies of a signal."""
    kill = "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)"
    packages = {
        "faiss": "raise ImportError('libgomp.so.1: cannot open shared object file')",
        "onnxruntime": kill,
        "torch": "print('{}'); import os; os._exit(3)",
        "onnx": "raise SystemExit(0)",
        "onnxscript": "",
        "matplotlib": "raise KeyboardInterrupt",
        "tensorrt": "raise RuntimeError('no driver')",
        "tensorrt_rtx": "raise RuntimeError('no driver')",
        "PIL": "import numpy_of_another_age",
        "cupy": "raise ImportError('libcuda.so.1')",
    }
    done = run_with(packages, "doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    findings = json.loads(done.stdout)
    assert "libgomp.so.1" in findings["broken"]["faiss-cpu"]
    assert "signal 11" in findings["broken"]["onnxruntime"]
    assert "exit code 3" in findings["broken"]["torch"]
    assert "numpy_of_another_age" in findings["broken"]["pillow"]
    assert "no driver" in findings["tensorrt"]["tensorrt"]
    assert findings["abilities"]["cluster"]["missing"] == ["faiss-cpu", "onnxruntime"]
    assert {"torch", "onnx"} <= set(findings["abilities"]["export"]["missing"])


@pytest.mark.parametrize(
    ("installed", "package", "extra"),
    [
        ((), "cupy-cuda13x", "gpu"),
        (("cupy-cuda12x",), "cupy-cuda12x", "gpu-cuda12"),
        (("cupy-cuda12x", "cupy-cuda13x"), "cupy-cuda13x", "gpu"),
    ],
)
def test_doctor_looks_for_the_cupy_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, installed: tuple[str, ...], package: str, extra: str
) -> None:
    from fcdeploy.cli import doctor

    monkeypatch.setattr(doctor, "_version", lambda name: "1" if name in installed else None)
    known = {ability: (dict(needs), asked) for ability, needs, asked in doctor.abilities_here()}
    assert known["GPU"][0]["cupy"] == package
    assert known["GPU"][1] == extra
    assert known.keys() == {ability for ability, *_ in doctor.ABILITIES}


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_a_command_says_which_package_is_broken_and_why(run_with, name: str, tmp_path: Path) -> None:
    features = tmp_path / "features.bin"
    features.write_bytes(b"\0" * 4 * 32 * 50)
    done = run_with(
        {name: "raise ImportError('GLIBC_9.99 not found')"},
        "estimate",
        features,
        "--engine",
        tmp_path / "none.onnx",
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "GLIBC_9.99 not found" in done.stderr


@pytest.mark.parametrize(
    "importer",
    [
        "graph.faiss_library.import_faiss",
        "engine.onnxruntime.import_onnxruntime",
        "graph.cuda.import_cupy",
        "data.images.import_pillow",
        "deploy.onnx_from_checkpoint.import_export_extra",
    ],
)
def test_every_optional_package_is_imported_by_the_one_helper(
    importer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str) -> None:
        raise ImportError("GLIBC_9.99 not found")

    module, _, function = f"fcdeploy.{importer}".rpartition(".")
    call = getattr(importlib.import_module(module), function)
    monkeypatch.setattr("fcdeploy.packages.importlib.import_module", broken)
    with pytest.raises(BrokenDependencyError, match=r"GLIBC_9\.99"):
        call()
