"""How GCN-V and GCN-E are trained: told how purely neighbors are of a face's identity, and which candidates are.

GCN-V is one convolution over a graph that does not change: means over edges are computed once, and a step is over some
faces (as published, over the whole graph, 80,000 times). GCN-E stands behind a GCN-V that was trained before; its
graphs of candidates are made for each step (as published, once, and held in memory).
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.run import Run
from fcdeploy.systems import Weights
from fcdeploy.systems.habits import Figures, Habit, SuitedRecipe, reason_of_k
from fcdeploy.systems.training_types import Schedule, Task, Training
from fcdeploy.systems.ve_gcn import flow
from fcdeploy.systems.ve_gcn.edges import sum_over_edges
from fcdeploy.systems.ve_gcn.inputs import Candidates, candidates_of, graphs_among, ignored_faces
from fcdeploy.systems.ve_gcn.network import GcnE, GcnV
from fcdeploy.systems.ve_gcn.spec import Recipe

HIDDEN = 512  # of both published networks
BLOCK = 65536
LONG_LINKS = 320  # of lists in which links are looked for, at most: shorter ones take large people apart
RANDOM, SIMILARITY = "random", "similarity"
# Of a start from similarity: the share that is kept of random weights, and how far the layer that adds hidden features
# up makes them smaller, so that both layers of the classifier learn at one rate.
KEPT, SMALLER = 0.1, 4
FITTED_FACES = 8192  # on which the scale of that start is chosen, at most


@dataclass(frozen=True)
class VertexSettings:
    """start: "random" weights, as published, or "similarity", see ``start_from_similarity``."""

    start: str = RANDOM

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        if self.start not in (RANDOM, SIMILARITY):
            return f"start = {self.start} is neither {RANDOM} nor {SIMILARITY}"
        return None


@dataclass(frozen=True)
class EdgeSettings:
    """ignore_ratio: the share of faces, of lowest confidence, that are not trained on; published for MS1M."""

    ignore_ratio: float = 0.7

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        ratio = self.ignore_ratio
        return None if 0 <= ratio < 1 else f"ignore_ratio = {ratio} should lie in 0 to 1, 1 not included"


def purity(ids: np.ndarray, sims: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the confidence (n,) float32 that GCN-V learns: similarities to one's own identity minus those to others.

    ids, sims: (n, k), all entries of the lists, the face itself included; labels: (n,) int64. Added up in float64,
    rounded, and divided by the largest size of all (``s_nbr`` of the publication).
    """
    sums = np.empty(len(ids), dtype=np.float32)
    for start in range(0, len(ids), BLOCK):
        block = slice(start, start + BLOCK)
        near = 1 - (np.float32(1) - sims[block]).astype(np.float64)
        same = labels[ids[block]] == labels[block, None]
        sums[block] = np.where(same, near, -near).sum(axis=1)
    largest = np.abs(sums).max(initial=np.float32(0))
    return sums / largest if largest > 0 else sums


def vertex_task(run: Run, labels: np.ndarray, settings: VertexSettings) -> Task[GcnV]:
    """An item is a face with the mean over its edges, and how purely its neighbors are of its identity."""
    vectors, lists, graph = read_features(run), flow.neighbors(run), run.settings.graph
    edges = flow.edges_in(flow.edges_of(run, "edges", lists, graph.k, graph.th_sim))
    wanted = purity(lists["ids"][:, : graph.k], lists["sims"][:, : graph.k], labels)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        faces = items.astype(np.int32)
        return {
            "features": vectors.array[faces],
            "connected": sum_over_edges(edges, faces, vectors.array),
            "purity": wanted[faces],
        }

    task = Task(run.n, batch, vertex_loss)
    if settings.start == RANDOM:
        return task
    some = np.arange(0, run.n, -(-run.n // FITTED_FACES), dtype=np.int32)
    rows = np.concatenate([vectors.array[some], sum_over_edges(edges, some, vectors.array)], axis=1)
    return replace(task, start=partial(start_from_similarity, rows=rows, wanted=wanted[some]))


def start_from_similarity(net: GcnV, rows: np.ndarray, wanted: np.ndarray) -> None:
    """Set weights so that the confidence grows with a face's similarity to its neighbors; others stay small.

    A network with random weights has to find out from few people that a face and its neighbors are compared, and learns
    these people by heart. Here hidden features come in pairs, relu(u . z) and relu(-u . z), of z, the face plus the
    mean over its edges, and directions u, orthonormal ones that follow from the random weights; their sum is about
    proportional to the length of z, and that grows with the similarity. rows: (m, 2d), faces beside their means, and
    wanted: (m,), their purity, on which scale and offset are fitted.
    """
    conv = net.conv1
    first, last = (layer for layer in net.classifier if isinstance(layer, nn.Linear))
    d, hidden = conv.weight.shape[0] // 2, conv.weight.shape[1]
    pairs, half = min(d, hidden // 2), hidden // 2
    with torch.no_grad():
        directions = torch.linalg.qr(conv.weight[:d, :pairs])[0]
        for weight in (conv.weight, first.weight, last.weight):
            weight *= KEPT
        for bias in (conv.bias, first.bias, last.bias):
            bias.zero_()
        for side in (conv.weight[:d], conv.weight[d:]):
            side[:, : 2 * pairs : 2] += directions
            side[:, 1 : 2 * pairs : 2] -= directions
        first.weight[:half] += d**-0.5 / SMALLER
        last.weight[0, :half] += 1 / half
        said = net.classifier(F.relu(torch.from_numpy(rows) @ conv.weight + conv.bias)).squeeze(-1).double()
        spread, aim = said - said.mean(), torch.from_numpy(wanted).double()
        slope = (spread @ (aim - aim.mean())) / (spread @ spread)
        if not slope > 0:  # nothing to learn it from
            slope = torch.ones((), dtype=torch.float64)
        last.weight *= slope.float()
        last.bias.fill_(float(aim.mean() - slope * said.mean()))


def vertex_loss(net: GcnV, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Mean squared error of the confidence; with the confidence."""
    rows = torch.cat([batch["features"], batch["connected"]], dim=-1)  # (b, d) each -> (b, 2d)
    hidden = F.relu(rows @ net.conv1.weight + net.conv1.bias)
    confidence = net.classifier(hidden).squeeze(-1).float()
    return F.mse_loss(confidence, batch["purity"]), confidence


def edge_task(run: Run, labels: np.ndarray, settings: EdgeSettings) -> Task[GcnE]:
    """An item is a face with its candidates, padded to the most of its batch.

    What is learned is whether each candidate is of the face's identity.
    """
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    lists = flow.nearest_neighbors(run, vectors, cells)
    vertex = flow.confidences(run, vectors, cells, lists)
    features = vectors
    if run.settings.transforms:
        features = flow.transformed_features(run, vertex)
        lists = flow.transformed_neighbors(run, features, partition(run, "transformed_cells", features))
    k, table = run.settings.links.k, features.array
    edges = flow.edges_in(flow.edges_of(run, "connected_edges", lists, k, run.settings.edge.th_sim))
    everyone = candidates_of(lists["ids"][:, :k], vertex["confidence"], np.arange(run.n, dtype=np.int32))
    asked = (everyone.counts > 1) & ~ignored_faces(vertex["confidence"], settings.ignore_ratio)
    centres = np.flatnonzero(asked).astype(np.int32)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        chosen = candidates_of(lists["ids"][:, :k], vertex["confidence"], centres[items])
        members, adj = dense_graphs(chosen, graphs_among(edges, chosen).shares)
        features = table[members]
        features -= table[chosen.centres][:, None]
        same = labels[members] == labels[chosen.centres][:, None]
        real = np.arange(members.shape[1]) < chosen.counts[:, None]
        return {"features": features, "adj": adj, "real": real, "same": same.astype(np.int64)}

    return Task(len(centres), batch, edge_loss)


def dense_graphs(chosen: Candidates, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return candidates (b, w) int32, face 0 behind the last of a centre, and their means (b, w, w) float32.

    shares: the graphs row by row, see ``CandidateGraphs``; a row of padding is zero.
    """
    counts = chosen.counts
    inside = np.arange(counts.max()) < counts[:, None]
    members = np.zeros(inside.shape, dtype=np.int32)
    members[inside] = chosen.faces
    adj = np.zeros((*inside.shape, inside.shape[1]), dtype=np.float32)
    adj[inside[:, :, None] & inside[:, None, :]] = shares
    return members, adj


def edge_loss(net: GcnE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy, a mean over candidates and then over faces; with by how much each is taken for a real one."""
    x, adj, real = batch["features"], batch["adj"], batch["real"]
    for conv in (net.conv1, net.conv2, net.conv3, net.conv4):
        x = conv(x, adj)
    logits = net.classifier(x.reshape(-1, x.shape[-1])).float()  # (b, w, h / 2) -> (b w, 2)
    losses = F.cross_entropy(logits, batch["same"].reshape(-1), reduction="none").reshape(real.shape)
    means = (losses * real).sum(dim=1) / real.sum(dim=1)
    return means.mean(), (logits[:, 1] - logits[:, 0])[real.reshape(-1)]


def vertex_network(recipe: Recipe, weights: Weights) -> GcnV:
    """Return a GCN-V with random weights for the recipe's features."""
    return GcnV(recipe.feature_dim, HIDDEN)


def edge_network(recipe: Recipe, weights: Weights) -> GcnE:
    """Return a GCN-E with random weights for what the recipe gives it."""
    vertex = weights["vertex"]
    return GcnE(vertex["hidden"] if recipe.transforms else vertex["dim"], HIDDEN)


TRAINING = {
    "vertex": Training(
        Schedule(epochs=80, batch=256, lr=0.1, drops=(0.5, 0.8, 0.9), momentum=0.9, weight_decay=1e-5),
        VertexSettings,
        vertex_network,
        vertex_task,
        Habit(5, 256, 0.003, mixed=True, settings={"start": SIMILARITY}),
    ),
    "edge": Training(
        Schedule(epochs=40, batch=32, lr=0.1, drops=(0.5, 0.8, 0.9), momentum=0.9, weight_decay=1e-5),
        EdgeSettings,
        edge_network,
        edge_task,
        Habit(5, 64, 0.01, mixed=True, by_name=True),  # GCN-V links well without it
        needs=("vertex",),
    ),
}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces."""
    values = {"graph.k": figures.k, "links.k": min(8 * figures.k, LONG_LINKS)}
    return SuitedRecipe(values, (reason_of_k(figures),))
