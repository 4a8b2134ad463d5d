"""Options of every command that reads labels."""

import click

label_column_option = click.option(
    "--label-column",
    metavar="NAME|NUMBER",
    help="Column of the labels in a table: its heading, or its number from 1.",
)
unknown_option = click.option(
    "--unknown",
    type=click.Choice(["ignore", "singleton"]),
    default="ignore",
    show_default=True,
    help="Faces of unknown identity (-1, empty, NaN): leave them out of the measures (ignore), or count each as an "
    "identity of its own (singleton).",
)
