"""``--vram`` is what all that is open at the same time takes together, not each of it.

Reported at microsoft/onnxruntime#8313 and #12207 (gpu_mem_limit is of one session) and NVIDIA/TensorRT#1858 (several
engines on one device).
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from system_cases import CASES

from fcdeploy.data.features import open_features
from fcdeploy.engine.bundle import Bundle
from fcdeploy.run.options import Options
from fcdeploy.runtime.pipeline import run_clustering
from fcdeploy.systems.pse_gcn import layers

VRAM = 1 << 30


@dataclasses.dataclass
class Device:
    """How much is promised to what is open."""

    taken: int = 0
    most: int = 0
    opened: int = 0

    @contextlib.contextmanager
    def holds(self, size: int) -> Iterator[None]:
        assert size > 0
        self.taken += size
        self.opened += 1
        self.most = max(self.most, self.taken)
        yield
        self.taken -= size


@pytest.mark.filterwarnings("ignore::fcdeploy.errors.FcdeployWarning")
@pytest.mark.parametrize("inference", ["exact", "layerwise"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_run_promises_more_than_there_is(
    case: Any, inference: str, exported: Any, golden: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fcdeploy.systems import get_system

    if inference not in get_system(case.name).inferences:
        pytest.skip("is computed in one way")
    bundle, device = exported(case), Device()
    open_pass, sums_on = Bundle.open, layers.sums_on

    @contextlib.contextmanager
    def watched(self: Bundle, name: str, *, vram: int = 0, **named: Any) -> Iterator[Any]:
        with open_pass(self, name, vram=vram, **named) as engine:
            if not vram:  # opened once, to see whether it can be
                yield engine
                return
            with device.holds(vram):
                yield engine

    @contextlib.contextmanager
    def watched_sums(*, gpu: bool, vram: int = 0, **named: Any) -> Iterator[Any]:
        with (
            device.holds(vram // 2),
            sums_on(gpu=gpu, vram=vram, **named) as sums,
        ):  # what its tables may take
            yield sums

    monkeypatch.setattr(Bundle, "open", watched)
    monkeypatch.setattr(layers, "sums_on", watched_sums)
    features = open_features(golden / "dev/data/features.bin", bundle.feature_dim)
    some = dataclasses.replace(features, array=features.array[:200])
    run_clustering(some, bundle, Options(vram=VRAM, inference=inference))
    assert device.opened
    assert (device.taken, device.most <= VRAM) == (0, True)
