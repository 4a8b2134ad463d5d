"""Networks in training, evaluated as they will be deployed: a run whose engines are their PyTorch modules."""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import numba
import numpy as np
import torch

from fcdeploy.data.features import Features
from fcdeploy.engine.bundle import Bundle
from fcdeploy.engine.tensors import Engine, PassSpec, check_feeds
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.faiss_library import import_faiss
from fcdeploy.graph.knn import KnnGraph, KnnSearch
from fcdeploy.runtime.pipeline import Options, Work
from fcdeploy.runtime.progress import Progress
from fcdeploy.runtime.run_folder import Arrays, Store
from fcdeploy.systems import System, Weights
from fcdeploy.training.identities import check_albums
from fcdeploy.training.sweep import SweepRun

K = TypeVar("K")


class TorchEngine:
    """One pass of a network as an engine."""

    def __init__(self, module: torch.nn.Module, spec: PassSpec, device: torch.device) -> None:
        self.spec, self._module, self._device = spec, module, device
        self.provider = f"PyTorch on {device.type}"

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Evaluate the pass in float32.

        Raises FcdeployError when ``feeds`` is not what ``spec`` says, and when training has diverged.
        """
        check_feeds(feeds, self.spec.inputs, f"pass {self.spec.name}")
        with torch.inference_mode():
            tensors = (
                torch.from_numpy(np.array(feeds[tensor.name])).to(self._device) for tensor in self.spec.inputs
            )
            outputs = self._module(*tensors)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        names = (tensor.name for tensor in self.spec.outputs)
        found = {name: output.cpu().numpy() for name, output in zip(names, outputs, strict=True)}
        if not all(np.isfinite(values).all() for values in found.values()):
            raise FcdeployError(
                "training diverged: what the network says of validation faces is no longer finite; start again with "
                "a lower --lr, in another --run-dir."
            )
        return found

    def run_each(
        self, batches: Iterable[tuple[K, Mapping[str, np.ndarray]]]
    ) -> Iterator[tuple[K, dict[str, np.ndarray]]]:
        """Evaluate batches one after the other, in order."""
        for key, feeds in batches:
            yield key, self.run(feeds)

    def __enter__(self) -> "TorchEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@dataclass(kw_only=True)
class LiveRun(SweepRun):
    """A run whose engines are the networks given to ``renew`` as they are then; its bundle has no files.

    specs: the passes of its networks, by name. torch_device: where they are evaluated. albums: (n,) int32, the set
    that each face belongs to; neighbors are found within it, as if each was clustered alone. None: all are one.
    """

    refills_lists: ClassVar[bool] = True  # faces of validation are left out of them

    system: System
    specs: Mapping[str, PassSpec]
    torch_device: torch.device
    albums: np.ndarray | None = None
    modules: dict[str, torch.nn.Module] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

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
        """Find the k nearest neighbors of every face, those in its album; see ``Run.knn``.

        Raises InputError when an album has fewer than k.
        """
        if self.albums is None:
            return super().knn(name, vectors, k, made_of, text, clip=clip, above=above, cells=cells)
        if len(vectors) != self.n:
            raise InputError("--albums: does not go with proposals of several levels; leave it out.")
        sizes = check_albums(self.albums, int(self.albums.max()) + 1, k, "training")  # validation: before
        order = np.argsort(self.albums, kind="stable").astype(np.int32)
        starts = np.cumsum(sizes) - sizes
        place = np.empty(self.n, dtype=np.int32)
        place[order] = np.arange(self.n, dtype=np.int32)
        albums = self.albums

        @contextlib.contextmanager
        def worker() -> Iterator[Work]:
            def work(faces: np.ndarray) -> Arrays:
                ids = np.empty((len(faces), k), dtype=np.int32)
                sims = np.empty((len(faces), k), dtype=np.float32)
                for album in np.unique(albums[faces]):
                    members = order[starts[album] : starts[album] + sizes[album]]
                    rows = np.flatnonzero(albums[faces] == album)
                    search = KnnSearch(vectors[members])
                    found, sims[rows] = search.search(place[faces[rows]] - np.int32(starts[album]), k)
                    ids[rows] = members[found]
                return {"ids": ids, "sims": np.clip(sims, 0, 1) if clip else sims}

            yield work

        made_of = {**made_of, "k": k, "clip": clip, "albums": hashlib.sha256(albums.data).hexdigest()}
        arrays = self.make(name, made_of, worker, text=text, order=order)
        return KnnGraph(arrays["ids"], arrays["sims"]), made_of

    def renew(self, version: str, networks: Mapping[str, torch.nn.Module]) -> None:
        """Take networks (the authors' modules, by name) as they are now; what another version made is made again."""
        records = self.system.module("network").NETWORKS
        for name, module in networks.items():
            # A copy on the CPU, where weights are folded in float64.
            state = {key: tensor.detach().cpu().clone() for key, tensor in module.state_dict().items()}
            copied = records[name].from_state_dict(state)
            records[name].settle(copied, self.settings)
            for of, part in records[name].passes(copied).items():
                self.modules[of] = part.to(self.torch_device).eval()
                self.versions[of] = version
        self.bundle = Bundle(
            self.bundle.path, {**self.bundle.manifest, "passes": described(self.specs, self.versions)}
        )

    @property
    def provider(self) -> str:
        """What evaluates the networks."""
        return f"PyTorch on {self.torch_device.type}"

    @cached_property
    def libraries(self) -> dict[str, str]:
        """The versions of the libraries that results may depend on, by name."""
        modules = np, numba, import_faiss(), torch
        return {module.__name__: module.__version__ for module in modules}

    @contextlib.contextmanager
    def engine(self, name: str, share: int = 1) -> Iterator[Engine]:
        """Open one pass of the networks, whose memory is PyTorch's."""
        yield TorchEngine(self.modules[name], self.specs[name], self.torch_device)


def described(specs: Mapping[str, PassSpec], versions: Mapping[str, str]) -> dict[str, Any]:
    """Describe passes as a manifest does, with their versions in the place of a file's hash."""
    return {
        name: {"file": name, "sha256": versions.get(name, ""), **spec.as_dict()}
        for name, spec in specs.items()
    }


def live_run(
    system: System,
    features: Features,
    recipe: Any,
    weights: Weights,
    options: Options,
    store: Store,
    device: torch.device,
    *,
    quiet: bool = True,
) -> LiveRun:
    """Make a run over ``features`` for a recipe that fits them; ``weights`` are the widths of its networks.

    Its products before the networks, such as the kNN lists, can be made at once; the rest needs ``renew``.
    """
    specs = system.passes(weights)
    manifest = {
        "system": system.name,
        "feature_dim": features.dim,
        "networks": {name: {"widths": dict(widths)} for name, widths in weights.items()},
        "passes": described(specs, {}),
    }
    return LiveRun(
        features,
        Bundle(Path("training"), manifest),
        recipe,
        options,
        store,
        Progress(quiet),
        system=system,
        specs=specs,
        torch_device=device,
    )
