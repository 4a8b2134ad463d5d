"""``fcdeploy doctor``."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import TypedDict

import click

from fcdeploy.cli.grouped import grouped
from fcdeploy.cli.run_options import run_option
from fcdeploy.cli.shared_options import json_option

# What a person can do, the packages behind it, and the command that brings them.
ABILITIES = (
    (
        "cluster",
        (("numba", "numba"), ("faiss", "faiss-cpu"), ("onnxruntime", "onnxruntime")),
        "cpu",
    ),
    ("embed", (("PIL.Image", "pillow"), ("onnxruntime", "onnxruntime")), "cpu,embed"),
    ("faces", (("PIL.Image", "pillow"), ("onnxruntime", "onnxruntime")), "cpu,photos"),
    ("many machines", (("ray", "ray"),), "cpu,ray"),
    ("export", (("torch", "torch"), ("onnx", "onnx"), ("onnxscript", "onnxscript")), "cpu,export"),
    ("train", (("torch", "torch"), ("matplotlib.figure", "matplotlib")), "cpu,export,train"),
    ("build", (("tensorrt_rtx", "tensorrt-rtx"),), "tensorrt-rtx"),
    ("GPU", (("cupy", "cupy-cuda13x"), ("faiss", "faiss-cpu"), ("onnxruntime", "onnxruntime-gpu")), "gpu"),
)
FOR_CUDA_12 = {"cupy-cuda13x": "cupy-cuda12x", "gpu": "gpu-cuda12"}
FIRST = ("numpy", "numba")  # without which nothing else loads
SECONDS = 300  # that a check may take
PROBE = "import sys; from fcdeploy.cli import doctor; doctor.probe(sys.argv[1:])"


class Ability(TypedDict):
    """What something that a person can do lacks, and the command that brings it."""

    missing: list[str]
    install: str


class Findings(TypedDict):
    """What ``fcdeploy doctor --json`` prints."""

    fcdeploy: str
    python: str
    machine: str
    cores: dict[str, object]
    memory: dict[str, object]
    packages: dict[str, str | None]
    broken: dict[str, object]
    providers: dict[str, object]
    tensorrt: dict[str, object]
    gpu: object
    kernels: object
    abilities: dict[str, Ability]
    problems: list[str]


@click.command("doctor", cls=grouped())
@run_option(
    "ray",
    help="Check the machines of a Ray cluster instead: whether their versions, code and processors equal this one's.",
)
@json_option("the results")
def command(ray: str | None, as_json: bool) -> None:
    """Show what is installed, what works, and what is missing.

    Every package is imported, and every execution provider opens a small graph, because ONNX Runtime also lists
    providers that do not work. Cores and memory are those available to this process. For whatever is missing, the
    command that installs it is shown.

    \b
    Example:
      fcdeploy doctor
      fcdeploy doctor --ray auto
    """
    if ray is not None:
        print_machines(ray, as_json)
        return
    findings = examine()
    if as_json:
        click.echo(json.dumps(findings, indent=1))
        return
    click.echo(f"fcdeploy {findings['fcdeploy']}, Python {findings['python']}, {findings['machine']}")
    for name, limit in (("cores", findings["cores"]), ("memory", findings["memory"])):
        click.echo(f"  {name:<18} {limit['text']}")
    for package, version in findings["packages"].items():
        reason = findings["broken"].get(package)
        told = f"{version or 'unknown version'}, does not load ({reason})" if reason else version
        click.echo(f"  {package:<18} {told or 'not installed'}")
    for name, state in (*findings["providers"].items(), *findings["tensorrt"].items()):
        click.echo(f"  {name:<18} {state}")
    click.echo(f"  {'GPU':<18} {findings['gpu']}")
    click.echo(f"  {'kernels':<18} {findings['kernels']}")
    for ability, what in findings["abilities"].items():
        missing = ", ".join(what["missing"])
        click.echo(f"{ability}: missing {missing}; {what['install']}" if missing else f"{ability}: ready")
    for problem in findings["problems"]:
        click.echo(f"Problem: {problem}")


def print_machines(address: str, as_json: bool) -> None:
    """Print in what the machines of a cluster differ from this one."""
    from fcdeploy.runtime.workers import compare_machines

    found = compare_machines(address)
    if as_json:
        click.echo(json.dumps(found, indent=1))
        return
    for machine in found:
        told = ", ".join(machine["different"])
        if machine["failed"]:
            click.echo(f"{machine['host']}: does not work ({machine['failed']})")
        else:
            click.echo(f"{machine['host']}: {f'has {told}' if told else 'as this machine'}")
    unlike = sum(bool(machine["different"] or machine["failed"]) for machine in found)
    same = "all give the bytes that this one does" if not unlike else f"{unlike:,} may give other bytes"
    click.echo(f"{len(found):,} machines, {same}")


def examine() -> Findings:
    """Return what ``fcdeploy doctor --json`` prints.

    What runs code of others is run in a process of its own, which may end as it likes.
    """
    from fcdeploy import __version__

    known = abilities_here()
    modules = dict.fromkeys(
        [*FIRST, *(module for _, needs, _ in known for module, _ in needs)]
    )  # each once, in order
    found = examine_apart([*(f"import {module}" for module in modules), *CHECKS])
    packages = {package: _version(package) for _, needs, _ in known for _, package in needs}
    packages = {name: _version(name) for name in FIRST} | packages
    loads = {module: found[f"import {module}"] for module in modules}
    by_package = {name: loads[name] for name in FIRST} | {
        package: loads[module] for _, needs, _ in known for module, package in needs
    }
    broken = {
        package: loaded["broken"]
        for package, loaded in by_package.items()
        if loaded.get("broken") and (packages[package] or not package.endswith("-gpu"))
    }
    abilities: dict[str, Ability] = {}
    for ability, needs, extra in known:
        missing = [package for module, package in needs if not _there(package, loads[module], packages)]
        abilities[ability] = {"missing": missing, "install": f"pip install 'fcdeploy[{extra}]'"}
    providers = found["providers"]
    if providers.get("CUDAExecutionProvider") != "works":
        abilities["GPU"]["missing"].append("a CUDA device that ONNX Runtime opens")
    problems = [
        f"{cpu} and {gpu} are both installed and write the same module; uninstall both, then install one of them."
        for cpu, gpu in (("faiss-cpu", "faiss-gpu"), ("onnxruntime", "onnxruntime-gpu"))
        if _version(cpu) and _version(gpu)
    ]
    problems += [
        f"{package} is installed, but does not load ({reason}); install it again."
        for package, reason in broken.items()
    ]
    problems += [f"{name}: {what['failed']}" for name, what in found.items() if "failed" in what]
    return {
        "fcdeploy": __version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": cores(),
        "memory": memory(),
        "packages": packages,
        "broken": broken,
        "providers": {} if "failed" in providers else providers,
        "tensorrt": {} if "failed" in found["tensorrt"] else found["tensorrt"],
        "gpu": found["gpu"].get("gpu", "unknown"),
        "kernels": found["kernels"].get("kernels", "unknown"),
        "abilities": abilities,
        "problems": problems,
    }


def cores() -> dict[str, object]:
    """Say how many cores this process may use, of how many, and why not all."""
    from fcdeploy.machine import core_limit

    limit = core_limit()
    text = f"{limit.usable} core{'s' if limit.usable > 1 else ''}"
    return {
        "usable": limit.usable,
        "machine": limit.whole,
        "limit": limit.source,
        "text": f"{text} (of {limit.whole}; {limit.source})" if limit.source else text,
    }


def memory() -> dict[str, object]:
    """Say how many bytes of memory this process may use, of how many, and what limits it."""
    from fcdeploy.machine import memory_limit

    limit = memory_limit()
    text = f"{limit.usable / 1e9:.1f} GB"
    return {
        "usable": limit.usable,
        "machine": limit.whole,
        "limit": limit.source,
        "text": f"{text} (of {limit.whole / 1e9:.1f} GB; {limit.source})" if limit.source else text,
    }


def examine_apart(checks: list[str]) -> dict[str, dict[str, object]]:
    """Run checks by name in another process, and in a new one those behind a check that ended it.

    Returns what each found; ``broken`` (of imports) or ``failed`` say how one ended the process.
    """
    found: dict[str, dict[str, object]] = {}
    while len(found) < len(checks):
        left = [check for check in checks if check not in found]
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROBE, *left],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=SECONDS,
                check=False,
            )
            printed, ending = done.stdout, f"ends Python with {_ending(done.returncode)}"
        except subprocess.TimeoutExpired as error:
            printed, ending = error.stdout or b"", f"takes longer than {SECONDS} s"
        except OSError as error:
            printed, ending = b"", f"Python does not start ({error.strerror})"
        for line in printed.splitlines():
            try:
                name, result = json.loads(line)
            except ValueError:  # what a package prints
                continue
            if name in left and isinstance(result, dict):
                found[name] = result
        if not found.keys() >= set(left):
            culprit = next(check for check in checks if check not in found)
            found[culprit] = {"broken" if culprit.startswith("import ") else "failed": ending}
    return found


def probe(checks: list[str]) -> None:
    """Run checks, and print a line of JSON as each of them ends: its name and what it found."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what others print goes nowhere
    for name in checks:
        try:
            result = _load(name.removeprefix("import ")) if name.startswith("import ") else CHECKS[name]()
        except BaseException as error:
            result = {"failed": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps([name, result]), file=out, flush=True)
    out.flush()
    os._exit(0)  # what was loaded may not know how to end


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _load(module: str) -> dict[str, object]:
    from fcdeploy.errors import BrokenDependencyError, MissingDependencyError
    from fcdeploy.packages import import_package, reason_of

    try:
        import_package(module, "it", "pip")
    except BrokenDependencyError as error:
        return {"broken": reason_of(error.__cause__ or error)}
    except MissingDependencyError:
        return {"missing": True}
    return {}


def _there(package: str, loaded: Mapping[str, object], packages: dict[str, str | None]) -> bool:
    # faiss-gpu serves where faiss-cpu is asked for; the reverse does not hold.
    loads = not loaded.get("broken") and not loaded.get("missing") and "failed" not in loaded
    return loads and (packages[package] is not None or not package.endswith("-gpu"))


def abilities_here() -> tuple[tuple[str, tuple[tuple[str, str], ...], str], ...]:
    """Return ABILITIES with the packages for CUDA 12 where those, and not the ones for CUDA 13, are installed."""
    if _version("cupy-cuda13x") or not _version("cupy-cuda12x"):
        return ABILITIES
    return tuple(
        (
            ability,
            tuple((module, FOR_CUDA_12.get(package, package)) for module, package in needs),
            FOR_CUDA_12.get(extra, extra),
        )
        for ability, needs, extra in ABILITIES
    )


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except Exception:  # not installed, or its metadata is damaged
        return None


def _providers() -> dict[str, str]:
    """Open a one-node graph on every provider that ONNX Runtime names, and tell how that went."""
    from fcdeploy.engine.onnxruntime import import_onnxruntime
    from fcdeploy.errors import MissingDependencyError

    try:
        ort = import_onnxruntime()
    except MissingDependencyError:  # which its import tells
        return {}
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
    from fcdeploy.errors import BrokenDependencyError, MissingDependencyError
    from fcdeploy.packages import reason_of

    states = {}
    for flavour in MODULES:
        try:
            trt = import_tensorrt(flavour)
        except BrokenDependencyError as error:
            states[flavour] = f"does not load ({reason_of(error.__cause__ or error)[:100]})"
            continue
        except MissingDependencyError:
            states[flavour] = "not installed"
            continue
        compiles = (
            f"compiles for {', '.join(capabilities(trt))} without a GPU" if flavour == "tensorrt-rtx" else ""
        )
        states[flavour] = f"{trt.__version__}, {compiles or 'builds on a GPU'}"
    return states


def _gpu() -> dict[str, str]:
    from fcdeploy.engine.cuda import find_gpu
    from fcdeploy.errors import InputError

    try:
        gpu = find_gpu("running plans", "there is none")
    except InputError:
        return {"gpu": "none that CUDA finds"}
    return {"gpu": f"{gpu.name}, compute capability {gpu.capability}, {gpu.memory / 2**30:.0f} GB"}


def _kernels() -> dict[str, str]:
    from fcdeploy.graph.kernels import place_of_kernels

    return {"kernels": place_of_kernels()}


CHECKS: dict[str, Callable[[], Mapping[str, object]]] = {
    "providers": _providers,
    "tensorrt": _tensorrt,
    "gpu": _gpu,
    "kernels": _kernels,
}


def _identity_graph() -> bytes:
    """An ONNX model of one Identity node, spelled out in protobuf so that the onnx package is not needed."""

    def field(number: int, payload: bytes) -> bytes:
        return bytes([number << 3 | 2, len(payload)]) + payload

    tensor = field(1, b"\x08\x01" + field(2, field(1, b"\x08\x01")))  # float32 [1]
    node = field(1, b"x") + field(2, b"y") + field(4, b"Identity")
    graph = field(1, node) + field(2, b"g")
    graph += field(11, field(1, b"x") + field(2, tensor)) + field(12, field(1, b"y") + field(2, tensor))
    return b"\x08\x08" + field(7, graph) + field(8, b"\x10\x11")
