"""TensorRT in its two flavours: ``tensorrt`` (10.x, 11.x) and ``tensorrt-rtx``, which share one Python interface."""

import re
from collections.abc import Sequence
from types import ModuleType
from typing import IO, Any, Protocol

from fcdeploy.engine.tensors import TensorSpec
from fcdeploy.packages import import_package

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}  # flavour, and its extra -> module
TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT for RTX", "onnxruntime": "ONNX Runtime"}
DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "UINT8": "uint8",
    "BOOL": "bool",
}
# What TensorRT for RTX also reports as errors on a machine without a GPU, where it works all the same.
NO_GPU = ("cudaError 35", "cudaError 100", "In catchCudaError")


class Named(Protocol):
    """A member of one of TensorRT's enumerations."""

    @property
    def name(self) -> str: ...


class Described(Protocol):
    """A tensor of TensorRT's, as far as it is described here."""

    @property
    def name(self) -> str: ...

    @property
    def dtype(self) -> Named: ...

    @property
    def shape(self) -> Sequence[int]: ...

    def get_dimension_name(self, index: int) -> str: ...


class Logger(Protocol):
    """What passes TensorRT's messages on to a file and keeps the errors."""

    errors: list[str]

    def start(self, file: IO[str] | None = None) -> None: ...


_loggers: dict[str, Logger] = {}


def import_tensorrt(flavour: str) -> ModuleType:
    """Import a flavour's module; raises MissingDependencyError, see ``import_package``."""
    return import_package(MODULES[flavour], TITLES[flavour], f"pip install 'fcdeploy[{flavour}]'")


def logger_of(trt: Any) -> Logger:
    """Return the one logger of a flavour, with ``start(file)`` and the ``errors`` that came since.

    TensorRT keeps the first logger that a process gives it and ignores all others, so there is only one.
    """
    if trt.__name__ not in _loggers:

        class Log(trt.ILogger):
            """Passes what TensorRT says on to a text file and keeps the errors."""

            def __init__(self) -> None:
                trt.ILogger.__init__(self)
                self.file: IO[str] | None = None
                self.errors: list[str] = []

            def start(self, file: IO[str] | None = None) -> None:
                """Write to ``file`` from now on (nowhere, if None), with no errors so far."""
                self.file, self.errors = file, []

            def log(self, severity: Named, message: str) -> None:
                """Take one message; called by TensorRT, from any thread."""
                if severity == trt.ILogger.VERBOSE:
                    return
                if self.file is not None:
                    self.file.write(f"[{severity.name}] {message}\n")
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    self.errors.append(message)

        _loggers[trt.__name__] = Log()
    return _loggers[trt.__name__]


def error_from_log(errors: list[str]) -> str:
    """Return the first error that says something, on one line and without the places in TensorRT's source."""
    for message in errors:
        if any(words in message for words in NO_GPU):
            continue
        line = " ".join(message.split())
        line = re.sub(r"\[?\w+\.cpp:+\w*:?\d+:?[^\]]*\]:? ?", "", line)
        line = re.sub(r"(\. )?\(?In \w+ at [^)]*\)?$", "", line)
        line = re.sub(r"^I\w+::\w+: |Error Code \d+: |\b(Myelin|API Usage Error) \(", "", line)
        parts = dict.fromkeys(part.strip(" .()[") for part in line.split("; "))  # each thread says the same
        if line := "; ".join(part for part in parts if part):
            return line[:300]
    return "no reason given"


def spec_of_tensor(tensor: Described) -> TensorSpec:
    """Describe a tensor of a parsed network or an engine's file as a spec; free axes carry their ONNX names."""
    axes = tuple(
        (tensor.get_dimension_name(at) or "?") if length < 0 else int(length)
        for at, length in enumerate(tensor.shape)
    )
    return TensorSpec(tensor.name, axes, DTYPES.get(tensor.dtype.name, tensor.dtype.name.lower()))


def capabilities(trt: ModuleType) -> list[str]:
    """Return the compute capabilities that TensorRT for RTX compiles for without a GPU: "7.5", "8.6", ..."""
    numbers = sorted(int(name[2:]) for name in dir(trt.ComputeCapability) if name.startswith("SM"))
    return [f"{number // 10}.{number % 10}" for number in numbers]
