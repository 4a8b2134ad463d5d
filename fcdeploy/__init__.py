"""Deploy learned face clustering: PyTorch checkpoints to ONNX, TensorRT engines and clusters."""

import os
from typing import TYPE_CHECKING

from fcdeploy import forks as _forks  # noqa: F401 - sees what forked processes inherit
from fcdeploy.errors import (
    FcdeployError,
    FcdeployWarning,
    InputError,
    MissingDependencyError,
    ParityError,
)

# ONNX Runtime 1.29 and later write an identifier below ~/.cache and send usage data, unless this is set when the module
# is imported (https://github.com/microsoft/onnxruntime/pull/27379); disable_telemetry_events comes too late for both.
# It is set here because everything of ours, and every library that imports ONNX Runtime for us, comes after.
# Whoever has set it to something, 0 included, has chosen.
if not os.environ.get("ORT_DISABLE_TELEMETRY"):
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"

__version__ = "0.2.0"
__all__ = [
    "Assigned",
    "Assigner",
    "FaceClusterer",
    "FcdeployError",
    "FcdeployWarning",
    "InputError",
    "MissingDependencyError",
    "ParityError",
    "__version__",
    "assign",
    "cluster",
    "compare",
    "confidence",
    "embed",
    "export_clusters",
    "faces",
    "pairs",
    "report",
    "train",
    "update",
]

if TYPE_CHECKING:
    from fcdeploy.report.exports import export_clusters
    from fcdeploy.report.writing import report
    from fcdeploy.runtime.api import (
        Assigned,
        Assigner,
        FaceClusterer,
        assign,
        cluster,
        confidence,
        embed,
        pairs,
        update,
    )
    from fcdeploy.runtime.photos_api import faces
    from fcdeploy.training.asked import train
    from fcdeploy.training.compare import compare

_IN_API = (
    *("Assigned", "Assigner", "FaceClusterer", "assign", "cluster", "confidence", "embed", "pairs", "update"),
)
_INTERFACE = {
    **dict.fromkeys(_IN_API, "runtime.api"),
    "faces": "runtime.photos_api",
    "export_clusters": "report.exports",
    "compare": "training.compare",
    "train": "training.asked",
}


def __getattr__(name: str) -> object:
    """Import the Python interface when it is first used, so that ``import fcdeploy`` stays light."""
    if name in _INTERFACE:
        import importlib

        return getattr(importlib.import_module(f"fcdeploy.{_INTERFACE[name]}"), name)
    if name == "report":
        import fcdeploy.report as report

        return report  # which can be called
    raise AttributeError(f"module 'fcdeploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, those that are imported on first use included."""
    return sorted({*__all__, *globals()} - {"TYPE_CHECKING", "_INTERFACE"})
