"""The steps of a run on a GPU, one by one: seconds, bytes copied, and shares of what the GPU can do.

    python benchmarks/bench_gpu.py --engine pse.onnx --faces 100000 --faces 584000

What the GPU can do is measured first, by the same calls: a copy of a gigabyte within its memory, and one large product
of rows, of float16 and of float32. The share of arithmetic is that of multiplications and additions in a step's
seconds: of scores, which are computed in float16 (all pairs: float32), and of the passes of layer-wise inference in
float32. The share of bandwidth counts every score, or number of a table, as written and read once, and nothing else, so
that it is a lower bound. Faces are generated, in memory. Each step is warmed up on few faces, which compiles the
kernels. Results are written after each number of faces.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import click
import numpy as np
from faces import make_faces
from report import RESULTS, write_report

from fcdeploy.engine.bundle import Bundle, read_bundle
from fcdeploy.engine.tensors import DeviceEngine
from fcdeploy.graph.best_cuda import address
from fcdeploy.graph.cell_search import RECALL
from fcdeploy.graph.cell_search_cuda import cells_on_device, pairs_on_device, ranks_on
from fcdeploy.graph.cells import Cells, cell_count
from fcdeploy.graph.cuda import copied, import_cupy
from fcdeploy.graph.partition import make_cells
from fcdeploy.graph.products_cuda import DeviceProducts, multiplied
from fcdeploy.graph.rerank_cuda import ranking_on_device, reranks_on_device
from fcdeploy.systems.pse_gcn.layers_cuda import (
    ENGINE_ROWS,
    PASSES,
    ResidentLayers,
    lists_on_device,
    rows_by_place,
)

WARM_UP = 3000
SCORE_BYTES = 8  # of a score, written and read
COPY_BYTES = 1 << 30
SIDE = 8192  # of the product whose rate is measured
REPEATS = 5
BLOCK = 8192  # faces re-ranked per call, as in a run
NUMBERS_OF_PASSES = 30  # in parts of d: of features and tables that the passes read and write per face
DEVICE = "cuda"


@dataclass(frozen=True)
class Peaks:
    """What a GPU was measured to do: bytes per second within its memory, operations per second in both types."""

    bandwidth: float
    float16: float
    float32: float


@click.command()
@click.option("--faces", "sizes", multiple=True, type=int, default=(100_000, 584_000), show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--k", default=80, show_default=True)
@click.option("--all-pairs/--no-all-pairs", default=True, show_default=True, help="Compare all pairs, too.")
@click.option(
    "--copy", "copy_bytes", default=COPY_BYTES, show_default=True, help="Bytes of the copy that is timed."
)
@click.option("--side", default=SIDE, show_default=True, help="Rows of the product that is timed.")
@click.option(
    "--engine",
    type=click.Path(path_type=Path),
    help="A bundle of PSE-GCN of --dim, whose layers are measured, too.",
)
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(
    sizes: tuple[int, ...],
    dim: int,
    k: int,
    all_pairs: bool,
    copy_bytes: int,
    side: int,
    engine: Path | None,
    folder: Path,
) -> None:
    """Measure the steps of a GPU's part in a run."""
    cupy = import_cupy()
    bundle = None if engine is None else read_bundle(engine)
    peaks = peaks_of(cupy, copy_bytes, side)
    arguments: dict[str, object] = {
        "dim": dim,
        "k": k,
        "recall": RECALL,
        "copy_bytes": copy_bytes,
        "side": side,
    }
    arguments |= {
        "bandwidth_gb_per_s": peaks.bandwidth / 1e9,
        "float16_tflop_per_s": peaks.float16 / 1e12,
        "float32_tflop_per_s": peaks.float32 / 1e12,
    }
    arguments |= versions(cupy)
    list(steps(cupy, peaks, WARM_UP, dim, min(k, WARM_UP), all_pairs, bundle))
    rows: list[dict[str, Any]] = []
    for faces in sizes:
        try:
            for row in steps(cupy, peaks, faces, dim, k, all_pairs, bundle):
                rows.append(row)
        finally:  # what was measured before a step failed
            write_report("gpu", rows, arguments, folder)


def versions(cupy: ModuleType) -> dict[str, object]:
    """Return the versions of CuPy and CUDA, and the device memory that is free."""
    runtime = cupy.cuda.runtime
    return {
        "cupy": cupy.__version__,
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cuda_driver": runtime.driverGetVersion(),
        "free_bytes": runtime.memGetInfo()[0],
    }


def peaks_of(cupy: ModuleType, copy_bytes: int, side: int) -> Peaks:
    """Measure a copy within the device's memory, and products of ``side`` rows of ``side`` numbers."""
    rates = (2 * side**3 / product_seconds(cupy, side, dtype) for dtype in (np.float16, np.float32))
    return Peaks(2 * copy_bytes / copy_seconds(cupy, copy_bytes), *rates)


def copy_seconds(cupy: ModuleType, size: int) -> float:
    source, target = (cupy.empty((size,), np.uint8) for _ in range(2))
    return fastest(cupy, lambda: target.data.copy_from_device_async(source.data, size, current(cupy)))


def product_seconds(cupy: ModuleType, side: int, dtype: type[np.floating]) -> float:
    products, rows = DeviceProducts(cupy), cupy.empty((side, side), dtype)
    rows.set(np.random.default_rng(0).integers(-127, 128, (side, side)).astype(dtype))
    out = cupy.empty((side, side), np.float32)
    of, to, size = address(rows), address(out), np.dtype(dtype).itemsize
    return fastest(cupy, lambda: products.multiply(of, side, of, side, side, size, to, side))


def current(cupy: ModuleType) -> Any:
    """Return the stream that work is put on."""
    return cupy.cuda.get_current_stream()


def fastest(cupy: ModuleType, work: Callable[[], object]) -> float:
    """Return the seconds that ``work`` takes at best, after one call that does not count."""
    seconds = []
    for _ in range(1 + REPEATS):
        current(cupy).synchronize()
        start = time.perf_counter()
        work()
        current(cupy).synchronize()
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def steps(
    cupy: ModuleType, peaks: Peaks, faces: int, dim: int, k: int, all_pairs: bool, bundle: Bundle | None
) -> Iterator[dict[str, Any]]:
    """Yield a row for each step on ``faces`` generated faces; what one step finds, the next takes."""
    vectors, _ = make_faces(faces, dim, 1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    every = np.arange(faces, dtype=np.int32)

    def measured(
        step: str, work: Callable[[], Any], peak: float = peaks.float16, own: int = 0, numbers: int = 0
    ) -> tuple[Any, dict[str, Any]]:
        """own: operations, and numbers: read or written, per face, beside those of scores."""
        before = (copied.there, copied.back, multiplied.scores, multiplied.operations)
        start = time.perf_counter()
        found = work()
        seconds = time.perf_counter() - start
        after = (copied.there, copied.back, multiplied.scores, multiplied.operations)
        there, back, scores, operations = (now - then for now, then in zip(after, before, strict=True))
        row = {"faces": faces, "step": step, "seconds": seconds, "to_device_gb": there / 1e9}
        row |= {"from_device_gb": back / 1e9, "scores_per_face": scores / faces}
        row |= {"of_arithmetic": (operations + own * faces) / seconds / peak}
        row |= {"of_bandwidth": (SCORE_BYTES * scores + 4 * numbers * faces) / seconds / peaks.bandwidth}
        return found, row

    def cells_of() -> Cells:
        with ranks_on(gpu=True) as ranks:
            return make_cells(vectors, cell_count(faces), products=ranks)

    cells, row = measured("cells", cells_of)
    yield row
    order = cells.order()
    place = np.empty(faces, np.int32)
    place[order] = every
    ids, sims = np.empty((faces, k), np.int32), np.empty((faces, k), np.float32)

    def in_cells() -> None:
        with cells_on_device(vectors, cells, k, 0) as search:
            if search is None:
                raise click.ClickException("there is no room on the GPU to search in")
            search.cut = search.reach_for(k).cut
            ids[order], sims[order] = search.search(order, k)

    yield measured("kNN in cells", in_cells)[1]
    if reranks_on_device(faces, k, dim, gpu=True, vram=0):
        ranked = np.empty_like(ids)

        def rerank() -> None:
            with ranking_on_device(ids, k, order, place, vectors, 0) as ranking:
                for start in range(0, faces, BLOCK):
                    places = every[start : start + BLOCK]
                    ranked[order[places]] = order[ranking.rank(places, sims[order[places]])[0]]

        yield measured("re-ranking", rerank)[1]
        if bundle is not None:
            work = layers_of(cupy, bundle, vectors, ids, sims, ranked, order, place)
            numbers = NUMBERS_OF_PASSES * dim
            yield measured("layers", work, peaks.float32, operations_of(bundle, PASSES), numbers)[1]
    if all_pairs:

        def among_all() -> None:
            with pairs_on_device(vectors, k, 0) as search:
                if search is None:
                    raise click.ClickException("there is no room on the GPU for all vectors")
                search.search(every, k)

        yield measured("kNN among all pairs", among_all, peaks.float32)[1]


def layers_of(
    cupy: ModuleType,
    bundle: Bundle,
    vectors: np.ndarray,
    ids: np.ndarray,
    sims: np.ndarray,
    ranked: np.ndarray,
    order: np.ndarray,
    place: np.ndarray,
) -> Callable[[], None]:
    """Return what computes the layers of all faces as a run does, engines and copies included."""
    near = bundle.manifest["recipe"]["neighborhood"]
    hops, active = (near["hops"][0], near["hops"][1]), near["active"]
    hops = (min(hops[0], ids.shape[1]), hops[1])
    cells = cast(Any, SimpleNamespace(order=order, place=place))

    def work() -> None:
        with contextlib.ExitStack() as stack:
            lists = lists_on_device(
                cupy, ids, sims, ranked, cells, reach=max(hops[0], hops[1] + 1), active=active
            )
            features = rows_by_place(cupy, vectors, cells, None)
            layers = ResidentLayers(cupy, features, lists, hops, active, lambda rows, places: None, keep=True)
            opened = [stack.enter_context(bundle.open(name, device=DEVICE)) for name in PASSES]
            engines = [cast(DeviceEngine, engine) for engine in opened]
            for start in range(0, len(order), ENGINE_ROWS):
                places = np.arange(start, min(start + ENGINE_ROWS, len(order)))
                layers.refined(order[places], places, engines)

    return work


def operations_of(bundle: Bundle, passes: tuple[str, ...]) -> int:
    """Return the multiplications and additions per row in products with the weights of some passes."""
    import onnx

    total = 0
    for name in passes:
        graph = onnx.load(bundle.file(name)).graph
        weights = {one.name: list(one.dims) for one in graph.initializer}
        used = [
            weights[at]
            for node in graph.node
            if node.op_type in ("MatMul", "Gemm")
            for at in node.input[:2]
            if at in weights
        ]
        total += sum(2 * int(np.prod(shape)) for shape in used)
    return total


if __name__ == "__main__":
    main()
