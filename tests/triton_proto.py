"""Triton's own definition of a model's configuration."""

import importlib.metadata
import importlib.util
from functools import cache


@cache
def model_config_pb2():
    """Load it from tritonclient's file by itself: the package around it would want gRPC."""
    files = importlib.metadata.files("tritonclient") or []
    path = next(file.locate() for file in files if str(file).endswith("grpc/model_config_pb2.py"))
    spec = importlib.util.spec_from_file_location("triton_model_config_pb2", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parse(text):
    """Parse the text of a ``config.pbtxt``."""
    from google.protobuf import text_format

    return text_format.Parse(text, model_config_pb2().ModelConfig())
