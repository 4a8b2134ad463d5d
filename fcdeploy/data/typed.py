"""Plain values, as TOML and JSON give them, as dataclasses: msgspec checks the types, a sentence says what is wrong."""

import dataclasses
import reprlib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeAlias, TypeVar, Union, get_args, get_origin, overload

import msgspec

from fcdeploy.errors import InputError

T = TypeVar("T")
Kind: TypeAlias = (
    object  # what may be the type of a field: a class, or a form of ``typing``, which has none of its own
)
WORDS: dict[object, tuple[str, ...]] = {
    bool: ("true", "false"),
    int: ("a whole number",),
    float: ("a number",),
    str: ("a string",),
    type(None): ("null",),
}
SHOWN = reprlib.Repr()
SHOWN.maxstring = SHOWN.maxother = SHOWN.maxlong = 100
SHOWN.maxlist = SHOWN.maxdict = 10


@overload
def typed(kind: type[T], value: object, where: str, key: str = "", *, open_ended: bool = False) -> T: ...


@overload
def typed(kind: Kind, value: object, where: str, key: str = "", *, open_ended: bool = False) -> object: ...


def typed(kind: Kind, value: object, where: str, key: str = "", *, open_ended: bool = False) -> object:
    """Return plain values as ``kind``, a dataclass or any other type that msgspec knows.

    where: names their origin in messages, key: their place in it. open_ended: keys that no field is called are left
    out, rather than refused. Raises InputError that says which key has to be what, and what was found.
    """
    if problem := misfit(kind, value, key, open_ended=open_ended):
        raise InputError(f"{where}: {problem}.")
    found: object = msgspec.convert(value, kind)
    return found


def misfit(kind: Kind, value: object, key: str = "", *, open_ended: bool = False) -> str | None:
    """Say what keeps plain values from being a ``kind``, as in "links.tau should be a number, found 'x'"; else None.

    A type may be described for the sentence: ``Annotated[str, msgspec.Meta(description="a size, as in 4G")]``.
    """
    try:
        if not open_ended and (problem := _unknown_key(kind, value, key)):
            return problem
        return None if fits(kind, value) else _innermost(kind, value, key)
    except RecursionError:
        return f"{key or 'the whole'} is nested too deeply"


def fits(kind: Kind, value: object) -> bool:
    """Tell whether plain values are a ``kind``; keys that no field is called do not matter."""
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def types_of(kind: Kind) -> dict[str, Kind]:
    """Return the type of each field of a dataclass by name."""
    assert dataclasses.is_dataclass(kind)
    hints = typing.get_type_hints(kind, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def described(kind: Kind) -> str:
    """Say what a value of a type is, as in "true, false or a whole number"."""
    *words, last = dict.fromkeys(_words(kind))
    return f"{', '.join(words)} or {last}" if words else last


def _words(kind: Kind) -> Iterator[str]:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Annotated:
        said = _description(kind)
        yield from [said] if said else _words(args[0])
    elif origin in (types.UnionType, Union):
        for one in args:
            yield from _words(one)
    elif origin is Literal:
        yield f"one of {', '.join(map(str, args))}" if len(args) > 1 else repr(args[0])
    elif origin is tuple and args[1:] != (Ellipsis,):
        yield f"a list of {len(args)} values"
    elif origin in (tuple, list):
        yield "a list"
    elif _is_table(kind):
        yield "a table"
    else:
        yield from WORDS.get(kind, (str(kind),))


def _description(kind: Kind) -> str | None:
    return next((meta.description for meta in get_args(kind)[1:] if isinstance(meta, msgspec.Meta)), None)


def _is_table(kind: Kind) -> bool:
    return dataclasses.is_dataclass(_bare(kind)) or get_origin(_bare(kind)) in (dict, Mapping)


def _bare(kind: Kind) -> Kind:
    """Return a type without what is said of it, and without None beside it."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (types.UnionType, Union):
        others = [one for one in get_args(kind) if one is not type(None)]
        return _bare(others[0]) if len(others) == 1 else kind
    return kind


def _parts(kind: Kind, value: object) -> Iterator[tuple[str, Kind, object]]:
    """Yield what a table or list holds, as far as ``kind`` says what that is: its name or [place], type and value."""
    kind = _bare(kind)
    origin, args = get_origin(kind), get_args(kind)
    if isinstance(value, dict) and dataclasses.is_dataclass(kind):
        yield from ((name, of, value[name]) for name, of in types_of(kind).items() if name in value)
    elif isinstance(value, dict) and origin in (dict, Mapping):
        yield from ((str(name), args[1], part) for name, part in value.items())
    elif isinstance(value, list | tuple) and origin in (tuple, list):
        each = args if origin is tuple and args[1:] != (Ellipsis,) else (args[0],) * len(value)
        if len(each) == len(value):
            yield from ((f"[{at}]", of, part) for at, (of, part) in enumerate(zip(each, value, strict=True)))


def _place(key: str, name: str) -> str:
    return f"{key}.{name}" if key and not name.startswith("[") else key + name


def _unknown_key(kind: Kind, value: object, key: str) -> str | None:
    if isinstance(value, dict) and dataclasses.is_dataclass(_bare(kind)):
        known = types_of(_bare(kind))
        for name in value:
            if name not in known:
                return f"unknown key '{_place(key, name)}'; known here: {', '.join(known)}"
    found = (_unknown_key(of, part, _place(key, name)) for name, of, part in _parts(kind, value))
    return next(filter(None, found), None)


def _shown(value: object) -> str:
    try:
        return SHOWN.repr(value)
    except ValueError:  # Python writes no whole number of more than 4,300 digits
        return "a number of thousands of digits"


def _innermost(kind: Kind, value: object, key: str) -> str:
    """Say what is wrong with a value that does not fit, at the innermost place."""
    said = get_origin(kind) is Annotated and _description(kind)  # of the whole, but for tables in it
    for name, of, part in _parts(kind, value):
        if not fits(of, part) and (not said or _is_table(of)):
            return _innermost(of, part, _place(key, name))
    bare = _bare(kind)
    if isinstance(value, dict) and dataclasses.is_dataclass(bare):
        for field in dataclasses.fields(bare):
            if field.name not in value and field.default is field.default_factory is dataclasses.MISSING:
                kind = types_of(bare)[field.name]
                return f"{_place(key, field.name)} should be {described(kind)}, and is missing"
    return f"{key or 'the whole'} should be {described(kind)}, found {_shown(value)}"
