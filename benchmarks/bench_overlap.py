"""De-overlap: seconds to suppress and divide proposals that overlap.

    python benchmarks/bench_overlap.py --proposals 300000 --size 20

Proposals are drawn like those of a run: each is most of an identity's faces and a few of others, so that several
proposals are nearly the same. ``crowded`` draws as many from a tenth of the faces, where each face is in ten times as
many proposals.
"""

import time

import click
import numpy as np
from report import write_report

from fcdeploy.clustering.groups import offsets_from_sizes
from fcdeploy.clustering.overlap import first_holders, rank_proposals, suppress


@click.command()
@click.option("--proposals", default=300_000, show_default=True)
@click.option("--size", default=20, show_default=True, help="Faces a proposal, on average.")
@click.option("--faces", default=584_000, show_default=True)
@click.option("--max-iou", default=0.5, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(proposals: int, size: int, faces: int, max_iou: float, seed: int) -> None:
    """Measure suppression and de-overlap."""
    rows = []
    run(*draw(1000, size, 2000, seed), 2000, max_iou)  # compiles
    for name, n in (("as in a run", faces), ("crowded", faces // 10)):
        offsets, nodes, scores = draw(proposals, size, n, seed)
        seconds, kept, covered = run(offsets, nodes, scores, n, max_iou)
        rows.append(
            {
                "proposals": proposals,
                "mean_size": float(np.diff(offsets).mean()),
                "faces": n,
                "drawn": name,
                "kept": kept,
                "covered": covered,
                **seconds,
            }
        )
    write_report("overlap", rows, {"size": size, "max_iou": max_iou, "seed": seed})


def run(
    offsets: np.ndarray, nodes: np.ndarray, scores: np.ndarray, n: int, max_iou: float
) -> tuple[dict[str, float], int, int]:
    """Suppress and divide; seconds of both, and how many proposals and faces there are in the end."""
    started = time.perf_counter()
    order = rank_proposals(scores, -1.0)
    kept = order[suppress(n, offsets, nodes, order, max_iou)]
    suppressed = time.perf_counter()
    holder = first_holders(n, offsets, nodes, kept)
    ended = time.perf_counter()
    seconds = {"suppress_s": suppressed - started, "divide_s": ended - suppressed, "seconds": ended - started}
    return seconds, len(kept), int((holder >= 0).sum())


def draw(count: int, size: int, n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw proposals: offsets (count + 1,) int64, nodes int32, none twice in one, and scores (count,) float32."""
    rng = np.random.default_rng(seed)
    sizes = np.maximum(3, rng.poisson(size, count))
    person = 2 * size  # faces of an identity stand in a row
    first = rng.integers(0, max(1, n // person), count) * person
    offsets = offsets_from_sizes(sizes)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], sizes)
    start = np.repeat(rng.integers(0, person, count), sizes)
    nodes = np.repeat(first, sizes) + (start + place) % person
    strangers = rng.random(len(nodes)) < 0.05
    nodes[strangers] = rng.integers(0, n, int(strangers.sum()))
    pairs = np.unique(np.stack([np.repeat(np.arange(count), sizes), nodes % n]), axis=1)
    return (
        offsets_from_sizes(np.bincount(pairs[0], minlength=count)),
        pairs[1].astype(np.int32),
        rng.random(count, dtype=np.float32),
    )


if __name__ == "__main__":
    main()
