"""Help, docs and docstrings use the words of the field."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WORDS = ROOT / "docs/contributing/words.md"
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
        if file == WORDS:  # which lists them
            continue
        text = flattened(file.read_text())
        assert not [words for words in HOUSE_WORDS if words in text], file


def not_to_be_used() -> list[str]:
    """Return the phrases that the page on words lists on the left."""
    table = WORDS.read_text().partition("| not | but |")[2]
    return [row.split("|")[1].strip().lower() for row in table.strip().splitlines()[1:]]


def flattened(text: str) -> str:
    return re.sub(r"\s+", " ", text.lower())


def texts_of(path: Path) -> list[str]:
    """Return the texts of a source file: messages, and docstrings."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def test_no_help_page_or_message_has_a_phrase_that_the_page_on_words_replaces() -> None:
    from fcdeploy.cli import reference

    phrases = not_to_be_used()
    assert len(phrases) >= 20
    pages = {page.name: page.read_text() for page in (ROOT / "docs").rglob("*.md") if page != WORDS}
    messages = {path.name: " ".join(texts_of(path)) for path in (ROOT / "fcdeploy").rglob("*.py")}
    for name, text in {**pages, **messages, "help": reference.page()}.items():
        found = [phrase for phrase in phrases if re.search(rf"\b{re.escape(phrase)}\b", flattened(text))]
        assert not found, name
