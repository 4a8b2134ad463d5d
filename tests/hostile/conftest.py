"""A bundle to damage, and the command line called in this process."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from system_cases import CASES

from fcdeploy.engine.bundle import Bundle

FACES = 60


@pytest.fixture(scope="session")
def bundle_of(exported: Any) -> Callable[[str], Bundle]:
    """The bundle of a system's golden checkpoints, by its name; not to be written to."""

    def bundle(name: str) -> Bundle:
        return exported(next(case for case in CASES if case.name == name and not case.networks))

    return bundle


@pytest.fixture
def copy_of(bundle_of: Any, tmp_path: Path) -> Callable[[str], Path]:
    """Give a fresh copy of a system's bundle, to be damaged."""

    def copy(name: str) -> Path:
        folder = tmp_path / "damaged.onnx"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(bundle_of(name).path, folder)
        return folder

    return copy


@pytest.fixture(scope="session")
def faces() -> np.ndarray:
    """60 faces of 12 people, (60, 32) float32."""
    rng = np.random.default_rng(0)
    people = np.repeat(rng.standard_normal((12, 32)), 5, axis=0)
    return (people + 0.4 * rng.standard_normal(people.shape)).astype(np.float32)


@pytest.fixture
def features(faces: np.ndarray, tmp_path: Path) -> Path:
    np.save(tmp_path / "features.npy", faces)
    return tmp_path / "features.npy"
