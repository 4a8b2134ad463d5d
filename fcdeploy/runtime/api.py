"""The Python interface: ``fcdeploy.cluster``, ``fcdeploy.FaceClusterer`` and ``fcdeploy.embed``."""

import inspect
import operator
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcdeploy.clustering.metrics import evaluate
from fcdeploy.data.features import Features, features_from_array, open_features
from fcdeploy.data.filelist import filelist_from_paths
from fcdeploy.data.imagelist import open_images
from fcdeploy.data.images import MAX_PIXELS
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.engine.embedder import settings_from_table
from fcdeploy.errors import FcdeployWarning, InputError
from fcdeploy.run.options import KNN_METHODS, Options
from fcdeploy.runtime.embed import embed_to_array, new_job
from fcdeploy.runtime.pipeline import Result, run_clustering

PathLike = str | Path


def cluster(
    features: Any,
    *,
    engine: PathLike,
    knn: PathLike = "auto",
    reranked: PathLike | None = None,
    k: int | None = None,
    hops: tuple[int, int] | None = None,
    tau: float | None = None,
    min_probability: float | None = None,
    inference: str = "auto",
    batch: int | None = None,
    threads: int = 0,
    memory: int = 0,
    uncovered: str | None = None,
    device: str | None = None,
    vram: int = 0,
    tables: str = "float32",
    link: str | None = None,
    scratch: PathLike | None = None,
    duplicates: str = "merge",
    on_bad: str = "stop",
    run_dir: PathLike | None = None,
    progress: bool = False,
    column: str | None = None,
) -> np.ndarray:
    """Cluster face embeddings and return a label for each.

    features: an (n, d) array of real numbers, a tensor, a table or a sequence of rows; or the path of a file of any
    form that docs/files.md lists, of a folder of them, or several paths. Rows need not be normalised.
    engine: a bundle folder. knn: 'auto', 'exact', 'ivf' or a file of neighbor lists; reranked: a file of
    re-ranked lists. k, hops and tau replace those of the bundle's recipe. min_probability: what a link needs of a
    network that accepts or refuses it (SEPFL, NSR-FC), beyond being accepted. link: how NSR-FC makes clusters,
    'density-peaks' or 'pairs' (by its pair networks, the default where the engine has them). inference: 'exact',
    'layerwise', or 'auto', which is exact up to 20,000 faces. threads: 0 means all cores that the process may use.
    memory: budget in bytes; 0 means half of what the process may use. uncovered: what becomes of faces that no
    cluster was found for (GCN-D), 'singleton' (a cluster of one, the default) or 'drop' (-1). device: 'cpu' or 'cuda',
    where the engine runs; vram: device memory budget in bytes, 0 for all. tables: 'float16' halves what
    layer-wise inference keeps between its layers, and rounds it. scratch: the folder for what does not fit into memory.
    duplicates: with 'merge' equal rows, and near-copies that fill neighbor lists, count once and have one label;
    'as-published' computes on all rows as they are. on_bad: rows with NaN, infinity or no direction raise InputError
    with 'stop', are in no cluster (-1) with 'skip', and are a cluster of one each with 'zero'. run_dir: keeps what
    every stage made, and continues there. column: which array of an archive, or column of a table, holds the features,
    where a path is given.
    Returns labels (n,) int64, numbered by first appearance. Raises
    fcdeploy.errors.InputError (a ValueError) for input that cannot be used.
    """
    chosen = {
        "knn": knn,
        "reranked": reranked,
        "k": k,
        "hops": hops,
        "tau": tau,
        "min_probability": min_probability,
        "inference": inference,
        "batch": batch,
        "threads": threads,
        "memory": memory,
        "uncovered": uncovered,
        "device": device,
        "vram": vram,
        "tables": tables,
        "link": link,
        "scratch": scratch,
        "duplicates": duplicates,
        "on_bad": on_bad,
    }
    return _run(features, engine, chosen, run_dir, quiet=not progress, column=column).labels


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
    inputs: Mapping[str, Any] | None = None,
    on_bad: str = "stop",
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> np.ndarray:
    """Embed aligned face crops with an ONNX face embedder and return a row for each.

    images: the path of a list, one image path per line relative to the list, a folder, all images below which are
    taken in natural order, an archive of images (tar, zip, RecordIO), or the paths themselves. model: an ONNX
    file that takes pictures and gives embeddings; layout ('NCHW', 'NHWC'), size (pixels, or (height, width)), channels
    ('rgb', 'bgr', 'gray'), mean, scale (pixels become (pixel - mean) / scale) and output_tensor are read from the
    ``.toml`` beside it and the graph where they are not given; inputs: constants for whatever else the graph takes, by
    the names of its inputs, over those under ``[inputs]`` there. on_bad: 'stop' raises when an image cannot be
    embedded, 'zero' gives it a row of zeros. device: 'cpu' or 'cuda'. Returns (n, d) float32, not normalised. Raises
    fcdeploy.errors.InputError (a ValueError) for input that cannot be used.
    """
    if on_bad not in ("stop", "zero"):
        raise InputError(
            f"on_bad = {on_bad!r}: should be 'stop', or 'zero' for rows of zeros, which `any` finds."
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
    plain = {
        name: value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
        for name, value in given.items()
    }
    settings = settings_from_table(
        {name: value for name, value in plain.items() if value is not None}, "embed"
    )
    job = new_job(
        files, Path(model), settings, batch=batch, max_pixels=max_pixels, threads=threads, device=device
    )
    return embed_to_array(job, on_bad=on_bad, quiet=not progress)


class FaceClusterer:
    """Face clustering with scikit-learn's habits; the arguments are those of ``fcdeploy.cluster``.

    After ``fit``: labels_ (n,) int64, n_features_in_, summary_ (faces, clusters, singletons, seconds a stage).
    """

    def __init__(
        self,
        engine: PathLike,
        *,
        knn: PathLike = "auto",
        reranked: PathLike | None = None,
        k: int | None = None,
        hops: tuple[int, int] | None = None,
        tau: float | None = None,
        min_probability: float | None = None,
        inference: str = "auto",
        batch: int | None = None,
        threads: int = 0,
        memory: int = 0,
        uncovered: str | None = None,
        device: str | None = None,
        vram: int = 0,
        tables: str = "float32",
        link: str | None = None,
        scratch: PathLike | None = None,
        duplicates: str = "merge",
        on_bad: str = "stop",
        column: str | None = None,
    ) -> None:
        self.engine = engine
        self.knn = knn
        self.reranked = reranked
        self.k = k
        self.hops = hops
        self.tau = tau
        self.min_probability = min_probability
        self.inference = inference
        self.batch = batch
        self.threads = threads
        self.memory = memory
        self.uncovered = uncovered
        self.device = device
        self.vram = vram
        self.tables = tables
        self.link = link
        self.scratch = scratch
        self.duplicates = duplicates
        self.on_bad = on_bad
        self.column = column

    def fit(self, X: Any, y: Any = None) -> "FaceClusterer":
        """Cluster the rows of X (n, d); y is ignored, as scikit-learn's clusterers do."""
        result, width = self._cluster(X)
        self.labels_ = result.labels
        self.summary_ = result.summary
        self.n_features_in_ = width
        return self

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Cluster the rows of X (n, d) and return their labels (n,) int64."""
        return self.fit(X).labels_

    def score(self, X: Any, y: Any = None) -> float:
        """Cluster the rows of X (n, d) and return the pairwise F of these clusters, 0 to 1.

        y: (n,) true identities. What was fitted stays as it is: clusters of other faces say nothing about X. With it,
        ``GridSearchCV`` chooses settings on labelled faces. Raises InputError without y, or with one of another length.
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

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> "FaceClusterer":
        """Set constructor arguments by name; raises ValueError for a name that is none."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise ValueError(f"FaceClusterer has no parameter {name!r}; it has {', '.join(known)}.")
            setattr(self, name, value)
        return self

    def _cluster(self, X: Any) -> tuple[Result, int]:
        chosen = {
            name: value for name, value in self.get_params().items() if name not in ("engine", "column")
        }
        result = _run(X, self.engine, chosen, None, quiet=True, column=self.column)
        return result, read_bundle(self.engine).feature_dim

    # scikit-learn is not imported to be compatible with it: up to 1.5 it reads this attribute, from 1.6 on it asks for
    # tags (https://scikit-learn.org/stable/developers/develop.html#estimator-tags).
    _estimator_type = "clusterer"

    def __sklearn_tags__(self) -> Any:
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


def _same(value: Any, default: Any) -> bool:
    """Tell whether an argument is its default, whatever it is: an array compares element by element."""
    return value is default or (type(value) is type(default) and value == default)


def _run(
    features: Any,
    engine: PathLike,
    chosen: Mapping[str, Any],
    run_dir: PathLike | None,
    *,
    quiet: bool,
    column: str | None = None,
) -> Result:
    bundle = read_bundle(engine)
    opened: Features
    if _are_paths(features):
        scratch = Path(chosen["scratch"]) if chosen["scratch"] else None
        opened = open_features(features, bundle.feature_dim, column=column, scratch=scratch)
        if opened.doubted:  # what is read without doubt, the summary says
            warnings.warn(opened.note, FcdeployWarning, stacklevel=3)
    else:
        opened = features_from_array(features, bundle.feature_dim)
    knn, reranked, hops = str(chosen["knn"]), chosen["reranked"], chosen["hops"]
    usual = {
        **{name: _whole(name, chosen[name]) for name in ("k", "batch", "threads", "memory", "vram")},
        **{name: _real(name, chosen[name]) for name in ("tau", "min_probability")},
        "knn": knn,
        "reranked": Path(reranked) if reranked else None,
        "scratch": Path(chosen["scratch"]) if chosen["scratch"] else None,
        "hops": None if hops is None else tuple(np.atleast_1d(hops).tolist()),
    }
    given = {name: value for name, value in {**chosen, **usual}.items() if name != "on_bad"}
    options = Options(**given)
    if knn not in KNN_METHODS and not Path(knn).is_file():
        raise InputError(f"knn = {knn!r}: is neither 'auto', 'exact', 'ivf' nor a file of neighbor lists.")
    return run_clustering(opened, bundle, options, on_bad=chosen["on_bad"], run_dir=run_dir, quiet=quiet)


def _are_paths(features: Any) -> bool:
    """Tell whether features are given as files: a path, or several of shards."""
    if isinstance(features, (list, tuple)):
        return bool(features) and all(isinstance(each, (str, os.PathLike)) for each in features)
    return isinstance(features, (str, os.PathLike))


def _whole(name: str, value: Any) -> int | None:
    """Return a whole number of Python's or NumPy's, or None, as Python's; raises InputError for anything else."""
    try:
        return None if value is None else operator.index(value)
    except TypeError:
        raise InputError(f"{name} = {value!r}: expected a whole number.") from None


def _real(name: str, value: Any) -> float | None:
    """Return a number of Python's or NumPy's, or None, as Python's; raises InputError for anything else."""
    try:
        if isinstance(value, str):
            raise TypeError
        return None if value is None else float(value)
    except (TypeError, ValueError):
        raise InputError(f"{name} = {value!r}: expected a number.") from None
