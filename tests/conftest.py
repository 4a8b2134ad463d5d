"""Where the goldens and the larger data are found."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
SHARED = HERE.parent.parent / "shared"


@pytest.fixture(scope="session")
def golden() -> Path:
    """The goldens that are part of the repository."""
    return HERE / "golden"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of whole golden sets and larger data; tests that need it are skipped in a bare clone."""
    if not (SHARED / "golden").is_dir():
        pytest.skip("the whole golden sets are not beside this clone")
    return SHARED
