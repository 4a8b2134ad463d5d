"""Curves of quality over a threshold, from what ``fcdeploy compare -o`` writes for the demo's faces."""

from collections.abc import Mapping
from typing import Any

from plots import Frame, legend, origin
from svg import Picture, Theme

Found = Mapping[str, Any]
TITLES = {
    "pse-gcn-demo": "PSE-GCN",
    "pse.onnx": "PSE-GCN",
    "lce-pcenet-demo": "LCE-PCENet",
    "lce-pcenet.onnx": "LCE-PCENet",
}
TENTHS = [(at / 10, f"{at / 10:.1f}") for at in range(11)]


def precision_recall(theme: Theme, found: Found) -> str:
    """Pairwise precision over recall of each method, its best marked."""
    compared = found["arguments"]["compared"]
    rows = sorted(compared["rows"], key=lambda row: -row["best"]["pairwise"]["f"])
    engines = [row for row in rows if row["engine"]]
    without = next(row for row in rows if not row["engine"])
    high = engines[0]["best"]["pairwise"]
    title = (
        f"{title_of(engines[0])} reaches F {high['f']:.3f}; the best without a network {f_of(without):.3f}"
    )
    picture = Picture(640, 440, theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    frame = Frame(picture, 56, 620, 64, 350, (0.5, 1), (0.5, 1))
    ticks = [tick for tick in TENTHS if tick[0] >= 0.5]
    frame.ticks_up(ticks, "pairwise precision")
    frame.ticks_across(ticks, "pairwise recall")
    colors = [*theme.series, theme.faint, theme.line]
    for color, row in zip(colors, rows, strict=False):
        points = [(one["pairwise"]["recall"], one["pairwise"]["precision"]) for one in row["curve"]]
        shown = [(x, y) for x, y in front(points) if x >= 0.5 and y >= 0.5]
        frame.line(shown, color, dashed=not row["engine"])
        picture.dot(
            *frame.at(row["best"]["pairwise"]["recall"], row["best"]["pairwise"]["precision"]), color, 5
        )
    entries = [
        (color, f"{title_of(row)}: F {f_of(row):.3f}") for color, row in zip(colors, rows, strict=False)
    ]
    legend(picture, 72, 344 - 18 * len(entries), entries, down=True)
    told = f"{compared['faces']:,} faces of {compared['identities']:,} people that no network was trained on"
    note = f"{told}; dots: the best F, chosen on these same faces"
    picture.text(8, 412, note, size=11, color=theme.faint)
    picture.text(8, 428, origin(found, "compare_demo"), size=11, color=theme.faint)
    return str(picture)


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other beats in both measures, by growing recall."""
    found: list[tuple[float, float]] = []
    for recall, precision in sorted(points, reverse=True):
        if not found or precision > found[-1][1]:
            found.append((recall, precision))
    return found[::-1]


def title_of(row: Found) -> str:
    """Return a method's name for people."""
    name: str = row["name"]
    return TITLES.get(name, name)


def f_of(row: Found) -> float:
    best: float = row["best"]["pairwise"]["f"]
    return best


def threshold(theme: Theme, found: Found) -> str:
    """Precision, recall and F of one engine over its threshold, the recipe's marked."""
    compared = found["arguments"]["compared"]
    row = next(row for row in compared["rows"] if row["engine"])
    (key,) = row["own"]["values"]
    own, best = row["own"], row["best"]
    chosen, highest = own["values"][key], best["values"][key]
    title = f"{title_of(row)}: F {own['pairwise']['f']:.3f} at the recipe's {key} = {chosen:g}, {f_of(row):.3f} at best"
    picture = Picture(640, 400, theme, title)
    picture.text(8, 22, title, size=15, bold=True)
    curve = sorted(
        (one for one in row["curve"] if one["values"][key] >= 0.4), key=lambda one: one["values"][key]
    )
    values = [one["values"][key] for one in curve]
    frame = Frame(picture, 56, 620, 84, 310, (values[0], values[-1]), (0, 1))
    frame.ticks_up([tick for tick in TENTHS if round(10 * tick[0]) % 2 == 0], "")
    frame.ticks_across([(at, label) for at, label in TENTHS if values[0] <= at <= values[-1]], key)
    names = {"precision": 1, "recall": 2, "f": 0}
    for measure, color in names.items():
        points = [(one["values"][key], one["pairwise"][measure]) for one in curve]
        frame.line(points, theme.series[color], width=3 if measure == "f" else 2)
    shown = {"precision": "pairwise precision", "recall": "pairwise recall", "f": "pairwise F"}
    legend(picture, 8, 46, [(theme.series[color], shown[name]) for name, color in names.items()])
    sides = ("start", "end") if chosen > highest else ("end", "start")
    for value, words, anchor in ((chosen, "recipe", sides[0]), (highest, "best", sides[1])):
        x = frame.at(value, 0)[0]
        picture.path(
            f"M{x:.1f} {frame.top}V{frame.bottom}", color=theme.ink, width=1.2, dashed=words == "recipe"
        )
        picture.text(
            x + (-4 if anchor == "end" else 4), frame.top - 4, words, size=12, anchor=anchor, bold=True
        )
    note = "Too low joins different people (precision falls), too high splits them (recall falls)."
    picture.text(8, 372, note, size=11, color=theme.faint)
    picture.text(8, 388, origin(found, "compare_demo"), size=11, color=theme.faint)
    return str(picture)
