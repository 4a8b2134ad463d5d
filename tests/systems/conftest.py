"""The bundle of NSR-FC's golden checkpoints, and what plans are built for."""

import nsr_case
import pytest
from build_ranges import GROUPS, RANGES


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
