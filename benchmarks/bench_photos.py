"""How many photos per second are searched for faces, these aligned and embedded, and in how much memory.

    python benchmarks/bench_photos.py album/ --make 60 --crops faces.txt --embedder embedder.onnx
    python benchmarks/bench_photos.py album/ --embedder embedder.onnx
    python benchmarks/bench_photos.py album/ --embedder embedder.onnx --photos 5000 --name photos_memory

Without --make, the photos are those in the folder, with --photos over and over until there are so many. Made ones are
of 1 to 8 crops each, 90 to 300 pixels wide, on patches of colour with noise, JPEGs of quality 92. Memory is that of the
process, looked at every tenth of a second: whether it grows shows in its largest in each fifth of the time.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import click
import numpy as np
from report import RESULTS, write_report

NAME = "photos"
HERE = Path(__file__).parent
FIFTHS = 5
CHILD = """
import json, sys, threading, time
from pathlib import Path
sys.path.insert(0, sys.argv[5])
from report import peak_bytes
from fcdeploy.data.imagelist import open_images
from fcdeploy.runtime.faces import new_faces_job
from fcdeploy.runtime.faces_run import faces_to_folder
photos, detector, embedder, output = map(Path, sys.argv[1:5])
job = new_faces_job(open_images(photos), detector, embedder=embedder, threads=int(sys.argv[6]))
held, ended = [], threading.Event()

def look():
    while not ended.wait(0.1):
        lines = Path("/proc/self/status").read_text().splitlines()
        held.append(next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS:")))

if Path("/proc/self/status").exists():
    threading.Thread(target=look, daemon=True).start()
summary = faces_to_folder(job, output).summary
ended.set()
print(json.dumps({**summary, "peak_bytes": peak_bytes(), "held": held}))
"""


@click.command()
@click.argument("photos", type=click.Path(path_type=Path))
@click.option("--detector", type=click.Path(path_type=Path), default=HERE / "photos/yunet.onnx")
@click.option("--embedder", type=click.Path(path_type=Path), default=HERE / "photos/embedder.onnx")
@click.option("--make", type=int, help="Write so many photos first.")
@click.option("--crops", type=click.Path(path_type=Path), help="List of the aligned crops in made photos.")
@click.option(
    "--size",
    nargs=2,
    type=int,
    default=(1920, 1280),
    show_default=True,
    help="Of made photos: width, height.",
)
@click.option(
    "--photos", "count", type=int, help="Search so many photos: those of the folder, over and over."
)
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=1, show_default=True)
@click.option("--name", default=NAME, show_default=True, help="Of the report.")
@click.option("--folder", type=click.Path(path_type=Path), default=RESULTS, help="Where the results go.")
def main(
    photos: Path,
    detector: Path,
    embedder: Path,
    make: int | None,
    crops: Path | None,
    size: tuple[int, int],
    count: int | None,
    threads: int,
    repeats: int,
    name: str,
    folder: Path,
) -> None:
    """Measure the way from photos to embeddings."""
    if make is not None:
        if crops is None:
            raise click.UsageError("--make needs --crops.")
        make_album(photos, crops, make, size)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        if count is not None:
            photos = repeated(photos, count, Path(scratch) / "photos")
        rows = [measured(photos, detector, embedder, threads) for _ in range(repeats)]
    rows.sort(key=lambda row: row["seconds"])
    arguments = {
        "size": list(size),
        "threads": threads,
        "repeats": repeats,
        "detector": detector.name,
        "embedder": embedder.name,
        "load_before": load,
    }
    write_report(name, rows[len(rows) // 2 :][:1], arguments, folder)


def make_album(folder: Path, crops: Path, photos: int, size: tuple[int, int]) -> None:
    """Write photos of the crops in a list."""
    sys.path.insert(0, str(HERE.parent / "tests"))
    from photo_albums import write_album
    from PIL import Image

    images = [
        Image.open(crops.parent / line).convert("RGB") for line in crops.read_text().split("\n") if line
    ]
    write_album(folder, images, np.arange(len(images)), photos=photos, size=size, sides=(90, 300), seed=3)


def repeated(photos: Path, count: int, folder: Path) -> Path:
    """Fill a folder with ``count`` links to the photos of another one, over and over; returns it."""
    files = sorted(path.resolve() for path in photos.iterdir() if path.is_file())
    folder.mkdir()
    for at in range(count):
        file = files[at % len(files)]
        (folder / f"{at:06}{file.suffix}").symlink_to(file)
    return folder


def measured(photos: Path, detector: Path, embedder: Path, threads: int) -> dict[str, float]:
    """Run once in a process of its own; seconds, from the start of the search to the last list."""
    with tempfile.TemporaryDirectory() as scratch:
        done = subprocess.run(
            [
                sys.executable,
                "-c",
                CHILD,
                photos,
                detector,
                embedder,
                Path(scratch) / "out",
                HERE,
                str(threads),
            ],
            check=True,
            capture_output=True,
            text=True,
        )
    found = json.loads(done.stdout)
    held = [max(part.tolist(), default=0) for part in np.array_split(np.array(found["held"], int), FIFTHS)]
    stages = {f"{stage}_s": one["seconds"] for stage, one in found["stages"].items()}
    return {
        "photos": found["photos"],
        "faces": found["faces_found"],
        "seconds": found["seconds"],
        "photos_per_s": found["photos"] / found["seconds"],
        **stages,
        "peak_bytes": found["peak_bytes"],
        **{f"bytes_{fifth}": most for fifth, most in enumerate(held, start=1)},
    }


if __name__ == "__main__":
    main()
