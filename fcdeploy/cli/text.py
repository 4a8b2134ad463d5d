"""What is printed of names and files that others chose: no markup, no emoji, nothing that a terminal would obey."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

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


def new_console(**options: Any) -> "Console":
    """Return rich's console on stdout, which prints texts as they are, printable.

    What goes to a file is cut to no terminal's width.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def print(self, *objects: object, **named: Any) -> None:
            if all(isinstance(each, str) for each in objects) and not self.is_terminal:
                named.setdefault("soft_wrap", True)
            super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **named)

    console = PlainConsole(highlight=False, markup=False, emoji=False, **options)
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    return console
