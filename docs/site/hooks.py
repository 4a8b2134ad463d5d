"""Links that lead out of docs/ are followed: the files they name become part of the site, below ``repository/``.

On the disk, and where the repository is browsed, pages link to ``../SECURITY.md`` or ``../benchmarks/results/x.json``.
A site has its pages alone, so these files are copied (Markdown is rendered) and the links are turned to the copies.
"""

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent.parent
COPIES = "repository"
LINK = re.compile(r"(?<=\]\()([^)\s]+)(?=\))")
# Pages that answer questions come before those that tell how it came about, where a search finds both.
SEARCH = {
    "how-to/install.md": 3.0,
    "how-to/own-neighbor-lists.md": 3.0,
    "how-to/from-the-authors.md": 3.0,
    "reference/glossary.md": 3.0,
    "how-to/troubleshooting.md": 2.0,
    "repository/SECURITY.md": 3.0,
    "repository/README.md": 0.5,
    "repository/CHANGELOG.md": 0.2,
}
NOTES = "repository/benchmarks/"
OPTIONS_HERE = "<!-- the options of a run -->"
FENCE = re.compile(r"(^```.*?^```)", re.DOTALL | re.MULTILINE)


def source_of(site_path: str) -> str:
    """Return where a file of the site lies in the repository, e.g. docs/reference/cli.md for cli.md."""
    if site_path.startswith(f"{COPIES}/"):
        return site_path.removeprefix(f"{COPIES}/")
    return f"docs/{site_path}"


def place_of(source: str) -> str:
    """Return where a file of the repository lies in the site."""
    return source.removeprefix("docs/") if source.startswith("docs/") else f"{COPIES}/{source}"


def target_of(link: str, source: str) -> tuple[str, str] | None:
    """Return the file of the repository that a link names, and the anchor with its #; None for an address."""
    path, mark, anchor = link.partition("#")
    if not path or re.match(r"[a-z]+:", link):
        return None
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(path))), mark + anchor


def outside(text: str, source: str) -> set[str]:
    """Return the files outside of docs/ that a page links to."""
    parts = FENCE.split(text)[::2]
    targets = [target_of(link, source) for part in parts for link in LINK.findall(part)]
    return {target[0] for target in targets if target and not f"{target[0]}/".startswith("docs/")}


def named_in(nav: object) -> set[str]:
    """Return the pages that a navigation names."""
    if isinstance(nav, str):
        return {nav}
    entries = nav.values() if isinstance(nav, dict) else nav if isinstance(nav, list) else ()
    return set().union(*(named_in(entry) for entry in entries))


def on_config(config: "MkDocsConfig") -> "MkDocsConfig":
    """Put pages that the navigation does not name at the end of the how-to part, so that none is out of reach."""
    named = named_in(config.nav)
    part = next(part["How-to"] for part in config.nav or [] if "How-to" in part)
    for path in sorted((ROOT / "docs").rglob("*.md")):
        name = path.relative_to(ROOT / "docs").as_posix()
        if name not in named:
            title = path.read_text().partition("\n")[0].removeprefix("# ")
            part.append({title: name})
    return config


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Add the files outside of docs/ that pages link to, and those that these link to."""
    from mkdocs.structure.files import File

    waiting = {source_of(page.src_uri) for page in files.documentation_pages()} | {
        "SECURITY.md",
        "CHANGELOG.md",
    }
    waiting |= {"README.md", "CONTRIBUTING.md"}
    seen: set[str] = set()
    while waiting - seen:
        source = (waiting - seen).pop()
        seen.add(source)
        path = ROOT / source
        if not source.startswith("docs/") and path.is_file():
            files.append(File.generated(config, place_of(source), abs_src_path=str(path)))
        if path.suffix == ".md" and path.is_file():
            waiting |= outside(path.read_text(), source)
    return files


def options_of_a_run() -> str:
    """Return the options of ``fcdeploy.cluster`` as a table."""
    from fcdeploy.run.options import DESCRIBED

    rows = [
        f"| `{name}` | {one.help} | {one.usual} |".replace("`fcdeploy inspect`", "fcdeploy inspect")
        for name, one in DESCRIBED.items()
    ]
    return "\n".join(["| option | what it is | default |", "| --- | --- | --- |", *rows])


def with_all_names(markdown: str) -> str:
    """Put public names that the page does not have at its end."""
    import fcdeploy

    named = re.findall(r"^::: fcdeploy\.(\w+)", markdown, re.MULTILINE)
    missing = [name for name in fcdeploy.__all__ if name not in named and name != "__version__"]
    return "\n\n".join([markdown, *(f"::: fcdeploy.{name}" for name in missing)])


def on_page_markdown(markdown: str, *, page: "Page", config: "MkDocsConfig", files: "Files") -> str:
    """Turn links to files outside of docs/ to their copies; a folder has none, and keeps its name only."""
    source = source_of(page.file.src_uri)
    boost = 0.2 if page.file.src_uri.startswith(NOTES) else SEARCH.get(page.file.src_uri)
    if boost:
        page.meta["search"] = {"boost": boost}
    if source == "docs/reference/python.md":
        return with_all_names(markdown.replace(OPTIONS_HERE, options_of_a_run()))

    def turn(match: re.Match[str]) -> str:
        text, link = match[1], match[2]
        target = target_of(link, source)
        if target is None or (source.startswith("docs/") and f"{target[0]}/".startswith("docs/")):
            return match[0]
        if not (ROOT / target[0]).is_file():
            return text if (ROOT / target[0]).is_dir() else match[0]
        place = posixpath.relpath(place_of(target[0]), posixpath.dirname(page.file.src_uri))
        return f"[{text}]({place}{target[1]})"

    parts = FENCE.split(markdown)
    parts[::2] = [re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", turn, part) for part in parts[::2]]
    return "".join(parts)


def on_page_content(html: str, **_: object) -> str:
    """Let the long names of tests in tables break, so that what stands beside them has room."""
    return html.replace("<code>tests/", '<code class="test">tests/')
