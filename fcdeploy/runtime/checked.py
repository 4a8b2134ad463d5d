"""The rows of features before a run: checked, and told apart from bad ones and from copies."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.features import Features, stamp_of
from fcdeploy.graph.scan import Scan, first_equal, scan_rows
from fcdeploy.run.options import MERGE
from fcdeploy.runtime.bad_rows import good_faces


@dataclass(frozen=True)
class Checked:
    """What is known of features that were read once.

    faces: those of the good rows; equal: (n,) int32, the first face that each one is equal to, None where all differ or
    nobody asked; scan: what was found of all rows; told: what the user was told of bad ones; stamp: of the features
    before they were read.
    """

    faces: Features
    equal: np.ndarray | None
    scan: Scan
    told: str
    stamp: tuple[int, ...]


def checked_rows(
    features: Features, duplicates: str, on_bad: str, bad_list: Path | None, outcomes: Mapping[str, str]
) -> Checked:
    """Read all rows once; see ``good_faces`` for what becomes of bad ones, and ``Options.duplicates``."""
    stamp = stamp_of(features)
    scan = scan_rows(features, hashes=duplicates == MERGE)
    faces, told = good_faces(features, scan, on_bad, bad_list, outcomes)
    return Checked(faces, first_equal(scan) if duplicates == MERGE else None, scan, told, stamp)
