"""How L-GCN is trained: sub-graphs round faces, whose links to their one-hop neighbors are told real or not."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fcdeploy.engine.batching import Rows
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.subgraphs import LAYERS, Subgraphs, gather_subgraphs, own_positions
from fcdeploy.run.features import read_features
from fcdeploy.run.run import Run
from fcdeploy.systems import Weights
from fcdeploy.systems.folding import GraphConv
from fcdeploy.systems.habits import Figures, Habit, SuitedRecipe, reason_of_hops, reason_of_k
from fcdeploy.systems.l_gcn import flow
from fcdeploy.systems.l_gcn.network import LGcn
from fcdeploy.systems.l_gcn.spec import Recipe
from fcdeploy.systems.training_types import Schedule, Task, Training


@dataclass(frozen=True)
class Settings:
    """one, two: hops of the training sub-graphs; active: their connections; each as in the recipe where it is 0.

    The first release was trained with 200, 10 and 10, whatever its recipe says of the test.
    """

    one: int = 0
    two: int = 0
    active: int = 0

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        if min(self.one, self.two, self.active) < 0:
            return (
                f"one = {self.one}, two = {self.two} and active = {self.active} should be positive "
                "(0: as in the recipe)"
            )
        one = self.one or recipe.neighborhood.hops[0]
        if one >= n:
            return f"one = {one}, and a face has {n - 1:,} others"
        if max(self.two, self.active) > one:
            return f"two = {self.two} and active = {self.active} should be {one}, the hops of one, or less"
        return None


def task(run: Run, labels: np.ndarray, settings: Settings) -> Task[LGcn]:
    """An item is a face with the sub-graph round it, padded to the largest of its batch.

    What is learned is whether each one-hop neighbor is of the face's identity. Faces stand in the order of their
    distance from the one-hop neighbors, so that each layer takes a beginning of them; those further than four
    connections, which no output depends on, are left out.
    """
    near = run.settings.neighborhood
    one = settings.one or near.hops[0]
    two, active = settings.two or near.hops[1], settings.active or near.active
    if one != near.hops[0]:  # lists of another length are another product
        near = replace(near, hops=(one, two))
        run = replace(run, settings=replace(run.settings, neighborhood=near))
    vectors = read_features(run).array
    ids = flow.neighbors(run)["ids"]
    own = own_positions(ids, np.arange(run.n, dtype=np.int32))

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        centres = items.astype(np.int32)
        graphs = gather_subgraphs(ids, own, centres, (one, two), active)
        members, adj = dense_subgraphs(graphs)
        features = Rows(vectors, members).gather()
        features -= vectors[centres][:, None]
        same = labels[members[:, :one]] == labels[centres][:, None]
        return {
            "features": features,
            "adj": adj,
            "real": members >= 0,
            "rows": graphs.within.max(axis=0).astype(np.int64),
            "same": same.astype(np.int64),
        }

    return Task(run.n, batch, loss)


def dense_subgraphs(graphs: Subgraphs) -> tuple[np.ndarray, np.ndarray]:
    """Return faces (b, w) int32, -1 behind the last of a graph, and means over connected faces (b, v, w) float32.

    w: faces of the largest graph; v: those of it that are within 3 connections of the one-hop neighbors, whose rows
    of A are asked for. A row without connections is zero.
    """
    v, w = (int(graphs.within[:, at].max()) for at in (LAYERS - 1, LAYERS))
    members = np.where(np.arange(w) < graphs.within[:, -1:], graphs.faces[:, :w], np.int32(-1))
    adj = np.zeros((len(members), v, w), dtype=np.float32)
    _fill_means(graphs.within, graphs.connected, graphs.starts, adj)
    return members, adj


@njit(cache=True, nogil=True, parallel=True)
def _fill_means(within: np.ndarray, connected: np.ndarray, starts: np.ndarray, adj: np.ndarray) -> None:
    for g in prange(len(within)):
        for at in range(within[g, LAYERS - 1]):
            places = connected[g, starts[g, at] : starts[g, at + 1]]
            for place in places:
                adj[g, at, place] = np.float32(1) / np.float32(len(places))


def loss(net: LGcn, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy of all links of the batch; with by how much each is taken for a real one."""
    x = normalised(net, batch["features"], batch["real"])
    convs = (net.conv1, net.conv2, net.conv3, net.conv4)
    # A layer's outputs are wanted of faces within 3, 2, 1 and 0 connections of the one-hop neighbors.
    for conv, rows in zip(convs, batch["rows"].tolist()[LAYERS - 1 :: -1], strict=True):
        x = convolved(conv, x, batch["adj"], rows)
    logits = net.classifier(x.reshape(-1, x.shape[-1])).float()  # (b, k1, 256) -> (b k1, 2)
    return F.cross_entropy(logits, batch["same"].reshape(-1)), logits[:, 1] - logits[:, 0]


def normalised(net: LGcn, features: Tensor, real: Tensor) -> Tensor:
    """Features behind bn0, whose statistics are those of the faces; padding is no face (published: zeros count)."""
    x = torch.zeros_like(features)
    x[real] = net.bn0(features[real])
    return x


def convolved(conv: GraphConv, x: Tensor, adj: Tensor, rows: int) -> Tensor:
    """The first ``rows`` nodes behind a layer: x (b, n, d), adj (b, >= rows, >= n) -> (b, rows, h)."""
    mean = adj[:, :rows, : x.shape[1]] @ x
    return F.relu(torch.cat([x[:, :rows], mean], dim=-1) @ conv.weight + conv.bias)


def network(recipe: Recipe, weights: Weights) -> LGcn:
    """Return a network with random weights for the recipe's features."""
    return LGcn(recipe.feature_dim)


TRAINING = {
    "links": Training(
        Schedule(epochs=4, batch=16, lr=0.01, drops=(0.25, 0.5, 0.75), momentum=0.9, weight_decay=1e-4),
        Settings,
        network,
        task,
        Habit(27, 16, 0.05, mixed=True),
    )
}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces."""
    values = {"neighborhood.hops": [figures.k, 5], "neighborhood.active": 10}
    return SuitedRecipe(values, (reason_of_k(figures), reason_of_hops(values)))
