"""The plot of what bench_latency.py has measured; draws it again from results/latency.json (or another file).

    python benchmarks/latency_plot.py benchmarks/results/latency.json

Two panels per pass: milliseconds per call, the median with a band up to the 99th percentile, and below them how many
faces, links or neighborhoods that is per second. Whole runs of one size are bars.
"""

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FIELDS = (
    *("system", "precision", "opened", "what", "calls", "p50_ms", "p90_ms", "p99_ms"),
    *("host_ms", "copies_ms", "compute_ms", "per_s"),
)
UNITS = {
    "m": "faces or links",
    "b": "neighborhoods",
    "s": "faces",
    "faces": "faces",
}  # by the first axis of inputs
OTHERS = {"n": "faces per neighborhood", "k": "neighbors per face"}
DASHES = ("-", "--", ":", "-.")
Row = dict[str, Any]
Curve = list[Row]


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw latency and throughput over the batch, two panels per pass; whole runs of one size are bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((row["system"], row["what"]) for row in rows))
    across = min(3, len(panels))
    lines = -(-len(panels) // across)
    figure = pyplot.figure(figsize=(4.6 * across, 4.7 * lines + 0.4), layout="constrained")
    whole, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(4.7 * lines, 0.4)).flat
    parts = whole.subfigures(lines, across, squeeze=False).flat
    colors = {name: f"C{at % 10}" for at, name in enumerate(dict.fromkeys(map(setting_of, rows)))}
    for part, (system, what) in zip(parts, panels, strict=False):
        own = [row for row in rows if (row["system"], row["what"]) == (system, what)]
        curves = curves_of(own)
        part.suptitle(f"{system}, {what}: up to {fastest(own)}", fontsize=10)
        if all(len(curve) == 1 for curve in curves):
            draw_bars(part.subplots(), own, colors)
        else:
            draw_curves(part.subplots(2, 1, sharex=True), curves, colors)
    shown = [pyplot.Line2D([], [], color=color, lw=3, label=name) for name, color in colors.items()]
    below.legend(handles=shown, loc="center", ncols=len(shown), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def setting_of(row: Row) -> str:
    """Return precision and device of a row, in words."""
    return f"{row['precision']}, {row['opened'].replace('ExecutionProvider', '')}"


def fastest(rows: Iterable[Row]) -> str:
    """Say the highest throughput of a panel, and of what."""
    row = max(rows, key=lambda row: float(row["per_s"]))
    return f"{row['per_s']:,.0f} {unit_of(row)} per second"


def curves_of(rows: Sequence[Row]) -> list[Curve]:
    """Return the rows of one pass as curves over their first size, which grows along each."""
    found: dict[tuple[object, ...], Curve] = {}
    for row in rows:
        _, *others = sizes_of(row)
        found.setdefault((setting_of(row), *(row[size] for size in others)), []).append(row)
    return [sorted(curve, key=first_size) for curve in found.values()]


def sizes_of(row: Row) -> list[str]:
    return [name for name in row if name not in FIELDS]


def first_size(row: Row) -> int:
    size: int = row[sizes_of(row)[0]]
    return size


def unit_of(row: Row) -> str:
    return UNITS.get(sizes_of(row)[0], "items")


def draw_curves(axes: "Sequence[Axes]", curves: Sequence[Curve], colors: dict[str, str]) -> None:
    """Draw the median in milliseconds with a band up to the 99th percentile, and below it the throughput."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    above, below = axes
    others = {tuple(row[size] for size in sizes_of(row)[1:]): sizes_of(row)[1:] for (row, *_) in curves}
    dashes = dict(zip(others, DASHES, strict=False))
    for curve in curves:
        sizes, first = [first_size(row) for row in curve], curve[0]
        key = tuple(first[size] for size in sizes_of(first)[1:])
        color, dash = colors[setting_of(first)], dashes.get(key, "-")
        above.plot(sizes, [row["p50_ms"] for row in curve], color=color, ls=dash, marker="o", ms=4)
        low, high = ([row[f"p{p}_ms"] for row in curve] for p in (50, 99))
        above.fill_between(sizes, low, high, color=color, alpha=0.12, lw=0)
        below.plot(sizes, [row["per_s"] for row in curve], color=color, ls=dash, marker="o", ms=4)
    if len(dashes) > 1:
        for key, dash in dashes.items():
            told = ", ".join(
                f"{value} {OTHERS.get(size, size)}" for size, value in zip(others[key], key, strict=True)
            )
            above.plot([], [], color="gray", ls=dash, label=told)
        above.legend(fontsize=7, framealpha=0.6)
    unit = unit_of(curves[0][0])
    ticks = sorted({first_size(row) for curve in curves for row in curve})
    above.set(xscale="log", yscale="log", ylabel="milliseconds per call\n(median, band to p99)")
    below.set(xscale="log", ylabel=f"{unit}\nper second", xlabel=f"batch: {unit} per call")
    below.set_ylim(bottom=0, top=1.12 * below.get_ylim()[1])
    below.set_xlim(ticks[0] / 1.2, ticks[-1] * 1.2)  # points at the edges are whole
    below.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    for axis in axes:
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axis.grid(alpha=0.3)
    above.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    above.yaxis.set_minor_formatter(NullFormatter())


def draw_bars(axis: "Axes", rows: Sequence[Row], colors: dict[str, str]) -> None:
    """Draw the median of whole runs in milliseconds, with a line up to the 99th percentile, and the throughput."""
    for at, row in enumerate(reversed(rows)):
        middle, late = row["p50_ms"], row["p99_ms"]
        whisker = [[0.0], [max(0.0, late - middle)]]
        axis.barh(at, middle, xerr=whisker, color=colors[setting_of(row)], height=0.5, capsize=3)
        told = f"{middle:,.0f} ms (p99 {late:,.0f}), {row['per_s']:,.0f} faces per second"
        axis.text(0, at + 0.34, told, fontsize=8).set_in_layout(False)
    axis.set(
        xlabel=f"milliseconds per run of {first_size(rows[0]):,} faces",
        yticks=[],
        ylim=(-0.6, len(rows) - 0.2),
    )
    axis.set_xlim(left=0)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        plot(json.loads(Path(name).read_text())["rows"], Path(name).with_suffix(".png"))
