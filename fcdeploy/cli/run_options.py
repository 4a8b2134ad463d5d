"""Options of a run, made of their definitions in ``fcdeploy.run.options``; `cluster` and `estimate` take all alike."""

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fcdeploy.cli.types import Bytes, Hops, PathType, Settings
from fcdeploy.run.options import (
    BYTES,
    DESCRIBED,
    FLAGS,
    HOPS,
    PATH,
    REAL,
    SETTINGS,
    SWITCH,
    WHOLE,
    Described,
    Options,
)

Command = TypeVar("Command", bound=Callable[..., object])


def run_option(name: str, **changed: Any) -> Callable[[Command], Command]:
    """Give a command one option of a run; changed: what is otherwise for this command, as for ``click.option``."""
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
    return click.option(f"--{FLAGS[name]}", name, **{**settings, **changed})


def kind_of(described: Described) -> click.ParamType | None:
    """Return what click makes of an option's value."""
    if described.choices:
        return click.Choice(described.choices)
    if described.kind == WHOLE:
        return click.IntRange(min=None if described.least is None else int(described.least))
    kinds: dict[str, click.ParamType] = {
        REAL: click.FloatRange(described.least, described.most),
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
