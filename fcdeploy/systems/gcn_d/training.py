"""How GCN-D is trained: proposals of the training faces, told how well each of them holds one person's faces."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fcdeploy.engine.batching import Rows
from fcdeploy.errors import InputError
from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.pairs import connect_members
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.run import Run
from fcdeploy.systems import Weights
from fcdeploy.systems.gcn_d import flow
from fcdeploy.systems.gcn_d.inputs import Graphs, seeds_of
from fcdeploy.systems.gcn_d.network import Dsgcn, Layer, settle
from fcdeploy.systems.gcn_d.spec import DETECT, SEGMENT, Recipe
from fcdeploy.systems.habits import Figures, Habit, Reason, SuitedRecipe, same_person_from
from fcdeploy.systems.training_types import Schedule, Task, Training

HIDDEN = (512, 64)  # widths of the published layers
LISTS = 80  # in which proposals are made
LARGEST = (300, 3000)  # faces that a proposal may have, at least and at most


@dataclass(frozen=True)
class Settings:
    """dropout behind every layer."""

    dropout: float = 0.5

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        return (
            None
            if 0 <= self.dropout < 1
            else f"dropout = {self.dropout} should lie in 0 to 1, 1 not included"
        )


def task(name: str, run: Run, labels: np.ndarray, settings: Settings) -> Task[Dsgcn]:
    """An item is a proposal as a graph, padded to the largest of its batch.

    What a detection network learns is a proposal's IoU with the faces of its majority identity; a segmentation
    network, whether a node is of the seed's identity (or, without a seed, of the majority).
    """
    vectors = read_features(run)
    knn = flow.nearest_neighbors(run, vectors, partition(run, "cells", vectors))
    proposals = flow.proposals_of(flow.proposed_clusters(run, vectors, knn))
    if not len(proposals):
        raise InputError(
            "the training faces give no proposals; lower the thresholds of the recipe's [[proposals]]."
        )
    sizes = proposals.sizes
    identity = labels.astype(np.int32)
    majority, overlap = best_matches(proposals.offsets, proposals.nodes, identity, np.bincount(identity))
    weighted = run.settings.graph.edge_weights == "similarity"
    seed = run.settings.segment.seed

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        width = int(sizes[items].max())
        members = np.full((len(items), width), -1, dtype=np.int32)
        for row, at in enumerate(items):
            members[row, : sizes[at]] = proposals.nodes[proposals.offsets[at] : proposals.offsets[at + 1]]
        adj = np.empty((len(items), width, width), dtype=np.float32)
        degrees = np.empty((len(items), width), dtype=np.float64)
        connect_members(
            members, sizes[items], proposals.ks[items], knn["ids"], knn["sims"], weighted, adj, degrees
        )
        table = vectors.array
        if run.settings.network.featureless:
            table = np.ones((run.n, 1), dtype=np.float32)
        nodes = Rows(table, members).gather()
        real = members >= 0
        arrays = {"adj": adj, "real": real}
        if name == DETECT:
            return {**arrays, "nodes": nodes, "overlap": overlap[items]}
        wanted = majority[items]
        if seed != "none":
            rows = np.arange(len(items))
            seeds = seeds_of(Graphs(items, members, adj, degrees), seed)
            nodes = np.concatenate([nodes, np.zeros_like(nodes[:, :, :1])], axis=2)
            nodes[rows, seeds, -1] = 1
            wanted = identity[members[rows, seeds]]
        same = np.where(real, identity[members] == wanted[:, None], False)
        return {**arrays, "nodes": nodes, "same": same.astype(np.int64)}

    losses = {DETECT: detection_loss, SEGMENT: segmentation_loss}
    return Task(len(proposals), batch, functools.partial(losses[name], dropout=settings.dropout))


@njit(cache=True, nogil=True, parallel=True)
def best_matches(
    offsets: np.ndarray, nodes: np.ndarray, identity: np.ndarray, totals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the majority identity (p,) int32 of each proposal, the smallest of equal ones, and its IoU (p,) float32.

    offsets, nodes: see ``Proposals``; identity: (n,) int32; totals: how many faces each identity has.
    """
    count = len(offsets) - 1
    majority, overlap = np.empty(count, dtype=np.int32), np.empty(count, dtype=np.float32)
    for p in prange(count):
        found = np.sort(identity[nodes[offsets[p] : offsets[p + 1]]])
        most = 0
        start = 0
        for at in range(1, len(found) + 1):
            if at == len(found) or found[at] != found[start]:
                if at - start > most:
                    most = at - start
                    majority[p] = found[start]
                start = at
        overlap[p] = most / (len(found) + totals[majority[p]] - most)
    return majority, overlap


def convolved(net: Dsgcn, batch: dict[str, Tensor], dropout: float) -> Tensor:
    """The nodes behind all layers, (b, n, h); padding is 0."""
    real = batch["real"].unsqueeze(-1)
    sums = batch["adj"].sum(dim=2, keepdim=True)
    sums = torch.where(real, sums, torch.ones_like(sums))
    x = batch["nodes"]
    for module in net.layers:
        layer: Layer = module  # type: ignore[assignment]
        x = F.dropout(torch.relu(batch["adj"] @ (x @ layer.gc.weight) / sums), dropout, net.training)
    for _ in range(net.depth):
        x = batch["adj"] @ x / sums
    return x


def detection_loss(net: Dsgcn, batch: dict[str, Tensor], dropout: float) -> tuple[Tensor, Tensor]:
    """Mean squared error of the scores; with the scores."""
    x, real = convolved(net, batch, dropout), batch["real"].unsqueeze(-1)
    if net.reduce == "max":
        x = x.masked_fill(~real, -torch.inf).amax(dim=1)
    else:
        x = x.sum(dim=1)
        x = x / real.sum(dim=1) if net.reduce == "mean" else x
    scores = net.classifier(x)[:, 0].float()
    return F.mse_loss(scores, batch["overlap"]), scores


def segmentation_loss(net: Dsgcn, batch: dict[str, Tensor], dropout: float) -> tuple[Tensor, Tensor]:
    """Negative log likelihood of the nodes; with by how much each is taken for a member."""
    logits = net.classifier(convolved(net, batch, dropout))[batch["real"]].float()
    return F.cross_entropy(logits, batch["same"][batch["real"]]), logits[:, 1] - logits[:, 0]


def network(name: str, recipe: Recipe, weights: Weights) -> Dsgcn:
    """Return a network with random weights; without layers where the recipe's only propagates."""
    dim = 1 if recipe.network.featureless else recipe.feature_dim
    hidden = () if recipe.network.depth and name == DETECT else HIDDEN
    seeded = name == SEGMENT and recipe.segment.seed != "none"
    net = Dsgcn(dim + seeded, hidden, 1 if name == DETECT else 2)
    for weight in net.layers.parameters():
        torch.nn.init.xavier_uniform_(weight)
    settle(net, recipe)
    return net


def _training(name: str, needs: tuple[str, ...] = ()) -> Training:
    schedule = Schedule(epochs=30, batch=32, lr=0.01, drops=(0.5, 0.8, 28 / 30), weight_decay=1e-4)
    return Training(
        schedule,
        Settings,
        functools.partial(network, name),
        functools.partial(task, name),
        Habit(5, 32, 0.05, settings={"dropout": "0"}),
        needs,
    )


# Segments of proposals become clusters by the scores of a detection network.
TRAINING = {DETECT: _training(DETECT), SEGMENT: _training(SEGMENT, (DETECT,))}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces: proposals by thresholds between two people and one."""
    labelled, size = figures.labelled, largest_proposal(figures.faces)
    thresholds = proposal_thresholds(labelled.boundary)
    cohesion = round(labelled.same / 2, 2)  # two people in equal parts are half as alike as one
    proposals = [
        {"k": LISTS, "threshold": threshold, "step": 0.05, "min_size": 2, "max_size": size}
        for threshold in thresholds
    ]
    alike = f"two faces of a person have a similarity of {labelled.same:g}; of a proposal, half that at least"
    reasons = (
        Reason("proposals", f"at {thresholds[0]:g} to {thresholds[-1]:g}", same_person_from(labelled)),
        Reason("min_cohesion", f"{cohesion}", alike),
        Reason("max_size", f"{size:,}", f"of {figures.faces:,} faces"),
    )
    values = {"proposals": proposals, "network.reduce": "mean", "overlap.min_cohesion": cohesion}
    return SuitedRecipe(values, reasons)


def largest_proposal(faces: int) -> int:
    """Return how many faces a proposal may have: a quarter of those to be clustered, within bounds."""
    return min(max(faces // 4, LARGEST[0]), LARGEST[1])


def proposal_thresholds(boundary: float) -> list[float]:
    """Return the similarities at which proposals are made: from a sixth of what is above the boundary to two thirds."""
    return [round(boundary + (1 - boundary) * at / 12, 3) for at in range(2, 9)]
