"""Values that no option of any verb takes: an empty path, and numbers that are none."""

import importlib
from collections.abc import Iterator

import click
import pytest

from fcdeploy.cli import VERBS
from fcdeploy.cli.types import Numbers


def parameters(kind: type[click.ParamType]) -> Iterator[tuple[str, click.Parameter]]:
    for verb in VERBS:
        command = importlib.import_module(f"fcdeploy.cli.{verb.replace('-', '_')}").command
        for parameter in command.params:
            if isinstance(parameter.type, kind):
                yield f"{verb} {parameter.name}", parameter


@pytest.mark.parametrize("name", ["features", "engine", "output", "run_dir", "scratch", "labels", "bundle"])
def test_an_empty_path_is_not_the_current_folder(name: str) -> None:
    """As of a shell's variable that is not set; pathlib makes "." of it."""
    found = [(verb, one) for verb, one in parameters(click.Path) if one.name == name]
    assert found
    for verb, one in found:
        with pytest.raises(click.BadParameter, match="it is empty"):
            one.type.convert("", one, None)
        assert str(one.type.convert("a b", one, None)) == "a b", verb


def test_every_path_of_every_verb_is_checked_alike() -> None:
    kinds = {type(one.type) for _, one in parameters(click.Path)}
    assert len(kinds) == 1


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "1e400"])
def test_a_number_is_finite(text: str) -> None:
    """NaN compares with no limit, and an option without an upper one took infinity."""
    found = list(parameters(click.types.FloatParamType))
    assert len(found) > 20
    for _, one in found:
        with pytest.raises(click.BadParameter):
            one.type.convert(text, one, None)


@pytest.mark.parametrize("text", ["nan", "0.5,nan,0.5", "inf"])
def test_numbers_are_finite(text: str) -> None:
    with pytest.raises(click.BadParameter):
        Numbers().convert(text, None, None)
