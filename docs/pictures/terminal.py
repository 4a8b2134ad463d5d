"""A recorded terminal as a picture: lines appear one after the other, as they did."""

import json
import textwrap
from pathlib import Path

from svg import Picture, Theme

MONO = "ui-monospace, 'SF Mono', 'DejaVu Sans Mono', Menlo, Consolas, monospace"
LINE, WIDE = 17, 7.25  # pixels of a line, and of a letter of 12 pixels
LONGEST = 0.9  # seconds that a wait takes in the picture, at most


def terminal(theme: Theme, recording: Path, commands: int) -> str:
    """Draw the first commands of a recording (asciicast) and what they print.

    A wait is cut to ``LONGEST``; programs that do not animate show all lines.
    """
    head, *events = map(json.loads, recording.read_text().splitlines())
    columns: int = head["width"]
    lines: list[tuple[float, str, bool]] = []  # when, what, and whether it is typed
    clock = before = 0.0
    for at, _, told in events:
        text: str = told.rstrip("\r\n")
        if text.startswith("$ ") and (commands := commands - 1) < 0:
            break
        clock += min(at - before, LONGEST)
        before = at
        typed = text.startswith("$ ")
        lines += [(clock, part, typed) for part in folded(text, columns)]
    width, height = round(columns * WIDE) + 32, LINE * len(lines) + 58
    picture = Picture(width, height, theme, f"Recording of `{head['title']}`")
    picture.rect(1, 1, width - 2, height - 2, fill=theme.box, stroke=theme.line, radius=8)
    for at in range(3):
        picture.dot(20 + 16 * at, 18, theme.line, 5)
    picture.text(width / 2, 22, head["title"], size=12, anchor="middle", color=theme.faint)
    picture.parts.append(
        "<style>@keyframes come{from{opacity:0}to{opacity:1}}.t{animation:come .15s both;white-space:pre}"
        "@media(prefers-reduced-motion:reduce){.t{animation:none}}</style>"
    )
    for at, (clock, text, typed) in enumerate(lines):
        picture.text(
            16, 50 + LINE * at, text, size=12, color=theme.accent if typed else theme.ink, bold=typed
        )
        picture.parts[-1] = picture.parts[-1].replace(
            "<text ",
            f'<text class="t" style="animation-delay:{clock:.2f}s" font-family="{MONO}" xml:space="preserve" ',
            1,
        )
    return str(picture)


def folded(text: str, columns: int) -> list[str]:
    """Break a line as a shell user would: at spaces, with a backslash behind a command."""
    if not text.startswith("$ "):
        return textwrap.wrap(text, columns, drop_whitespace=False, subsequent_indent="  ") or [""]
    parts = textwrap.wrap(
        text, columns - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )
    return [f"{part} \\" for part in parts[:-1]] + parts[-1:]
