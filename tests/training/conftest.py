"""Generated faces, small enough to train on in a second, and the command line called in this process."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import faces as synthetic

DIM = 16
RECIPES = {
    "gcn-d": (
        "[[proposals]]\nk = 10\nthreshold = 0.5\nmax_size = 30\nmin_size = 2\n\n"
        "[[proposals]]\nk = 10\nthreshold = 0.3\nmax_size = 20\nmin_size = 2\n"
    ),
    "l-gcn": "[neighborhood]\nhops = [9, 3]\nactive = 5\n\n[propagation]\nmax_size = 20\n",
    "nsr-fc": (
        "[neighborhood]\nk = 10\nhops = [10, 3]\nactive = 5\n\n[rescore]\nk = 10\nbatch = 64\n\n"
        "[density_peaks]\nk = 5\n\n[pairs]\nk = 8\n"
    ),
    "sepfl": "[links]\nk = 8\nrho = 0.5\n",
    "ve-gcn": "[graph]\nk = 10\n\n[links]\nk = 12\ntau = 0.5\n\n[edge]\nignore_ratio = 0.3\n",
    "pse-gcn": "[neighborhood]\nk = 10\nhops = [10, 3]\nactive = 5\n\n[links]\nk = 10\ntau = 0.7\n",
}


@pytest.fixture(autouse=True)
def small(request):
    """What takes longer than the steps of these trainings, made smaller.

    Layers of NSR-FC and VE-GCN are narrower than published, a check tries three or four values of each setting, and
    curves are drawn for who asks for the fixture ``drawn``.
    """
    with pytest.MonkeyPatch.context() as patch:
        if importlib.util.find_spec("torch"):
            from fcdeploy.systems.nsr_fc import training
            from fcdeploy.systems.ve_gcn import training as ve_training
            from fcdeploy.training import loop

            for name in ("RESCORE_FF", "PAIR_FF", "PAIR_HIDDEN"):
                patch.setattr(training, name, 64)
            patch.setattr(ve_training, "HIDDEN", 64)
            sweep = loop.sweep

            def sparse_sweep(run, truth, tunables, score, **how):
                few = [
                    dataclasses.replace(tunable, values=tunable.values[:: max(4, len(tunable.values) // 3)])
                    for tunable in tunables
                ]
                return sweep(run, truth, few, score, **how)

            patch.setattr(loop, "sweep", sparse_sweep)
            if "drawn" not in request.fixturenames:
                patch.setattr(loop, "draw_training", lambda path, *curves: path.touch())
        yield


@pytest.fixture
def drawn():
    """Pictures of curves are drawn."""


@pytest.fixture(scope="session")
def people(tmp_path_factory) -> Path:
    """A folder of generated faces of 40 people, the last five faces unknown: f.bin, f.meta; recipes by system."""
    folder = tmp_path_factory.mktemp("people")
    features, labels = synthetic.make_faces(400, DIM, seed=3, mean_size=10)
    features.astype("<f4").tofile(folder / "f.bin")
    labels[-5:] = -1
    (folder / "f.meta").write_text("\n".join(map(str, labels)) + "\n")
    for name, text in RECIPES.items():
        (folder / f"{name}.toml").write_text(f'system = "{name}"\nfeature_dim = {DIM}\n\n{text}')
    return folder


@pytest.fixture(scope="session")
def strangers() -> tuple[np.ndarray, np.ndarray]:
    """Features (2400, 64) float32 of some 200 people, and their identities."""
    return synthetic.make_faces(2400, 64, seed=8, mean_size=12)


@pytest.fixture(scope="session")
def vectors(people) -> np.ndarray:
    """Their features, (400, 16) float32."""
    return np.fromfile(people / "f.bin", "<f4").reshape(-1, DIM)


@pytest.fixture(scope="session")
def identities(people) -> np.ndarray:
    """Their labels (400,) int64, -1 where unknown."""
    return np.loadtxt(people / "f.meta", dtype=np.int64)
