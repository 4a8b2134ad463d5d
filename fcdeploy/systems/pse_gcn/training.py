"""How PSE-GCN is trained: neighborhoods filled up with look-alikes, and a margin between the two hardest members."""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fcdeploy.graph.kernels import njit, prange
from fcdeploy.graph.knn import KnnGraph
from fcdeploy.graph.marks import new_scratch, unmark
from fcdeploy.graph.neighborhoods import connect_neighborhoods, gather_neighborhoods
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.run import Run
from fcdeploy.systems import Weights, augmentation
from fcdeploy.systems.augmentation import mirrors, noisy
from fcdeploy.systems.habits import Figures, Habit, SuitedRecipe, reason_of_hops, reason_of_k
from fcdeploy.systems.pse_gcn import flow
from fcdeploy.systems.pse_gcn.network import PseGcn
from fcdeploy.systems.pse_gcn.spec import NeighborhoodSettings, Recipe
from fcdeploy.systems.training_types import Schedule, Task, Training

PUBLISHED, MULTI_SIMILARITY = "published", "multi-similarity"
# Of multi-similarity: how sharply hard pairs of one person, and of two, stand out, and the similarity between them.
SHARP_SAME, SHARP_OTHER, BETWEEN = 4.0, 30.0, 0.5
LOOK_ALIKES = 32  # identities that a neighborhood is filled from, before faces are taken as they come
MEANS_BLOCK = 1024
FEW_PEOPLE = 2000  # that a network learns by heart
MIRRORED = 0.15  # of the coordinates
NOISE = 0.45  # of the distance between two faces of a person


@dataclass(frozen=True)
class Settings:
    """nodes of a training neighborhood (0, as published: hops[0] * hops[1] + 1).

    loss: "published", whose a is ``margin``, or "multi-similarity". flips: share of the coordinates that are mirrored
    (see ``mirrors``); noise: the length, about, of what is added to each feature (see ``noisy``). 0, as published, is
    none of either.
    """

    nodes: int = 0
    margin: float = 0.9
    loss: str = PUBLISHED
    flips: float = 0.0
    noise: float = 0.0

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        if self.nodes < 0 or self.nodes == 1:
            return f"nodes = {self.nodes} should be 2 or more (0: as published)"
        if not 0 <= self.margin <= 1:
            return f"margin = {self.margin} should lie in 0 to 1"
        if self.loss not in (PUBLISHED, MULTI_SIMILARITY):
            return f"loss = {self.loss} is neither {PUBLISHED} nor {MULTI_SIMILARITY}"
        return augmentation.problem(self.flips, self.noise)


def task(run: Run, labels: np.ndarray, settings: Settings) -> Task[PseGcn]:
    """An item is a face with its neighborhood, all of the same number of nodes."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = flow.nearest_neighbors(run, vectors, cells)
    ranked = flow.reranked_lists(run, vectors, cells, knn)
    return neighborhood_task(run, vectors.array, knn.lists, ranked["ids"], labels, settings)


def neighborhood_task(
    run: Run,
    vectors: np.ndarray,
    knn: KnnGraph,
    ranked: np.ndarray,
    labels: np.ndarray,
    settings: Settings,
) -> Task[PseGcn]:
    """The same from features (n, d) and kNN lists, and re-ranked ones, (n, k) int32."""
    near = run.settings.neighborhood
    cap = min(settings.nodes or near.hops[0] * near.hops[1] + 1, run.n)
    identity = labels.astype(np.int32)
    look_alikes = nearest_identities(vectors, identity)
    members = np.argsort(identity, kind="stable").astype(np.int32)
    starts = np.searchsorted(identity[members], np.arange(identity.max() + 2)).astype(np.int64)
    scratch = new_scratch(run.n)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        centres = items.astype(np.int32)
        found, sizes = gather_neighborhoods(ranked, centres, near.hops[0], near.hops[1], scratch)
        turns = rng.integers(0, 1 << 30, (len(items), LOOK_ALIKES))
        nodes = fill_neighborhoods(found, sizes, cap, identity, look_alikes, starts, members, turns, scratch)
        adj = np.empty((len(nodes), cap, cap), dtype=np.float32)
        connect_neighborhoods(nodes, np.full(len(nodes), cap, np.int32), knn.ids, knn.sims, near.active, adj)
        features = vectors[nodes]
        if settings.flips:
            features *= mirrors(len(nodes), features.shape[-1], settings.flips, rng)[:, None]
        if settings.noise:
            features = noisy(features, settings.noise, rng)
        return {"features": features, "adj": adj, "identity": identity[nodes]}

    chosen = partial(loss, margin=settings.margin) if settings.loss == PUBLISHED else multi_similarity_loss
    return Task(run.n, batch, chosen)


def nearest_identities(vectors: np.ndarray, identity: np.ndarray) -> np.ndarray:
    """Return the other identities of most similar mean feature, most similar first: (m, at most LOOK_ALIKES) int32.

    vectors: (n, d) float32; identity: (n,) int32 of 0 to m - 1, none without a face.
    """
    m = int(identity.max()) + 1
    order = np.argsort(identity, kind="stable")
    firsts = np.searchsorted(identity[order], np.arange(m))
    means = np.add.reduceat(vectors[order], firsts, axis=0)
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.float32(1e-12))
    k = min(LOOK_ALIKES, m - 1)
    nearest = np.empty((m, k), dtype=np.int32)
    for start in range(0, m, MEANS_BLOCK):
        sims = means[start : start + MEANS_BLOCK] @ means.T
        rows = np.arange(len(sims))
        sims[rows, start + rows] = -np.inf
        part = np.argpartition(-sims, k - 1, axis=1)[:, :k] if k else np.empty((len(sims), 0), int)
        order = np.argsort(-np.take_along_axis(sims, part, 1), axis=1, kind="stable")
        nearest[start : start + MEANS_BLOCK] = np.take_along_axis(part, order, 1)
    return nearest


@njit(cache=True, nogil=True, parallel=True)
def fill_neighborhoods(
    found: np.ndarray,
    sizes: np.ndarray,
    cap: int,
    identity: np.ndarray,
    look_alikes: np.ndarray,
    starts: np.ndarray,
    members: np.ndarray,
    turns: np.ndarray,
    scratch: np.ndarray,
) -> np.ndarray:
    """Cut or fill neighborhoods to ``cap`` <= n nodes: the centre first, no face twice.

    found (b, w) int32 and sizes (b,): as ``gather_neighborhoods`` gives them. Filled with members of the identities
    that look like the centre's, one identity after the other, then with the faces that follow the centre's.
    look_alikes: (m, t) int32; members[starts[i] : starts[i + 1]]: the faces of identity i; turns (b, >= t): the member
    that is taken first, modulo their number; scratch: ``new_scratch(n)``. Returns (b, cap) int32.
    """
    out = np.empty((len(found), cap), dtype=np.int32)
    lanes = len(scratch)
    for lane in prange(lanes):
        marks = scratch[lane]
        for row in range(lane, len(found), lanes):
            count = min(sizes[row], cap)
            for at in range(count):
                out[row, at] = found[row, at]
                marks[found[row, at]] = 1
            for t in range(look_alikes.shape[1]):
                if count == cap:
                    break
                other = look_alikes[identity[found[row, 0]], t]
                total = starts[other + 1] - starts[other]
                for q in range(total):
                    face = members[starts[other] + (turns[row, t] + q) % total]
                    if count < cap and marks[face] == 0:
                        marks[face] = 1
                        out[row, count] = face
                        count += 1
            face = found[row, 0]
            while count < cap:
                face = (face + 1) % len(identity)
                if marks[face] == 0:
                    marks[face] = 1
                    out[row, count] = face
                    count += 1
            unmark(marks, out[row])
    return out


def similarities(net: PseGcn, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Return the similarities of all nodes of a neighborhood, refined, and which are of one person: (b, n, n) each."""
    refined = net(batch["features"], batch["adj"], torch.ones((), device=batch["adj"].device)).float()
    return refined @ refined.transpose(1, 2), batch["identity"][:, :, None] == batch["identity"][:, None, :]


def loss(net: PseGcn, batch: dict[str, Tensor], margin: float) -> tuple[Tensor, Tensor]:
    """The published loss: of every node against its least similar same and its most similar other identity.

    Means over all nodes; a node that meets no other identity in its neighborhood has no part in what compares with
    one. Returns it with the similarities of each neighborhood's nodes to its centre.
    """
    sims, same = similarities(net, batch)
    least = sims.masked_fill(~same, torch.inf).amin(-1)  # (b, n)
    most = sims.masked_fill(same, -torch.inf).amax(-1)
    met = ~same.all(-1)
    most = torch.where(met, most, torch.zeros_like(most))
    count = met.sum().clamp(min=1)
    between = (((1 - least) - (1 - most) + 2 * margin - 1).relu() * met).sum() / count
    apart = ((most - (1 - margin)).relu() * met).sum() / count
    together = (margin - least).relu().mean()
    return between + apart + together, sims[:, 0, 1:].reshape(-1)


def multi_similarity_loss(net: PseGcn, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """A loss that no hopeless pair decides: of every node against all others, hard pairs weighing more.

    The published loss sees one pair of a node and stands still while that pair is out of reach, one person's two
    faces that nothing connects; here every pair pulls. Wang et al., Multi-Similarity Loss, CVPR 2019, equation 11,
    without its choice of pairs. Returns it as ``loss`` does.
    """
    sims, same = similarities(net, batch)
    itself = torch.eye(sims.shape[1], dtype=torch.bool, device=sims.device)
    one = (-SHARP_SAME * (sims - BETWEEN)).masked_fill(~same | itself, -torch.inf)
    two = (SHARP_OTHER * (sims - BETWEEN)).masked_fill(same, -torch.inf)
    none = torch.zeros_like(sims[:, :, :1])  # the 1 + of its logarithms
    pull = torch.cat([none, one], dim=-1).logsumexp(-1) / SHARP_SAME  # (b, n)
    push = torch.cat([none, two], dim=-1).logsumexp(-1) / SHARP_OTHER
    return (pull + push).mean(), sims[:, 0, 1:].reshape(-1)


def network(recipe: Recipe, weights: Weights) -> PseGcn:
    """Return a network with random weights for the recipe's features."""
    return PseGcn(recipe.feature_dim)


def augmented(figures: Figures) -> dict[str, str]:
    """Return the augmentation that suits few people; none of many."""
    if figures.labelled.people >= FEW_PEOPLE:
        return {}
    return {"flips": str(MIRRORED), "noise": str(noise_for(figures.labelled.same))}


def noise_for(same: float) -> float:
    """Return the length of the noise for people whose faces are so similar: less than the distance between two."""
    return round(NOISE * float(2 - 2 * same) ** 0.5, 1)


TRAINING = {
    "refine": Training(
        Schedule(epochs=10, batch=64, lr=0.01, drops=(0.4, 0.6, 0.8), momentum=0.9, weight_decay=1e-4),
        Settings,
        network,
        task,
        Habit(1.5, 16, 0.03, settings={"nodes": "128", "loss": MULTI_SIMILARITY}, adapted=augmented),
        mixes=True,  # look-alikes are of any album
    )
}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces."""
    values = {**neighborhoods_in(figures.k), "links.k": figures.k}
    return SuitedRecipe(values, (reason_of_k(figures), reason_of_hops(values)))


def neighborhoods_in(k: int) -> dict[str, object]:
    """Return the settings of neighborhoods, by their places in a recipe, that suit lists of k."""
    return {
        "neighborhood.k": k,
        "neighborhood.hops": [k, k // 5],
        "neighborhood.active": min(NeighborhoodSettings.active, k),
    }
