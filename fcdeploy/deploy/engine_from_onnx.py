"""Building: an ONNX bundle becomes a bundle of plans for one GPU, compiled by TensorRT.

Networks are strongly typed: what is computed in which precision stands in the ONNX graph and is not changed here, and
float32 means float32 (TF32 is off).
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import IO, TYPE_CHECKING

from fcdeploy import __version__
from fcdeploy.data.atomic import atomic_file, begins_with, check_parent, open_own
from fcdeploy.deploy.build_profile import DEFAULT, BuildProfile, Ranges, check_capability, load_profile
from fcdeploy.engine.bundle import (
    MANIFEST,
    ONNX,
    PLAN,
    Bundle,
    check_bundle_path,
    new_bundle,
    read_bundle,
    write_manifest,
)
from fcdeploy.engine.cuda import find_gpu
from fcdeploy.engine.onnxruntime import import_onnxruntime
from fcdeploy.engine.tensorrt import PlanTarget
from fcdeploy.engine.tensorrt_library import (
    TITLES,
    capabilities,
    error_from_log,
    import_tensorrt,
    logger_of,
    spec_of_tensor,
)
from fcdeploy.engine.tensors import PassSpec
from fcdeploy.errors import FcdeployError, InputError

if TYPE_CHECKING:
    import tensorrt

UNSUPPORTED = (
    "UNSUPPORTED_NODE",
    "INVALID_NODE",
)  # beginnings of the parser's codes for an operator it cannot take


LOG_BEGINNING = b"== "  # by which a log is known as ours
TIMING_BEGINNING = b"fcdeploy timing cache\n"


def build_bundle(
    source: Path | str,
    output: Path | str | None = None,
    profile: BuildProfile | Path | str = DEFAULT,
    *,
    compute_capability: str | None = None,
    log_file: Path | str | None = None,
    tell: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Compile every pass of an ONNX bundle; return the bundle of plans.

    output: a folder, by default the source's name with ``.plan``; it appears whole or not at all. profile: the
    build profile, as read by ``load_profile`` or its file or built-in name; compute_capability replaces the profile's.
    log_file: where the builder's log goes, by default ``OUTPUT.log``; written whether the build succeeds or not. A
    timing cache is kept in ``OUTPUT.timing`` where TensorRT measures kernels, which the RTX flavour does not. tell: is
    called with a line after each pass.
    Raises InputError for a bundle, profile or graph that cannot be used, FcdeployError when TensorRT fails.
    """
    bundle = _source_bundle(source)
    given_profile = None if isinstance(profile, BuildProfile) else Path(profile)
    profile = _chosen_profile(profile, compute_capability, log_file)
    output = Path(output or bundle.path.with_suffix(f".{PLAN}").name)
    if output.exists() and output.samefile(bundle.path):
        raise InputError(f"{output}: is the bundle to be built; choose another output.")
    kind = ONNX if profile.flavour == "onnxruntime" else PLAN
    check_bundle_path(output, bundle.passes, kind)
    if kind == ONNX:
        return _optimised(bundle, output, profile)
    timing_cache = output.with_name(f"{output.name}.timing") if profile.flavour == "tensorrt" else None
    log_file = _check_side_files(bundle, output, log_file, given_profile, timing_cache)
    trt = import_tensorrt(profile.flavour)
    target = PlanTarget(
        profile.flavour,
        trt.__version__,
        profile.compute_capability,
        _device(trt, profile),
        profile.name,
    )
    ranges = _ranges_of_passes(profile, bundle)
    handle = open_own(log_file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(handle, "w", encoding="utf-8") as log, new_bundle(output, bundle.passes, PLAN) as folder:
        for name, spec in bundle.passes.items():
            started = time.perf_counter()
            file = bundle.file(name)
            with _builder(trt, log, f"{file} for {profile.compute_capability}") as builder:
                plan = build_plan(
                    trt, builder, file, spec, profile, ranges[name], str(log_file), timing_cache
                )
            (folder / f"{name}.{PLAN}").write_bytes(plan)
            tell(f"{name}: {plan.nbytes:,} bytes in {time.perf_counter() - started:.1f} s")
        _write_manifest_of_plans(folder, bundle, target, profile, ranges)
    return read_bundle(output)


def _source_bundle(source: Path | str) -> Bundle:
    """Read the bundle to build from; raises InputError where it is not one of ONNX graphs, or damaged."""
    bundle = read_bundle(source)
    if bundle.kind != ONNX:
        raise InputError(
            f"{bundle.path}: holds plans already; give the ONNX bundle that they were built from, "
            f"{bundle.source.bundle}."
        )
    bundle.check_files()
    return bundle


def _chosen_profile(
    profile: BuildProfile | Path | str, compute_capability: str | None, log_file: Path | str | None
) -> BuildProfile:
    """Return the profile with the compute capability given; raises InputError for options that are not for it."""
    if not isinstance(profile, BuildProfile):
        profile = load_profile(profile)
    for name, given in (("--compute-capability", compute_capability), ("--log-file", log_file)):
        if given is not None and profile.flavour == "onnxruntime":
            raise InputError(
                f"{name}: is for TensorRT, and profile {profile.name} is for ONNX Runtime; leave it out."
            )
    if compute_capability is None:
        return profile
    check_capability(compute_capability, "--compute-capability")
    return dataclasses.replace(profile, compute_capability=compute_capability)


def _ranges_of_passes(profile: BuildProfile, bundle: Bundle) -> dict[str, list[Ranges]]:
    """Return the ranges to build each pass for; raises InputError where the profile names passes that are none."""
    for system, name in profile.passes:
        if system == bundle.system and name not in bundle.passes:
            raise InputError(
                f"profile {profile.name}: systems.{system}.{name} is not a pass of {bundle.path}; "
                f"it has {', '.join(bundle.passes)}."
            )
    return {name: profile.ranges(bundle.system, spec) for name, spec in bundle.passes.items()}


def _write_manifest_of_plans(
    folder: Path,
    bundle: Bundle,
    target: PlanTarget,
    profile: BuildProfile,
    ranges: Mapping[str, list[Ranges]],
) -> None:
    """Write the manifest of plans: what its bundle says, what they were built for, and from which files."""
    write_manifest(
        folder,
        bundle.passes,
        {
            **_inherited(bundle),
            "versions": {
                **bundle.about.versions,
                "fcdeploy": __version__,
                target.flavour: target.version,
            },
            "target": {**dataclasses.asdict(target), "workspace": profile.workspace},
            "source": {"bundle": bundle.path.resolve().name, "digest": bundle.digest()},
        },
        kind=PLAN,
        of_passes={
            name: {
                "profiles": [{axis: list(r) for axis, r in group.items()} for group in ranges[name]],
                "source": {"file": described.file, "sha256": described.sha256},
            }
            for name, described in bundle.about.passes.items()
        },
    )


def _check_side_files(
    bundle: Bundle, output: Path, log_file: Path | str | None, profile: Path | None, timing_cache: Path | None
) -> Path:
    """Return where the log goes; raises InputError when it or the timing cache would replace something else."""
    beside = output.with_name(f"{output.name}.log")
    log = check_parent(log_file or beside)
    inputs = [bundle.path / MANIFEST, *map(bundle.file, bundle.passes), *filter(None, [profile])]
    if log.exists() and any(given.exists() and log.samefile(given) for given in inputs):
        raise InputError(f"{log}: is also an input; choose another --log-file.")
    for file, beginning, remedy in (
        (None if log_file else beside, LOG_BEGINNING, "or give --log-file"),
        (timing_cache, TIMING_BEGINNING, "or choose another output"),
    ):
        if file is not None and file.exists() and not begins_with(file, beginning):
            raise InputError(f"{file}: was not written by fcdeploy and would be replaced; move it, {remedy}.")
    return log


def _inherited(bundle: Bundle) -> dict[str, object]:
    """Everything that the source's manifest says of the system, its weights and their parity."""
    own = ("format", "format_version", "kind", "passes", "versions")
    return {key: value for key, value in bundle.manifest.items() if key not in own}


def _device(trt: ModuleType, profile: BuildProfile) -> str:
    """Return the name of the GPU that is built on, empty where none is needed; raises InputError if it cannot be."""
    if profile.flavour == "tensorrt-rtx":
        known = capabilities(trt)
        if profile.compute_capability not in known:
            raise InputError(
                f"profile {profile.name}: {TITLES[profile.flavour]} {trt.__version__} does not compile for compute "
                f"capability {profile.compute_capability}, only for {', '.join(known)}; use a profile with "
                'flavour = "tensorrt" on the machine with that GPU.'
            )
        return ""
    gpu = find_gpu(
        f"profile {profile.name}: TensorRT builds on the GPU itself and",
        'build there, or use a profile with flavour = "tensorrt-rtx", which compiles anywhere',
    )
    if gpu.capability != profile.compute_capability:
        raise InputError(
            f"profile {profile.name}: is for compute capability {profile.compute_capability}, and TensorRT builds for "
            f"the GPU it runs on, here {gpu.name} with {gpu.capability}; give --compute-capability {gpu.capability}."
        )
    return gpu.name


@contextlib.contextmanager
def _builder(trt: ModuleType, log: IO[str], title: str) -> Iterator["tensorrt.Builder"]:
    """Give a builder whose log goes to a file while the block works."""
    log.write(f"{LOG_BEGINNING.decode()}{title}, {trt.__name__} {trt.__version__}\n")
    logger = logger_of(trt)
    logger.start(log)
    try:
        yield trt.Builder(logger)
    finally:
        logger.start()


def build_plan(
    trt: ModuleType,
    builder: "tensorrt.Builder",
    path: Path,
    spec: PassSpec,
    profile: BuildProfile,
    ranges: list[Ranges],
    log_name: str,
    timing_cache: Path | None = None,
) -> memoryview:
    """Compile one graph; raises InputError for an operator that TensorRT does not know, FcdeployError if it fails."""
    title = f"{TITLES[profile.flavour]} {trt.__version__}"
    network = parse_network(trt, builder, path, spec, title, log_name)
    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    if profile.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, profile.workspace)
    if profile.flavour == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        capability = getattr(trt.ComputeCapability, f"SM{profile.compute_capability.replace('.', '')}")
        _check(config.set_compute_capability(capability, 0), builder, path, title, log_name)
    for group in ranges:
        _check(
            config.add_optimization_profile(optimization_profile(builder, spec, group)) >= 0,
            builder,
            path,
            title,
            log_name,
        )
    if timing_cache is not None:
        stored = timing_cache.read_bytes() if timing_cache.is_file() else b""
        stored = stored.removeprefix(TIMING_BEGINNING)
        cache = config.create_timing_cache(stored)
        # One of another version or GPU cannot be attached; then an empty one is begun.
        if not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    plan = builder.build_serialized_network(network, config)
    _check(plan is not None, builder, path, title, log_name)
    if timing_cache is not None:
        with atomic_file(timing_cache) as file:
            file.write(TIMING_BEGINNING)
            file.write(config.get_timing_cache().serialize())
    return memoryview(plan)


def parse_network(
    trt: ModuleType, builder: "tensorrt.Builder", path: Path, spec: PassSpec, title: str, log_name: str
) -> "tensorrt.INetworkDefinition":
    """Read a graph into a strongly typed network whose tensors are those of ``spec``.

    Raises InputError for an operator that TensorRT does not know, and for tensors of other names, axes or types.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(flag) if flag is not None else 0)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(path)):
        error = parser.get_error(0)
        operator = error.node_operator()
        if operator and error.code().name.startswith(UNSUPPORTED):
            raise InputError(
                f"{path}: {title} does not support the operator {operator} (node {error.node_name() or error.node()}); "
                f"run this pass with ONNX Runtime, or write the network without it; see {log_name}."
            )
        raise InputError(
            f"{path}: {title} cannot read this graph ({error.desc().rstrip('.')}); see {log_name}."
        )
    inputs = tuple(spec_of_tensor(network.get_input(at)) for at in range(network.num_inputs))
    outputs = tuple(spec_of_tensor(network.get_output(at)) for at in range(network.num_outputs))
    for side, found, wanted in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        if {t.name: (_free(t.axes), t.dtype) for t in found} != {
            t.name: (_free(t.axes), t.dtype) for t in wanted
        }:
            raise InputError(
                f"{path}: the parsed {side} are not those of the manifest; expected {', '.join(map(str, wanted))}, "
                f"found {', '.join(map(str, found))}; export the bundle again."
            )
    return network


def _free(axes: tuple[str | int, ...]) -> tuple[int, ...]:
    return tuple(-1 if isinstance(axis, str) else axis for axis in axes)


def optimization_profile(
    builder: "tensorrt.Builder", spec: PassSpec, ranges: Ranges
) -> "tensorrt.IOptimizationProfile":
    """Return TensorRT's form of one dictionary of ranges: shortest, typical, longest shape of every input."""
    made = builder.create_optimization_profile()
    for tensor in spec.inputs:
        shapes = [
            tuple(axis if isinstance(axis, int) else ranges[axis][which] for axis in tensor.axes)
            for which in range(3)
        ]
        made.set_shape(tensor.name, *shapes)
    return made


def _check(done: bool, builder: "tensorrt.Builder", path: Path, title: str, log_name: str) -> None:
    if not done:
        reason = error_from_log(builder.logger.errors)
        advice = "raise the profile's workspace; " if "workspace" in reason.lower() else ""
        raise FcdeployError(f"{path}: {title} cannot build this graph ({reason}); {advice}see {log_name}.")


def _optimised(bundle: Bundle, output: Path, profile: BuildProfile) -> Bundle:
    """Write the bundle's graphs as ONNX Runtime optimises them, so that it need not do so when they are loaded."""
    ort = import_onnxruntime()
    with new_bundle(output, bundle.passes) as folder:
        for name in bundle.passes:
            options = ort.SessionOptions()
            options.log_severity_level = 3
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
            options.optimized_model_filepath = str(folder / f"{name}.{ONNX}")
            ort.InferenceSession(str(bundle.file(name)), options, providers=["CPUExecutionProvider"])
        write_manifest(
            folder,
            bundle.passes,
            {
                **_inherited(bundle),
                "versions": {
                    **bundle.about.versions,
                    "fcdeploy": __version__,
                    "onnxruntime": ort.__version__,
                },
                "source": {"bundle": bundle.path.resolve().name, "digest": bundle.digest()},
            },
        )
    return read_bundle(output)
