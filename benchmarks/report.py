"""What every benchmark says: on which machine, with which versions, how long, how much memory."""

import datetime
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fcdeploy.data.atomic import atomic_file

RESULTS = Path(__file__).parent / "results"
PACKAGES = {  # name in a report -> the distributions that may provide it
    "fcdeploy": ("fcdeploy",),
    "numpy": ("numpy",),
    "numba": ("numba",),
    "faiss": ("faiss-gpu", "faiss-cpu"),
    "numkong": ("numkong",),
    "cupy": ("cupy-cuda13x", "cupy-cuda12x"),
    "onnxruntime": ("onnxruntime-gpu", "onnxruntime"),
    "torch": ("torch",),
    "scikit-learn": ("scikit-learn",),
}


def machine() -> dict[str, Any]:
    """Describe this machine and the packages that decide speed; what is not there is None."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": _gpu(),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **{name: _version(distributions) for name, distributions in PACKAGES.items()},
    }


def median_seconds(
    function: Callable[[], object], repeats: int = 5, warmup: int = 1
) -> dict[str, float | int]:
    """Time ``repeats`` calls, after ``warmup`` that do not count: median, min and max in seconds."""
    for _ in range(warmup):
        function()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "repeats": repeats,
    }


class GpuMemory:
    """Watches the memory in use on the first GPU, by whomever, while a ``with`` lasts.

    peak: the most there was, in bytes; None where the driver's tool does not tell.
    """

    peak: int | None = None

    def __enter__(self) -> "GpuMemory":
        self._tool: subprocess.Popen[str] | None
        query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
        try:
            self._tool = subprocess.Popen(
                [*query, "--loop-ms=100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
        except OSError:
            self._tool = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._tool is None:
            return
        self._tool.terminate()
        told = [int(line) for line in self._tool.communicate()[0].split() if line.isdigit()]
        self.peak = max(told) << 20 if told else None


def peak_bytes() -> int:
    """Return the most memory this process has held at any time since it started.

    On Linux from /proc: getrusage would start at the peak of the process that started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def write_report(
    name: str, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any], folder: Path | str = RESULTS
) -> Path:
    """Write ``folder``/``name``.json, print the rows as a table and return the path; see ``write_rows``."""
    path = Path(folder) / f"{name}.json"
    on = write_rows(path, name, rows, extra)
    Console().print(_table(name, rows, on))
    return path


def write_rows(
    path: Path, name: str, rows: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the rows of a benchmark to a JSON file, and return the machine that the file names.

    rows: one mapping a measurement; a column that a row lacks is left blank.  extra: the arguments that the
    benchmark ran with.  The file holds {benchmark, date, machine, arguments, rows}.
    """
    on = machine()
    report = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": on,
        "arguments": dict(extra),
        "rows": [dict(row) for row in rows],
    }
    text = json.dumps(report, indent=2, default=_plain) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode())
    return on


def _table(name: str, rows: Sequence[Mapping[str, Any]], on: Mapping[str, Any]) -> Table:
    table = Table(title=name, caption=f"{on['cpu']}, {on['cores']} cores; GPU: {on['gpu'] or 'none'}")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column, 0), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(_shown(row.get(column, "")) for column in columns))
    return table


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _plain(value: Any) -> Any:
    """Turn what json does not know into what it does: numpy scalars and arrays, paths."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _cpu() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return ", ".join(done.stdout.splitlines()) or None


def _version(distributions: Sequence[str]) -> str | None:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
