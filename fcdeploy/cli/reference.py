"""The page docs/reference/cli.md, generated from the commands' own help; ``-m fcdeploy.cli.reference`` prints it."""

import click

from fcdeploy.cli import VERBS, cli

WIDTH = 80  # of the column of a page, in letters of code
HEAD = """# The commands

Generated from the commands' own help by `python -m fcdeploy.cli.reference > docs/reference/cli.md`.

Results on stdout, messages on stderr. Exit codes: 0 success; 1 a failure that is not caused by your input; 2 invalid
input or options; 3 an exported graph exceeds its tolerance; 130 interrupted (Ctrl-C), 143 stopped by SIGTERM, 129 by
SIGHUP.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    settings = {**cli.context_settings, "max_content_width": WIDTH, "terminal_width": WIDTH}
    root = click.Context(cli, info_name="fcdeploy", **settings)
    for verb in VERBS:
        command = cli.get_command(root, verb)
        assert command is not None
        context = click.Context(
            command, info_name=verb, parent=root, max_content_width=WIDTH, terminal_width=WIDTH
        )
        parts.append(f"\n## fcdeploy {verb}\n\n```\n{command.get_help(context)}\n```\n")
    return "".join(parts)


if __name__ == "__main__":
    print(page(), end="")
