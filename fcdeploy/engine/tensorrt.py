"""Run one plan of a bundle with TensorRT.

A plan runs only with the version and flavour of TensorRT that built it, on the kind of GPU that it was built for; both
are checked before TensorRT reads the file. Nothing is built here.
"""

import itertools
import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, Annotated, TypeVar

import numpy as np
from msgspec import Meta

from fcdeploy.engine.batching import Rows, prefetch
from fcdeploy.engine.cuda import Gpu, find_gpu
from fcdeploy.engine.tensorrt_library import DTYPES, TITLES, error_from_log, import_tensorrt, logger_of
from fcdeploy.engine.tensors import (
    Feeds,
    PassSpec,
    Places,
    TensorSpec,
    check_feeds,
    check_places,
    divisible_axis,
)
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.cuda import DeviceArrays, copied, free_all, import_cupy, kernel

if TYPE_CHECKING:
    import cupy

K = TypeVar("K")
TABLE_SHARE = 2  # of the device memory, the half is for tables that inputs are gathered from
GATHER_BLOCKS, GATHER_THREADS = 4096, 128
Ranges = Mapping[str, tuple[int, int, int]]  # axis -> shortest, typical, longest


@dataclass(frozen=True)
class PlanTarget:
    """What plans were built for.

    flavour: "tensorrt" or "tensorrt-rtx", and its version; compute_capability: of the GPU, as in "8.6"; device: the
    GPU's name where the plan was measured on one, else empty; profile: name of the build profile.
    """

    flavour: Annotated[str, Meta(pattern=r"^tensorrt(-rtx)?\Z", description="tensorrt or tensorrt-rtx")]
    version: str
    compute_capability: str
    device: str
    profile: str

    def command(self, bundle: str, output: str, capability: str = "") -> str:
        """Return the command that builds such plans from an ONNX bundle, perhaps for another GPU."""
        other = f" --compute-capability {capability}" if capability else ""
        return f"fcdeploy build {bundle} -o {output} --profile {self.profile}{other}"


def check_target(target: PlanTarget, where: str, remake: str) -> tuple[ModuleType, Gpu]:
    """Return TensorRT's module and the GPU when plans of ``target`` run on this machine.

    Raises MissingDependencyError without that flavour, InputError for another version of it, without a GPU, and on a
    GPU of another kind; ``where`` and ``remake`` (a command) go into the sentence.
    """
    trt = import_tensorrt(target.flavour)
    title = TITLES[target.flavour]
    if trt.__version__ != target.version:
        raise InputError(
            f"{where}: was built by {title} {target.version}, and {trt.__version__} is installed; {remake}, "
            f"or install the other with `pip install '{target.flavour}=={target.version}'`."
        )
    gpu = find_gpu(
        f"{where}: holds TensorRT plans and",
        "run it where there is one, or give the ONNX bundle with --device cpu",
    )
    other_device = target.device not in ("", gpu.name)
    if gpu.capability != target.compute_capability or other_device:
        built_for = f"compute capability {target.compute_capability}"
        if target.device:
            built_for = f"{target.device} ({built_for})"
        raise InputError(
            f"{where}: was built for {built_for}, and this machine has {gpu.name} (compute capability "
            f"{gpu.capability}); {remake.removesuffix('`')} --compute-capability {gpu.capability}`."
        )
    return trt, gpu


class TensorRtEngine:
    """A TensorRT plan that is loaded and runs batches; a ``with`` frees it.

    path: the plan file; spec: its inputs and outputs, checked against the plan on opening; profiles: its optimization
    profiles; vram: device memory budget in bytes, 0 for all that is free, divided evenly among ``share`` engines. The
    arrays that ``run`` returns are newly allocated and not reused. Not thread-safe. Batches outside the plan's ranges,
    or too large for the memory, are split where the pass allows it.

    Buffers are doubled: while the engine computes one batch, the next is copied to the device on another stream.
    """

    def __init__(
        self,
        path: Path,
        spec: PassSpec,
        target: PlanTarget,
        profiles: Iterable[Ranges],
        *,
        remake: str,
        vram: int = 0,
        share: int = 1,
    ) -> None:
        self.spec = spec
        self.provider = TITLES[target.flavour]
        self._where = f"{path} (pass {spec.name})"
        self._profiles = list(profiles)
        self._vram = vram
        self._axis = divisible_axis(spec)
        trt, gpu = check_target(target, str(path), remake)
        self._cupy = import_cupy()
        self._log = logger_of(trt)
        self._log.start()
        plan = path.read_bytes()
        self._plan_bytes = len(plan)
        self._runtime = trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            reason = error_from_log(self._log.errors)
            raise InputError(f"{path}: {TITLES[target.flavour]} cannot load this plan ({reason}); {remake}.")
        self._check_engine(trt, remake)
        self._context = self._engine.create_execution_context(
            trt.ExecutionContextAllocationStrategy.USER_MANAGED
        )
        if self._context is None:
            raise self._failed("create an execution context")
        cuda = self._cupy.cuda
        self._copies, self._compute = cuda.Stream(non_blocking=True), cuda.Stream(non_blocking=True)
        self._slots = [_Slot(self._cupy), _Slot(self._cupy)]
        self._turn = 0
        self._profile = -1
        self._workspace: cupy.cuda.MemoryPointer | None = None
        self._tables = DeviceArrays(
            self._cupy, (vram or gpu.memory // share) // TABLE_SHARE, self._copies.synchronize
        )

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Evaluate the plan; raises FcdeployError when ``feeds`` is not what ``spec`` and the profiles say."""
        ((_, outputs),) = self._run_each([(None, feeds)])
        return outputs

    def run_each(self, batches: Iterable[tuple[K, Feeds]]) -> Iterator[tuple[K, dict[str, np.ndarray]]]:
        """Evaluate batches in order; the next one is copied to the device, and those after it prepared, meanwhile."""
        yield from self._run_each(prefetch(batches))

    def _run_each(self, batches: Iterable[tuple[K, Feeds]]) -> Iterator[tuple[K, dict[str, np.ndarray]]]:
        busy: deque[tuple[K, bool, _Slot]] = deque()
        parts: list[dict[str, np.ndarray]] = []

        def finish() -> Iterator[tuple[K, dict[str, np.ndarray]]]:
            key, last, slot = busy.popleft()
            parts.append(self._collect(slot))
            if last:
                yield key, _join(parts)
                parts.clear()

        for key, feeds in batches:
            check_feeds(feeds, self.spec.inputs, self._where)
            lengths = lengths_of(self.spec.inputs, feeds)
            if 0 in lengths.values():  # nothing to compute, and no profile has such a shape
                while busy:
                    yield from finish()
                yield key, {t.name: np.zeros(_shape_of(t, lengths), t.dtype) for t in self.spec.outputs}
                continue
            pieces = self._pieces(feeds)
            for at, (profile, piece) in enumerate(pieces):
                if len(busy) == len(self._slots):
                    yield from finish()
                slot = self._slots[self._turn]
                self._turn = (self._turn + 1) % len(self._slots)
                self._submit(slot, profile, piece)
                busy.append((key, at == len(pieces) - 1, slot))
        while busy:
            yield from finish()

    def run_there(self, inputs: Places, outputs: Places) -> None:
        """Evaluate the plan from arrays on the device to others there; they are complete when this returns.

        Raises what ``run`` does.
        """
        check_places(inputs, outputs, self.spec, self._where)
        lengths = lengths_of(self.spec.inputs, inputs)
        if 0 in lengths.values():
            return
        context, start = self._context, 0
        profile, most = self._choose(lengths)
        total = lengths[self._axis] if self._axis else 0
        count = math.ceil(total / most) if self._axis else 1
        try:
            self._use_profile(profile)
            for at in range(count):
                stop = total * (at + 1) // count
                for spec in self.spec.inputs + self.spec.outputs:
                    place = inputs[spec.name] if spec.name in inputs else outputs[spec.name]
                    if self._axis and spec.axes[:1] == (self._axis,):
                        place = place.rows(start, stop)
                    if spec.name in inputs:
                        self._check(context.set_input_shape(spec.name, place.shape), f"shape {spec.name}")
                    self._check(context.set_tensor_address(spec.name, place.address), f"bind {spec.name}")
                self._check(context.execute_async_v3(self._compute.ptr), "start the computation")
                start = stop
            self._compute.synchronize()
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise self._full() from error
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise FcdeployError(f"{self._where}: CUDA failed ({error}).") from error

    def close(self) -> None:
        """Wait for the device and free everything on it."""
        if self._engine is None:
            return
        self._copies.synchronize()
        self._compute.synchronize()
        self._context = self._engine = self._runtime = self._workspace = None
        self._slots = []
        self._tables.clear()
        free_all(self._cupy)

    def __enter__(self) -> "TensorRtEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_engine(self, trt: ModuleType, remake: str) -> None:
        """Raise InputError when the plan's tensors or profiles are not those of the manifest."""
        engine = self._engine
        found = {}
        for at in range(engine.num_io_tensors):
            name = engine.get_tensor_name(at)
            side = "in" if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "out"
            dtype = DTYPES.get(engine.get_tensor_dtype(name).name)
            found[name] = (side, tuple(max(-1, length) for length in engine.get_tensor_shape(name)), dtype)
        wanted = {
            tensor.name: (side, tuple(-1 if isinstance(a, str) else a for a in tensor.axes), tensor.dtype)
            for side, tensors in (("in", self.spec.inputs), ("out", self.spec.outputs))
            for tensor in tensors
        }
        if found != wanted or engine.num_optimization_profiles != len(self._profiles):
            raise InputError(
                f"{self._where}: the plan's tensors and profiles are not those of the manifest; {remake}."
            )

    def _pieces(self, feeds: Feeds) -> list[tuple[int, Feeds]]:
        """Split a batch into parts that fit an optimization profile and the memory budget."""
        lengths = lengths_of(self.spec.inputs, feeds)
        self._tables_of(feeds)  # what they take is not there for batches
        profile, most = self._choose(lengths)
        if self._axis is None:
            return [(profile, feeds)]
        total = lengths[self._axis]
        count = math.ceil(total / most)
        cuts = [total * at // count for at in range(count + 1)]
        whole = {tensor.name for tensor in self.spec.inputs if tensor.axes[:1] != (self._axis,)}
        return [
            (profile, {name: a if name in whole else a[start:stop] for name, a in feeds.items()})
            for start, stop in itertools.pairwise(cuts)
        ]

    def _choose(self, lengths: Mapping[str, int]) -> tuple[int, int]:
        """Return the profile for a batch of these lengths, and the largest length of the divisible axis per call."""
        axis = self._axis
        best: tuple[bool, int, int] | None = None
        for at, ranges in enumerate(self._profiles):
            if any(not ranges[a][0] <= lengths[a] <= ranges[a][2] for a in lengths if a != axis):
                continue
            if axis is None:
                return at, 0
            shortest, _, longest = ranges[axis]
            pieces = math.ceil(lengths[axis] / longest)
            if lengths[axis] // pieces < shortest:
                continue
            # The first that takes it whole, else the one that takes most of it.
            rank = (pieces == 1, 0 if pieces == 1 else longest, -at)
            best = max(best or rank, rank)
        if best is None:
            given = ", ".join(f"{name} = {length}" for name, length in lengths.items())
            known = " or ".join(
                dict.fromkeys(
                    ", ".join(f"{name} {ranges[name][0]} to {ranges[name][2]}" for name in lengths)
                    for ranges in self._profiles
                )
            )
            raise FcdeployError(
                f"{self._where}: a batch of {given} is outside what the plan was built for ({known}); "
                "build it with a profile of longer ranges, or give smaller --hops or --k."
            )
        at = -best[2]
        assert axis is not None
        return at, min(self._profiles[at][axis][2], self._most_in_memory(at, lengths, axis))

    def _most_in_memory(self, profile: int, lengths: Mapping[str, int], axis: str) -> int:
        """Return the largest length of the divisible axis per call that fits into the memory budget."""
        each = len(self._slots) * sum(
            _bytes_of(tensor, {**lengths, axis: 1}) for tensor in self.spec.inputs + self.spec.outputs
        )
        if not self._vram:
            return lengths[axis]
        fixed = self._plan_bytes + self._engine.get_device_memory_size_for_profile_v2(profile)
        fixed += self._tables.nbytes
        if fixed + each > self._vram:
            raise FcdeployError(
                f"{self._where}: needs at least {(fixed + each) / 2**20:,.0f} MB of device memory, and --vram allows "
                f"{self._vram / 2**20:,.0f} MB; give more, or build the plan with a profile of shorter ranges."
            )
        return (self._vram - fixed) // each

    def _submit(self, slot: "_Slot", profile: int, feeds: Feeds) -> None:
        """Start copying a batch to the device, computing it, and copying its results back."""
        context, stream = self._context, self._compute
        lengths = lengths_of(self.spec.inputs, feeds)
        try:
            slot.done.synchronize()  # an abandoned batch may still be using the buffers
            self._use_profile(profile)
            tables = self._tables_of(feeds)
            for spec in self.spec.inputs:
                array = feeds[spec.name]
                if isinstance(array, Rows) and spec.name in tables:
                    device = self._gather(slot, spec, array, tables[spec.name])
                else:
                    device = self._send(slot, spec, array)
                self._check(context.set_input_shape(spec.name, array.shape), f"shape {spec.name}")
                self._check(context.set_tensor_address(spec.name, device.ptr), f"bind {spec.name}")
            slot.copied.record(self._copies)
            stream.wait_event(slot.copied)
            slot.results = {}
            for spec in self.spec.outputs:
                shape = _shape_of(spec, lengths)
                self._check(
                    tuple(context.get_tensor_shape(spec.name)) == shape, f"find the shape of {spec.name}"
                )
                device = slot.memory(spec, shape)
                self._check(context.set_tensor_address(spec.name, device.ptr), f"bind {spec.name}")
                slot.results[spec.name] = slot.pinned(spec.name, shape, spec.dtype)
            self._check(context.execute_async_v3(stream.ptr), "start the computation")
            for name, host in slot.results.items():
                slot.device[name].copy_to_host_async(host.ctypes.data, host.nbytes, stream)
                copied.back += host.nbytes
            slot.done.record(stream)
        except self._cupy.cuda.memory.OutOfMemoryError as error:
            raise self._full() from error
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise FcdeployError(f"{self._where}: CUDA failed ({error}).") from error

    def _tables_of(self, feeds: Feeds) -> dict[str, "cupy.ndarray"]:
        """Return the device tables that inputs are gathered from, by input; none unless all of them fit."""
        rows = {name: array for name, array in feeds.items() if isinstance(array, Rows)}
        held = self._tables.get(*(array.table for array in rows.values())) if rows else None
        return dict(zip(rows, held, strict=True)) if held else {}

    def _send(self, slot: "_Slot", spec: TensorSpec, array: np.ndarray | Rows) -> "cupy.cuda.MemoryPointer":
        """Start copying an input to the device; return its memory there."""
        host, device = slot.pinned(spec.name, array.shape, spec.dtype), slot.memory(spec, array.shape)
        if isinstance(array, Rows):
            array.gather(host)
        else:
            np.copyto(host, array)
        device.copy_from_host_async(host.ctypes.data, host.nbytes, self._copies)
        copied.there += host.nbytes
        return device

    def _gather(
        self, slot: "_Slot", spec: TensorSpec, array: Rows, table: "cupy.ndarray"
    ) -> "cupy.cuda.MemoryPointer":
        """Start gathering an input from a table on the device; return its memory there."""
        nodes = TensorSpec(f"{spec.name}.nodes", (), "int32")
        where, device = self._send(slot, nodes, array.nodes), slot.memory(spec, array.shape)
        arguments = (
            *(table, np.uint64(where.ptr), np.uint64(device.ptr)),
            *(np.int64(array.nodes.size), np.int32(array.table.shape[1])),
        )
        grid = (min(array.nodes.size, GATHER_BLOCKS),)
        kernel(self._cupy, "gather_rows")(grid, (GATHER_THREADS,), arguments, stream=self._copies)
        return device

    def _collect(self, slot: "_Slot") -> dict[str, np.ndarray]:
        """Wait for a batch and return copies of its results."""
        try:
            slot.done.synchronize()
        except self._cupy.cuda.runtime.CUDARuntimeError as error:
            raise FcdeployError(f"{self._where}: CUDA failed ({error}).") from error
        return {name: host.copy() for name, host in slot.results.items()}

    def _use_profile(self, profile: int) -> None:
        """Switch the context to a profile, with the scratch memory that it needs."""
        if profile == self._profile:
            return
        size = max(self._engine.get_device_memory_size_for_profile_v2(profile), 1)
        if self._workspace is None or self._workspace.mem.size < size:
            self._compute.synchronize()  # what runs there now uses the old one
            self._workspace = None
            self._workspace = self._cupy.cuda.alloc(size)
        self._check(
            self._context.set_optimization_profile_async(profile, self._compute.ptr), f"use profile {profile}"
        )
        self._context.set_device_memory(self._workspace.ptr, self._workspace.mem.size)
        self._profile = profile

    def _check(self, done: object, what: str) -> None:
        if not done:
            raise self._failed(what)

    def _full(self) -> FcdeployError:
        return FcdeployError(
            f"{self._where}: the GPU memory is full; give a smaller --batch, or --vram to take batches in parts."
        )

    def _failed(self, what: str) -> FcdeployError:
        return FcdeployError(
            f"{self._where}: TensorRT could not {what} ({error_from_log(self._log.errors)})."
        )


class _Slot:
    """Buffers of one batch: pinned host memory and device memory by tensor, grown when they are too small."""

    _pinned: "dict[str, cupy.cuda.PinnedMemoryPointer]"
    device: "dict[str, cupy.cuda.MemoryPointer]"

    def __init__(self, cupy: ModuleType) -> None:
        self._cupy = cupy
        self._pinned = {}
        self.device = {}
        self.results: dict[str, np.ndarray] = {}
        self.copied, self.done = (cupy.cuda.Event(disable_timing=True) for _ in range(2))

    def pinned(self, name: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """Return a pinned host array of this shape."""
        count = math.prod(shape)
        size = max(count * np.dtype(dtype).itemsize, 1)
        if name not in self._pinned or self._pinned[name].size() < size:
            self._pinned.pop(name, None)
            self._pinned[name] = self._cupy.cuda.alloc_pinned_memory(size)
        return np.frombuffer(self._pinned[name], dtype=dtype, count=count).reshape(shape)

    def memory(self, spec: TensorSpec, shape: tuple[int, ...]) -> "cupy.cuda.MemoryPointer":
        """Return device memory for a tensor of this shape."""
        size = max(math.prod(shape) * np.dtype(spec.dtype).itemsize, 1)
        if spec.name not in self.device or self.device[spec.name].mem.size < size:
            self.device.pop(spec.name, None)
            self.device[spec.name] = self._cupy.cuda.alloc(size)
        return self.device[spec.name]


def lengths_of(specs: Iterable[TensorSpec], arrays: Feeds | Places) -> dict[str, int]:
    """Return the lengths of the dynamic axes of ``arrays``, by axis name."""
    return {
        axis: length
        for spec in specs
        for axis, length in zip(spec.axes, arrays[spec.name].shape, strict=True)
        if isinstance(axis, str)
    }


def _shape_of(spec: TensorSpec, lengths: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(axis if isinstance(axis, int) else lengths[axis] for axis in spec.axes)


def _bytes_of(spec: TensorSpec, lengths: Mapping[str, int]) -> int:
    return math.prod(_shape_of(spec, lengths)) * np.dtype(spec.dtype).itemsize


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
