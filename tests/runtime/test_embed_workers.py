"""What workers are told of an embedding is what the driver was given, through JSON and files."""

import json
from pathlib import Path

import numpy as np
import pytest

from fcdeploy.data.filelist import filelist_from_paths, read_filelist
from fcdeploy.engine.embedder import EmbedderSettings, settings_from_table
from fcdeploy.runtime.embed_workers import settings_table, tell_files, told_files


@pytest.mark.parametrize(
    "settings",
    [
        EmbedderSettings(),
        EmbedderSettings("NHWC", (112, 96), "bgr", (127.5,), (128.0, 128.0, 1.0), "out"),
        EmbedderSettings(mean=(0.0,), inputs=(("flag", True), ("sizes", (1, 2, 3)))),
    ],
)
def test_settings_arrive_as_they_are(settings: EmbedderSettings) -> None:
    assert settings_from_table(json.loads(json.dumps(settings_table(settings))), "model.onnx") == settings


def test_a_list_of_files_arrives_as_it_is(tmp_path: Path) -> None:
    """Relative paths start from the folder of the list, or from the current one, wherever the worker is."""
    (tmp_path / "list.txt").write_bytes(b"a.png\nsub/b \xff.png\n\nc.png\n")
    (tmp_path / "told").mkdir()
    for files in (read_filelist(tmp_path / "list.txt"), filelist_from_paths(["x.png", "/abs/y.png"])):
        found = np.arange(files.n, dtype=np.uint8)
        about = json.loads(json.dumps(tell_files(tmp_path / "told", files, found)))
        told, states = told_files(tmp_path / "told", about)
        assert told.digest() == files.digest()
        assert np.array_equal(states, found)
        for at in range(files.n):
            wanted = Path(files.path(at).decode("utf-8", "surrogateescape")).absolute()
            assert told.path(at).decode("utf-8", "surrogateescape") == str(wanted) or not files.line(at)
