"""Gather how the steps of gpu_check.sh went into benchmarks/results/gpu_check.json; exit code 1 where one failed.

With them come the hashes of the labels of whole runs, and whether those of one number of faces are equal: on the GPU,
in little of its memory, and on the processor.
"""

import json
import sys
from pathlib import Path

import click
from report import RESULTS, write_report

TIMED_OUT = 124
RUNS = {"scale": "scale_gpu", "vram": "scale_gpu_vram", "host": "scale_gpu_host"}  # step -> its results


@click.command()
@click.argument("steps", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(steps: Path, folder: Path) -> None:
    """STEPS: lines of a name, an exit code, and when it began and ended, with tabs between."""
    rows = []
    for line in steps.read_text().splitlines():
        name, code, start, end = line.split("\t")
        outcome = {0: "passed", TIMED_OUT: "ran out of time"}.get(int(code), f"failed with exit code {code}")
        rows.append({"step": name, "outcome": outcome, "seconds": float(end) - float(start)})
    passed = {str(row["step"]) for row in rows if row["outcome"] == "passed"}
    write_report("gpu_check", rows, {"labels": labels_of(folder, passed)}, folder)
    sys.exit(any(row["outcome"] != "passed" for row in rows))


def labels_of(folder: Path, passed: set[str]) -> dict[str, dict[str, str | bool]]:
    """Return the hash of the labels by faces and step, of steps that passed, and whether they are equal."""
    found: dict[str, dict[str, str | bool]] = {}
    for step, name in RUNS.items():
        file = folder / f"{name}.json"
        for row in json.loads(file.read_text())["rows"] if step in passed and file.exists() else ():
            if "labels" in row:
                found.setdefault(str(row["faces"]), {})[step] = row["labels"]
    for hashes in found.values():
        hashes["equal"] = len(set(hashes.values())) == 1
    return found


if __name__ == "__main__":
    main()
