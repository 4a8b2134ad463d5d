"""A run over stored faces to which rows of new ones are added: only these are computed, all others stay as they are.

For every artifact of one row per face there is an array with spare rows behind those of the n stored faces. New faces
take rows n, n + 1, ..., and every stage of the flow computes these rows alone, against the stored ones. No stored face
has a new one in its list, so that what is said of a new face does not depend on which others come with it.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.graph.cells import PER_ROOT, Cells, cell_count
from fcdeploy.graph.knn import EXACT_LIMIT, KnnSearch, order_candidates
from fcdeploy.graph.marks import new_scratch
from fcdeploy.graph.partition import make_cells
from fcdeploy.graph.search import Find, Room
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import LocalBlocks, opened, write_block
from fcdeploy.run.run import Run
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, Shapes, Span, fixed

PROBES = 64  # cells that a new face is compared with, where not with all faces: few queries are cheap
SPARE = 8  # candidates beyond k, see ``fcdeploy.graph.knn``

Rows = Callable[[np.ndarray], None]
Stored = Callable[[str], Arrays | None]


@dataclass(frozen=True)
class Offers:
    """The stored faces that new ones might be linked to, and the one that the system's link rule takes.

    ids: (m, c) int32, places among the stored faces, below 0 for none; strengths: (m, c) float32, how strongly each
    speaks for its cluster. place: (m,) int64, which of them the link rule takes, -1 for none; value: (m,) float32, what
    it goes by, a similarity or a probability, NaN where it asked about none.
    """

    ids: np.ndarray
    strengths: np.ndarray
    place: np.ndarray
    value: np.ndarray


# Of the rows (m,) int32 of new faces, when all stages have computed these: (rows, labels (n,) int64 of stored faces).
Rule = Callable[[np.ndarray, np.ndarray], Offers]


def offers_of_lists(
    ids: np.ndarray, strengths: np.ndarray, place: np.ndarray, n: int, value: np.ndarray | None = None
) -> Offers:
    """Take the lists (m, k) of new faces as offers, without the faces themselves; value: the strength in ``place``."""
    if value is None:
        at = np.arange(len(ids))
        value = np.where(place >= 0, strengths[at, place], np.float32(np.nan))
    return Offers(np.where(ids < n, ids, np.int32(-1)), strengths, place, value.astype(np.float32))


class Roomy:
    """The arrays of an artifact with ``room`` spare rows behind n; see ``Partial``.

    Of those that grow with every row, new entries lie behind the stored ones, and ``rewind`` forgets them.
    """

    key = ""

    def __init__(self, shapes: Shapes, n: int, room: int) -> None:
        self.finished: list[Span] = []
        self.arrays: Arrays = {
            part: np.zeros((n + room, *shape[1:]), dtype) for part, (shape, dtype) in fixed(shapes).items()
        }
        if "ids" in self.arrays and self.arrays["ids"].ndim > 1:  # a spare row lists nobody else
            self.arrays["ids"][n:] = np.arange(n, n + room)[:, None]
        self._ends = {part: 0 for part, (shape, _) in shapes.items() if None in shape}
        for part in self._ends:
            shape, dtype = shapes[part]
            self.arrays[part] = np.zeros((0, *(length or 0 for length in shape[1:])), dtype)
        self._stored: dict[str, int] = {}

    def append(self, part: str, rows: np.ndarray) -> int:
        """Add entries to an array that grows; returns the number of entries before them."""
        before = self._ends[part]
        end = before + len(rows)
        array = self.arrays[part]
        if end > len(array):
            longer = np.zeros((max(end, len(array) * 3 // 2), *array.shape[1:]), array.dtype)
            longer[:before] = array[:before]
            self.arrays[part] = array = longer
        array[before:end] = rows
        self._ends[part] = end
        return before

    def commit(self, start: int, stop: int) -> None:
        """Do nothing: there is nobody to continue."""

    def close(self) -> None:
        """Do nothing."""

    def finish(self) -> Arrays:
        """Declare what is there the stored part."""
        self._stored = dict(self._ends)
        return self.arrays

    def rewind(self) -> None:
        """Forget the entries of new rows."""
        self._ends = dict(self._stored)


class StoredSearch:
    """Finds the nearest of the n stored faces for any rows, each row itself first; see ``Search``."""

    name, in_cells, block, gpu_block = "stored", False, 8192, 8192
    settings: Mapping[str, object] = {}

    def __init__(self, n: int) -> None:
        self._n = n

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, object]:
        return {}

    @contextlib.contextmanager
    def open(self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room) -> Iterator[Find]:
        stored = vectors[: self._n]
        parts = None if self._n <= EXACT_LIMIT else make_cells(stored, cell_count(self._n))
        search = KnnSearch(stored, parts, probes=PROBES)
        wide = min(self._n, k + SPARE)

        def find(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            found = search.candidates(np.ascontiguousarray(vectors[rows]), wide)
            return order_candidates(vectors, found, rows, k)

        yield find


@dataclass
class Extended(Run):
    """See the module. stored: the arrays of an artifact that an earlier run kept, by name; spare: new faces at a time.

    The features are the stored ones; ``n`` counts these. Engines stay open until ``close``. Not thread-safe.
    """

    stored: Stored = lambda name: None
    spare: int = 256
    _steps: list[Rows] = field(default_factory=list)
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _vectors: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.search = StoredSearch(self.n)

    @property
    def on_gpu(self) -> bool:
        """Never: what lies on a GPU is a copy, in which new rows would be missing; passes run where they are opened."""
        return False

    @cached_property
    def marks(self) -> np.ndarray:
        return new_scratch(self.n + self.spare)

    def cells_among(self, n: int, per_root: int = PER_ROOT) -> int:
        """One: rows are few, and their order is that of the stored ones."""
        return 1

    @property
    def stored_vectors(self) -> np.ndarray:
        """The vectors (n, d) float32 of the stored faces."""
        assert self._vectors is not None
        return self._vectors[: self.n]

    def opened_engine(self, name: str) -> Engine:
        """Open a pass that stays open until ``close``."""
        return self._stack.enter_context(self.engine(name))

    def close(self) -> None:
        """Free the engines."""
        self._stack.close()

    def add(self, vectors: np.ndarray) -> np.ndarray:
        """Let faces ``vectors`` (m, d) float32 take the spare rows, m at most ``spare``; returns their rows (m,) int32.

        What the rows held before is gone.
        """
        assert self._vectors is not None
        rows = np.arange(self.n, self.n + len(vectors), dtype=np.int32)
        self._vectors[rows] = vectors
        for compute in self._steps:
            compute(rows)
        return rows

    def compute(self, stage: Stage) -> Artifact:
        """Return the artifact of a stage with its stored rows, kept or computed now; new ones come with ``add``."""
        assert stage.count == self.n, f"{stage.name} has no row per face"
        made = Roomy(stage.shapes, self.n, self.spare)
        stored = self.stored(stage.name)
        if stored is not None:
            for part, rows in stored.items():
                made.arrays[part][: self.n] = rows
        else:
            LocalBlocks(self.options).compute(stage, made, self.engine, self.store, self.progress)
        made.finish()
        if stage.name == "vectors":
            (self._vectors,) = made.arrays.values()
        else:
            resources = self._stack.enter_context(opened(stage, self.engine))
            block = stage.unlisted or stage.block

            def compute(rows: np.ndarray) -> None:
                made.rewind()
                write_block(stage, made, rows, block(rows, *resources))

            self._steps.append(compute)
        return _artifact(stage.name, stage.shapes, made.arrays)

    def stored_artifact(
        self,
        name: str,
        make: Callable[[], Arrays],
        shapes: Shapes | None,
        rows: Callable[[np.ndarray], Arrays] | None,
    ) -> Artifact:
        """Return an artifact of the stored faces, with spare rows where it is known how to compute some ``rows``."""
        if shapes is not None and shapes.keys() == {"centroids", "cell", "nearest"}:
            return _artifact(name, shapes, one_cell(shapes, self.n + self.spare))
        arrays = self.stored(name) or make()
        if rows is None:
            return _artifact(name, shapes or {}, arrays)
        arrays = {
            part: np.concatenate([array, np.zeros((self.spare, *array.shape[1:]), array.dtype)])
            for part, array in arrays.items()
        }
        row_form = rows

        def compute(new: np.ndarray) -> None:
            for part, made in row_form(new).items():
                arrays[part][new] = made

        self._steps.append(compute)
        return _artifact(name, shapes or {}, arrays)

    def drop(self, *artifacts: Artifact) -> None:
        """Do nothing: new rows are computed from all of them."""


def one_cell(shapes: Shapes, rows: int) -> Arrays:
    """Return the partition of all rows into a single cell."""
    (_, dim), dtype = shapes["centroids"]
    return {
        "centroids": np.zeros((1, dim or 0), dtype),
        "cell": np.zeros(rows, np.int32),
        "nearest": np.zeros((rows, 1), np.int32),
    }


def _artifact(name: str, shapes: Shapes, arrays: Arrays) -> Artifact:
    return Artifact(name, shapes, (), True, lambda: name, lambda _: arrays)
