"""Memory and stages of one run over time, which is killed in the middle and continued: what the pictures show.

PSE-GCN with random weights on generated faces, as in bench_killed.py but small. The run is killed ``--wait`` seconds
after the line of stage ``--behind`` is printed, that is in the stage that follows. Memory is what the process holds,
looked at five times per second: its own pages, and pages of files mapped into it, which the system takes back when it
needs them.

    python benchmarks/bench_timeline.py --faces 100000 --memory 800M --behind re-ranking --wait 10
"""

import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from bench_refine import random_network
from faces import generate
from report import RESULTS, write_report

from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

EVERY = 0.2  # seconds between two looks at the memory
LINE = re.compile(r"(?P<stage>[^:]+): (?P<done>[\d,]+) (?P<unit>\w+) in (?P<seconds>[\d.]+) s")


@dataclass
class Watched:
    """A command at work: when each stage ended, and the memory that it held, in seconds from ``zero``.

    samples: (seconds, bytes of its own, bytes of mapped files).
    """

    process: subprocess.Popen[str]
    zero: float
    samples: list[tuple[float, int, int]] = field(default_factory=list)

    def look(self) -> None:
        """Sample the memory until the command ends."""
        status = Path(f"/proc/{self.process.pid}/status")
        while self.process.poll() is None:
            try:
                found = dict(re.findall(r"^(Rss\w+):\s+(\d+) kB", status.read_text(), re.MULTILINE))
            except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                break
            if found:
                own, mapped = int(found["RssAnon"]) << 10, int(found["RssFile"]) << 10
                self.samples.append((time.perf_counter() - self.zero, own, mapped))
            time.sleep(EVERY)

    def stages(self, run: int) -> Iterator[dict[str, object]]:
        """Yield a row per line that the command prints about a stage, as it comes."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if told := LINE.match(line):
                stop = time.perf_counter() - self.zero
                yield {
                    "run": run,
                    "stage": told["stage"],
                    "start_s": max(0.0, stop - float(told["seconds"])),
                    "stop_s": stop,
                    "done": int(told["done"].replace(",", "")),
                    "unit": told["unit"],
                }


@click.command()
@click.option("--faces", default=100_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--memory", default="800M", show_default=True)
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--behind", default="re-ranking", show_default=True, help="Stage after which the run is killed."
)
@click.option("--wait", default=10.0, show_default=True, help="Seconds from there to the kill.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(faces: int, dim: int, memory: str, threads: int, behind: str, wait: float, folder: Path) -> None:
    """Watch one run that is killed once."""
    load = os.getloadavg()[0]
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        checkpoint = place / "checkpoint.pth"
        torch.save(random_network(dim).state_dict(), checkpoint)
        bundle, _ = export_checkpoint(checkpoint, place / "pse.onnx")
        features, _ = generate(place / "faces", faces, dim)
        command = [
            *(sys.executable, "-m", "fcdeploy", "cluster", str(features), "--engine", str(bundle.path)),
            *("--memory", memory, "--threads", str(threads), "--inference", "layerwise"),
            *("--run-dir", str(place / "run"), "-o", str(place / "labels.meta")),
        ]
        zero = time.perf_counter()
        rows: list[dict[str, object]] = []
        first = watch(command, zero)
        for row in first.stages(1):
            rows.append(row)
            if row["stage"] == behind:
                threading.Timer(wait, first.process.kill).start()
        if first.process.wait() == 0:
            raise click.ClickException("the run ended before it was killed; give a shorter --wait")
        killed = time.perf_counter() - zero
        second = watch(command, zero)
        rows += second.stages(2)
        if second.process.wait() != 0:
            raise click.ClickException("the continued run failed")
        ended = time.perf_counter() - zero
    arguments = {
        "faces": faces,
        "dim": dim,
        "memory": memory,
        "threads": threads,
        "killed_s": killed,
        "ended_s": ended,
        "load_before": load,
        "samples": [*thinned(first.samples), *thinned(second.samples)],
    }
    write_report("timeline", rows, arguments, folder)


def thinned(samples: list[tuple[float, int, int]], window: float = 2.0) -> list[tuple[float, int, int]]:
    """Return the sample of most memory of every so many seconds."""
    groups: dict[int, list[tuple[float, int, int]]] = {}
    for at, own, mapped in samples:
        groups.setdefault(int(at // window), []).append((round(at, 1), own, mapped))
    return [max(group, key=lambda sample: sample[1] + sample[2]) for group in groups.values()]


def watch(command: list[str], zero: float) -> Watched:
    """Start a command, and a thread that looks at its memory."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    watched = Watched(process, zero)
    threading.Thread(target=watched.look, daemon=True).start()
    return watched


if __name__ == "__main__":
    main()
