"""Is the exported graph the network? Values, NaN and threshold decisions, held against PyTorch in float64."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fcdeploy.data.scratch import temporary_folder
from fcdeploy.deploy.precision import ERROR, FLIPS
from fcdeploy.engine.manifest import Parity
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.systems import Recipe, System, Widths

if TYPE_CHECKING:
    from torch import nn

SEED = 20240
UNDECIDED = 1e-6  # a similarity this near to the threshold may fall on either side of it
EDGES = "edges."  # prefix of decisions among outputs: those of a probed graph, or what ``run_passes`` makes of them


def measure_parity(
    system: System,
    network: str,
    widths: Widths,
    model: "nn.Module",
    folder: Path,
    recipe: Recipe,
    *,
    half: bool = False,
    backend: str = "onnxruntime",
) -> Parity:
    """Compare a network's graphs in ``folder`` with the plain network on random batches of several sizes.

    network: its name in the system; widths: those of its weights; model: the PyTorch module; recipe: gives the
    tolerance and the largest size. The reference is the published form evaluated in float64. half: the graphs are in
    half precision, whose tolerance is that of ``fcdeploy.deploy.precision``. backend: what the report calls it.
    """
    checks, plain = system.module("parity").PARITY[network], system.module("network").NETWORKS[network]
    sizes = checks.sizes(recipe)
    rng = np.random.default_rng(SEED)
    rows = rows_apart = nan = edges = flipped = undecided = 0
    errors: list[np.ndarray] = []
    scale = 0.0
    with (
        temporary_folder(folder.parent) as scratch,
        contextlib.ExitStack() as stack,
    ):
        engines = {
            name: stack.enter_context(_open_probed(folder / f"{name}.onnx", spec, Path(scratch)))
            for name, spec in system.networks[network].passes(**widths).items()
        }
        for b, n in sizes:
            batch = checks.random_batch(widths["dim"], b, n, rng)
            expected, sims = plain.plain_outputs(model, batch)
            found = checks.run_passes(engines, batch)
            drawn = [array for name, array in found.items() if name.startswith(EDGES)]
            apart = np.zeros(b, dtype=bool)
            for values, kept in zip(sims, drawn, strict=True):
                differs = (values >= plain.threshold) != kept
                close = differs & (np.abs(values - plain.threshold) < UNDECIDED)
                edges += differs.size
                flipped += int((differs & ~close).sum())
                undecided += int(close.sum())
                apart |= (differs if half else close).reshape(b, -1).any(axis=1)
            for name, values in expected.items():
                nan += int(np.isnan(found[name]).sum())
                scale = max(scale, float(np.abs(values).max(initial=0.0)))
                errors.append(np.abs(found[name] - values)[~apart].ravel())
            rows += b
            rows_apart += int(apart.sum())
    joined = np.concatenate(errors)
    allowed = system.tolerance(recipe, network)
    if (half or allowed.relative) and scale > 0:
        joined = joined / scale
    return Parity(
        backend=backend,
        tolerance=ERROR if half else allowed.error,
        allowed_flips=int(FLIPS * edges) if half else allowed.flips,
        sizes=tuple(sizes),
        rows=rows,
        rows_apart=rows_apart,
        max_error=float(np.nanmax(joined, initial=0.0)),
        mean_error=float(np.nanmean(joined)) if len(joined) else 0.0,
        nan=nan,
        edges=edges,
        flipped=flipped,
        undecided=undecided,
    )


def _open_probed(path: Path, spec: PassSpec, scratch: Path) -> OnnxRuntimeEngine:
    """Open a graph that gives, beside its outputs, the decision of each of its thresholds."""
    import onnx

    graph = onnx.load(path)
    thresholds = [node.output[0] for node in graph.graph.node if node.op_type == "GreaterOrEqual"]
    shapes = {value.name: value.type for value in graph.graph.value_info}
    probes = []
    for at, name in enumerate(thresholds):
        probe = f"{EDGES}{at}"
        graph.graph.node.append(onnx.helper.make_node("Identity", [name], [probe]))
        rank = len(shapes[name].tensor_type.shape.dim)
        axes = tuple(f"{probe}.{axis}" for axis in range(rank))
        graph.graph.output.append(onnx.helper.make_tensor_value_info(probe, onnx.TensorProto.BOOL, axes))
        probes.append(TensorSpec(probe, axes, "bool"))
    probed = scratch / path.name
    onnx.save(graph, probed)
    return OnnxRuntimeEngine(probed, PassSpec(spec.name, spec.inputs, (*spec.outputs, *probes)))
