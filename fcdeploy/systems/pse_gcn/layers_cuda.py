"""PSE-GCN layer by layer with all that lies between the layers in device memory: nothing goes over the host.

The passes and sums are those of ``layers``, over the same blocks of places; only the refined features are copied back,
and they stay on the device, too, where neighbors are searched among them next. While a pass computes one block, the
sums of the next are added up on another stream.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

import numpy as np

from fcdeploy.engine.tensors import DeviceEngine, Place
from fcdeploy.errors import MissingDependencyError
from fcdeploy.graph.aggregation_cuda import launch_sum_connected, launch_sum_similar, slots_for
from fcdeploy.graph.best_cuda import BLOCKS, THREADS, address
from fcdeploy.graph.cell_search_cuda import kept_rows
from fcdeploy.graph.cuda import (
    UPLOAD_ROWS,
    DeviceArray,
    DeviceArrays,
    device_budget,
    download,
    import_cupy,
    kernel,
    on_device,
    upload,
)
from fcdeploy.packages import tell_if_broken
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import blocks_of
from fcdeploy.run.carried import rows_stay
from fcdeploy.run.partition import Partition, visit_to_write
from fcdeploy.run.run import Run
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, expected_bytes
from fcdeploy.systems.pse_gcn.layers import ENGINE_ROWS, shapes_of

PASSES = ("near1", "similar1", "block1", "similar2", "block2")
TABLES = 4  # of 2d numbers per face that there are at the same time, at most
STAGED = 2  # blocks of sums: one is read by a pass while the next is added up
SHARE = 2  # of the device memory, the half is for the engines
NUMBER = 4  # bytes

Sum = Callable[
    [DeviceArray, DeviceArray], None
]  # places (m,) int32 -> their sums (m, 2d), on the current stream
Check = Callable[
    [np.ndarray, np.ndarray], None
]  # rows (m, 2d) of places (m,): raises where one is not finite


def layers_fit(run: Run) -> bool:
    """Tell whether ``run`` keeps all that lies between the layers on a GPU: there is CuPy, and room.

    Tables of float16 are for those who have little of it, and workers on other machines share blocks of every layer.
    """
    near = run.settings.neighborhood
    if (
        not run.on_gpu
        or run.survey
        or run.options.tables != "float32"
        or run.options.ray
        or not slots_for(near.hops)
    ):
        return False
    try:
        cupy = import_cupy()
    except MissingDependencyError as error:
        tell_if_broken(error, "sums are made on the CPU")
        return False
    d = run.features.dim
    # Features and tables; lists by place, beside one of them by face for a moment, and what says which is where.
    numbers = d + TABLES * 2 * d + 2 * max(near.reach, near.active) + 2 * near.active + near.reach + 4
    return (
        NUMBER * (run.n * numbers + STAGED * ENGINE_ROWS * 2 * d)
        <= device_budget(cupy, run.options.vram, run.resident) // SHARE
    )


def refined_on_device(
    run: Run, vectors: Artifact, cells: Partition, knn: Artifact, ranked: Artifact
) -> Artifact:
    """The refined features (n, 2d) float32, by face; of the same key as by ``Layers``, which computes the same."""
    near, shapes = run.settings.neighborhood, shapes_of(run, "refined")
    keep = run.resident is not None and run.resident.fits(expected_bytes(shapes))
    stays: list[DeviceArray] = []

    def check(rows: np.ndarray, places: np.ndarray) -> None:
        run.check_finite(rows, cells.order[places], "value")

    @contextlib.contextmanager
    def opened() -> Iterator["ResidentLayers"]:
        cupy = import_cupy()
        with on_device(cupy, "refinement"):
            lists = lists_on_device(
                cupy, knn["ids"], knn["sims"], ranked["ids"], cells, reach=near.reach, active=near.active
            )
            features = rows_by_place(cupy, vectors.array, cells, run.resident)
            layers = ResidentLayers(cupy, features, lists, near.hops, near.active, check, keep=keep)
            yield layers
            stays.extend(layers.kept())

    def block(faces: np.ndarray, layers: "ResidentLayers", *engines: DeviceEngine) -> Arrays:
        refined = layers.refined(faces, cells.place[faces], engines)
        run.check_finite(refined, faces, "refined feature")
        return {"refined": refined}

    def stay(arrays: Arrays) -> None:
        if stays and run.resident is not None:
            run.resident.adopt(arrays["refined"], stays.pop())

    return run.compute(
        Stage(
            name="refined",
            text="refinement",
            block=block,
            shapes=shapes,
            made_from=(vectors, knn, ranked),
            settings={"hops": list(near.hops), "active": near.active, "tables": run.options.tables},
            passes=PASSES,
            rows=run.n,
            carry=rows_stay,
            size=ENGINE_ROWS,
            visit=visit_to_write(cells, run.n, shapes),
            opened=opened,
            then=stay,
            share=SHARE * len(PASSES),
        )
    )


@dataclass(frozen=True)
class PlacedLists:
    """Lists by place on the device: ranked (n, reach) int32; ids (n, active) int32 and sims (n, active) float32."""

    ranked: DeviceArray
    ids: DeviceArray
    sims: DeviceArray


class ResidentLayers:
    """The layers over n faces, by place.

    features: (n, d) float32 on the device; check: see ``Check``; keep: whether refined features stay there, by face.
    """

    def __init__(
        self,
        cupy: ModuleType,
        features: DeviceArray,
        lists: PlacedLists,
        hops: tuple[int, int],
        active: int,
        check: Check,
        *,
        keep: bool = False,
    ) -> None:
        self._cupy, self._features, self._lists = cupy, features, lists
        self._hops, self._active, self._check = hops, active, check
        self._n, self._width = int(features.shape[0]), 2 * int(features.shape[1])
        self._every = upload(cupy, np.arange(self._n), np.int32)
        self._staged = [cupy.empty((ENGINE_ROWS, self._width), np.float32) for _ in range(STAGED)]
        self._stream = cupy.cuda.Stream(non_blocking=True)
        self._tables: dict[str, DeviceArray] = {}
        self._turn = 0  # of the staged blocks: the one that is read next
        self._ahead = (0, 0)  # the places whose sums are added up there already
        self._whole: DeviceArray | None = None
        self._keep, self._written = keep, np.zeros(self._n, dtype=bool)
        cupy.cuda.get_current_stream().synchronize()  # other streams do not wait for this one

    def refined(self, faces: np.ndarray, places: np.ndarray, engines: Sequence[DeviceEngine]) -> np.ndarray:
        """Return the refined features (m, 2d) of ``faces`` (m,), at most ENGINE_ROWS, at ``places`` (m,).

        Quickest for places one behind the other, block after block. engines: of PASSES.
        """
        if not self._tables:
            self._layers(engines)
        m, start = len(places), int(places[0])
        tables = {"features": self._features, "x1": self._tables["x1"]}
        if np.array_equal(places, np.arange(start, start + m)):
            feeds = {name: place_of(table, start, start + m) for name, table in tables.items()}
            drawn = self._drawn(start, start + m)
        else:
            asked = upload(self._cupy, places, np.int32)
            rows = {name: self._gathered(table, asked) for name, table in tables.items()}
            feeds = {name: place_of(table, 0, m) for name, table in rows.items()}
            self._cupy.cuda.get_current_stream().synchronize()
            drawn = self._drawn_at(asked)
        out = self._cupy.empty((m, self._width), np.float32)
        engines[-1].run_there({**feeds, "drawn": place_of(drawn, 0, m)}, {"refined": place_of(out, 0, m)})
        if self._whole is not None:
            self._write("scatter_rows", out, upload(self._cupy, faces, np.int32), self._whole)
            self._written[faces] = True
        return download(out)

    def kept(self) -> list[DeviceArray]:
        """Return the refined features (n, 2d) of all faces on the device, or nothing where some are missing."""
        self._stream.synchronize()  # sums may have been begun that nobody asked for
        return [self._whole] if self._whole is not None and self._written.all() else []

    def _drawn(self, start: int, stop: int) -> DeviceArray:
        """Return the sums of places start..stop-1 that the last pass reads, and begin those of the next block."""
        add_up = self._similar(self._tables["h2"], self._tables["x1"])
        if self._ahead != (start, stop):
            self._add_up(add_up, slice(start, stop), self._turn)
        self._stream.synchronize()
        drawn = self._staged[self._turn]
        self._turn = (self._turn + 1) % STAGED
        self._ahead = (stop, min(stop + ENGINE_ROWS, self._n))
        if stop < self._n:  # beside what the engine computes
            self._add_up(add_up, slice(*self._ahead), self._turn)
        return drawn

    def _drawn_at(self, places: DeviceArray) -> DeviceArray:
        """Return the sums of ``places`` (m,) that the last pass reads."""
        self._ahead = (0, 0)
        with self._stream:
            self._similar(self._tables["h2"], self._tables["x1"])(places, self._staged[self._turn])
        self._stream.synchronize()
        return self._staged[self._turn]

    def _gathered(self, table: DeviceArray, places: DeviceArray) -> DeviceArray:
        """Return the rows of a table at ``places`` (m,)."""
        rows = self._cupy.empty((int(places.shape[0]), int(table.shape[1])), np.float32)
        self._write("gather_rows", table, places, rows)
        return rows

    def _write(self, name: str, rows: DeviceArray, where: DeviceArray, out: DeviceArray) -> None:
        """Gather rows at ``where`` (m,), or scatter them to there."""
        count, width = int(where.shape[0]), int(rows.shape[1])
        arguments = (rows, where, out, np.int64(count), np.int32(width))
        kernel(self._cupy, name)((min(count, BLOCKS),), (THREADS,), arguments)

    def _layers(self, engines: Sequence[DeviceEngine]) -> None:
        """Compute what the last pass reads of all faces: the tables x1 and h2."""
        near1, similar1, block1, similar2, _ = engines
        features = {"features": self._features}
        near = self._pass(near1, features, ("near1",))
        first = self._pass(
            similar1, features, ("h1", "near_drawn1"), "connected", self._connected(1, near.pop("near1"))
        )
        drawn = self._similar(first.pop("h1"), first.pop("near_drawn1"))
        block = self._pass(block1, features, ("x1", "near2"), "drawn", drawn)
        del drawn
        x1 = block.pop("x1")
        # The fixed graph is normalised twice, as published.
        second = self._pass(
            similar2, {"x1": x1}, ("h2",), "connected", self._connected(2, block.pop("near2"))
        )
        self._tables = {"x1": x1, **second}
        if self._keep:  # there were more tables before
            self._whole = self._cupy.empty((self._n, self._width), np.float32)

    def _pass(
        self,
        engine: DeviceEngine,
        inputs: Mapping[str, DeviceArray],
        outputs: tuple[str, ...],
        summed: str = "",
        add_up: Sum | None = None,
    ) -> dict[str, DeviceArray]:
        """Run a pass over all faces: ``inputs`` are tables, and its input ``summed`` is what ``add_up`` gives."""
        made = {name: self._cupy.empty((self._n, self._width), np.float32) for name in outputs}
        blocks = list(blocks_of(self._n, ENGINE_ROWS))
        if add_up is not None:
            self._add_up(add_up, blocks[0], 0)
        for at, block in enumerate(blocks):
            self._stream.synchronize()
            start, stop = block.start, min(block.stop, self._n)
            feeds = {name: place_of(table, start, stop) for name, table in inputs.items()}
            if add_up is not None:
                feeds[summed] = place_of(self._staged[at % STAGED], 0, stop - start)
                if at + 1 < len(blocks):  # beside what the engine computes
                    self._add_up(add_up, blocks[at + 1], (at + 1) % STAGED)
            engine.run_there(feeds, {name: place_of(table, start, stop) for name, table in made.items()})
        for table in made.values():
            self._check_table(table)
        return made

    def _add_up(self, add_up: Sum, block: slice, at: int) -> None:
        with self._stream:
            add_up(self._every[block], self._staged[at])

    def _connected(self, times: int, table: DeviceArray) -> Sum:
        lists, near = self._lists, (self._hops, self._active, times)
        return lambda places, out: launch_sum_connected(
            self._cupy, lists.ranked, lists.ids, lists.sims, table, places, *near, out
        )

    def _similar(self, directions: DeviceArray, table: DeviceArray) -> Sum:
        return lambda places, out: launch_sum_similar(
            self._cupy, self._lists.ranked, directions, table, places, self._hops, out
        )

    def _check_table(self, table: DeviceArray) -> None:
        """Let ``check`` see a table that holds NaN or infinity."""
        found = upload(self._cupy, np.zeros(1), np.int32)
        count = self._n * self._width
        grid = (min(BLOCKS, -(-count // THREADS)),)
        kernel(self._cupy, "count_not_finite")(grid, (THREADS,), (table, np.int64(count), found))
        if download(found)[0]:
            for block in blocks_of(self._n, ENGINE_ROWS):
                rows = download(table[block])
                self._check(rows, np.arange(block.start, block.start + len(rows)))


def place_of(table: DeviceArray, start: int, stop: int) -> Place:
    """Return where rows start..stop-1 of a table (n, w) float32 lie on the device."""
    width = int(table.shape[1])
    return Place(address(table, start * width), (stop - start, width))


def rows_by_place(
    cupy: ModuleType, vectors: np.ndarray, cells: Partition, resident: DeviceArrays | None
) -> DeviceArray:
    """Return ``vectors`` (n, d) float32 on the device by place, from those that stay there if they do."""
    n, d = vectors.shape
    rows, kept = cupy.empty((n, d), np.float32), kept_rows(vectors, resident)
    if kept is not None:
        arguments = (kept, upload(cupy, cells.order, np.int32), rows, np.int64(n), np.int32(d))
        kernel(cupy, "gather_rows")((min(n, BLOCKS),), (THREADS,), arguments)
        return rows
    places = upload(cupy, cells.place, np.int32)
    for start in range(0, n, UPLOAD_ROWS):
        part = upload(cupy, vectors[start : start + UPLOAD_ROWS], np.float32)
        count = int(part.shape[0])
        arguments = (part, places[start : start + count], rows, np.int64(count), np.int32(d))
        kernel(cupy, "scatter_rows")((min(count, BLOCKS),), (THREADS,), arguments)
    return rows


def lists_on_device(
    cupy: ModuleType,
    ids: np.ndarray,
    sims: np.ndarray,
    ranked: np.ndarray,
    cells: Partition,
    *,
    reach: int,
    active: int,
) -> PlacedLists:
    """Return the part of lists (n, k) by face that neighborhoods are made of, by place."""
    order, place = upload(cupy, cells.order, np.int32), upload(cupy, cells.place, np.int32)
    n = len(cells.order)

    def by_place(lists: np.ndarray, width: int, dtype: type[np.generic]) -> DeviceArray:
        lists = lists[:, :width]
        width = lists.shape[1]
        out, by_face = cupy.empty((n, width), dtype), upload(cupy, lists, dtype)
        last = (out, np.int32(width), np.int64(n * width))
        whole = dtype is np.int32
        arguments = (by_face, np.int32(width), order, *((place, *last) if whole else last))
        name = "lists_by_place" if whole else "numbers_by_place"
        grid = (min(BLOCKS, -(-n * width // THREADS)),)
        kernel(cupy, name, "rerank.cu")(grid, (THREADS,), arguments)
        return out

    return PlacedLists(
        by_place(ranked, reach, np.int32), by_place(ids, active, np.int32), by_place(sims, active, np.float32)
    )
