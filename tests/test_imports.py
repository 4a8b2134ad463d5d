"""The light path stays light, and folders import only from those before them."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import fcdeploy
from fcdeploy.engine.bundle import Bundle

PACKAGE = Path(fcdeploy.__file__).parent
FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))
# What stands at the top of the package: errors are everybody's; the rest is what users call.
ORDER = (
    "errors.py",
    "forks.py",
    "machine.py",
    "packages.py",
    "data",
    "graph",
    "clustering",
    "engine",
    "run",
    "systems",
    "runtime",
    "deploy",
    "training",
    "report",
    "cli",
    "__main__.py",
)
HEAVY = ("torch", "onnx", "onnxscript")

# Not an ImportError: nobody may catch it and go on without.
GUARD = f"""
import sys

class Guard:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {HEAVY}:
            raise AssertionError(f"{{name}} was imported")

sys.meta_path.insert(0, Guard())
"""


def run_guarded(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", GUARD + code, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


COMMAND = "from fcdeploy.cli import main\nsys.argv[0] = 'fcdeploy'\nmain()\n"


@pytest.mark.parametrize("name", HEAVY)
def test_the_guard_of_these_tests_does_bite(name: str) -> None:
    done = run_guarded(f"import {name}\n")
    assert done.returncode != 0
    assert f"AssertionError: {name} was imported" in done.stderr


def test_importing_fcdeploy_imports_no_numbers_either() -> None:
    done = run_guarded("import fcdeploy\nassert fcdeploy.__version__\nprint('numpy' in sys.modules)\n")
    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr


@pytest.mark.parametrize("option", ["-h", "--help", "--version"])
def test_help_imports_neither_pytorch_nor_onnx(option: str) -> None:
    done = run_guarded(COMMAND, option)
    assert done.returncode == 0, done.stderr
    assert "fcdeploy" in done.stdout


@pytest.mark.parametrize(
    "verb",
    [
        *("embed", "cluster", "build", "export", "evaluate", "inspect", "recipe", "doctor", "train", "tune"),
        *("bench", "triton", "estimate", "faces", "pairs", "report", "review", "assign", "update"),
        "export-clusters",
        "compare",
    ],
)
def test_help_of_a_verb_imports_neither_pytorch_nor_onnx(verb: str) -> None:
    done = run_guarded(COMMAND, verb, "-h")
    assert done.returncode == 0, done.stderr
    assert f"fcdeploy {verb}" in done.stdout


def test_a_whole_run_imports_neither_pytorch_nor_onnx(
    golden: Path, pse_bundle: Bundle, tmp_path: Path
) -> None:
    features = golden / "dev/data/features.bin"
    truth = golden / "dev/data/labels.meta"
    args = (
        "cluster",
        features,
        "--engine",
        pse_bundle.path,
        "-o",
        tmp_path / "pred.meta",
        "--labels",
        truth,
    )
    done = run_guarded(COMMAND, *args)
    assert done.returncode == 0, done.stderr
    assert "1,283 faces" in done.stdout
    assert len(np.loadtxt(tmp_path / "pred.meta")) == 1283
    for verb, *options in (
        ("inspect",),
        ("bench", "--seconds", "0", "--batch", "2", "--nodes", "3", "--faces", "100"),
        ("triton", "-o", tmp_path / "models"),
    ):
        done = run_guarded(COMMAND, verb, pse_bundle.path, *options)
        assert done.returncode == 0, done.stderr


def imports_of(file: str, source: str, *, annotations: bool = True) -> Iterator[tuple[int, str]]:
    """Give (line, dotted name) of every import in a file of the package; annotations: those for type checkers, too."""

    def walk(node: ast.AST) -> Iterator[tuple[int, str]]:
        if (
            not annotations
            and isinstance(node, ast.If)
            and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")
        ):
            for other in node.orelse:
                yield from walk(other)
            return
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = ("fcdeploy", *Path(file).parent.parts)
                base = ".".join(package[: len(package) - node.level + 1])
                module = f"{base}.{module}" if module else base
            # Both the module and what is taken from it: that may be a module too.
            yield node.lineno, module
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"
        for child in ast.iter_child_nodes(node):
            yield from walk(child)

    yield from walk(ast.parse(source))


def place_of(dotted: str) -> int | None:
    """Tell where in ORDER a dotted name of the package lies; None for the package itself and other packages."""
    parts = dotted.split(".")
    if parts[0] != "fcdeploy" or len(parts) == 1:
        return None
    for at, name in enumerate(ORDER):
        if parts[1] == name.removesuffix(".py"):
            return at
    return None


def late_imports(file: str, source: str) -> list[str]:
    """Name the imports of a file that go to a later folder than its own."""
    own = ORDER.index(file.partition("/")[0])
    found = []
    for line, dotted in imports_of(file, source):
        place = place_of(dotted)
        if place is not None and place > own:
            found.append(f"{file}:{line} imports {dotted}")
    return found


@pytest.mark.parametrize("file", [file for file in FILES if file != "__init__.py"])
def test_a_file_imports_only_from_its_own_folder_and_those_before_it(file: str) -> None:
    assert late_imports(file, (PACKAGE / file).read_text()) == []


def test_no_module_imports_one_that_imports_it() -> None:
    """Annotations included; an import in a function counts, too."""
    modules = {file.removesuffix(".py").removesuffix("/__init__").replace("/", "."): file for file in FILES}
    graph = {
        name: {
            dotted.removeprefix("fcdeploy.")
            for _, dotted in imports_of(file, (PACKAGE / file).read_text())
            if dotted.removeprefix("fcdeploy.") in modules and dotted.startswith("fcdeploy.")
        }
        - {name}
        for name, file in modules.items()
        if file != "__init__.py"
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(order) == graph.keys()


@pytest.mark.parametrize("file", FILES)
def test_pytorch_is_imported_only_where_networks_and_exports_are_made(file: str) -> None:
    heavy = [
        name
        for _, name in imports_of(file, (PACKAGE / file).read_text(), annotations=False)
        if name.partition(".")[0] in HEAVY
    ]
    allowed = file.startswith(("deploy/", "training/")) or file.endswith(
        ("/network.py", "/folding.py", "/training.py")
    )
    assert allowed or not heavy


def test_a_late_import_is_found_in_every_spelling() -> None:
    for source in (
        "import fcdeploy.engine.bundle",
        "from fcdeploy.engine import bundle",
        "from fcdeploy import engine",
        "def f():\n    from fcdeploy.engine.bundle import read_bundle",
        "from ..engine import bundle",
        "from .. import engine",
        "if TYPE_CHECKING:\n    from fcdeploy.engine import bundle",
        "if TYPE_CHECKING:\n    pass\nelse:\n    import fcdeploy.engine",
    ):
        assert late_imports("data/features.py", source), source
    for source in (
        "import fcdeploy",
        "from fcdeploy.errors import InputError",
        "from . import atomic",
        "from fcdeploy.data import atomic",
    ):
        assert late_imports("data/features.py", source) == [], source


def test_the_readme_gives_the_order_that_is_checked_here() -> None:
    text = " ".join((PACKAGE.parent / "README.md").read_text().split())
    folders = [name for name in ORDER if "." not in name and (PACKAGE / name).is_dir()]
    assert ", ".join(f"`{name}`" for name in folders) in text
