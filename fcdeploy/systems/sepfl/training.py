"""How SEPFL is trained: as many links between one person's faces as between two persons', told apart."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fcdeploy.engine.batching import Rows
from fcdeploy.errors import InputError
from fcdeploy.systems import Schedule, Task, Training, Weights, augmentation
from fcdeploy.systems.augmentation import mirrors, noisy
from fcdeploy.systems.sepfl import flow
from fcdeploy.systems.sepfl.network import Sepfl
from fcdeploy.systems.sepfl.spec import Recipe

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

DRAW = 0  # seed of which links are trained on


@dataclass(frozen=True)
class Settings:
    """links of each kind that are drawn at most; reach: neighbors that a face has links to (half of its list).

    group: faces that are drawn together, one and its nearest: each is encoded once for all links between them, many
    times more than when links are drawn one by one (0, as published). flips: share of the coordinates of a group that
    are mirrored; noise: the length, about, of what is added to each feature of a group, see
    ``fcdeploy.systems.augmentation``. 0, as published, is none of either.
    """

    links: int = 1_000_000
    reach: int = 0
    group: int = 0
    flips: float = 0.0
    noise: float = 0.0

    def problem(self) -> str | None:
        """Return what is wrong with these values, or None."""
        if self.links < 1 or self.reach < 0:
            return f"links = {self.links} and reach = {self.reach} should be positive (reach 0: half of the list)"
        if self.group < 0 or self.group == 1:
            return f"group = {self.group} should be 2 or more (0: links are drawn one by one)"
        if not self.group and (self.flips or self.noise):
            return "flips and noise are of groups; set group, too"
        return augmentation.problem(self.flips, self.noise)


def task(run: "Run", labels: np.ndarray, settings: Settings) -> Task:
    """An item is a link from a face to one of its neighbors, and both faces' lists; with ``group``, a face."""
    knn, _ = flow.nearest_neighbors(run)
    reach = min(settings.reach or max(1, knn.k // 2 - 1), knn.k - 1)
    if settings.group:
        return task_of_groups(run, labels, knn.ids, settings, reach)
    faces, others = drawn_links(knn.ids[:, 1 : 1 + reach], labels, settings.links)
    same = (labels[faces] == labels[others]).astype(np.int64)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {"same": same[items]}
        for side, chosen in (("face", faces[items]), ("other", others[items])):
            lists = np.ascontiguousarray(knn.ids[chosen])
            arrays |= {side: run.vectors[chosen], f"{side}_neighbors": Rows(run.vectors, lists).gather()}
        return arrays

    return Task(len(faces), batch, loss)


def task_of_groups(run: "Run", labels: np.ndarray, ids: np.ndarray, settings: Settings, reach: int) -> Task:
    """An item is a face, with its nearest: the first ``settings.group`` of its list in ``ids`` (n, k)."""
    n = len(ids)
    drawn_links(ids[:, 1 : 1 + reach], labels, 1)  # there are links of both kinds

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # A face is another one in each group: its number and n times that of the group.
        groups = n * np.arange(len(items))[:, None]
        members = np.unique(groups + ids[items, : settings.group])
        lists = members[:, None] // n * n + ids[members % n]
        links = links_among(members, lists[:, 1 : 1 + reach])
        faces, place = np.unique(np.column_stack([members, lists]), return_inverse=True)
        place = place.reshape(len(members), -1)
        features = run.vectors[faces % n]
        if settings.flips:
            features *= mirrors(len(items), features.shape[1], settings.flips, rng)[faces // n]
        if settings.noise:
            features = noisy(features, settings.noise, rng)
        of = labels[members % n]
        return {
            "features": features,
            "faces": place[:, 0],
            "neighbors": place[:, 1:],
            "links": links,
            "same": (of[links[:, 0]] == of[links[:, 1]]).astype(np.int64),
        }

    return Task(n, batch, loss_of_groups)


def links_among(faces: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Return the links from each of ``faces`` (m,), ascending, to those of its neighbors that are faces, too.

    near: (m, r), the neighbors of each. Returns (p, 2) int64, places in ``faces``.
    """
    place = np.minimum(np.searchsorted(faces, near), len(faces) - 1)
    there = (faces[place] == near) & (near != faces[:, None])
    return np.stack([there.nonzero()[0], place[there]], axis=1)


def drawn_links(ids: np.ndarray, labels: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw as many links within identities as between them, ``most`` of each at most.

    ids: (n, r) int32, neighbors of each face, itself not among them (a face that stands in its own list behind its
    first place is left out); labels: (n,). Returns the links' faces and their neighbors, (m,) int32 each. Raises
    InputError when there are none of one kind.
    """
    n, r = ids.shape
    same = labels[ids] == labels[:, None]
    real = ids != np.arange(n, dtype=ids.dtype)[:, None]
    kinds = [np.flatnonzero(real & same), np.flatnonzero(real & ~same)]
    count = min(most, *map(len, kinds))
    if not count:
        kind = "one person" if not len(kinds[0]) else "two persons"
        raise InputError(
            f"no face has a neighbor that makes a link of {kind}; train on faces of several people, several of each."
        )
    rng = np.random.default_rng(DRAW)
    chosen = np.concatenate([rng.choice(kind, count, replace=False) for kind in kinds])
    return (chosen // r).astype(np.int32), ids.ravel()[chosen]


def loss(net: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy of "the same person"; with by how much each link is accepted."""
    logits = net(batch["face"], batch["face_neighbors"], batch["other"], batch["other_neighbors"]).float()
    return F.cross_entropy(logits, batch["same"]), logits[:, 1] - logits[:, 0]


def loss_of_groups(net: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same of all links of some faces, those within persons weighing as much together as the others.

    features (f, d) of all faces and their neighbors; faces (m,) and neighbors (m, k), their places; links (p, 2),
    places in ``faces``; same (p,).
    """
    encoded = encode(net, batch["features"], batch["faces"], batch["neighbors"])
    logits = net.classifier(encoded[batch["links"]].flatten(1)).float()
    same = batch["same"]
    many = torch.bincount(same, minlength=2)
    weights = (1.0 / (many.clamp(min=1) * (many > 0).sum()))[same]
    return (weights * F.cross_entropy(logits, same, reduction="none")).sum(), logits[:, 1] - logits[:, 0]


def encode(net: Any, features: Tensor, faces: Tensor, neighbors: Tensor) -> Tensor:
    """Return the network's branch (m, 2d) of ``faces``, what its first layer makes of a neighbor computed once."""
    first = net.channel_mix[0]
    own, near = first.weight.split(features.shape[1], dim=1)
    shared = F.linear(features, near).index_select(0, neighbors.flatten()).view(*neighbors.shape, -1)
    x = features[faces]
    return net.branch(x, features[neighbors], F.linear(x, own, first.bias).unsqueeze(1) + shared)


def network(recipe: Recipe, weights: Weights) -> Sepfl:
    """Return a network with random weights for the recipe's features and k."""
    return Sepfl(recipe.feature_dim, recipe.links.k)


TRAINING = {
    "pairwise": Training(
        Schedule(epochs=100, batch=512, lr=0.01, drops=(0.4, 0.6, 0.8), momentum=0.9, weight_decay=1e-4),
        Settings,
        network,
        task,
    )
}
