"""How SEPFL is trained: as many links between one person's faces as between two persons', told apart."""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fcdeploy.engine.batching import Rows
from fcdeploy.errors import InputError
from fcdeploy.run.features import read_features
from fcdeploy.run.run import Run
from fcdeploy.systems import Weights, augmentation
from fcdeploy.systems.augmentation import mirrors, noisy
from fcdeploy.systems.habits import Figures, Habit, Reason, SuitedRecipe, reason_of_k, same_person_from
from fcdeploy.systems.sepfl import flow
from fcdeploy.systems.sepfl.network import Sepfl
from fcdeploy.systems.sepfl.spec import Recipe
from fcdeploy.systems.training_types import Schedule, Task, Training

DRAW = 0  # seed of which links are trained on
RANDOM, SIMILARITY = "random", "similarity"
# Of a start from similarity: the share that is kept of random weights, the spread of what is squared, how far what is
# added up lies above zero, where GELU is a line, and the logit of a link that is one standard deviation more similar.
KEPT, SPREAD, ABOVE, GAIN = 0.1, 0.5, 1.5, 2.0
VARIANCE_FACES = 65_536  # whose coordinates are looked at, at most


@dataclass(frozen=True)
class Settings:
    """links of each kind that are drawn at most; reach: neighbors that a face has links to (half of its list).

    group: faces that are drawn together, one and its nearest: each is encoded once for all links between them, many
    times more than when links are drawn one by one (0, as published). flips: share of the coordinates of a group that
    are mirrored; noise: the length, about, of what is added to each feature of a group, see
    ``fcdeploy.systems.augmentation``. 0, as published, is none of either. start: "random" weights, as published, or
    "similarity", see ``start_from_similarity``.
    """

    links: int = 1_000_000
    reach: int = 0
    group: int = 0
    flips: float = 0.0
    noise: float = 0.0
    start: str = RANDOM

    def problem(self, recipe: Recipe, n: int) -> str | None:
        """Return what is wrong with these values, or None.

        recipe: of the training faces; n: how many there are, of the smallest album.
        """
        if self.links < 1 or self.reach < 0:
            return f"links = {self.links} and reach = {self.reach} should be positive (reach 0: half of the list)"
        if self.reach >= recipe.links.k:
            return (
                f"reach = {self.reach}, and lists of k = {recipe.links.k} hold {recipe.links.k - 1} neighbors"
            )
        if self.group > recipe.links.k:
            return f"group = {self.group} is more than the k = {recipe.links.k} faces of a list"
        if self.group < 0 or self.group == 1:
            return f"group = {self.group} should be 2 or more (0: links are drawn one by one)"
        if not self.group and (self.flips or self.noise):
            return "flips and noise are of groups; set group, too"
        if self.start not in (RANDOM, SIMILARITY):
            return f"start = {self.start} is neither {RANDOM} nor {SIMILARITY}"
        return augmentation.problem(self.flips, self.noise)


def task(run: Run, labels: np.ndarray, settings: Settings) -> Task[Sepfl]:
    """An item is a link from a face to one of its neighbors, and both faces' lists; with ``group``, a face."""
    ids = flow.neighbors(run)["ids"]
    vectors = read_features(run).array
    reach = settings.reach or max(1, ids.shape[1] // 2 - 1)
    make = task_of_groups if settings.group else task_of_links
    made = make(vectors, labels, ids, settings, reach)
    if settings.start == RANDOM:
        return made
    some = vectors[:: -(-run.n // VARIANCE_FACES)]
    return replace(made, start=partial(start_from_similarity, variance=some.var(axis=0, dtype=np.float64)))


def task_of_links(
    vectors: np.ndarray, labels: np.ndarray, ids: np.ndarray, settings: Settings, reach: int
) -> Task[Sepfl]:
    """An item is a link, from a face to one of the first ``reach`` others of its list in ``ids`` (n, k)."""
    faces, others = drawn_links(ids[:, 1 : 1 + reach], labels, settings.links)
    same = (labels[faces] == labels[others]).astype(np.int64)

    def batch(items: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {"same": same[items]}
        for side, chosen in (("face", faces[items]), ("other", others[items])):
            lists = np.ascontiguousarray(ids[chosen])
            arrays |= {side: vectors[chosen], f"{side}_neighbors": Rows(vectors, lists).gather()}
        return arrays

    return Task(len(faces), batch, loss)


def task_of_groups(
    vectors: np.ndarray, labels: np.ndarray, ids: np.ndarray, settings: Settings, reach: int
) -> Task[Sepfl]:
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
        features = vectors[faces % n]
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


def loss(net: Sepfl, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Cross entropy of "the same person"; with by how much each link is accepted."""
    logits = net(batch["face"], batch["face_neighbors"], batch["other"], batch["other_neighbors"]).float()
    return F.cross_entropy(logits, batch["same"]), logits[:, 1] - logits[:, 0]


def loss_of_groups(net: Sepfl, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
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


def encode(net: Sepfl, features: Tensor, faces: Tensor, neighbors: Tensor) -> Tensor:
    """Return the network's branch (m, 2d) of ``faces``, what its first layer makes of a neighbor computed once."""
    first: nn.Linear = net.channel_mix[0]  # type: ignore[assignment]
    own, near = first.weight.split(features.shape[1], dim=1)
    shared = F.linear(features, near).index_select(0, neighbors.flatten()).view(*neighbors.shape, -1)
    x = features[faces]
    return net.branch(x, features[neighbors], F.linear(x, own, first.bias).unsqueeze(1) + shared)


def start_from_similarity(net: Sepfl, variance: np.ndarray) -> None:
    """Set the classifier's weights so that links are as probable as their two faces are similar; others stay small.

    A classifier with random weights has to find out that two faces are compared coordinate by coordinate, from few
    people. Here the first layer subtracts them, and GELU(a) + GELU(-a) = a erf(a / sqrt 2), about a square, makes a
    squared distance of what the second layer adds up: faces of norm 1 are more similar the smaller it is. Its BatchNorm
    made all coordinates equally wide, which ``variance`` (d,), of the features, takes back. What a face attends to,
    and half of the second layer, begin with next to no weight.
    """
    first, second, third = (layer for layer in net.classifier if isinstance(layer, nn.Linear))
    _, spread, above = (layer for layer in net.classifier if isinstance(layer, nn.BatchNorm1d))
    d = net.feature_dim
    half = max(1, d // 2)
    with torch.no_grad():
        for layer in (first, second, third):
            layer.weight *= KEPT
            layer.bias.zero_()
        coordinate = torch.arange(d)
        for sign, unit in ((1, coordinate), (-1, d + coordinate)):
            first.weight[unit, coordinate] += sign  # of the face
            first.weight[unit, 2 * d + coordinate] -= (
                sign  # of the denser one, behind what the face attends to
            )
        spread.weight.fill_(SPREAD)
        wide = torch.from_numpy(variance / max(variance.mean(), np.finfo(np.float64).tiny) / np.sqrt(d))
        second.weight[:half] -= torch.cat([wide, wide]).to(second.weight)
        above.bias[:half] = ABOVE
        no_yes = torch.tensor([-1.0, 1.0]).to(third.weight)
        third.weight[:, :half] += no_yes[:, None] * (GAIN / 2 / half)
        third.bias.sub_(no_yes * (ABOVE * GAIN / 2))


def network(recipe: Recipe, weights: Weights) -> Sepfl:
    """Return a network with random weights for the recipe's features and k."""
    return Sepfl(recipe.feature_dim, recipe.links.k)


TRAINING = {
    "pairwise": Training(
        Schedule(epochs=100, batch=512, lr=0.01, drops=(0.4, 0.6, 0.8), momentum=0.9, weight_decay=1e-4),
        Settings,
        network,
        task,
        Habit(
            0.27,
            64,
            5e-4,
            settings={"group": "8", "start": SIMILARITY},
            adapted=lambda figures: {"reach": str(figures.k - 1)},
        ),
    )
}


def suited_recipe(figures: Figures) -> SuitedRecipe:
    """Return the settings that suit such faces: of neighbors that are one person, every other is near."""
    labelled = figures.labelled
    rho = round(labelled.boundary + (1 - labelled.boundary) / 2, 2)
    reasons = (reason_of_k(figures), Reason("rho", str(rho), same_person_from(labelled)))
    return SuitedRecipe({"links.k": figures.k, "links.rho": rho}, reasons)
