"""Long help in sections: a command whose options are listed by what they are for."""

from collections.abc import Mapping, Sequence

import click


def grouped(groups: Mapping[str, Sequence[str]]) -> type[click.Command]:
    """Return a class of commands whose help lists options in sections; those in no section come last.

    groups: names of parameters, as the command's function has them, by the title of their section. An option is
    listed in the order of its section. Give it to a command: ``@click.command("train", cls=grouped({...}))``.
    """

    class GroupedCommand(click.Command):
        def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
            by_name = {
                option.name: option for option in self.get_params(ctx) if isinstance(option, click.Option)
            }
            placed = {name for names in groups.values() for name in names}
            rest = [name for name in by_name if name and name not in placed]
            for title, names in {**groups, "Other options": rest}.items():
                records = (by_name[name].get_help_record(ctx) for name in names)
                if shown := [record for record in records if record is not None]:
                    with formatter.section(title):
                        formatter.write_dl(shown)

    return GroupedCommand
