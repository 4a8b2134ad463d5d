"""What PSE-GCN's passes take and give, what its checkpoints hold, and its published settings."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import InputError
from fcdeploy.systems import Network, Weights
from fcdeploy.systems.recipe import Tuning

TABLES = (
    "local",
    "local_near",
    "drawn",
    "drawn_near",
    "skip",
)  # needed of every node; "out" of the centre only


@dataclass(frozen=True)
class FeatureSettings:
    """normalize: divide every row by its 2-norm after reading."""

    normalize: bool = True


@dataclass(frozen=True)
class NeighborhoodSettings:
    """k of the kNN lists and of re-ranking; hops of a neighborhood; active connections in its fixed graph."""

    k: int = 80
    hops: tuple[int, int] = (80, 10)
    active: int = 10

    @property
    def reach(self) -> int:
        """How many entries of re-ranked lists neighborhoods are made of: position 0 of a neighbor's is passed over."""
        return max(self.hops[0], self.hops[1] + 1)

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        if min(self.k, self.active, self.hops[0], self.hops[1] + 1) < 1:
            return "neighborhood.k, hops and active must be positive (hops[1] may be 0)"
        if self.reach > self.k:
            return (
                f"neighborhood.hops = {list(self.hops)} reaches beyond neighborhood.k = {self.k}: "
                "hops[0] <= k and hops[1] < k"
            )
        if self.active > self.k:
            return f"neighborhood.active = {self.active} is more than neighborhood.k = {self.k}"
        return None

    def changed(self, k: int | None, hops: tuple[int, int] | None) -> "NeighborhoodSettings":
        """Return the settings with what a run is given: active connections fit its k, and so do hops of a recipe."""
        near = self if k is None else replace(self, k=k, active=min(self.active, k))
        return near.within(near.k) if hops is None else replace(near, hops=hops)

    def within(self, k: int) -> "NeighborhoodSettings":
        """Shorten hops and active connections to lists of k."""
        hops = (min(self.hops[0], k), min(self.hops[1], k - 1))
        return replace(self, hops=hops, active=min(self.active, k))

    def check_reranked(self, k: int, where: str) -> None:
        """Raise InputError when re-ranked lists of k, made elsewhere, are too short for the hops."""
        if self.reach > k:
            raise InputError(
                f"{where}: its lists of {k} neighbors are too short for hops {self.hops[0]},{self.hops[1]}; give "
                "--hops."
            )


@dataclass(frozen=True)
class LinkSettings:
    """k of the refined features' kNN, over which density is summed; tau: the similarity that a link needs."""

    k: int = 80
    tau: float = 0.87


@dataclass(frozen=True)
class ToleranceSettings:
    """Largest error of an exported graph's refined features, and of S >= 0.5 edges flipped, against PyTorch.

    Edges whose similarity lies within 1e-6 of the threshold may fall either way and are counted apart.
    """

    refined: float = 1e-5
    flipped_edges: int = 0

    relative: ClassVar[bool] = False

    @property
    def error(self) -> float:
        return self.refined

    @property
    def flips(self) -> int:
        return self.flipped_edges


@dataclass(frozen=True)
class Recipe:
    """All that a checkpoint does not say; the defaults are those published for MS1M (Li et al., 2024)."""

    system: str = "pse-gcn"
    feature_dim: int = 256
    features: FeatureSettings = field(default_factory=FeatureSettings)
    neighborhood: NeighborhoodSettings = field(default_factory=NeighborhoodSettings)
    links: LinkSettings = field(default_factory=LinkSettings)
    tolerance: ToleranceSettings = field(default_factory=ToleranceSettings)
    tuned: Tuning | None = None

    @classmethod
    def for_weights(cls, weights: Weights) -> "Recipe":
        """Return the published settings for weights of a width."""
        return cls(feature_dim=weights["refine"]["dim"])

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""
        return None if weights["refine"]["dim"] == self.feature_dim else f"{self.feature_dim}-d features"

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        if min(self.links.k, self.feature_dim) < 1:
            return "feature_dim and links.k must be positive"
        if problem := self.neighborhood.problem():
            return problem
        if not -1 <= self.links.tau <= 1:
            return f"links.tau = {self.links.tau} is not a cosine similarity (-1 to 1)"
        return None

    def for_run(
        self, n: int, *, k: int | None = None, hops: tuple[int, int] | None = None, tau: float | None = None
    ) -> tuple["Recipe", list[str]]:
        """Return the settings of a run over n faces, and a sentence for each that had to be changed.

        k sets both k's, and shortens hops that were not given and would reach beyond it; no list can be longer
        than n. Raises InputError when what was given does not fit together.
        """
        notes = []
        near, links = self.neighborhood.changed(k, hops), self.links
        if k is not None:
            links = replace(links, k=k)
        if tau is not None:
            links = replace(links, tau=tau)
        if problem := replace(self, neighborhood=near, links=links).problem():
            raise InputError(f"these settings do not fit together: {problem}.")
        largest = max(near.k, links.k)
        if largest > n:
            notes.append(f"k = {largest} is more than the number of faces, {n:,}; k = {n} is used.")
        near, links = replace(near, k=min(near.k, n)), replace(links, k=min(links.k, n))
        return replace(self, neighborhood=near.within(near.k), links=links), notes

    def check_reranked(self, k: int, where: str) -> None:
        """Raise InputError when re-ranked lists of k, made elsewhere, are too short for the hops."""
        self.neighborhood.check_reranked(k, where)


def passes(dim: int) -> dict[str, PassSpec]:
    """Return the passes for d-wide features; b neighborhoods of n nodes, or m faces.

    Exact inference: ``encode`` and ``neighborhood``. Layer-wise inference: the other five, in this order.
    """
    h = 2 * dim

    def over_rows(name: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> PassSpec:
        specs = tuple(
            TensorSpec(tensor, ("m", dim if tensor == "features" else h)) for tensor in (*inputs, *outputs)
        )
        return PassSpec(name, specs[: len(inputs)], specs[len(inputs) :])

    nodes = tuple(TensorSpec(name, ("b", "n", h)) for name in TABLES)
    return {
        "encode": over_rows("encode", ("features",), (*TABLES, "out")),
        "neighborhood": PassSpec(
            "neighborhood",
            (
                *nodes,
                TensorSpec("out", ("b", h)),
                TensorSpec("adj", ("b", "n", "n")),
                TensorSpec("mask", ("b", "n")),
            ),
            (TensorSpec("refined", ("b", h)),),
        ),
        "near1": over_rows("near1", ("features",), ("near1",)),
        "similar1": over_rows("similar1", ("features", "connected"), ("h1", "near_drawn1")),
        "block1": over_rows("block1", ("features", "drawn"), ("x1", "near2")),
        "similar2": over_rows("similar2", ("x1", "connected"), ("h2",)),
        "block2": over_rows("block2", ("features", "x1", "drawn"), ("refined",)),
    }


def checkpoint_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    """Return every key of the authors' state_dict with its shape, for d-wide features."""
    h = 2 * dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in {
        "bn0": dim,
        "bn1": h,
        **{
            f"{block}.0": h
            for block in ("classifier1", "classifier2", "local_classifier1", "local_classifier2")
        },
    }.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    for name in ("conv1", "conv2", "local_conv1", "local_conv2"):
        shapes |= {f"{name}.weight": (2 * h, h), f"{name}.bias": (h,)}
    for name, width in {
        "trans1.0": dim,
        "trans1.2": h,
        "trans2.0": h,
        "trans2.2": h,
        "trans_x": dim,
        "Up_dim": dim,
        "classifier1.1": h,
        "classifier1.3": h,
        "classifier2.1": h,
        "classifier2.3": h,
        "classifier_out": 3 * h,
        "local_classifier1.1": h,
        "local_classifier2.1": h,
    }.items():
        shapes |= {f"{name}.weight": (h, width), f"{name}.bias": (h,)}
    return shapes


def widths_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read d off a state_dict's shapes, from whichever of two tensors is there."""
    if len(shapes.get("Up_dim.weight", ())) == 2:
        return {"dim": shapes["Up_dim.weight"][1]}
    if len(shapes.get("bn0.weight", ())) == 1:
        return {"dim": shapes["bn0.weight"][0]}
    return None


NETWORK = Network(widths_from_shapes, checkpoint_shapes, passes, example={"dim": 1})
