"""Print the lowest version of each package that pyproject.toml allows, as constraints for pip: ``make test-lowest``.

Packages of a GPU machine are left out, as they are in constraints.txt.
"""

import itertools
import re
import tomllib
from pathlib import Path

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
GPU = {"cupy-cuda12x", "cupy-cuda13x", "onnxruntime-gpu", "tensorrt"}
BOUND = re.compile(r"(?P<name>[\w.-]+)>=(?P<lowest>[\w.]+)")


def lowest() -> dict[str, str]:
    """Return the lower bound of each requirement, of the extras, too; raises ValueError where one has none."""
    found: dict[str, str] = {}
    extras = itertools.chain.from_iterable(PROJECT["optional-dependencies"].values())
    for entry in [*PROJECT["dependencies"], *extras]:
        bound = BOUND.match(entry)
        if bound is None:
            raise ValueError(f"pyproject.toml: {entry} has no lower bound")
        name, version = bound["name"], bound["lowest"]
        if name in GPU:
            continue
        if found.setdefault(name, version) != version:
            raise ValueError(f"pyproject.toml: {name} has the lower bounds {found[name]} and {version}")
    return found


if __name__ == "__main__":
    for name, version in lowest().items():
        print(f"{name}=={version}")
