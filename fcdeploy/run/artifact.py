"""An artifact: arrays of a run, and the key of what they were made from."""

from collections.abc import Callable
from functools import cached_property

import numpy as np

from fcdeploy.graph.knn import KnnGraph
from fcdeploy.run.store import Arrays, Shapes


class Artifact:
    """Arrays with the key of what they were made from; they are computed when they are first needed.

    name: under which it is kept; shapes: of its arrays, by their names, empty where they follow from the data;
    scratch: whether it is deleted at the run's end; about: see ``Stage``; passes: of the engine that it depends on.
    made_from, through: the artifacts that are there while it is computed, of which the latter are then deleted.
    """

    def __init__(
        self,
        name: str,
        shapes: Shapes,
        passes: tuple[str, ...],
        scratch: bool,
        key: Callable[[], str],
        compute: Callable[["Artifact"], Arrays],
        about: int = 0,
        made_from: tuple["Artifact", ...] = (),
        through: tuple["Artifact", ...] = (),
    ) -> None:
        self.name, self.shapes, self.passes, self.scratch = name, shapes, passes, scratch
        self.about, self.made_from, self.through = about, made_from, through
        self._key, self._compute = key, compute
        self._arrays: Arrays | None = None

    @cached_property
    def key(self) -> str:
        """A hash of everything that decides the arrays; the same in another run over the same things."""
        return self._key()

    @property
    def arrays(self) -> Arrays:
        """The arrays by name, read-only."""
        if self._arrays is None:
            self._arrays = self._compute(self)
        return self._arrays

    @property
    def array(self) -> np.ndarray:
        """The only array."""
        (array,) = self.arrays.values()
        return array

    @property
    def lists(self) -> KnnGraph:
        """The neighbor lists that it holds, ``ids`` and ``sims``."""
        return KnnGraph(self["ids"], self["sims"])

    def __getitem__(self, part: str) -> np.ndarray:
        return self.arrays[part]

    def forget(self) -> None:
        """Hold the arrays no longer, so that their memory can go."""
        self._arrays = None
