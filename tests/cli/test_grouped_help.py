"""Long helps list their options in sections."""

import re

import click
import pytest
from click.testing import CliRunner

from fcdeploy.cli import VERBS, cli
from fcdeploy.cli.grouped import grouped, in_words
from fcdeploy.cli.types import Real, Whole


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
    """The help as the command line shows it: click keeps the help option of the first context that asks."""
    return command.get_help(
        click.Context(command, info_name="try", terminal_width=100, **cli.context_settings)
    )


def test_options_stand_in_their_sections_in_the_order_given_and_the_rest_comes_last() -> None:
    text = help_of(trial).partition("\nSecond:")[2]
    order = [
        text.index(word) for word in ("--late", "--early", "\nFirst:", "--one", "\nOther options:", "--alone")
    ]
    assert order == sorted(order)
    assert "--hidden" not in text
    assert text.rstrip().endswith("Show this message and exit.")


@pytest.mark.parametrize(
    ("kind", "metavar", "words"),
    [
        (Whole(1), "N", "Count.  [default: many; 1 or more]"),
        (Whole(1, 4096), "N", "Count.  [default: many; 1 to 4096]"),
        (Real(0, 0.5), "X", "Count.  [default: many; 0 to 0.5]"),
        (Real(0, min_open=True), "X", "Count.  [default: many; more than 0]"),
        (Real(0, 1, max_open=True), "X", "Count.  [default: many; 0 to less than 1]"),
        (click.INT, "INTEGER", "Count.  [default: many]"),
    ],
)
def test_a_range_is_said_in_words_beside_the_default(kind: click.ParamType, metavar: str, words: str) -> None:
    option = click.Option(["--count"], type=kind, help="Count.  [default: many]")
    record = option.get_help_record(click.Context(trial))
    assert record is not None
    assert in_words(record) == (f"--count {metavar}", words)


def test_every_verb_stands_in_one_chapter_of_the_help() -> None:
    text = cli.get_help(click.Context(cli, info_name="fcdeploy", **cli.context_settings))
    listed = re.findall(r"^  ([a-z][\w-]+) +\S", text.partition("Options:")[2], re.MULTILINE)
    assert sorted(listed) == sorted(VERBS)


def test_no_option_of_any_command_is_missing_from_its_help_or_listed_twice() -> None:
    root = click.Context(cli, info_name="fcdeploy", **cli.context_settings)
    for verb in VERBS:
        command = cli.get_command(root, verb)
        assert command is not None
        _, *sections = re.split(r"^(?!Usage)\S.*:\n", help_of(command), flags=re.MULTILINE)
        listed = re.findall(r"^  (?:-\w, )?(--[\w-]+)", "".join(sections), re.MULTILINE)
        options = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
        assert sorted(listed) == sorted(
            [next(name for name in option.opts if name.startswith("--")) for option in options] + ["--help"]
        )


def test_options_of_the_last_version_still_work_and_a_note_says_what_they_are_called_now() -> None:
    from fcdeploy.cli import train

    @click.command("try", cls=grouped(renamed=train.RENAMED))
    @click.option("--splits", type=int)
    @click.option("--singletons", type=float)
    def renamed(splits: int, singletons: float) -> None:
        click.echo(f"{splits} {singletons}")

    done = CliRunner().invoke(renamed, ["--albums", "8", "--strays=0.4"])
    assert done.stdout == "8 0.4\n"
    assert re.findall(r"--\w+", done.stderr) == ["--albums", "--splits", "--strays", "--singletons"]
    assert set(train.RENAMED.values()) <= {option for one in train.command.params for option in one.opts}
    assert CliRunner().invoke(renamed, ["--splits", "8"]).stderr == ""
