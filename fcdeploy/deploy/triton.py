"""A model repository for Triton Inference Server: one model a pass, each with its configuration."""

import dataclasses
import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fcdeploy.data.atomic_folder import atomic_folder
from fcdeploy.data.digests import sha256_of
from fcdeploy.data.typed import typed
from fcdeploy.engine.bundle import PLAN, Bundle
from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import FcdeployWarning, InputError

MARKER = "fcdeploy.json"  # in the repository, where Triton looks at folders only
FORMAT_VERSION = 1
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


@dataclass(frozen=True)
class Served:
    """An engine in a repository; models: pass -> folder.

    files: name -> SHA-256 when it was written; empty where an earlier version wrote it.
    """

    bundle: str
    system: str
    digest: str
    models: dict[str, str]
    precision: str = ""
    files: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Marker:
    """The record in a repository: its engines by the prefix of their models."""

    format: Literal["fcdeploy-models"]
    engines: dict[str, Served]
    format_version: int = FORMAT_VERSION


def write_model_repository(bundle: Bundle, output: Path | str, prefix: str | None = None) -> dict[str, Path]:
    """Add the passes of a bundle to a repository as models that Triton can serve; return the folder of each pass.

    output: the repository, which has all models or is as it was. A model is called ``prefix``, by default the
    system's name, an underscore, and the pass. The file fcdeploy.json there says by prefix which models are ours and
    what their files were when they were written: writing the same bundle again replaces these files, and all else in
    the repository stays. Raises InputError for a bundle whose files were changed, a prefix that is no name, an output
    that is no model repository, and for a model of that name which is another bundle's, somebody else's, or was
    changed since.
    """
    prefix = check_prefix(bundle.system if prefix is None else prefix)
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
    source = Served(
        bundle=bundle.path.resolve().name,
        system=bundle.system,
        precision=bundle.about.precision,
        digest=bundle.digest(),
        models={name: f"{prefix}_{name}" for name in bundle.passes},
    )
    models = {name: output / model for name, model in source.models.items()}
    engines = read_marker(output)
    check_models(output, prefix, source, engines)

    def replaced(folder: Path) -> set[str] | None:
        return ours_in_repository(folder, prefix)

    with atomic_folder(output, replaced, [MARKER]) as folder:
        files: dict[str, str] = {}
        for name, spec in bundle.passes.items():
            model = folder / models[name].name
            (model / VERSION).mkdir(parents=True)
            shutil.copyfile(bundle.file(name), model / VERSION / file)
            profiles = bundle.about.passes[name].profiles or ()
            (model / CONFIG).write_text(config_text(model.name, spec, platform, len(profiles)))
            for made in (model / VERSION / file, model / CONFIG):
                files[str(made.relative_to(folder))] = sha256_of(made)
        marker = Marker("fcdeploy-models", {**engines, prefix: dataclasses.replace(source, files=files)})
        (folder / MARKER).write_text(json.dumps(dataclasses.asdict(marker), indent=1) + "\n")
    return models


def check_prefix(prefix: str) -> str:
    """Return what names of models begin with; raises InputError when no name can."""
    if not NAME.fullmatch(prefix):
        raise InputError(
            f"--prefix {prefix}: model names are made of letters, digits, dots, hyphens and underscores."
        )
    return prefix


def read_marker(repository: Path) -> dict[str, Served]:
    """Return what a repository's fcdeploy.json says of its engines, by the prefix of their models.

    Raises InputError for a file of somebody else's.
    """
    file = repository / MARKER
    if not file.exists() and not file.is_symlink():
        return {}
    try:
        found = json.loads(file.read_bytes())
        if "format" not in found:  # of one engine, as an earlier version wrote it
            first, name = next(iter(found["models"].items()))
            found = {"format": "fcdeploy-models", "engines": {name.removesuffix(f"_{first}"): found}}
        engines = typed(Marker, found, str(file), open_ended=True).engines
        for engine in engines.values():
            names = [*engine.models.values(), *(Path(name).parts[0] for name in engine.files)]
            paths = [*engine.files, engine.bundle, engine.system, engine.digest]
            if not all(NAME.fullmatch(name) for name in names) or any(
                ".." in Path(path).parts for path in paths
            ):
                raise KeyError("models")
        if file.is_symlink():
            raise KeyError("format")
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, StopIteration):
        raise InputError(
            f"{file}: was not written by fcdeploy and has the name of its record of models; move it, or choose another "
            "output."
        ) from None
    return engines


def check_models(repository: Path, prefix: str, source: Served, engines: Mapping[str, Served]) -> None:
    """Raise InputError when a model of ``source`` would take the place of another bundle's or of somebody else's."""
    known = engines.get(prefix)
    if (
        known
        and (known.bundle, known.system) != (source.bundle, source.system)
        and known.digest != source.digest
    ):
        shown = ", ".join(known.models.values())
        raise InputError(
            f"{repository}: its models {shown} are of another bundle, {known.bundle}; give --prefix NAME to add "
            "these beside them."
        )
    others = {
        model: engine
        for other, engine in engines.items()
        if other != prefix
        for model in engine.models.values()
    }
    own = set(known.models.values()) if known else set()
    for model in source.models.values():
        if model in others:
            raise InputError(
                f"{repository / model}: is a model of {others[model].bundle}; give another --prefix."
            )
        if (repository / model).exists() and model not in own:
            raise InputError(
                f"{repository / model}: is a model that was not written by fcdeploy; give --prefix NAME to add these "
                "under other names."
            )
    for name, digest in (known.files if known else {}).items():
        if (repository / name).is_file() and sha256_of(repository / name) != digest:
            raise InputError(
                f"{repository / name}: was changed since it was written here and would be replaced; move it, or give "
                "--prefix NAME to leave it."
            )


def ours_in_repository(repository: Path, prefix: str) -> set[str] | None:
    """Return the files that go when the models of ``prefix`` are written again; None for what is no repository."""
    engines = read_marker(repository)
    if not engines and not any(map(is_model, repository.iterdir())):
        return None
    if prefix not in engines:
        return {MARKER}
    files = engines[prefix].files or [
        f"{model}/{file}"
        for model in engines[prefix].models.values()
        for file in (CONFIG, *(f"{VERSION}/{name}" for _, name in PLATFORMS.values()))
    ]
    return {MARKER, *(name for name in files if (repository / name).exists())}


def is_model(folder: Path) -> bool:
    """Tell whether a folder is a model as Triton takes it: with a configuration, or with versions."""
    try:
        names = os.listdir(folder)
    except OSError:  # a file, or not ours to look into
        return False
    return CONFIG in names or any(name.isdigit() and (folder / name).is_dir() for name in names)


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
