"""Deploy learned face clustering: PyTorch checkpoints to ONNX, TensorRT engines and clusters."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["FaceClusterer", "__version__", "cluster", "embed"]

if TYPE_CHECKING:
    from fcdeploy.runtime.api import FaceClusterer, cluster, embed


def __getattr__(name: str) -> Any:
    """Import the Python interface when it is first used, so that ``import fcdeploy`` stays light."""
    if name in ("cluster", "embed", "FaceClusterer"):
        from fcdeploy.runtime import api

        return getattr(api, name)
    raise AttributeError(f"module 'fcdeploy' has no attribute {name!r}")
