"""Export: authors' checkpoints become a bundle of ONNX graphs, checked against PyTorch before it appears."""

import functools
import logging
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fcdeploy import __version__
from fcdeploy.data.digests import sha256_of
from fcdeploy.data.features import Features, open_features
from fcdeploy.data.scratch import temporary_folder
from fcdeploy.deploy.agreement import faces_for_agreement, measure_agreement
from fcdeploy.deploy.checkpoint import Checkpoint, keys_of, read_checkpoint
from fcdeploy.deploy.parity import measure_parity
from fcdeploy.deploy.precision import (
    AGREEMENT,
    KEEPS,
    PRECISIONS,
    count_products,
    float32_products,
    with_half_products,
)
from fcdeploy.deploy.recipe import load_recipe
from fcdeploy.deploy.recipe_beside import note_of_another, published_sentence, recipe_beside
from fcdeploy.deploy.recognise import recognise
from fcdeploy.engine.bundle import (
    Bundle,
    check_bundle_path,
    new_bundle,
    read_bundle,
    write_manifest,
)
from fcdeploy.engine.manifest import Agreement, Parity
from fcdeploy.engine.onnxruntime import import_onnxruntime
from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import FcdeployWarning, InputError, ParityError
from fcdeploy.packages import import_package
from fcdeploy.systems import Recipe, System, Weights, check_recipe
from fcdeploy.systems.settings import settings_as_dict

if TYPE_CHECKING:
    import onnx
    import torch

OPSET = 20  # the first with Gelu


def export_checkpoint(
    checkpoint: Path | str | Sequence[Path | str],
    output: Path | str | None = None,
    recipe: Path | str | Recipe | None = None,
    *,
    key: str | Sequence[str] | None = None,
    precision: str = "fp32",
    keep: str = "decisions",
    agreement: Path | str | None = None,
    allow_mismatch: bool = False,
) -> tuple[Bundle, dict[str, Parity]]:
    """Write the bundle of a checkpoint, or of several that run together; return it with how exact each network is.

    output: a folder, by default ``SYSTEM.onnx`` in the current one. checkpoint: a state_dict under
    whatever wrapper and prefix, see ``fcdeploy.deploy.checkpoint``; the system, the network and its widths are
    recognised from it. key: where the state_dict stands in a checkpoint that holds several, one for all or one for
    each. recipe: a TOML file, a built-in name, or a dataclass from ``load_recipe``; without one that
    which ``fcdeploy train`` left beside the checkpoint (``checkpoint.toml`` beside ``checkpoint.pth``), else the
    system's published settings with the checkpoints' widths: an FcdeployWarning and the manifest's ``recipe_from``
    say which.
    precision: "fp32", or "fp16" for matrix products in half precision but for those that ``keep`` names, see
    ``fcdeploy.deploy.precision``; then the bundle's clusters are compared with those in fp32, on the faces of the
    features file ``agreement`` or on generated ones. Raises InputError for a checkpoint, recipe or
    features file that cannot be used, and for an output where something of the user's would be lost, ParityError (and
    writes nothing) when the tolerance is missed, unless ``allow_mismatch``.
    """
    import_export_extra()
    _check_precision(precision, keep, agreement)
    name: str | None
    given: Recipe | None
    if isinstance(recipe, (str, Path)):
        name, given = str(recipe), load_recipe(recipe)
    else:
        name, given = None, recipe
    if output:
        check_bundle_path(output)
    read = _read_all([checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint, key)
    system, weights, sources = _recognised(read)
    paths = [source.path for source in sources]
    chosen, recipe_from = _chosen_recipe(system, paths, weights, given, name)
    output = Path(output or f"{system.name}.onnx")
    faces = open_features(agreement, chosen.feature_dim) if agreement else None
    passes = system.passes(weights)
    parities: dict[str, Parity] = {}
    products: dict[str, dict[str, int]] = {}
    with new_bundle(output, passes) as folder, temporary_folder(output.parent) as scratch:
        export = _Export(system, weights, chosen, folder, Path(scratch), precision, keep, allow_mismatch)
        for source in sources:
            parities[source.network], halved = _export_network(export, source)
            products |= halved
        fields = {
            "system": system.name,
            "feature_dim": chosen.feature_dim,
            "precision": precision,
            "recipe": settings_as_dict(chosen),
            "recipe_from": recipe_from,
            "networks": {
                source.network: _network_fields(source, weights, parities[source.network])
                for source in sources
            },
            "versions": _versions(),
        }
        if precision == "fp16":
            for place in (export.full, export.spelled):
                write_manifest(place, passes, fields)
            measured_on = faces or faces_for_agreement(chosen, chosen.feature_dim)
            agreed = _measured_agreement(
                export.full, export.spelled, measured_on, allow_mismatch, ", ".join(read)
            )
            fields["fp16"] = {"keep": keep, "products": products, "agreement": agreed.as_dict()}
        write_manifest(folder, passes, fields)
    return read_bundle(output), parities


@dataclass(frozen=True)
class _Source:
    """A checkpoint of an export: what messages call it, its file, what was read, and which network it holds."""

    where: str
    path: Path
    checkpoint: Checkpoint
    network: str


@dataclass(frozen=True)
class _Export:
    """What all networks of an export have in common.

    folder: of the bundle; scratch: for what does not stay. keep, precision: see ``export_checkpoint``.
    """

    system: System
    weights: Weights
    recipe: Recipe
    folder: Path
    scratch: Path
    precision: str
    keep: str
    allow_mismatch: bool

    @property
    def full(self) -> Path:
        """Where graphs in single precision are written: the bundle itself unless it is in half precision."""
        return self.folder if self.precision == "fp32" else self.scratch / "fp32"

    @property
    def spelled(self) -> Path:
        """Where graphs in half precision are written with their rounding spelled out."""
        return self.scratch / "spelled"


def _read_all(
    checkpoints: Sequence[Path | str], key: str | Sequence[str] | None
) -> dict[str, tuple[Path, Checkpoint]]:
    """Read all checkpoints: what messages call each of them -> its file and its weights."""
    given = list(zip(map(Path, checkpoints), keys_of(key, len(checkpoints)), strict=True))
    # One file may hold several networks: then their keys tell them apart.
    several = {path for path, _ in given if len({one for other, one in given if other == path}) > 1}
    files = {f"{path}, {one}" if path in several else str(path): (path, one) for path, one in given}
    return {where: (path, read_checkpoint(path, one)) for where, (path, one) in files.items()}


def _recognised(read: Mapping[str, tuple[Path, Checkpoint]]) -> tuple[System, Weights, list[_Source]]:
    """Return the system of checkpoints, the widths of its networks, and the checkpoints in the order of a run.

    Tells the user where tensors beside the weights are left out.
    """
    system, network_of, weights = recognise(
        {
            where: {name: tuple(tensor.shape) for name, tensor in checkpoint.state.items()}
            for where, (_, checkpoint) in read.items()
        }
    )
    for where, (_, checkpoint) in read.items():
        if checkpoint.beside:
            left_out = f"tensors beside them are left out ({checkpoint.beside:,})"
            warnings.warn(
                f"{where}: the weights are those under {checkpoint.key}; {left_out}.",
                FcdeployWarning,
                stacklevel=3,
            )
    sources = [
        _Source(where, path, checkpoint, network_of[where]) for where, (path, checkpoint) in read.items()
    ]
    return system, weights, sorted(sources, key=lambda source: list(weights).index(source.network))


def _export_network(export: _Export, source: _Source) -> tuple[Parity, dict[str, dict[str, int]]]:
    """Write the graphs of one network, checked against PyTorch; in half precision with its products, as counted.

    Raises ParityError when the tolerance is missed.
    """
    system, name = export.system, source.network
    network = system.module("network").NETWORKS[name]
    model = network.from_state_dict(source.checkpoint.state)
    network.settle(model, export.recipe)
    specs, modules = system.passes(export.weights), network.passes(model)
    export.full.mkdir(exist_ok=True)
    for of, module in modules.items():
        _export_pass(module, specs[of], export.full / f"{of}.onnx")
    measured = functools.partial(
        measure_parity, system, name, export.weights[name], model, recipe=export.recipe
    )
    parity = measured(export.full)
    if not parity.within_tolerance and not export.allow_mismatch:
        raise ParityError(
            f"{source.path}: the exported graphs miss the tolerance ({parity}); nothing was written. "
            "Raise the recipe's [tolerance] or give --allow-mismatch to keep them."
        )
    if export.precision == "fp32":
        return parity, {}
    export.spelled.mkdir(exist_ok=True)
    products = _write_halves(export, modules, network.deciding)
    shipped = measured(export.folder, half=True)
    spelled = measured(export.spelled, half=True, backend="onnxruntime, float16 rounding spelled out")
    for parity in (shipped, spelled):
        if not parity.within_tolerance and not export.allow_mismatch:
            raise ParityError(
                f"{source.path}: in half precision the graphs miss the tolerance ({parity}); nothing was "
                "written. Export it in fp32, or give --allow-mismatch to keep them."
            )
    return spelled, products


def _network_fields(source: _Source, weights: Weights, parity: Parity) -> dict[str, object]:
    """Return what the manifest says of a network."""
    key = source.checkpoint.key
    return {
        "widths": dict(weights[source.network]),
        "checkpoint": {
            "file": source.path.name,
            "sha256": sha256_of(source.path),
            **({"key": key} if key else {}),
        },
        "parity": parity.as_dict(),
    }


def _chosen_recipe(
    system: System, checkpoints: Sequence[Path], weights: Weights, given: Recipe | None, name: str | None
) -> tuple[Recipe, Mapping[str, object]]:
    """Return the recipe to export with and where it is from, and tell the user where that is not what they said.

    checkpoints: in the order of a run. given: a recipe or None; name: the file or built-in recipe that it was read
    from. Raises InputError for a recipe that is not for these networks.
    """
    where = ", ".join(map(str, checkpoints))
    note: str | None
    if given is not None:
        recipe, note = given, None
        check_recipe(system, recipe, weights, where)
        if name is not None:
            note = note_of_another(system, checkpoints, recipe, name)
        source = {"source": "given", "files": [] if name is None else [Path(name).name]}
    elif (
        beside := recipe_beside(system, checkpoints, lambda: system.recipe.for_weights(weights))
    ) is not None:
        recipe, note = beside.recipe, beside.sentence
        names = " and ".join(map(str, beside.files))
        check_recipe(
            system, recipe, weights, where, f"it lies beside them ({names}); give another with --recipe"
        )
        source = {"source": "beside the checkpoint", "files": [file.name for file in beside.files]}
    else:
        recipe = system.recipe.for_weights(weights)
        note = published_sentence(checkpoints, recipe)
        source = {"source": "published", "files": []}
    if note:
        warnings.warn(note, FcdeployWarning, stacklevel=3)
    return recipe, source


def _check_precision(precision: str, keep: str, agreement: Path | str | None) -> None:
    if precision not in PRECISIONS:
        raise InputError(f"precision {precision!r}: is neither {' nor '.join(map(repr, PRECISIONS))}.")
    if keep not in KEEPS:
        raise InputError(f"keep {keep!r}: is neither {' nor '.join(map(repr, KEEPS))}.")
    if precision == "fp32" and (keep != KEEPS[0] or agreement is not None):
        given = "--keep" if agreement is None else "--agreement"
        raise InputError(f"{given} is for --precision fp16; in fp32 nothing is rounded and nothing compared.")


def _write_halves(
    export: _Export, passes: Iterable[str], deciding: Mapping[str, tuple[str, ...]]
) -> dict[str, dict[str, int]]:
    """Write a network's graphs in half precision, as they are shipped and with rounding spelled out.

    Returns the number of matrix products of each pass in each type.
    """
    import onnx

    graphs = {name: onnx.load(export.full / f"{name}.onnx") for name in passes}
    float32 = float32_products(graphs, deciding, export.keep)
    products = {}
    for name, graph in graphs.items():
        half = with_half_products(graph, float32[name])
        onnx.checker.check_model(half, full_check=True)
        _write_graph(half, export.folder / f"{name}.onnx")
        _write_graph(
            with_half_products(graph, float32[name], spelled_out=True), export.spelled / f"{name}.onnx"
        )
        products[name] = count_products(half)
    return products


def _measured_agreement(
    full: Path, half: Path, features: Features, allow_mismatch: bool, where: str
) -> Agreement:
    agreed = measure_agreement(read_bundle(full), read_bundle(half), features)
    if agreed.worst.share < AGREEMENT and not allow_mismatch:
        raise ParityError(
            f"{where}: in half precision {agreed}, fewer than {AGREEMENT:.0%}; nothing was written. Export it in fp32, "
            "or give --allow-mismatch to keep it."
        )
    return agreed


def import_export_extra() -> None:
    """Import what exporting needs; raises MissingDependencyError, see ``import_package``."""
    for name in ("onnx", "onnxscript", "torch"):
        import_package(name, f"{name}, which exporting needs,", "pip install 'fcdeploy[cpu,export]'")


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
    _write_graph(graph, path)


def _write_graph(graph: "onnx.ModelProto", path: Path) -> None:
    path.write_bytes(graph.SerializeToString(deterministic=True))


def _strip(graph: "onnx.ModelProto") -> None:
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
    import torch

    onnxruntime = import_onnxruntime()
    return {
        "fcdeploy": __version__,
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": str(OPSET),
    }
