"""Long helps list their options in sections."""

import re

import click

from fcdeploy.cli import VERBS, cli
from fcdeploy.cli.grouped import grouped


@click.command("try", cls=grouped({"Second": ("late", "early"), "First": ("one",)}))
@click.option("--one", help="It.")
@click.option("--early", help="Morning.")
@click.option("--late", help="Evening.")
@click.option("--hidden", hidden=True, help="Nothing.")
@click.option("--alone", help="Rest.")
@click.argument("name")
def trial(**_: object) -> None:
    """Try."""


def help_of(command: click.Command) -> str:
    return command.get_help(click.Context(command, info_name="try", terminal_width=100))


def test_options_stand_in_their_sections_in_the_order_given_and_the_rest_comes_last() -> None:
    text = help_of(trial).partition("\nSecond:")[2]
    order = [
        text.index(word) for word in ("--late", "--early", "\nFirst:", "--one", "\nOther options:", "--alone")
    ]
    assert order == sorted(order)
    assert "--hidden" not in text
    assert text.rstrip().endswith("Show this message and exit.")


def test_no_option_of_any_command_is_missing_from_its_help_or_listed_twice() -> None:
    root = click.Context(cli, info_name="fcdeploy", **cli.context_settings)
    for verb in VERBS:
        command = cli.get_command(root, verb)
        assert command is not None
        listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_of(command), re.MULTILINE)
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        assert sorted(listed) == sorted(
            [next(name for name in option.opts if name.startswith("--")) for option in options] + ["--help"]
        )
