"""Curves as a table and as a picture: those of a training, and precision against recall."""

import csv
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcdeploy.data.atomic import atomic_file, check_parent
from fcdeploy.data.side_files import head_of
from fcdeploy.errors import FcdeployWarning, InputError, MissingDependencyError
from fcdeploy.packages import import_package

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE, DPI = (8.0, 4.5), 120
WIDE = (12.0, 5.2)  # of two panels
LABELS, TICKS, CROWDED = 10, 8, 4
PICTURES = (".png", ".svg")
INSTALL = "pip install 'fcdeploy[train]'"
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
    """Draw the loss, as it is and smoothed, and beside it the measures, if any, with the step whose mean is highest."""
    checked = [row for row in rows if measures and all(name in row for name in measures)]
    best = int(np.argmax([_mean(row, measures) for row in checked])) if checked else None

    def draw(figure: "Figure") -> None:
        left, *others = figure.subplots(1, 2 if measures else 1, squeeze=False)[0]
        _draw_loss(left, rows)
        if others:
            _draw_measures(others[0], checked, measures, best)
        for axes in (left, *others):
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
            if best is not None:
                axes.axvline(checked[best]["step"], linestyle="--", color="gray", linewidth=1)
        if best is not None:
            figure.suptitle(conclusion(checked, measures))

    _draw(path, draw)


def conclusion(checked: Sequence[Mapping[str, object]], measures: Sequence[str]) -> str:
    """Say which weights were kept, how good they are, and whether more steps might have helped.

    checked: rows of the steps at which people held out were clustered, in order.
    """
    means = [_mean(row, measures) for row in checked]
    best = int(np.argmax(means))
    row = checked[best]
    values = " and ".join(f"{_shown(name)} {row[name]:.3f}" for name in measures)
    if best < len(checked) - 1:
        after = f"F is {100 * (means[best] - means[-1]):.1f} points lower at the end"
    elif len(means) > 1 and means[-1] > means[-2]:
        after = f"the last ones, where F still rose by {100 * (means[-1] - means[-2]):.1f} points"
    else:
        after = "the last ones"
    return f"Kept: the weights of step {row['step']:,} ({after})\n{values} on people held out"


def _mean(row: Mapping[str, object], measures: Sequence[str]) -> float:
    return float(np.array([row[name] for name in measures], dtype=np.float64).mean())


def _shown(name: str) -> str:
    return {"pairwise_f": "pairwise F", "bcubed_f": "BCubed F"}.get(name, name)


def _draw_loss(axes: "Axes", rows: Sequence[Mapping[str, object]]) -> None:
    losses = np.array([row["loss"] for row in rows], dtype=np.float64)
    steps = np.array([row["step"] for row in rows])
    axes.plot(steps, losses, linewidth=0.8, alpha=0.35, label="as it is")
    axes.plot(steps, smoothed(losses), linewidth=2, color="C0", label="smoothed")
    axes.set(xlabel="training step", ylabel="training loss (lower is better)")
    axes.legend(loc="upper right", frameon=False)


def _draw_measures(
    axes: "Axes", checked: Sequence[Mapping[str, object]], measures: Sequence[str], best: int | None
) -> None:
    steps = np.array([row["step"] for row in checked])
    for at, name in enumerate(measures):
        values = np.array([row[name] for row in checked], dtype=np.float64)
        axes.plot(steps, values, ".-", color=f"C{at}", label=_shown(name))
        if best is not None:
            axes.plot(steps[best], values[best], "o", color=f"C{at}", markersize=8)
    lowest = min((_mean(row, [name]) for row in checked for name in measures), default=0.0)
    axes.set_ylim(max(0.0, np.floor(10 * lowest - 0.5) / 10), 1)
    axes.set(xlabel="training step", ylabel="F of clusters of people held out (higher is better)")
    axes.legend(loc="lower right", frameon=False)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the mean of each value and its neighbors, as many on either side; values: (n,) float64.

    A twentieth of all values on either side, and near the ends as many as there are; what is not finite is passed over.
    """
    known = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(known, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(known)])
    at = np.arange(len(values))
    reach = np.minimum(np.minimum(at, len(values) - 1 - at), max(1, len(values) // 20))
    first, last = at - reach, at + reach + 1
    with np.errstate(invalid="ignore"):
        means: np.ndarray = (sums[last] - sums[first]) / (counts[last] - counts[first])
    return means


@dataclass(frozen=True)
class MeasureToDraw:
    """One measure over the values of a threshold.

    points: (recall, precision) on the faces tuned on. elsewhere: F on halves of the people, (halves, values), no rows
    where that is not known; expected: F on other people, and between which two 19 of 20 sets of them lie.
    without: methods without a network at their best: their name, recall and precision.
    """

    points: Sequence[tuple[float, float]]
    elsewhere: np.ndarray
    expected: tuple[float, tuple[float, float]] | None
    without: Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class TradeOffToDraw:
    """What a threshold trades: its name, its values, which of them was chosen, and each measure by its title."""

    key: str
    values: Sequence[object]
    chosen: int
    measures: Mapping[str, MeasureToDraw]
    title: str


def draw_trade_off(path: Path, shown: TradeOffToDraw) -> None:
    """Draw precision against recall, the threshold at the points, and F over the threshold with what is expected."""

    def draw(figure: "Figure") -> None:
        figure.set_size_inches(*WIDE)
        left, right = figure.subplots(1, 2)
        positions = places_of_values(shown.values)
        for color, (name, measure) in enumerate(shown.measures.items()):
            _draw_points(left, shown, name, measure, f"C{color}")
            _draw_f(right, shown, positions, name, measure, f"C{color}")
        left.set(xlabel="recall: share of the right joins that are made", xlim=(0, 1.08), ylim=(0, 1.08))
        left.set(ylabel="precision: share of the joins made that are right")
        right.axvline(positions[shown.chosen], linestyle="--", color="gray", linewidth=1)
        right.set(xlabel=shown.key, ylabel="F", ylim=(0, 1.08))
        if [*positions] != [*shown.values]:  # each value where it comes, not where it stands
            ticks = spread_out(positions, TICKS)
            right.set_xticks([positions[at] for at in ticks], [f"{shown.values[at]}" for at in ticks])
        for axes, place in ((left, "lower left"), (right, "best")):
            axes.grid(alpha=0.3)
            axes.legend(loc=place, fontsize="small")
        figure.suptitle(shown.title)

    _draw(path, draw)


def _draw_points(axes: "Axes", shown: TradeOffToDraw, name: str, measure: MeasureToDraw, color: str) -> None:
    """Draw the curve of one measure, the threshold at some of its points, and methods without a network."""
    recall, precision = np.array(measure.points).T
    axes.plot(recall, precision, ".-", markersize=3, color=color, label=f"{name}, on the faces tuned on")
    axes.plot(recall[shown.chosen], precision[shown.chosen], "o", color=color, markersize=8)
    along = np.concatenate([[0], np.cumsum(np.hypot(np.diff(recall), np.diff(precision)))])
    side = 1 if color == "C1" else -1  # of the curve: one measure's right of it, the other's left
    for at in sorted({*spread_out(along, LABELS), shown.chosen}):
        axes.annotate(
            f"{shown.values[at]}",
            (recall[at], precision[at]),
            xytext=(5 * side, 4 if side > 0 else -9),
            textcoords="offset points",
            ha="left" if side > 0 else "right",
            fontsize=7,
            color=color,
            weight="bold" if at == shown.chosen else "normal",
        )
    for marker, (method, x, y) in zip("^svP", measure.without, strict=False):
        axes.plot(
            x, y, marker, color=color, markerfacecolor="none", markersize=7, label=f"{name}, {method} at best"
        )


def _draw_f(
    axes: "Axes",
    shown: TradeOffToDraw,
    positions: np.ndarray,
    name: str,
    measure: MeasureToDraw,
    color: str,
) -> None:
    """Draw F of one measure over the threshold: on the faces tuned on, on halves of the people, and as expected."""
    recall, precision = np.array(measure.points).T
    with np.errstate(invalid="ignore", divide="ignore"):
        f = np.nan_to_num(2 * recall * precision / (recall + precision))
    axes.plot(positions, f, "-", color=color, label=f"{name} F, on the faces tuned on")
    if len(measure.elsewhere):
        low, high = measure.elsewhere.min(axis=0), measure.elsewhere.max(axis=0)
        axes.fill_between(
            positions, low, high, color=color, alpha=0.15, label=f"{name} F, on halves of the people"
        )
    if measure.expected is not None:
        expected, (low, high) = measure.expected
        aside = 0.006 * np.ptp(positions)  # so that one measure's interval does not hide the other's
        axes.errorbar(
            positions[shown.chosen] + (aside if color == "C1" else -aside),
            expected,
            yerr=[[max(0, expected - low)], [max(0, high - expected)]],
            fmt="D",
            color=color,
            markerfacecolor="white",
            capsize=4,
            label=f"{name} F, expected on other people",
        )


def places_of_values(values: Sequence[object]) -> np.ndarray:
    """Return where values stand on an axis, (v,): numbers as they are, unless some lie too close together."""
    if all(isinstance(value, (int, float)) for value in values):
        numbers = np.array(values, np.float64)
        if len(numbers) < 2 or np.median(np.diff(numbers)) * CROWDED > np.ptp(numbers) / len(numbers):
            return numbers
    return np.arange(len(values), dtype=np.float64)


def spread_out(along: np.ndarray, most: int) -> list[int]:
    """Return the places of some values (v,), ascending, that are as far apart as ``most`` of them can be."""
    apart = (along[-1] - along[0]) / max(1, most - 1)
    chosen = [0]
    for at in range(1, len(along)):
        if along[at] - along[chosen[-1]] >= apart * (1 - 1e-9) and apart:
            chosen.append(at)
    return chosen


@dataclass(frozen=True)
class CurveToDraw:
    """Points (recall, precision) over a threshold, the best of them, and where it stands by itself, if anywhere."""

    name: str
    points: Sequence[tuple[float, float]]
    best: tuple[float, float]
    own: tuple[float, float] | None


def draw_compared(path: Path, curves: Sequence[CurveToDraw], title: str) -> None:
    """Draw curves of precision against recall as .png or .svg: those that have a point of their own as full lines."""

    def draw(figure: "Figure") -> None:
        axes = figure.subplots()
        for curve in curves:
            style = "--" if curve.own is None else "-"
            recall, precision = zip(*curve.points, strict=True)
            (line,) = axes.plot(recall, precision, style, linewidth=1.5, label=curve.name)
            axes.plot(*curve.best, "o", color=line.get_color(), markersize=8)
            if curve.own is not None:
                axes.plot(*curve.own, "D", color=line.get_color(), markersize=8, markerfacecolor="none")
        axes.plot([], [], "o", color="gray", label="at its best on these labels")
        if any(curve.own is not None for curve in curves):
            axes.plot([], [], "D", color="gray", markerfacecolor="none", label="at its own threshold")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.set_title(title, fontsize="medium")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", fontsize="small")

    _draw(path, draw)


def check_plot(path: Path) -> Path:
    """Return ``path`` when a plot can be drawn there; raises InputError, or MissingDependencyError, otherwise."""
    if path.suffix.lower() not in PICTURES:
        raise InputError(f"{path}: a plot is {' or '.join(PICTURES)}; give a name that ends so.")
    import_package("matplotlib", "matplotlib", INSTALL)
    return check_parent(path)


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
    try:
        agg, figures = (
            import_package(f"matplotlib.{name}", "matplotlib", INSTALL)
            for name in ("backends.backend_agg", "figure")
        )
    except MissingDependencyError as error:
        warnings.warn(f"{path} was not drawn: {error}", FcdeployWarning, stacklevel=2)
        return
    figure = figures.Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    agg.FigureCanvasAgg(figure)
    draw(figure)
    known = {"Creator": SOFTWARE, "Date": None} if path.suffix.lower() == ".svg" else {"Software": SOFTWARE}
    with atomic_file(path) as file:
        figure.savefig(file, format=path.suffix.lower()[1:] or "png", metadata=known)
