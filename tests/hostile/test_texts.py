"""TOML and lists of images: whatever stands in them, settings come out or one sentence."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzzing import check_each, damaged, refused_or_read, tries
from hypothesis import strategies as st

from fcdeploy.data.filelist import lines_outside, look_up, read_filelist
from fcdeploy.data.labels import read_labels
from fcdeploy.deploy import build_profile, recipe
from fcdeploy.engine.embedder import settings_beside
from fcdeploy.errors import FcdeployWarning
from fcdeploy.runtime.embed import new_job

READERS: dict[str, Callable[[Path], Any]] = {
    "recipe": recipe.load_recipe,
    "profile": build_profile.load_profile,
    "embedder": settings_beside,
}
STRANGE = {
    "nested": "x = " + "[" * 3000,
    "nested tables": "a" + ".a" * 5000 + " = 1",
    "digits": "x = " + "9" * 5000,
    "digits in base 16": "x = 0x" + "f" * 100_000,
    "no day": "x = 2020-99-99",
    "nul": 'x = "\0"',
    "twice": "[a]\n[a]",
    "no text": "\udcff",
}
EMBEDDER = b"""layout = "NCHW"
size = [112, 96]
channels = "rgb"
mean = [1, 2.5, 3]
scale = 127.5
output_tensor = "e"
"""
NUMBERS = st.one_of(
    st.sampled_from(
        [
            "nan",
            "inf",
            "-inf",
            "-1",
            "0",
            "1",
            str(2**31),
            str(2**63),
            "1e400",
            "-0.0",
            "true",
            '""',
            "[]",
            "{}",
        ]
    ),
    st.integers().map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
)


def good_text(kind: str) -> list[bytes]:
    if kind == "embedder":
        return [EMBEDDER]
    module: Any = recipe if kind == "recipe" else build_profile
    return [module.built_in_text(name).encode() for name in module.built_in_names()]


def read(kind: str, content: bytes, folder: Path) -> bool:
    path = folder / f"{kind}.toml"
    path.write_bytes(content)
    return refused_or_read(lambda: READERS[kind](path))


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("text", STRANGE.values(), ids=STRANGE)
def test_toml_that_stops_the_parser_is_one_sentence(kind: str, text: str, tmp_path: Path) -> None:
    assert not read(kind, text.encode(errors="surrogateescape"), tmp_path)


@tries(120, 5_000)
@pytest.mark.parametrize("kind", READERS)
def test_damaged_toml_is_settings_or_one_sentence(count: int, kind: str, tmp_path: Path) -> None:
    texts = st.sampled_from(good_text(kind)).flatmap(lambda text: damaged(text, head=len(text)))
    check_each(count, texts, lambda content: read(kind, content, tmp_path))


@tries(120, 5_000)
@pytest.mark.parametrize("kind", READERS)
def test_any_value_under_a_known_key_is_settings_or_one_sentence(
    count: int, kind: str, tmp_path: Path
) -> None:
    """Values that are possible TOML but perhaps no sense: NaN, infinities, beyond an int64, of another type."""

    def replaced(text: bytes) -> st.SearchStrategy[bytes]:
        lines = text.decode().splitlines()
        places = [at for at, line in enumerate(lines) if " = " in line]

        def build(changes: list[tuple[int, str]]) -> bytes:
            new = list(lines)
            for at, value in changes:
                new[at] = f"{lines[at].split(' = ')[0]} = {value}"
            return "\n".join(new).encode()

        return st.lists(st.tuples(st.sampled_from(places), NUMBERS), min_size=1, max_size=2).map(build)

    texts = st.sampled_from(good_text(kind)).flatmap(replaced)
    check_each(count, texts, lambda content: read(kind, content, tmp_path))


@tries(150, 8_000)
def test_any_bytes_are_a_list_of_images_or_one_sentence(count: int, tmp_path: Path) -> None:
    """Every line is told apart from the others, and looked up without harm."""
    (tmp_path / "1.png").write_bytes(b"x")
    pieces = st.sampled_from(
        [
            b"1.png",
            b"../1.png",
            b"/etc/passwd",
            b"/dev/zero",
            b".",
            b"..",
            b"\n",
            b"\r\n",
            b" ",
            b"\0",
            b"\xff",
            b"/",
        ]
    )

    def check(parts: list[bytes]) -> None:
        path = tmp_path / "faces.txt"
        path.write_bytes(b"".join(parts))

        def both() -> None:
            files = read_filelist(path)
            states, stamps = look_up(files, 0, files.n)
            assert len(states) == len(stamps) == files.n
            assert all(b"\n" not in files.line(at) for at in range(files.n))
            outside = set(lines_outside(files).tolist())
            for at in range(files.n):
                if b"\0" not in files.line(at) and files.line(at):
                    inside = os.path.abspath(files.path(at)).startswith(os.fsencode(tmp_path) + b"/")
                    assert inside or at in outside or os.path.abspath(files.path(at)) == os.fsencode(tmp_path)

        refused_or_read(both)

    check_each(count, st.lists(st.one_of(pieces, st.binary(max_size=4)), max_size=12), check)


def test_lines_that_lead_out_of_the_folder_are_noticed(tmp_path: Path) -> None:
    (tmp_path / "list").mkdir()
    lines = [
        "in.png",
        "../out.png",
        "a/../in.png",
        "/etc/passwd",
        f"{tmp_path}/list/in.png",
        "..in.png",
        "a/../../o",
    ]
    (tmp_path / "list/faces.txt").write_text("\n".join(lines))
    files = read_filelist(tmp_path / "list/faces.txt")
    assert lines_outside(files).tolist() == [1, 3, 6]
    model = tmp_path / "model.onnx"
    model.write_bytes(b"")
    with pytest.warns(
        FcdeployWarning, match=r"3 of 7 lines point outside of its folder \(the first is line 1"
    ):
        new_job(files, model)


@tries(100, 5_000)
@pytest.mark.parametrize("name", ["a.meta", "clusters.txt"])
def test_any_text_is_labels_or_one_sentence(count: int, name: str, tmp_path: Path) -> None:
    words = st.sampled_from(
        [b"0", b"1", b"-1", b"\n", b" ", b"\t", b"9" * 19, b"9" * 4400, b"x", b"\xff", b"1e3"]
    )

    def check(parts: list[bytes]) -> None:
        (tmp_path / name).write_bytes(b"".join(parts))
        refused_or_read(lambda: read_labels(tmp_path / name))

    check_each(count, st.lists(words, max_size=20), check)
