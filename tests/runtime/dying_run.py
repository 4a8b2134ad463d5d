"""Run ``fcdeploy ARGS`` with small blocks, to its end or to a chosen moment: python dying_run.py MOMENT ARGS.

Moments are where a run has just changed its folder, or is about to: rows are written but not committed, or
committed; a file is about to get its name, or has it; an artifact is about to be recorded. At the MOMENT-th of them,
counted from 1, the process kills itself; 0 lets it live, and -MOMENT is a Ctrl-C there. On stdout: 'open' when it has
its run folder, and at the end the names of all moments in one line of JSON.
"""

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_blocks import set_blocks

from fcdeploy.cli import main
from fcdeploy.run.folder import FolderPartial, RunFolder

KEPT = ("knn", "reranked", "refined", "refined_knn", "links", "evidence")  # the results of PSE-GCN
ROWS = 1000  # faces per block: several commits per artifact, however small the run


def watch(owner: Any, name: str, moment: Callable[[str], None], after: bool = True) -> None:
    """Let a function tell when it is called and, perhaps, when it has returned."""
    original = getattr(owner, name)

    @functools.wraps(original)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if owner is os and Path(args[1]).suffix in (".nbi", ".nbd"):  # numba, when it has to compile
            return original(*args, **kwargs)
        moment(f"before {name}")
        value = original(*args, **kwargs)
        if after:
            moment(f"after {name}")
        return value

    setattr(owner, name, watched)


def run(fatal: int, args: list[str]) -> None:
    moments: list[str] = []

    def moment(name: str) -> None:
        moments.append(name)
        if len(moments) == fatal:
            os.kill(os.getpid(), signal.SIGKILL)
        elif len(moments) == -fatal:
            os.kill(os.getpid(), signal.SIGINT)

    set_blocks(ROWS)
    watch(FolderPartial, "commit", moment)
    watch(RunFolder, "record", moment, after=False)
    watch(os, "replace", moment)
    watch(RunFolder, "__init__", lambda name: print("open", flush=True) if name.startswith("after") else None)
    sys.argv = ["fcdeploy", *args]
    try:
        main()
    finally:
        print(json.dumps(moments), flush=True)


if __name__ == "__main__":
    run(int(sys.argv[1]), sys.argv[2:])
