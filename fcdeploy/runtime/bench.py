"""How long a bundle takes on this machine: pass by pass on random inputs, and from generated faces to labels.

A latency is split in three: preparation on the host (checks, gathering, everything that is not the engine), copies to
and from the device, and computing. Nothing is counted before it is warm.
"""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np

from fcdeploy.data.features import features_from_array
from fcdeploy.data.generated import generated_faces
from fcdeploy.engine.batching import gathered, prefetch
from fcdeploy.engine.bundle import PLAN, Bundle
from fcdeploy.engine.cuda import find_gpu
from fcdeploy.engine.tensors import DeviceEngine, Engine, PassSpec, Places, Timing
from fcdeploy.errors import InputError
from fcdeploy.graph.cuda import import_cupy
from fcdeploy.run.options import Options
from fcdeploy.runtime.computed import ours
from fcdeploy.runtime.pipeline import run_clustering
from fcdeploy.runtime.prepare import prepare, ways_of
from fcdeploy.systems import get_system

Key = TypeVar("Key")
NODES = 128  # a typical neighborhood
ELEMENTS = 2**21  # of the largest tensor of a call, where no batch is given
LARGEST_BATCH = 4096
WARM_UP = 3  # calls
CALLS = (10, 1000)  # fewest and most that are measured
RUNS = (3, 30)
PERCENTILES = (50, 90, 99)

Feeds = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class BenchOptions:
    """device: None is where the bundle runs; batch: length of the first free axis; nodes: of every other one; faces
    of a whole run, 0 for none; seconds: to spend on each measurement, the fewest calls done; passes: by name, or all.
    """

    device: str | None = None
    batch: int | None = None
    nodes: int | None = None
    faces: int = 500
    seconds: float = 2.0
    threads: int = 0
    passes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measurement:
    """One row of a report.

    what: a pass, or "run, " and a way of inference; size: lengths of the free axes, or faces; seconds: of every call
    or run; parts: medians of host, copies and compute; count: faces, links or neighborhoods in a call; stages: of a
    run, medians.
    """

    what: str
    size: Mapping[str, int]
    seconds: tuple[float, ...]
    parts: Timing
    count: int
    stages: Mapping[str, float] = field(default_factory=dict)

    def percentile(self, percent: float) -> float:
        return float(np.percentile(self.seconds, percent))

    @property
    def per_second(self) -> float:
        return self.count / self.percentile(50)

    def as_dict(self) -> dict[str, object]:
        return {
            "what": self.what,
            "size": dict(self.size),
            "calls": len(self.seconds),
            "latency_ms": {f"p{p}": 1e3 * self.percentile(p) for p in PERCENTILES},
            "parts_ms": {
                "host": 1e3 * self.parts.host,
                "copies": 1e3 * self.parts.copies,
                "compute": 1e3 * self.parts.compute,
            },
            "per_second": self.per_second,
            **({"stages_ms": {name: 1e3 * s for name, s in self.stages.items()}} if self.stages else {}),
        }


@dataclass(frozen=True)
class Report:
    """What was measured of one bundle, and where it really ran."""

    bundle: str
    system: str
    precision: str
    kind: str
    device: str
    opened: str
    threads: int
    rows: tuple[Measurement, ...]
    digest: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, object]:
        fields = {name: value for name, value in vars(self).items() if name not in ("rows", "versions")}
        return {**fields, "versions": dict(self.versions), "rows": [row.as_dict() for row in self.rows]}


def bench_bundles(
    bundles: Sequence[Bundle],
    options: BenchOptions = BenchOptions(),
    tell: Callable[[str], None] = lambda text: None,
) -> list[Report]:
    """Measure bundles one after the other; ``tell`` is given a line before each measurement.

    Raises InputError before anything is measured when an option fits none of the bundles, or a bundle cannot run on
    the device.
    """
    specs = [spec for bundle in bundles for spec in bundle.passes.values()]
    for name in options.passes:
        if name not in {spec.name for spec in specs}:
            known = ", ".join(dict.fromkeys(spec.name for spec in specs))
            raise InputError(f"--pass {name}: there is no such pass, only {known}.")
    if options.nodes is not None and not any(len(free_axes(spec)) > 1 for spec in specs):
        raise InputError("--nodes: no pass has a second free axis; leave it out.")
    for bundle in bundles:
        bundle.check_device(options.device)
        bundle.check_files()
        if options.faces:
            features = features_from_array(generated_faces(options.faces, bundle.feature_dim))
            prepare(features, bundle, Options(device=options.device, batch=options.batch))
    return [_bench_bundle(bundle, options, tell) for bundle in bundles]


def _bench_bundle(bundle: Bundle, options: BenchOptions, tell: Callable[[str], None]) -> Report:
    rows, opened = [], ""
    chosen = [name for name in bundle.passes if not options.passes or name in options.passes]
    for name in chosen:
        tell(f"{bundle.path}: pass {name}")
        measured, opened = measure_pass(bundle, name, options)
        rows.append(measured)
    if not opened:
        with bundle.open(next(iter(bundle.passes)), device=options.device) as engine:
            opened = opened_by(bundle, engine)
    if options.faces:
        for inference in ways_of(get_system(bundle.system), bundle.passes):
            tell(f"{bundle.path}: {inference} runs")
            rows.append(measure_runs(bundle, inference, options))
    return Report(
        bundle=str(bundle.path),
        system=bundle.system,
        precision=str(bundle.manifest["precision"]),
        kind=bundle.kind,
        device=bundle.device(options.device),
        opened=opened,
        threads=Options(threads=options.threads).cores,
        rows=tuple(rows),
        digest=bundle.digest(),
        versions={**ours(), "numpy": np.__version__, **bundle.runtime},
    )


def measure_pass(bundle: Bundle, name: str, options: BenchOptions) -> tuple[Measurement, str]:
    """Measure one pass on random inputs; return it with what really opened it."""
    spec = bundle.passes[name]
    lengths = lengths_for(bundle, spec, options)
    feeds = random_feeds(spec, lengths)
    threads = Options(threads=options.threads).cores
    with bundle.open(name, threads=threads, device=options.device) as engine:
        timed = _timed_run(engine, feeds)
        timings = list(_repeat(timed, CALLS, options.seconds, WARM_UP))
        where = opened_by(bundle, engine)
    axes = free_axes(spec)
    count = lengths[axes[0]] if axes else 1
    return Measurement(
        name, lengths, tuple(timing.total for timing in timings), _median(timings), count
    ), where


def measure_runs(bundle: Bundle, inference: str, options: BenchOptions) -> Measurement:
    """Measure whole runs over generated faces; the part of the engine is counted call by call."""
    features = features_from_array(generated_faces(options.faces, bundle.feature_dim))
    chosen = Options(inference=inference, threads=options.threads, device=options.device, batch=options.batch)
    watched = _Watched(bundle.path, bundle.manifest)
    stages: list[dict[str, float]] = []

    def once() -> Timing:
        watched.calls.clear()
        started = time.perf_counter()
        summary = run_clustering(features, watched, chosen).summary
        total = time.perf_counter() - started
        stages.append({name: stage["seconds"] for name, stage in summary["stages"].items()})
        copies = sum(call.copies for call in watched.calls)
        compute = sum(call.compute for call in watched.calls)
        return Timing(host=max(0.0, total - copies - compute), copies=copies, compute=compute)

    timings = list(_repeat(once, RUNS, options.seconds, 1))
    stages = stages[1:]
    return Measurement(
        f"run, {inference}",
        {"faces": options.faces},
        tuple(timing.total for timing in timings),
        _median(timings),
        options.faces,
        {name: float(np.median([stage[name] for stage in stages])) for name in stages[0]},
    )


def free_axes(spec: PassSpec) -> list[str]:
    """Return the free axes of a pass's inputs by name, in the order of first use: the first is its batch."""
    names = [axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)]
    return list(dict.fromkeys(names))


def lengths_for(bundle: Bundle, spec: PassSpec, options: BenchOptions) -> dict[str, int]:
    """Choose the length of every free axis of a pass: as given, else such that tensors have a usual size.

    Lengths that were not given stay within what a plan was built for.
    """
    axes = free_axes(spec)
    profiles = bundle.manifest["passes"][spec.name].get("profiles") or []

    def within(axis: str, length: int) -> int:
        ranges = [profile[axis] for profile in profiles if axis in profile]
        least, most = min((r[0] for r in ranges), default=1), max((r[2] for r in ranges), default=length)
        return min(max(length, least), most)

    lengths = {axis: options.nodes or within(axis, NODES) for axis in axes[1:]}
    if axes:
        largest = max(
            math.prod(axis if isinstance(axis, int) else lengths.get(axis, 1) for axis in tensor.axes)
            for tensor in (*spec.inputs, *spec.outputs)
        )
        usual = min(max(1, ELEMENTS // largest), LARGEST_BATCH)
        lengths = {axes[0]: options.batch or within(axes[0], usual), **lengths}
    return lengths


def random_feeds(spec: PassSpec, lengths: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """Draw inputs of a pass: numbers of 0 to 1; whole numbers, which may be positions, are 0."""
    rng = np.random.default_rng(seed)
    feeds = {}
    for tensor in spec.inputs:
        shape = [axis if isinstance(axis, int) else lengths[axis] for axis in tensor.axes]
        dtype = np.dtype(tensor.dtype)
        feeds[tensor.name] = (
            rng.random(shape, dtype=np.float32).astype(dtype) if dtype.kind == "f" else np.zeros(shape, dtype)
        )
    return feeds


def opened_by(bundle: Bundle, engine: Engine) -> str:
    """Say what runs a graph that is open, and on what: the provider that really opened, or TensorRT, and the GPU."""
    gpu = ""
    if bundle.kind == PLAN or getattr(engine, "device", "cpu") == "cuda":
        gpu = f" on {find_gpu('this engine', 'give --device cpu').name}"
    if bundle.kind == PLAN:
        return f"{bundle.target.flavour} {bundle.target.version}{gpu}"
    return f"{getattr(engine, 'provider', 'unknown')}{gpu}"


def _timed_run(engine: Engine, feeds: Feeds) -> Callable[[], Timing]:
    """Return a function that evaluates ``feeds`` once and tells how long each part took."""
    timed = getattr(engine, "timed_run", None)
    if timed is not None:
        return lambda: timed(feeds)[1]
    copies = _copies_alone(engine.spec, feeds, engine.run(feeds))

    def run() -> Timing:
        started = time.perf_counter()
        engine.run(feeds)
        total = time.perf_counter() - started
        host, copied = copies()
        return Timing(host=host, copies=copied, compute=max(0.0, total - host - copied))

    return run


def _copies_alone(spec: PassSpec, feeds: Feeds, outputs: Feeds) -> Callable[[], tuple[float, float]]:
    """Return a function that copies a pass's tensors as an engine of plans does, and nothing else.

    It gives the seconds of staging in pinned memory and those of the copies between it and the device. The engine
    itself overlaps them and does not tell them apart.
    """
    cupy = import_cupy()
    stream = cupy.cuda.Stream(non_blocking=True)
    places = []
    for array, up in [*((array, True) for array in feeds.values()), *((a, False) for a in outputs.values())]:
        pinned = cupy.cuda.alloc_pinned_memory(max(array.nbytes, 1))
        host = np.frombuffer(pinned, array.dtype, array.size).reshape(array.shape)
        places.append((array, host, cupy.cuda.alloc(max(array.nbytes, 1)), up))

    def copy() -> tuple[float, float]:
        started = time.perf_counter()
        for array, host, _, up in places:
            np.copyto(host, array) if up else host.copy()
        staged = time.perf_counter()
        for _, host, device, up in places:
            move = device.copy_from_host_async if up else device.copy_to_host_async
            move(host.ctypes.data, host.nbytes, stream)
        stream.synchronize()
        return staged - started, time.perf_counter() - staged

    return copy


def _repeat(
    once: Callable[[], Timing], bounds: tuple[int, int], seconds: float, warm_up: int
) -> Iterator[Timing]:
    """Yield the timings of calls until ``seconds`` are over, within ``bounds``, after some that do not count."""
    for _ in range(warm_up):
        once()
    fewest, most = bounds
    started = time.perf_counter()
    for call in itertools.count(1):
        yield once()
        if call >= most or (call >= fewest and time.perf_counter() - started >= seconds):
            return


def _median(timings: Sequence[Timing]) -> Timing:
    return Timing(*(float(np.median([getattr(t, part) for t in timings])) for part in Timing.__annotations__))


class _Watched(Bundle):
    """A bundle whose engines note how long every call took."""

    @property
    def calls(self) -> list[Timing]:
        return self.__dict__.setdefault("_calls", [])

    @contextlib.contextmanager
    def open(
        self, name: str, *, threads: int = 0, device: str | None = None, vram: int = 0, share: int = 1
    ) -> Iterator[Any]:  # with all of an Engine that runs use
        with super().open(name, threads=threads, device=device, vram=vram, share=share) as engine:
            yield _WatchedEngine(engine, self.calls)


class _WatchedEngine:
    """An engine that notes how long every call took."""

    def __init__(self, engine: Engine, calls: list[Timing]) -> None:
        self.spec = engine.spec
        self.provider = engine.provider
        self._engine = engine
        self._calls = calls

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        timed = getattr(self._engine, "timed_run", None)
        if timed is None:
            started = time.perf_counter()
            outputs: dict[str, np.ndarray] = self._engine.run(feeds)
            self._calls.append(Timing(0.0, 0.0, time.perf_counter() - started))
            return outputs
        outputs, timing = timed(feeds)
        self._calls.append(timing)
        return outputs

    def run_there(self, inputs: Places, outputs: Places) -> None:
        started = time.perf_counter()
        cast(DeviceEngine, self._engine).run_there(inputs, outputs)
        self._calls.append(Timing(0.0, 0.0, time.perf_counter() - started))

    def run_each(self, batches: Iterable[tuple[Key, Feeds]]) -> Iterator[tuple[Key, dict[str, np.ndarray]]]:
        """Evaluate batches in order. What an engine overlaps counts as computing; waiting for batches does not."""
        if hasattr(self._engine, "timed_run"):
            gathering = ((key, gathered(feeds)) for key, feeds in batches)
            for key, feeds in prefetch(gathering):  # as the engine does
                yield key, self.run(feeds)
            return
        waited = 0.0

        def watched() -> Iterator[tuple[Key, Feeds]]:
            nonlocal waited
            source = iter(batches)
            while True:
                started = time.perf_counter()
                item = next(source, None)
                waited += time.perf_counter() - started
                if item is None:
                    return
                yield item

        results = iter(self._engine.run_each(watched()))
        while True:
            waited = 0.0
            started = time.perf_counter()
            result = next(results, None)
            self._calls.append(Timing(0.0, 0.0, time.perf_counter() - started - waited))
            if result is None:
                return
            yield result


def compare(reports: Sequence[Report]) -> list[tuple[Report, Measurement, float | None]]:
    """Line the rows of several reports up: those of one pass or kind of run beside each other.

    Returns (report, row, how many times as fast as the first report's at the same size), in the order of the first
    bundle that has a row.
    """
    names = dict.fromkeys(row.what for report in reports for row in report.rows)
    lined = []
    for name in names:
        rows = [(report, row) for report in reports for row in report.rows if row.what == name]
        first = next((row for report, row in rows if report is reports[0]), None)
        for report, row in rows:
            same = first is not None and first.size == row.size
            ratio = first.percentile(50) / row.percentile(50) if same and first is not None else None
            lined.append((report, row, ratio))
    return lined
