"""PSE-GCN layer by layer: every pass once over all faces, sums over neighborhoods between them.

Between the layers faces are numbered by their place in the order of visits: tables are then written from front to back,
and a neighborhood's rows lie near each other. With ``--tables float16`` they are rounded to half precision.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployError
from fcdeploy.graph.aggregation_cuda import Sums, sums_on
from fcdeploy.graph.halves import LARGEST, bits_of, floats_from_halves, halves_from_floats
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.carried import rows_stay
from fcdeploy.run.partition import Partition, visit_to_write
from fcdeploy.run.run import Run
from fcdeploy.run.stage import Moved, Stage
from fcdeploy.run.store import Arrays, Shapes

ENGINE_ROWS = 4096  # faces per engine call: enough for full-speed matrix products, small enough for the cache
BESIDE_SUMS = 2  # an engine and the tables of the sums, which take half of the device memory each

Feeds = Callable[[np.ndarray, Sums], Arrays]  # of some places: the inputs of a pass


def lists_by_place(
    run: Run, vectors: Artifact, cells: Partition, knn: Artifact, ranked: Artifact
) -> Artifact:
    """Features and the part of the lists that neighborhoods are made of, places in the order of visits for faces."""
    near = run.settings.neighborhood

    def block(places: np.ndarray) -> Arrays:
        faces = cells.order[places]
        return {
            "ranked": cells.place[ranked["ids"][faces][:, : near.reach]],
            "ids": cells.place[knn["ids"][faces][:, : near.active]],
            "sims": knn["sims"][faces][:, : near.active],
            "features": vectors.array[faces],
        }

    return run.compute(
        Stage(
            name="lists",
            text="lists by place",
            block=block,
            shapes={
                "ranked": ((run.n, near.reach), np.int32),
                "ids": ((run.n, near.active), np.int32),
                "sims": ((run.n, near.active), np.float32),
                "features": ((run.n, run.features.dim), np.float32),
            },
            made_from=(vectors, knn, ranked, cells.artifact),
            settings={"reach": near.reach, "active": near.active},
            rows=run.n,
            scratch=True,
        )
    )


def shapes_of(run: Run, *names: str, half: bool = False) -> Shapes:
    """Tables of all faces, (n, 2d)."""
    return dict.fromkeys(names, ((run.n, 2 * run.features.dim), np.float16 if half else np.float32))


@dataclass(frozen=True)
class Layers:
    """The passes of layer-wise inference, in the order of the methods; lists: see ``lists_by_place``."""

    run: Run
    vectors: Artifact
    cells: Partition
    lists: Artifact

    def near1(self) -> Artifact:
        return self._layer(
            "near1", ("near1",), lambda places, sums: {"features": self._features(places)}, reach=4
        )

    def similar1(self, near: Artifact) -> Artifact:
        def feeds(places: np.ndarray, sums: Sums) -> Arrays:
            return {
                "features": self._features(places),
                "connected": self._connected(places, sums, 1, near["near1"]),
            }

        return self._layer("similar1", ("h1", "near_drawn1"), feeds, (near,), through=(near,), reach=3)

    def block1(self, similar: Artifact) -> Artifact:
        def feeds(places: np.ndarray, sums: Sums) -> Arrays:
            drawn = self._similar(places, sums, similar["h1"], similar["near_drawn1"])
            return {"features": self._features(places), "drawn": drawn}

        return self._layer("block1", ("x1", "near2"), feeds, (similar,), through=(similar,), reach=2)

    def similar2(self, first: Artifact) -> Artifact:
        def feeds(places: np.ndarray, sums: Sums) -> Arrays:
            return {
                "x1": floats_from_halves(rows_at(first["x1"], places)),
                # The fixed graph is normalised twice, as published.
                "connected": self._connected(places, sums, 2, first["near2"]),
            }

        return self._layer("similar2", ("h2",), feeds, (first,), reach=1)

    def refined(self, first: Artifact, second: Artifact, made_from: tuple[Artifact, ...]) -> Artifact:
        """The refined features (n, 2d) float32, by face again; first: of ``block1``, second: of ``similar2``."""
        run, near = self.run, self.run.settings.neighborhood

        def block(faces: np.ndarray, sums: Sums, engine: Engine) -> Arrays:
            places = self.cells.place[faces]
            feeds = {
                "features": self._features(places),
                "x1": floats_from_halves(rows_at(first["x1"], places)),
                "drawn": self._similar(places, sums, second["h2"], first["x1"]),
            }
            refined = engine.run(feeds)["refined"]
            run.check_finite(refined, faces, "refined feature")
            return {"refined": refined}

        return run.compute(
            Stage(
                name="refined",
                text="refinement, block2",
                block=block,
                shapes=shapes_of(run, "refined"),
                made_from=made_from,
                settings={"hops": list(near.hops), "active": near.active, "tables": run.options.tables},
                passes=("block2",),
                through=(self.lists, first, second),
                rows=run.n,
                carry=rows_stay,
                size=ENGINE_ROWS,
                visit=visit_to_write(self.cells, run.n, shapes_of(run, "refined")),
                opened=lambda: sums_on(gpu=run.on_gpu, vram=run.options.vram, resident=run.resident),
                share=BESIDE_SUMS,
            )
        )

    def _layer(
        self,
        name: str,
        outputs: tuple[str, ...],
        feeds: Feeds,
        made_from: tuple[Artifact, ...] = (),
        through: tuple[Artifact, ...] = (),
        *,
        reach: int,
    ) -> Artifact:
        """Run the pass ``name`` over all places; its tables (n, 2d) are scratch.

        reach: how many neighborhoods away from a refined face they are read.
        """
        run = self.run
        half = run.options.tables == "float16"

        def block(places: np.ndarray, sums: Sums, engine: Engine) -> Arrays:
            tables = run.finite(engine.run(feeds(places, sums)), self.cells.order[places], "value")
            return {part: halved(run, rows) for part, rows in tables.items()} if half else tables

        return run.compute(
            Stage(
                name=name,
                text=f"refinement, {name}",
                block=block,
                shapes=shapes_of(run, *outputs, half=half),
                made_from=(self.vectors, self.lists, *made_from),
                settings={"tables": run.options.tables},
                passes=(name,),
                through=through,
                rows=run.n,
                size=ENGINE_ROWS,
                opened=lambda: sums_on(gpu=run.on_gpu, vram=run.options.vram, resident=run.resident),
                share=BESIDE_SUMS,
                scratch=True,
                needed=lambda moved: self._read_for_new(moved, reach),
            )
        )

    def _read_for_new(self, moved: Moved, reach: int) -> np.ndarray:
        """The places (m,) int32 in up to ``reach`` neighborhoods from a new face, whose rows alone are refined."""
        hops, ranked = self.run.settings.neighborhood.hops, self.lists["ranked"]
        if moved.stored("refined") is None:
            return np.arange(self.run.n, dtype=np.int32)
        reached = np.zeros(self.run.n, bool)
        reached[self.cells.place[np.flatnonzero(moved.before < 0)]] = True
        for _ in range(reach):
            for width in (hops[0], hops[1] + 1):  # a neighborhood's first hop, and what is behind it
                for some in moved.parts(np.flatnonzero(reached)):
                    reached[ranked[some, :width]] = True
        return np.flatnonzero(reached).astype(np.int32)

    def _features(self, places: np.ndarray) -> np.ndarray:
        return rows_at(self.lists["features"], places)

    def _connected(self, places: np.ndarray, sums: Sums, times: int, table: np.ndarray) -> np.ndarray:
        """Sums (m, 2d) over the rows that the fixed graph connects to each place, normalised ``times`` times."""
        near = self.run.settings.neighborhood
        ranked, ids, sims = (self.lists[part] for part in ("ranked", "ids", "sims"))
        return sums.sum_connected(
            ranked, ids, sims, places, near.hops, near.active, times, bits_of(table), self.run.marks
        )

    def _similar(
        self, places: np.ndarray, sums: Sums, directions: np.ndarray, table: np.ndarray
    ) -> np.ndarray:
        """Sums (m, 2d) over the rows of a neighborhood, weighted by the similarity of their directions."""
        hops = self.run.settings.neighborhood.hops
        return sums.sum_similar(
            self.lists["ranked"], places, hops, bits_of(directions), bits_of(table), self.run.marks
        )


def rows_at(table: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the rows (m, w) of a table (n, w) at ascending ``places`` (m,): a view where these follow each other."""
    first, last = int(places[0]), int(places[-1])
    return table[first : last + 1] if last - first + 1 == len(places) else table[places]


def halved(run: Run, rows: np.ndarray) -> np.ndarray:
    """Round a table to half precision; raises FcdeployError for values too large for it."""
    if (largest := np.abs(rows).max()) > LARGEST:
        raise FcdeployError(
            f"{run.engines.path}: has activations up to {largest:.3g}, too large for float16; give --tables float32."
        )
    return halves_from_floats(rows)
