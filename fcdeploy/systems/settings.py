"""A system's settings between nested tables (TOML, a manifest) and its frozen dataclass, and by dotted keys."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fcdeploy.data.toml import table_from_toml
from fcdeploy.data.typed import Kind, described, fits, typed, types_of
from fcdeploy.errors import InputError
from fcdeploy.systems import NAMES, Recipe, get_system

R = TypeVar("R", bound=Recipe)
NO_SETTINGS = ("system", "tuned")  # of a recipe: what it is for, and what is told of it


@dataclass(frozen=True)
class Setting:
    """A setting of a recipe: its dotted key, what a value has to be, in words, and the one that the recipe has."""

    key: str
    kind: str
    value: object


def settings_from_dict(table: Mapping[str, object], where: str) -> Recipe:
    """Build a system's recipe from nested tables; ``where`` names their origin in messages.

    Raises InputError for an unknown key, a value of a wrong type, or values that are impossible together."""
    if "system" not in table:
        raise InputError(f"{where}: has no key 'system'; known systems: {', '.join(NAMES)}.")
    recipe: Recipe = typed(get_system(str(table["system"]), where).recipe, table, where)
    if problem := recipe.problem():
        raise InputError(f"{where}: {problem}.")
    return recipe


def settings_as_dict(recipe: Recipe) -> dict[str, object]:
    """Return a recipe as nested tables, the way ``settings_from_dict`` takes them; what is None is left out."""
    return dataclasses.asdict(
        recipe,
        dict_factory=lambda pairs: {
            k: list(v) if isinstance(v, tuple) else v for k, v in pairs if v is not None
        },
    )


def list_settings(recipe: Recipe) -> list[Setting]:
    """List the settings of a recipe in its order; ``system.recipe()`` has the published values, the defaults."""
    return [Setting(key, described(kind), setting_of(recipe, key)) for key, kind in _kinds(type(recipe))]


def setting_of(recipe: Recipe, key: str) -> Any:
    """Return the value at a dotted place of a recipe, as in "links.tau"."""
    return functools.reduce(getattr, key.split("."), recipe)


def with_settings(recipe: R, values: Mapping[str, object], where: str = "settings") -> R:
    """Return a recipe with other values at dotted places, as in {"links.tau": 0.8}; a whole table is a value, too.

    A text is read as a TOML value where that fits, as in "0.8" and "[80, 10]", else as it is. where: names the values'
    origin in messages. Raises InputError for a key that the recipe does not have and a value of a wrong type; whether
    values are possible together says the recipe's ``problem``.
    """
    for key, value in values.items():
        kind: Kind = type(recipe)
        for name in key.split("."):
            kind = types_of(kind).get(name) if dataclasses.is_dataclass(kind) else None
        if kind is None or key.partition(".")[0] in NO_SETTINGS:
            known = ", ".join(known for known, _ in _kinds(type(recipe)))
            raise InputError(f"{where}: unknown key '{key}'; known for {recipe.system}: {known}.")
        if isinstance(value, str):
            value = _from_text(kind, value)
        recipe = _replaced(recipe, key, typed(kind, value, where, key))
    return recipe


def _kinds(kind: Kind, prefix: str = "") -> Iterator[tuple[str, Kind]]:
    """Yield the dotted key and type of each setting, tables taken apart; what ``NO_SETTINGS`` names is none."""
    for name, of in types_of(kind).items():
        if dataclasses.is_dataclass(of):
            yield from _kinds(of, f"{prefix}{name}.")
        elif prefix or name not in NO_SETTINGS:
            yield f"{prefix}{name}", of


def _replaced(recipe: R, key: str, value: object) -> R:
    first, _, rest = key.partition(".")
    return dataclasses.replace(
        recipe, **{first: _replaced(getattr(recipe, first), rest, value) if rest else value}
    )


def _from_text(kind: Kind, text: str) -> object:
    """Return the value that a text stands for: as TOML, but the text itself where only that is a ``kind``."""
    with contextlib.suppress(InputError):
        table = table_from_toml(f"value = {text}", "")
        if table.keys() == {"value"} and (fits(kind, table["value"]) or not fits(kind, text)):
            return table["value"]
    return text
