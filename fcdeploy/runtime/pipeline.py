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
import inspect
import json
import os
import resource
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numba
import numpy as np

from fcdeploy import machine
from fcdeploy.clustering.copies import Copies, copies_from
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.atomic import atomic_file
from fcdeploy.data.features import BLOCK_ROWS, Features, check_features, check_unit_rows, hash_of, stamp_of
from fcdeploy.data.scratch import scratch_folder
from fcdeploy.engine.bundle import MANIFEST, Bundle, sha256_of
from fcdeploy.engine.tensors import Engine
from fcdeploy.errors import FcdeployError, FcdeployWarning, InputError
from fcdeploy.graph.alike import FEWEST, alike_sentence, random_pairs
from fcdeploy.graph.cells import Cells, assign_cells, cell_count, train_cells
from fcdeploy.graph.chosen_lists import ChosenLists
from fcdeploy.graph.faiss_library import import_faiss
from fcdeploy.graph.given_lists import check_lists_of
from fcdeploy.graph.kernels import told_of_compiling
from fcdeploy.graph.knn import PROBES, KnnGraph, KnnSearch, choose_method, similarities_of_lists
from fcdeploy.graph.lists import ListsFile, RowsInOrder, check_lists, mostly_without_self
from fcdeploy.graph.recall import Recall, measure_recall
from fcdeploy.graph.threads import threads_limited
from fcdeploy.runtime.bad_rows import (
    IN_NO_CLUSTER,
    check_on_bad,
    counts_of_rows,
    labels_with_bad_rows,
)
from fcdeploy.runtime.checked import Checked, checked_rows
from fcdeploy.runtime.computed import what_was_computed
from fcdeploy.runtime.copies import (
    MERGE,
    ROWS,
    as_few_as_fit,
    check_duplicates,
    equal_copies,
    keep_rows,
    near_copies_of,
    rows_key,
    rows_of,
    tell_of_copies,
)
from fcdeploy.runtime.keys import digest
from fcdeploy.runtime.progress import Progress
from fcdeploy.runtime.run_folder import (
    SCRATCH_FOLDER,
    SUMMARY,
    Arrays,
    MemoryStore,
    RunFolder,
    Shapes,
    Store,
    expected_bytes,
)
from fcdeploy.systems import NAMES, System, Weights, check_recipe, get_system
from fcdeploy.systems.settings import setting_of, settings_from_dict

AnyRun = TypeVar("AnyRun", bound="Run")
Work = Callable[[np.ndarray], Arrays]  # faces (m,) int32 -> their rows of every array
KNN_METHODS = ("auto", "exact", "ivf")
BLOCK = 8192  # faces
SYSTEM_OPTIONS = ("hops", "tau", "reranked", "min_probability", "uncovered", "link")  # not every system's
UNCOVERED = ("singleton", "drop")
TABLES = ("float32", "float16")
LINKS = ("density-peaks", "pairs")
INFERENCES = ("auto", "exact", "layerwise")
PUBLISHED = "exact"  # the inference that computes the published function
LISTS_BYTES = 256 << 20  # of a file of lists that are read at a time
ENTRY_BYTES = 16  # of an id and a similarity in it, at most
LEAST = {"k": 1, "batch": 1, "threads": 0, "memory": 0, "vram": 0}
KNN = "knn.npz"
EXACT_INFERENCE_LIMIT = 20_000  # faces up to which --inference auto computes the published function
MOST = 0.5  # share of all faces in one cluster beyond which a note asks whether they are of one person
INDEX_SHARE = 3  # an index larger than a third of the memory budget keeps its lists on disk


@dataclass(frozen=True)
class Options:
    """What a user may choose for a run; None means what the bundle's recipe says.

    knn: 'auto', 'exact', 'ivf', or a file of neighbor lists; reranked: a file of re-ranked lists. k sets every
    k of the recipe. min_probability: what a link needs of a network that accepts or refuses it, beyond being
    accepted. inference: 'exact', 'layerwise' or 'auto'. batch: neighborhoods an engine call at most. threads: 0 means
    all cores that this process may use (its affinity and CPU quota). memory: bytes that a run should get along with; 0
    means half of what this process may use (the machine's memory, or the limit of its container). uncovered: what
    becomes of faces that no cluster was found for, 'singleton' or 'drop' (-1); None means 'singleton'. device: 'cpu'
    or 'cuda', where the engine runs; None means where it can, the CPU first. vram: bytes of device memory to get
    along with; 0 means what is there. tables: 'float32' or, rounded, 'float16', for what is kept between the layers of
    layer-wise inference. link: how clusters come about where there is a choice, 'density-peaks' or 'pairs'. scratch:
    the folder for what does not fit into memory, None for one on a disk. duplicates: 'merge' lets equal rows, and
    near-copies that fill neighbor lists, count once and have one label; 'as-published' computes on all rows as they
    are.
    """

    knn: str = "auto"
    reranked: Path | None = None
    k: int | None = None
    hops: tuple[int, int] | None = None
    tau: float | None = None
    min_probability: float | None = None
    inference: str = "auto"
    batch: int | None = None
    threads: int = 0
    memory: int = 0
    uncovered: str | None = None
    device: str | None = None
    vram: int = 0
    tables: str = "float32"
    link: str | None = None
    scratch: Path | None = None
    duplicates: str = MERGE

    @property
    def lists(self) -> dict[str, Path]:
        """Files of lists that were given, by the options that name them."""
        given = {"--knn": None if self.knn in KNN_METHODS else Path(self.knn), "--reranked": self.reranked}
        return {name: path for name, path in given.items() if path is not None}

    @property
    def cores(self) -> int:
        """The threads to use: no more than there are cores for this process."""
        return machine.threads_for(self.threads)

    @property
    def budget(self) -> int:
        """The memory budget in bytes."""
        return self.memory or machine.memory() // 2


@dataclass(frozen=True)
class Result:
    """labels: (n,) int64, numbered by first appearance, -1 in no cluster; summary: what ``cluster --json`` prints.

    Labels are of all rows, those of copies and of bad rows among them.
    """

    labels: np.ndarray
    summary: dict[str, Any]


def run_clustering(
    features: Features,
    bundle: Bundle,
    options: Options = Options(),
    *,
    truth: np.ndarray | None = None,
    unknown: str = "ignore",
    on_bad: str = "stop",
    bad_list: Path | None = None,
    run_dir: Path | str | None = None,
    scratch_dir: Path | str | None = None,
    quiet: bool = True,
) -> Result:
    """Cluster faces with a bundle.

    Raises InputError for anything that does not fit together: features of another width than the bundle's,
    lists of other faces. on_bad: what becomes of rows with NaN, infinity or no direction: 'stop' raises InputError,
    with 'skip' they are in no cluster (-1), with 'zero' each is in one of its own; all are listed in the file
    ``bad_list``, where one is named. ``truth`` (n,) adds ``quality`` to the summary; ``unknown`` says what of its -1,
    see ``evaluate``. With ``run_dir`` every product is kept there and an interrupted run goes on where it stopped;
    without it, what does not fit into half of the memory budget lies in a folder that is removed at the end, in
    ``options.scratch`` or ``scratch_dir``, where the output goes; see ``scratch_folder``.
    """
    check_on_bad(on_bad)
    asked = options
    if run_dir:
        check_not_kept_in(Path(run_dir), options)  # before the lists are compared with the features
    system, features, settings, options, _ = prepare(features, bundle, options)
    products = [*system.products(features.n, bundle.weights, settings, options), *system.unsized, ROWS]
    if run_dir:
        check_not_kept_in(Path(run_dir), options, features, products)
    progress = Progress(quiet)
    with progress.stage("features"), told_of_compiling(progress.compiling):
        checked = checked_rows(features, options.duplicates, on_bad, bad_list, IN_NO_CLUSTER)
    with contextlib.ExitStack() as stack:
        folder = Path(run_dir) if run_dir else None
        if (
            folder is None
            and sum_of_products(system, features.n, bundle, settings, options) > options.budget // 2
        ):
            folder = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(
                        prefix=SCRATCH_FOLDER, dir=scratch_folder(options.scratch, scratch_dir)
                    )
                )
            )
        store: Store = MemoryStore()
        if folder:
            store = stack.enter_context(RunFolder(folder))
            store.check_free(products)
            if run_dir:
                store.claims.claim(SUMMARY)
        stack.enter_context(threads_limited(options.cores))
        stack.enter_context(told_of_compiling(progress.compiling))
        run = begin_run(checked, bundle, asked, store, progress, Run)
        if checked.told:
            run.notes.insert(0, checked.told)  # which the user has been told by now
        store.describe(what_was_computed(run))
        found = system.cluster(run)
        store.drop_scratch()
        note_extremes(
            found, run
        )  # of different faces: a thousand copies of one are no sign of a wrong threshold
        labels = labels_with_bad_rows(run.labels_of_all(found), checked.scan, on_bad)
        summary = _summary(labels, run)
        store.describe(summary["computed"])
        if bad := len(checked.scan.bad):
            summary |= counts_of_rows(checked.scan)
            if on_bad == "skip":
                summary["faces"] -= bad
                if others := summary.pop("uncovered") - bad:
                    summary["uncovered"] = others
        if truth is not None:
            summary["quality"] = evaluate(labels, truth, unknown=unknown).as_dict()
        if run_dir:
            with atomic_file(Path(run_dir) / SUMMARY) as file:
                file.write(json.dumps(summary, indent=1).encode())
    return Result(labels, summary)


def begin_run(
    checked: Checked, bundle: Bundle, options: Options, store: Store, progress: Progress, kind: type["AnyRun"]
) -> "AnyRun":
    """Begin a run over faces of which copies count once, and tell the user of them; see ``Options.duplicates``.

    The run's ``labels_of_all`` gives labels to all ``checked.faces``.
    """
    faces = checked.faces

    def opened(copies: Copies | None, prepared: Any) -> tuple[AnyRun, list[str]]:
        _, features, settings, fitted, notes = prepared
        run = kind(features, bundle, settings, fitted, store, progress, asked=options)
        run.copies, run.stamp = copies, checked.stamp
        return run, notes

    def prepared(chosen: np.ndarray) -> Any:
        return prepare(faces.select(chosen), bundle, options)

    together = equal_copies(checked.equal, options)
    if together is None:
        copies, run, notes = None, *opened(None, prepare(faces, bundle, options))
    elif options.lists:
        copies, run, notes = together, *opened(together, prepare(faces, bundle, options))
    else:
        copies, found = as_few_as_fit(together, prepared)
        run, notes = opened(copies, found)
    system = get_system(bundle.system)
    near = None
    if options.duplicates == MERGE:
        key = rows_key(run)
        if not options.lists and (near := near_copies_of(system, run)) is not None:
            made = (*run.products, *system.unsized) if "vectors" in run.__dict__ else ()
            alone = copies if copies is not None else copies_from(np.arange(faces.n, dtype=np.int32))
            copies, found = as_few_as_fit(alone.joined(near.leader), prepared)
            for name in made:
                store.drop(name)  # made of all faces, just now
            told = run.notes, run.figures  # of all faces: that they are alike, for example
            run, notes = opened(copies, found)
            run.notes, run.figures = told
        keep_rows(run, key, faces, copies, near.filled if near is not None else 0)
    tell_of_copies(run, faces.name, together, copies, near)
    for note in notes:  # behind: k may be more than the faces that are left
        run.note(note)
    return run


def prepare(
    features: Features, bundle: Bundle, options: Options
) -> tuple[System, Features, Any, Options, list[str]]:
    """Fit features, bundle and options together; with the system, its settings for this run, and notes for the user.

    Everything that can be found wrong before hours of work is found here, but for the values of the features.
    """
    system = get_system(bundle.system, f"{bundle.path}/{MANIFEST}")
    if features.dim != bundle.feature_dim:
        raise InputError(
            f"{features.name}: expected (n, {bundle.feature_dim}) features, found ({features.n}, {features.dim}); "
            f"{bundle.path} was exported for d = {bundle.feature_dim}."
        )
    recipe = settings_from_dict(dict(bundle.manifest["recipe"]), f"{bundle.path}/{MANIFEST}")
    check_networks(system, bundle, recipe)
    check_options(system, options)
    if refused := system.refusal(bundle.weights, options):
        raise InputError(f"{refused}.")
    given = {"hops": options.hops, "tau": options.tau, "link": options.link, "weights": bundle.weights}
    asked = inspect.signature(recipe.for_run).parameters  # each system has its own settings of a run
    replaced = {name: value for name, value in given.items() if name in asked}
    settings, notes = recipe.for_run(features.n, k=options.k, **replaced)
    inference = choose_inference(system, options.inference, features.n, bundle.passes)
    if options.inference == "auto" and inference != PUBLISHED:
        notes = [
            *notes,
            f"inference is {inference}, which is quicker and not the published function, for more than "
            f"{EXACT_INFERENCE_LIMIT:,} faces; give --inference {PUBLISHED} for that.",
        ]
    options = dataclasses.replace(options, inference=inference)
    bundle.check_device(options.device)
    if options.tables != "float32" and options.inference != "layerwise":
        notes = [*notes, f"--tables {options.tables} changes nothing: inference is {options.inference}."]
    if options.vram and bundle.device(options.device) == "cpu":
        notes = [*notes, "--vram changes nothing: the engine runs on the CPU."]
    bundle.check_files()
    for name in passes_of_run(system, settings, bundle.weights, options):
        bundle.file(name)  # the manifest of somebody else's bundle may leave one out
    if options.knn not in KNN_METHODS:
        settings, more = system.fit_lists(settings, open_lists(Path(options.knn), features).k, options.knn)
        notes = [*notes, *more]
        k = system.products(features.n, bundle.weights, settings, options)["knn.npz"]["ids"][0][1]

        def possible(k: int) -> bool:
            try:
                recipe.for_run(features.n, k=k, **replaced)
            except InputError:
                return False
            return True

        lists = open_lists(Path(options.knn), features, k, possible)
        unit = recipe.features.normalize
        check_lists_of(lists, features, unit=unit, sorted_later=sorts_lists(system, lists))
    if options.reranked is not None:
        lists = open_lists(options.reranked, features)
        settings.check_reranked(lists.k, str(options.reranked))
        check_lists_of(lists, features, reranked=True)
    return (
        system,
        dataclasses.replace(features, normalize=recipe.features.normalize),
        settings,
        options,
        notes,
    )


def check_networks(system: System, bundle: Bundle, recipe: Any) -> None:
    """Raise InputError unless a bundle's networks belong together in its system, and its recipe is for them.

    Exported ones do; the manifest of somebody else's bundle may say anything.
    """
    file = bundle.path / MANIFEST
    for name, widths in bundle.weights.items():
        known = system.networks[name].example if name in system.networks else {}
        found, wanted = ({key: type(width) for key, width in of.items()} for of in (widths, known))
        if found != wanted:
            raise InputError(
                f"{file}: '{name}' with the widths {', '.join(widths)} is no network of {system.title}; "
                f"{bundle.remake}."
            )
    if problem := system.problem(bundle.weights):
        raise InputError(f"{file}: {problem}; {bundle.remake}.")
    check_recipe(system, recipe, bundle.weights, str(file), bundle.remake)


def check_not_kept_in(
    run_dir: Path, options: Options, features: Features | None = None, products: Collection[str] = ()
) -> None:
    """Raise InputError when lists are given that lie in the run folder itself, which would write over them.

    features are refused where a run that keeps ``products`` would.
    """
    file = Path(features.name).resolve() if features is not None else None
    if (
        features is not None
        and file is not None
        and file.name in products
        and file.parent == run_dir.resolve()
    ):
        raise InputError(
            f"{features.name}: lies in the run folder, which would write over it; choose another --run-dir."
        )
    for name, given in options.lists.items():
        if given.resolve().parent == run_dir.resolve():
            raise InputError(
                f"{name} {given}: lies in the run folder, which takes up its own lists again without being told; "
                f"leave {name} out, or choose another --run-dir."
            )


def check_options(system: System, options: Options) -> None:
    """Raise InputError when an option is given that the system does not have, or of an impossible value."""
    for name in SYSTEM_OPTIONS:
        if getattr(options, name) is not None and name not in system.options:
            *several, last = [other.title for other in map(get_system, NAMES) if name in other.options]
            having = f"{', '.join(several)} and {last}" if several else last
            raise InputError(
                f"--{name.replace('_', '-')} does not apply to {system.title}, only to {having}."
            )
    for name, least in LEAST.items():
        value = getattr(options, name)
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: should be {least} or more.")
    if options.hops is not None and [type(hop) for hop in options.hops] != [int, int]:
        raise InputError(f"--hops {options.hops}: should be two whole numbers, as in 80,10.")
    if options.min_probability is not None and not 0 <= options.min_probability <= 1:
        raise InputError(f"--min-probability {options.min_probability}: is no probability (0 to 1).")
    check_duplicates(options.duplicates)
    if options.tables not in TABLES:
        raise InputError(f"--tables {options.tables}: is neither 'float32' nor 'float16'.")
    if options.uncovered not in (None, *UNCOVERED):
        raise InputError(f"--uncovered {options.uncovered}: is neither 'singleton' nor 'drop'.")
    if options.link not in (None, *LINKS):
        raise InputError(f"--link {options.link}: is neither 'density-peaks' nor 'pairs'.")


def choose_inference(system: System, inference: str, n: int, passes: Collection[str]) -> str:
    """Return how the network is evaluated; 'auto' is exact up to EXACT_INFERENCE_LIMIT faces.

    passes: those of the bundle. Raises InputError when it cannot be evaluated so.
    """
    ways = ways_of(system, passes)
    if inference == "auto":
        return ways[0] if n <= EXACT_INFERENCE_LIMIT else ways[-1]
    if inference not in ways:
        what = system.title if len(ways) == len(system.inferences) else "this engine"
        raise InputError(f"--inference {inference}: {what} can be evaluated as {' or '.join(ways)}.")
    return inference


def ways_of(system: System, passes: Collection[str]) -> list[str]:
    """Return how a bundle with these passes can be evaluated, "exact" first."""
    first, *others = system.inferences
    return [first, *(way for way in others if set(system.inferences[way]) <= set(passes))]


def passes_of_run(system: System, settings: Any, weights: Weights, options: Options) -> tuple[str, ...]:
    """Return the names of the passes that a run with these settings evaluates."""
    if system.workload is not None:
        return tuple(system.workload(settings, weights, options))
    return system.inferences[options.inference] or tuple(system.passes(weights))


def sorts_lists(system: System, lists: ListsFile) -> bool:
    """Tell whether a system sorts the neighbor lists of a file by similarity."""
    return system.sorts_lists == "always" or (system.sorts_lists == "similarities" and lists.has_sims)


def open_lists(
    path: Path, features: Features, k: int = 1, possible: Callable[[int], bool] = lambda k: True
) -> ListsFile:
    """Open lists that were made elsewhere; raises InputError when they are of other faces or shorter than k.

    possible: whether a run with a smaller k is, which the error then says.
    """
    lists = ListsFile(path)
    if lists.n != features.given:
        raise InputError(f"{path}: holds lists of {lists.n:,} faces; {features.name} has {features.given:,}.")
    if lists.k < k:
        advice = f"give --k {lists.k} or less" if possible(lists.k) else "make longer lists"
        raise InputError(f"{path}: holds {lists.k} neighbors a face, {k} are needed; {advice}.")
    return lists


def sum_of_products(system: System, n: int, bundle: Bundle, settings: Any, options: Options) -> int:
    """Return the bytes of everything that a run over n faces makes, scratch included."""
    products = system.products(n, bundle.weights, settings, options)
    return sum(expected_bytes(shapes) for shapes in products.values())


@dataclass
class Run:
    """What a flow works with.

    vectors: (n, d) float32 unit rows (or as they are, if the recipe says so); order: (n,) int32, the faces in
    the order in which they are best visited; recall: of searches that were not exact, and searches: how neighbors were
    found, by name; opened: the execution provider of every pass that was opened; asked: the options as they were
    given. notes: sentences for the user, and figures: what else the summary says, by name; see ``note``. final: whether
    its clusters are the ones that the user gets, of which the user is told what limits did to them. refills_lists:
    whether neighbors are searched for faces whose lists, of a file, hold too few faces of this run. copies: faces that
    are not computed on, and go with others, if there are any; stamp: of the features, when they were checked.
    """

    final: ClassVar[bool] = True
    refills_lists: ClassVar[bool] = False

    features: Features
    bundle: Bundle
    settings: Any
    options: Options
    store: Store
    progress: Progress
    recall: dict[str, Recall] = field(default_factory=dict)
    searches: dict[str, dict[str, Any]] = field(default_factory=dict)
    opened: dict[str, str] = field(default_factory=dict)
    asked: Options = Options()
    notes: list[str] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)
    copies: Copies | None = None
    stamp: tuple[int, ...] | None = None

    def note(self, sentence: str, **figures: Any) -> None:
        """Tell the user something about this run, now and in the summary; ``figures`` stand there by name.

        A run that continues an earlier one says the same again: figures come from finished products, not from the
        work of making them.
        """
        self.notes.append(sentence)
        self.figures |= figures
        warnings.warn(sentence, FcdeployWarning, stacklevel=3)

    @property
    def n(self) -> int:
        return self.features.n

    def rows_of(self, faces: np.ndarray) -> np.ndarray:
        """Return the numbers (m,) of some ``faces`` (m,) among all rows of the features."""
        return rows_of(self.features)[faces]

    def labels_of_all(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (given,) int64 of all faces that the run began with, copies with those they go with."""
        return labels if self.copies is None else self.copies.labels_of_all(labels)

    @property
    def provider(self) -> str:
        """What evaluates the engine: the execution provider that is to be opened."""
        return self.bundle.provider(self.options.device)

    @cached_property
    def libraries(self) -> dict[str, str]:
        """The versions of the libraries that results may depend on, by name."""
        modules = np, numba, import_faiss()
        return {module.__name__: module.__version__ for module in modules} | self.bundle.runtime

    def key_of(self, name: str, made_of: dict[str, Any]) -> str:
        """Return the key of the product ``name``: with what it is made of, our code, the libraries and the device."""
        return digest({"name": name, "provider": self.provider, "libraries": self.libraries, **made_of})

    @property
    def knn_file(self) -> Path | None:
        """The file of neighbor lists to use instead of searching, if one was given."""
        return None if self.options.knn in KNN_METHODS else Path(self.options.knn)

    @cached_property
    def products(self) -> dict[str, Shapes]:
        """The arrays of every product, by its name."""
        system = get_system(self.bundle.system)
        return dict(system.products(self.n, self.bundle.weights, self.settings, self.options))

    @cached_property
    def cells(self) -> Cells:
        """The partition of the input features."""
        return self.partition("cells", self.vectors, {"vectors": self.made_of_features})

    @cached_property
    def order(self) -> np.ndarray:
        return self.cells.order()

    @cached_property
    def features_hash(self) -> str:
        """A hash of the features' bytes, and of which rows are faces here."""
        return hash_of(self.features)

    @property
    def made_of_features(self) -> dict[str, Any]:
        return {"features": self.features_hash, "normalize": self.features.normalize}

    def stage(self, name: str) -> AbstractContextManager[None]:
        """Count the time of the block as part of stage ``name``."""
        return self.progress.stage(name)

    def make(
        self,
        name: str,
        made_of: dict[str, Any],
        worker: Callable[[], AbstractContextManager[Work]],
        *,
        text: str,
        order: np.ndarray | None = None,
        block: int = BLOCK,
        rows: int | None = None,
        spans: np.ndarray | None = None,
        each: int = 1,
        whole: int = 1,
    ) -> Arrays:
        """Make the product ``name``, or take it from an earlier run that made it of the same things.

        made_of: everything that decides its content; block sizes, order and threads do not. worker: opened only
        when there is work left; gives the function over blocks of faces. order: (n,) int32, in which faces are
        visited (as they come). rows: how many there are when they are not those of the faces. each: entries of the
        arrays that a row fills, which stand together; or spans: (rows + 1,), row r fills spans[r]:spans[r + 1] of them
        (no order then). A block for which there is no memory is made in halves, and so are those after it; whole: rows
        that have to stay together, counted from the first.
        """
        rows = self.n if rows is None else rows
        key = self.key_of(name, made_of)
        finished = self.store.load(name, key)
        if finished is not None:
            return finished
        visit = "" if order is None else hashlib.sha256(np.ascontiguousarray(order).data).hexdigest()
        partial = self.store.begin(name, key, self.products[name], visit)
        start = partial.done
        unit = "faces" if rows == self.n else "rows"
        with worker() as work, self.progress.bar(text, rows, start, unit) as bar:
            while start < rows:
                stop = min(start + block, rows)
                faces = np.arange(start, stop, dtype=np.int32) if order is None else order[start:stop]
                try:
                    arrays = work(faces)
                except MemoryError as error:
                    block = self._smaller(stop - start, whole, text, error)
                    continue
                where = _entries(faces, each, order is None, spans)
                for part, made in arrays.items():
                    partial.arrays[part][where] = made
                partial.commit(stop)
                bar.advance(stop - start)
                start = stop
                if resident_bytes() > self.options.budget:
                    self.store.relieve()
        return partial.finish()

    def _smaller(self, block: int, whole: int, text: str, error: MemoryError) -> int:
        """Return half a block's rows, a multiple of ``whole``; raises FcdeployError where it cannot be less."""
        self.store.relieve()
        half = -(-block // 2 // whole) * whole
        if half >= block:
            some = "one face" if whole == 1 else f"{whole:,} faces, which belong together,"
            raise FcdeployError(
                f"{text}: there is no memory for {some} at a time ({str(error) or 'out of memory'}); close other "
                "programs, or use a machine with more."
            ) from error
        return half

    def keep(self, name: str, made_of: dict[str, Any], maker: Callable[[], Arrays]) -> Arrays:
        """Keep arrays of any length, made in one go, as the product ``name``."""
        key = self.key_of(name, made_of)
        finished = self.store.load(name, key)
        if finished is not None:
            return finished
        arrays = maker()
        partial = self.store.begin(
            name, key, {part: (array.shape, array.dtype) for part, array in arrays.items()}
        )
        for part, array in arrays.items():
            partial.arrays[part][:] = array
        return partial.finish()

    def drop(self, *names: str) -> None:
        """Delete scratch products that no later stage reads."""
        for name in names:
            self.store.drop(name)

    def read_features(self) -> None:
        """Check all features, unless they are, and keep them normalised as ``vectors``; once is enough."""
        if "vectors" in self.__dict__:
            return
        with self.stage("features"):
            stamp = stamp_of(self.features) if self.stamp is None else self.stamp
            if self.stamp is None:
                check_features(self.features)
            system = get_system(self.bundle.system)
            if not self.features.normalize and system.unit_rows:
                check_unit_rows(self.features, system.title)

            @contextlib.contextmanager
            def worker() -> Iterator[Work]:
                yield lambda faces: {"vectors": self.features.rows(int(faces[0]), int(faces[-1]) + 1)}

            self.vectors = self.make(
                "vectors", self.made_of_features, worker, text="features", block=BLOCK_ROWS
            )["vectors"]
            if stamp_of(self.features) != stamp:
                self.store.drop("vectors")
                raise FcdeployError(
                    f"{self.features.name}: was changed while it was being read; run the same command again."
                )
            if self.n >= FEWEST and (pairs := random_pairs(self.vectors)).alike:
                self.note(alike_sentence(self.features.name, pairs), random_pairs_cosine=pairs.median)

    def partition(self, name: str, vectors: np.ndarray, made_of: dict[str, Any]) -> Cells:
        """Partition the rows of ``vectors`` (n, d) into cells."""

        def maker() -> Arrays:
            cells = assign_cells(vectors, train_cells(vectors, cell_count(len(vectors))))
            return {"centroids": cells.centroids, "cell": cells.cell}

        arrays = self.keep(name, made_of, maker)
        return Cells(np.ascontiguousarray(arrays["centroids"]), np.ascontiguousarray(arrays["cell"]))

    def knn(
        self,
        name: str,
        vectors: np.ndarray,
        k: int,
        made_of: dict[str, Any],
        text: str,
        *,
        clip: bool,
        above: float,
        cells: Callable[[], Cells],
    ) -> tuple[KnnGraph, dict[str, Any]]:
        """Find the k nearest neighbors of every row of ``vectors`` (m, d) by inner product, the row itself first.

        clip: similarities are clipped to 0..1. cells: the rows' partition, asked for when the search is IVF; its
        recall is measured on a sample, for all neighbors and for those of similarity ``above`` and more. Returns
        the lists and what they were made of.
        """
        method = choose_method("auto" if self.knn_file else self.options.knn, len(vectors))
        made_of = {**made_of, "k": k, "method": method, "clip": clip}
        order = cells().order() if method == "ivf" else None
        self.searches[Path(name).stem] = {"method": method, "k": k}
        if order is not None:
            count = cells().count
            self.searches[Path(name).stem] |= {"cells": count, "probes": min(PROBES, count)}

        @contextlib.contextmanager
        def worker() -> Iterator[Work]:
            on_disk = method == "ivf" and vectors.nbytes // 2 > self.options.budget // INDEX_SHARE
            file = self.store.scratch_file(f"{name}.lists") if on_disk else None
            search = KnnSearch(
                vectors,
                cells() if method == "ivf" else None,
                lists_file=file,
                gpu=self.on_gpu and file is None,
                vram=self.options.vram,
            )

            def work(faces: np.ndarray) -> Arrays:
                ids, sims = search.search(faces, k)
                return {"ids": ids, "sims": np.clip(sims, 0, 1) if clip else sims}

            try:
                yield work
            finally:
                if file is not None:
                    del search
                    file.unlink(missing_ok=True)

        arrays = self.make(name, made_of, worker, text=text, order=order, rows=len(vectors))
        graph = KnnGraph(arrays["ids"], arrays["sims"])
        if method == "ivf":
            recall = measure_recall(vectors, graph, above)
            self.recall[Path(name).stem] = recall
            self.searches[Path(name).stem]["recall"] = recall.all
        return graph, made_of

    def lists_from_file(
        self, name: str, path: Path, k: int | None, text: str
    ) -> tuple[KnnGraph, dict[str, Any]]:
        """Read lists that were made elsewhere; the first ``k`` columns, or all.

        Similarities that the file does not hold are computed from the features and clipped to 0..1. Lists of nearest
        neighbors are sorted by similarity where the system does so, equal ones as they come, before they are cut to k;
        otherwise they stay in the file's order. Where only some rows of the features are faces, the others are left
        out of the lists; where these get too short they are refused, or with ``refills_lists`` neighbors are searched
        for their faces (not for re-ranked lists). Returns the lists and what they were made of. Raises InputError when
        an entry is no face or stands twice in a row.
        """
        lists = open_lists(path, self.features)
        sort = name == KNN and sorts_lists(get_system(self.bundle.system), lists)
        block = max(1, min(BLOCK, LISTS_BYTES // (ENTRY_BYTES * lists.k)))
        chosen = None
        if self.features.chosen is not None:
            chosen = ChosenLists(lists, self.features.chosen, block)
        if k is None:
            k = lists.k if chosen is None else chosen.shortest()
            self.settings.check_reranked(k, str(path))
        refill = self.refills_lists and name == KNN and chosen is not None
        made_of = {"file": sha256_of(path), "k": k, **self.made_of_features, "sort": sort}
        self.searches[Path(name).stem] = {"method": "file", "file": str(path), "k": k}
        shape = (self.n, k)
        self.products[name] = {part: (shape, dtype) for part, (_, dtype) in self.products[name].items()}

        @contextlib.contextmanager
        def worker() -> Iterator[Work]:
            read = RowsInOrder(lists, block)

            def work(faces: np.ndarray) -> Arrays:
                start, none = int(faces[0]), None
                if chosen is None:
                    ids, sims = read(start, start + len(faces))
                    checked = check_lists(ids if sort else ids[:, :k], start, self.n, str(path))
                else:
                    checked, sims, none = chosen(faces, 0 if refill else k)
                if sims is None:
                    sims = np.clip(similarities_of_lists(self.vectors, checked, faces), 0, 1)
                if none is not None:
                    sims[none] = -np.inf  # behind the k that are left
                if sort:
                    order = np.argsort(-sims, axis=1, kind="stable")
                    checked, sims = (np.take_along_axis(rows, order, axis=1) for rows in (checked, sims))
                checked, sims = checked[:, :k], sims[:, :k]
                if refill and len(short := np.flatnonzero(sims[:, -1] == -np.inf)):
                    checked[short], sims[short] = self._search_of_short_lists(faces[short], k)
                return {"ids": checked, "sims": sims}

            yield work
            self.__dict__.pop("_short_lists", None)

        arrays = self.make(name, made_of, worker, text=text, block=block)
        if name == KNN and mostly_without_self(arrays["ids"]):
            self.note(
                f"{path}: most lists do not hold the face itself, which counts as the first of its neighbors here; "
                "put every face in front of its list."
            )
        return KnnGraph(arrays["ids"], arrays["sims"]), made_of

    def _search_of_short_lists(self, faces: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k nearest neighbors of ``faces`` (m,), for whom the lists of a file hold too few."""
        if "_short_lists" not in self.__dict__:
            vectors = self.vectors
            if not self.features.normalize:
                vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
            cells = self.cells if choose_method("auto", self.n) == "ivf" else None
            self.__dict__["_short_lists"] = KnnSearch(vectors, cells)
        ids, sims = self.__dict__["_short_lists"].search(faces, k)
        return ids, np.clip(sims, 0, 1)

    @property
    def on_gpu(self) -> bool:
        """Whether the engine runs on a GPU."""
        return self.bundle.device(self.options.device) == "cuda"

    @contextlib.contextmanager
    def engine(self, name: str, share: int = 1) -> Iterator[Engine]:
        """Open one pass of the bundle; share: how many hold device memory at the same time, each as much of it."""
        options = self.options
        vram = max(1, options.vram // share) if options.vram else 0
        with self.bundle.open(
            name, threads=options.cores, device=options.device, vram=vram, share=share
        ) as engine:
            self.opened[name] = engine.provider
            yield engine

    def check_finite(self, rows: np.ndarray, faces: np.ndarray, what: str) -> None:
        """Raise FcdeployError when one of ``rows`` (m, w), of ``faces`` (m,), holds NaN or infinity."""
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(rows.sum()):  # of one number that is not finite it is not, either
                return
        bad = np.sort(faces[~np.isfinite(rows).all(axis=1)])
        if len(bad):
            shown = ", ".join(map(str, self.rows_of(bad[:5]))) + (", ..." if len(bad) > 5 else "")
            raise FcdeployError(
                f"{self.bundle.path}: the engine gave a {what} that is not finite for {len(bad):,} of {len(rows):,} "
                f"faces (rows {shown} of {self.features.name}); stopped before linking."
            )

    def check_row(self, outputs: Arrays) -> None:
        """Raise FcdeployError when what an engine gave for a row that is no face's holds NaN or infinity."""
        if not all(np.isfinite(output).all() for output in outputs.values()):
            raise FcdeployError(
                f"{self.bundle.path}: the engine gave values that are not finite for a made-up row; stopped before "
                "linking."
            )

    def finite(self, outputs: Arrays, faces: np.ndarray, what: str) -> Arrays:
        """Return an engine's outputs, arrays (m, ...) of ``faces`` (m,), after ``check_finite``."""
        for output in outputs.values():
            self.check_finite(output.reshape(len(faces), -1), faces, what)
        return outputs


def _entries(rows: np.ndarray, each: int, in_a_row: bool, spans: np.ndarray | None) -> slice | np.ndarray:
    """Return where the entries of ``rows`` stand, when every row has ``each`` of them or those of its span."""
    if spans is not None:
        return slice(int(spans[rows[0]]), int(spans[rows[-1] + 1]))
    if in_a_row:
        return slice(int(rows[0]) * each, (int(rows[-1]) + 1) * each)
    return rows if each == 1 else (rows[:, None].astype(np.int64) * each + np.arange(each)).ravel()


def resident_bytes() -> int:
    """Return how much memory this process has in use now, pages of mapped files included."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def peak_bytes() -> int:
    """Return the most memory this process has had in use, in bytes; pages of mapped files count while resident."""
    try:
        # Not ru_maxrss, which a child inherits from its parent.
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def note_extremes(labels: np.ndarray, run: Run) -> None:
    """Tell that all faces are alone, or most of them together; labels: (n,) int64, of those computed on."""
    placed = labels[labels >= 0]
    largest = int(np.bincount(placed).max()) if len(placed) else 0
    if run.n < FEWEST or 1 < largest <= max(run.n * MOST, run.figures.get("clustered_unasked", 0)):
        return
    system = get_system(run.bundle.system)
    tunables = system.tunable(run.bundle.weights, run.options)
    keys = ", ".join(f"{one.key} = {setting_of(run.settings, one.key)}" for one in tunables)
    advice = f"`fcdeploy tune` chooses {keys} on labelled faces" if keys else "check the recipe's thresholds"
    if largest <= 1:
        run.note(f"all {run.n:,} faces are alone; {advice}.", largest_cluster=largest)
    else:
        run.note(
            f"{largest:,} of {run.n:,} faces ({largest / run.n:.0%}) are in one cluster; unless they are one person, "
            f"{advice}.",
            largest_cluster=largest,
        )


def _summary(labels: np.ndarray, run: Run) -> dict[str, Any]:
    sizes = np.bincount(labels[labels >= 0])
    summary: dict[str, Any] = {
        "faces": len(labels),
        "clusters": len(sizes),
        "singletons": int((sizes == 1).sum()),
        "peak_bytes": peak_bytes(),
        "stages": {
            name: {"seconds": seconds, "faces_per_s": len(labels) / seconds if seconds else 0.0}
            for name, seconds in run.progress.seconds.items()
        },
    }
    if uncovered := int((labels < 0).sum()):
        summary["uncovered"] = uncovered
    if run.recall:
        summary["recall"] = {name: dataclasses.asdict(measured) for name, measured in run.recall.items()}
    summary["computed"] = what_was_computed(run)
    summary |= run.figures
    if run.notes:
        summary["notes"] = run.notes
    return summary
