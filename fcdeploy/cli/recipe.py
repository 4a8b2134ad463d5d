"""``fcdeploy recipe``."""

import click

from fcdeploy.cli.grouped import grouped


@click.command("recipe", cls=grouped())
@click.argument("name", required=False)
def command(name: str | None) -> None:
    """Print a built-in recipe for `fcdeploy export`, or list their names.

    \b
    Example:
      fcdeploy recipe pse-gcn-ms1m > my-recipe.toml
    """
    from fcdeploy.deploy.recipe import built_in_names, built_in_text

    click.echo(built_in_text(name) if name else "\n".join(built_in_names()), nl=not name)
