"""All pictures of the pages: ``python docs/pictures/make.py`` (or ``make docs-pictures``) writes them.

Figures come from benchmarks/results; each picture is written as NAME.svg and, for dark pages, NAME-dark.svg.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

from curves_of_quality import precision_recall, threshold  # noqa: E402
from plots import memory_over_time, run_over_time  # noqa: E402
from schematics import cells, exact_and_layerwise  # noqa: E402
from svg import DARK, LIGHT, Picture, Theme, bars, chain, curves  # noqa: E402
from terminal import terminal  # noqa: E402

RESULTS = HERE.parent.parent / "benchmarks/results"
METHODS = {
    "nsr": "NSR-FC",
    "lce-pcenet": "LCE-PCENet",
    "pse-pairwise": "PSE-GCN",
    "gcn-v-pairwise": "GCN-V",
    "sepfl-pairwise": "SEPFL",
    "l-gcn-pairwise": "L-GCN",
    "gcn-d-segment-pairwise": "GCN-D, segmented",
    "gcn-d": "GCN-D",
    "denser links": "links, no network",
    "DBSCAN": "DBSCAN",
    "HDBSCAN": "HDBSCAN",
    "components": "components",
}
UNSEEN = {
    "PSE-GCN, 128-d": "PSE-GCN",
    "LCE-PCENet, 128-d": "LCE-PCENet",
    "GCN-D, detection": "GCN-D",
    "links to denser faces": "links, no network",
    "HDBSCAN": "HDBSCAN",
    "DBSCAN": "DBSCAN",
    "components": "components",
}
MACHINES = {
    "scale_avx2": "2 cores, no AVX-512",
    "scale": "2 cores, AVX-512",
    "scale_gpu": "16 cores and an H200",
}


def results(name: str) -> dict[str, Any]:
    """Return the figures of a benchmark."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def data_flow(theme: Theme) -> str:
    boxes = [
        ("features", "embeddings, (n, d)"),
        ("neighbors", "k nearest per face"),
        ("neighborhoods", "who is seen with whom"),
        ("engine", "the network, as ONNX", "or a TensorRT plan"),
        ("links", "who belongs together"),
        ("clusters", "labels.meta"),
    ]
    return chain(theme, "How data flows", boxes, strong=3)


def house(theme: Theme) -> str:
    """The folders of the package, each of which imports from those above it only."""
    rows = [
        ("data", "files in and out"),
        ("graph", "who is near whom"),
        ("clustering", "components, propagation, measures"),
        ("engine", "bundles, ONNX Runtime, TensorRT"),
        ("run", "options, artifacts, the run folder"),
        ("systems", "six networks, one folder each"),
        ("runtime", "a whole run; the Python interface"),
        ("deploy", "checkpoints to bundles and plans"),
        ("training", "training and tuning"),
        ("report", "looking at clusters"),
        ("cli", "a thin command per verb"),
    ]
    picture = Picture(500, 34 * len(rows) + 4, theme, "The folders of fcdeploy, in the order of the data")
    for at, (name, what) in enumerate(rows):
        y = 2 + 34 * at
        picture.rect(2, y, 440, 28, fill=theme.box, stroke=theme.line, radius=5)
        picture.text(14, y + 19, name, bold=True, size=14)
        picture.text(130, y + 19, what, size=13, color=theme.faint)
    bottom = 34 * len(rows) - 6
    picture.path(f"M470 {bottom}V8", arrow=True)
    picture.text(0, 0, "imports", size=12, anchor="middle", color=theme.faint)
    picture.parts[-1] = picture.parts[-1].replace(
        "<text ", f'<text transform="translate(490 {bottom / 2}) rotate(-90)" '
    )
    return str(picture)


def way_to_the_machine(theme: Theme) -> str:
    boxes = [
        ("checkpoint.pth", "the authors', or yours"),
        ("pse.onnx/", "fcdeploy export", "checked against PyTorch"),
        ("pse.plan/", "fcdeploy build", "for one kind of GPU"),
        ("machine with a GPU", "fcdeploy cluster", "no PyTorch there"),
    ]
    return chain(theme, "From a checkpoint to the machine that clusters", boxes, across=2, strong=3)


def systems() -> dict[str, Callable[[Theme], str]]:
    """Return a schematic for each system."""
    steps = {
        "pse-gcn": [
            ("neighbors", "k nearest, re-ranked"),
            ("neighborhood", "two hops around a face"),
            ("block 1", "edges drawn again from", "learned features; mean"),
            ("block 2", "once more; one refined", "feature per face"),
            ("link", "to the nearest denser", "face, if similar enough"),
            ("clusters", "connected faces"),
        ],
        "nsr-fc": [
            ("refinement", "PSE-GCN's network"),
            ("re-scoring", "a transformer corrects", "distances to neighbors"),
            ("LCENet", "how likely each neighbor", "is the same person"),
            ("candidates", "the strongest denser face;", "the surest are certain"),
            ("PCENet", "confirms the others"),
            ("clusters", "connected faces"),
        ],
        "sepfl": [
            ("neighbors", "k nearest"),
            ("encoding", "what a face takes from", "its neighbors, once each"),
            ("candidate", "the nearest denser face"),
            ("classifier", "same person or not,", "from both encodings"),
            ("links", "those accepted"),
            ("clusters", "connected faces"),
        ],
        "l-gcn": [
            ("neighbors", "k nearest"),
            ("sub-graph", "a face, its neighbors", "and some of theirs"),
            ("graph network", "scores each link from", "the face to a neighbor"),
            ("threshold", "links below it go"),
            ("too large?", "the threshold rises", "inside such components"),
            ("clusters", "what is left connected"),
        ],
        "gcn-d": [
            ("neighbors", "k nearest"),
            ("proposals", "components at several", "thresholds; they overlap"),
            ("detection", "how good is each", "proposal?"),
            ("segmentation", "optional: who does", "not belong to it?"),
            ("de-overlap", "the best proposal that", "holds a face keeps it"),
            ("clusters", "no face in two"),
        ],
        "ve-gcn": [
            ("neighbors", "k nearest"),
            ("GCN-V", "confidence: how pure is", "a face's surrounding?"),
            ("candidates", "neighbors of higher", "confidence"),
            ("GCN-E", "optional: which of", "them to link to"),
            ("links", "to the nearest or best,", "if similar enough"),
            ("clusters", "connected faces"),
        ],
    }
    networks = {"pse-gcn": 3, "nsr-fc": 2, "sepfl": 3, "l-gcn": 2, "gcn-d": 2, "ve-gcn": 1}

    def drawn(name: str) -> Callable[[Theme], str]:
        return lambda theme: chain(theme, f"How {name} clusters", steps[name], strong=networks[name])

    return {name: drawn(name) for name in steps}


def scale_runs() -> list[tuple[str, list[dict[str, Any]]]]:
    return [(label, results(name)["arguments"]["runs"]) for name, label in MACHINES.items()]


def minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"


def time_over_faces(theme: Theme) -> str:
    series = [(label, [(r["faces"], r["wall_seconds"]) for r in runs]) for label, runs in scale_runs()]
    last = [points[-1] for _, points in series]
    slow, fast, gpu = (minutes(seconds) for _, seconds in last)
    title = f"{last[0][0]:,} faces take {slow} or {fast} on two cores, {gpu} with a GPU"
    return curves(
        theme,
        title,
        [(f"{name}: {minutes(points[-1][1])}", points) for name, points in series],
        axes=("faces", "time of fcdeploy cluster, PSE-GCN, layer-wise, IVF search beyond 50,000 faces"),
        note=f"benchmarks/results/scale.json, scale_avx2.json, scale_gpu.json; {results('scale')['date'][:10]} and "
        f"{results('scale_gpu')['date'][:10]}",
        ticks=[(1, "1 s"), (10, "10 s"), (60, "1 min"), (600, "10 min"), (3600, "1 h")],
    )


def memory_over_faces(theme: Theme) -> str:
    series = [(label, [(r["faces"], r["peak_bytes"] / 1e9) for r in runs]) for label, runs in scale_runs()]
    faces, two = series[1][1][-1]
    gpu = series[2][1][-1][1]
    return curves(
        theme,
        f"{faces:,} faces take {two:.1f} GB on two cores, {gpu:.1f} GB with a GPU",
        [(f"{name}: {points[-1][1]:.1f} GB", points) for name, points in series],
        axes=(
            "faces",
            "peak memory, pages of mapped files counted; budgets of 4 GB, and of 16 GB with the GPU",
        ),
        note="benchmarks/results/scale.json, scale_avx2.json, scale_gpu.json; "
        f"{results('scale')['date'][:10]} and {results('scale_gpu')['date'][:10]}",
        ticks=[(0.1, "0.1 GB"), (1, "1 GB"), (10, "10 GB"), (100, "100 GB")],
    )


def quality(theme: Theme) -> str:
    found, later = results("quality"), results("quality_gcn_v")
    best: dict[str, tuple[float, float]] = {}
    for row in [*found["rows"], *later["rows"]]:
        pair = (row["pairwise F"], row["BCubed F"])
        best[row["method"]] = max(best.get(row["method"], (0.0, 0.0)), pair)
    rows = sorted(((label, best[name]) for name, label in METHODS.items()), key=lambda row: -row[1][0])
    without = max(best[name][0] for name in ("denser links", "DBSCAN", "HDBSCAN", "components"))
    title = f"In-sample: {rows[0][0]} reaches {rows[0][1][0]:.3f}, the best without a network {without:.3f}"
    faces = found["arguments"]["faces"]
    note = (
        f"{faces:,} faces of people that no network was trained on; all thresholds chosen on these same faces, for\n"
        "pairwise F, so that all are too high. Bars begin at 0.4.\n"
        f"benchmarks/results/quality.json, {found['date'][:10]};\n"
        f"benchmarks/results/quality_gcn_v.json, {later['date'][:10]}"
    )
    return bars(theme, title, rows, names=("pairwise F", "BCubed F"), note=note, low=0.4)


def unseen(theme: Theme) -> str:
    """Draw what each method gives on the half of the people that its threshold was not chosen on."""
    found = results("unseen")
    faces = found["rows"][0]["faces"]
    rows = [
        (UNSEEN[row["name"]], [row["reported"][name]["f"] for name in ("pairwise F", "BCubed F")])
        for row in found["rows"]
        if row["faces"] == faces and row["tuned for"].startswith("mean")
    ]
    rows.sort(key=lambda row: -row[1][0])
    networks = [row for row in rows if row[0] in list(UNSEEN.values())[:3]]
    without = max(row[1][0] for row in rows if row not in networks)
    best = f"{rows[0][0]} {rows[0][1][0]:.3f}"
    title = f"On other people: {best}, the best without a network {without:.3f}"
    note = (
        f"Thresholds chosen on {faces['choosing']:,} faces, for the mean of both F, "
        f"and measured on {faces['reporting']:,} faces of other people.\n"
        "Pairwise F is uncertain by ten points, as one person has a fifth of these faces. Bars begin at 0.4.\n"
        f"benchmarks/results/unseen.json, {found['date'][:10]}"
    )
    return bars(theme, title, rows, names=("pairwise F", "BCubed F"), note=note, low=0.4)


def pictures() -> dict[str, str]:
    """Return the text of every picture by the name of its file."""
    drawn: dict[str, Callable[[Theme], str]] = {
        "data-flow": data_flow,
        "house": house,
        "way-to-the-machine": way_to_the_machine,
        "time-over-faces": time_over_faces,
        "memory-over-faces": memory_over_faces,
        "quality": quality,
        "unseen": unseen,
        "exact-and-layerwise": exact_and_layerwise,
        "cells": cells,
        "run-folder": lambda theme: run_over_time(theme, results("timeline")),
        "memory-over-time": lambda theme: memory_over_time(theme, results("timeline")),
        "precision-recall": lambda theme: precision_recall(theme, results("compare_demo")),
        "threshold": lambda theme: threshold(theme, results("compare_demo")),
        "demo": lambda theme: terminal(theme, RESULTS / "demo.cast", 3),
        **systems(),
    }
    return {
        f"{name}{suffix}.svg": draw(theme)
        for name, draw in drawn.items()
        for suffix, theme in (("", LIGHT), ("-dark", DARK))
    }


if __name__ == "__main__":
    for file, text in pictures().items():
        (HERE / file).write_text(text)
