"""Neighbor lists as artifacts: found by a search, or read from a file."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager

import numpy as np

from fcdeploy.graph.cell_search import SAMPLE, CellSearch, reach_of, sampled_faces
from fcdeploy.graph.cell_search_cuda import ranks_on
from fcdeploy.graph.cells import PER_ROOT
from fcdeploy.graph.chosen_lists import ChosenLists
from fcdeploy.graph.knn import KnnGraph, KnnSearch, similarities_of_lists
from fcdeploy.graph.lists import RowsInOrder, check_lists, mostly_without_self
from fcdeploy.graph.partition import NEAREST, make_cells
from fcdeploy.graph.recall import measure_recall
from fcdeploy.graph.search import Find, InCells, search_named
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.carried import lists_merge
from fcdeploy.run.given import GivenLists, open_lists
from fcdeploy.run.partition import Partition
from fcdeploy.run.run import Run
from fcdeploy.run.stage import BLOCK, Stage
from fcdeploy.run.store import Arrays

LISTS_BYTES = 256 << 20  # of a file of lists that are read at a time
ENTRY_BYTES = 16  # of an id and a similarity in it, at most


def partition(run: Run, name: str, vectors: Artifact, per_root: int = PER_ROOT) -> Partition:
    """Partition the rows of ``vectors``, a single array (n, d), into cells; per_root: how many, see ``cell_count``."""

    def make() -> Arrays:
        with ranks_on(gpu=run.on_gpu, vram=run.options.vram, resident=run.resident) as ranks:
            count = run.cells_among(len(vectors.array), per_root)
            cells = make_cells(vectors.array, count, products=ranks)
        nearest = cells.cell[:, None] if cells.nearest is None else cells.nearest
        return {"centroids": cells.centroids, "cell": cells.cell, "nearest": nearest}

    ((shape, _),) = vectors.shapes.values()
    n, d = (length or 0 for length in shape)
    count = run.cells_among(n, per_root)
    shapes = {
        "centroids": ((count, d), np.float32),
        "cell": ((n,), np.int32),
        "nearest": ((n, min(NEAREST, count)), np.int32),
    }
    settings = {"cells": count}
    return Partition(
        run.collect(name, make, made_from=(vectors,), settings=settings, shapes=shapes, scratch=True)
    )


def nearest_neighbors(
    run: Run,
    name: str,
    vectors: Artifact,
    k: int,
    cells: Partition,
    *,
    text: str,
    clip: bool,
    above: float,
    scratch: bool = False,
) -> Artifact:
    """Find the k nearest neighbors of every row of ``vectors``, a single array (m, d), by inner product.

    cells: the rows' partition, computed when the search needs it; its recall is then measured on a sample, for all
    neighbors and for those of similarity ``above`` and more. clip: similarities are clipped to 0..1. Gives ``ids``
    (m, k) int32, a row itself first, and ``sims`` (m, k) float32.
    """
    ((shape, _),) = vectors.shapes.values()
    m = int(shape[0] or 0)
    search = run.search_among(m)
    told = run.searches.setdefault(name, {"method": search.name, "k": k})

    def block(rows: np.ndarray, find: Find) -> Arrays:
        ids, sims = find(rows)
        return {"ids": ids, "sims": np.clip(sims, 0, 1) if clip else sims}

    def alone() -> AbstractContextManager[Find]:
        return search.open(vectors.array, cells.cells if search.in_cells else None, k, run.room(name))

    opened: Callable[[], AbstractContextManager[Find]] = alone
    through: tuple[Artifact, ...] = ()
    if run.blocks is not None and isinstance(search, InCells) and not run.on_gpu:
        shared = SharedSearch(run, name, text, vectors, cells, search, k)
        opened, through = shared.opened, (shared.cuts,)

    def measure(arrays: Arrays) -> None:
        if search.in_cells:
            recall = measure_recall(vectors.array, KnnGraph(arrays["ids"], arrays["sims"]), above)
            run.recall[name] = recall
            told.update({**search.decides(lambda: cells.cells), "recall": recall.all})

    return run.compute(
        Stage(
            name=name,
            text=text,
            unit="faces" if m == run.n else "rows",
            block=block,
            shapes={"ids": ((m, k), np.int32), "sims": ((m, k), np.float32)},
            made_from=(vectors,),
            settings={"k": k, "search": search.name, "clip": clip, **search.settings},
            rows=m,
            # Workers share blocks, of which there have to be enough.
            size=search.gpu_block if run.on_gpu and not run.options.ray else search.block,
            visit=cells if search.in_cells else None,
            opened=opened,
            through=through,
            scratch=scratch,
            then=measure,
            carry=lists_merge(vectors, clip=clip),
        )
    )


class SharedSearch:
    """A search in cells by several workers, who share out, too, finding how far faces have to look.

    cuts: those of a sample of faces, see ``CellSearch.cuts_for``. What a worker prepares for them serves its search.
    """

    def __init__(
        self, run: Run, name: str, text: str, vectors: Artifact, cells: Partition, search: InCells, k: int
    ) -> None:
        self._search, self._k = search, k
        self._prepare = lambda: search.unreached(vectors.array, cells.cells, run.room(name))
        self._prepared: tuple[ExitStack, CellSearch] | None = None
        ((shape, _),) = vectors.shapes.values()
        sample = sampled_faces(int(shape[0] or 0), SAMPLE)
        self.cuts = run.compute(
            Stage(
                name=f"{name}_cuts",
                text=f"{text}: reach",
                block=lambda rows, prepared: {"cuts": prepared.cuts_for(sample[rows], k)},
                shapes={"cuts": ((len(sample), k), np.int64)},
                made_from=(vectors, cells.artifact),
                settings={"k": k},
                rows=len(sample),
                opened=self._kept_open,
                scratch=True,
            )
        )

    @contextmanager
    def _kept_open(self) -> Iterator[CellSearch]:
        """Prepare the search, and leave it so."""
        if self._prepared is None:
            stack = ExitStack()
            self._prepared = stack, stack.enter_context(self._prepare())
        yield self._prepared[1]

    @contextmanager
    def opened(self) -> Iterator[Find]:
        """Open the search; its cuts are there."""
        with self._kept_open() as search:
            search.cut = reach_of(self.cuts["cuts"], self._search.recall).cut
            stack, self._prepared = self._prepared[0], None  # type: ignore[index]
            with stack:
                yield lambda faces: search.search(faces, self._k)


def lists_from_file(
    run: Run, name: str, given: GivenLists, vectors: Artifact, k: int | None, cells: Partition, text: str
) -> Artifact:
    """Read lists that were made elsewhere; the first ``k`` columns, or all.

    Similarities that the file does not hold are computed from the features and clipped to 0..1. Where only some rows of
    the features are faces, the others are left out of the lists; where these get too short they are refused, or
    neighbors are searched for their faces, see ``GivenLists``. Raises InputError when an entry is no face or stands
    twice in a row. Gives what ``nearest_neighbors`` gives; the order is the file's unless it is sorted.
    """
    path, sort, features = given.path, given.sort, run.features
    lists = open_lists(path, features)
    block_rows = max(1, min(BLOCK, LISTS_BYTES // (ENTRY_BYTES * lists.k)))
    chosen = None if features.chosen is None else ChosenLists(lists, features.chosen, block_rows)
    if k is None:
        k = lists.k if chosen is None else chosen.shortest()
        run.settings.check_reranked(k, str(path))
    width, refill = k, given.refill and chosen is not None
    run.searches[name] = {"method": "file", "file": str(path), "k": width}

    @contextmanager
    def opened() -> Iterator["ListsReader"]:
        yield ListsReader(RowsInOrder(lists, block_rows), find_for_short_lists(run, vectors, cells, width))

    def block(faces: np.ndarray, reader: "ListsReader") -> Arrays:
        start, none = int(faces[0]), None
        if chosen is None:
            ids, sims = reader.read(start, start + len(faces))
            checked = check_lists(ids if sort else ids[:, :width], start, run.n, str(path))
        else:
            checked, sims, none = chosen(faces, 0 if refill else width)
        if sims is None:
            sims = np.clip(similarities_of_lists(vectors.array, checked, faces), 0, 1)
        if none is not None:
            sims[none] = -np.inf  # behind those that are left
        if sort:
            order = np.argsort(-sims, axis=1, kind="stable")
            checked, sims = (np.take_along_axis(rows, order, axis=1) for rows in (checked, sims))
        checked, sims = checked[:, :width], sims[:, :width]
        if refill and len(short := np.flatnonzero(sims[:, -1] == -np.inf)):
            checked[short], sims[short] = reader.find(faces[short])
        return {"ids": checked, "sims": sims}

    def check(arrays: Arrays) -> None:
        if name == "knn" and mostly_without_self(arrays["ids"]):
            run.note(
                f"{path}: most lists do not hold the face itself, which counts as the first of its neighbors here; "
                "put every face in front of its list."
            )

    return run.compute(
        Stage(
            name=name,
            text=text,
            block=block,
            shapes={"ids": ((run.n, width), np.int32), "sims": ((run.n, width), np.float32)},
            made_from=(vectors,),
            settings={} if run.survey else {"file": lists.digest, "k": width, "sort": sort},
            rows=run.n,
            size=block_rows,
            opened=opened,
            then=check,
        )
    )


class ListsReader:
    """Reads lists of a file in the order of its rows, and finds neighbors for those that are too short."""

    def __init__(self, read: RowsInOrder, find: Find) -> None:
        self.read, self.find = read, find


def find_for_short_lists(run: Run, vectors: Artifact, cells: Partition, k: int) -> Find:
    """Return what finds the k nearest neighbors of faces for whom a file holds too few; prepared when it is needed."""
    found: list[KnnSearch] = []

    def find(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not found:
            near = cells.cells if search_named("auto", run.n).in_cells else None
            found.append(KnnSearch(vectors.array, near))
        ids, sims = found[0].search(faces, k)
        return ids, np.clip(sims, 0, 1)

    return find
