"""Artifacts in run folders, as users read them."""

from pathlib import Path

import numpy as np


def load_artifact(folder: Path | str) -> dict[str, np.ndarray]:
    """Return the arrays of an artifact's folder, by name."""
    return {file.stem: np.load(file) for file in sorted(Path(folder).glob("*.npy"))}
