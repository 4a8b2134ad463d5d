"""How long the report of a large run takes, its memory, and how large the page is.

    python benchmarks/bench_report.py --faces 1000000

The run is made up (see ``made_runs``): labels, links and neighbor lists as `fcdeploy cluster --run-dir` leaves them.
With --pictures, drawn faces are shown (a hundred, over and over).
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import made_runs
import numpy as np

CHILD = """
import json, resource, sys
import fcdeploy
fcdeploy.report(sys.argv[1], sys.argv[2], images=sys.argv[3] or None)
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--faces", type=int, default=1_000_000)
    parser.add_argument("--k", type=int, default=80)
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--keep", type=Path, help="Folder for the run and the page; the run is used again.")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(exist_ok=True)
        if not (folder / "run").exists():
            made_runs.make_run(folder / "run", made_runs.made_labels(asked.faces), asked.k)
        images = pictures(folder, asked.faces) if asked.pictures else ""
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", CHILD, folder / "run", folder / "report", images],
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        page = sum(file.stat().st_size for file in (folder / "report").iterdir())
    figures = {"faces": asked.faces, "k": asked.k, "seconds": round(seconds, 1)}
    print(json.dumps({**figures, "peak_bytes": json.loads(done.stdout), "page_bytes": page}))


def pictures(folder: Path, n: int) -> Path:
    """Draw a hundred faces, and list them over and over, one per face."""
    if not (folder / "faces").exists():
        made_runs.draw_faces(folder / "faces", np.arange(100))
    listed = folder / "all.txt"
    listed.write_text("".join(f"faces/{at % 100:06d}.png\n" for at in range(n)))
    return listed


if __name__ == "__main__":
    main()
