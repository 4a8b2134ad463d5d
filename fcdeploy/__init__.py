"""Deploy learned face clustering: PyTorch checkpoints to ONNX, TensorRT engines and clusters."""

from typing import TYPE_CHECKING, Any

from fcdeploy.errors import (
    FcdeployError,
    FcdeployWarning,
    InputError,
    MissingDependencyError,
    ParityError,
)

__version__ = "0.1.0"
__all__ = [
    "FaceClusterer",
    "FcdeployError",
    "FcdeployWarning",
    "InputError",
    "MissingDependencyError",
    "ParityError",
    "__version__",
    "cluster",
    "embed",
]

if TYPE_CHECKING:
    from fcdeploy.runtime.api import FaceClusterer, cluster, embed

_INTERFACE = ("FaceClusterer", "cluster", "embed")


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first used, so that ``import fcdeploy`` stays light."""
    if name in _INTERFACE:
        from fcdeploy.runtime import api

        return getattr(api, name)
    raise AttributeError(f"module 'fcdeploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names, those that are imported on first use included."""
    return sorted({*__all__, *globals()} - {"Any", "TYPE_CHECKING", "_INTERFACE"})
