"""How NSR-FC's own networks are trained: told which neighbors, and which links, are of one person.

Its refinement is PSE-GCN's, and is trained as that. The re-scoring learns on refined features, LCENet on neighbor
lists, PCENet on the candidate links that the networks before it leave.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.clustering.components import join, labels_from_forest, new_forest
from fcdeploy.clustering.metrics import Evaluation, evaluate
from fcdeploy.engine.batching import Rows
from fcdeploy.errors import InputError
from fcdeploy.graph.connectivity import symmetric_scores
from fcdeploy.graph.links import NO_LINK
from fcdeploy.run.artifact import Artifact
from fcdeploy.run.features import read_features
from fcdeploy.run.neighbors import partition
from fcdeploy.run.run import Run
from fcdeploy.systems import Weights
from fcdeploy.systems.habits import Figures, Habit, SuitedRecipe, reason_of_k
from fcdeploy.systems.nsr_fc import flow
from fcdeploy.systems.nsr_fc.inputs import position_code
from fcdeploy.systems.nsr_fc.network import Attention, Encoder, Layer, Lce, Pce, Rescore, with_gram
from fcdeploy.systems.nsr_fc.spec import HEADS, Recipe
from fcdeploy.systems.pse_gcn.training import neighborhoods_in
from fcdeploy.systems.training_types import Net, Schedule, Task, Training, Value

RESCORE_FF, PAIR_FF, PAIR_LAYERS, PAIR_HIDDEN = 2048, 1024, 3, 2048  # widths of the published layers
PROBABILITIES = np.linspace(0, 1, 51)  # that links of LCENet alone are judged at


@dataclass(frozen=True)
class RescoreSettings:
    """dropout of the encoder."""

    dropout: float = 0.2

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        return _problem_of(self.dropout)


@dataclass(frozen=True)
class LceSettings:
    """dropout of the encoder."""

    dropout: float = 0.1

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        return _problem_of(self.dropout)


@dataclass(frozen=True)
class PceSettings:
    """dropout of the encoder; others: links to two persons that are trained on beside the candidates.

    As published, a face has its candidate link only. Where people have many faces, hardly any candidate is wrong:
    ``others`` more a face at most go to its strongest denser neighbors of another identity.
    """

    dropout: float = 0.1
    others: int = 0

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        if not 0 <= self.others < recipe.pairs.k:
            return f"others = {self.others} should be 0 to {recipe.pairs.k - 1}, the neighbors of a face"
        return _problem_of(self.dropout)


def _problem_of(dropout: float) -> str | None:
    return None if 0 <= dropout < 1 else f"dropout = {dropout} should lie in 0 to 1, 1 not included"


def rescore_task(run: Run, labels: np.ndarray, settings: RescoreSettings) -> Task[Rescore]:
    """An item is a face with the refined features of its neighbors; a batch attends as the recipe says."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = flow.nearest_neighbors(run, vectors, cells)
    features = flow.features_to_rescore(run, vectors, cells, knn).array
    ids = knn["ids"][:, : run.settings.rescore.k]
    code = position_code(ids.shape[1], features.shape[1])

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        lists = np.ascontiguousarray(ids[items])
        same = labels[lists] == labels[items][:, None]
        return {"features": Rows(features, lists).gather(), "code": code, "same": same.astype(np.float32)}

    across_neighbors = run.settings.rescore.attention == "neighbors"
    return Task(
        run.n,
        batch,
        functools.partial(rescore_loss, across_neighbors=across_neighbors, dropout=settings.dropout),
    )


def lce_task(run: Run, labels: np.ndarray, settings: LceSettings) -> Task[Lce]:
    """An item is a face with the features of its neighbors."""
    vectors, ids = read_features(run), flow.neighbors(run)["ids"][:, : run.settings.pairs.k]

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        lists = np.ascontiguousarray(ids[items])
        same = labels[lists] == labels[items][:, None]
        return {"features": Rows(vectors.array, lists).gather(), "same": same.astype(np.int64)}

    return Task(run.n, batch, functools.partial(lce_loss, dropout=settings.dropout))


def pce_task(run: Run, labels: np.ndarray, settings: PceSettings) -> Task[Pce]:
    """An item is a link from a face to a denser neighbor, with the neighbors of both."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = flow.nearest_neighbors(run, vectors, cells)
    features = flow.features_to_rescore(run, vectors, cells, knn)
    dists = flow.rescored_distances(run, features, knn) if "rescore" in run.engines.weights else None
    scores = flow.connectivity(run, vectors, cells, knn)
    ids = knn["ids"][:, : run.settings.pairs.k]
    faces, denser = training_links(run, knn, dists, scores, labels, settings.others)
    if not len(faces):
        raise InputError(
            "no training face has a denser neighbor that LCENet links it to; train LCENet longer, or give more faces."
        )
    same = (labels[faces] == labels[denser]).astype(np.int64)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        both = np.concatenate([ids[faces[items]], ids[denser[items]]], axis=1)  # (b, 2k)
        return {"features": Rows(vectors.array, both).gather(), "same": same[items]}

    return Task(len(faces), batch, functools.partial(pce_loss, dropout=settings.dropout))


def training_links(
    run: Run, knn: Artifact, dists: Artifact | None, scores: Artifact, labels: np.ndarray, others: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return faces and denser neighbors (m,) int32: all candidates, then up to ``others`` more of two persons a face.

    dists, scores: see ``flow.candidate_links``.
    """
    ids, sims = knn["ids"][:, : run.settings.pairs.k], flow.similarities(run, knn, dists)
    found = flow.candidate_links(run, knn, dists, scores)
    kept = np.flatnonzero(found["ids"] != NO_LINK).astype(np.int32)
    faces, denser = [kept], [found["ids"][kept]]
    if others:
        for block in flow.blocks_of(run.n, flow.LINK_BLOCK):
            own = np.arange(block.start, block.stop, dtype=np.int32)
            strengths = symmetric_scores(ids, scores["probability"], own) * sims(block)
            wrong = strongest_of_others(ids[block], strengths, found["density"], labels, own, others)
            row, at = np.nonzero((wrong != NO_LINK) & (wrong != found["ids"][block][:, None]))
            faces.append(own[row])
            denser.append(wrong[row, at])
    return np.concatenate(faces), np.concatenate(denser)


def strongest_of_others(
    ids: np.ndarray,
    strengths: np.ndarray,
    density: np.ndarray,
    labels: np.ndarray,
    faces: np.ndarray,
    most: int,
) -> np.ndarray:
    """Return the strongest denser neighbors of another identity, strongest first, NO_LINK behind them: (m, most) int32.

    ids, strengths: (m, k) of ``faces`` (m,), column 0 the face itself; density, labels: (n,) of all faces.
    """
    able = (density[ids] > density[faces][:, None]) & (labels[ids] != labels[faces][:, None])
    able[:, 0] = False
    able &= strengths > 0
    order = np.argsort(np.where(able, -strengths, np.inf), axis=1, kind="stable")[:, :most]
    rows = np.arange(len(ids))[:, None]
    return np.where(able[rows, order], ids[rows, order], NO_LINK).astype(np.int32)


def rescore_loss(
    net: Rescore, batch: dict[str, Tensor], across_neighbors: bool, dropout: float
) -> tuple[Tensor, Tensor]:
    """Binary cross entropy of "the same person as the face", the face itself among its neighbors; with the logits."""
    features, code = batch["features"], batch["code"]
    if across_neighbors:
        y = encoded(net.encoder, features, dropout, code)
    else:  # as published: the faces of a batch attend to each other, at each position of their lists
        y = encoded(net.encoder, features.transpose(0, 1), dropout, code[:, None]).transpose(0, 1)
    logits = net.clf[1:](first_with_each(net.clf[0], y)).squeeze(-1).float()  # (b, k)
    return F.binary_cross_entropy_with_logits(logits, batch["same"]), logits.reshape(-1)


def lce_loss(net: Lce, batch: dict[str, Tensor], dropout: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of "the same person as the face" over all its neighbors; with by how much each is taken for it."""
    y = encoded(net.encoder, with_gram(batch["features"]), dropout)
    logits = net.classifier[1:](first_with_each(net.classifier[0], y)).float().reshape(-1, 2)
    return F.cross_entropy(logits, batch["same"].reshape(-1)), logits[:, 1] - logits[:, 0]


def pce_loss(net: Pce, batch: dict[str, Tensor], dropout: float) -> tuple[Tensor, Tensor]:
    """Cross entropy of "both are one person"; with by how much each link is confirmed."""
    features = batch["features"]
    y = encoded(net.encoder, with_gram(features), dropout, rows=(0, net.k))
    logits = net.head(features, y).float()
    return F.cross_entropy(logits, batch["same"]), logits[:, 1] - logits[:, 0]


def first_with_each(layer: nn.Linear, y: Tensor) -> Tensor:
    """The layer on [y_0, y_j] for every j: y (b, k, h) -> (b, k, out)."""
    width = y.shape[-1]
    own = F.linear(y[:, :1], layer.weight[:, :width], layer.bias)
    return own + F.linear(y, layer.weight[:, width:])


def encoded(
    encoder: Encoder,
    x: Tensor,
    dropout: float,
    code: Tensor | None = None,
    rows: tuple[int, ...] | None = None,
) -> Tensor:
    """The encoder in training: its ``forward`` with dropout where PyTorch's layers have it."""
    drop = functools.partial(F.dropout, p=dropout, training=encoder.training)
    for at, module in enumerate(encoder.layers):
        layer: Layer = module  # type: ignore[assignment]
        value = layer.norm1(x) if layer.norm_first else x
        key = value if code is None else value + code
        query = key
        if rows is not None and at == len(encoder.layers) - 1:
            x, query = x[:, list(rows)], key[:, list(rows)]
        x = x + drop(attended(layer.self_attn, query, key, value, dropout if encoder.training else 0.0))
        if not layer.norm_first:
            x = layer.norm1(x)
        inner = layer.norm2(x) if layer.norm_first else x
        x = x + drop(layer.linear2(drop(F.relu(layer.linear1(inner)))))
        if not layer.norm_first:
            x = layer.norm2(x)
    return x if encoder.norm is None else encoder.norm(x)


def attended(attention: Attention, query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    """``Attention.forward`` with dropout of its weights, without keeping them where there is none."""
    width = query.shape[-1]
    q, k, v = (
        F.linear(x, attention.in_proj_weight[at : at + width], attention.in_proj_bias[at : at + width])
        .reshape(x.shape[0], x.shape[1], HEADS, width // HEADS)
        .transpose(1, 2)  # (t, s, d) -> (t, heads, s, d / heads)
        for at, x in zip((0, width, 2 * width), (query, key, value), strict=True)
    )
    mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    return attention.out_proj(mixed.transpose(1, 2).reshape(query.shape))


def lce_outcome(run: Run, truth: np.ndarray) -> tuple[dict[str, float], dict[str, Value]]:
    """How good the clusters of LCENet's candidates are, at the probability that suits them best."""
    vectors = read_features(run)
    cells = partition(run, "cells", vectors)
    knn = flow.nearest_neighbors(run, vectors, cells)
    ids = knn["ids"][:, : run.settings.pairs.k]
    scores = flow.connectivity(run, vectors, cells, knn)
    denser = flow.candidate_links(run, knn, None, scores)["ids"]
    faces = np.flatnonzero(denser != NO_LINK).astype(np.int32)
    others = denser[faces]
    means = symmetric_scores(ids, scores["probability"], faces)[
        np.arange(len(faces)), (ids[faces] == others[:, None]).argmax(1)
    ]
    best: Evaluation | None = None
    for probability in PROBABILITIES:
        forest = new_forest(run.n)
        join(forest, faces[means >= probability], others[means >= probability])
        found = evaluate(labels_from_forest(forest), truth)
        if best is None or found.pairwise.f + found.bcubed.f > best.pairwise.f + best.bcubed.f:
            best = found
    assert best is not None
    return {"pairwise_f": best.pairwise.f, "bcubed_f": best.bcubed.f}, {}


def rescore_network(recipe: Recipe, weights: Weights) -> Rescore:
    """Return a network with random weights for refined features, or for the input where none refines them."""
    dim = 2 * weights["refine"]["dim"] if "refine" in weights else recipe.feature_dim
    check_heads(dim, f"{dim}-d features")
    return settled(Rescore(dim, RESCORE_FF, 1))


def lce_network(recipe: Recipe, weights: Weights) -> Lce:
    """Return a network with random weights for the recipe's features and pairs.k."""
    dim, k = recipe.feature_dim, recipe.pairs.k
    check_heads(dim + k, f"{dim}-d features and pairs.k = {k}, together {dim + k},")
    return settled(Lce(dim, k, PAIR_FF, PAIR_LAYERS))


def pce_network(recipe: Recipe, weights: Weights) -> Pce:
    """Return a network with random weights for the recipe's features and pairs.k."""
    dim, k = recipe.feature_dim, recipe.pairs.k
    check_heads(dim + 2 * k, f"{dim}-d features and twice pairs.k = {k}, together {dim + 2 * k},")
    return settled(Pce(dim, k, PAIR_FF, PAIR_LAYERS, PAIR_HIDDEN))


def check_heads(width: int, what: str) -> None:
    """Raise InputError when the heads of an attention cannot share ``width`` values."""
    if width % HEADS:
        raise InputError(
            f"{what} cannot be shared by {HEADS} heads; choose a [pairs] k in the recipe, or features, that make a "
            f"multiple of {HEADS}."
        )


def settled(net: Net) -> Net:
    """Start attentions without biases, as PyTorch's own do."""
    for module in net.modules():
        if isinstance(module, Attention):
            torch.nn.init.zeros_(module.out_proj.bias)
    return net


# The optimizer of the pair networks is not published: Adam at the rate of the re-scoring suited them.
_PAIRS = Schedule(epochs=10, batch=64, lr=1e-4, drops=(0.6, 0.9), optimizer="adam")
TRAINING = {
    "rescore": Training(
        Schedule(epochs=10, batch=512, lr=1e-4, optimizer="adam", weight_decay=5e-4),
        RescoreSettings,
        rescore_network,
        rescore_task,
        # Re-scored distances are worse on other people than similarities are.
        Habit(0.9, 256, 3e-4, mixed=True, by_name=True),
        takes=("refine",),
    ),
    "lce": Training(
        _PAIRS,
        LceSettings,
        lce_network,
        lce_task,
        Habit(4, 64, 3e-4, mixed=True, share=0.4),
        outcome=lce_outcome,
    ),
    "pce": Training(
        _PAIRS,
        PceSettings,
        pce_network,
        pce_task,
        Habit(2.7, 64, 3e-4, mixed=True, share=0.6, settings={"others": "1"}),
        needs=("lce",),
        takes=("refine", "rescore"),
    ),
}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces."""
    k = figures.k
    values = {
        **neighborhoods_in(k),
        "rescore.k": k,
        "rescore.batch": 256,
        "density_peaks.k": k // 2,
        "pairs.k": k,
        "pairs.certain_weights": [1.0, 1.0, 1.0],
    }
    return SuitedRecipe(values, (reason_of_k(figures),))
