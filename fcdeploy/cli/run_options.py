"""Options of a run, from their definitions in ``fcdeploy.run.options``; `cluster` and `estimate` take all of them."""

from collections.abc import Callable
from typing import TypeVar

import click

from fcdeploy.cli.types import Bytes, Hops, PathType, Real, Settings, Whole
from fcdeploy.run.options import (
    BYTES,
    DESCRIBED,
    FLAGS,
    HOPS,
    PATH,
    REAL,
    SECTIONS,
    SETTINGS,
    SWITCH,
    WHOLE,
    Described,
    Options,
)

Command = TypeVar("Command", bound=Callable[..., object])
RUN_SECTIONS = {  # of the help, for ``grouped``: names of options by title
    title: tuple(name for name, one in DESCRIBED.items() if one.section == title) for title in SECTIONS
}


def run_option(name: str, **changed: object) -> Callable[[Command], Command]:
    """Give a command one option of a run; changed: arguments of ``click.option`` that differ for this command."""
    described, default = DESCRIBED[name], getattr(Options(), name)
    shown = f"  [default: {described.usual}]" if described.usual else ""
    settings: dict[str, object] = {
        "type": kind_of(described),
        "help": f"{described.help}{shown}",
        "metavar": described.metavar or None,
        "default": default,
        "show_default": not described.usual and isinstance(default, str),
    }
    if described.kind == SETTINGS:
        settings |= {"multiple": True, "default": (), "callback": lambda ctx, param, pairs: dict(pairs)}
    if described.kind == SWITCH:
        settings = {"is_flag": True, "help": described.help, "default": default}
    new_option: Callable[..., Callable[[Command], Command]] = click.option
    return new_option(f"--{FLAGS[name]}", name, **{**settings, **changed})


def kind_of(described: Described) -> click.ParamType | None:
    """Return click's type of an option's value."""
    if described.choices:
        return click.Choice(described.choices)
    if described.kind == WHOLE:
        return Whole(min=None if described.least is None else int(described.least))
    kinds: dict[str, click.ParamType] = {
        REAL: Real(described.least, described.most),
        BYTES: Bytes(),
        HOPS: Hops(),
        PATH: PathType,
        SETTINGS: Settings(),
    }
    return kinds.get(described.kind)


def run_options(command: Command) -> Command:
    """Give a command all options of a run, in their order; it takes them as ``**options`` for ``Options``."""
    for name in reversed(list(DESCRIBED)):
        command = run_option(name)(command)
    return command
