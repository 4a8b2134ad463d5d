"""Runs with workers and without, and what is left of them."""

from pathlib import Path
from typing import Any

import numpy as np
from run_folders import bytes_of

from fcdeploy.data.features import open_features
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import run_clustering


def clustered(path: Path, bundle: Any, run_dir: Path, **options: Any) -> np.ndarray:
    """Return the labels of a run."""
    features = open_features(path, bundle.feature_dim)
    return run_clustering(features, bundle, Options(**options), run_dir=run_dir).labels


def kept_in(place: Path) -> dict[str, bytes]:
    """Return what a run folder keeps: artifacts byte for byte, and the names of its files, which tell of the run."""
    return {path.name: bytes_of(path) if path.is_dir() else b"" for path in sorted(place.iterdir())}


def check_folder(place: Path, kept: dict[str, bytes]) -> None:
    """The artifacts of an undisturbed run, and nothing else."""
    found = kept_in(place)
    assert found.keys() == kept.keys()
    assert [name for name in found if found[name] != kept[name]] == []
