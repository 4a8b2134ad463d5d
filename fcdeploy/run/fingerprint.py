"""What the bytes of a block may depend on beside its inputs: versions, the processor, what evaluates the networks."""

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path

from fcdeploy import __version__
from fcdeploy.run.keys import code_digest

# Instructions by which libraries choose how they add up numbers.
INSTRUCTIONS = (
    *("sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512dq", "avx512bw", "avx512vl"),
    *("avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8"),
    *("asimd", "asimdhp", "asimddp", "sve", "sve2", "i8mm", "bf16"),
)
CODE, PROCESSOR, PROVIDER = "code", "instructions", "provider"
SHOWN = 12  # characters of a hash


def fingerprint(libraries: Mapping[str, str], provider: str) -> dict[str, str]:
    """Return what this process computes with, by name; libraries: their versions, provider: of the passes."""
    return {
        "fcdeploy": __version__,
        CODE: code_digest()[:SHOWN],
        "python": platform.python_version(),
        **libraries,
        "machine": platform.machine(),
        PROCESSOR: " ".join(instructions()),
        PROVIDER: provider,
    }


def instructions(cpuinfo: Path = Path("/proc/cpuinfo")) -> list[str]:
    """Return which of INSTRUCTIONS the processor has, in their order."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return []
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    found = set(line.partition(":")[2].split())
    return [name for name in INSTRUCTIONS if name in found]


def differences(own: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    """Say, for each thing in which two fingerprints differ, what the other one has and what is ours."""
    found = []
    for name in (*own, *(name for name in other if name not in own)):
        ours, theirs = own.get(name, ""), other.get(name, "")
        if ours == theirs:
            continue
        if name == PROCESSOR:
            lacks, more = _without(ours.split(), theirs.split()), _without(theirs.split(), ours.split())
            told = [f"without {' '.join(lacks)}"] if lacks else []
            told += [f"with {' '.join(more)}"] if more else []
            found.append(f"a processor {' and '.join(told)}")
        else:
            found.append(f"{name} {theirs or 'missing'} instead of {ours or 'none'}")
    return found


def _without(some: Iterable[str], others: Iterable[str]) -> list[str]:
    left = set(others)
    return [name for name in some if name not in left]
