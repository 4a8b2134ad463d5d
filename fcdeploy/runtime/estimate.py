"""What a run would take, told before it starts: files, memory and, roughly, time.

Sizes are exact: they are those of the products that the run makes. Times are estimates from a few measurements on
this machine (the engine's passes on random inputs, faiss on random rows) and from the rates of the kernels between
them; expect them to be right within a factor of two.
"""

import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from fcdeploy.data.features import Features
from fcdeploy.data.run_record import Claims, check_run_folder
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.graph.cells import PER_ROOT, REFINED_PER_ROOT, cell_count
from fcdeploy.graph.faiss_library import import_faiss
from fcdeploy.graph.knn import PROBES
from fcdeploy.graph.partition import FEW, FEW_ITERATIONS, SAMPLE_PER_CELL
from fcdeploy.graph.products import quickest_products
from fcdeploy.graph.search import INDEX_SHARE
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.options import Options
from fcdeploy.run.store import expected_bytes
from fcdeploy.runtime.disk import index_bytes, most_at_once, search_of
from fcdeploy.runtime.prepare import Prepared, check_not_kept_in, passes_of_run, prepare
from fcdeploy.runtime.survey import places_of_run
from fcdeploy.systems import Workload

ROWS = 4096
CALLS = 2  # of what is timed, at least; more of what is quick, within so many seconds:
TIMED_SECONDS = 0.3
NODES = 128  # a typical proposal
SECOND_HOPS = 0.06  # of the faces that two hops could reach, those that are in a neighborhood
RERANK_SECONDS = 50e-6  # of one core a face at k = 80, measured on an EPYC of 2023
SPARSE_SECONDS = 15e-6  # of one core a face and sparse step of layer-wise inference, likewise
TRANSITION_SECONDS = 60e-6  # of one core a face: transition distances among 80 neighbors, likewise
COMPARED = 30  # times sqrt(n): faces that a search in cells compares each one with, at its usual recall
INT8_RATE = 3  # of integer products beside those of floats
CANDIDATE_SECONDS = 80e-9  # of one core per face and dimension: to compare and sort 112 candidates, likewise
LISTS_RATE = 0.15  # of the rate of matrix products, at which an IVF search compares
RUNTIME_BYTES = 300 << 20  # Python, numba, faiss and ONNX Runtime themselves
LINK_BYTES = 24  # that pooling and propagation take a scored link
BLOCK_BYTES = 200 << 20  # what blocks on their way through take
TAKEN_RATE = 5e8  # bytes per second that a run takes in from workers: read once, written once, synced


@dataclass(frozen=True)
class Estimate:
    """files: name -> (bytes, kept after the run); memory in bytes; seconds of each stage.

    bytes_at_once: the most that all files together take at any time, those of a search included.
    workers: machines like this one that compute the blocks, 0 for none; then ``shared`` says of each stage how many
    seconds they take together, and what is not in it this process does. Memory is that of one of them.
    """

    faces: int
    files: dict[str, tuple[int, bool]]
    bytes_at_once: int
    in_memory: bool
    memory_bytes: int
    seconds: dict[str, float]
    workers: int = 0
    shared: dict[str, float] = field(default_factory=dict)

    @property
    def elapsed(self) -> float:
        """The seconds of the whole run."""
        if not self.workers:
            return sum(self.seconds.values())
        written = sum(size for size, _ in self.files.values())
        alone = sum(self.seconds.values()) - sum(self.shared.values())
        return alone + max(sum(self.shared.values()) / self.workers, written / TAKEN_RATE)

    def as_dict(self) -> dict[str, object]:
        workers = {
            "workers": self.workers,
            "shared_seconds": self.shared,
            "elapsed_seconds": self.elapsed,
            "scratch_bytes_per_machine": sum(size for size, _ in self.files.values()),
        }
        return {
            **(workers if self.workers else {}),
            "faces": self.faces,
            "files": {name: {"bytes": size, "kept": kept} for name, (size, kept) in self.files.items()},
            "bytes_at_once": self.bytes_at_once,
            "in_memory": self.in_memory,
            "memory_bytes": self.memory_bytes,
            "seconds": {**self.seconds, "total": sum(self.seconds.values())},
        }


def estimate_run(
    features: Features, bundle: Bundle, options: Options, run_dir: Path | None, workers: int = 0
) -> Estimate:
    """Estimate a run of ``features`` through ``bundle``; nothing is written and no feature is read.

    workers: how many machines like this one compute its blocks, see docs/how-to/many-machines.md.

    Raises InputError for what ``run_clustering`` would refuse before it starts.
    """
    if run_dir is not None:
        check_not_kept_in(run_dir, options)
    prepared = prepare(features, bundle, options)
    features, options = prepared.features, prepared.options
    planned = prepared.artifacts(keeps=True)  # as with a run folder
    artifacts = {artifact.name: artifact for artifact in planned if artifact.shapes}
    if run_dir is not None:
        places = places_of_run(prepared.system, planned)
        check_not_kept_in(run_dir, options, features, places)
        _check_place(run_dir)
        Claims(run_dir, check_run_folder(run_dir)).check_free(places)
    for note in prepared.notes:
        warnings.warn(note, FcdeployWarning, stacklevel=2)
    files = {
        name: (expected_bytes(artifact.shapes, artifact.about), not artifact.scratch)
        for name, artifact in artifacts.items()
    }
    total = sum(size for size, _ in files.values())
    in_memory = run_dir is None and not workers and total <= options.budget // 2
    shared_out = options.budget // INDEX_SHARE
    indexes = index_bytes(planned, options, features.n).values()
    index = max((size for size in indexes if in_memory or size <= shared_out), default=0)
    scalars = 32 * features.n  # labels, densities, parents, cells, order
    pooled = LINK_BYTES * prepared.system.pooled(features.n, prepared.settings)
    working = RUNTIME_BYTES + BLOCK_BYTES + index + scalars + pooled
    memory = working + total if in_memory else min(max(options.budget, working), working + total)
    with threads_limited(options.cores):
        seconds = _seconds(prepared, artifacts)
    shared = {}
    if workers:
        serial = {
            "features": seconds["features"] / 2,
            "links": 0.0,
            "clusters": 0.0,
        }  # scanned, then read by blocks
        for name in ("knn", "refined_knn"):
            times, per_root = (2, REFINED_PER_ROOT) if name == "refined_knn" else (1, PER_ROOT)
            if seconds.get(name):
                serial[name] = _cells_seconds(features.n, times * features.dim, options, per_root)
        shared = {name: max(0.0, taken - serial.get(name, 0.0)) for name, taken in seconds.items()}
    at_once = most_at_once(planned, options, features.n)
    return Estimate(features.n, files, at_once, in_memory, memory, seconds, workers, shared)


def _check_place(run_dir: Path) -> None:
    """Raise InputError where no run folder can be, without making one."""
    if run_dir.exists() and not run_dir.is_dir():
        raise InputError(f"{run_dir}: is a file, where a folder is needed; choose another --run-dir.")
    if not run_dir.parent.is_dir():
        raise InputError(
            f"{run_dir}: the folder {run_dir.parent} does not exist; create it or choose another --run-dir."
        )


def _seconds(prepared: Prepared, artifacts: Mapping[str, Artifact]) -> dict[str, float]:
    """Estimate the seconds of each stage."""
    system, bundle, options = prepared.system, prepared.bundle, prepared.options
    n, dim, cores = prepared.features.n, prepared.features.dim, options.cores
    knn = 0.0 if options.knn_file else _knn_seconds(n, dim, options)
    seconds = {"features": 4 * 4 * n * dim / 1e9, "knn": knn}
    if "reranked" in artifacts and options.reranked is None:
        seconds["rerank"] = RERANK_SECONDS * n / cores
    for stage, searches in system.searches(prepared.settings).items():
        seconds[stage] = searches * _knn_seconds(n, dim, options)
    for name, load in _workload(prepared, artifacts).items():
        engine = _pass_seconds(prepared, bundle.passes[name], load)
        seconds[load.stage] = seconds.get(load.stage, 0.0) + engine * n + load.kernels * n / cores
    if options.inference == "layerwise":
        seconds["refine"] += 4 * SPARSE_SECONDS * n / cores
    if "transitions" in artifacts:
        seconds["links"] = seconds.get("links", 0.0) + TRANSITION_SECONDS * n / cores
    if "refined_knn" in artifacts:
        seconds["refined_knn"] = _knn_seconds(n, 2 * dim, options, REFINED_PER_ROOT)
    return seconds


def _workload(prepared: Prepared, artifacts: Mapping[str, Artifact]) -> Mapping[str, Workload]:
    """Return what a run does with each pass that it uses."""
    system, settings, bundle = prepared.system, prepared.settings, prepared.bundle
    if system.workload is not None:
        return system.workload(settings, bundle.weights, prepared.options)
    made = {"refined": "refine", "encoded": "encode"}
    stage = next((stage for name, stage in made.items() if name in artifacts), "detect")
    n = prepared.features.n
    nodes = _typical_nodes(settings)
    # Of as many graphs as are measured at a time.
    calls = system.graphs(n, settings, nodes) / n / (ROWS // nodes)
    return {
        name: Workload(stage, calls=None if bundle.passes[name].inputs[0].axes[0] == "m" else calls)
        for name in passes_of_run(system, settings, bundle.weights, prepared.options)
    }


def _typical_nodes(settings: object) -> int:
    """Return how many nodes a neighborhood has, roughly: second hops mostly lead to faces of the first."""
    if not hasattr(settings, "neighborhood"):
        return NODES
    first, second = settings.neighborhood.hops
    return max(1, int(first + SECOND_HOPS * first * second))


def _comparisons(n: int, dim: int) -> float:
    """Return how many pairs of rows this machine compares per second."""
    faiss = import_faiss()
    rows = np.random.default_rng(0).standard_normal((min(n, ROWS), dim), dtype=np.float32)
    queries = rows[:1024]
    seconds = _timed(lambda: faiss.knn(queries, rows, min(80, len(rows)), metric=faiss.METRIC_INNER_PRODUCT))
    return len(queries) * len(rows) / seconds


def _training(n: int, cells: int, comparisons: float) -> float:
    """Return the seconds of k-means, and then of finding the cell of every face."""
    compared = SAMPLE_PER_CELL * cells * (1 + FEW_ITERATIONS / FEW) + n  # with all cells; otherwise with few
    return compared * cells / _integers(comparisons)


def _integers(comparisons: float) -> float:
    """Return how many pairs of codes are compared per second, where so many pairs of rows are."""
    return comparisons * (INT8_RATE if quickest_products().rows is np.int8 else 1)


def _cells_seconds(n: int, dim: int, options: Options, per_root: int) -> float:
    """Return the seconds of making cells, if the search needs any."""
    if not search_of(options, n).in_cells:
        return 0.0
    return _training(n, cell_count(n, per_root), _comparisons(n, dim))


def _knn_seconds(n: int, dim: int, options: Options, per_root: int = PER_ROOT) -> float:
    comparisons = _comparisons(n, dim)
    search = search_of(options, n)
    if not search.in_cells:
        return n * n / comparisons
    cells = cell_count(n, per_root)
    training = _training(n, cells, comparisons)
    if search.name == "ivf":
        return training + n * n * min(1.0, PROBES / cells) / (comparisons * LISTS_RATE)
    compared = n * min(n, int(COMPARED * n**0.5)) / _integers(comparisons)
    return training + compared + CANDIDATE_SECONDS * n * dim / options.cores


def _pass_seconds(prepared: Prepared, spec: PassSpec, load: Workload) -> float:
    """Seconds per face that one pass takes on random inputs."""
    bundle, options, nodes = prepared.bundle, prepared.options, _typical_nodes(prepared.settings)
    lengths = {"m": ROWS, "b": ROWS // nodes, "n": nodes, **load.lengths}
    rng = np.random.default_rng(0)
    feeds = {
        tensor.name: rng.random(
            [axis if isinstance(axis, int) else lengths.get(axis, ROWS // nodes) for axis in tensor.axes],
            dtype=np.float32,
        )
        for tensor in spec.inputs
    }
    faces = lengths.get(str(spec.inputs[0].axes[0]), ROWS // nodes)
    with bundle.open(spec.name, threads=options.cores, device=options.device, vram=options.vram) as engine:
        return _timed(lambda: engine.run(feeds)) * (1 / faces if load.calls is None else load.calls)


def _timed(function: Callable[[], object]) -> float:
    """Return the seconds of the quickest of several calls after a first: others may be at work for a moment."""
    function()
    times: list[float] = []
    while len(times) < CALLS or (sum(times) < TIMED_SECONDS and len(times) < 10 * CALLS):
        started = time.perf_counter()
        function()
        times.append(time.perf_counter() - started)
    return min(times)
