"""No command opens a connection or leaves an identifier.

ONNX Runtime has sent usage data from Linux since 1.29: https://github.com/microsoft/onnxruntime/pull/27379,
https://github.com/OHF-Voice/wyoming-piper/issues/64. It writes an identifier below the home folder when it is imported,
and looks up its host some nine seconds later. The processes here have a home folder of their own and may not make an
internet socket: the kernel ends them, in native code as well as in Python.
"""

import ast
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from embedders import write_embedder
from PIL import Image

import fcdeploy

PACKAGE = Path(fcdeploy.__file__).parent
CACHES = (
    "matplotlib",
    "numba",
    "cupy",
)  # what a folder of the home may be called: fonts and compiled kernels
LOOKS_IT_UP = 11  # seconds after the import
SYSCALLS = {
    "x86_64": (0xC000003E, 41),
    "aarch64": (0xC00000B7, 198),
}  # architecture and socket(), for seccomp

# A seccomp filter: socket(AF_INET or AF_INET6) ends the process with SIGSYS, everything else is allowed.
NO_INTERNET = """
import ctypes, struct, sys, time
arch, socket = ARCH, SOCKET
code = b"".join(struct.pack("HBBI", *line) for line in (
    (0x20, 0, 0, 4), (0x15, 0, 6, arch),       # another architecture's call: allowed
    (0x20, 0, 0, 0), (0x15, 0, 4, socket),
    (0x20, 0, 0, 16), (0x15, 1, 0, 2), (0x15, 0, 1, 10),
    (0x06, 0, 0, 0x80000000), (0x06, 0, 0, 0x7FFF0000),
))
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, ctypes.byref(Program(len(code) // 8, code)), 0, 0) == 0
started = time.monotonic()
def stay():
    time.sleep(max(0, LATE - (time.monotonic() - started)))
"""

COMMANDS = """
import contextlib, json, sys
from fcdeploy.cli import main
for args in json.loads(sys.argv[1]):
    sys.argv = ["fcdeploy", *args]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, (args, stop.code)
stay()
"""
RUNTIME = """
import onnxruntime
stay()
"""


class Watched:
    """A Python process of its own home, without internet; ``traces`` are the files it left there."""

    def __init__(self, code: str, folder: Path, *args: str, **environment: str) -> None:
        if platform.machine() not in SYSCALLS or sys.platform != "linux":
            pytest.skip("there is no seccomp filter for this machine")
        arch, socket = SYSCALLS[platform.machine()]
        guard = (
            NO_INTERNET.replace("ARCH", str(arch))
            .replace("SOCKET", str(socket))
            .replace("LATE", str(LOOKS_IT_UP))
        )
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        # Not the test's own environment: it says that telemetry is off, and ONNX Runtime has none where CI is set.
        env = {
            "HOME": str(self.home),
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(PACKAGE.parent),
            "OMP_WAIT_POLICY": "passive",
            **environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", guard + code, *args],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def end(self) -> tuple[int, str]:
        """Wait for the process: its exit code, and what it said on stderr."""
        _, said = self.process.communicate(timeout=300)
        return self.process.returncode, said

    @property
    def traces(self) -> list[str]:
        files = (path.relative_to(self.home) for path in self.home.rglob("*") if path.is_file())
        return sorted(str(file) for file in files if not set(file.parts) & set(CACHES))


def test_no_command_opens_a_connection_or_leaves_an_identifier(golden, pse_bundle, cut_bundle, tmp_path):
    """All commands, one after the other in two processes that live for longer than the first look-up would take."""
    data = golden / "dev/data"
    np.fromfile(data / "features.bin", "<f4")[: 300 * 32].tofile(tmp_path / "f.bin")
    labels = (data / "labels.meta").read_text().split()[:300]
    (tmp_path / "f.meta").write_text("\n".join(labels) + "\n")
    engine = str(cut_bundle(pse_bundle, ("refine",), tmp_path / "pse.onnx", links={"k": 5, "tau": 0.3}).path)
    write_embedder(tmp_path / "e.onnx", dim=32)
    (tmp_path / "e.toml").write_text('channels = "rgb"\nmean = 127.5\nscale = 128\n')
    for at in range(4):
        Image.new("RGB", (16, 16), (60 * at, 9, 9)).save(tmp_path / f"{at}.png")
    (tmp_path / "list.txt").write_text("".join(f"{at}.png\n" for at in range(4)))
    checkpoint = golden / "dev/pse/checkpoint.pth"
    small = "[neighborhood]\nk = 20\nhops = [20, 5]\nactive = 10\n\n[links]\nk = 20\ntau = 0.8\n"
    (tmp_path / "r.toml").write_text(f'system = "pse-gcn"\nfeature_dim = 32\n\n{small}')
    known = ["--features", str(tmp_path / "f.bin"), "--labels", str(tmp_path / "f.meta")]
    faces, model = str(tmp_path / "f.bin"), str(tmp_path / "e.onnx")
    light = [
        ["doctor"],
        ["cluster", faces, "--engine", engine, "-o", "o.meta"],
        ["cluster", "../list.txt", "--embedder", model, "--engine", engine, "-o", "p.txt"],
        ["embed", "../list.txt", "--model", model, "-o", "e.bin"],
        ["bench", engine, "--seconds", "0", "--batch", "2", "--nodes", "3", "--faces", "100"],
        ["tune", "--engine", engine, *known, "-o", "tuned.toml"],
        ["triton", engine, "-o", "models"],
        ["estimate", faces, "--engine", engine],
        ["inspect", engine],
        ["evaluate", "o.meta", "../f.meta"],
    ]
    heavy = [
        ["export", "--ckpt", str(checkpoint), "--recipe", "../r.toml", "-o", "b.onnx"],
        ["train", "pse-gcn", *known, "--recipe", "../r.toml", "--steps", "2", "-o", "c.pth"],
        ["cluster", faces, "--engine", "b.onnx", "-o", "o.meta", "--run-dir", "run"],
    ]
    processes = [
        Watched(COMMANDS, tmp_path / name, json.dumps(commands))
        for name, commands in (("light", light), ("heavy", heavy))
    ]
    for process in processes:
        code, said = process.end()
        assert code == 0, said
        assert process.traces == []


@pytest.mark.slow
def test_what_these_tests_watch_for_is_seen_where_telemetry_is_on(tmp_path):
    """The same process without fcdeploy leaves an identifier; without it, too, if the user has asked for telemetry.

    A user who has set the variable has chosen: it is left as it is.
    """
    alone = Watched(RUNTIME, tmp_path / "alone")
    asked = Watched("import fcdeploy, onnxruntime", tmp_path / "asked", ORT_DISABLE_TELEMETRY="0")
    quiet = Watched("import fcdeploy, onnxruntime", tmp_path / "quiet", ORT_DISABLE_TELEMETRY="")
    refused = Watched("import socket; socket.getaddrinfo('example.invalid', 80)", tmp_path / "refused")
    assert refused.end()[0] == -signal.SIGSYS
    assert (quiet.end()[0], quiet.traces) == (0, [])
    assert asked.end()[0] == 0
    code, _ = alone.end()
    if not alone.traces:
        pytest.skip("this build of ONNX Runtime sends nothing")
    assert asked.traces
    assert code == -signal.SIGSYS  # it looked for its host


def test_onnx_runtime_is_imported_in_one_place() -> None:
    places = set()
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module or ""]
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("import_package", "import_module"):
                modules = [str(getattr(node.args[0], "value", ""))]
            if any(module.partition(".")[0] == "onnxruntime" for module in modules):
                places.add(file.relative_to(PACKAGE).as_posix())
    assert places == {"engine/onnxruntime.py"}
