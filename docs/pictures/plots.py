"""Plots of measured figures: a run over time, precision against recall, figures over a threshold."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from svg import Picture, Theme

Point = tuple[float, float]
Rows = Sequence[Mapping[str, Any]]
STAGES = {  # of the lines that `fcdeploy cluster` prints, those that are parts of one stage
    "lists by place": "re-ranking",
    "mutual neighbors": "re-ranking",
    "reciprocal sets": "re-ranking",
    "holders of reciprocal sets": "re-ranking",
    "kNN of refined": "second kNN",
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
    title = f"{told['faces']:,} faces with --memory {told['memory']}: the process takes {anonymous:,.0f} MB at most"
    picture = Picture(640, 386, theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    top = 200 * (int(max(highest, budget) * 1.08) // 200 + 1)
    frame = Frame(picture, 74, 620, 84, 300, (0, told["ended_s"]), (0, top))
    step = next(step for step in (100, 200, 500, 1000, 2000) if top / step <= 6)
    frame.ticks_up([(at, f"{at:,}") for at in range(0, top + 1, step)], "megabytes")
    frame.ticks_across(seconds_across(told["ended_s"]), "time")
    zero = [(at, 0.0) for at, _ in own]
    for run in split_at(len(samples), [at for at, *_ in samples], told["killed_s"]):
        frame.area(own[run], both[run], theme.series[2], 0.4)
        frame.area(zero[run], own[run], theme.series[0], 0.75)
    frame.line([(0, budget), (told["ended_s"], budget)], theme.ink, width=1.5, dashed=True)
    x, y = frame.at(told["ended_s"], budget)
    picture.text(x, y - 6, "budget", size=12, anchor="end", bold=True)
    mark_kill(frame, told["killed_s"])
    entries = [(theme.series[0], "memory of the process"), (theme.series[2], "pages of mapped files")]
    legend(picture, 8, 46, entries)
    note = "Pages of mapped files are released above the budget, and taken back by the system when others need memory."
    picture.text(8, 358, note, size=11, color=theme.faint)
    picture.text(8, 374, origin(found, "timeline"), size=11, color=theme.faint)
    return str(picture)


def run_over_time(theme: Theme, found: Mapping[str, Any]) -> str:
    """Stages of a run that was killed and continued: what was finished before, and what was computed after it."""
    told = found["arguments"]
    rows = [
        (STAGES.get(row["stage"], row["stage"].replace("refinement,", "pass")), row) for row in found["rows"]
    ]
    stages = list(dict.fromkeys(stage for stage, _ in rows))
    height = 30 * len(stages)
    killed, ended, faces = told["killed_s"], told["ended_s"], told["faces"]
    title = "A run that was killed is continued: finished work is not computed again"
    picture = Picture(640, 190 + height, theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    frame = Frame(picture, 110, 620, 84, 84 + height, (0, ended), (0, len(stages)))
    frame.ticks_across(seconds_across(ended), "time")

    def bar(stage: str, start: float, stop: float, color: str) -> None:
        left, right = frame.at(start, 0)[0], frame.at(stop, 0)[0]
        top = frame.top + 30 * stages.index(stage)
        picture.rect(left, top + 5, max(right - left, 2), 20, fill=color, radius=2)

    for stage, row in rows:
        bar(stage, row["start_s"], row["stop_s"], theme.series[row["run"] - 1])
    stage, resumed = next((stage, row) for stage, row in rows if row["run"] == 2)
    bar(stage, max(row["stop_s"] for _, row in rows if row["run"] == 1), killed, theme.series[0])
    for at, name in enumerate(stages):
        picture.text(100, frame.top + 30 * at + 20, name, size=13, anchor="end")
    mark_kill(frame, killed)
    legend(picture, 8, 46, [(theme.series[0], "before the kill"), (theme.series[1], "after it")])
    note = (
        f"{faces:,} faces. Of the pass that was interrupted, {stage.removeprefix('pass ')}, the blocks of "
        f"{faces - resumed['done']:,} faces were kept."
    )
    picture.text(8, 150 + height, note, size=11, color=theme.faint)
    picture.text(8, 166 + height, origin(found, "timeline"), size=11, color=theme.faint)
    return str(picture)


def mark_kill(frame: Frame, killed: float) -> None:
    """Draw where a run was killed."""
    x = frame.at(killed, 0)[0]
    picture = frame.picture
    picture.path(
        f"M{x:.1f} {frame.top - 6}V{frame.bottom}", color=picture.theme.series[1], width=2, dashed=True
    )
    picture.text(x, frame.top - 12, "killed; command repeated", size=12, anchor="middle", bold=True)


def split_at(n: int, times: Sequence[float], killed: float) -> tuple[slice, slice]:
    """Return the samples before and after a kill."""
    first = sum(at <= killed for at in times)
    return slice(0, first), slice(first, n)


def megabytes(size: str) -> float:
    """Return a memory budget, as the command line takes it, in millions of bytes."""
    return float(size[:-1]) * 1024 ** (1 + "KMGT".index(size[-1])) / 1e6


def origin(found: Mapping[str, Any], name: str) -> str:
    """Return where the figures of a picture come from."""
    shared = ", with other work running" if found["arguments"].get("load_before", 0) > 1 else ""
    cores = found["machine"]["cores"]
    return f"benchmarks/results/{name}.json, {found['date'][:10]}; {cores} cores{shared}"
