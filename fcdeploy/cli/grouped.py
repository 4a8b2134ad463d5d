"""Help in sections: a command whose options are listed by what they are for, with their ranges in words."""

import re
from collections.abc import Callable, Mapping, Sequence

import click

HELP = {"help_option_names": ["-h", "--help"]}
RANGES = (  # as click writes them, and in words
    (re.compile(r"([^\s\[]+)<=x<=([^\s\]]+)"), r"\1 to \2"),
    (re.compile(r"([^\s\[]+)<=x<([^\s\]]+)"), r"\1 to less than \2"),
    (re.compile(r"x>=([^\s\]]+)"), r"\1 or more"),
    (re.compile(r"x>([^\s\]]+)"), r"more than \1"),
)


def grouped(
    groups: Mapping[str, Sequence[str]] | None = None, renamed: Mapping[str, str] | None = None
) -> type[click.Command]:
    """Return a class of commands whose help lists options in sections; those in no section come last.

    groups: names of parameters, as the command's function has them, by the title of their section. An option is
    listed in the order of its section. Without groups there is one section, "Options". Give it to a command:
    ``@click.command("train", cls=grouped({...}))``. renamed: options of earlier versions, which work for one more with
    a note, and what they are called now.
    """
    sections = dict(groups or {})

    class GroupedCommand(click.Command):
        def __init__(self, name: str | None, **given: object) -> None:
            begin: Callable[..., None] = super().__init__
            begin(name, **{"context_settings": HELP, **given})  # alone, too, and not only below fcdeploy

        def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
            return super().parse_args(ctx, with_new_names(args, renamed or {}))

        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            by_name = {
                option.name: option for option in self.get_params(ctx) if isinstance(option, click.Option)
            }
            placed = {name for names in sections.values() for name in names}
            rest = [name for name in by_name if name and name not in placed]
            last = "Other options" if sections else "Options"
            for title, names in {**sections, last: rest}.items():
                records = (by_name[name].get_help_record(ctx) for name in names)
                if shown := [in_words(record) for record in records if record is not None]:
                    with formatter.section(title):
                        formatter.write_dl(shown)

    return GroupedCommand


def with_new_names(args: Sequence[str], renamed: Mapping[str, str]) -> list[str]:
    """Return a command's words with the options of earlier versions called as they are now; a note names them."""
    words = []
    for word in args:
        name, equals, value = word.partition("=")
        if name in renamed:
            click.echo(f"Note: {name} is now {renamed[name]}.", err=True)
        words.append(f"{renamed.get(name, name)}{equals}{value}")
    return words


def in_words(record: tuple[str, str]) -> tuple[str, str]:
    """Return an option's names and help with its range in words, in one bracket with its default.

    ``--k WHOLE NUMBER``, ``Number.  [default: 80]  [x>=1]`` becomes ``--k N``, ``Number.  [default: 80; 1 or more]``.
    """
    names, text = record
    names = names.replace(" WHOLE NUMBER", " N").replace(" NUMBER", " X")
    body, bracket, end = text.rpartition("[")  # where click puts a range
    for pattern, words in RANGES:
        end = pattern.sub(words, end)
    return names, f"{body}{bracket}{end}".replace("]  [", "; ")
