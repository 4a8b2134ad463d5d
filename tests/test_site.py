"""The site: anchors, pictures, the pages made by scripts, and what the pages say of figures."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [
    *(ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted(DOCS.rglob("*.md")),
    *sorted((ROOT / "benchmarks").rglob("*.md")),
]
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
REFERENCE = DOCS / "reference"  # pages to look things up in, which may be long
SYSTEMS = sorted((DOCS / "systems").glob("*.md"))
READ = [page for page in sorted(DOCS.rglob("*.md")) if REFERENCE not in page.parents]
MOST_WORDS = 1200


def loaded(path: Path) -> ModuleType:
    """Import a script of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


hooks = loaded(DOCS / "site/hooks.py")


def anchors_of(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as far as GitHub and the site give them the same name."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?)\s*$", FENCE.sub("", page.read_text()), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\s-]", "", text.lower()).strip()
        on_github, on_the_site = re.sub(r"\s", "-", name), re.sub(r"[-\s]+", "-", name)
        found |= {on_github} & {on_the_site}
    return found


def links_of(page: Path) -> list[tuple[str, str]]:
    """Return the files, relative to the page, and anchors that a page links to; addresses left out."""
    links = re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text()))
    relative = [link.partition("#") for link in links if not re.match(r"[a-z]+:", link)]
    return [(path, anchor) for path, _, anchor in relative]


def broken_anchors(page: Path) -> list[str]:
    """Return the anchors that a page links to and no heading has."""
    broken = []
    for path, anchor in links_of(page):
        target = (page.parent / path).resolve() if path else page
        if anchor and target.suffix == ".md" and anchor not in anchors_of(target):
            broken.append(f"{path}#{anchor}")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_anchor_that_is_linked_is_a_heading(page: Path) -> None:
    assert not broken_anchors(page)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_is_linked_exists(page: Path) -> None:
    """And every picture; docs/ and the pages beside the benchmarks."""
    for path, _ in links_of(page):
        assert (page.parent / path).exists(), path


def test_a_link_to_no_heading_is_found(tmp_path: Path) -> None:
    page = tmp_path / "a.md"
    page.write_text("# One thing\n\n[right](#one-thing), [wrong](#another), [file](b.md#two-three)\n")
    (tmp_path / "b.md").write_text("## Two, `three`\n")
    assert broken_anchors(page) == ["#another"]


def test_pages_made_of_recipes_are_up_to_date() -> None:
    made = loaded(DOCS / "site/recipe_keys.py").page()
    assert (DOCS / "reference/recipe-keys.md").read_text() == made, (
        "run `python docs/site/recipe_keys.py > docs/reference/recipe-keys.md`"
    )


def test_every_key_of_a_built_in_recipe_is_on_the_page() -> None:
    """Read off the TOML files, and not off the dataclasses that the page is made of."""
    import tomllib

    text = (DOCS / "reference/recipe-keys.md").read_text()
    sections = {part.partition('`system = "')[2].partition('"')[0]: part for part in text.split("\n## ")}

    def keys(table: dict[str, object], prefix: str) -> list[str]:
        found = []
        for name, value in table.items():
            if isinstance(value, dict):
                found += keys(value, f"{prefix}{name}.")
            elif not isinstance(value, list) or not value or not isinstance(value[0], dict):
                found.append(f"{prefix}{name}")
        return found

    seen = 0
    for path in sorted((ROOT / "export").glob("*.toml")):
        recipe = tomllib.loads(path.read_text())
        section = sections[recipe.pop("system")]
        for key in keys(recipe, ""):
            assert f"| `{key}` |" in section, f"{path.name}: {key}"
            seen += 1
    assert seen > 100


def test_pictures_are_those_that_the_script_draws_from_the_results() -> None:
    drawn = loaded(DOCS / "pictures/make.py").pictures()
    kept = {path.name: path.read_text() for path in (DOCS / "pictures").glob("*.svg")}
    assert kept.keys() == drawn.keys()
    for name, text in drawn.items():
        assert kept[name] == text, f"{name}: run `make docs-pictures`"


def test_the_picture_of_the_house_has_every_folder_in_the_order_of_imports() -> None:
    from test_imports import ORDER

    text = (DOCS / "pictures/house.svg").read_text()
    folders = re.findall(r'font-weight="600">(\w+)</text>', text)
    assert folders == [name for name in ORDER if "." not in name]


def test_every_picture_is_shown_in_both_forms() -> None:
    shown = {link for page in PAGES for link in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page.read_text())}
    for link in shown:
        path, _, scheme = link.rpartition("#")
        dark = Path(path).stem.endswith("-dark")
        assert scheme == ("gh-dark-mode-only" if dark else "gh-light-mode-only"), link
        name, dot, kind = path.rpartition(".")
        other = f"{name.removesuffix('-dark') if dark else f'{name}-dark'}{dot}{kind}"
        assert any(one.startswith(f"{other}#") for one in shown), link
    assert len(shown) >= 20


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_pages_are_short(page: Path) -> None:
    assert len(page.read_text().split()) <= MOST_WORDS


@pytest.mark.parametrize("page", SYSTEMS, ids=lambda page: page.stem)
def test_a_system_s_page_has_the_headings_of_the_others(page: Path) -> None:
    """The idea and a command before the first heading; the picture is the system's own."""
    from fcdeploy.systems import NAMES

    assert page.stem in NAMES
    text = FENCE.sub("", page.read_text())
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)
    wanted = ["The recipe", "What is computed", "Differences from the publication"]
    assert [heading for heading in headings if heading in wanted] == wanted
    opening = page.read_text().partition("\n## ")[0]
    assert f"../pictures/{page.stem}.svg" in opening
    assert "fcdeploy export" in opening
    assert "fcdeploy cluster" in opening


def test_every_system_has_a_page() -> None:
    from fcdeploy.systems import NAMES

    assert {page.stem for page in SYSTEMS} == set(NAMES)


@pytest.mark.parametrize("page", READ, ids=lambda page: page.name)
def test_every_page_is_one_link_from_the_start_page_or_two(page: Path) -> None:
    start = DOCS / "index.md"
    near = {(start.parent / path).resolve() for path, _ in links_of(start)}
    far = {(one.parent / path).resolve() for one in near if one.suffix == ".md" for path, _ in links_of(one)}
    assert page in near | far | {start}


def rows_of_quality() -> list[dict[str, float]]:
    """Return the rows of all files on the faces of the page on quality."""
    files = sorted((ROOT / "benchmarks/results").glob("quality*.json"))
    return [row for path in files for row in json.loads(path.read_text())["rows"]]


def measured_pairs() -> set[str]:
    """Return both F of every method: on the faces that thresholds were chosen on, and on people that none was."""
    inside = [(row["pairwise F"], row["BCubed F"]) for row in rows_of_quality()]
    return {f"{pairwise:.3f} / {bcubed:.3f}" for pairwise, bcubed in [*inside, *unseen_pairs()]}


def unseen_pairs() -> list[tuple[float, float]]:
    """Return both F of every method of unseen.json on the half of the people that nothing was chosen on."""
    unseen = json.loads((ROOT / "benchmarks/results/unseen.json").read_text())
    reported = [row["reported"] for row in unseen["rows"]]
    return [(one["pairwise F"]["f"], one["BCubed F"]["f"]) for one in reported]


def test_figures_of_quality_are_those_of_the_results() -> None:
    """Both F of every method of docs/how-to/which-system.md, to three digits."""
    measured = measured_pairs()
    section = (
        (DOCS / "how-to/which-system.md").read_text().partition("## Quality")[2].partition("## Speed")[0]
    )
    said = re.findall(r"\b0\.\d{3} / 0\.\d{3}\b", section)
    assert len(said) > 12
    assert set(said) <= measured


def test_figures_of_the_readme_are_those_of_the_results() -> None:
    """Both F of every system in its table; what no choice was made on comes first."""
    measured = measured_pairs()
    said = re.findall(r"\b0\.\d{3} / 0\.\d{3}\b", (ROOT / "README.md").read_text())
    assert len(said) >= 6
    assert set(said) <= measured


def test_one_version_is_said_everywhere() -> None:
    import fcdeploy

    version = fcdeploy.__version__
    assert re.search(rf"^version: {re.escape(version)}$", (ROOT / ".github/CITATION.cff").read_text(), re.M)
    assert f"version = {{{version}}}" in (DOCS / "reference/cite.md").read_text()
    assert f"## {version} (" in (ROOT / "CHANGELOG.md").read_text()
    for page in PAGES:
        wheels = re.findall(r"fcdeploy-(\d+\.\d+\.\d+)-py3", page.read_text())
        assert set(wheels) <= {version}, page


def test_templates_of_issues_ask_for_no_faces() -> None:
    yaml = pytest.importorskip("yaml")
    folder = ROOT / ".github/ISSUE_TEMPLATE"
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in folder.glob("*.yml")}
    assert {"bug", "feature", "docs"} <= forms.keys()
    for name in ("bug", "feature", "docs"):
        assert forms[name]["name"]
        assert all(
            part["type"] in {"markdown", "textarea", "input", "checkboxes"} for part in forms[name]["body"]
        )
    ticked = [part for part in forms["bug"]["body"] if part["type"] == "checkboxes"]
    assert ticked[0]["attributes"]["options"][0]["required"]


def test_the_table_of_quality_is_that_of_the_results() -> None:
    """All three F of every row of docs/explanation/quality.md, and no row that was not measured."""
    columns = ("pairwise F", "BCubed F", "without the largest")
    rows = rows_of_quality()
    measured = {" | ".join(f"{row[column]:.3f}" for column in columns) for row in rows}
    said = re.findall(
        r"\| (0\.\d{3} \| 0\.\d{3} \| 0\.\d{3}) \|", (DOCS / "explanation/quality.md").read_text()
    )
    assert len(said) >= 18
    assert set(said) <= measured


def test_figures_of_speed_and_memory_are_those_of_the_results() -> None:
    section = (DOCS / "how-to/which-system.md").read_text().partition("## Speed")[2].partition("\n## ")[0]
    runs = {name: results(name)["arguments"]["runs"] for name in ("scale", "scale_gpu")}
    checked = 0
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not cells[0].startswith("PSE-GCN"):
            continue
        name = "scale_gpu" if "H200" in cells[0] else "scale"
        run = next(run for run in runs[name] if f"{run['faces']:,}" == cells[1])
        value, unit = cells[2].split()
        seconds = run["wall_seconds"] / (60 if unit == "min" else 1)
        assert float(value) == pytest.approx(seconds, rel=0.02), line
        assert cells[3] == f"{run['peak_bytes'] / 1e9:.1f} GB", line
        checked += 1
    assert checked >= 4


def test_speeds_are_those_of_the_results() -> None:
    """Every table of the page on speed that is one file of benchmarks/results, and that of the page on GPUs."""
    text = (DOCS / "explanation/speed.md").read_text()
    for name, digits in (("refine", 1), ("lgcn", 0)):
        for row in results(name)["rows"]:
            speed = row["faces_per_s"]
            shown = f"{speed:,.{digits if speed < 10 else 0}f}"
            assert f"| {shown} | " in text, f"{name}: {shown}"
    links = [f"{row['links_per_s']:.0f}" for row in results("sepfl")["rows"]]
    assert f"{links[0]} links/s with the published" in text
    assert f"{links[1]} links/s with fcdeploy" in text
    first, second = text.partition("/scale_avx2.json)")[::2]
    gpu = (DOCS / "reference/gpu.md").read_text()
    for name, page in (("scale", first), ("scale_avx2", second), ("scale_gpu", gpu)):
        runs = results(name)["arguments"]["runs"]
        for stage in ("knn", "refine", "refined_knn"):
            seconds = " | ".join(f"{run['stages'][stage]['seconds']:.1f}" for run in runs)
            assert re.search(rf"^\| {stage} .*\| {re.escape(seconds)} \|", page, re.MULTILINE) or (
                f"| {stage} | {seconds} |" in page
            ), f"{name}: {stage} {seconds}"
        whole = " | ".join(f"{run['wall_seconds']:.1f}" for run in runs)
        assert f"| whole command | {whole} |" in page, f"{name}: {whole}"


def results(name: str) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Return the figures of a benchmark."""
    found: dict[str, dict[str, list[dict[str, float]]]] = json.loads(
        (ROOT / f"benchmarks/results/{name}.json").read_text()
    )
    return found


def test_the_site_names_pages_that_exist_and_loads_nothing_from_elsewhere() -> None:
    text = (DOCS / "site/mkdocs.yml").read_text()
    named = re.findall(r": ([\w./-]+\.md)$", text.partition("\nnav:")[2], re.MULTILINE)
    assert len(named) > 30
    assert len(set(named)) == len(named)
    for name in named:
        assert (ROOT / hooks.source_of(name)).is_file(), name
    assert "font: false" in text
    assert "http" not in text


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """And no page of it asks another host for anything but when the reader follows a link."""
    import subprocess

    pytest.importorskip("mkdocs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", DOCS / "site/mkdocs.yml"]
    built = subprocess.run([*command, "--site-dir", tmp_path], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loads = re.findall(
            r"<(?:script|img|link)\b[^>]*?(?:src|href)=\"?(https?://[^\"\s>]+)", page.read_text()
        )
        assert not [address for address in loads if "canonical" not in address], page
