"""A made-up run with a drawn face for every row."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))


@pytest.fixture(scope="session")
def made_run(tmp_path_factory) -> Path:
    """The run folder of 400 faces in clusters of all sizes."""
    import made_runs

    return made_runs.make_run(tmp_path_factory.mktemp("made") / "run", made_runs.made_labels(400, 1), k=10)


@pytest.fixture(scope="session")
def labels_of_run(made_run) -> np.ndarray:
    return np.load(made_run / "evidence/labels.npy")


@pytest.fixture(scope="session")
def coloured_faces(tmp_path_factory, labels_of_run) -> Path:
    """A list of pictures, each of one colour that its row number gives (see ``colour_of``)."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("coloured")
    names = []
    for row in range(len(labels_of_run)):
        Image.new("RGB", (40, 40), colour_of(row)).save(folder / f"{row}.png")
        names.append(f"{row}.png")
    (folder / "faces.txt").write_text("".join(f"{name}\n" for name in names))
    return folder / "faces.txt"


def colour_of(row: int) -> tuple[int, int, int]:
    """The colour of a row's picture: no two of a thousand are near to each other."""
    return (row % 10) * 25 + 10, (row // 10 % 10) * 25 + 10, (row // 100) * 25 + 10


@pytest.fixture(scope="session")
def colour():
    return colour_of
