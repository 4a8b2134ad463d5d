"""Recipes: TOML files that hold what a checkpoint does not say, read into a system's frozen dataclass."""

import dataclasses
import tomllib
import types
import typing
from importlib import resources
from pathlib import Path
from typing import Any

from fcdeploy.errors import InputError
from fcdeploy.systems import NAMES, get_system

BUILT_IN = resources.files("fcdeploy.deploy") / "recipes"


def built_in_names() -> list[str]:
    """Return the names of the built-in recipes, sorted."""
    return sorted(entry.name.removesuffix(".toml") for entry in BUILT_IN.iterdir() if entry.name.endswith(".toml"))


def built_in_text(name: str) -> str:
    """Return a built-in recipe as it is written; raises InputError for an unknown name."""
    if name not in built_in_names():
        raise InputError(f"no built-in recipe is called '{name}'; there are {', '.join(built_in_names())}.")
    return (BUILT_IN / f"{name}.toml").read_text()


def load_recipe(source: Path | str) -> Any:
    """Read a recipe from a TOML file, or a built-in one by its name.

    Returns the recipe dataclass of its system. Raises InputError that names file and key for anything unknown,
    missing, of a wrong type or impossible together.
    """
    path = Path(source)
    if path.is_file():
        text, where = _read_text(path), str(path)
    elif str(source) in built_in_names():
        text, where = built_in_text(str(source)), f"recipe {source}"
    else:
        raise InputError(
            f"{source}: no such recipe file, and no built-in recipe of that name ({', '.join(built_in_names())})."
        )
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{where}: is not valid TOML ({error}).") from error
    return recipe_from_dict(table, where)


def recipe_from_dict(table: dict[str, Any], where: str) -> Any:
    """Build a system's recipe from nested tables; see ``load_recipe``."""
    if "system" not in table:
        raise InputError(f"{where}: has no key 'system'; known systems: {', '.join(NAMES)}.")
    recipe = _build(get_system(str(table["system"])).recipe, table, where, "")
    if problem := recipe.problem():
        raise InputError(f"{where}: {problem}.")
    return recipe


def recipe_as_dict(recipe: Any) -> dict[str, Any]:
    """Return a recipe as nested tables, the way ``recipe_from_dict`` takes them."""
    return dataclasses.asdict(recipe, dict_factory=lambda pairs: {k: _plain(v) for k, v in pairs})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file (byte {error.start}); a recipe is TOML.") from error


def _build(kind: Any, table: Any, where: str, prefix: str) -> Any:
    """Turn ``table`` into the dataclass ``kind``, checking names and types; ``prefix`` names it in messages."""
    if not isinstance(table, dict):
        raise InputError(f"{where}: {prefix.rstrip('.')} should be a table of settings, found {table!r}.")
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    values = {}
    for key, value in table.items():
        if key not in known:
            raise InputError(f"{where}: unknown key '{prefix}{key}'; known here: {', '.join(known)}.")
        values[key] = _convert(hints[key], value, where, f"{prefix}{key}")
    return kind(**values)


def _convert(kind: Any, value: Any, where: str, key: str) -> Any:
    if dataclasses.is_dataclass(kind):
        return _build(kind, value, where, f"{key}.")
    if isinstance(kind, types.GenericAlias) and kind.__origin__ is tuple:
        if not isinstance(value, list) or len(value) != len(kind.__args__):
            raise InputError(f"{where}: {key} should be a list of {len(kind.__args__)} values, found {value!r}.")
        return tuple(_convert(k, v, where, key) for k, v in zip(kind.__args__, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: {key} should be {_KINDS.get(kind, kind)}, found {value!r}.")
    return value


_KINDS = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
