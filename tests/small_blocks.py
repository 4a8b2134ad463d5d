"""Small blocks in runs over few faces, so that they have many; a block's size changes nothing of what is computed."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

from fcdeploy.run.blocks import LocalBlocks
from fcdeploy.run.stage import Stage
from fcdeploy.systems import NAMES

COMPUTE = LocalBlocks.compute


def set_blocks(rows: int, set_attribute: Callable[[Any, str, Any], None] = setattr) -> None:
    """Give every stage of every system blocks of so many rows, rounded up to what has to stay together."""

    def compute(self: LocalBlocks, stage: Stage, *args: Any) -> None:
        size = -(-rows // stage.whole) * stage.whole
        COMPUTE(self, dataclasses.replace(stage, size=size), *args)

    set_attribute(LocalBlocks, "compute", compute)
    for name in NAMES:
        flow = importlib.import_module(f"fcdeploy.systems.{name.replace('-', '_')}.flow")
        for block in [block for block in vars(flow) if block.endswith("_BLOCK")]:  # of what is made in one go
            set_attribute(flow, block, rows)
