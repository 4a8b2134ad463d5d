"""``fcdeploy doctor``."""

import importlib
import importlib.metadata
import importlib.util
import json
import platform
from typing import Any

import click

# What a person can do, the packages behind it, and the command that brings them.
ABILITIES = (
    (
        "cluster",
        (("numba", "numba"), ("faiss", "faiss-cpu"), ("onnxruntime", "onnxruntime")),
        "cpu",
    ),
    ("embed", (("PIL", "pillow"), ("onnxruntime", "onnxruntime")), "cpu,embed"),
    ("export", (("torch", "torch"), ("onnx", "onnx"), ("onnxscript", "onnxscript")), "cpu,export"),
    ("train", (("torch", "torch"), ("matplotlib", "matplotlib")), "cpu,export,train"),
    ("build", (("tensorrt_rtx", "tensorrt-rtx"),), "tensorrt-rtx"),
    ("GPU", (("cupy", "cupy-cuda12x"), ("faiss", "faiss-gpu"), ("onnxruntime", "onnxruntime-gpu")), "gpu"),
)


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(as_json: bool) -> None:
    """Tell what is installed, what works, and what is missing.

    Execution providers are tried by opening a graph on them, not read off a list: ONNX Runtime names providers
    that it cannot open.

    \b
    Example:
      fcdeploy doctor
    """
    findings = examine()
    if as_json:
        click.echo(json.dumps(findings, indent=1))
        return
    click.echo(f"fcdeploy {findings['fcdeploy']}, Python {findings['python']}, {findings['machine']}")
    for package, version in findings["packages"].items():
        click.echo(f"  {package:<18} {version or 'not installed'}")
    for provider, state in findings["providers"].items():
        click.echo(f"  {provider:<18} {state}")
    for flavour, state in findings["tensorrt"].items():
        click.echo(f"  {flavour:<18} {state}")
    click.echo(f"  {'GPU':<18} {findings['gpu']}")
    for ability, state in findings["abilities"].items():
        missing = ", ".join(state["missing"])
        click.echo(f"{ability}: missing {missing}; {state['install']}" if missing else f"{ability}: ready")
    for problem in findings["problems"]:
        click.echo(f"Problem: {problem}")


def examine() -> dict[str, Any]:
    """Return what ``fcdeploy doctor --json`` prints."""
    from fcdeploy import __version__

    packages = {package: _version(package) for _, needs, _ in ABILITIES for _, package in needs}
    abilities: dict[str, dict[str, Any]] = {}
    for ability, needs, extra in ABILITIES:
        missing = [package for module, package in needs if not _there(module, package, packages)]
        abilities[ability] = {"missing": missing, "install": f"pip install 'fcdeploy[{extra}]'"}
    providers = _providers() if importlib.util.find_spec("onnxruntime") else {}
    if providers.get("CUDAExecutionProvider") != "works":
        abilities["GPU"]["missing"].append("a CUDA device that ONNX Runtime opens")
    problems = [
        f"{cpu} and {gpu} are both installed and write the same module; uninstall both, then install one of them."
        for cpu, gpu in (("faiss-cpu", "faiss-gpu"), ("onnxruntime", "onnxruntime-gpu"))
        if packages[cpu] and packages[gpu]
    ]
    return {
        "fcdeploy": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "providers": providers,
        "tensorrt": _tensorrt(),
        "gpu": _gpu(),
        "abilities": abilities,
        "problems": problems,
    }


def _there(module: str, package: str, packages: dict[str, str | None]) -> bool:
    # faiss-gpu serves where faiss-cpu is asked for; the reverse does not hold.
    return packages[package] is not None or (
        not package.endswith("-gpu") and importlib.util.find_spec(module) is not None
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers() -> dict[str, str]:
    """Open a one-node graph on every provider that ONNX Runtime names, and tell how that went."""
    from fcdeploy.engine.onnxruntime import import_onnxruntime

    ort = import_onnxruntime()
    graph = _identity_graph()
    states = {}
    ort.set_default_logger_severity(4)  # what a provider lacks is said here, in one line
    for name in ort.get_available_providers():
        options = ort.SessionOptions()
        options.log_severity_level = 4
        try:
            session = ort.InferenceSession(graph, options, providers=[name], enable_fallback=0)
            opened = session.get_providers()
            states[name] = "works" if name in opened else "named, but does not open"
        except Exception as error:  # ONNX Runtime's errors share no public base class
            states[name] = f"does not open ({(str(error).splitlines() or [''])[0][:100]})"
    return states


def _tensorrt() -> dict[str, str]:
    """Tell of each flavour of TensorRT what it can do here."""
    from fcdeploy.engine.tensorrt_library import MODULES, capabilities, import_tensorrt
    from fcdeploy.errors import MissingDependencyError

    states = {}
    for flavour in MODULES:
        try:
            trt = import_tensorrt(flavour)
        except MissingDependencyError:
            states[flavour] = "not installed"
            continue
        except Exception as error:  # its libraries may be there and not load
            states[flavour] = f"does not load ({(str(error).splitlines() or [''])[0][:100]})"
            continue
        compiles = (
            f"compiles for {', '.join(capabilities(trt))} without a GPU" if flavour == "tensorrt-rtx" else ""
        )
        states[flavour] = f"{trt.__version__}, {compiles or 'builds on a GPU'}"
    return states


def _gpu() -> str:
    from fcdeploy.engine.cuda import find_gpu
    from fcdeploy.errors import InputError

    try:
        gpu = find_gpu("running plans", "there is none")
    except InputError:
        return "none that CUDA finds"
    return f"{gpu.name}, compute capability {gpu.capability}, {gpu.memory / 2**30:.0f} GB"


def _identity_graph() -> bytes:
    """An ONNX model of one Identity node, spelled out in protobuf so that the onnx package is not needed."""

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    tensor = field(1, b"\x08\x01" + field(2, field(1, b"\x08\x01")))  # float32 [1]
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g")
    graph += field(11, field(1, b"x") + field(2, tensor)) + field(12, field(1, b"y") + field(2, tensor))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")
