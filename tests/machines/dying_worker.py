"""A worker that is killed at moments of its run: before, between and after writing a block and reporting it.

``plan.json`` beside the run folder says at which moments, counted over all workers of the run.
"""

import fcntl
import json
import os
import signal
from pathlib import Path
from typing import Any

from fcdeploy.run import block_files, messages
from fcdeploy.run.messages import Ask, Reply


def work(description: str, name: str, threads: int, workers: int, send: Any) -> None:
    from fcdeploy.runtime import worker

    place = Path(json.loads(description)["folder"]).parent
    plan = json.loads((place / "plan.json").read_text())

    def moment(what: str) -> None:
        with open(place / "moments", "a+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            number = len(file.readlines()) + 1
            fatal = number in plan
            file.write(f"{what}{' killed' if fatal else ''}\n")
            file.flush()
        if fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    replace = os.replace

    def replacing(source: Any, target: Any) -> None:
        if str(target).endswith(".block"):
            moment("written")
        replace(source, target)

    block_files.os.replace = replacing  # type: ignore[attr-defined]

    def sending(ask: Ask) -> Reply:
        if ask.kind == messages.DONE:
            moment("named")
        reply = send(ask)
        if reply.kind == messages.LEASED:
            moment("leased")
        return reply

    worker.work(description, name, threads, workers, sending)
