"""The Python interface: ``fcdeploy.cluster``, ``fcdeploy.FaceClusterer`` and ``fcdeploy.embed``."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcdeploy.data.features import Features, features_from_array, open_features
from fcdeploy.data.filelist import filelist_from_paths, read_filelist
from fcdeploy.data.images import MAX_PIXELS
from fcdeploy.engine.bundle import read_bundle
from fcdeploy.engine.embedder import settings_from_table
from fcdeploy.errors import InputError
from fcdeploy.runtime.embed import embed_to_array, new_job
from fcdeploy.runtime.pipeline import KNN_METHODS, Options, Result, run_clustering

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
    run_dir: PathLike | None = None,
    progress: bool = False,
) -> np.ndarray:
    """Cluster face embeddings and return a label for each.

    features: an (n, d) array of floats, or the path of a ``.bin`` or ``.npy`` file; rows need not be normalised.
    engine: a bundle folder. knn: 'auto', 'exact', 'ivf' or a file of neighbor lists; reranked: a file of
    re-ranked lists. k, hops and tau replace those of the bundle's recipe. min_probability: what a link needs of a
    network that accepts or refuses it (SEPFL, NSR-FC), beyond being accepted. link: how NSR-FC makes clusters,
    'density-peaks' or 'pairs' (by its pair networks, the default where the engine has them). inference: 'exact',
    'layerwise', or 'auto', which is exact up to 20,000 faces. threads: 0 means all cores.
    memory: bytes to get along with; 0 means half of the machine's. uncovered: what becomes of faces that no cluster
    was found for (GCN-D), 'singleton' (a cluster of one, the default) or 'drop' (-1). device: 'cpu' or 'cuda', where
    the engine runs; vram: bytes of device memory to get along with, 0 for all. tables: 'float16' halves what layer-wise
    inference keeps between its layers, and rounds it. run_dir: keeps what every stage made, and continues there.
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
    }
    return _run(features, engine, chosen, run_dir, quiet=not progress).labels


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
    on_bad: str = "stop",
    batch: int | None = None,
    max_pixels: int = MAX_PIXELS,
    threads: int = 0,
    device: str = "cpu",
    progress: bool = False,
) -> np.ndarray:
    """Embed aligned face crops with an ONNX face embedder and return a row for each.

    images: the path of a list, one image path a line relative to the list, or the paths themselves. model: an ONNX
    file that takes pictures and gives embeddings; layout ('NCHW', 'NHWC'), size (pixels, or (height, width)), channels
    ('rgb', 'bgr', 'gray'), mean, scale (pixels become (pixel - mean) / scale) and output_tensor are read from the
    ``.toml`` beside it and the graph where they are not given. on_bad: 'stop' raises when an image cannot be
    embedded, 'zero' gives it a row of zeros. device: 'cpu' or 'cuda'. Returns (n, d) float32, not normalised. Raises
    fcdeploy.errors.InputError (a ValueError) for input that cannot be used.
    """
    if on_bad not in ("stop", "zero"):
        raise InputError(
            f"on_bad = {on_bad!r}: should be 'stop', or 'zero' for rows of zeros, which `any` finds."
        )
    for name, number, least in (("batch", batch, 1), ("threads", threads, 0), ("max_pixels", max_pixels, 1)):
        if number is not None and number < least:
            raise InputError(f"{name} = {number}: should be {least} or more.")
    if isinstance(images, (str, Path)):
        files = read_filelist(images)
    else:
        files = filelist_from_paths(images)
    given = {
        "layout": layout,
        "size": size,
        "channels": channels,
        "mean": mean,
        "scale": scale,
        "output_tensor": output_tensor,
    }
    settings = settings_from_table(
        {name: value for name, value in given.items() if value is not None}, "embed"
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

    def fit(self, X: Any, y: Any = None) -> "FaceClusterer":
        """Cluster the rows of X (n, d); y is ignored, as scikit-learn's clusterers do."""
        chosen = {name: value for name, value in self.get_params().items() if name != "engine"}
        result = _run(X, self.engine, chosen, None, quiet=True)
        self.labels_ = result.labels
        self.summary_ = result.summary
        self.n_features_in_ = read_bundle(self.engine).feature_dim
        return self

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Cluster the rows of X (n, d) and return their labels (n,) int64."""
        return self.fit(X).labels_

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

    def __repr__(self) -> str:
        return f"FaceClusterer({', '.join(f'{name}={value!r}' for name, value in self.get_params().items())})"


def _run(
    features: Any, engine: PathLike, chosen: Mapping[str, Any], run_dir: PathLike | None, *, quiet: bool
) -> Result:
    bundle = read_bundle(engine)
    opened: Features
    if isinstance(features, (str, Path)):
        opened = open_features(features, bundle.feature_dim)
    else:
        opened = features_from_array(features, bundle.feature_dim)
    knn, reranked, hops = str(chosen["knn"]), chosen["reranked"], chosen["hops"]
    usual = {
        "knn": knn,
        "reranked": Path(reranked) if reranked else None,
        "hops": None if hops is None else tuple(np.atleast_1d(hops).tolist()),
    }
    options = Options(**{**chosen, **usual})
    if knn not in KNN_METHODS and not Path(knn).is_file():
        raise InputError(f"knn = {knn!r}: is neither 'auto', 'exact', 'ivf' nor a file of neighbor lists.")
    return run_clustering(opened, bundle, options, run_dir=run_dir, quiet=quiet)
