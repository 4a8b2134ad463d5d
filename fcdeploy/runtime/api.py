"""The Python interface: what ``fcdeploy`` exports."""

import functools
import inspect
import operator
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat, SupportsIndex, TypeGuard, TypeVar

import numpy as np

from fcdeploy.clustering.decided import Decide
from fcdeploy.clustering.flags import Confidence
from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import Features, features_from_array, open_features
from fcdeploy.data.filelist import filelist_from_paths
from fcdeploy.data.imagelist import open_images
from fcdeploy.data.images import MAX_PIXELS
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.engine.embedder import settings_from_table
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.run.options import (
    BYTES,
    DESCRIBED,
    HOPS,
    KNN_METHODS,
    PATH,
    REAL,
    SETTINGS,
    SWITCH,
    WHOLE,
    Described,
    Options,
    check_values,
    options_from_values,
)
from fcdeploy.runtime.assign import Assigned as Assigned
from fcdeploy.runtime.assign import Assigner as Assigner
from fcdeploy.runtime.assigning import assign_features
from fcdeploy.runtime.embed import embed_to_array, new_job
from fcdeploy.runtime.embed_workers import embedding_workers
from fcdeploy.runtime.evidence import read_placed
from fcdeploy.runtime.pairs import pairs
from fcdeploy.runtime.photos_api import cluster_faces_in
from fcdeploy.runtime.pipeline import Result, run_clustering
from fcdeploy.runtime.review import measured_rows
from fcdeploy.runtime.stored import read_rows, read_state
from fcdeploy.runtime.tables import write_reviewed
from fcdeploy.runtime.update import Updated as Updated
from fcdeploy.runtime.update import update_run
from fcdeploy.runtime.wanted import Wanted
from fcdeploy.runtime.workers import check_shared

__all__ = ["FaceClusterer", "cluster", "confidence", "embed", "pairs"]

PathLike = str | Path
NOTHING_WANTED = Wanted()
F = TypeVar("F", bound=Callable[..., object])


def cluster(
    features: object,
    *,
    engine: PathLike,
    on_bad: str | None = None,
    run_dir: PathLike | None = None,
    progress: bool = False,
    column: str | None = None,
    table: PathLike | None = None,
    clusters_table: PathLike | None = None,
    drop_flagged: Sequence[str] = (),
    pairs: PathLike | Sequence[tuple[int, int, str]] | None = None,
    same_photo: PathLike | Sequence[object] | bool | None = None,
    detector: PathLike | None = None,
    embedder: PathLike | None = None,
    **options: object,
) -> np.ndarray:
    """Cluster face embeddings and return a label for each.

    - features: (n, d) embeddings: an array of real numbers, a tensor, a table, or a sequence of rows; or the path of a
      file in any form of docs/reference/files.md, of a folder of such files, or several paths. Rows need not be
      normalised.
    - engine: the folder of an engine bundle.
    - column: array of an archive, or column of a table, that holds the features, where a path is given.
    - on_bad: rows with NaN, infinity or only zeros: 'stop' raises InputError (the default), 'skip' labels them -1,
      'zero' gives each a cluster of its own.
    - run_dir: folder that keeps all results; the same call continues an interrupted run.
    - progress: whether progress bars are shown on stderr.
    - detector, embedder: ONNX files; with them, features are photos as ``fcdeploy.faces`` takes them, and labels are
      those of the faces in its order. on_bad is 'skip' by default then: photos that cannot be read are left out.
    - table, clusters_table: files to write (.csv, .tsv, .parquet), a row per face and a row per cluster, with
      confidence and flags; ``fcdeploy.confidence`` returns the same as arrays.
    - drop_flagged: flags whose clusters are split into single faces, e.g. ("garbage",).
    - pairs: pairs that a person has checked, a file or tuples (a, b, "same" or "different") of row numbers.
    - same_photo: the photo of each face, a file or n names or numbers (None where unknown), or True for the photos that
      faces were detected in: faces of one photo are kept apart.

    Returns labels (n,) int64, numbered by first appearance, -1 for faces without a cluster. Raises InputError (a
    ValueError) for input that cannot be used, in one sentence. Sizes are in bytes; None and 0 stand for the default.

    options:
    """
    if unknown := options.keys() - DESCRIBED.keys():
        raise TypeError(f"cluster() got an unexpected keyword argument {min(unknown)!r}")
    chosen = {**defaults(), **options}
    flags = (drop_flagged,) if isinstance(drop_flagged, str) else tuple(drop_flagged or ())
    wanted = Wanted(table, clusters_table, flags, pairs, same_photo)
    if detector is not None:
        return cluster_faces_in(
            features,
            read_bundle(engine),
            options_from(chosen),
            detector=detector,
            embedder=embedder,
            on_bad=on_bad or "skip",
            run_dir=run_dir,
            wanted=wanted,
            quiet=not progress,
        )
    if embedder is not None:
        raise InputError(
            f"embedder = {str(embedder)!r}: is for photos, with a detector; embed crops with fcdeploy.embed first."
        )
    on_bad = on_bad or "stop"
    return _run(
        features, engine, chosen, on_bad, run_dir, quiet=not progress, column=column, wanted=wanted
    ).labels


def confidence(run_dir: PathLike) -> Confidence:
    """Return how certain the clusters of a finished run are, from its run folder alone.

    The result has two groups of arrays: ``faces``, (rows,) in the order of the features: confidence, support, margin
    and similarity (float32, NaN where unknown) and flags (uint8, bits of ``fcdeploy.clustering.flags.FLAGS``); and
    ``clusters``, by label: size, weakest, cohesion, similarity, nearest, share, flags, duplicate_of. Their meaning is
    in docs/how-to/confidence.md. Raises InputError for a folder without a finished run.
    """
    return measured_rows(read_placed(run_dir))


def defaults() -> dict[str, object]:
    """Return the options of a run with their defaults."""
    usual = Options()
    return {
        name: getattr(usual, name) or None if name == "settings" else getattr(usual, name)
        for name in DESCRIBED
    }


def _with_options(function: F) -> F:
    """Give a function the options of a run in the place of ``**options``: in its signature and in its docstring."""
    signature = inspect.signature(function)
    usual, kinds = defaults(), inspect.get_annotations(Options)
    own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
    more = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=usual[name], annotation=kinds[name])
        for name in DESCRIBED
    ]
    function.__signature__ = signature.replace(parameters=[*own, *more])  # type: ignore[attr-defined]
    if function.__doc__ and function.__doc__.rstrip().endswith("options:"):
        lines = (
            f"    - {name}: {one.help}{f' [default: {one.usual}]' if one.usual else ''}"
            for name, one in DESCRIBED.items()
        )
        function.__doc__ = "\n".join([function.__doc__.rstrip(), *lines, ""])
    return function


_with_options(cluster)


def embed(
    images: PathLike | Sequence[PathLike],
    *,
    model: PathLike,
    layout: str | None = None,
    size: int | tuple[int, int] | None = None,
    channels: str | None = None,
    mean: float | Sequence[float] | None = None,
    scale: float | Sequence[float] | None = None,
    output_tensor: str | None = None,
    inputs: Mapping[str, object] | None = None,
    on_bad: str = "stop",
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 0,
    device: str = "cpu",
    run_dir: PathLike | None = None,
    ray: str | None = None,
    ray_cpus: float | None = None,
    ray_gpus: float = 0.0,
    strict: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """Compute the embeddings of aligned face crops with an ONNX face embedder.

    - images: the path of a text file with one image path per line, relative to it; a folder, with all images below it
      in natural order; an archive of images (tar, zip, RecordIO); or the paths of images.
    - model: the ONNX file of an embedder.
    - layout ('NCHW', 'NHWC'), size (pixels, or (height, width)), channels ('rgb', 'bgr', 'gray'), mean and scale
      (pixels 0 to 255 become (pixel - mean) / scale), output_tensor: as in the ``.toml`` beside the model, else the
      graph's own.
    - inputs: constants for other inputs of the graph by their names; they override those under ``[inputs]`` of the
      ``.toml``.
    - on_bad: images that cannot be embedded: 'stop' raises InputError, 'zero' gives a row of zeros.
    - device: 'cpu' or 'cuda'.
    - run_dir: folder that keeps what is done; the same call continues an interrupted one.
    - ray, ray_cpus, ray_gpus, strict: workers on a Ray cluster, as in ``fcdeploy.cluster``.

    Returns (n, d) float32, not normalised, in the order of the images. Raises InputError (a ValueError) for input that
    cannot be used.
    """
    if on_bad not in ("stop", "zero"):
        raise InputError(
            f"on_bad = {on_bad!r}: should be 'stop', or 'zero' for a row of zeros in the place of each bad image."
        )
    numbers = {
        "batch": (_whole("batch", batch), 1),
        "threads": (_whole("threads", threads), 0),
        "max_pixels": (_whole("max_pixels", max_pixels), 1),
    }
    for name, (number, least) in numbers.items():
        if number is not None and number < least:
            raise InputError(f"{name} = {number}: should be {least} or more.")
    if isinstance(images, (str, Path)):
        files = open_images(images)
    else:
        files = filelist_from_paths(images)
    given = {
        "layout": layout,
        "size": size,
        "channels": channels,
        "mean": mean,
        "scale": scale,
        "output_tensor": output_tensor,
        "inputs": inputs,
    }
    settings = settings_from_table(_plain_values(given), "embed")
    job = new_job(
        files, Path(model), settings, batch=batch, max_pixels=max_pixels, threads=threads, device=device
    )
    place = Path(run_dir) if run_dir else None
    cluster = {"ray": ray, "ray_cpus": ray_cpus, "ray_gpus": ray_gpus, "strict": strict}
    options = options_from({**defaults(), **cluster, "threads": threads, "device": device})
    check_values(options)
    check_shared(options, place)
    workers = functools.partial(embedding_workers, options=options) if ray else None
    return embed_to_array(job, on_bad=on_bad, run_dir=place, quiet=not progress, workers=workers)


def _plain_values(given: Mapping[str, object]) -> dict[str, object]:
    """Return what was given, arrays and numbers of NumPy as Python's."""
    return {name: _plain_value(value) for name, value in given.items() if value is not None}


def _plain_value(value: object) -> object:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def assign(
    features: object,
    *,
    run_dir: PathLike,
    engine: PathLike | None = None,
    unmatched: str = "-1",
    column: str | None = None,
    threads: int = 0,
    device: str | None = None,
    memory: int = 0,
    ray: str | None = None,
    ray_cpus: float | None = None,
    ray_gpus: float = 0.0,
    strict: bool = False,
    progress: bool = False,
) -> Assigned:
    """Assign new faces to the clusters of a finished run; its folder is not changed.

    Clusters are those of the run, and not necessarily those that clustering all faces together would give, as with
    hdbscan's ``approximate_predict``. For a service that assigns again and again, open an ``Assigner``.

    - features: (m, d), as for ``fcdeploy.cluster``.
    - run_dir: the folder of a finished ``cluster``.
    - engine: the engine bundle, if it was moved since the run.
    - unmatched: faces that are linked to no stored face: '-1' labels them -1, 'singleton' gives each a new cluster.
    - ray, ray_cpus, ray_gpus, strict: workers on a Ray cluster, as in ``fcdeploy.cluster``; the folder that ``run_dir``
      is in must be visible to all machines.

    Returns labels (m,) int64, similarity and margin (m,) float32, see ``Assigned``. Raises InputError (a ValueError)
    for input that cannot be used.
    """
    opened = features_given(features, read_state(Path(run_dir)).dim, column)
    options = Options(
        threads=_whole("threads", threads) or 0,
        memory=_whole("memory", memory) or 0,
        device=device,
        ray=ray,
        ray_cpus=ray_cpus,
        ray_gpus=ray_gpus,
        strict=strict,
    )
    return assign_features(
        opened, run_dir, engine=engine, unmatched=unmatched, options=options, quiet=not progress
    )


def update(
    run_dir: PathLike,
    *,
    add: object = None,
    remove: object = None,
    pairs: PathLike | Sequence[tuple[object, object, str]] | None = None,
    same_photo: PathLike | Sequence[object] | None = None,
    merges: str | Decide = "clear",
    splits: str | Decide = "clear",
    engine: PathLike | None = None,
    column: str | None = None,
    id_column: str | None = None,
    on_bad: str = "stop",
    threads: int = 0,
    device: str | None = None,
    memory: int = 0,
    progress: bool = False,
) -> Updated:
    """Add faces to a finished run, or remove some; clusters keep their numbers.

    The result is close to clustering all remaining faces together, but reuses what was computed for old faces. The
    folder is replaced atomically at the end.

    - add: features of faces to add, as for ``fcdeploy.cluster``.
    - remove: ids of faces to remove: their row numbers in the first run, or the numbers that an update gave them; where
      the first run was given ids, these (of added faces: those of ``id_column``).
    - pairs: pairs that a person has checked, a file or tuples (a, b, "same" or "different") of such ids; pairs of the
      run and of earlier updates still hold.
    - same_photo: the photo of each added face, a file or values; faces of one photo are kept apart.
    - merges, splits: old clusters that become connected, or that fall apart: 'clear' (merge those that strong links
      connect, split those that removed faces held together), 'apply', 'never', or a function that gets each change
      (``old``, ``new``, ``faces``, ``kind``) and returns whether to apply it.
    - on_bad: added rows with NaN, infinity or only zeros: 'stop' raises InputError, 'skip' labels them -1.

    Returns all faces with their labels, and the changes. Raises InputError (a ValueError) for input that cannot be
    used.
    """
    opened = None
    if add is not None:
        opened = features_given(add, read_state(Path(run_dir)).dim, column, id_column=id_column)
    gone = None if remove is None else np.atleast_1d(np.asarray(remove))
    if gone is not None and len(gone) and gone.dtype.kind not in "iuUO":
        raise InputError("remove: expected whole numbers, those of faces, or ids.")
    return update_run(
        run_dir,
        opened,
        gone,
        pairs=pairs,
        same_photo=same_photo,
        merges=_decider("merges", merges),
        splits=_decider("splits", splits),
        engine=engine,
        limits=Options(
            threads=_whole("threads", threads) or 0, memory=_whole("memory", memory) or 0, device=device
        ),
        on_bad=on_bad,
        quiet=not progress,
    )


def _decider(name: str, choice: str | Decide) -> Decide | None:
    if callable(choice):
        return choice
    if choice not in ("clear", "apply", "never"):
        raise InputError(
            f"{name} = {choice!r}: should be 'clear', 'apply', 'never', or a function that decides."
        )
    return None if choice == "clear" else lambda change: choice == "apply"


class FaceClusterer:
    """Face clustering with the interface of scikit-learn; the arguments are those of ``fcdeploy.cluster``.

    After ``fit``: ``labels_`` (n,) int64, -1 for faces without a cluster; ``n_features_in_``; ``summary_``, the counts
    of faces, clusters and singletons, and the seconds per stage. With a ``run_dir``, ``predict`` assigns new faces to
    these clusters.
    """

    @_with_options
    def __init__(
        self,
        engine: PathLike,
        *,
        on_bad: str = "stop",
        column: str | None = None,
        run_dir: PathLike | None = None,
        **options: object,
    ) -> None:
        if unknown := options.keys() - DESCRIBED.keys():
            raise TypeError(f"FaceClusterer got an unexpected keyword argument {min(unknown)!r}")
        self.engine, self.on_bad, self.column, self.run_dir = engine, on_bad, column, run_dir
        for name, value in {**defaults(), **options}.items():
            setattr(self, name, value)

    def fit(self, X: object, y: object = None) -> "FaceClusterer":
        """Cluster the rows of X (n, d); y is ignored, as scikit-learn's clusterers do."""
        result, width = self._cluster(X, self.run_dir)
        self.labels_ = result.labels
        self.summary_ = result.summary
        self.n_features_in_ = width
        return self

    def predict(self, X: object) -> np.ndarray:
        """Assign the rows of X (m, d) to the clusters of ``fit``: their labels (m,) int64, -1 in none of them.

        Approximate, see ``fcdeploy.assign``. Raises InputError before ``fit`` (where scikit-learn is installed, its
        NotFittedError, too), without a ``run_dir``, or if another run has used the folder since.
        """
        if not hasattr(self, "labels_"):
            raise _not_fitted("FaceClusterer.predict: nothing was fitted yet; call fit first.")
        if self.run_dir is None:
            raise InputError(
                "FaceClusterer.predict: needs the results of fit in a folder; construct FaceClusterer with run_dir."
            )
        state, rows = read_rows(self.run_dir)
        if not state.updates and not np.array_equal(rows.labels, self.labels_):  # an update keeps the numbers
            raise InputError(
                f"FaceClusterer.predict: {self.run_dir} holds the clusters of a later run, not those of fit; call fit "
                "again, or give each FaceClusterer its own run_dir."
            )
        limits = {name: getattr(self, name) for name in ("threads", "device", "memory")}
        return assign(X, run_dir=self.run_dir, engine=self.engine, column=self.column, **limits).labels

    def fit_predict(self, X: object, y: object = None) -> np.ndarray:
        """Cluster the rows of X (n, d) and return their labels (n,) int64."""
        return self.fit(X).labels_

    def score(self, X: object, y: object = None) -> float:
        """Cluster the rows of X (n, d) and return the pairwise F of these clusters, 0 to 1.

        y: (n,) true identities. The fitted state is not used and not changed, since clusters of other faces say nothing
        about X. Use it with ``GridSearchCV`` to choose settings on labelled faces. Raises InputError without y, or if
        its length differs from X.
        """
        if y is None:
            raise InputError("FaceClusterer.score: needs the true identities y of the rows of X.")
        labels = self._cluster(X)[0].labels
        truth = np.asarray(y)
        if truth.shape != labels.shape:
            raise InputError(
                f"FaceClusterer.score: expected one identity per row of X, y of shape {labels.shape}, found "
                f"{truth.shape}."
            )
        if truth.dtype.kind not in "iu":
            truth = np.unique(truth, return_inverse=True)[1]  # names of people
        return evaluate(labels, truth).pairwise.f

    def get_params(self, deep: bool = True) -> dict[str, object]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: object) -> "FaceClusterer":
        """Set constructor arguments by name; raises ValueError for unknown names."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"FaceClusterer has no parameter {name!r}; it has {', '.join(known)}.")
            setattr(self, name, value)
        return self

    def _cluster(self, X: object, run_dir: PathLike | None = None) -> tuple[Result, int]:
        chosen = {name: getattr(self, name) for name in DESCRIBED}
        result = _run(X, self.engine, chosen, self.on_bad, run_dir, quiet=True, column=self.column)
        return result, read_bundle(self.engine).feature_dim

    # scikit-learn is not imported to be compatible with it: up to 1.5 it reads this attribute, from 1.6 on it asks for
    # tags (https://scikit-learn.org/stable/developers/develop.html#estimator-tags).
    _estimator_type = "clusterer"

    def __sklearn_tags__(self) -> object:
        from sklearn.utils import InputTags, Tags, TargetTags  # who asks has it installed

        return Tags(
            estimator_type="clusterer",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(),
            non_deterministic=False,
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "labels_")

    def __repr__(self) -> str:
        """Say the engine and what differs from the defaults, as scikit-learn does."""
        defaults = {name: entry.default for name, entry in inspect.signature(type(self)).parameters.items()}
        changed = (
            f"{name}={value!r}"
            for name, value in self.get_params().items()
            if not _same(value, defaults[name])
        )
        return f"{type(self).__name__}({', '.join(changed)})"


def _not_fitted(sentence: str) -> InputError:
    """Return an InputError that is scikit-learn's NotFittedError, too, where that is installed."""
    try:
        from sklearn.exceptions import NotFittedError
    except ImportError:
        return InputError(sentence)
    both = type("NotFittedError", (InputError, NotFittedError), {"__doc__": NotFittedError.__doc__})
    error: InputError = both(sentence)
    return error


def _same(value: object, default: object) -> bool:
    """Tell whether an argument is its default, whatever it is: an array compares element by element."""
    return value is default or (type(value) is type(default) and value == default)


def _run(
    features: object,
    engine: PathLike,
    chosen: Mapping[str, object],
    on_bad: str,
    run_dir: PathLike | None,
    *,
    quiet: bool,
    column: str | None = None,
    wanted: Wanted = NOTHING_WANTED,
) -> Result:
    wanted.check()
    place, folder = _path("engine", engine), None if run_dir is None else _path("run_dir", run_dir)
    if place is None:
        raise InputError("engine = '': expected the folder of an engine bundle.")
    bundle, options = read_bundle(place), options_from(chosen)
    opened = features_given(features, bundle.feature_dim, column, options.scratch)
    if options.knn_file is not None and not options.knn_file.exists():
        raise InputError(
            f"knn = {options.knn!r}: is none of {', '.join(map(repr, KNN_METHODS))} and no file of neighbor lists."
        )
    review = wanted.review(opened.n)
    result = run_clustering(
        opened, bundle, options, on_bad=on_bad, run_dir=folder, wanted=review, quiet=quiet
    )
    if result.reviewed is not None:
        write_reviewed(wanted.tables, result.reviewed, None)
    return result


def features_given(
    features: object,
    width: int | None,
    column: str | None = None,
    scratch: Path | None = None,
    *,
    id_column: str | None = None,
) -> Features:
    """Open features of whatever kind ``cluster`` takes; width: the one that is expected, where one is."""
    if not _are_paths(features):
        return features_from_array(features, width)
    opened = open_features(features, width, column=column, id_column=id_column, scratch=scratch)
    if opened.doubted:  # what is read without doubt, the summary says
        warnings.warn(opened.note, FcdeployWarning, stacklevel=4)
    return opened


def options_from(chosen: Mapping[str, object]) -> Options:
    """Return options from what Python and NumPy have for their values; raises InputError for anything else.

    None stands for an option's default.
    """
    given = {name: value for name, value in chosen.items() if value is not None}
    return options_from_values({name: _plain(name, DESCRIBED[name], value) for name, value in given.items()})


def _plain(name: str, described: Described, value: Any) -> object:
    if described.kind == SETTINGS:
        return _settings(name, value)
    if described.kind == PATH:
        return _path(name, value)
    if described.kind == HOPS:
        return tuple(np.atleast_1d(value).tolist())
    if described.kind == SWITCH:
        if not isinstance(value, (bool, np.bool_)):
            raise InputError(f"{name} = {value!r}: expected True or False.")
        return bool(value)
    if described.kind in (WHOLE, BYTES):
        return _whole(name, value)
    return _real(name, value) if described.kind == REAL else str(value)


def _settings(name: str, value: object) -> dict[str, object]:
    """Return settings by their dotted keys, numbers of NumPy as Python's."""
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"{name} = {value!r}: expected a dict of settings, e.g. {{'links.tau': 0.8}}.")
    return {key: _plain_value(entry) for key, entry in value.items()}


def _path(name: str, value: object) -> Path | None:
    """Return a path, None for an empty one; raises InputError for what is none."""
    if not isinstance(value, (str, os.PathLike)):
        raise InputError(f"{name} = {value!r}: expected a path, as text or as a pathlib.Path.")
    return Path(value) if os.fspath(value) else None


def _are_paths(features: object) -> TypeGuard[PathLike | Sequence[PathLike]]:
    """Tell whether features are given as files: a path, or several of shards."""
    if isinstance(features, (list, tuple)):
        return bool(features) and all(isinstance(each, (str, os.PathLike)) for each in features)
    return isinstance(features, (str, os.PathLike))


def _whole(name: str, value: object) -> int | None:
    """Return a whole number of Python's or NumPy's, or None, as Python's; raises InputError for anything else."""
    try:
        if value is None:
            return None
        if not isinstance(value, SupportsIndex):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {value!r}: expected a whole number.") from None


def _real(name: str, value: object) -> float | None:
    """Return a number of Python's or NumPy's, or None, as Python's; raises InputError for anything else."""
    try:
        if value is None:
            return None
        if not isinstance(value, SupportsFloat | SupportsIndex):
            raise TypeError
        return float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} = {value!r}: expected a number.") from None
