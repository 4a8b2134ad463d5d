"""Exports opened by the tools that they are for, each in an environment of its own under build/tools."""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcdeploy

pytestmark = pytest.mark.tools

ROOT = Path(__file__).parents[2]
PINNED = ("torch==2.13.0",)  # Embedding Atlas asks for PyTorch, of which other versions bring CUDA
PACKAGES = {
    "fiftyone": ("fiftyone",),
    "embedding-atlas": (*PINNED, "embedding-atlas"),
    # Starlette 1 dropped the form of TemplateResponse that Spotlight 1.8 calls.
    "spotlight": ("renumics-spotlight", "fastapi<0.116", "starlette<0.47"),
}
SECONDS = 120
READ_BY_FIFTYONE = """
import json, sys
from fiftyone.utils.data.importers import FiftyOneImageClassificationDatasetImporter
reader = FiftyOneImageClassificationDatasetImporter(dataset_dir=sys.argv[1])
reader.setup()
print(json.dumps([(path, label and label.label, label and label.confidence) for path, _, label in reader]))
"""


@pytest.fixture(scope="module")
def tool() -> Any:
    """Give the folder of a tool's programs, which is made at first use."""

    def made(name: str) -> Path:
        place = ROOT / "build/tools" / name
        done = place / "installed"
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
            subprocess.run(
                [place / "bin/python", "-m", "pip", "install", "--quiet", *PACKAGES[name]], check=True
            )
            done.touch()
        return place / "bin"

    return made


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """Give the address at which a command answers that is told a port."""
    running = []

    def start(*command: object) -> str:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        log = open(tmp_path / "log.txt", "wb")  # noqa: SIM115 - the program writes to it
        environment = {"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
        running.append(
            subprocess.Popen(
                [*map(str, command), "--port", str(port)], stdout=log, stderr=log, env=environment
            )
        )
        address = f"http://localhost:{port}"
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and running[-1].poll() is None:
            try:
                urllib.request.urlopen(address, timeout=10).close()
                return address
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        raise AssertionError((tmp_path / "log.txt").read_text())

    yield start
    for process in running:
        process.kill()
        process.wait()


def fetched(address: str) -> bytes:
    with urllib.request.urlopen(address, timeout=60) as answer:
        return answer.read()


def test_fiftyone_reads_every_face_with_its_cluster(
    tool: Any, made_run: Path, coloured_faces: Path, labels_of_run: np.ndarray, tmp_path: Path
) -> None:
    """Its importer, for which no database is needed."""
    output = fcdeploy.export_clusters(made_run, tmp_path / "set", to="fiftyone", images=coloured_faces)
    done = subprocess.run(
        [tool("fiftyone") / "python", "-c", READ_BY_FIFTYONE, output],
        capture_output=True,
        text=True,
        env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.splitlines()[-1])
    found = {int(Path(path).stem): label for path, label, _ in rows}
    assert found == {row: f"cluster {label}" for row, label in enumerate(labels_of_run.tolist())}
    assert all(confidence is None or -1 <= confidence <= 1 for *_, confidence in rows)


def test_embedding_atlas_serves_every_face_with_its_rank_among_neighbors(
    tool: Any, served: Any, made_run: Path, coloured_faces: Path, labels_of_run: np.ndarray, tmp_path: Path
) -> None:
    import io

    parquet = pytest.importorskip("pyarrow.parquet")
    output = fcdeploy.export_clusters(
        made_run, tmp_path / "faces.parquet", to="embedding-atlas", images=coloured_faces
    )
    options = ("--image", "image", "--neighbors", "neighbors", "--disable-projection")
    address = served(tool("embedding-atlas") / "embedding-atlas", output, *options)
    table = parquet.read_table(io.BytesIO(fetched(f"{address}/data/dataset.parquet")))
    assert table["cluster"].to_pylist() == [f"cluster {label}" for label in labels_of_run.tolist()]
    ranks = np.array(table["pagerank"].to_pylist())  # made of the neighbors
    assert ranks.sum() == pytest.approx(1)
    assert len(np.unique(ranks)) > len(ranks) / 2


def test_spotlight_takes_paths_for_images(
    tool: Any, served: Any, made_run: Path, coloured_faces: Path, labels_of_run: np.ndarray, tmp_path: Path
) -> None:
    output = fcdeploy.export_clusters(
        made_run, tmp_path / "faces.parquet", to="spotlight", images=coloured_faces
    )
    address = served(tool("spotlight") / "spotlight", output, "--no-browser")
    columns = {one["name"]: one for one in json.loads(fetched(f"{address}/api/table/"))["columns"]}
    assert columns["image"]["dtype"]["name"].lower() == "image"
    assert columns["cluster"]["values"] == [f"cluster {label}" for label in labels_of_run.tolist()]
