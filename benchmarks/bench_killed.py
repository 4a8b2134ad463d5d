"""One large run of PSE-GCN on generated faces, killed once in the middle and continued, beside what was estimated.

    python benchmarks/bench_killed.py --faces 5210000 --memory 8G --kill-after 1200

The run folder lies in ``--folder``, which needs about 60 GB for 5.21 million faces. Disk is what the folder takes,
looked at every ten seconds. ``--again`` computes once more, undisturbed, and compares the labels byte by byte:
``killed`` the stage that was killed and all after it, from what was finished before the kill, ``whole`` everything.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import click
import torch
from bench_refine import random_network
from faces import generate
from report import write_report

from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint
from fcdeploy.run.folder import RunFolder


@dataclass
class Watch:
    """The largest size of a folder, in bytes, looked at every ten seconds."""

    folder: Path
    largest: int = 0
    ended: threading.Event = field(default_factory=threading.Event)

    def look(self) -> None:
        while not self.ended.wait(10):
            held = 0
            for path in self.folder.rglob("*"):
                try:
                    held += path.stat().st_blocks * 512
                except FileNotFoundError:  # renamed or deleted meanwhile
                    continue
            self.largest = max(self.largest, held)


@click.command()
@click.option("--faces", default=5_210_000, show_default=True)
@click.option("--dim", default=256, show_default=True)
@click.option("--memory", default="8G", show_default=True)
@click.option("--tables", default="float32", show_default=True, type=click.Choice(["float32", "float16"]))
@click.option("--threads", default=2, show_default=True)
@click.option(
    "--kill-after", default=1200.0, show_default=True, help="Seconds after which the run is killed."
)
@click.option(
    "--again",
    type=click.Choice(["killed", "whole"]),
    help="Compute again, undisturbed, from the stage that was killed on or everything; compare the labels.",
)
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where faces and runs go.  [default: temporary]"
)
def main(
    faces: int,
    dim: int,
    memory: str,
    tables: str,
    threads: int,
    kill_after: float,
    again: str | None,
    folder: Path | None,
) -> None:
    """Measure one large run that is killed once."""
    torch.manual_seed(1)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        place = Path(scratch)
        checkpoint = place / "checkpoint.pth"
        torch.save(random_network(dim).state_dict(), checkpoint)
        bundle, _ = export_checkpoint(checkpoint, place / "pse.onnx")
        features, labels = generate(place / "faces", faces, dim)
        os.sync()
        options = ["--engine", str(bundle.path), "--memory", memory, "--tables", tables]
        options += ["--threads", str(threads)]
        run_dir, output = place / "run", place / "pred_labels.meta"
        estimate = json.loads(fcdeploy("estimate", features, *options, "--run-dir", run_dir, "--json"))
        click.echo(f"estimated: {estimate['seconds']['total']:.0f} s", err=True)
        watch = Watch(place)
        threading.Thread(target=watch.look, daemon=True).start()
        command = ["cluster", features, *options, "-o", output, "--run-dir", run_dir]
        killed = killed_after(command, kill_after)
        with RunFolder(run_dir) as opened:
            before = set(opened.finished)
        started = time.perf_counter()
        summary = json.loads(fcdeploy(*command, "--labels", labels, "--json"))
        resumed = time.perf_counter() - started
        watch.ended.set()
        rows: list[dict[str, object]] = []
        for stage, measured in summary["stages"].items():
            row = {"stage": stage, "after_the_kill_s": measured["seconds"]}
            if stage in estimate["seconds"]:
                row["estimated_s"] = estimate["seconds"][stage]
            rows.append(row)
        rows += [
            {"stage": "before the kill", "seconds": killed},
            {"stage": "after the kill", "seconds": resumed},
            {
                "stage": "whole command",
                "estimated_s": estimate["seconds"]["total"],
                "seconds": killed + resumed,
                "peak_gb": summary["peak_bytes"] / 1e9,
                "disk_gb": watch.largest / 1e9,
            },
        ]
        found = digest_of(output)
        more = {"labels_sha256": found, "summary": summary, "estimate": estimate}
        more["finished_before_the_kill"] = sorted(before)
        arguments = {"faces": faces, "dim": dim, "memory": memory, "tables": tables, "threads": threads}
        arguments["killed_after"] = killed
        if again:
            write_report("killed", rows, {**arguments, **more})  # what is known so far
            with RunFolder(run_dir) as opened:
                for name in set(opened.finished) - (before if again == "killed" else set()):
                    opened.drop(name)
            output.unlink()
            started = time.perf_counter()
            fcdeploy(*command, "--json")
            rows.append({"stage": f"undisturbed, {again}", "seconds": time.perf_counter() - started})
            more["equal_to_undisturbed"] = digest_of(output) == found
            click.echo(f"labels as those of an undisturbed run: {more['equal_to_undisturbed']}")
        write_report("killed", rows, {**arguments, **more})


def fcdeploy(*arguments: object) -> str:
    """Run a command and return what it prints; raises ClickException where it fails."""
    command = [sys.executable, "-m", "fcdeploy", *map(str, arguments)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if process.returncode:
        raise click.ClickException(f"{' '.join(command)} ended with exit code {process.returncode}")
    return process.stdout


def killed_after(arguments: list[object], seconds: float) -> float:
    """Start a command and kill it after so many seconds; returns how long it ran. Ending before that is an error."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "fcdeploy", *map(str, arguments), "--quiet"])
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return time.perf_counter() - started
    raise click.ClickException(f"the run ended within {seconds:.0f} s, before it was killed")


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    main()
