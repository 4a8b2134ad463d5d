"""A run from features to labels, stage by stage.

    features   read, checked and normalised once
    knn        nearest neighbors by faiss, or the lists of a file
    rerank     re-ranked lists, or those of a file
    refine     the engine turns every face's neighborhood into a refined feature
    links      each face to its nearest denser face, among refined features
    clusters   connected components

Which stages a system has, and in what order, stands in its ``flow.py``; what a stage needs of its surroundings is
the ``Run`` below: the checked features, the settings, the engine, and ``make``, which turns a function over blocks
of faces into a finished product, with progress and resume.
"""

import contextlib
import dataclasses
import hashlib
import json
import resource
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numba
import numpy as np

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import BLOCK_ROWS, Features, check_features
from fcdeploy.engine.bundle import Bundle, sha256_of
from fcdeploy.engine.onnxruntime import OnnxRuntimeEngine
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.graph.knn import KnnGraph, KnnSearch, choose_method
from fcdeploy.graph.lists import ListsFile, check_lists
from fcdeploy.runtime.progress import Progress
from fcdeploy.runtime.run_folder import Arrays, MemoryStore, RunFolder, Shapes, Store
from fcdeploy.systems import get_system
from fcdeploy.systems.settings import settings_from_dict

Work = Callable[[int, int], Arrays]  # (start, stop) -> the rows of every array
KNN_METHODS = ("auto", "exact", "ivf")
KNN_BLOCK = 8192
SCRATCH = ("vectors.npy", "tables.npz")  # quickly made again, and large
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Options:
    """What a user may choose for a run; None means what the bundle's recipe says.

    knn: 'auto', 'exact', 'ivf', or a file of neighbor lists; reranked: a file of re-ranked lists. k sets every
    k of the recipe. batch: neighborhoods an engine call at most. threads: 0 means all cores.
    """

    knn: str = "auto"
    reranked: Path | None = None
    k: int | None = None
    hops: tuple[int, int] | None = None
    tau: float | None = None
    inference: str = "exact"
    batch: int | None = None
    threads: int = 0


@dataclass(frozen=True)
class Result:
    """labels: (n,) int64, numbered by first appearance; summary: what ``fcdeploy cluster --json`` prints."""

    labels: np.ndarray
    summary: dict[str, Any]


def run_clustering(
    features: Features,
    bundle: Bundle,
    options: Options = Options(),
    *,
    truth: np.ndarray | None = None,
    run_dir: Path | str | None = None,
    quiet: bool = True,
) -> Result:
    """Cluster faces with a bundle.

    Raises InputError for anything that does not fit together: features of another width than the bundle's,
    broken rows, lists of other faces. ``truth`` (n,) adds ``quality`` to the summary. With ``run_dir`` every
    product is kept there and an interrupted run goes on where it stopped.
    """
    system = get_system(bundle.system)
    if features.dim != bundle.feature_dim:
        raise InputError(
            f"{features.name}: expected (n, {bundle.feature_dim}) features, found ({features.n}, {features.dim}); "
            f"{bundle.path} was exported for d = {bundle.feature_dim}."
        )
    recipe = settings_from_dict(dict(bundle.manifest["recipe"]), f"{bundle.path}/manifest.json")
    features = dataclasses.replace(features, normalize=recipe.features.normalize)
    settings, notes = recipe.for_run(features.n, k=options.k, hops=options.hops, tau=options.tau)
    for note in notes:
        warnings.warn(note, FcdeployWarning, stacklevel=2)
    progress = Progress(quiet)
    with contextlib.ExitStack() as stack:
        store: Store = stack.enter_context(RunFolder(run_dir)) if run_dir else MemoryStore()
        stack.enter_context(numba_threads(options.threads))
        run = Run(features, bundle, settings, options, store, progress)
        labels = system.cluster(run)
        for scratch in SCRATCH:
            store.drop(scratch)
        summary = _summary(labels, progress)
        if truth is not None:
            summary["quality"] = evaluate(labels, truth).as_dict()
        if run_dir:
            with atomic_file(Path(run_dir) / SUMMARY) as file:
                file.write(json.dumps(summary, indent=1).encode())
    return Result(labels, summary)


@dataclass
class Run:
    """What a flow works with; ``vectors`` (n, d) float32 and ``key`` are there after ``read_features``."""

    features: Features
    bundle: Bundle
    settings: Any
    options: Options
    store: Store
    progress: Progress

    @property
    def n(self) -> int:
        return self.features.n

    @property
    def knn_file(self) -> Path | None:
        """The file of neighbor lists to use instead of searching, if one was given."""
        return None if self.options.knn in KNN_METHODS else Path(self.options.knn)

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Count the time of the block as part of stage ``name``."""
        return self.progress.stage(name)

    def make(
        self,
        name: str,
        shapes: Shapes,
        made_of: dict[str, Any],
        worker: Callable[[], AbstractContextManager[Work]],
        *,
        block: int,
        text: str,
    ) -> Arrays:
        """Make the product ``name``, or take it from an earlier run that made it of the same things.

        shapes: its arrays, all over n faces. made_of: everything that decides its content; block sizes and
        threads do not. worker: opened only when there is work left; gives the function over blocks.
        """
        key = digest({"name": name, **made_of})
        finished = self.store.load(name, key)
        if finished is not None:
            return finished
        partial = self.store.begin(name, key, shapes)
        with worker() as work, self.progress.bar(text, self.n, partial.done) as bar:
            for start in range(partial.done, self.n, block):
                stop = min(start + block, self.n)
                for part, rows in work(start, stop).items():
                    partial.arrays[part][start:stop] = rows
                partial.commit(stop)
                bar.advance(stop - start)
        return partial.finish()

    def read_features(self) -> None:
        """Check all features and keep them normalised as ``vectors``; ``features_hash`` is of their bytes."""
        with self.stage("features"):
            check_features(self.features)
            self.features_hash = _hash_of(self.features)

            @contextlib.contextmanager
            def worker() -> Iterator[Work]:
                yield lambda start, stop: {"array": self.features.rows(start, stop)}

            self.vectors = self.make(
                "vectors.npy",
                {"array": ((self.n, self.features.dim), np.float32)},
                {"features": self.features_hash, "normalize": self.features.normalize},
                worker,
                block=BLOCK_ROWS,
                text="features",
            )["array"]

    def knn(
        self, name: str, vectors: np.ndarray, k: int, made_of: dict[str, Any], text: str, *, clip: bool
    ) -> tuple[KnnGraph, dict[str, Any]]:
        """Find the k nearest neighbors of every row of ``vectors`` (n, d) unit rows, the row itself first.

        clip: similarities are clipped to 0..1. Returns the lists and what they were made of.
        """
        method = choose_method("auto" if self.knn_file else self.options.knn, self.n)
        made_of = {**made_of, "k": k, "method": method, "clip": clip}

        @contextlib.contextmanager
        def worker() -> Iterator[Work]:
            search = KnnSearch(vectors, method, threads=self.options.threads)

            def work(start: int, stop: int) -> Arrays:
                ids, sims = search.search(start, stop, k)
                return {"ids": ids, "sims": np.clip(sims, 0, 1) if clip else sims}

            yield work

        arrays = self.make(
            name,
            {"ids": ((self.n, k), np.int32), "sims": ((self.n, k), np.float32)},
            made_of,
            worker,
            block=KNN_BLOCK,
            text=text,
        )
        return KnnGraph(arrays["ids"], arrays["sims"]), made_of

    def lists_from_file(
        self,
        name: str,
        path: Path,
        k: int | None,
        sims_of: Callable[[int, np.ndarray], np.ndarray],
        text: str,
    ) -> tuple[KnnGraph, dict[str, Any]]:
        """Read lists that were made elsewhere; the first ``k`` columns, or all.

        sims_of: (start, ids) -> similarities (m, k) float32, asked when the file has none. Returns the lists and
        what they were made of. Raises InputError when they are of other faces or too short.
        """
        lists = ListsFile(path)
        if lists.n != self.n:
            raise InputError(
                f"{path}: holds lists of {lists.n:,} faces; {self.features.name} has {self.n:,}."
            )
        if k is not None and lists.k < k:
            raise InputError(
                f"{path}: holds {lists.k} neighbors a face, {k} are needed; give --k {lists.k} or less."
            )
        k = k or lists.k
        made_of = {"file": sha256_of(path), "k": k, "features": self.features_hash}

        @contextlib.contextmanager
        def worker() -> Iterator[Work]:
            blocks = lists.blocks(KNN_BLOCK)
            at = 0

            def work(start: int, stop: int) -> Arrays:
                nonlocal at
                while True:  # a resumed run passes over the blocks behind it
                    begin, ids, sims = next(blocks)
                    if begin == start:
                        break
                checked = check_lists(ids[:, :k], start, self.n, str(path))
                values = sims_of(start, checked) if sims is None else sims[:, :k]
                return {"ids": checked, "sims": values}

            yield work

        arrays = self.make(
            name,
            {"ids": ((self.n, k), np.int32), "sims": ((self.n, k), np.float32)},
            made_of,
            worker,
            block=KNN_BLOCK,
            text=text,
        )
        return KnnGraph(arrays["ids"], arrays["sims"]), made_of

    def keep(self, name: str, arrays: Arrays, made_of: dict[str, Any]) -> Arrays:
        """Keep arrays of any length, already made, as the product ``name``."""
        key = digest({"name": name, **made_of})
        finished = self.store.load(name, key)
        if finished is not None:
            return finished
        partial = self.store.begin(
            name, key, {part: (array.shape, array.dtype) for part, array in arrays.items()}
        )
        for part, array in arrays.items():
            partial.arrays[part][:] = array
        return partial.finish()

    def check_finite(self, rows: np.ndarray, start: int, what: str) -> None:
        """Raise FcdeployError when a row (of faces start...) holds NaN or infinity."""
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if len(bad):
            faces = ", ".join(str(start + row) for row in bad[:5])
            raise FcdeployError(
                f"{self.bundle.path}: gave a {what} that is not finite for {len(bad):,} faces of "
                f"{start}..{start + len(rows) - 1} (face {faces}); nothing was linked."
            )

    def engine(self, name: str) -> AbstractContextManager[OnnxRuntimeEngine]:
        """Open one pass of the bundle."""
        return self.bundle.open(name, threads=self.options.threads)


@contextlib.contextmanager
def numba_threads(threads: int) -> Iterator[None]:
    """Let numba kernels use ``threads`` threads (0: all) inside the block."""
    before = numba.get_num_threads()
    most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    numba.set_num_threads(min(threads, most) if threads else most)
    try:
        yield
    finally:
        numba.set_num_threads(before)


def digest(fields: dict[str, Any]) -> str:
    """Return a hash of plain values that is the same whenever they are."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def peak_bytes() -> int:
    """Return the most memory this process has had in use, in bytes; pages of mapped files count while resident."""
    try:
        # Not ru_maxrss, which a child inherits from its parent.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _hash_of(features: Features) -> str:
    state = hashlib.sha256(str((features.array.shape, features.array.dtype)).encode())
    for start in range(0, features.n, BLOCK_ROWS):
        state.update(np.ascontiguousarray(features.array[start : start + BLOCK_ROWS]).data)
    return state.hexdigest()


def _summary(labels: np.ndarray, progress: Progress) -> dict[str, Any]:
    sizes = np.bincount(labels)
    return {
        "faces": len(labels),
        "clusters": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "peak_bytes": peak_bytes(),
        "stages": {
            name: {"seconds": seconds, "faces_per_s": len(labels) / seconds if seconds else 0.0}
            for name, seconds in progress.seconds.items()
        },
    }
