"""What `embed` notes beside features is held against them: rows, width, size and values.

Raw features that were read with another width, or exchanged, gave clusters without a word: yl-1993/learn-to-cluster #83
#60, rogersce/cnpy #62.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import Command
from embedders import write_embedder
from PIL import Image

from fcdeploy.data.features import hash_of, needs_width, open_features
from fcdeploy.errors import InputError

N, D = 5, 8


@pytest.fixture
def command(fcdeploy: Command) -> Callable[..., tuple[int, str]]:
    """Call ``fcdeploy ARGS`` in this process; its exit code and what it wrote to stderr."""
    return lambda *args: fcdeploy(*args)[::2]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for at in range(N):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(tmp_path / f"{at}.png")
    (tmp_path / "faces.txt").write_text("".join(f"{at}.png\n" for at in range(N)))
    write_embedder(tmp_path / "e.onnx", size=(16, 16), dim=D)
    return tmp_path


@pytest.fixture(params=["f.bin", "f.npy"])
def features(request: Any, here: Path, command: Callable[..., tuple[int, str]]) -> Path:
    path = here / request.param
    assert command("embed", here / "faces.txt", "--model", here / "e.onnx", "-o", path, "--quiet") == (0, "")
    return path


def test_the_width_is_known_and_nothing_is_to_be_said(features: Path) -> None:
    noted = json.loads(Path(f"{features}.json").read_text())
    assert (noted["written_by"], noted["rows"], noted["width"], noted["dtype"]) == (
        "fcdeploy embed",
        N,
        D,
        "float32",
    )
    assert noted["bytes"] == features.stat().st_size
    opened = open_features(features)
    assert (opened.n, opened.dim, opened.note) == (N, D, "")
    assert not needs_width(features)
    assert hash_of(opened) == noted["hash"]


def test_another_width_is_refused(features: Path) -> None:
    with pytest.raises(InputError, match=rf"{features.name}: expected \(n, 4\).*\({N}, {D}\)"):
        open_features(features, D // 2, sure=True)


def test_a_file_of_another_size_is_refused(features: Path) -> None:
    size = features.stat().st_size
    os.truncate(features, size - 4 * D)
    with pytest.raises(
        InputError, match=rf"{size - 4 * D} bytes.*json says {N} rows of {D} float32, {size} bytes"
    ):
        open_features(features, D)


def test_other_values_are_refused_before_they_are_clustered(features: Path) -> None:
    data = bytearray(features.read_bytes())
    data[-1] ^= 0x80
    features.write_bytes(data)
    opened = open_features(features, D)
    with pytest.raises(InputError, match=rf"{features.name}: its values .*delete .*{features.name}\.json"):
        hash_of(opened)
    Path(f"{features}.json").unlink()
    hash_of(open_features(features, D))


def test_embedding_again_notes_the_new_ones(
    features: Path, here: Path, command: Callable[..., tuple[int, str]]
) -> None:
    (here / "faces.txt").write_text("0.png\n1.png\n")
    args = ("embed", here / "faces.txt", "--model", here / "e.onnx", "-o", features, "--quiet")
    assert command(*args) == (0, "")
    assert open_features(features).n == 2
    hash_of(open_features(features))


@pytest.mark.parametrize("content", [b'{"mine": 1}', b"", b"not json", b"[]", b"[" * 100_000])
def test_a_json_of_somebody_elses_is_neither_read_nor_replaced(
    content: bytes, here: Path, command: Callable[..., tuple[int, str]]
) -> None:
    np.ones((N, D), np.float32).tofile(here / "f.bin")
    (here / "f.bin.json").write_bytes(content)
    assert open_features(here / "f.bin", D).n == N
    code, said = command(
        "embed", here / "faces.txt", "--model", here / "e.onnx", "-o", here / "f.bin", "--quiet"
    )
    assert (code, "f.bin.json: was not written by fcdeploy" in said) == (2, True)
    assert (here / "f.bin.json").read_bytes() == content


def test_a_damaged_one_of_ours_is_told(features: Path) -> None:
    Path(f"{features}.json").write_text('{"written_by": "fcdeploy embed", "rows": "many"}')
    with pytest.raises(InputError, match=rf"{features.name}\.json: is damaged"):
        open_features(features, D)
