"""The shortest of what the fault suite does with files that are cut short while they are mapped."""

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fcdeploy.data.features import open_features, stamp_of
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.errors import FcdeployError
from fcdeploy.runtime import checked, pipeline
from fcdeploy.runtime.lost_pages import SENTENCE

CUT = """
import os, sys, threading
import numpy as np
from fcdeploy.runtime.lost_pages import sigbus_guard

path = sys.argv[1]
mapped = np.memmap(path, np.uint8, "r")
with sigbus_guard():
    pass
if sys.argv[2] != "outside":
    with sigbus_guard():
        os.truncate(path, 10)
        thread = threading.Thread(target=mapped.sum)
        thread.start()
        thread.join()
        print("still here")
os.truncate(path, 10)
mapped.sum()
"""


@pytest.mark.parametrize("where", ["inside", "outside"])
def test_lost_pages_are_one_sentence_in_commands_and_left_alone_elsewhere(where: str, tmp_path: Path) -> None:
    """In whatever thread they are touched; behind the block the process is its owner's again, and dies as any would."""
    (tmp_path / "file").write_bytes(bytes(1_000_000))
    done = subprocess.run([sys.executable, "-c", CUT, str(tmp_path / "file"), where], capture_output=True)
    assert done.stdout == b""
    if where == "inside":
        assert (done.returncode, done.stderr) == (1, SENTENCE.tobytes())
        assert done.stderr.count(b"\n") == 1
    else:
        assert done.returncode == -7
        assert done.stderr == b""


def test_features_that_change_while_they_are_read_are_not_clustered(
    bundle_of: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checked, hashed and normalised are three passes over a file; all have to see the same."""
    rows = np.random.default_rng(0).standard_normal((60, 32)).astype("<f4")
    rows.tofile(tmp_path / "features.bin")
    straight, calls = checked.scan_rows, []

    def changing(features: object, **options: object) -> object:
        found = straight(features, **options)  # type: ignore[arg-type]
        if not calls:
            calls.append(1)
            time.sleep(0.02)  # longer than the steps in which some kernels count the times of files
            (rows * 2).tofile(tmp_path / "features.bin")
        return found

    monkeypatch.setattr(checked, "scan_rows", changing)
    bundle = read_bundle(bundle_of("sepfl").path)  # type: ignore[operator]
    run = tmp_path / "run"
    with pytest.raises(FcdeployError, match="was changed while it was being read"):
        pipeline.run_clustering(open_features(tmp_path / "features.bin", 32), bundle, run_dir=run)
    assert {path.name for path in run.iterdir()} <= {"run.json", "run.lock"}
    features = open_features(tmp_path / "features.bin", 32)
    assert stamp_of(features) == stamp_of(features)
    labels = pipeline.run_clustering(features, bundle, run_dir=run).labels
    assert np.array_equal(labels, pipeline.run_clustering(features, bundle).labels)
