"""Run one graph of a bundle with ONNX Runtime."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from fcdeploy import machine
from fcdeploy.engine.batching import gathered, prefetch
from fcdeploy.engine.tensors import Feeds, PassSpec, Places, Timing, check_feeds, check_places
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.cuda import copied, release_device_memory
from fcdeploy.packages import import_package

if TYPE_CHECKING:
    import onnxruntime
    from onnxruntime import NodeArg as NodeArg  # for others' annotations

K = TypeVar("K")

NO_ROOM = ("Failed to allocate memory", "bad_alloc", "bad allocation", "out of memory")
PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntimeEngine:
    """An ONNX graph that is loaded and runs batches; a ``with`` frees it.

    path: the ONNX file; graph: its content, if it was read before; spec: its inputs and outputs, checked against the
    file on opening; vram: device memory budget in bytes on a GPU, 0 for all that is free. The arrays that ``run``
    returns are newly allocated and not reused. Not thread-safe.
    """

    def __init__(
        self,
        path: Path,
        spec: PassSpec,
        *,
        graph: bytes | None = None,
        threads: int = 0,
        device: str = "cpu",
        vram: int = 0,
    ) -> None:
        self._session = open_session(path, graph=graph, threads=threads, device=device, vram=vram)
        self.device = device
        self._threads = threads
        self.provider: str = self._session.get_providers()[0]
        self.spec = spec
        self._where = f"{path} (pass {spec.name})"
        self._outputs = [tensor.name for tensor in spec.outputs]
        self._check_graph()

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
        """Evaluate the graph.

        Raises FcdeployError when ``feeds`` is not what ``spec`` says or the graph cannot be computed, MemoryError when
        it runs out of memory.
        """
        check_feeds(feeds, self.spec.inputs, self._where)
        arrays = gathered(feeds)
        try:
            outputs = self._session.run(self._outputs, arrays)
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise run_error(error, self._where) from error
        if self.device != "cpu":
            copied.there += sum(array.nbytes for array in arrays.values())
            copied.back += sum(array.nbytes for array in outputs)
        return dict(zip(self._outputs, outputs, strict=True))

    def run_each(self, batches: Iterable[tuple[K, Feeds]]) -> Iterator[tuple[K, dict[str, np.ndarray]]]:
        """Evaluate batches in order, while a background thread prepares the next ones.

        With a single CPU thread there is no background thread.
        """
        alone = self._threads if self.device == "cpu" else 0
        for key, feeds in prefetch(((key, gathered(feeds)) for key, feeds in batches), threads=alone):
            yield key, self.run(feeds)

    def run_there(self, inputs: Places, outputs: Places) -> None:
        """Evaluate the graph from arrays on its device to others there; they are complete when this returns.

        Raises what ``run`` does.
        """
        check_places(inputs, outputs, self.spec, self._where)
        binding = self._session.io_binding()
        for places, bind in ((inputs, binding.bind_input), (outputs, binding.bind_output)):
            for name, place in places.items():
                bind(name, self.device, 0, np.float32, place.shape, place.address)
        try:
            self._session.run_with_iobinding(binding)
            binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's errors share no public base class
            raise run_error(error, self._where) from error

    def timed_run(self, feeds: Feeds) -> tuple[dict[str, np.ndarray], Timing]:
        """Evaluate the graph like ``run``, without overlap, and return how long each step took."""
        ort = import_onnxruntime()
        started = time.perf_counter()
        check_feeds(feeds, self.spec.inputs, self._where)
        binding = self._session.io_binding()
        arrays = {name: np.ascontiguousarray(array) for name, array in gathered(feeds).items()}
        prepared = time.perf_counter()
        for name, array in arrays.items():
            if self.device == "cpu":
                binding.bind_cpu_input(name, array)  # as it lies, without a copy
            else:
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(array, self.device, 0))
        for name in self._outputs:
            binding.bind_output(name, self.device)
        bound = time.perf_counter()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        computed = time.perf_counter()
        outputs = dict(zip(self._outputs, binding.copy_outputs_to_cpu(), strict=True))
        fetched = time.perf_counter()
        return outputs, Timing(
            host=prepared - started, copies=bound - prepared + fetched - computed, compute=computed - bound
        )

    def close(self) -> None:
        self._session = None

    def __enter__(self) -> "OnnxRuntimeEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_graph(self) -> None:
        for side, specs, tensors in (
            ("inputs", self.spec.inputs, self._session.get_inputs()),
            ("outputs", self.spec.outputs, self._session.get_outputs()),
        ):
            found = {tensor.name: tensor.shape for tensor in tensors}
            wanted = {spec.name: spec.axes for spec in specs}
            fits = found.keys() == wanted.keys() and all(
                len(found[name]) == len(axes)
                and all(
                    not isinstance(axis, int) or axis == length
                    for axis, length in zip(axes, found[name], strict=True)
                )
                for name, axes in wanted.items()
            )
            if not fits:
                raise InputError(
                    f"{self._where}: the graph's {side} are not those of the manifest; expected "
                    f"{', '.join(map(str, specs))}, found {found}; export the bundle again."
                )


def run_error(error: Exception, where: str) -> Exception:
    """Return the exception for a graph that ONNX Runtime failed to compute: MemoryError where memory ran out."""
    text = str(error)
    if isinstance(error, MemoryError) or any(words in text for words in NO_ROOM):
        return MemoryError(f"{where}: no room for a batch")
    reason = (text.splitlines() or [type(error).__name__])[0].rstrip(".")
    return FcdeployError(f"{where}: ONNX Runtime cannot compute this graph ({reason}).")


def open_session(
    path: Path,
    *,
    graph: bytes | None = None,
    threads: int = 0,
    device: str = "cpu",
    vram: int = 0,
) -> "onnxruntime.InferenceSession":
    """Load a graph, from ``graph`` if it was read before.

    Raises InputError when it cannot be, FcdeployError when the device is not the one asked for.
    """
    if device not in PROVIDERS:
        raise InputError(f"device '{device}': is neither 'cpu' nor 'cuda'.")
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or machine.cores()
    options.log_severity_level = 4  # errors are raised, and need not be printed, too
    # Threads that spin while they wait take the cores that the next neighborhoods are built on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings: dict[str, int | str] = {}
    if device == "cuda":
        release_device_memory()
        settings["use_tf32"] = 0  # fp32 graphs mean fp32: ten bits of mantissa would flip edges
        if vram:
            settings |= {"gpu_mem_limit": vram, "arena_extend_strategy": "kSameAsRequested"}
    try:
        session = ort.InferenceSession(
            graph or str(path),
            options,
            providers=[(PROVIDERS[device], settings)],
            enable_fallback=0,  # to the CPU, when a GPU fails, with words on stdout
        )
    except Exception as error:  # ONNX Runtime's errors share no public base class
        reason = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: ONNX Runtime cannot load this graph ({reason}).") from error
    opened = session.get_providers()
    if PROVIDERS[device] not in opened:
        raise FcdeployError(
            f"{path}: {PROVIDERS[device]} was asked for but ONNX Runtime opened {', '.join(opened)}; "
            "run `fcdeploy doctor` to see what is missing, or give --device cpu."
        )
    return session


def import_onnxruntime() -> ModuleType:
    """Import ONNX Runtime; raises MissingDependencyError, see ``import_package``."""
    return import_package("onnxruntime", "ONNX Runtime", "pip install 'fcdeploy[cpu]'` (or `[gpu]")
