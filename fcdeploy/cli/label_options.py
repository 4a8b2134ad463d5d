"""Options of every command that reads labels."""

import click

label_column_option = click.option(
    "--label-column",
    metavar="NAME|NUMBER",
    help="Column of a table that holds the labels: its heading, or its number from 1.",
)
unknown_option = click.option(
    "--unknown",
    type=click.Choice(["ignore", "singleton"]),
    default="ignore",
    show_default=True,
    help="Faces labelled -1, empty or NaN: ignored in the measures, or each an identity of its own (singleton).",
)
