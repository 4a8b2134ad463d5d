"""The command line called in this process, and a bundle of the goldens' checkpoint."""

from pathlib import Path

import numpy as np
import pytest
from system_cases import CASES

from fcdeploy.engine.bundle import Bundle

RECIPE = f'system = "pse-gcn"\nfeature_dim = 32\n\n{CASES[0].recipe}'


@pytest.fixture(scope="session")
def recipe_text() -> str:
    """The settings that the goldens were made with, as TOML."""
    return RECIPE


@pytest.fixture(scope="session")
def bundle(pse_bundle: Bundle) -> Path:
    """The goldens' checkpoint, exported; shared by all tests and not to be written to."""
    return pse_bundle.path


@pytest.fixture(scope="session")
def faces(golden: Path) -> np.ndarray:
    """All features of the goldens, (1283, 32) float32."""
    return np.fromfile(golden / "dev/data/features.bin", "<f4").reshape(-1, 32)


@pytest.fixture
def few(faces: np.ndarray) -> np.ndarray:
    """The first 200 of them, the test's own: quick to cluster."""
    return faces[:200].copy()
