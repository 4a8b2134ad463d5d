"""What decides whether something made earlier may be used again: its inputs, our code, and the libraries below it."""

import functools
import hashlib
import importlib.resources
import json
from collections.abc import Iterator
from importlib.resources.abc import Traversable

FOLDERS = (
    "data",
    "graph",
    "clustering",
    "engine",
    "run",
    "systems",
    "runtime",
)  # that decide the results of a run
SOURCES, COMPILED = (".py", ".cu"), ".pyc"
PYC_HEADER = 16  # bytes, among them the time of the source


def digest(fields: dict[str, object]) -> str:
    """Return a hash of plain values, and of fcdeploy's code, that is the same whenever they are."""
    text = json.dumps({**fields, "code": code_digest()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@functools.cache
def code_digest() -> str:
    """Return a hash of the code that runs are made by: the same wherever the package lies, another for other code.

    Of an installation without sources, its compiled files stand for them.
    """
    state = hashlib.sha256()
    package = importlib.resources.files("fcdeploy")
    for folder in FOLDERS:
        for name, file in sorted(_code_files(package / folder, folder)):
            content = file.read_bytes()
            content = content[PYC_HEADER:] if name.endswith(COMPILED) else content
            state.update(f"{name} {len(content)}\n".encode())
            state.update(content)
    return state.hexdigest()


def _code_files(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    """Yield what a folder and those in it hold, with names: sources, and compiled files where they stand for one."""
    for file in folder.iterdir():
        path = f"{name}/{file.name}"
        if file.name.endswith((*SOURCES, COMPILED)):
            yield path, file
        elif file.name != "__pycache__" and "." not in file.name and file.is_dir():
            yield from _code_files(file, path)
