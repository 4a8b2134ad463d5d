"""Networks in training, evaluated as they will be deployed: a run whose engines are their PyTorch modules."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch

from fcdeploy.data.features import Features
from fcdeploy.engine.tensors import Engine, Feeds, PassSpec, check_feeds
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.cells import Cells
from fcdeploy.graph.knn import KnnSearch
from fcdeploy.graph.search import Find, Room
from fcdeploy.run.options import Options
from fcdeploy.run.progress import Progress
from fcdeploy.run.run import Run
from fcdeploy.run.store import Store
from fcdeploy.runtime.prepare import given_lists
from fcdeploy.systems import Recipe, System, Weights
from fcdeploy.training.identities import check_albums

K = TypeVar("K")


class TorchEngine:
    """One pass of a network as an engine."""

    def __init__(self, module: torch.nn.Module, spec: PassSpec, device: torch.device) -> None:
        self.spec, self._module, self._device = spec, module, device
        self.provider = f"PyTorch on {device.type}"

    def run(self, feeds: Feeds) -> dict[str, np.ndarray]:
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
                "training diverged: the network's outputs for validation faces are no longer finite; start again with "
                "a lower --lr, in another --run-dir."
            )
        return found

    def run_each(self, batches: Iterable[tuple[K, Feeds]]) -> Iterator[tuple[K, dict[str, np.ndarray]]]:
        """Evaluate batches one after the other, in order."""
        for key, feeds in batches:
            yield key, self.run(feeds)

    def __enter__(self) -> "TorchEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class LiveEngines:
    """Networks as they were when ``renew`` was told of them last; passes are evaluated by PyTorch.

    system: whose networks; weights: their widths, by name; torch_device: where they are evaluated.
    """

    path = Path("training")  # how messages name it

    def __init__(self, system: System, weights: Weights, torch_device: torch.device) -> None:
        self.system, self.weights, self.torch_device = system.name, weights, torch_device
        self.passes = system.passes(weights)
        self._records = system.module("network").NETWORKS
        self._modules: dict[str, torch.nn.Module] = {}
        self._versions: dict[str, str] = {}

    @property
    def runtime(self) -> Mapping[str, str]:
        return {"torch": torch.__version__}

    def digest(self, passes: Collection[str] | None = None) -> str:
        """Return a hash of the versions of passes (all)."""
        versions = {
            name: self._versions.get(name, "") for name in self.passes if passes is None or name in passes
        }
        text = json.dumps([self.system, {name: str(w) for name, w in self.weights.items()}, versions])
        return hashlib.sha256(text.encode()).hexdigest()

    def device(self, asked: str | None = None) -> str:
        return "cpu"  # what the run itself does beside the networks, it does there

    def provider(self, asked: str | None = None) -> str:
        """Return the name of what evaluates the networks."""
        return f"PyTorch on {self.torch_device.type}"

    def renew(self, version: str, networks: Mapping[str, torch.nn.Module], settings: Recipe) -> None:
        """Take networks (the authors' modules, by name) as they are now; ``version`` tells them from others."""
        for name, module in networks.items():
            # A copy on the CPU, where weights are folded in float64.
            state = {key: tensor.detach().cpu().clone() for key, tensor in module.state_dict().items()}
            copied = self._records[name].from_state_dict(state)
            self._records[name].settle(copied, settings)
            for of, part in self._records[name].passes(copied).items():
                self._modules[of] = part.to(self.torch_device).eval()
                self._versions[of] = version

    @contextlib.contextmanager
    def open(
        self, name: str, *, threads: int = 0, device: str | None = None, vram: int = 0, share: int = 1
    ) -> Iterator[Engine]:
        """Open one pass, whose memory is PyTorch's."""
        yield TorchEngine(self._modules[name], self.passes[name], self.torch_device)


class WithinAlbums:
    """A search among the faces of the same album, as if each album was clustered alone.

    albums: (n,) int32, the set that each face belongs to.
    """

    in_cells, block, gpu_block = False, 8192, 8192

    def __init__(self, albums: np.ndarray) -> None:
        self.albums = albums
        self.settings: Mapping[str, object] = {}
        self.name = f"albums {hashlib.sha256(np.ascontiguousarray(albums).data).hexdigest()}"

    def decides(self, cells: Callable[[], Cells]) -> Mapping[str, object]:
        return {}

    @contextlib.contextmanager
    def open(self, vectors: np.ndarray, cells: Cells | None, k: int, room: Room) -> Iterator[Find]:
        """Prepare to find the k nearest rows of a face's album; raises InputError when an album has fewer than k."""
        albums, n = self.albums, len(self.albums)
        if len(vectors) != n:
            raise InputError("--splits: cannot be combined with [[proposals.merge]]; leave it out.")
        sizes = check_albums(albums, int(albums.max()) + 1, k, "training")  # validation: before
        order = np.argsort(albums, kind="stable").astype(np.int32)
        starts = np.cumsum(sizes) - sizes
        place = np.empty(n, dtype=np.int32)
        place[order] = np.arange(n, dtype=np.int32)

        def find(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            ids = np.empty((len(faces), k), dtype=np.int32)
            sims = np.empty((len(faces), k), dtype=np.float32)
            for album in np.unique(albums[faces]):
                members = order[starts[album] : starts[album] + sizes[album]]
                rows = np.flatnonzero(albums[faces] == album)
                search = KnnSearch(vectors[members])
                found, sims[rows] = search.search(place[faces[rows]] - np.int32(starts[album]), k)
                ids[rows] = members[found]
            return ids, sims

        yield find


def live_run(
    system: System,
    features: Features,
    recipe: Recipe,
    weights: Weights,
    options: Options,
    store: Store,
    device: torch.device,
    *,
    albums: np.ndarray | None = None,
    quiet: bool = True,
) -> Run:
    """Make a run over ``features`` for a recipe that fits them; ``weights`` are the widths of its networks.

    Its artifacts before the networks, such as the kNN lists, can be computed at once; the rest needs
    ``LiveEngines.renew``. albums: (n,) int32, the set that each face belongs to; neighbors are found within it.
    """
    return Run(
        features,
        LiveEngines(system, weights, device),
        recipe,
        options,
        store,
        Progress(quiet),
        given=given_lists(system, options, features, refill=True),  # faces of validation are left out of them
        search=None if albums is None else WithinAlbums(albums),
        unit_rows=system.title if system.unit_rows else None,
        final=False,
    )


def renew(run: Run, version: str, networks: Mapping[str, torch.nn.Module]) -> None:
    """Let a run of ``live_run`` use networks as they are now; what other versions computed is computed again."""
    assert isinstance(run.engines, LiveEngines)
    with torch.random.fork_rng():  # making copies of networks draws weights
        run.engines.renew(version, networks, run.settings)
