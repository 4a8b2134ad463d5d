"""What comes from others: packages are pinned, checkpoints are loaded as weights only, and the metadata says so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
from lowest import lowest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Installed from elsewhere than the constraints: GPU builds, and TensorRT from NVIDIA's own index.
NOT_PINNED = {"cupy-cuda12x", "cupy-cuda13x", "onnxruntime-gpu", "tensorrt"}


def name_of(requirement: str) -> str:
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match
    return match[0].lower().replace("_", "-")


def required() -> set[str]:
    extras = [entry for entries in PROJECT["optional-dependencies"].values() for entry in entries]
    return {name_of(entry) for entry in [*PROJECT["dependencies"], *extras]}


def pinned() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, equals, version = line.partition("==")
            assert equals, f"{line}: no exact version"
            assert re.fullmatch(r"[0-9][0-9a-z.+]*", version), line
            found[name_of(name)] = version
    return found


def test_every_package_that_the_project_names_is_pinned() -> None:
    assert required() - NOT_PINNED <= pinned().keys()
    assert not NOT_PINNED & pinned().keys()


def test_pinned_versions_are_those_that_the_project_allows() -> None:
    packaging = pytest.importorskip("packaging.requirements")
    versions = pinned()
    entries = [entry for entries in PROJECT["optional-dependencies"].values() for entry in entries]
    for entry in [*PROJECT["dependencies"], *entries]:
        requirement = packaging.Requirement(entry)
        if name_of(entry) not in NOT_PINNED:
            assert requirement.specifier.contains(versions[name_of(entry)]), entry
        assert requirement.url is None, f"{entry}: from an address, which no index checks"


def imported(folder: Path) -> set[str]:
    """Return the top names of all modules that Python files below ``folder`` import, or load by name."""
    names = set()
    for path in folder.rglob("*.py"):
        if path.name == "doctor.py":  # names packages without using them
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names.add(node.module)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)  # importlib.import_module("tensorrt_rtx")
    return {name.partition(".")[0] for name in names}


def test_every_package_that_users_install_is_imported() -> None:
    modules = {"faiss-cpu": "faiss", "onnxruntime-gpu": "onnxruntime", "pillow": "PIL"}
    modules |= {"cupy-cuda12x": "cupy", "cupy-cuda13x": "cupy"}
    modules |= {"tensorrt-rtx": "tensorrt_rtx", "pillow-heif": "pillow_heif"}
    extras = dict(PROJECT["optional-dependencies"])
    for ours in ("browser", "dev", "docs"):
        del extras[ours]
    entries = [*PROJECT["dependencies"], *(entry for entries in extras.values() for entry in entries)]
    unused = {name_of(entry) for entry in entries} - {
        name for name in map(name_of, entries) if modules.get(name, name) in imported(ROOT / "fcdeploy")
    }
    assert not unused


def test_lower_bounds_are_versions_that_can_be_asked_for() -> None:
    """As ``make test-lowest`` does; every requirement has one."""
    assert lowest()["numpy"] == "2.0"
    assert lowest().keys() == {name_of(entry) for entry in lowest()} == required() - NOT_PINNED


def calls(tree: ast.AST, name: str) -> list[ast.Call]:
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in (name, name.rpartition(".")[2])
    ]


def test_checkpoints_are_loaded_as_weights_only_and_nothing_is_unpickled() -> None:
    loads = 0
    for path in [*(ROOT / "fcdeploy").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]:
        tree = ast.parse(path.read_text())
        for call in calls(tree, "torch.load"):
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert words.get("weights_only") == "True", f"{path}:{call.lineno}"
            loads += 1
        for call in calls(tree, "np.load"):
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert words.get("allow_pickle", "False") == "False", f"{path}:{call.lineno}"
        for name in ("eval", "exec", "pickle.load", "pickle.loads", "yaml.load", "os.system", "joblib.load"):
            found = [call for call in calls(tree, name) if ast.unparse(call.func) == name]
            assert not found, f"{path}:{found[0].lineno}: {name}"
        for call in ast.walk(tree):
            if isinstance(call, ast.Call):
                assert all(word.arg != "shell" for word in call.keywords), f"{path}:{call.lineno}"
    assert loads >= 1


def test_the_metadata_names_licence_and_readers_by_standard_keys() -> None:
    """As PEP 639 has it, so that a bill of materials can be made of what is installed."""
    assert PROJECT["license"] == "Apache-2.0"
    assert all((ROOT / name).is_file() for name in PROJECT["license-files"])
    assert not any(entry.startswith("License ::") for entry in PROJECT["classifiers"])
    assert PROJECT["requires-python"]


def test_security_says_what_is_trusted() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    for word in ("checkpoint", "ONNX", "plan", "report", "pip-audit"):
        assert word in text


def test_every_promise_names_a_test_that_exists() -> None:
    """docs/reference/guarantees.md: file::test, each of which is there."""
    text = (ROOT / "docs/reference/guarantees.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for path, test in named:
        source = (ROOT / path).read_text()
        assert re.search(rf"^\s*def {test}\(", source, re.MULTILINE), f"{path}::{test}"
