"""Collect what gpu_check.sh needs on a machine without a network: wheels, and an engine of random weights.

    python benchmarks/gpu_carry.py --python 3.12 --cuda 13 --there numpy --there torch -o build/gpu

Wheels of an earlier call are deleted. Those larger than --part are cut into parts, which gpu_check.sh puts together
again. Prints what lies there, and how large it is. CUDA itself (cuBLAS, NVRTC, cuDNN) is not among it: a machine with
CuPy or PyTorch has it.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import click
from bench_scale import random_bundle

PACKAGES = (
    *(
        "click",
        "faiss-cpu",
        "llvmlite",
        "markdown-it-py",
        "mdurl",
        "msgspec",
        "numba",
        "numpy",
        "packaging",
        "pygments",
    ),
    *("rich", "threadpoolctl", "tomlkit"),  # fcdeploy
    *("cuda-pathfinder", "flatbuffers", "protobuf"),  # its GPU, with those of FOR_CUDA
    *(
        "attrs",
        "hypothesis",
        "iniconfig",
        "onnx",
        "pluggy",
        "pytest",
        "scipy",
        "sortedcontainers",
    ),  # its tests
    "numkong",
)
FOR_CUDA = {
    "12": {"cupy-cuda12x": "", "onnxruntime-gpu": "<1.27"},
    "13": {"cupy-cuda13x": "", "onnxruntime-gpu": ">=1.27"},
}
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_17_x86_64",
    "manylinux2014_x86_64",
)
PART = 60 << 20


@click.command()
@click.option("--python", default="3.12", show_default=True, help="The other machine's Python.")
@click.option(
    "--cuda",
    default="13",
    show_default=True,
    type=click.Choice(list(FOR_CUDA)),
    help="The other machine's CUDA.",
)
@click.option("--there", multiple=True, help="A package that it has; repeatable.")
@click.option("--dim", default=256, show_default=True, help="Of the engine.")
@click.option("--part", default=PART, show_default=True, help="Bytes of a file at most.")
@click.option("-o", "output", type=click.Path(path_type=Path), default=Path("build/gpu"), show_default=True)
def main(python: str, cuda: str, there: tuple[str, ...], dim: int, part: int, output: Path) -> None:
    """Download wheels and export an engine."""
    wheels = output / "wheels"
    wheels.mkdir(parents=True, exist_ok=True)
    for old in wheels.glob("*.whl*"):  # pip refuses to install two versions
        old.unlink()
    wanted = dict.fromkeys(PACKAGES, "") | FOR_CUDA[cuda]
    packages = [name + versions for name, versions in wanted.items() if name not in there]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version", python, "--implementation", "cp", "-d", str(wheels)]
    command += [option for name in PLATFORMS for option in ("--platform", name)]
    subprocess.run([*command, *packages], check=True)
    for wheel in wheels.glob("*.whl"):
        if wheel.stat().st_size > part:
            cut(wheel, part)
    if not (output / "pse.onnx").exists():
        with tempfile.TemporaryDirectory(dir=output) as scratch:
            random_bundle("pse-gcn", dim, Path(scratch)).rename(output / "pse.onnx")
    files = sorted(file for file in output.rglob("*") if file.is_file())
    for file in files:
        click.echo(f"{file.stat().st_size / 2**20:8.1f} MB  {file}")
    click.echo(f"{sum(file.stat().st_size for file in files) / 2**20:8.1f} MB in all")


def cut(file: Path, size: int) -> None:
    """Cut a file into parts of at most ``size`` bytes, NAME.part-aa and so on, in its place."""
    data = file.read_bytes()
    for at, start in enumerate(range(0, len(data), size)):
        suffix = f"{chr(ord('a') + at // 26)}{chr(ord('a') + at % 26)}"
        file.with_name(f"{file.name}.part-{suffix}").write_bytes(data[start : start + size])
    file.unlink()


if __name__ == "__main__":
    main()
