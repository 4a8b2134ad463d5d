"""Commands in processes that may be killed: how they are started, and which there are."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from system_cases import CASES

import fcdeploy

HERE = Path(__file__).parent
FACES, ROWS = 150, 40


@dataclass
class Ended:
    code: int
    moments: list[str]
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line on stderr, notes to the user not counted."""
        lines = [line for line in self.err.splitlines() if line and not line.startswith("Note: ")]
        assert len(lines) == 1, self.err
        return lines[0]


@dataclass
class Running:
    """One command on its way; only one at a time."""

    server: "Server"
    pid: int
    out: Path
    err: Path

    def ended(self) -> Ended:
        code, moments = json.loads(self.server.line())
        return Ended(code, moments, self.out.read_text(), self.err.read_text())


@dataclass
class Server:
    """See ``fork_server.py``."""

    process: "subprocess.Popen[str]"
    folder: Path

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the server is gone"
        return line

    def start(
        self, *args: object, fatal: int = 0, training: bool = False, rows: int = ROWS, **faults: Any
    ) -> Running:
        out, err = self.folder / "out", self.folder / "err"
        request = {
            "args": [*map(str, args)],
            "out": str(out),
            "err": str(err),
            "rows": rows,
            "fatal": fatal,
            "training": training,
            "faults": {name.replace("_", " "): value for name, value in faults.items()},
        }
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return Running(self, int(self.line()), out, err)

    def run(self, *args: object, **how: Any) -> Ended:
        return self.start(*args, **how).ended()


def new_server(folder: Path) -> Server:
    here = str(Path(fcdeploy.__file__).parents[1])  # the server runs the very code that is tested
    process = subprocess.Popen(
        [sys.executable, str(HERE / "fork_server.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{HERE.parent}"},
    )
    server = Server(process, folder)
    assert server.line() == "ready\n"
    return server


@dataclass(frozen=True)
class Job:
    """A command with its results.

    line(folder): the arguments of a run whose results, ``results``, come to lie in the folder; beside: what else may be
    left there at the end.
    """

    name: str
    line: Callable[[Path], tuple[object, ...]]
    results: tuple[str, ...]
    beside: tuple[str, ...] = ()
    training: bool = False

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Undisturbed:
    """What a job leaves when nothing happens: content by name, its moments, and how long it took."""

    content: dict[str, bytes]
    moments: list[str]
    seconds: float


CLUSTERINGS = {
    **{str(case): (case, ()) for case in CASES},
    "pse-gcn layerwise": (CASES[0], ("--inference", "layerwise")),
    "pse-gcn ivf": (CASES[0], ("--knn", "ivf", "--memory", "1")),
}
TRAININGS = {
    "pse-gcn": "[neighborhood]\nk = 10\nhops = [10, 3]\nactive = 5\n\n[links]\nk = 10\ntau = 0.7\n",
    "l-gcn": "[neighborhood]\nhops = [9, 3]\nactive = 5\n\n[propagation]\nmax_size = 20\n",
}
EXPORTS = ("sepfl", "l-gcn")
JOBS = (
    *(f"cluster {name}" for name in CLUSTERINGS),
    "cluster pictures",
    "embed",
    *(f"export {name}" for name in EXPORTS),
    "triton",
    *(f"train {name}" for name in TRAININGS),
)


def content_of(path: Path) -> bytes | None:
    """The bytes of a file, or of all files of a folder with their names; None where there is neither."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        return b"".join(str(file.relative_to(path)).encode() + b"\0" + file.read_bytes() for file in files)
    return path.read_bytes() if path.exists() else None
