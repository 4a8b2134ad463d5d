"""A stage of a run, described: from which artifacts, with which settings and passes, and what one block computes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import numpy as np

from fcdeploy.run.artifact import Artifact
from fcdeploy.run.partition import Partition
from fcdeploy.run.store import Arrays, Shapes

BLOCK = 8192  # faces
PART = 16384  # rows that are taken over at a time


@dataclass(frozen=True)
class Moved:
    """Which faces of an earlier run are here, and what it kept.

    before: (n,) int32, the earlier number of each face, -1 for a new one; after: (earlier n,) int32, the number that
    each has now, -1 for one that is gone. Those that stay come before all new ones. stored: the arrays of
    an artifact of the earlier run by name, None for one that it did not keep.
    """

    before: np.ndarray
    after: np.ndarray
    stored: Callable[[str], Arrays | None]

    @property
    def removed(self) -> bool:
        """Whether any faces are gone."""
        return bool((self.after < 0).any())

    def parts(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Yield rows in parts of a size that fits into memory."""
        for start in range(0, len(rows), PART):
            yield rows[start : start + PART]


# What fills the rows (of the new arrays) that stay from the earlier ones, and returns those to be computed, (m,) int32.
Carry = Callable[[Moved, Arrays, Arrays], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """How an artifact is computed from others, block by block; its bytes do not depend on how it is cut into blocks.

    block(rows, *engines): the arrays of some ``rows`` (m,) int32, by name; with ``opened``, what that opens comes
    before the engines. Of an array in ``shapes`` whose first length is None it gives any number of rows, those of each
    of ``rows`` one behind the other, and under ``counts`` how many each has, (m,); the artifact then has ``starts``
    (rows,) int64, too, which say where they stand.

    name, text, unit: of the artifact, and on the progress bar. made_from: the artifacts, settings: the values and
    passes: the engine's passes that decide the content; its key follows from these. through: scratch artifacts on the
    way, computed only when this one has to be, and deleted when it is finished. rows: how many there are, or (rows +
    1,) offsets of the entries that each fills. size: rows of a block; one for which there is no memory is halved, to
    multiples of ``whole`` rows, which have to stay together. visit: the order in which rows are visited (as they
    come). share: how many hold device memory at the same time (the passes). scratch: whether the artifact is deleted
    at the run's end. in_order: whether blocks are committed one behind the other, whoever is done first. about: how
    many rows an array without a length will have, roughly. then: told of the arrays when they are there. unlisted: what
    stands for ``block`` for rows that are in no list but their own, see ``Extended``. carry: how rows of an earlier run
    over some of the faces are taken over, see ``fcdeploy.run.carried``; carried: what mends these when the others, (m,)
    int32, are there. needed: which rows (m,) int32, ascending, later stages read when theirs are taken over: of an
    artifact that no run keeps, the others stay empty then.
    """

    name: str
    text: str
    unit: str = "faces"
    block: Callable[..., Arrays]
    shapes: Shapes
    made_from: tuple[Artifact, ...] = ()
    settings: Mapping[str, object] = field(default_factory=dict)
    passes: tuple[str, ...] = ()
    through: tuple[Artifact, ...] = ()
    rows: int | np.ndarray
    size: int = BLOCK
    whole: int = 1
    visit: Partition | None = None
    opened: Callable[[], AbstractContextManager[object]] | None = None
    share: int | None = None
    scratch: bool = False
    in_order: bool = False
    about: int = 0
    then: Callable[[Arrays], None] | None = None
    unlisted: Callable[..., Arrays] | None = None
    carry: Carry | None = None
    carried: Callable[[Moved, Arrays, Arrays, np.ndarray], None] | None = None
    needed: Callable[[Moved], np.ndarray] | None = None

    @property
    def count(self) -> int:
        return self.rows if isinstance(self.rows, int) else len(self.rows) - 1

    @property
    def all_passes(self) -> tuple[str, ...]:
        """The passes that decide the content, those of artifacts on the way included."""
        on_the_way = (name for artifact in self.through for name in artifact.passes)
        return tuple(sorted({*self.passes, *on_the_way}))
