"""A recording of ``make demo``, as asciinema plays it (asciicast, version 2): results/demo.cast.

    python benchmarks/record_demo.py

What the commands print goes through a pipe, so that a line per stage is recorded and no moving bars. The picture of it
is drawn by docs/pictures/make.py.
"""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
RECORDING = ROOT / "benchmarks/results/demo.cast"
COLUMNS = 100


def main() -> None:
    """Run the demo, whose packages have to be installed, and write what it prints with the time of each line."""
    shutil.rmtree(ROOT / "build/demo", ignore_errors=True)
    started = time.time()
    process = subprocess.Popen(
        ["make", "--no-print-directory", "--old-file", ".venv/installed-demo", "demo"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    events: list[tuple[float, str]] = []
    for line in process.stdout:
        at = round(time.time() - started, 2)
        if told := shown(line.rstrip("\n")):
            events.append((at, told))
            print(told, flush=True)
    if process.wait() != 0:
        sys.exit("make demo failed")
    head = {"version": 2, "width": COLUMNS, "height": 40, "timestamp": int(started), "title": "make demo"}
    lines = [json.dumps(head), *(json.dumps([at, "o", f"{told}\r\n"]) for at, told in events)]
    RECORDING.write_text("\n".join(lines) + "\n")


def shown(line: str) -> str:
    """Return a line as a user would see it: a command with a prompt and without the path of the environment."""
    if line.startswith("mkdir "):
        return ""
    if line.startswith(".venv/bin/"):
        line = f"$ {line}"
    return re.sub(r"\.venv/bin/", "", line)


if __name__ == "__main__":
    main()
