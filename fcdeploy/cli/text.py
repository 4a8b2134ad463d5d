"""What is printed of names and files that others chose: no markup, no emoji, nothing that a terminal would obey."""

from typing import Any


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


def new_console(**options: Any) -> Any:
    """Return rich's console on stdout, which prints texts as they are, printable."""
    from rich.console import Console

    class PlainConsole(Console):
        def print(self, *objects: Any, **named: Any) -> None:
            super().print(*(printable(each) if isinstance(each, str) else each for each in objects), **named)

    return PlainConsole(highlight=False, markup=False, emoji=False, **options)
