"""Small SVG pictures, in a light and a dark form: boxes with arrows, bars, and curves on logarithmic axes.

Written by hand and not by a plotting library, so that the same figures give the same bytes with any version of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"


@dataclass(frozen=True)
class Theme:
    """Colours of a picture: text, lines, the inside of boxes, and series in order."""

    ink: str
    faint: str
    line: str
    box: str
    accent: str
    series: tuple[str, ...]


LIGHT = Theme(
    "#1c2326", "#5b666b", "#9aa5aa", "#eef4f4", "#00796b", ("#00796b", "#d9822b", "#3b62b5", "#8e5bb5")
)
DARK = Theme(
    "#e4eaec", "#a6b1b6", "#6d7a80", "#24313a", "#4db6ac", ("#4db6ac", "#f0a860", "#8aabf0", "#c79be8")
)


@dataclass
class Picture:
    """A picture in the making; coordinates are pixels from the upper left."""

    width: int
    height: int
    theme: Theme
    title: str
    parts: list[str] = field(default_factory=list)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        *,
        size: float = 13,
        anchor: str = "start",
        color: str = "",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="600"' if bold else ""
        self.parts.append(
            f'<text x="{x:g}" y="{y:g}" font-size="{size:g}" text-anchor="{anchor}" '
            f'fill="{color or self.theme.ink}"{weight}>{escape(words)}</text>'
        )

    def rect(
        self, x: float, y: float, w: float, h: float, *, fill: str, stroke: str = "none", radius: float = 0
    ) -> None:
        self.parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{radius:g}" fill="{fill}" '
            f'stroke="{stroke}"/>'
        )

    def path(
        self, d: str, *, color: str = "", width: float = 1.5, arrow: bool = False, dashed: bool = False
    ) -> None:
        more = ' marker-end="url(#tip)"' if arrow else ""
        more += ' stroke-dasharray="5 4"' if dashed else ""
        self.parts.append(
            f'<path d="{d}" fill="none" stroke="{color or self.theme.line}" stroke-width="{width:g}"{more}/>'
        )

    def dot(self, x: float, y: float, color: str, radius: float = 4) -> None:
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" fill="{color}"/>')

    def box(
        self, x: float, y: float, w: float, h: float, lines: Sequence[str], *, strong: bool = False
    ) -> None:
        """Draw a box with a title and lines below it, in its middle."""
        self.rect(
            x, y, w, h, fill=self.theme.box, stroke=self.theme.accent if strong else self.theme.line, radius=6
        )
        top = y + h / 2 - (len(lines) - 1) * 8.5 + 5
        for at, line in enumerate(lines):
            first = at == 0
            self.text(
                x + w / 2,
                top + at * 17,
                line,
                size=14 if first else 12,
                anchor="middle",
                color=self.theme.ink if first else self.theme.faint,
                bold=first,
            )

    def __str__(self) -> str:
        tip = (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
            f'orient="auto"><path d="M0 0L8 4L0 8z" fill="{self.theme.line}"/></marker></defs>'
        )
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" '
            f'height="{self.height}" font-family="{FONT}" role="img"><title>{escape(self.title)}</title>'
        )
        return "\n".join([head, tip, *self.parts, "</svg>", ""])


def chain(
    theme: Theme, title: str, boxes: Sequence[Sequence[str]], *, across: int = 3, strong: int = -1
) -> str:
    """Draw boxes in rows, each with an arrow to the next; ``strong`` is the one that stands out."""
    w, h, gap, down = 170, 74, 35, 34
    rows = math.ceil(len(boxes) / across)
    picture = Picture(across * w + (across - 1) * gap + 4, rows * h + (rows - 1) * down + 4, theme, title)
    for at, lines in enumerate(boxes):
        row, column = divmod(at, across)
        x, y = 2 + column * (w + gap), 2 + row * (h + down)
        picture.box(x, y, w, h, lines, strong=at == strong)
        if at + 1 == len(boxes):
            break
        if column + 1 < across:
            picture.path(f"M{x + w + 3} {y + h / 2:g}H{x + w + gap - 3}", arrow=True)
        else:
            middle = y + h + down / 2
            picture.path(
                f"M{x + w / 2:g} {y + h + 2}V{middle:g}H{2 + w / 2:g}V{y + h + down - 3}", arrow=True
            )
    return str(picture)


def curves(
    theme: Theme,
    title: str,
    series: Sequence[tuple[str, Sequence[tuple[float, float]]]],
    *,
    axes: tuple[str, str],
    note: str,
    ticks: Sequence[tuple[float, str]],
) -> str:
    """Draw curves over logarithmic axes, each point with its value; ``ticks`` are those of the upward axis."""
    picture = Picture(640, 400, theme, title)
    left, right, top, bottom = 74, 610, 66, 316
    xs = [x for _, points in series for x, _ in points]
    low, high = math.log10(min(xs)) - 0.08, math.log10(max(xs)) + 0.12
    floor, roof = math.log10(ticks[0][0]), math.log10(ticks[-1][0])

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log10(x) - low) / (high - low)
        up = (math.log10(y) - floor) / (roof - floor)
        return left + across * (right - left), bottom - up * (bottom - top)

    picture.text(8, 22, title, size=15, bold=True)
    picture.text(8, 44, axes[1], size=12, color=theme.faint)
    for value, label in ticks:
        y = place(xs[0], value)[1]
        picture.path(f"M{left} {y:.1f}H{right}", width=0.6)
        picture.text(left - 8, y + 4, label, size=12, anchor="end", color=theme.faint)
    for x in sorted(set(xs)):
        at = place(x, ticks[0][0])[0]
        picture.path(f"M{at:.1f} {bottom}V{bottom + 5}")
        picture.text(at, bottom + 19, f"{x:,.0f}", size=12, anchor="middle", color=theme.faint)
    picture.text((left + right) / 2, bottom + 38, axes[0], size=12, anchor="middle", color=theme.faint)
    for color, (_, points) in zip(theme.series, series, strict=False):
        placed = [place(x, y) for x, y in points]
        picture.path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in placed), color=color, width=2)
        for x, y in placed:
            picture.dot(x, y, color)
    for at, (color, (name, _)) in enumerate(zip(theme.series, series, strict=False)):
        picture.dot(left + 14, top + 12 + 18 * at, color)
        picture.text(left + 24, top + 16 + 18 * at, name, size=12)
    picture.text(8, 386, note, size=11, color=theme.faint)
    return str(picture)


def bars(
    theme: Theme,
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    *,
    names: Sequence[str],
    note: str,
    low: float,
) -> str:
    """Draw bars from left to right, some per row, from ``low`` to 1, each with its value; the note may have lines."""
    step = 15 * len(names) + 12
    lines = note.split("\n")
    top, left, right = 62, 150, 590
    picture = Picture(640, top + step * len(rows) + 26 + 16 * len(lines), theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    x = 8.0
    for color, name in zip(theme.series, names, strict=False):
        picture.rect(x, 37, 11, 11, fill=color)
        picture.text(x + 17, 47, name, size=12, color=theme.faint)
        x += 40 + 7 * len(name)
    for at, (label, values) in enumerate(rows):
        y = top + step * at
        picture.text(left - 10, y + step / 2 - 1, label, size=13, anchor="end")
        for below, (color, value) in enumerate(zip(theme.series, values, strict=False)):
            w = (value - low) / (1 - low) * (right - left)
            picture.rect(left, y + 15 * below, w, 13, fill=color)
            picture.text(left + w + 6, y + 15 * below + 11, f"{value:.3f}", size=12)
    for at, line in enumerate(lines):
        picture.text(8, top + step * len(rows) + 20 + 16 * at, line, size=11, color=theme.faint)
    return str(picture)
