"""What is printed of names and files that others chose: no markup, no emoji, nothing that a terminal would obey."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 160  # of tables that go to a file


def printable(text: str) -> str:
    """Return a text with what is not printable (control characters, broken names) as escapes; line breaks stay."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character == "\n" else ascii(character)[1:-1]
        for character in text
    )


def one_line(text: str) -> str:
    """Return a text, printable, without line breaks."""
    return printable(text).replace("\n", "\\n")


class PlainConsole:
    """rich's console on stdout, which prints texts as they are, printable.

    What goes to a file is cut to no terminal's width.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(highlight=False, markup=False, emoji=False)
        if not self._console.is_terminal:
            self._console.width = max(self._console.width, WIDTH)

    def print(self, shown: "str | Table") -> None:
        """Print a text or a table."""
        if isinstance(shown, str):
            self._console.print(printable(shown), soft_wrap=None if self._console.is_terminal else True)
        else:
            self._console.print(shown)
