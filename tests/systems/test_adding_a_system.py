"""A system is a folder and its name in the registry: the rest of the package knows none."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import fcdeploy
from fcdeploy.systems import NAMES

PACKAGE = Path(fcdeploy.__file__).parent
REGISTRY = "systems/__init__.py"
FOLDERS = {name: name.replace("-", "_") for name in NAMES}


def text_of_code(source: str) -> Iterator[tuple[int, str]]:
    """Give (line, text) of all names, imports and strings of a module; no comments, no docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = None  # a docstring: examples and papers
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) | ast.Name(id=text) | ast.Attribute(attr=text):
                yield node.lineno, text
            case ast.Import(names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)
            case ast.FunctionDef(name=text) | ast.ClassDef(name=text) | ast.arg(arg=text):
                yield node.lineno, text


def named(source: str, system: str) -> list[int]:
    """Return the lines of a module's code that name a system as code does, "l-gcn" or "l_gcn"."""
    spelled = re.compile(rf"(?<![a-z\d]){system.replace('-', '[-_]')}(?![a-z\d])", re.IGNORECASE)
    title = system.upper()  # as in the help of an option that one system has
    return [line for line, text in text_of_code(source) if spelled.search(text.replace(title, ""))]


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ('"""L-GCN, as in l-gcn."""\n# l-gcn\nx = 1\n', []),
        ('x = option("L-GCN only: hops.")\n', []),
        ('\nif system == "l-gcn":\n    pass\n', [2]),
        ('HABITS = {("l-gcn", "links"): 3}\n', [1]),
        ("from fcdeploy.systems.l_gcn import flow\n", [1]),
        ("def l_gcn_recipe(k: int) -> None: ...\n", [1]),
        ('name = "vel-gcn"\n', []),
    ],
)
def test_a_name_in_code_is_seen_and_one_in_words_is_not(source, lines):
    assert named(source, "l-gcn") == lines


@pytest.mark.parametrize("name", NAMES)
def test_no_code_outside_its_folder_and_the_registry_names_a_system(name):
    found = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if (place := path.relative_to(PACKAGE).as_posix()) != REGISTRY and not place.startswith("systems/")
        for line in named(path.read_text(), name)
    ]
    assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_a_system_s_files_all_lie_in_its_folder(name):
    """Its recipes, too; those of the folder are for it."""
    files = [
        path for path in PACKAGE.rglob("*") if re.fullmatch(rf"{FOLDERS[name]}\b.*|{name}\b.*", path.name)
    ]
    folder = PACKAGE / "systems" / FOLDERS[name]
    assert {path for path in files if "__pycache__" not in path.parts} - {folder} == set(
        (folder / "recipes").glob(f"{name}*")
    )
    recipes = list((folder / "recipes").glob("*.toml"))
    assert recipes
    assert all(f'system = "{name}"' in path.read_text() for path in recipes)


USE = """
import dataclasses
import numpy as np
from fcdeploy.deploy.recipe import built_in_names, load_recipe
from fcdeploy.systems import NAMES, get_system
from fcdeploy.systems.habits import Labelled
from fcdeploy.training.best_of import recipe_chosen
from fcdeploy.training.figures import Crowd, Dealt
from fcdeploy.training.suited import networks_of, suited_to

assert "new-gcn" in NAMES and "new-gcn-ms1m" in built_in_names()
system = get_system(load_recipe("new-gcn-ms1m").system)
assert system.name == "new-gcn", system.name
networks = networks_of(system, None)
labelled = Labelled(1000, 50, np.full(50, 20), 0.4, 0.4)
crowd = Crowd(1000, np.arange(20))
suited = suited_to(system, networks, labelled, Dealt(2, 0.3, crowd), None, 500)
assert list(suited.networks) == networks == ["links"]
assert recipe_chosen(system, suited, 32).neighborhood.hops[0] == 40
assert set(system.module("parity").PARITY) == set(system.networks) == set(system.module("network").NETWORKS)
"""


def test_a_folder_and_its_name_in_the_registry_are_all_that_a_system_takes(tmp_path):
    """L-GCN's folder under another name, in a copy of the package."""
    pytest.importorskip("torch")
    copied = tmp_path / "fcdeploy"
    shutil.copytree(PACKAGE, copied, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(copied / "systems/l_gcn", copied / "systems/new_gcn")
    for path in (copied / "systems/new_gcn").rglob("*.*"):
        path.write_text(re.sub(r"l([-_])gcn", r"new\1gcn", path.read_text()))
        path.rename(path.with_name(path.name.replace("l-gcn", "new-gcn")))
    registry = copied / REGISTRY
    registry.write_text(registry.read_text().replace("NAMES = (", 'NAMES = ("new-gcn", '))
    done = subprocess.run(
        [sys.executable, "-c", USE],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
