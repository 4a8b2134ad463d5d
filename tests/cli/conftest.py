"""The command line called in this process, and a bundle of the goldens' checkpoint."""

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from system_cases import CASES

from fcdeploy.cli import main
from fcdeploy.engine.bundle import Bundle

RECIPE = f'system = "pse-gcn"\nfeature_dim = 32\n\n{CASES[0].recipe}'


@dataclass(frozen=True)
class Outcome:
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture
def fcdeploy(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Call ``fcdeploy ARGS`` in this process; an exception that is no exit passes through to the test."""

    def call(*args: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["fcdeploy", *map(str, args)])
        capsys.readouterr()
        code: object = 0
        with warnings.catch_warnings():
            warnings.simplefilter("always")  # the tests' own settings turn our notes into errors
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
        assert isinstance(code, int)
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


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
