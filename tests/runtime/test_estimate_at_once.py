"""What ``estimate`` says of the disk: the most that files of a run take at the same time, for every system."""

import numpy as np
import pytest
from system_cases import CASES

import fcdeploy
from fcdeploy.data.features import features_from_array
from fcdeploy.run.folder import RunFolder
from fcdeploy.run.options import Options
from fcdeploy.runtime.estimate import estimate_run

FACES = 900
SLACK = 2000 * 20  # headers of arrays and journals, of as many files as there are


@pytest.fixture
def watched(monkeypatch):
    """Sums of the arrays in a run folder, looked at when one begins: all that is there has its full size then."""
    seen = []

    begin = RunFolder.begin

    def looked(self, *args, **more):
        found = begin(self, *args, **more)
        seen.append(sum(one.stat().st_size for one in self.path.glob("*/*.npy")))
        return found

    monkeypatch.setattr(RunFolder, "begin", looked)
    return seen


LAYERS = {"inference": "layerwise"}
ASKED = [*((case, {}) for case in CASES), (CASES[0], LAYERS), (CASES[0], LAYERS | {"tables": "float16"})]


@pytest.mark.parametrize(("case", "options"), ASKED, ids=str)
def test_most_bytes_at_the_same_time_are_as_estimated(exported, case, options, tmp_path, watched):
    bundle = exported(case)
    random = np.random.default_rng(3)
    centres = random.standard_normal((FACES // 15, bundle.feature_dim), dtype=np.float32)
    faces = centres[random.integers(0, len(centres), FACES)]
    faces += 0.3 * random.standard_normal(faces.shape, dtype=np.float32)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)
    options = {"memory": 1 << 30, **options}
    said = estimate_run(features_from_array(faces), bundle, Options(**options), tmp_path / "run")
    fcdeploy.cluster(faces, engine=bundle.path, run_dir=tmp_path / "run", **options)
    assert said.bytes_at_once <= sum(size for size, _ in said.files.values())
    if case.name == "gcn-d":  # the sizes of its proposals follow from the data
        assert said.bytes_at_once < max(watched)
    else:
        assert said.bytes_at_once == pytest.approx(max(watched), rel=0.02, abs=SLACK)
