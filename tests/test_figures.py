"""Every measured figure on a page is a number of a file of benchmarks/results that the page names."""

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from test_readme import FENCE, PAGES, ROOT

RESULTS = ROOT / "benchmarks/results"
MADE_OF_CODE = {"cli.md", "recipe-keys.md"}
FIGURE = re.compile(
    r"(?<![\w.,-])(\d[\d,]*(?:\.\d+)?) ?(faces/s|links/s|(?<= )(?:s|min|ms|GB|MB|GFLOP/s|GOP/s)|%)(?![\w/])"
    r"|(?<![\w.,-])(0\.\d{3,})(?![\d.])"
)
# What a number may be multiplied with on its way to the page.
UNITS = {"min": (1 / 60,), "ms": (1, 1e3), "GB": (1, 1e-9), "MB": (1e-6,), "%": (100,), "s": (1,)}
# Figures that nobody measures: settings, limits and definitions, with what they are.
NOT_MEASURED = {
    "README.md": {"1.5 GB": "a download"},
    "docs/tutorials/first-clusters.md": {
        "1.5 GB": "a download",
        **dict.fromkeys(("0.857", "0.866"), "tests/test_tutorial.py"),
    },
    "docs/explanation/copies.md": {"99 %": "a definition"},
    "docs/explanation/precision.md": {"2 %": "a tolerance", "1 %": "a tolerance", "90 %": "a limit"},
    "docs/explanation/quality.md": dict.fromkeys(
        ("0.67625", "0.65625", "0.2425", "0.12625", "0.59375", "0.5275", "0.025"), "a threshold"
    ),
    "docs/how-to/compare.md": {"0.625": "a threshold"},
    "docs/explanation/unseen-people.md": {
        "95 %": "a definition",
        **dict.fromkeys(("0.41875", "0.6675", "0.095"), "a threshold"),
    },
    "docs/how-to/confidence.md": {"1 %": "a definition", "95 %": "a definition"},
    "docs/how-to/many-machines.md": {
        "90 s": "a setting",
        "200 MB": "a setting",
        **dict.fromkeys(
            ("10.2 GB", "102 GB", "49.9 GB", "499 GB", "121 GB", "90 GB", "209 GB", "148 GB"), "arithmetic"
        ),
    },
    "docs/how-to/scale.md": {"98 %": "a setting"},
    "docs/how-to/which-system.md": {
        "8 GB": "a setting",
        **dict.fromkeys(("60 GB", "25 GB"), "arithmetic"),
    },
    "docs/explanation/memory-and-disk.md": dict.fromkeys(
        ("0.64 GB", "4 GB", "20 GB", "100 GB", "241 GB", "180 GB"), "arithmetic"
    ),
    "docs/explanation/neighbor-search.md": {"98 %": "a setting"},
    "docs/reference/files.md": {"64 MB": "a setting"},
    "docs/how-to/threshold.md": {"95 %": "a definition"},
    "docs/reference/gpu.md": {"128 MB": "a setting", "6.0 GB": "arithmetic"},
    "docs/reference/guarantees.md": {"2 GB": "a limit"},
    "docs/reference/training.md": {"0.0005": "a setting"},
}
pages = pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in MADE_OF_CODE], ids=lambda page: page.stem
)


def numbers_in(value: object) -> Iterator[float]:
    """Yield every number of a file of results."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from numbers_in(one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)


def results_named_in(text: str) -> list[float]:
    named = sorted(set(re.findall(r"benchmarks/results/(\w+)\.json", text)))
    return [
        number for name in named for number in numbers_in(json.loads((RESULTS / f"{name}.json").read_text()))
    ]


def figures_in(text: str) -> Iterator[tuple[str, str]]:
    """Yield value and unit of each figure outside of code, and of sections that say that theirs are counted."""
    sections = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    text = "".join(section for section in sections if "counted and not measured" not in section)
    for match in FIGURE.finditer(re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))):
        yield (match[1], match[2]) if match[1] else (match[3], "")


def is_measured(value: str, unit: str, numbers: list[float]) -> bool:
    """Whether a number, in the unit and rounded to the digits of the page, is the value."""
    digits = len(value.partition(".")[2])
    said = float(value.replace(",", ""))
    return any(
        abs(number * factor - said) <= 0.5001 * 10**-digits
        for number in numbers
        for factor in UNITS.get(unit, (1,))
    )


def unfounded(text: str, not_measured: dict[str, str]) -> list[str]:
    """Return the figures of a page that no file that it names has."""
    numbers = results_named_in(text)
    figures = {f"{value} {unit}".strip(): (value, unit) for value, unit in figures_in(text)}
    return [
        said for said, pair in figures.items() if said not in not_measured and not is_measured(*pair, numbers)
    ]


@pages
def test_every_figure_is_in_a_file_of_results_that_the_page_names(page: Path) -> None:
    assert not unfounded(page.read_text(), NOT_MEASURED.get(page.relative_to(ROOT).as_posix(), {}))


def test_what_is_not_measured_is_on_its_page() -> None:
    """So that the list of exceptions holds no more than it has to."""
    for page in PAGES:
        exceptions = NOT_MEASURED.get(page.relative_to(ROOT).as_posix(), {})
        said = {f"{value} {unit}".strip() for value, unit in figures_in(page.read_text())}
        assert exceptions.keys() <= said, page.name


def test_a_figure_that_no_file_has_is_found() -> None:
    text = "NSR-FC reaches 0.893 ([quality.json](../benchmarks/results/quality.json))."
    assert not unfounded(text, {})
    assert unfounded(text.replace("0.893", "0.894"), {}) == ["0.894"]
    assert unfounded("It takes 4.3 s.", {}) == ["4.3 s"]
    assert not unfounded("It takes `4.3 s`.", {})
    assert len(list(figures_in((ROOT / "docs/explanation/speed.md").read_text()))) > 5


@pages
def test_every_file_that_a_page_names_is_dated_there(page: Path) -> None:
    """With the day it was measured on, as the file has it, anywhere on the page."""
    text = " ".join(page.read_text().split())
    for name in set(re.findall(r"benchmarks/results/(\w+)\.json", text)):
        day = datetime.fromisoformat(json.loads((RESULTS / f"{name}.json").read_text())["date"])
        assert f"{day.day} {day:%B %Y}" in text, f"{name}.json is of {day:%Y-%m-%d}"
