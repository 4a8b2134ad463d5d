"""What a flow works with: features, engines, settings and options, and ``compute``, which gives artifacts."""

import functools
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, Unpack

import numba
import numpy as np

from fcdeploy.clustering.copies import Copies
from fcdeploy.data.features import Features, hash_of
from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployError, FcdeployWarning, spoken
from fcdeploy.graph.cells import PER_ROOT, cell_count
from fcdeploy.graph.cuda import Copied, DeviceArrays, copied, resident_arrays
from fcdeploy.graph.faiss_library import import_faiss
from fcdeploy.graph.marks import new_scratch
from fcdeploy.graph.recall import Recall
from fcdeploy.graph.search import Room, Search, search_named
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.blocks import RELEASE_AT, Blocks, LocalBlocks
from fcdeploy.run.engines import Engines
from fcdeploy.run.given import GivenLists
from fcdeploy.run.keys import digest
from fcdeploy.run.memory import resident_bytes
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.stage import Stage
from fcdeploy.run.store import Arrays, Shapes, Store
from fcdeploy.run.summary import Figures

P = ParamSpec("P")
R = TypeVar("R")


class Follows(Protocol):
    """Says that a run goes behind another one, its driver's, and computes nothing but blocks for that."""

    identity: Mapping[str, object]  # provider and libraries of the driver, by which artifacts have their keys

    def collected(self, name: str, key: str, make: Callable[[], Arrays]) -> Arrays:
        """Return an artifact that the driver makes in one go, when it is there."""


class NotComputedError(Exception):
    """The arrays of an artifact were asked for in a survey, which computes none."""


@dataclass
class Run:
    """The surroundings of a flow.

    settings: the recipe, fitted to these faces. given: lists of neighbors from files, "knn" or "reranked"; search: the
    search for neighbors where none are given (None: as the options say). unit_rows: the title of a system that takes
    features as they are and whose similarities are inner products of them, None for others. keeps: whether the features
    are kept at the run's end, for who assigns new faces to its clusters. recall: of searches that
    were not exact, and searches: how neighbors were found, by name. opened: the execution provider of every pass that
    was opened. asked: the options as they were given. notes: sentences for the user, and figures: what else the summary
    says, by name; see ``note``. final: whether its clusters are the ones that the user gets, of which the user is told
    what limits did to them. copies: faces that are not computed on, and go with others, if there are any; stamp: of the
    features, when they were checked. grown: what else decides its artifacts when it continues from another run's, see
    ``fcdeploy.run.carried``. survey: whether artifacts are described only; planned: those described so far. blocks: who
    computes the blocks of stages (None: this process); follows: the driver that this run goes behind, if it does.
    copied_before: bytes that the process had copied to and from a GPU when the run began; copied_in: those copied in
    each stage.
    """

    features: Features
    engines: Engines
    settings: Any
    options: Options
    store: Store
    progress: Progress
    asked: Options = field(default_factory=Options)
    given: Mapping[str, GivenLists] = field(default_factory=dict)
    search: Search | None = None
    blocks: Blocks | None = None
    follows: Follows | None = None
    unit_rows: str | None = None
    keeps: bool = False
    final: bool = True
    survey: bool = False
    copies: Copies | None = None
    stamp: tuple[int, ...] | None = None
    grown: str = ""
    recall: dict[str, Recall] = field(default_factory=dict)
    searches: dict[str, dict[str, object]] = field(default_factory=dict)
    opened: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    figures: Figures = field(default_factory=Figures)
    planned: list[Artifact] = field(default_factory=list)
    copied_before: Copied = field(default_factory=lambda: replace(copied))
    copied_in: dict[str, Copied] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return self.features.n

    def note(self, sentence: str, **figures: Unpack[Figures]) -> None:
        """Tell the user something about this run, once, now and in the summary; ``figures`` stand there by name.

        A run that continues an earlier one says the same again: figures come from finished artifacts, not from the
        work of computing them.
        """
        sentence = spoken(sentence)
        if sentence in self.notes:
            return
        self.notes.append(sentence)
        self.figures.update(figures)
        warnings.warn(sentence, FcdeployWarning, stacklevel=3)

    def rows_of(self, faces: np.ndarray) -> np.ndarray:
        """Return the numbers (m,) of some ``faces`` (m,) among all rows of the features."""
        chosen = self.features.chosen
        return faces if chosen is None else chosen[faces]

    def labels_of_all(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (given,) int64 of all faces that the run began with, copies with those they go with."""
        return labels if self.copies is None else self.copies.labels_of_all(labels)

    @property
    def provider(self) -> str:
        """What evaluates the passes: the execution provider that is to be opened."""
        return self.engines.provider(self.options.device)

    @property
    def on_gpu(self) -> bool:
        """Whether the passes run on a GPU."""
        return self.engines.device(self.options.device) == "cuda"

    @cached_property
    def libraries(self) -> dict[str, str]:
        """The versions of the libraries that results may depend on, by name."""
        return libraries() | dict(self.engines.runtime)

    @cached_property
    def features_hash(self) -> str:
        """A hash of the features' bytes, and of which rows are faces here."""
        return hash_of(self.features)

    @cached_property
    def marks(self) -> np.ndarray:
        """Scratch marks of all faces, a row per thread, zero before and after every kernel that is handed them."""
        return new_scratch(self.n)

    @cached_property
    def resident(self) -> DeviceArrays | None:
        """What stays on the GPU from stage to stage, as long as the run is there; None without one."""
        return resident_arrays(gpu=self.on_gpu and not self.survey, vram=self.options.vram)

    def search_among(self, n: int) -> Search:
        """Return how neighbors among n rows are found."""
        if self.search is not None:
            return self.search
        options = self.options
        name = "auto" if "knn" in self.given else options.knn
        return search_named(name, n, recall=options.recall)

    def cells_among(self, n: int, per_root: int = PER_ROOT) -> int:
        """Return into how many cells n rows are partitioned, see ``cell_count``; IVF: always by PER_ROOT."""
        return cell_count(n, PER_ROOT if self.options.knn == "ivf" else per_root)

    def room(self, name: str) -> Room:
        """Return what a search for the artifact ``name`` may use."""
        options = self.options
        return Room(
            options.budget,
            self.on_gpu,
            options.vram,
            lambda: self.store.scratch_file(f"{name}.lists"),
            self.resident,
        )

    def key_of(self, name: str, made_from: Mapping[str, object]) -> str:
        """Return a key: of plain values, our code, the libraries and the device."""
        identity = self.identity if self.follows is None else self.follows.identity
        of = {"name": name, **identity, **made_from}
        return digest({**of, "grown": self.grown} if self.grown else of)

    @property
    def identity(self) -> dict[str, object]:
        """What evaluates the passes, and the versions of the libraries: what keys hold beside inputs and code."""
        return {"provider": self.provider, "libraries": self.libraries}

    @cached_property
    def shared(self) -> Blocks:
        """Who computes the blocks of stages."""
        return self.blocks or LocalBlocks(self.options)

    def _key_from(
        self,
        name: str,
        made_from: tuple[Artifact, ...],
        settings: Mapping[str, object],
        passes: tuple[str, ...],
    ) -> str:
        """Return the key that follows from artifacts, settings and the engine's passes."""
        decided = {
            "from": [artifact.key for artifact in made_from],
            "settings": dict(settings),
            "passes": self.engines.digest(passes) if passes else "",
        }
        return self.key_of(name, decided)

    def compute(self, stage: Stage) -> Artifact:
        """Return the artifact of a stage, which an earlier run may have computed or begun."""

        def key() -> str:
            return self._key_from(stage.name, stage.made_from, stage.settings, stage.all_passes)

        def work(artifact: Artifact) -> Arrays:
            arrays = self.store.load(stage.name, artifact.key)
            if arrays is None:
                # Before any engine of this one is opened.
                for needed in (*stage.made_from, *stage.through):
                    _ = needed.arrays
                visit = stage.visit.digest if stage.visit is not None else ""
                partial = self.store.begin(
                    stage.name, artifact.key, stage.shapes, visit, scratch=stage.scratch
                )
                self.shared.compute(stage, partial, self.engine, self.store, self.progress)
                arrays = partial.finish()
                self.drop(*stage.through)
            if stage.then is not None and self.follows is None:
                self.make_room()
                stage.then(arrays)
            self.make_room()
            return arrays

        return self._planned(
            Artifact(
                stage.name,
                stage.shapes,
                stage.all_passes,
                stage.scratch,
                key,
                self._or_refused(work),
                stage.about,
                stage.made_from,
                stage.through,
            )
        )

    def collect(
        self,
        name: str,
        make: Callable[[], Arrays],
        *,
        made_from: tuple[Artifact, ...] = (),
        settings: Mapping[str, object] | None = None,
        through: tuple[Artifact, ...] = (),
        shapes: Shapes | None = None,
        scratch: bool = False,
        then: Callable[[Arrays], None] | None = None,
        rows: Callable[[np.ndarray], Arrays] | None = None,
    ) -> Artifact:
        """Return an artifact computed in one go; arguments as of ``Stage``, shapes where they are known beforehand.

        rows: the arrays of some rows (m,) int32 while all others stay as they are, where it has such; see ``Extended``.
        """

        if (stored := self.stored_artifact(name, make, shapes, rows)) is not None:
            return stored

        def key() -> str:
            return self._key_from(name, made_from, settings or {}, passes)

        def work(artifact: Artifact) -> Arrays:
            arrays = self.store.load(name, artifact.key)
            if arrays is None and self.follows is not None:
                arrays = self.follows.collected(name, artifact.key, make)
            elif arrays is None:
                with self.shared.making(name, artifact.key):
                    made = make()
                arrays = self.keep(name, artifact.key, made, scratch=scratch)
                self.drop(*through)
            if then is not None and self.follows is None:
                then(arrays)
            self.make_room()
            return arrays

        passes = tuple(sorted({one for artifact in through for one in artifact.passes}))
        return self._planned(
            Artifact(
                name,
                shapes or {},
                passes,
                scratch,
                key,
                self._or_refused(work),
                made_from=made_from,
                through=through,
            )
        )

    def stored_artifact(
        self,
        name: str,
        make: Callable[[], Arrays],
        shapes: Shapes | None,
        rows: Callable[[np.ndarray], Arrays] | None,
    ) -> Artifact | None:
        """Return the artifact to use in place of what ``collect`` would compute; None where there is none."""
        return None

    def keep(self, name: str, key: str, made: Arrays, *, scratch: bool = False) -> Arrays:
        """Keep arrays under a name and a key; returns them as they are kept."""
        shapes = {part: (array.shape, array.dtype) for part, array in made.items()}
        partial = self.store.begin(name, key, shapes, scratch=scratch)
        for part, array in made.items():
            partial.arrays[part][:] = array
        return partial.finish()

    def _planned(self, artifact: Artifact) -> Artifact:
        self.planned.append(artifact)
        return artifact

    def _or_refused(self, work: Callable[[Artifact], Arrays]) -> Callable[[Artifact], Arrays]:
        """Return what computes an artifact, or in a survey what refuses to."""

        def refuse(artifact: Artifact) -> Arrays:
            raise NotComputedError(artifact.name)

        return refuse if self.survey else work

    def drop(self, *artifacts: Artifact) -> None:
        """Delete scratch artifacts that no later stage reads."""
        for artifact in artifacts:
            artifact.forget()
            self.store.drop(artifact.name)

    def make_room(self) -> None:
        """Let go of mapped pages, which are read again when needed, where most of the memory budget is taken."""
        if resident_bytes() > RELEASE_AT * self.options.budget:
            self.store.release_pages()

    @contextmanager
    def engine(self, name: str, share: int = 1) -> Iterator[Engine]:
        """Open one pass; share: how many hold device memory at the same time, each as much of it."""
        options = self.options
        held = self.resident.nbytes if self.resident is not None else 0
        vram = max(1, (options.vram - held) // share) if options.vram else 0
        with self.engines.open(
            name, threads=options.cores, device=options.device, vram=vram, share=share
        ) as engine:
            self.opened[name] = engine.provider
            yield engine

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the time of the block, and what it copies to and from a GPU, as part of stage ``name``."""
        before = replace(copied)
        try:
            with self.progress.stage(name):
                yield
        finally:
            here = self.copied_in.setdefault(name, Copied())
            here.there += copied.there - before.there
            here.back += copied.back - before.back

    def check_finite(self, rows: np.ndarray, faces: np.ndarray, what: str) -> None:
        """Raise FcdeployError when one of ``rows`` (m, w), of ``faces`` (m,), holds NaN or infinity."""
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(rows.sum()):  # of one number that is not finite it is not, either
                return
        bad = np.sort(faces[~np.isfinite(rows).all(axis=1)])
        if len(bad):
            shown = ", ".join(map(str, self.rows_of(bad[:5]))) + (", ..." if len(bad) > 5 else "")
            raise FcdeployError(
                f"{self.engines.path}: the engine gave a {what} that is not finite for {len(bad):,} of {len(rows):,} "
                f"faces (rows {shown} of {self.features.name}); stopped before linking."
            )

    def check_row(self, outputs: Arrays) -> None:
        """Raise FcdeployError when what an engine gave for a row that is no face's holds NaN or infinity."""
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise FcdeployError(
                f"{self.engines.path}: the engine gave values that are not finite for a placeholder row; stopped "
                "before linking."
            )

    def finite(self, outputs: Arrays, faces: np.ndarray, what: str) -> Arrays:
        """Return an engine's outputs, arrays (m, ...) of ``faces`` (m,), after ``check_finite``."""
        for output in outputs.values():
            self.check_finite(output.reshape(len(faces), -1), faces, what)
        return outputs


def libraries() -> dict[str, str]:
    """Return the versions of the libraries that all results may depend on, by name."""
    modules = np, numba, import_faiss()
    return {module.__name__: module.__version__ for module in modules}


def step(
    name: str,
) -> Callable[[Callable[Concatenate[Run, P], R]], Callable[Concatenate[Run, P], R]]:
    """Make a function a step of a flow: its time counts under ``name``, and an artifact that it returns is computed."""

    def of(function: Callable[Concatenate[Run, P], R]) -> Callable[Concatenate[Run, P], R]:
        @functools.wraps(function)
        def timed(run: Run, *args: P.args, **kwargs: P.kwargs) -> R:
            with run.stage(name):
                found = function(run, *args, **kwargs)
                if isinstance(found, Artifact) and not run.survey:
                    _ = found.arrays
                return found

        return timed

    return of
