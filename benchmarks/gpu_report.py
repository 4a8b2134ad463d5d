"""Gather how the steps of gpu_check.sh went into benchmarks/results/gpu_check.json; exit code 1 where one failed."""

import sys
from pathlib import Path

import click
from report import RESULTS, write_report

TIMED_OUT = 124


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
    write_report("gpu_check", rows, {}, folder)
    sys.exit(any(row["outcome"] != "passed" for row in rows))


if __name__ == "__main__":
    main()
