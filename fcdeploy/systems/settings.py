"""A system's settings between nested tables (TOML, a manifest) and its frozen dataclass."""

import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any

from fcdeploy.errors import InputError
from fcdeploy.systems import NAMES, get_system


def settings_from_dict(table: dict[str, Any], where: str) -> Any:
    """Build a system's recipe from nested tables; ``where`` names their origin in messages.

    Raises InputError for an unknown key, a value of a wrong type, or values that are impossible together."""
    if "system" not in table:
        raise InputError(f"{where}: has no key 'system'; known systems: {', '.join(NAMES)}.")
    recipe = _build(get_system(str(table["system"]), where).recipe, table, where, "")
    if problem := recipe.problem():
        raise InputError(f"{where}: {problem}.")
    return recipe


def settings_as_dict(recipe: Any) -> dict[str, Any]:
    """Return a recipe as nested tables, the way ``settings_from_dict`` takes them."""
    return dataclasses.asdict(recipe, dict_factory=lambda pairs: {k: _plain(v) for k, v in pairs})


def setting_of(recipe: Any, key: str) -> Any:
    """Return the value at a dotted place of a recipe, as in "links.tau"."""
    for name in key.split("."):
        recipe = getattr(recipe, name)
    return recipe


def with_settings(recipe: Any, values: Mapping[str, Any]) -> Any:
    """Return a recipe with other values at dotted places."""
    for key, value in values.items():
        first, _, rest = key.partition(".")
        changed = with_settings(getattr(recipe, first), {rest: value}) if rest else value
        recipe = dataclasses.replace(recipe, **{first: changed})
    return recipe


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


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
        if kind.__args__[1:] == (Ellipsis,):
            if not isinstance(value, list):
                raise InputError(f"{where}: {key} should be a list, found {value!r}.")
            return tuple(_convert(kind.__args__[0], v, where, f"{key}[{at}]") for at, v in enumerate(value))
        if not isinstance(value, list) or len(value) != len(kind.__args__):
            raise InputError(
                f"{where}: {key} should be a list of {len(kind.__args__)} values, found {value!r}."
            )
        return tuple(_convert(k, v, where, key) for k, v in zip(kind.__args__, value, strict=True))
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{where}: {key} should be {_KINDS.get(kind, kind)}, found {value!r}.")
    return value


_KINDS = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    bool | int: "true, false or a whole number",
}
