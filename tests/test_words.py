"""Help, docs and docstrings use the words of the field."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HOUSE_WORDS = ("get along with", "whose f is", "of all that is drawn")
PLACES = ("fcdeploy/cli", "fcdeploy/data", "fcdeploy/deploy", "fcdeploy/training", "docs")
FILES = (
    *("fcdeploy/engine/onnxruntime.py", "fcdeploy/engine/tensorrt.py", "README.md"),
    *("fcdeploy/graph/aggregation_cuda.py", "fcdeploy/graph/faiss_library.py"),
)


@pytest.mark.parametrize("place", [*PLACES, *FILES])
def test_no_text_needs_a_glossary(place: str) -> None:
    """Memory has a budget, a metric is maximised, and a seed is a random seed."""
    top = ROOT / place
    files = [top] if top.is_file() else [f for f in top.rglob("*") if f.suffix in (".py", ".md")]
    assert files
    for file in files:
        text = re.sub(r"\s+", " ", file.read_text().lower())
        assert not [words for words in HOUSE_WORDS if words in text], file
