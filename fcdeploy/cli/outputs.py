"""Outputs that nobody named: a file under a default name is not written over unless it is one of ours."""

import os
from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource


def check_default_output(
    parameter: str, path: Path, ours: Callable[[Path], bool] = lambda path: False
) -> None:
    """Raise InputError when the user has not given ``parameter`` and a file at its default ``path`` is not ours."""
    from fcdeploy.errors import InputError

    given = click.get_current_context().get_parameter_source(parameter)
    if given is ParameterSource.DEFAULT and os.path.lexists(path) and not ours(path):
        raise InputError(f"{path}: exists already; give -o {path} to write over it, or another name.")
