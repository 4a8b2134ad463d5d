"""How SEPFL is trained: as many links between one person's faces as between two persons', told apart."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
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
    """links of each kind that are drawn at most; reach: neighbors that a face has links to (half of its list)."""

    links: int = 1_000_000
    reach: int = 0

    def problem(self) -> str | None:
        """Return what is wrong with these values, or None."""
        if self.links < 1 or self.reach < 0:
            return f"links = {self.links} and reach = {self.reach} should be positive (reach 0: half of the list)"
        return None


def task(run: "Run", labels: np.ndarray, settings: Settings) -> Task:
    """An item is a link from a face to one of its neighbors, and both faces' lists."""
    knn, _ = flow.nearest_neighbors(run)
    reach = min(settings.reach or max(1, knn.k // 2 - 1), knn.k - 1)
    faces, others = drawn_links(knn.ids[:, 1 : 1 + reach], labels, settings.links)
    same = (labels[faces] == labels[others]).astype(np.int64)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {"same": same[items]}
        for side, chosen in (("face", faces[items]), ("other", others[items])):
            lists = np.ascontiguousarray(knn.ids[chosen])
            arrays |= {side: run.vectors[chosen], f"{side}_neighbors": Rows(run.vectors, lists).gather()}
        return arrays

    return Task(len(faces), batch, loss)


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
