"""Export: authors' checkpoints become a bundle of ONNX graphs, checked against PyTorch before it appears."""

import logging
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcdeploy import __version__
from fcdeploy.deploy.parity import Parity, measure_parity
from fcdeploy.engine.bundle import Bundle, new_bundle, read_bundle, sha256_of, write_manifest
from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import InputError, MissingDependencyError, ParityError
from fcdeploy.systems import describe, recognise
from fcdeploy.systems.settings import settings_as_dict

if TYPE_CHECKING:
    import torch

OPSET = 20  # the first with Gelu
WRAPPERS = ("state_dict", "net")  # keys under which the authors' scripts keep the state_dict
PREFIX = "module."  # left by DataParallel


def export_checkpoint(
    checkpoint: Path | str | Sequence[Path | str],
    output: Path | str | None = None,
    recipe: Any = None,
    *,
    allow_mismatch: bool = False,
) -> tuple[Bundle, dict[str, Parity]]:
    """Write the bundle of a checkpoint, or of several that run together; return it with how exact each network is.

    output: a folder, by default ``SYSTEM.onnx`` in the current one. checkpoint: a state_dict, plain or under
    'state_dict' or 'net', with or without ``module.`` prefixes; the system, the network and its widths are
    recognised from it. recipe: a dataclass from ``load_recipe``; without one the system's published settings with the
    checkpoints' widths. Raises InputError for a checkpoint or recipe that cannot be used, ParityError (and writes
    nothing) when the recipe's tolerance is missed, unless ``allow_mismatch``.
    """
    import_export_extra()
    checkpoints = [checkpoint] if isinstance(checkpoint, (str, Path)) else list(checkpoint)
    states = {str(path): load_state_dict(Path(path)) for path in checkpoints}
    system, network_of, weights = recognise(
        {
            path: {name: tuple(tensor.shape) for name, tensor in state.items()}
            for path, state in states.items()
        }
    )
    if recipe is None:
        recipe = system.recipe.for_weights(weights)
    if recipe.system != system.name or (mismatch := recipe.mismatch(weights)):
        other = mismatch if recipe.system == system.name else f"{recipe.feature_dim}-d features"
        raise InputError(
            f"{', '.join(states)}: holds {system.title} weights for {describe(weights)}; the recipe is for "
            f"{recipe.system} with {other}."
        )
    output = Path(output or f"{system.name}.onnx")
    parities: dict[str, Parity] = {}
    networks: dict[str, dict[str, Any]] = {}
    with new_bundle(output) as folder:
        passes = system.passes(weights)
        for path, state in sorted(states.items(), key=lambda item: list(weights).index(network_of[item[0]])):
            name = network_of[path]
            torch_network = system.module("network").NETWORKS[name]
            model = torch_network.from_state_dict(state)
            torch_network.settle(model, recipe)
            for of, module in torch_network.passes(model).items():
                _export_pass(module, passes[of], folder / f"{of}.onnx")
            parity = measure_parity(system, name, weights[name], model, folder, recipe)
            if not parity.within_tolerance and not allow_mismatch:
                raise ParityError(
                    f"{path}: the exported graphs miss the tolerance ({parity}); nothing was written. "
                    "Raise the recipe's [tolerance] or give --allow-mismatch to keep them."
                )
            parities[name] = parity
            networks[name] = {
                "widths": dict(weights[name]),
                "checkpoint": {"file": Path(path).name, "sha256": sha256_of(Path(path))},
                "parity": parity.as_dict(),
            }
        write_manifest(
            folder,
            passes,
            {
                "system": system.name,
                "feature_dim": recipe.feature_dim,
                "precision": "fp32",
                "recipe": settings_as_dict(recipe),
                "networks": networks,
                "versions": _versions(),
            },
        )
    return read_bundle(output), parities


def import_export_extra() -> None:
    """Import what exporting needs, or raise MissingDependencyError with the command that installs it."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting needs {error.name}; install it with `pip install 'fcdeploy[cpu,export]'`."
        ) from error


def load_state_dict(path: Path) -> "dict[str, torch.Tensor]":
    """Load a checkpoint's tensors, wrappers and prefixes removed; nothing in the file is executed.

    Returns name -> tensor on the CPU, floats as float32. Raises InputError for a missing file, a file that is
    no checkpoint, a pickle that holds anything but weights, and weights that are not finite.
    """
    import pickle

    import torch

    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(_unpickling_sentence(path, str(error))) from error
    except Exception as error:  # torch.load lets whatever its readers raise pass through
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        raise InputError(f"{path}: is not a PyTorch checkpoint ({reason}).") from error
    for wrapper in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(wrapper), dict):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, dict) or not all(
        isinstance(tensor, torch.Tensor) for tensor in loaded.values()
    ):
        kind = (
            f"keys {', '.join(map(str, list(loaded)[:5]))}"
            if isinstance(loaded, dict)
            else type(loaded).__name__
        )
        raise InputError(
            f"{path}: holds no state_dict ({kind}); expected one, plain or under {' or '.join(map(repr, WRAPPERS))}."
        )
    state = {}
    for name, tensor in loaded.items():
        if tensor.is_floating_point():
            tensor = tensor.float()
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{path}: {name} holds NaN or infinite weights; the training run diverged.")
        state[str(name).removeprefix(PREFIX)] = tensor
    return state


def _unpickling_sentence(path: Path, reason: str) -> str:
    # PyTorch's message runs over many lines of advice; what it refused stands behind "GLOBAL".
    words = reason.replace("`", " ").split()
    wanted = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "GLOBAL"]
    if wanted:
        return (
            f"{path}: is a pickle that wants to import {wanted[0]}, and fcdeploy loads weights only; "
            "save the network's state_dict() instead of the object."
        )
    return f"{path}: is not a checkpoint of weights ({reason.splitlines()[0].rstrip('.')})."


def _export_pass(module: "torch.nn.Module", spec: PassSpec, path: Path) -> None:
    """Write one module as an ONNX graph whose free axes carry the names of ``spec``."""
    import onnx
    import torch

    names = {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
    # Example lengths: distinct, and neither 0 nor 1, which PyTorch would take for constants.
    lengths = {axis: 3 + 2 * at for at, axis in enumerate(sorted(names))}
    dims = {axis: torch.export.Dim(axis, min=1) for axis in names}
    example = tuple(
        torch.rand([axis if isinstance(axis, int) else lengths[axis] for axis in tensor.axes])
        for tensor in spec.inputs
    )
    shapes = tuple(
        {at: dims[axis] for at, axis in enumerate(tensor.axes) if isinstance(axis, str)}
        for tensor in spec.inputs
    )
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                example,
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=shapes,
                input_names=[tensor.name for tensor in spec.inputs],
                output_names=[tensor.name for tensor in spec.outputs],
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    graph = program.model_proto
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _strip(graph: Any) -> None:
    """Remove what the exporter notes about the machine it ran on: stack traces, paths, doc strings."""
    del graph.metadata_props[:]
    graph.doc_string = ""
    for node in graph.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for values in (graph.graph.input, graph.graph.output, graph.graph.value_info, graph.graph.initializer):
        for value in values:
            del value.metadata_props[:]
            value.doc_string = ""
    del graph.graph.metadata_props[:]


def _versions() -> dict[str, str]:
    import onnx
    import onnxruntime
    import torch

    return {
        "fcdeploy": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": str(OPSET),
    }
