"""The numbers of the page: what stands in its tables and bars."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcdeploy.clustering.flags import FLAGS
from fcdeploy.clustering.metrics import Measures, evaluate
from fcdeploy.report.opened import OpenedRun
from fcdeploy.run.summary import Summary
from fcdeploy.runtime.computed import sentences

BINS = 10  # of confidence
SAYS = {
    "garbage": "neighbors do not hold it together, or its faces are hardly alike",
    "mega-cluster": "large, and its faces are hardly alike",
    "chain": "a part of it hangs on one weak link",
    "duplicate": "probably the same person as a larger cluster",
    "copies": "half of it, or more, are copies of one face",
    "stray": "holds a face that is near to no other",
    "borderline": "its faces are hardly nearer to each other than to another cluster",
}


@dataclass(frozen=True)
class Bar:
    """A line of a table with a bar: cells are text, share is its length in percent."""

    name: str
    cells: tuple[str, ...]
    share: float


def whole(number: float) -> str:
    """Write a count, with commas."""
    return f"{int(number):,}"


def rate(number: float) -> str:
    """Write what is done per second, a low rate with a digit behind the point."""
    return whole(number) if number >= 10 else f"{number:.1f}"


def real(number: float) -> str:
    """Write a measure with three digits, a dash where there is none."""
    return "–" if number != number else f"{number:.3f}"


def real4(number: float) -> str:
    """Write a measure of quality with four digits."""
    return f"{number:.4f}"


def stats_of(run: OpenedRun) -> list[dict[str, str]]:
    """Return the numbers at the top of the page."""
    labels, sizes = run.placed.labels, run.confidence.clusters.size
    found = {
        "faces": len(labels),
        "clusters": int((sizes > 1).sum()),
        "single faces": int((sizes == 1).sum()),
        "in no cluster": int((labels < 0).sum()),
        "faces in the largest": int(sizes.max(initial=0)),
    }
    stats = [
        {"name": name, "value": whole(value)} for name, value in found.items() if value or name == "faces"
    ]
    if stages := run.summary.get("stages"):
        seconds = sum(stage["seconds"] for stage in stages.values())
        stats.append({"name": "seconds", "value": f"{seconds:,.1f}"})
    if peak := run.summary.get("peak_bytes"):
        stats.append({"name": "peak memory", "value": f"{peak / 1e9:.2f} GB"})
    return stats


def sizes_of(sizes: np.ndarray) -> list[Bar]:
    """Return a histogram of sizes (c,): 1, 2, 3 to 4, 5 to 8, ..., by clusters, with the faces in them."""
    bins = np.ceil(np.log2(np.maximum(sizes, 1))).astype(np.int64)
    counts = np.bincount(bins)
    faces = np.bincount(bins, sizes).astype(np.int64)
    most = max(1, int(faces.max(initial=1)))
    bars = []
    for at, (count, inside) in enumerate(zip(counts.tolist(), faces.tolist(), strict=True)):
        first, last = (1 << at - 1) + 1 if at > 1 else at + 1, 1 << at
        name = whole(first) if first == last else f"{first:,} to {last:,}"
        bars.append(Bar(name, (whole(count), whole(inside)), round(100 * inside / most, 2)))
    return bars


def confidences_of(values: np.ndarray) -> list[Bar]:
    """Return a histogram of the confidence (n,) of faces that have one, in BINS equal steps between its ends."""
    known = values[~np.isnan(values)]
    if not len(known):
        return []
    low, high = float(known.min()), float(known.max())
    counts, edges = np.histogram(known, BINS if high > low else 1, (low, high if high > low else low + 1e-6))
    most = max(1, int(counts.max()))
    return [
        Bar(f"{edges[at]:.2f} to {edges[at + 1]:.2f}", (whole(count),), round(100 * count / most, 2))
        for at, count in enumerate(counts.tolist())
    ]


def stages_of(summary: Summary) -> list[Bar]:
    """Return the stages of a run with their seconds."""
    stages = summary.get("stages") or {}
    most = max((stage["seconds"] for stage in stages.values()), default=0) or 1
    return [
        Bar(
            name,
            (f"{stage['seconds']:,.2f}", rate(stage["faces_per_s"])),
            round(100 * stage["seconds"] / most, 2),
        )
        for name, stage in stages.items()
    ]


def flags_of(run: OpenedRun) -> list[dict[str, object]]:
    """Return how many clusters have each flag, and what it says."""
    flags = run.confidence.clusters.flags
    return [
        {"name": name, "count": int(np.count_nonzero(flags & bit)), "says": SAYS[name]}
        for name, bit in FLAGS.items()
        if name != "stray"
    ]


def quality_of(run: OpenedRun, source: str | None) -> dict[str, object] | None:
    """Return quality against true identities: those given now, else those that the run itself was given."""
    if run.truth is not None:
        found: Measures | None = evaluate(run.placed.labels, run.truth).as_dict()
    else:
        found, source = run.summary.get("quality"), "the labels that the run was given"
    if not found:
        return None
    return {
        "source": source,
        "unknown": found.get("unknown", 0),
        "nmi": found["nmi"],
        "rows": [
            {"name": "pairwise", **found["pairwise"]},
            {"name": "BCubed", **found["bcubed"]},
        ],
    }


def recall_of(summary: Summary) -> list[dict[str, object]]:
    """Return the measured recall of neighbor searches."""
    return [{"name": name, **found} for name, found in (summary.get("recall") or {}).items()]


def computed_of(summary: Summary) -> Iterator[str]:
    """Yield sentences that say what was run, by which engine, with which versions."""
    computed = summary.get("computed")
    if not computed:
        return
    yield from sentences(computed)
    yield ", ".join(f"{name} {version}" for name, version in computed.get("versions", {}).items())


def title_of(run: OpenedRun) -> str:
    """Return what the page is called: the features of the run, or its folder."""
    computed = run.summary.get("computed")
    features = computed.get("features") if computed else None
    return str((features and features.get("name")) or run.folder)
