"""Plots of measured figures: a run over time, precision against recall, figures over a threshold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svg import Picture, Theme

Point = tuple[float, float]
Rows = Sequence[Mapping[str, Any]]
STAGES = {  # lines of `fcdeploy cluster`, and what the picture calls them
    "kNN": "neighbors",
    "re-ranking": "re-ranking",
    "refinement": "network",
    "kNN of refined": "neighbors of refined",
}


@dataclass(frozen=True)
class Frame:
    """The area of a picture that a plot takes, in pixels, and the values at its edges."""

    picture: Picture
    left: float
    right: float
    top: float
    bottom: float
    x: Point
    y: Point

    def at(self, x: float, y: float) -> Point:
        """Return the pixel of a point; one beyond an edge lies on it."""
        across = min(max((x - self.x[0]) / (self.x[1] - self.x[0]), 0), 1)
        up = min(max((y - self.y[0]) / (self.y[1] - self.y[0]), 0), 1)
        return self.left + across * (self.right - self.left), self.bottom - up * (self.bottom - self.top)

    def ticks_across(self, ticks: Iterable[tuple[float, str]], name: str) -> None:
        faint = self.picture.theme.faint
        for value, label in ticks:
            x = self.at(value, self.y[0])[0]
            self.picture.path(f"M{x:.1f} {self.bottom}V{self.bottom + 5}")
            self.picture.text(x, self.bottom + 19, label, size=12, anchor="middle", color=faint)
        middle = (self.left + self.right) / 2
        self.picture.text(middle, self.bottom + 38, name, size=12, anchor="middle", color=faint)

    def ticks_up(self, ticks: Iterable[tuple[float, str]], name: str) -> None:
        faint = self.picture.theme.faint
        for value, label in ticks:
            y = self.at(self.x[0], value)[1]
            self.picture.path(f"M{self.left} {y:.1f}H{self.right}", width=0.6)
            self.picture.text(self.left - 8, y + 4, label, size=12, anchor="end", color=faint)
        self.picture.text(8, self.top - 14, name, size=12, color=faint)

    def line(self, points: Sequence[Point], color: str, *, width: float = 2, dashed: bool = False) -> None:
        placed = "L".join("{:.1f} {:.1f}".format(*self.at(*point)) for point in points)
        self.picture.path(f"M{placed}", color=color, width=width, dashed=dashed)

    def area(self, lower: Sequence[Point], upper: Sequence[Point], color: str, opacity: float) -> None:
        """Fill between two curves over the same values."""
        around = "L".join("{:.1f} {:.1f}".format(*self.at(*point)) for point in (*upper, *lower[::-1]))
        self.picture.parts.append(f'<path d="M{around}Z" fill="{color}" fill-opacity="{opacity:g}"/>')


def legend(
    picture: Picture, x: float, y: float, entries: Iterable[tuple[str, str]], *, down: bool = False
) -> None:
    """Draw a square of each colour with what it stands for, side by side or one below the other."""
    for color, name in entries:
        picture.rect(x, y - 10, 11, 11, fill=color, radius=2)
        picture.text(x + 17, y, name, size=12, color=picture.theme.faint)
        x, y = (x, y + 18) if down else (x + 36 + 6.6 * len(name), y)


def seconds_across(end: float) -> list[tuple[float, str]]:
    """Return about six ticks in seconds or minutes."""
    step = next(step for step in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200) if end / step <= 7)
    return [(at, f"{at // 60} min" if step >= 60 else f"{at} s") for at in range(0, int(end) + 1, step)]


def memory_over_time(theme: Theme, found: Mapping[str, Any]) -> str:
    """Memory of a run over time, its own and that of mapped files, against the budget."""
    told = found["arguments"]
    samples = told["samples"]
    budget = megabytes(told["memory"])
    own = [(at, bytes_ / 1e6) for at, bytes_, _ in samples]
    both = [(at, (bytes_ + mapped) / 1e6) for at, bytes_, mapped in samples]
    highest, anonymous = max(y for _, y in both), max(y for _, y in own)
    title = f"{told['faces']:,} faces with a budget of {budget:,.0f} MB: {anonymous:,.0f} MB at most"
    picture = Picture(640, 380, theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    top = 200 * (int(max(highest, budget) * 1.08) // 200 + 1)
    frame = Frame(picture, 74, 620, 84, 300, (0, told["ended_s"]), (0, top))
    step = next(step for step in (100, 200, 500, 1000, 2000) if top / step <= 6)
    frame.ticks_up([(at, f"{at:,}") for at in range(0, top + 1, step)], "megabytes")
    frame.ticks_across(seconds_across(told["ended_s"]), "time")
    zero = [(at, 0.0) for at, _ in own]
    for run in split_at(len(samples), [at for at, *_ in samples], told["killed_s"]):
        frame.area(own[run], both[run], theme.series[2], 0.25)
        frame.area(zero[run], own[run], theme.series[0], 0.75)
    frame.line([(0, budget), (told["ended_s"], budget)], theme.ink, width=1.5, dashed=True)
    x, y = frame.at(told["ended_s"], budget)
    picture.text(x, y - 6, "budget", size=12, anchor="end", bold=True)
    mark_kill(frame, told["killed_s"])
    entries = [(theme.series[0], "memory of the process"), (theme.series[2], "pages of mapped files")]
    legend(picture, 8, 46, entries)
    picture.text(8, 366, origin(found, "timeline"), size=11, color=theme.faint)
    return str(picture)


def run_over_time(theme: Theme, found: Mapping[str, Any]) -> str:
    """Stages of a run that was killed and continued: what the folder kept, and what was computed again."""
    told = found["arguments"]
    stages = list(dict.fromkeys(row["stage"] for row in found["rows"]))
    height = 28 * len(stages)
    killed, ended = told["killed_s"], told["ended_s"]
    title = "A run that was killed goes on where it was"
    picture = Picture(640, 152 + height, theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    frame = Frame(picture, 170, 620, 84, 84 + height, (0, ended), (0, len(stages)))
    frame.ticks_across(seconds_across(ended), "time")
    seen: dict[str, float] = {}
    for row in found["rows"]:
        y = frame.top + 28 * stages.index(row["stage"])
        left, right = frame.at(row["start_s"], 0)[0], frame.at(row["stop_s"], 0)[0]
        again = row["run"] == 2 and row["stage"] == stages[len(seen)] if row["stage"] not in seen else False
        picture.rect(left, y + 4, max(right - left, 2), 19, fill=theme.series[1 if again else 0], radius=2)
        seen[row["stage"]] = row["stop_s"]
    for at, stage in enumerate(stages):
        picture.text(160, frame.top + 28 * at + 18, stage, size=13, anchor="end")
    mark_kill(frame, killed)
    picture.text(8, 140 + height, origin(found, "timeline"), size=11, color=theme.faint)
    return str(picture)


def mark_kill(frame: Frame, killed: float) -> None:
    """Draw where a run was killed."""
    x = frame.at(killed, 0)[0]
    picture = frame.picture
    picture.path(
        f"M{x:.1f} {frame.top - 6}V{frame.bottom}", color=picture.theme.series[1], width=2, dashed=True
    )
    picture.text(x, frame.top - 12, "killed; the same command again", size=12, anchor="middle", bold=True)


def split_at(n: int, times: Sequence[float], killed: float) -> tuple[slice, slice]:
    """Return the samples before and after a kill."""
    first = sum(at <= killed for at in times)
    return slice(0, first), slice(first, n)


def megabytes(size: str) -> float:
    """Return a memory budget, as the command line takes it, in millions of bytes."""
    return float(size[:-1]) * 1024 ** (1 + "KMGT".index(size[-1])) / 1e6


def origin(found: Mapping[str, Any], name: str) -> str:
    """Return where the figures of a picture come from."""
    machine = found["machine"]
    return f"benchmarks/results/{name}.json, {found['date'][:10]}; {machine['cores']} cores"
