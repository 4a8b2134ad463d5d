"""A model repository for Triton Inference Server: one model a pass, each with its configuration."""

import json
import re
import shutil
import warnings
from pathlib import Path

from fcdeploy.data.atomic import atomic_folder
from fcdeploy.engine.bundle import PLAN, Bundle
from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import FcdeployWarning, InputError

MARKER = "fcdeploy.json"  # in the repository, where Triton looks at folders only
CONFIG = "config.pbtxt"
VERSION = "1"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
PLATFORMS = {"onnx": ("onnxruntime_onnx", "model.onnx"), PLAN: ("tensorrt_plan", "model.plan")}
# No model configuration can say it: the ONNX Runtime of the server is told by its environment.
TELEMETRY = (
    "# ONNX Runtime may send usage data: start the server with ORT_DISABLE_TELEMETRY=1 in its environment."
)
TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


def write_model_repository(bundle: Bundle, output: Path | str, prefix: str | None = None) -> dict[str, Path]:
    """Write the passes of a bundle as models that Triton can serve; return the folder of each pass.

    output: the repository, a folder that appears whole or not at all. A model is called ``prefix``, by default the
    system's name, an underscore, and the pass. Raises InputError for a bundle whose files were changed, a prefix that
    is no name, and an output that is something else.
    """
    prefix = bundle.system if prefix is None else prefix
    if not NAME.fullmatch(prefix):
        raise InputError(
            f"--prefix {prefix}: model names are made of letters, digits, dots, hyphens and underscores."
        )
    bundle.check_files()
    platform, file = PLATFORMS[bundle.kind]
    if bundle.kind == PLAN and bundle.target.flavour != "tensorrt":
        warnings.warn(
            f"Triton's TensorRT backend loads plans of TensorRT, and {bundle.path} holds plans of "
            f"{bundle.target.flavour}; build it with a profile of flavour tensorrt to serve it.",
            FcdeployWarning,
            stacklevel=2,
        )
    output = Path(output)
    models = {}
    with atomic_folder(output, MARKER) as folder:
        for name, spec in bundle.passes.items():
            model = f"{prefix}_{name}"
            (folder / model / VERSION).mkdir(parents=True)
            shutil.copyfile(bundle.file(name), folder / model / VERSION / file)
            profiles = bundle.manifest["passes"][name].get("profiles") or []
            text = config_text(model, spec, platform, len(profiles))
            (folder / model / CONFIG).write_text(text)
            models[name] = output / model
        source = {
            "bundle": bundle.path.name,
            "system": bundle.system,
            "precision": bundle.manifest["precision"],
            "digest": bundle.digest(),
            "models": {name: path.name for name, path in models.items()},
        }
        (folder / MARKER).write_text(json.dumps(source, indent=1) + "\n")
    return models


def config_text(model: str, spec: PassSpec, platform: str, profiles: int = 0) -> str:
    """Return the ``config.pbtxt`` of a pass; an axis whose length is free has the dimension -1.

    Triton is told nothing of a batch (max_batch_size 0), because passes may have several free axes or share one
    between inputs; requests bring whole tensors. profiles: optimization profiles of a plan, all of which are used.
    """
    lines = [f'name: "{model}"', f'platform: "{platform}"', "max_batch_size: 0"]
    if platform == PLATFORMS["onnx"][0]:
        lines.insert(0, TELEMETRY)
    for side, tensors in (("input", spec.inputs), ("output", spec.outputs)):
        for tensor in tensors:
            lines += _tensor_lines(side, tensor)
    if profiles:
        each = ", ".join(f'"{at}"' for at in range(profiles))
        lines += ["instance_group {", "  kind: KIND_GPU", "  count: 1", f"  profile: [{each}]", "}"]
    return "\n".join(lines) + "\n"


def _tensor_lines(side: str, tensor: TensorSpec) -> list[str]:
    dims = ", ".join("-1" if isinstance(axis, str) else str(axis) for axis in tensor.axes)
    axes = ", ".join(map(str, tensor.axes))
    return [
        f"{side} {{",
        f'  name: "{tensor.name}"',
        f"  data_type: {TYPES[tensor.dtype]}",
        f"  dims: [{dims}]  # {axes}",
        "}",
    ]
