"""Bundles of the golden checkpoints, each exported once."""

import nsr_case
import pytest
from build_ranges import GROUPS, RANGES


@pytest.fixture(scope="session")
def pse_bundle(golden, tmp_path_factory):
    """The golden checkpoint's bundle and how exact its export says it is."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    from fcdeploy.deploy.onnx_from_checkpoint import export_checkpoint

    path = tmp_path_factory.mktemp("bundle") / "pse-gcn.onnx"
    return export_checkpoint(golden / "dev/pse/checkpoint.pth", path)


@pytest.fixture(scope="session")
def build_profile(tmp_path_factory):
    """A build profile for compute capability 8.6 with RANGES, and GROUPS of neighborhoods by size."""
    lines = ["[target]", 'flavour = "tensorrt-rtx"', 'compute_capability = "8.6"', "[axes]"]
    lines += [f"{axis} = {list(three)}" for axis, three in RANGES.items()]
    for group in GROUPS:
        lines += ["[[groups]]", *(f"{axis} = {list(three)}" for axis, three in group.items())]
    path = tmp_path_factory.mktemp("profile") / "small.toml"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="session")
def nsr_bundle(exported):
    """The bundle of NSR-FC's whole chain; its batches are of 50 faces."""
    return exported(nsr_case.CHAIN)
