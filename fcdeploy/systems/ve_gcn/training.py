"""How GCN-V and GCN-E are trained: told how purely neighbors are of a face's identity, and which candidates are.

GCN-V is one convolution over a graph that does not change: means over edges are computed once, and a step is over some
faces (as published, over the whole graph, 80,000 times). GCN-E stands behind a GCN-V that was trained before; its
graphs of candidates are made for each step (as published, once, and held in memory).
"""

import math
from collections.abc import Mapping
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
from fcdeploy.systems.habits import Figures, Habit, Reason, SuitedRecipe, reason_of_k
from fcdeploy.systems.training_types import Schedule, Task, Training
from fcdeploy.systems.ve_gcn import flow
from fcdeploy.systems.ve_gcn.edges import sum_over_edges
from fcdeploy.systems.ve_gcn.inputs import candidates_of, graphs_among, ignored_faces
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
# Of GCN-E's: centres on whose candidates it is fitted, and the weight of neighbors' distances beside a candidate's own.
FITTED_CENTRES, NEAR, NEWTON_STEPS = 256, 1 / 3, 20


@dataclass(frozen=True)
class VertexSettings:
    """start: "random" weights, as published, or "similarity", see ``start_from_similarity``."""

    start: str = RANDOM

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        return problem_of_start(self.start)


@dataclass(frozen=True)
class EdgeSettings:
    """ignore_ratio: the share of faces, of lowest confidence, that are not trained on; published for MS1M.

    start: "random" weights, as published, or "similarity", see ``start_from_distance``.
    """

    ignore_ratio: float = 0.7
    start: str = RANDOM

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        ratio = self.ignore_ratio
        if not 0 <= ratio < 1:
            return f"ignore_ratio = {ratio} should lie in 0 to 1, 1 not included"
        return problem_of_start(self.start)


def problem_of_start(start: str) -> str | None:
    """Return what is wrong with the name of a start, or None."""
    return None if start in (RANDOM, SIMILARITY) else f"start = {start} is neither {RANDOM} nor {SIMILARITY}"


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
    """An item is a face with its candidates, one behind the other, without padding.

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
        of = np.repeat(chosen.centres, chosen.counts)
        features = table[chosen.faces]
        features -= table[of]
        shares = graphs_among(edges, chosen).shares
        same = (labels[chosen.faces] == labels[of]).astype(np.int64)
        return {
            "features": features,
            "shares": shares.astype(np.float32),
            "counts": chosen.counts,
            "same": same,
        }

    task = Task(len(centres), batch, edge_loss)
    if settings.start == RANDOM or not len(centres):
        return task
    some = batch(np.arange(0, len(centres), -(-len(centres) // FITTED_CENTRES)), np.random.default_rng(0))
    return replace(task, start=partial(start_from_distance, batch=some))


def logits_of(net: GcnE, batch: Mapping[str, Tensor]) -> Tensor:
    """GCN-E of all candidates of a batch, (c, 2): products over all of them, means within those of each centre."""
    x, sizes = batch["features"], batch["counts"].tolist()
    graphs = [
        shares.view(size, size)
        for shares, size in zip(batch["shares"].split([size**2 for size in sizes]), sizes, strict=True)
    ]
    for conv in (net.conv1, net.conv2, net.conv3, net.conv4):
        means = torch.cat([graph @ rows for graph, rows in zip(graphs, x.split(sizes), strict=True)])
        x = F.relu(torch.cat([x, means], dim=-1) @ conv.weight + conv.bias)  # (c, 2 w) -> (c, w')
    logits: Tensor = net.classifier(x)
    return logits.float()


def edge_loss(net: GcnE, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy, a mean over candidates and then over faces; with by how much each is taken for a real one."""
    logits, counts = logits_of(net, batch), batch["counts"]
    losses = F.cross_entropy(logits, batch["same"], reduction="none")
    each = torch.repeat_interleave(1 / counts.float(), counts) / len(counts)
    return (losses * each).sum(), logits[:, 1] - logits[:, 0]


def start_from_distance(net: GcnE, batch: Mapping[str, np.ndarray]) -> None:
    """Set weights so that the odds of a candidate fall with its distance to the face, and with those of its neighbors.

    From random weights a network is long in finding out that a difference has a length, and learns by heart whose
    differences they are. Here the first layer's units come in pairs, relu(u . x) and relu(-u . x), of a candidate's
    difference x and directions u, orthonormal ones that follow from the random weights; their sum is about
    proportional to the length of x. Half of the units of each layer behind it hand this sum on, the second with its
    mean over neighbors; the others stay small. batch: of a task, on which scale and offset are fitted.
    """
    conv1, conv2 = net.conv1, net.conv2
    first, last = (layer for layer in net.classifier if isinstance(layer, nn.Linear))
    d, hidden = conv1.weight.shape[0] // 2, conv1.weight.shape[1]
    pairs, half = min(d, hidden // 2), hidden // 2
    some, few = max(1, hidden // 2), max(1, half // 2)  # units that hand it on
    with torch.no_grad():
        directions = torch.linalg.qr(conv1.weight[:d, :pairs])[0]
        for name, parameter in net.named_parameters():
            if parameter.dim() > 1:
                parameter.mul_(KEPT)
            elif name.endswith("bias"):
                parameter.zero_()
        conv1.weight[:d, : 2 * pairs : 2] += directions
        conv1.weight[:d, 1 : 2 * pairs : 2] -= directions
        length = pairs * (2 / (math.pi * d)) ** 0.5  # sum of |u . x| of an x of length 1, about
        conv2.weight[: 2 * pairs, :some] += (1 - NEAR) / length
        conv2.weight[hidden : hidden + 2 * pairs, :some] += NEAR / length
        net.conv3.weight[:some, :few] += 1 / some
        net.conv4.weight[:few, :few] += 1 / few
        first.weight[:few, :few] += 1 / few
        last.weight[0, :few] += 0.5 / few
        last.weight[1, :few] -= 0.5 / few
        tensors = {name: torch.from_numpy(array) for name, array in batch.items()}
        logits = logits_of(net, tensors)
        slope, offset = fitted_odds(logits[:, 1] - logits[:, 0], tensors["same"])
        last.weight *= slope
        last.bias.copy_(torch.tensor([-offset / 2, offset / 2]))


def fitted_odds(said: Tensor, same: Tensor) -> tuple[float, float]:
    """Return by what ``said`` (c,) has to be multiplied, and what added, to be the log odds of ``same`` (c,).

    A logistic regression by Newton's method; 1 and 0 where nothing can be learned from these.
    """
    x, y = said.double(), same.double()
    centre, spread = x.mean(), x.std()
    if not spread > 0 or not 0 < y.mean() < 1:
        return 1.0, 0.0
    rows = torch.stack([(x - centre) / spread, torch.ones_like(x)], dim=1)
    weights = torch.zeros(2, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        chance = torch.sigmoid(rows @ weights)
        curvature = (rows * (chance * (1 - chance) + 1e-6)[:, None]).T @ rows
        weights += torch.linalg.solve(curvature, rows.T @ (y - chance) - 1e-6 * weights)
    slope = float(weights[0] / spread)
    if not 0 < slope < math.inf:
        return 1.0, 0.0
    return slope, float(weights[1] - slope * centre)


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
        Habit(5, 256, 0.003, mixed=True, share=0.3, settings={"start": SIMILARITY}),
    ),
    "edge": Training(
        Schedule(epochs=40, batch=32, lr=0.1, drops=(0.5, 0.8, 0.9), momentum=0.9, weight_decay=1e-5),
        EdgeSettings,
        edge_network,
        edge_task,
        Habit(0.5, 16, 0.01, mixed=True, share=0.7, settings={"ignore_ratio": "0", "start": SIMILARITY}),
        needs=("vertex",),
    ),
}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces."""
    values = {"graph.k": figures.k, "links.k": min(8 * figures.k, LONG_LINKS), "edge.ignore_ratio": 0.0}
    every = Reason(
        "ignore_ratio",
        "0",
        "GCN-E decides for all faces, as the most confident ones link correctly without it",
    )
    return SuitedRecipe(values, (reason_of_k(figures), every))
