"""Stand-ins for CuPy and TensorRT that compute on the CPU, as late as a GPU might.

What is put on a stream happens only when somebody waits for it, so that a copy or a computation that nothing orders
after what it needs sees garbage: fresh memory is full of 0xFF, and memory that was let go may not be touched. A plan is
a line of JSON, its profiles, before an ONNX graph, which ONNX Runtime evaluates. On a real GPU, real CuPy takes the
place of the one stand-in, and the other reads and writes device memory through it.
"""

import ctypes
import json
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

VERSION = "10.99.0"
Places = Mapping[str, tuple[int, tuple[int, ...], Any]]  # tensor -> address, shape, dtype
Function = Callable[[dict[str, np.ndarray]], Sequence[np.ndarray]]


class Memory:
    """All device memory there is: address -> buffer, and how much may be taken."""

    def __init__(self) -> None:
        self.live: dict[int, int] = {}
        self.buffers: list[np.ndarray] = []  # kept, so that no address comes twice
        self.limit = 1 << 40
        self.gathered = 0  # rows, from tables
        self.peak = 0

    def take(self, size: int) -> int:
        if sum(self.live.values()) + size > self.limit:
            raise OutOfMemoryError(f"{size} bytes do not fit")
        buffer = np.full(size, 0xFF, np.uint8)
        self.buffers.append(buffer)
        self.live[buffer.ctypes.data] = size
        self.peak = max(self.peak, sum(self.live.values()))
        return buffer.ctypes.data

    def check(self, address: int, size: int) -> None:
        fits = any(start <= address and address + size <= start + held for start, held in self.live.items())
        assert fits, "memory was used that is not, or no longer, there"

    def compute(
        self, stream: int, inputs: Places, outputs: Places, workspace: tuple[int, int], function: Function
    ) -> None:
        """Put ``function``, from the arrays at ``inputs`` to those at ``outputs``, on a stream."""

        def view(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            self.check(address, size)
            held = (ctypes.c_char * size).from_address(address)
            return np.frombuffer(held, dtype).reshape(shape)

        def work() -> None:
            self.check(*workspace)
            results = function({name: view(*place) for name, place in inputs.items()})
            for place, values in zip(outputs.values(), results, strict=True):
                view(*place)[...] = values

        STREAMS[stream].put(work)


class DeviceMemory:
    """The memory of a GPU that is there, by address."""

    def __init__(self, cupy: Any) -> None:
        self.cupy = cupy

    def _pointer(self, address: int, size: int) -> Any:
        return self.cupy.cuda.MemoryPointer(self.cupy.cuda.UnownedMemory(address, size, None, 0), 0)

    def compute(
        self, stream: int, inputs: Places, outputs: Places, workspace: tuple[int, int], function: Function
    ) -> None:
        """As ``Memory.compute``, on the CPU; what is on the stream before is waited for."""
        on = self.cupy.cuda.ExternalStream(stream)
        arrays = {name: np.empty(shape, dtype) for name, (_, shape, dtype) in inputs.items()}
        for name, array in arrays.items():
            pointer = self._pointer(inputs[name][0], array.nbytes)
            pointer.copy_to_host_async(array.ctypes.data, array.nbytes, on)
        on.synchronize()
        for (address, _, _), values in zip(outputs.values(), function(arrays), strict=True):
            self._pointer(address, values.nbytes).copy_from_host_async(values.ctypes.data, values.nbytes, on)
            on.synchronize()


class OutOfMemoryError(Exception):
    """Raised when the fake device is full."""


class CUDARuntimeError(Exception):
    """Raised when a fake computation fails."""


class Marker:
    """A place in a stream's queue."""

    def __init__(self, stream: "Stream") -> None:
        self.stream = stream
        self.reached = False


class Stream:
    """Does what is put on it when somebody waits for it."""

    def __init__(self, non_blocking: bool = False) -> None:
        assert non_blocking, "a stream that waits for the default stream hides mistakes"
        self.queue: list[Callable[[], None]] = []
        self.ptr = id(self)
        STREAMS[self.ptr] = self

    def put(self, work: Callable[[], None]) -> None:
        self.queue.append(work)

    def mark(self) -> Marker:
        marker = Marker(self)
        self.put(lambda: setattr(marker, "reached", True))
        return marker

    def advance(self, marker: Marker) -> None:
        while not marker.reached:
            self.queue.pop(0)()

    def wait_event(self, event: "Event") -> None:
        marker = event.marker
        if marker is not None:
            self.put(lambda: marker.stream.advance(marker))

    def synchronize(self) -> None:
        self.advance(self.mark())


STREAMS: "weakref.WeakValueDictionary[int, Stream]" = weakref.WeakValueDictionary()


class Event:
    def __init__(self, disable_timing: bool = False) -> None:
        self.marker: Marker | None = None

    def record(self, stream: Stream) -> None:
        self.marker = stream.mark()

    def synchronize(self) -> None:
        if self.marker is not None:
            self.marker.stream.advance(self.marker)


class Pointer:
    """Device memory; gone when nobody holds it any more."""

    def __init__(self, memory: Memory, size: int) -> None:
        self.memory = memory
        self.ptr = memory.take(size)
        self.mem = SimpleNamespace(size=size)
        weakref.finalize(self, memory.live.pop, self.ptr)

    def _copy(self, to: int, source: int, size: int, stream: Stream) -> None:
        address = self.ptr

        def work() -> None:
            self_memory.check(address, size)
            ctypes.memmove(to, source, size)

        self_memory = self.memory
        stream.put(work)

    def copy_from_host_async(self, host: int, size: int, stream: Stream) -> None:
        assert size <= self.mem.size
        self._copy(self.ptr, host, size, stream)

    def copy_to_host_async(self, host: int, size: int, stream: Stream) -> None:
        assert size <= self.mem.size
        self._copy(host, self.ptr, size, stream)


class Pinned(bytearray):
    """Pinned host memory."""

    def size(self) -> int:
        return len(self)


class Array:
    """An array on the device; what is written to it gets there when the default stream is waited for."""

    def __init__(
        self, pointer: Pointer, start: int, shape: tuple[int, ...], dtype: Any, stream: Stream
    ) -> None:
        self.pointer, self.start, self.shape, self.dtype, self.stream = (
            pointer,
            start,
            shape,
            np.dtype(dtype),
            stream,
        )
        self.nbytes = int(np.prod(shape)) * self.dtype.itemsize

    @property
    def ptr(self) -> int:
        return self.pointer.ptr + self.start

    def __getitem__(self, rows: slice) -> "Array":
        first, last, _ = rows.indices(self.shape[0])
        row = self.nbytes // self.shape[0]
        return Array(
            self.pointer, self.start + first * row, (last - first, *self.shape[1:]), self.dtype, self.stream
        )

    def set(self, values: np.ndarray) -> None:
        assert values.shape == self.shape
        assert values.dtype == self.dtype
        address, content, memory = self.ptr, values.tobytes(), self.pointer.memory

        def work() -> None:
            memory.check(address, len(content))
            ctypes.memmove(address, content, len(content))

        self.stream.put(work)


def gather_on_device(memory: Memory, arguments: tuple[Any, ...]) -> None:
    """What the kernel gather_rows does."""
    table, where, out, rows, width = arguments
    memory.check(int(where), int(rows) * 4)
    memory.check(int(out), int(rows) * int(width) * 4)
    memory.check(table.ptr, table.nbytes)

    def view(address: int, count: int, dtype: Any) -> np.ndarray:
        held = (ctypes.c_char * (count * 4)).from_address(address)
        return np.frombuffer(held, dtype)

    nodes = view(int(where), int(rows), np.int32)
    values = view(table.ptr, table.nbytes // 4, np.float32).reshape(-1, int(width))
    result = view(int(out), int(rows) * int(width), np.float32).reshape(-1, int(width))
    result[...] = np.where(nodes[:, None] < 0, 0, values[nodes])


def fake_cupy(memory: Memory) -> Any:
    """Return what the engine uses of CuPy."""
    default = Stream(non_blocking=True)

    def get_function(name: str) -> Any:
        assert name == "gather_rows"

        def launch(grid: Any, block: Any, arguments: Any, stream: Stream) -> None:
            assert grid[0] > 0
            table, *rest = arguments
            memory.gathered += int(rest[2])
            held = SimpleNamespace(
                ptr=table.ptr, nbytes=table.nbytes
            )  # its address, and not the memory itself
            stream.put(lambda: gather_on_device(memory, (held, *rest)))

        return launch

    def empty(shape: tuple[int, ...], dtype: Any) -> Array:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return Array(Pointer(memory, size), 0, shape, dtype, default)

    cuda = SimpleNamespace(
        Stream=Stream,
        Event=Event,
        alloc=lambda size: Pointer(memory, size),
        alloc_pinned_memory=lambda size: Pinned(b"\xff" * size),
        memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
        runtime=SimpleNamespace(CUDARuntimeError=CUDARuntimeError),
        get_current_stream=lambda: default,
    )
    pool = SimpleNamespace(free_all_blocks=lambda: None)
    module = SimpleNamespace(get_function=get_function)
    return SimpleNamespace(
        cuda=cuda, empty=empty, RawModule=lambda code: module, get_default_memory_pool=lambda: pool
    )


class FakeTensorRt:
    """What the engine uses of TensorRT's module. fail: names of calls that return False or None."""

    __name__ = "fake_tensorrt"
    __version__ = VERSION
    TensorIOMode = SimpleNamespace(INPUT="input", OUTPUT="output")
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user managed")

    class ILogger:
        VERBOSE, ERROR, INTERNAL_ERROR = range(3)

    def __init__(self, memory: Memory | DeviceMemory) -> None:
        self.memory = memory
        self.fail: set[str] = set()
        self.workspace = 1000  # bytes that profile 0 needs; profile 1 needs twice as much, and so on
        self.calls: list[
            tuple[int, dict[str, tuple[int, ...]]]
        ] = []  # profile and shapes of each computation

    def Runtime(self, log: Any) -> Any:
        def deserialize(plan: bytes) -> Any:
            if "deserialize_cuda_engine" in self.fail:
                log.errors.append("Serialization failed: magic tag does not match")
                return None
            return FakeEngine(self, plan, log)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


TYPES = {"tensor(float)": "FLOAT", "tensor(int32)": "INT32", "tensor(int64)": "INT64", "tensor(bool)": "BOOL"}
ARRAYS = {"FLOAT": np.float32, "INT32": np.int32, "INT64": np.int64, "BOOL": np.bool_}


class FakeEngine:
    def __init__(self, trt: FakeTensorRt, plan: bytes, log: Any) -> None:
        import onnxruntime as ort

        head, _, graph = plan.partition(b"\n")
        self.trt, self.log = trt, log
        self.profiles = json.loads(head)
        self.session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.inputs = {t.name: t for t in self.session.get_inputs()}
        self.outputs = {t.name: t for t in self.session.get_outputs()}
        self.num_io_tensors = len(self.inputs) + len(self.outputs)
        self.num_optimization_profiles = len(self.profiles)

    def _tensor(self, name: str) -> Any:
        return self.inputs.get(name) or self.outputs[name]

    def get_tensor_name(self, at: int) -> str:
        return [*self.inputs, *self.outputs][at]

    def get_tensor_mode(self, name: str) -> str:
        return "input" if name in self.inputs else "output"

    def get_tensor_dtype(self, name: str) -> Any:
        return SimpleNamespace(name=TYPES[self._tensor(name).type])

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(axis if isinstance(axis, int) else -1 for axis in self._tensor(name).shape)

    def get_device_memory_size_for_profile_v2(self, at: int) -> int:
        return self.trt.workspace * (at + 1)

    def create_execution_context(self, strategy: str) -> Any:
        assert strategy == "user managed"
        return None if "create_execution_context" in self.trt.fail else FakeContext(self)


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine, self.trt = engine, engine.trt
        self.profile = -1
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.workspace = (0, 0)

    def _ok(self, call: str) -> bool:
        if call in self.trt.fail:
            self.engine.log.errors.append(f"IExecutionContext::{call}: Error Code 3: told to fail")
            return False
        return True

    def set_optimization_profile_async(self, at: int, stream: int) -> bool:
        self.profile, self.shapes = at, {}
        return self._ok("set_optimization_profile_async")

    def set_device_memory(self, address: int, size: int) -> None:
        assert size >= self.engine.get_device_memory_size_for_profile_v2(self.profile)
        self.workspace = (address, size)

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self.profile >= 0
        ranges = self.engine.profiles[self.profile]
        for axis, length in zip(self.engine.inputs[name].shape, shape, strict=True):
            if axis != length and not ranges[axis][0] <= length <= ranges[axis][2]:
                self.engine.log.errors.append(f"{name}: {axis} = {length} is outside profile {self.profile}")
                return False
        self.shapes[name] = tuple(shape)
        return self._ok("set_input_shape")

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self._ok("set_tensor_address")

    def _lengths(self) -> dict[str, int]:
        assert self.shapes.keys() == self.engine.inputs.keys()
        return {
            axis: length
            for name, shape in self.shapes.items()
            for axis, length in zip(self.engine.inputs[name].shape, shape, strict=True)
            if isinstance(axis, str)
        }

    def get_tensor_shape(self, name: str) -> list[int]:
        if "get_tensor_shape" in self.trt.fail:
            return [-1]
        lengths = self._lengths()
        return [lengths[axis] if isinstance(axis, str) else axis for axis in self.engine._tensor(name).shape]

    def execute_async_v3(self, stream: int) -> bool:
        engine = self.engine
        shapes = {**self.shapes, **{name: tuple(self.get_tensor_shape(name)) for name in engine.outputs}}
        assert self.addresses.keys() == shapes.keys()
        self.trt.calls.append((self.profile, self._lengths()))
        inputs, outputs = (
            {
                name: (self.addresses[name], shapes[name], ARRAYS[TYPES[tensor.type]])
                for name, tensor in side.items()
            }
            for side in (engine.inputs, engine.outputs)
        )

        def function(arrays: dict[str, np.ndarray]) -> list[np.ndarray]:
            if "the computation" in self.trt.fail:
                raise CUDARuntimeError("cudaErrorIllegalAddress: told to fail")
            results: list[np.ndarray] = engine.session.run(list(outputs), arrays)
            return results

        self.trt.memory.compute(stream, inputs, outputs, self.workspace, function)
        return self._ok("execute_async_v3")


def write_fake_plan(graph: Path, path: Path, profiles: list[Mapping[str, tuple[int, int, int]]]) -> None:
    """Make a plan for the stand-in of an ONNX graph."""
    path.write_bytes(json.dumps(profiles).encode() + b"\n" + graph.read_bytes())


def write_fake_bundle(source: Path, path: Path, profiles: Callable[[Any], list[Any]]) -> Any:
    """Make a bundle of such plans of an ONNX bundle; profiles(spec) gives those of a pass."""
    from fcdeploy.engine.bundle import new_bundle, read_bundle, write_manifest

    bundle = read_bundle(source)
    of_passes = {name: {"profiles": profiles(spec)} for name, spec in bundle.passes.items()}
    with new_bundle(path) as folder:
        for name, fields in of_passes.items():
            write_fake_plan(bundle.file(name), folder / f"{name}.plan", fields["profiles"])
        kept = ("system", "feature_dim", "precision", "recipe", "networks", "versions")
        fields = {key: bundle.manifest[key] for key in kept}
        target = {
            "flavour": "tensorrt",
            "version": VERSION,
            "compute_capability": "8.6",
            "device": "Fake GPU",
            "profile": "mine.toml",
        }
        source_of = {"bundle": source.name, "digest": bundle.digest()}
        write_manifest(
            folder,
            bundle.passes,
            {**fields, "target": target, "source": source_of},
            kind="plan",
            of_passes=of_passes,
        )
    return read_bundle(path)


def install(monkeypatch: Any, cupy: Any = None) -> FakeTensorRt:
    """Let fcdeploy find a GPU, CuPy and TensorRT that are none; return the stand-in for TensorRT.

    cupy: the real one, where there is a GPU.
    """
    import fcdeploy.engine.tensorrt as engine
    from fcdeploy.engine import tensorrt_library
    from fcdeploy.engine.cuda import Gpu
    from fcdeploy.graph import cuda

    if cupy is None:
        memory = Memory()
        trt = FakeTensorRt(memory)
        fake = fake_cupy(memory)
        monkeypatch.setattr(engine, "import_cupy", lambda: fake)
        monkeypatch.setattr(cuda, "_modules", {})
    else:
        trt = FakeTensorRt(DeviceMemory(cupy))
    monkeypatch.setattr(engine, "import_tensorrt", lambda flavour: trt)
    monkeypatch.setattr(engine, "find_gpu", lambda who, advice: Gpu("Fake GPU", "8.6", 24 << 30))
    monkeypatch.setattr(tensorrt_library, "_loggers", {})
    return trt
