"""Which rows of an earlier run are computed again."""

import numpy as np

from fcdeploy.run.carried import and_near
from fcdeploy.run.stage import Moved
from fcdeploy.run.store import Arrays


def test_values_near_the_threshold_that_may_have_changed_are_computed_again() -> None:
    """Of 0.5, 0.45, 0.9 and 0.55, all taken over, the last may not have changed; face 4 is new."""
    moved = Moved(np.array([0, 1, 2, 3, -1], np.int32), np.arange(4, dtype=np.int32), lambda name: None)
    new = {"probability": np.zeros(5, np.float32)}
    asked: list[int] = []

    def carry(moved: Moved, old: Arrays, new: Arrays) -> np.ndarray:
        new["probability"][:4] = [0.5, 0.45, 0.9, 0.55]
        return np.array([4], np.int32)

    def doubtful(moved: Moved, rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return rows != 3

    found = and_near(carry, "probability", 0.5, 0.1, doubtful)(moved, {}, new)
    assert asked == [0, 1, 3]
    assert found.tolist() == [0, 1, 4]
    assert found.dtype == np.int32
