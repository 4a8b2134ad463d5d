"""Recipes: TOML files that hold what a checkpoint does not say, read into a system's frozen dataclass."""

import re
from collections.abc import Sequence
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from fcdeploy.data.side_files import head_of
from fcdeploy.data.toml import table_from_toml
from fcdeploy.errors import InputError
from fcdeploy.systems import Recipe
from fcdeploy.systems.settings import settings_as_dict, settings_from_dict

# Headings of training.train and training.tune.
WRITTEN = re.compile(
    rb"# (.+, network .+, trained with fcdeploy "
    rb"|Tuned on [\d,]+ (labelled faces|checked pairs) for (mean|pairwise|bcubed) F: )"
)
SYSTEMS = resources.files("fcdeploy.systems")


def built_in_files() -> dict[str, Traversable]:
    """Return the built-in recipes by name: what the systems' folders hold in ``recipes``."""
    folders = [system / "recipes" for system in SYSTEMS.iterdir() if (system / "recipes").is_dir()]
    files = [file for folder in folders for file in folder.iterdir()]
    return {file.name.removesuffix(".toml"): file for file in files if file.name.endswith(".toml")}


def built_in_names() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(built_in_files())


def built_in_text(name: str) -> str:
    """Return a built-in recipe as it is written; raises InputError for an unknown name."""
    files = built_in_files()
    if name not in files:
        raise InputError(f"no built-in recipe is called '{name}'; there are {', '.join(sorted(files))}.")
    return files[name].read_text()


def load_recipe(source: Path | str) -> Recipe:
    """Read a recipe from a TOML file, or a built-in one by its name.

    Returns the recipe dataclass of its system. Raises InputError that names file and key for anything unknown,
    missing, of a wrong type or impossible together.
    """
    path = Path(source)
    if path.is_file():
        text, where = path.read_bytes(), str(path)
    elif str(source) in built_in_names():
        text, where = built_in_text(str(source)).encode(), f"recipe {source}"
    else:
        raise InputError(
            f"{source}: no such recipe file, and no built-in recipe of that name ({', '.join(built_in_names())})."
        )
    return settings_from_dict(table_from_toml(text, where, "a recipe"), where)


def is_written_recipe(path: Path) -> bool:
    """Tell whether a file is a recipe that ``fcdeploy train`` or ``fcdeploy tune`` wrote, by its heading."""
    return WRITTEN.match(head_of(path)) is not None


def recipe_text(recipe: Recipe, heading: Sequence[str] = ()) -> str:
    """Write a recipe as ``load_recipe`` reads it, below ``heading`` as comments."""
    import tomlkit  # for those who write alone

    comments = "".join(f"# {line}".rstrip() + "\n" for line in heading)
    return comments + tomlkit.dumps(settings_as_dict(recipe))
