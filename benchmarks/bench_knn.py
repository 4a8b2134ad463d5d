"""Neighbor search on generated faces: ``ivf`` against ``cells``, seconds, memory and recall.

    python benchmarks/bench_knn.py --faces 584000 --dim 256

Every measurement runs in a process of its own, after a warm-up on 3,000 faces that compiles the kernels; the methods
take turns, so that a ratio compares runs of the same minutes. The time is that of the whole search: training and
assigning cells, building the index, choosing how far to look (cells), and the lists of all faces. CPU seconds are
those of all threads: on a machine that others use as well, compare these. Recall is measured on one seeded sample of
faces, the same for all methods: among all k neighbors, and among those at least as similar as the threshold.
"""

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
from faces import generate
from report import peak_bytes, write_report

from fcdeploy.graph.cell_search import CellSearch
from fcdeploy.graph.cells import cell_count
from fcdeploy.graph.knn import KnnGraph, KnnSearch
from fcdeploy.graph.partition import make_cells
from fcdeploy.graph.products import FloatProducts, Int8Products, Products
from fcdeploy.graph.recall import measure_recall
from fcdeploy.graph.threads import threads_limited

BLOCK = 65536
WARM_UP = 3000
THRESHOLD = 0.6
RATE_SHAPE = (128, 192)  # rows and columns of the products whose rate is measured


@click.command()
@click.option("--faces", "sizes", multiple=True, type=int, default=(100_000,), show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--k", default=80, show_default=True)
@click.option(
    "--recall",
    "recalls",
    multiple=True,
    type=float,
    default=(0.97, 0.98),
    show_default=True,
    help="Recall that cells aim at; repeatable.",
)
@click.option("--int8/--no-int8", default=True, show_default=True, help="Use NumKong's int8 products.")
@click.option("--threads", default=2, show_default=True)
@click.option("--repeat", default=1, show_default=True, help="Runs of each; their medians are reported.")
@click.option("--name", default="knn", show_default=True, help="Name of the report in benchmarks/results.")
def main(
    sizes: tuple[int, ...],
    dim: int,
    k: int,
    recalls: tuple[float, ...],
    int8: bool,
    threads: int,
    repeat: int,
    name: str,
) -> None:
    """Compare the searches on the same faces."""
    rows: list[dict[str, Any]] = []
    rates = in_a_process(measure_rates, dim, int8)
    with tempfile.TemporaryDirectory() as folder:
        for faces in sizes:
            features, _ = generate(Path(folder) / str(faces), faces, dim)
            wanted: list[tuple[str, float]] = [("ivf", 0.0), *(("cells", recall) for recall in recalls)]
            runs: dict[tuple[str, float], list[dict[str, Any]]] = {one: [] for one in wanted}
            for _ in range(repeat):
                for method, recall in wanted:
                    made = in_a_process(measure, features, dim, k, method, recall, int8, threads)
                    runs[method, recall].append(made)
            before = {key: median(runs["ivf", 0.0], key) for key in ("seconds", "cpu_seconds")}
            for (method, recall), made in runs.items():
                row = {"faces": faces, "dim": dim, "method": method, "aim": recall or ""}
                row |= {key: median(made, key) for key in made[0]}
                row["times_ivf"] = before["seconds"] / row["seconds"]
                row["times_ivf_cpu"] = before["cpu_seconds"] / row["cpu_seconds"]
                rows.append(row)
            features.unlink()
    arguments = {"k": k, "threads": threads, "repeat": repeat, "int8": int8, "block": BLOCK}
    write_report(name, rows, {**arguments, "threshold": THRESHOLD, "rates_of_one_core": rates})
    for rate, value in rates.items():
        click.echo(f"{rate}, one core: {value:.0f}")


def median(runs: list[dict[str, Any]], key: str) -> Any:
    """Return the median of a figure over runs."""
    return statistics.median(run[key] for run in runs)


def in_a_process(function: Any, *arguments: Any) -> Any:
    """Return what a function returns in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def products_of(int8: bool) -> Products:
    """Return NumKong's products or NumPy's."""
    return Int8Products() if int8 else FloatProducts()


def unit_vectors(features: Path, dim: int) -> np.ndarray:
    """Return the faces (n, d) float32 as unit rows."""
    vectors = np.fromfile(features, dtype="<f4").reshape(-1, dim)
    for start in range(0, len(vectors), BLOCK):
        rows = vectors[start : start + BLOCK]
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return vectors


def measure(
    features: Path, dim: int, k: int, method: str, recall: float, int8: bool, threads: int
) -> dict[str, Any]:
    """Search for the neighbors of all faces and return what it took."""
    vectors = unit_vectors(features, dim)
    with threads_limited(threads):
        search_all(vectors[:WARM_UP].copy(), min(k, WARM_UP), method, recall, int8)
        graph, seconds = search_all(vectors, k, method, recall, int8)
        peak = peak_bytes()
        found = measure_recall(vectors, graph, THRESHOLD)
    return {**seconds, "peak_gb": peak / 1e9, "recall": found.all, "recall_above": found.above}


def search_all(
    vectors: np.ndarray, k: int, method: str, recall: float, int8: bool
) -> tuple[KnnGraph, dict[str, float]]:
    """Return the lists of all faces, and the seconds of each part."""
    n = len(vectors)
    ids, sims = np.empty((n, k), dtype=np.int32), np.empty((n, k), dtype=np.float32)
    times, cpu = [time.perf_counter()], time.process_time()
    search: KnnSearch | CellSearch
    products = products_of(int8)
    cells = make_cells(vectors, cell_count(n), products=products)
    times.append(time.perf_counter())
    if method == "ivf":
        search = KnnSearch(vectors, cells)
    else:
        search = CellSearch(vectors, cells, products=products)
        search.cut = search.reach_for(k, recall).cut
    times.append(time.perf_counter())
    order = cells.order()
    for start in range(0, n, BLOCK):
        faces = order[start : start + BLOCK]
        ids[faces], sims[faces] = search.search(faces, k)
    times.append(time.perf_counter())
    parts = dict(zip(("cells_s", "index_s", "search_s"), np.diff(times).tolist(), strict=True))
    whole = {"seconds": times[-1] - times[0], "cpu_seconds": time.process_time() - cpu}
    return KnnGraph(ids, sims), {**whole, **parts}


def measure_rates(dim: int, int8: bool) -> dict[str, float]:
    """Return what products of small tiles make of one core, in 10^9 operations per second, two per product."""
    rng = np.random.default_rng(0)
    rates = {}
    measured: list[Products] = [FloatProducts(), *([Int8Products()] if int8 else [])]
    for products in measured:
        rows, others = (rng.integers(-127, 128, (size, dim)).astype(np.int8) for size in RATE_SHAPE)
        packed, taken = products.packed(others), rows.astype(products.rows)
        out: np.ndarray = np.empty(len(rows) * len(others), dtype=products.scores)
        seconds = []
        with threads_limited(1):
            for _ in range(200):
                start = time.thread_time()
                products.multiply(taken, packed, out)
                seconds.append(time.thread_time() - start)
        rates[f"{products.name} GOP/s"] = 2 * out.size * dim / statistics.median(seconds) / 1e9
    return rates


if __name__ == "__main__":
    main()
