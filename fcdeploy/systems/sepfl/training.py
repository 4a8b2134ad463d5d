"""How SEPFL is trained: as many links between one person's faces as between two persons', told apart."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fcdeploy.engine.batching import Rows
from fcdeploy.errors import InputError
from fcdeploy.systems import Schedule, Task, Training, Weights
from fcdeploy.systems.sepfl import flow
from fcdeploy.systems.sepfl.network import Sepfl
from fcdeploy.systems.sepfl.spec import Recipe

if TYPE_CHECKING:
    from fcdeploy.runtime.pipeline import Run

DRAW = 0  # seed of which links are trained on


@dataclass(frozen=True)
class Settings:
    """links of each kind that are drawn at most; reach: neighbors that a face has links to (half of its list).

    group: faces that are drawn together, one and its nearest: each is encoded once for all links between the faces of
    a batch, many times more than when links are drawn one by one (0, as published).
    """

    links: int = 1_000_000
    reach: int = 0
    group: int = 0

    def problem(self) -> str | None:
        """Return what is wrong with these values, or None."""
        if self.links < 1 or self.reach < 0:
            return f"links = {self.links} and reach = {self.reach} should be positive (reach 0: half of the list)"
        if self.group < 0 or self.group == 1:
            return f"group = {self.group} should be 2 or more (0: links are drawn one by one)"
        return None


def task(run: "Run", labels: np.ndarray, settings: Settings) -> Task:
    """An item is a link from a face to one of its neighbors, and both faces' lists; with ``group``, a face."""
    knn, _ = flow.nearest_neighbors(run)
    reach = min(settings.reach or max(1, knn.k // 2 - 1), knn.k - 1)
    if settings.group:
        return task_of_groups(run, labels, knn.ids, reach, settings.group)
    faces, others = drawn_links(knn.ids[:, 1 : 1 + reach], labels, settings.links)
    same = (labels[faces] == labels[others]).astype(np.int64)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {"same": same[items]}
        for side, chosen in (("face", faces[items]), ("other", others[items])):
            lists = np.ascontiguousarray(knn.ids[chosen])
            arrays |= {side: run.vectors[chosen], f"{side}_neighbors": Rows(run.vectors, lists).gather()}
        return arrays

    return Task(len(faces), batch, loss)


def task_of_groups(run: "Run", labels: np.ndarray, ids: np.ndarray, reach: int, group: int) -> Task:
    """An item is a face, with its nearest: the ``group`` first of its list in ``ids`` (n, k)."""
    drawn_links(ids[:, 1 : 1 + reach], labels, 1)  # there are links of both kinds

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        members = np.unique(ids[items, :group])
        links = links_among(members, ids[members, 1 : 1 + reach])
        of = labels[members]
        return {
            "faces": run.vectors[members],
            "neighbors": Rows(run.vectors, np.ascontiguousarray(ids[members])).gather(),
            "links": links,
            "same": (of[links[:, 0]] == of[links[:, 1]]).astype(np.int64),
        }

    return Task(len(ids), batch, loss_of_groups)


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
    """The same of all links between some faces, those within persons weighing as much together as the others."""
    encoded = net.branch(batch["faces"], batch["neighbors"])
    logits = net.classifier(encoded[batch["links"]].flatten(1)).float()
    same = batch["same"]
    many = torch.bincount(same, minlength=2)
    weights = (1.0 / (many.clamp(min=1) * (many > 0).sum()))[same]
    return (weights * F.cross_entropy(logits, same, reduction="none")).sum(), logits[:, 1] - logits[:, 0]


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
