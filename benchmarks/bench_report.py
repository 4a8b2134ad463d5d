"""How long the report of a large run takes, its memory, and how large the page is.

    python benchmarks/bench_report.py --faces 1000000

The run is made up (see ``made_runs``): labels, links and neighbor lists as `fcdeploy cluster --run-dir` leaves them. It
is reported with numbers only, with pictures (a hundred drawn faces, over and over), and with pictures and ids such as
00001234.jpg.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click
import made_runs
import numpy as np
from report import RESULTS, write_report

NAME = "report"
CHILD = """
import json, sys
sys.path.insert(0, sys.argv[4])
import fcdeploy
from report import peak_bytes
fcdeploy.report(sys.argv[1], sys.argv[2], images=sys.argv[3] or None)
print(json.dumps(peak_bytes()))
"""


@click.command()
@click.option("--faces", default=1_000_000, show_default=True)
@click.option("--k", default=80, show_default=True)
@click.option("--keep", type=click.Path(path_type=Path), help="Folder of the run and the page, kept.")
@click.option("--prepare", is_flag=True, help="Make the run, and measure nothing.")
@click.option("--name", default=NAME, show_default=True, help="Of the report.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(faces: int, k: int, keep: Path | None, prepare: bool, name: str, folder: Path) -> None:
    """Measure reports."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        place = keep or Path(temporary)
        place.mkdir(exist_ok=True)
        if not (place / "run").exists():
            made_runs.make_run(place / "run", made_runs.made_labels(faces), k)
        images = pictures(place, faces)
        if prepare:
            return
        rows = [
            {"faces": faces, "shown": "numbers", **measured(place, None)},
            {"faces": faces, "shown": "pictures", **measured(place, images)},
        ]
        made_runs.add_ids(place / "run", np.array([f"{at:08d}.jpg" for at in range(faces)], object))
        rows.append({"faces": faces, "shown": "pictures and ids", **measured(place, images)})
        if keep:
            shutil.rmtree(place / "run")  # has ids now
    write_report(name, rows, {"k": k, "load_before": load}, folder)


def measured(place: Path, images: Path | None) -> dict[str, float]:
    """Write the report in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, place / "run", place / "report", images or "", Path(__file__).parent],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = time.perf_counter() - start
    page = sum(file.stat().st_size for file in (place / "report").iterdir())
    return {"seconds": seconds, "peak_bytes": json.loads(done.stdout), "page_bytes": page}


def pictures(place: Path, n: int) -> Path:
    """Draw a hundred faces, and list them over and over, one per face."""
    if not (place / "faces").exists():
        made_runs.draw_faces(place / "faces", np.arange(100))
    listed = place / "all.txt"
    listed.write_text("".join(f"faces/{at % 100:06d}.png\n" for at in range(n)))
    return listed


if __name__ == "__main__":
    main()
