"""New faces to the clusters of a run folder, each by the system's own link rule against the stored faces.

As hdbscan's ``approximate_predict``: stored faces and clusters stay as they are, and labels are not necessarily those
that clustering all faces together would give. The folder is read only.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from fcdeploy.data.features import Features, features_from_array
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.threads import threads_limited
from fcdeploy.run.extended import Extended, Offers
from fcdeploy.run.options import MERGE, Options, check_values
from fcdeploy.run.progress import Progress
from fcdeploy.run.store import MemoryStore
from fcdeploy.runtime.stored import open_stored
from fcdeploy.systems import get_system

ROOM = 256  # new faces that are computed together at most
FEW = 16  # faces that one thread computes


@dataclass(frozen=True)
class Assigned:
    """The clusters of m new faces.

    - labels: (m,) int64, numbers of stored clusters; -1 for none, or the numbers of ``alone`` new clusters.
    - similarity: (m,) float32, strength of the deciding link, or of the strongest rejected one if there is none; a
      probability for systems that classify links, see docs/explanation/assigning.md.
    - margin: (m,) float32, strength of the best neighbor in the cluster minus that of the best in any other cluster;
      NaN if no neighbor is in another cluster.
    """

    labels: np.ndarray
    similarity: np.ndarray
    margin: np.ndarray
    alone: int = 0

    @property
    def matched(self) -> int:
        """How many faces are in a stored cluster."""
        return int((self.labels >= 0).sum()) - self.alone

    def with_new(self, first: int) -> "Assigned":
        """Give every face in no cluster one of its own, from number ``first`` on."""
        labels, none = self.labels.copy(), np.flatnonzero(self.labels < 0)
        labels[none] = first + np.arange(len(none))
        return Assigned(labels, self.similarity, self.margin, len(none))


class Assigner:
    """Assigns new faces to the clusters of a finished run, call after call; threads may share it.

    Opening reads the stored faces and computes once what the run did not keep, in seconds to minutes; a face then takes
    milliseconds. Threads take turns, and each call uses ``threads`` cores. Use it in a ``with``, or ``close`` it.
    Pickled, as for a worker process, it is the folder's path: the copy opens the folder anew, as it is then.

    - run_dir: the folder of a finished run.
    - engine: the engine bundle, if it was moved since the run.
    - threads, device, memory (bytes): as in ``fcdeploy.cluster``.
    - progress: whether progress bars are shown on stderr.

    Raises InputError if something is missing in the folder, which the message names.
    """

    def __init__(
        self,
        run_dir: Path | str,
        *,
        engine: Path | str | None = None,
        threads: int = 0,
        device: str | None = None,
        memory: int = 0,
        progress: bool = False,
    ) -> None:
        self._lock = threading.Lock()
        limits = Options(threads=threads, device=device, memory=memory)
        check_values(limits)
        # Absolute, as a copy in another process may stand in another folder.
        self._opened = (
            Path(run_dir).absolute(),
            None if engine is None else Path(engine).absolute(),
            threads,
            device,
            memory,
            progress,
        )
        stored = open_stored(run_dir, engine)
        options = stored.options(limits)
        stored.bundle.check_device(device)
        self.path, self.dim = stored.path, stored.state.dim
        self._normalize, self._cores = stored.state.normalize, options.cores
        self._merges = options.duplicates == MERGE
        self._labels = np.array(stored.rows.labels[stored.rows.chosen])
        self.next_label = stored.state.next_label
        shown = Progress(not progress)
        self._run: Extended | None = Extended(
            stored.features(),
            stored.bundle,
            stored.settings,
            options,
            MemoryStore(),
            shown,
            stamp=(),
            stored=stored.arrays,
            spare=ROOM,
        )
        with contextlib.ExitStack() as undo:
            undo.callback(self.close)
            with threads_limited(self._cores), told_of_compiling(shown.compiling):
                self._rule = get_system(stored.bundle.system).assign(self._run)
            undo.pop_all()

    def __enter__(self) -> "Assigner":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[..., "Assigner"], tuple[object, ...]]:
        if self._run is None:
            raise FcdeployError(f"{self.path}: this Assigner is closed, and cannot be pickled; open another.")
        return _reopened, self._opened

    def close(self) -> None:
        """Free the engines and the arrays; the last call ends first."""
        with self._lock:
            if self._run is not None:
                self._run.close()
                self._run = None

    def assign(self, features: object) -> Assigned:
        """Assign faces (m, d), an array or what ``fcdeploy.cluster`` takes for one; rows need not be normalised.

        What is said of a face does not depend on the others, but for NSR-FC's batch-wise re-scoring. Raises InputError
        for features of another width, and for rows that hold NaN or infinity, or only zeros.
        """
        opened = features_from_array(features, self.dim)
        return self.assign_features(opened)

    def assign_features(self, features: Features) -> Assigned:
        """Assign faces that were opened; see ``assign``."""
        parts = [self._assign(rows) for rows in self._blocks(features)]
        return Assigned(
            np.concatenate([part.labels for part in parts]),
            np.concatenate([part.similarity for part in parts]),
            np.concatenate([part.margin for part in parts]),
        )

    def _blocks(self, features: Features) -> Iterator[np.ndarray]:
        if features.dim != self.dim:
            raise InputError(
                f"{features.name}: expected (n, {self.dim}) features, found ({features.n}, {features.dim}); "
                f"{self.path} holds faces of d = {self.dim}."
            )
        for start in range(0, features.n, ROOM):
            rows = features.raw(start, min(start + ROOM, features.n))
            with np.errstate(over="ignore", invalid="ignore"):
                norms = np.linalg.norm(rows, axis=1)
            bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
            if len(bad):
                at = start + int(bad[0]) if features.chosen is None else int(features.chosen[start + bad[0]])
                raise InputError(
                    f"{features.name}: row {at}, counted from 0, holds NaN, infinite values or zeros only; remove or "
                    "recompute this face."
                )
            if self._normalize:
                rows /= norms[:, None]
            yield rows

    def _assign(self, vectors: np.ndarray) -> Assigned:
        # A few faces are done sooner than a team of threads has met, above all where others use the cores, too.
        with self._lock, threads_limited(self._cores if len(vectors) > FEW else 1):
            if self._run is None:
                raise FcdeployError(f"{self.path}: this Assigner is closed; open another.")
            rows = self._run.add(vectors)
            offers = self._rule(rows, self._labels)
            found = assigned_from_offers(offers, self._labels)
            return self._with_copies(found, offers, vectors) if self._merges else found

    def _with_copies(self, found: Assigned, offers: Offers, vectors: np.ndarray) -> Assigned:
        """Give a face that is equal to a stored one the label of that, as when they are clustered together."""
        assert self._run is not None
        labels, similarity = found.labels.copy(), found.similarity.copy()
        ids = np.maximum(offers.ids, 0)
        first = self._run.stored_vectors[:, 0]
        row, at = np.nonzero(
            (offers.ids >= 0) & (first[ids] == vectors[:, :1])
        )  # few are left to be compared
        for new, other in zip(row.tolist(), ids[row, at].tolist(), strict=True):
            if self._labels[other] >= 0 and np.array_equal(self._run.stored_vectors[other], vectors[new]):
                labels[new], similarity[new] = self._labels[other], 1
        return Assigned(labels, similarity, found.margin)


def _reopened(
    run_dir: Path, engine: Path | None, threads: int, device: str | None, memory: int, progress: bool
) -> Assigner:
    return Assigner(run_dir, engine=engine, threads=threads, device=device, memory=memory, progress=progress)


def assigned_from_offers(offers: Offers, labels: np.ndarray) -> Assigned:
    """Take each face to the cluster of the offer that the link rule took; labels: (n,) int64 of the stored faces."""
    m = len(offers.place)
    at = np.arange(m)
    known = offers.ids >= 0
    of = np.where(known, labels[np.where(known, offers.ids, 0)], -1)
    strengths = np.where(known & np.isfinite(offers.strengths), offers.strengths, -np.inf)
    if not of.shape[1]:
        empty = np.full(m, np.nan, np.float32)
        return Assigned(np.full(m, -1, np.int64), empty, empty)
    taken = np.where(offers.place >= 0, of[at, offers.place], -1)
    best = strengths.argmax(axis=1)
    value = np.where(np.isnan(offers.value), strengths[at, best], offers.value)
    own = np.where(taken >= 0, taken, np.where(of[at, best] >= 0, of[at, best], -2))
    ahead = np.where(of == own[:, None], strengths, -np.inf).max(axis=1)
    behind = np.where((of != own[:, None]) & (of >= 0), strengths, -np.inf).max(axis=1)
    both = np.isfinite(ahead) & np.isfinite(behind)
    with np.errstate(invalid="ignore"):
        margin = np.where(both, ahead - behind, np.nan)
    value = np.where(np.isfinite(value), value, np.nan)
    return Assigned(taken.astype(np.int64), value.astype(np.float32), margin.astype(np.float32))
