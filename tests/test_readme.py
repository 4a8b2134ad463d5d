"""What we write down is true: pages, links, commands and the table of dependencies."""

import re
import shlex
import tomllib
from pathlib import Path

import click
import pytest

from fcdeploy.cli import cli, reference

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FOLDERS = ("fcdeploy/", "docs/", "tests/", "benchmarks/", "export/", "engines/")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def test_the_page_of_commands_is_what_the_commands_say_themselves() -> None:
    assert (ROOT / "docs/reference/cli.md").read_text() == reference.page(), (
        "run `python -m fcdeploy.cli.reference > docs/reference/cli.md`"
    )


@pages
def test_every_linked_file_exists(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+://|mailto:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pages
def test_every_file_of_the_repository_named_in_code_exists(page: Path) -> None:
    text = FENCE.sub("", page.read_text())
    for name in re.findall(r"`([^`\s]+)`", text):
        if name.startswith(FOLDERS):
            assert list(ROOT.glob(name.partition("::")[0])), name


def commands_in(text: str) -> list[str]:
    """Find command lines: lines of a code block that start with fcdeploy, and code in a sentence that does."""
    lines = [line.strip() for block in FENCE.findall(text) for line in block.splitlines()]
    inline = re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return [line for line in lines + inline if re.match(r"(\$\(BIN\)/)?fcdeploy\s", line)]


def parse(line: str) -> None:
    """Parse a command line as the shell and click would, without running it; raises click.UsageError."""
    words = shlex.split(line.partition(" | ")[0], comments=True)
    if ">" in words:
        words = words[: words.index(">")]
    words = words[1:]
    root = click.Context(cli, info_name="fcdeploy", **cli.context_settings)
    if words[0].startswith("-"):
        assert words[0] in {"-h", "--help", "--version"}, line
        return
    name, command, rest = cli.resolve_command(root, words)
    assert command is not None
    try:
        command.make_context(name, list(rest), parent=root)  # click empties the list it is given
    except click.MissingParameter:
        if rest:  # a verb alone is spoken about, not called
            raise


@pages
def test_every_command_line_parses(page: Path) -> None:
    for line in commands_in(page.read_text()):
        parse(line)


def test_every_command_line_of_the_makefile_parses() -> None:
    lines = [line.strip() for line in (ROOT / "Makefile").read_text().splitlines()]
    commands = [line for line in lines if line.startswith("$(BIN)/fcdeploy")]
    assert len(commands) >= 3
    for line in commands:
        parse(line)


def test_command_lines_are_found_and_wrong_ones_refused() -> None:
    found = commands_in(
        "Call `fcdeploy inspect` or\n```sh\nfcdeploy export --ckpt a.pth   # why\n```\n`fcdeploy -h`"
    )
    assert found == ["fcdeploy export --ckpt a.pth   # why", "fcdeploy inspect", "fcdeploy -h"]
    for line in found:
        parse(line)
    assert len(commands_in((ROOT / "README.md").read_text())) >= 3
    for wrong in (
        "fcdeploy clutser a",
        "fcdeploy cluster a --engin e",
        "fcdeploy cluster a",
        "fcdeploy evaluate a",
    ):
        with pytest.raises(click.UsageError):
            parse(wrong)


@pages
def test_every_option_spoken_about_is_one_of_a_command(page: Path) -> None:
    root = click.Context(cli, info_name="fcdeploy", **cli.context_settings)
    known = {"--help", "--version"}
    for verb in cli.list_commands(root):
        command = cli.get_command(root, verb)
        assert command is not None
        known |= {
            option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
        }
    for code in re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text())):
        if code.startswith("--"):
            assert code.split()[0] in known, code


def test_the_table_of_dependencies_names_exactly_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = {re.split(r"[<>=!~\[; ]", line)[0] for line in project["dependencies"]}
    required |= {re.split(r"[<>=!~\[; ]", line)[0] for lines in extras.values() for line in lines}

    table = (ROOT / "README.md").read_text().partition("| package |")[2].partition("\n\n")[0]
    named: set[str] = set()
    for row in table.splitlines()[2:]:
        package = re.sub(r"\([^)]*\)", "", row.split("|")[1])
        named |= {name.strip() for name in package.split(",")}
    assert named == required
    for extra in re.findall(r"\(`([\w-]+)`\)", table):
        assert extra in extras


def test_every_dependency_has_an_exact_version_or_needs_a_gpu() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = list(project["dependencies"])
    for extra, more in project["optional-dependencies"].items():
        lines += [] if extra in ("gpu", "gpu-cuda12", "tensorrt") else more
    pinned = {line.partition("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    for line in lines:
        assert re.split(r"[<>=]", line)[0] in pinned, line
