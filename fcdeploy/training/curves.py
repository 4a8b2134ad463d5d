"""Curves as a table and as a picture: those of a training, and precision against recall."""

import csv
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.side_files import head_of
from fcdeploy.errors import FcdeployWarning, MissingDependencyError
from fcdeploy.packages import import_package

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SIZE, DPI = (8.0, 4.5), 120
SOFTWARE = "fcdeploy"  # in a picture, by which it is known as ours


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV, columns in the order in which they first occur; what a row lacks stays empty."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with atomic_file(path) as file:
        file.write(text.getvalue().encode())


def draw_training(path: Path, rows: Sequence[Mapping[str, object]], measures: Sequence[str]) -> None:
    """Draw the loss of every row over its step, and beside it the measures, if any, of those that have them."""

    def draw(figure: "Figure") -> None:
        left, *others = figure.subplots(1, 2 if measures else 1, squeeze=False)[0]
        left.plot([row["step"] for row in rows], [row["loss"] for row in rows], linewidth=1)
        left.set(xlabel="step", ylabel="loss")
        if not others:
            return
        (right,) = others
        checked = [row for row in rows if all(name in row for name in measures)]
        for name in measures:
            right.plot([row["step"] for row in checked], [row[name] for row in checked], ".-", label=name)
        right.set(xlabel="step", ylabel="validation", ylim=(0, 1))
        if checked:
            right.legend(loc="lower right")

    _draw(path, draw)


def draw_precision_recall(
    path: Path,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    chosen: Mapping[str, tuple[float, float]],
    title: str,
) -> None:
    """Draw curves of (recall, precision) by name, and mark the chosen point of each."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for name, points in curves.items():
            (line,) = axes.plot(*zip(*points, strict=True), ".-", markersize=3, label=name)
            axes.plot(*chosen[name], "o", color=line.get_color(), markersize=8)
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02), title=title)
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left")

    _draw(path, draw)


def draw_stability(
    path: Path, key: str, points: Sequence[tuple[float, float, float]], chosen: float, title: str
) -> None:
    """Draw votes, and agreement with the value before, over the values of a threshold: (value, votes, agreement)."""

    def draw(figure: "Figure") -> None:
        left = figure.subplots()
        values, votes, agreement = zip(*points, strict=True)
        left.plot(values, votes, ".-", label="votes of neighbors, per face")
        left.axvline(chosen, linestyle="--", color="gray")
        left.set(xlabel=key, ylabel="votes", title=title)
        right = left.twinx()
        right.plot(values, agreement, ".-", color="tab:orange", label="agreement with the value before")
        right.set(ylabel="adjusted Rand index", ylim=(0, 1.02))
        left.legend(loc="lower left")
        right.legend(loc="lower right")

    _draw(path, draw)


def is_drawn_here(path: Path) -> bool:
    """Tell whether a file is a picture that was drawn by this module."""
    return f"Software\0{SOFTWARE}".encode() in head_of(path)


def _draw(path: Path, draw: Callable[["Figure"], None]) -> None:
    install = "pip install 'fcdeploy[train]'"
    try:
        agg, figures = (
            import_package(f"matplotlib.{name}", "matplotlib", install)
            for name in ("backends.backend_agg", "figure")
        )
    except MissingDependencyError as error:
        warnings.warn(f"{path} was not drawn: {error}", FcdeployWarning, stacklevel=2)
        return
    figure = figures.Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    agg.FigureCanvasAgg(figure)
    draw(figure)
    with atomic_file(path) as file:
        figure.savefig(file, format="png", metadata={"Software": SOFTWARE})
