"""Propagation of scored links, from the links of all faces to labels: seconds and memory.

    python benchmarks/bench_propagation.py --faces 584013 --neighbors 80

Links lie in files, as a run keeps them, and are made before the clock starts: most neighbors of a face are of its
person, most scores of these are high, and most of the others low. Pooling and propagation are measured apart; the
memory is what this process has in use at most, less what it had in use before, pages of the files included.
"""

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import click
import numpy as np
from report import write_report

from fcdeploy.clustering.propagation import NO_CLUSTER, POOLINGS, pool_links, propagate
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.memory import resident_bytes

SECONDS_BETWEEN_LOOKS = 0.01


@click.command()
@click.option("--faces", default=584_013, show_default=True)
@click.option("--neighbors", default=80, show_default=True, help="Links a face.")
@click.option("--person", default=68, show_default=True, help="Faces a person, on average.")
@click.option("--pooling", type=click.Choice(POOLINGS), default="mean", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(faces: int, neighbors: int, person: int, pooling: str, threads: int, seed: int) -> None:
    """Measure pooling and propagation."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch, threads_limited(threads):
        make_links(Path(scratch), faces, neighbors, person, seed)
        ids, probability = (
            np.load(Path(scratch) / f"{name}.npy", mmap_mode="r") for name in ("ids", "probability")
        )
        warm = slice(0, 1000 * neighbors)
        propagate(
            faces, *pool_links(ids[warm, 0], ids[warm, 1], probability[warm], pooling), max_size=9, step=0.6
        )
        runs: dict[str, dict[str, Any]] = {
            "l-gcn-ms1m": {"max_size": 300, "step": 0.6, "max_rounds": 100},
            "100 rounds": {"max_size": 300, "step": 0.05, "max_rounds": 100},
        }
        for name, settings in runs.items():
            memory = MemoryWatch()
            started = time.perf_counter()
            pairs = pool_links(ids[:, 0], ids[:, 1], probability, pooling)
            pooled = time.perf_counter()
            labels = propagate(faces, *pairs, threshold=float(probability.min()), **settings)
            ended = time.perf_counter()
            rows.append(
                {
                    "settings": name,
                    "links": len(ids),
                    "pairs": len(pairs[0]),
                    "clusters": int(labels.max()) + 1,
                    "unlinked": int((labels == NO_CLUSTER).sum()),
                    "pool_s": pooled - started,
                    "propagate_s": ended - pooled,
                    "seconds": ended - started,
                    "memory_mib": memory.stop() / 2**20,
                }
            )
            del pairs
    arguments = {
        "faces": faces,
        "neighbors": neighbors,
        "person": person,
        "pooling": pooling,
        "threads": threads,
    }
    write_report("propagation", rows, arguments)


def make_links(folder: Path, faces: int, neighbors: int, person: int, seed: int) -> None:
    """Write ids (faces * neighbors, 2) int32 and probability (faces * neighbors,) float32 of people in a row."""
    rng = np.random.default_rng(seed)
    shape = (faces * neighbors,)
    ids = np.lib.format.open_memmap(folder / "ids.npy", "w+", np.dtype(np.int32), (*shape, 2))
    probability = np.lib.format.open_memmap(folder / "probability.npy", "w+", np.dtype(np.float32), shape)
    name = rng.permutation(faces).astype(np.int32)  # faces of a person do not stand together
    for start in range(0, faces, 20_000):
        stop = min(start + 20_000, faces)
        own = np.arange(start, stop)[:, None]
        first = own // person * person
        others = first + rng.integers(0, person, (stop - start, neighbors))
        strangers = rng.random(others.shape) < 0.3
        others[strangers] = rng.integers(0, faces, int(strangers.sum()))
        others = np.minimum(others, faces - 1)
        sure = np.where(
            others // person == own // person, rng.beta(6, 1, others.shape), rng.beta(1, 12, others.shape)
        )
        rows = slice(start * neighbors, stop * neighbors)
        ids[rows, 0] = name[np.broadcast_to(own, others.shape)].ravel()
        ids[rows, 1] = name[others].ravel()
        probability[rows] = sure.ravel()
    ids.flush()
    probability.flush()


class MemoryWatch:
    """Looks at the memory in use until ``stop``, which returns by how much it grew at most."""

    def __init__(self) -> None:
        self.before = self.most = resident_bytes()
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)
        self.thread.start()

    def _look(self) -> None:
        while not self.stopped.wait(SECONDS_BETWEEN_LOOKS):
            self.most = max(self.most, resident_bytes())

    def stop(self) -> int:
        self.stopped.set()
        self.thread.join()
        return self.most - self.before


if __name__ == "__main__":
    main()
