"""Runs of ``fcdeploy`` in processes that may be killed, quickly: a server that has imported everything forks for each.

One request a line on stdin, JSON: args, out and err (files for stdout and stderr), rows (of a block), fatal (the run
kills itself at this moment, counted from 1; 0 for never; -n is a Ctrl-C there) and steps of training between two
states. Replies a line each: the process id, and when it has ended how (as in ``subprocess``) and its moments.

Moments are where a run has just changed what is on the disk, or is about to: rows are written but not committed, or
committed; a file or folder is about to get its name, or has it; an artifact is about to be recorded. The server must
not have started a thread, which a fork would not take along: it only imports.
"""

import functools
import importlib
import json
import os
import pickle
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss  # noqa: F401 - imported here, once
from operators import parse_all
from small_blocks import set_blocks

from fcdeploy.cli import VERBS, main
from fcdeploy.data import atomic
from fcdeploy.engine.onnxruntime import import_onnxruntime
from fcdeploy.run.folder import FolderPartial, RunFolder
from fcdeploy.runtime import cluster_images, embed
from fcdeploy.systems import NAMES

BLOCKS = ("BLOCK_ROWS", "COMMIT_LINES")
LATE = (  # what PyTorch imports only when it exports; most of the time of a small export
    "torch.export._trace",
    "torch.onnx._internal.exporter._core",
    "onnxscript.function_libs.torch_lib.ops",
)
import_onnxruntime()


def flows() -> list[Any]:
    return [importlib.import_module(f"fcdeploy.systems.{name.replace('-', '_')}.flow") for name in NAMES]


def import_all() -> None:
    flows()
    for verb in VERBS:
        importlib.import_module(f"fcdeploy.cli.{verb.replace('-', '_')}")
    try:
        for name in ("deploy.onnx_from_checkpoint", "runtime.lost_pages", "training.train", "training.tune"):
            importlib.import_module(f"fcdeploy.{name}")
        for name in LATE:
            importlib.import_module(name)
    except ImportError:
        return  # without PyTorch there is nothing to export and to train
    parse_all()


def set_all_blocks(rows: int) -> None:
    """Give every stage of every system blocks of so many rows, and so many lines of pictures between two commits."""
    set_blocks(rows)
    for module in (embed, cluster_images):
        for name in BLOCKS:
            if hasattr(module, name):
                setattr(module, name, rows)


def watch(owner: Any, name: str, moment: Callable[[str], None], after: bool = True) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if owner is os and Path(args[1]).suffix in (".nbi", ".nbd", ".nbc"):  # numba's cache
            return original(*args, **kwargs)
        what = getattr(args[0], "_name", None) or Path(str(args[-1])).name.split(".")[-1]
        moment(f"before {name} {what}")
        value = original(*args, **kwargs)
        if after:
            moment(f"after {name} {what}")
        return value

    setattr(owner, name, watched)


def run(request: dict[str, Any], told: int) -> int:
    """Run one command in this process, which is a fresh fork; returns its exit code."""
    moments: list[str] = []

    def moment(name: str) -> None:
        moments.append(name)
        if len(moments) == request["fatal"]:
            os.kill(os.getpid(), signal.SIGKILL)
        elif len(moments) == -request["fatal"]:
            os.kill(os.getpid(), signal.SIGINT)

    for number, file in ((1, request["out"]), (2, request["err"])):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    set_all_blocks(request["rows"])
    watch(FolderPartial, "commit", moment)
    watch(RunFolder, "record", moment, after=False)
    watch(os, "replace", moment)
    watch(os, "rename", moment)
    watch(os, "link", moment)
    if hasattr(atomic, "exchange"):
        watch(atomic, "exchange", moment)
    if request["training"]:
        sys.modules["fcdeploy.training.loop"].SAVE_SECONDS = 0.0  # type: ignore[attr-defined]
    for place, value in request["faults"].items():
        install(place, value)
    sys.argv = ["fcdeploy", *request["args"]]
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    os.write(told, pickle.dumps(moments))
    return code


def install(fault: str, value: Any) -> None:
    """Let something go wrong in this run."""
    if fault == "no memory":  # for more than so many rows a call of an engine
        from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine

        straight = OnnxRuntimeEngine.run

        def limited(self: Any, feeds: Any) -> Any:
            if max(len(array) for array in feeds.values()) > value:
                raise MemoryError(f"more than {value} rows")
            return straight(self, feeds)

        OnnxRuntimeEngine.run = limited  # type: ignore[method-assign]
    elif fault == "truncate":  # this file, when the stage of this name begins
        from fcdeploy.run.progress import Progress

        stage = Progress.stage

        def cutting(self: Any, name: str) -> Any:
            if name == value[1]:
                os.truncate(value[0], 0)
            return stage(self, name)

        Progress.stage = cutting  # type: ignore[method-assign]
    else:
        raise ValueError(fault)


def serve() -> None:
    import_all()
    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        get, put = os.pipe()
        child = os.fork()
        if not child:
            os.close(get)
            code = 99
            try:
                code = run(request, put)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        os.close(put)
        print(child, flush=True)
        told = b""
        while part := os.read(get, 1 << 16):
            told += part
        os.close(get)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps([status, pickle.loads(told) if told else []]), flush=True)


if __name__ == "__main__":
    serve()
