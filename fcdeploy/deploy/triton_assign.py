"""A model for Triton Inference Server that assigns faces to the clusters of a run: embeddings in, clusters out.

The model is a few lines for Triton's Python backend, which open an ``Assigner`` in the server's own Python; fcdeploy
has to be installed there. The run folder is opened where it lies, and read only.
"""

import dataclasses
import importlib.resources
import json
from pathlib import Path

from fcdeploy.data.atomic_folder import atomic_folder
from fcdeploy.data.digests import sha256_of
from fcdeploy.deploy.triton import (
    CONFIG,
    MARKER,
    VERSION,
    Marker,
    Served,
    check_models,
    check_prefix,
    ours_in_repository,
    read_marker,
)
from fcdeploy.errors import InputError
from fcdeploy.runtime.stored import Stored, open_stored

MODEL = "model.py"
NAME = "assign"
SOURCE = "triton_model.py"  # beside this module
UNQUOTED = '"\\'  # what ends a text of a configuration, or begins an escape in it


def write_assign_model(
    run_dir: Path | str, output: Path | str, prefix: str | None = None, engine: Path | str | None = None
) -> Path:
    """Add a model to a repository that assigns faces to the clusters of a run folder; returns the model's folder.

    output: the repository, see ``write_model_repository``. The model is called ``prefix``, by default the system's
    name, and "_assign". engine: the bundle, where it is no longer where the run found it. Raises InputError for a
    folder that holds no finished run, and for what ``write_model_repository`` refuses.
    """
    stored = open_stored(run_dir, engine)
    stored.bundle.check_files()
    prefix = check_prefix(stored.bundle.system if prefix is None else prefix)
    folder = Path(run_dir).resolve()
    for named in (folder, stored.bundle.path.resolve()):
        if not str(named).isprintable() or any(character in str(named) for character in UNQUOTED):
            raise InputError(
                f"{named}: has a character that a model configuration cannot hold; rename the folder."
            )
    output = Path(output)
    source = Served(
        bundle=folder.name,
        system=stored.bundle.system,
        precision=stored.bundle.about.precision,
        digest=stored.state.artifacts["labels"],
        models={NAME: f"{prefix}_{NAME}"},
    )
    key = f"{prefix}_{NAME}"  # beside an engine's own models of the same prefix
    engines = read_marker(output)
    check_models(output, key, source, engines)
    with atomic_folder(output, lambda place: ours_in_repository(place, key), [MARKER]) as made:
        model = made / source.models[NAME]
        (model / VERSION).mkdir(parents=True)
        (model / VERSION / MODEL).write_text(model_text())
        (model / CONFIG).write_text(config_of(model.name, stored, folder))
        files = {
            str(file.relative_to(made)): sha256_of(file) for file in (model / VERSION / MODEL, model / CONFIG)
        }
        marker = Marker("fcdeploy-models", {**engines, key: dataclasses.replace(source, files=files)})
        (made / MARKER).write_text(json.dumps(dataclasses.asdict(marker), indent=1) + "\n")
    return output / source.models[NAME]


def model_text() -> str:
    """Return the source of the model, which imports fcdeploy and what Triton gives to its Python models."""
    return (importlib.resources.files("fcdeploy.deploy") / SOURCE).read_text()


def config_of(model: str, stored: Stored, folder: Path) -> str:
    """Return the ``config.pbtxt`` of the model; a request brings any number of faces."""
    parameters = {
        "run_dir": str(folder),
        "engine": str(stored.bundle.path.resolve()),
        "threads": "0",
    }
    lines = [f'name: "{model}"', 'backend: "python"', "max_batch_size: 0"]
    tensors = (
        ("input", "embeddings", "TYPE_FP32", f"[-1, {stored.state.dim}]"),
        ("output", "cluster", "TYPE_INT64", "[-1]"),
        ("output", "confidence", "TYPE_FP32", "[-1]"),
        ("output", "margin", "TYPE_FP32", "[-1]"),
    )
    for side, name, kind, dims in tensors:
        lines += [f"{side} {{", f'  name: "{name}"', f"  data_type: {kind}", f"  dims: {dims}", "}"]
    for name, value in parameters.items():
        lines += ["parameters {", f'  key: "{name}"', f'  value {{ string_value: "{value}" }}', "}"]
    lines += ["instance_group {", "  kind: KIND_CPU", "  count: 1", "}"]
    return "\n".join(lines) + "\n"
