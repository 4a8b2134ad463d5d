"""What comes from others: packages are pinned, checkpoints are loaded as weights only, and the metadata says so."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Installed from elsewhere than the constraints: GPU builds, and TensorRT from NVIDIA's own index.
NOT_PINNED = {"cupy-cuda12x", "faiss-gpu", "onnxruntime-gpu", "tensorrt"}


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
    assert loads >= 2


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
    """docs/guarantees.md: file::test, each of which is there."""
    text = (ROOT / "docs/guarantees.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for path, test in named:
        source = (ROOT / path).read_text()
        assert re.search(rf"^\s*def {test}\(", source, re.MULTILINE), f"{path}::{test}"
