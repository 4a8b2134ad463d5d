"""What VE-GCN's passes take and give, what its checkpoints hold, and its published settings."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fcdeploy.engine.tensors import PassSpec, TensorSpec, pass_over_rows
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options
from fcdeploy.systems import Network, Weights, Workload
from fcdeploy.systems.recipe import Tolerance, Tuning

INPUT, TRANSFORMED = FEATURES = ("input", "transformed")
EDGE_K, EDGE_TAU = 160, 0.8  # of GCN-E, published for MS1M
ENGINE_ROWS = 4096  # nodes per engine call: full-speed matrix products that stay in the cache
SUM_SECONDS = (
    10e-6  # of one core a face: an edge graph and the sum over its row at k = 80, on an EPYC of 2023
)
NODE_SECONDS = 40e-6  # of one core a candidate: four sums over about 60 candidates, likewise


@dataclass(frozen=True)
class FeatureSettings:
    """normalize: divide every row by its 2-norm after reading."""

    normalize: bool = True


@dataclass(frozen=True)
class GraphSettings:
    """k of the lists that edges of GCN-V's graph are made of, the face itself counted, and their least similarity."""

    k: int = 80
    th_sim: float = 0.0


@dataclass(frozen=True)
class LinkSettings:
    """features: where links are looked for, among "input" or "transformed" features, in lists of k.

    tau: a link is shorter than 1 - tau; upstream's tau_0 among input features, its tau among transformed ones.
    """

    features: str = INPUT
    k: int = 80
    tau: float = 0.65


@dataclass(frozen=True)
class EdgeSettings:
    """Of GCN-E alone: th_sim, the least similarity of an edge of its graph, which is made of the links' lists.

    ignore_ratio: the share of faces, of lowest confidence, that link to their nearest face of higher confidence, and
    are not asked about.
    """

    th_sim: float = 0.0
    ignore_ratio: float = 0.8


@dataclass(frozen=True)
class ToleranceSettings:
    """Largest errors of exported graphs over their outputs' scale, against PyTorch: GCN-V's outputs, GCN-E's logits."""

    confidence: float = 1e-5
    logits: float = 1e-5


@dataclass(frozen=True)
class NetworkTolerance:
    """What an export of one network may be off by."""

    error: float

    relative: ClassVar[bool] = True
    flips: ClassVar[int] = 0  # nothing is decided within a network


@dataclass(frozen=True)
class Recipe:
    """All that checkpoints do not say; the defaults are those published for GCN-V on MS1M."""

    system: str = "ve-gcn"
    feature_dim: int = 256
    features: FeatureSettings = field(default_factory=FeatureSettings)
    graph: GraphSettings = field(default_factory=GraphSettings)
    links: LinkSettings = field(default_factory=LinkSettings)
    edge: EdgeSettings = field(default_factory=EdgeSettings)
    tolerance: ToleranceSettings = field(default_factory=ToleranceSettings)
    tuned: Tuning | None = None

    @classmethod
    def for_weights(cls, weights: Weights) -> "Recipe":
        """Return the published settings for weights of these widths: of GCN-V, or of both networks."""
        recipe = cls(feature_dim=weights["vertex"]["dim"])
        if "edge" not in weights:
            return recipe
        takes = TRANSFORMED if weights["edge"]["dim"] == weights["vertex"]["hidden"] else INPUT
        return replace(recipe, links=LinkSettings(takes, EDGE_K, EDGE_TAU))

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""
        vertex = weights["vertex"]
        if vertex["dim"] != self.feature_dim:
            return f"{self.feature_dim}-d features"
        wanted = vertex["hidden" if self.links.features == TRANSFORMED else "dim"]
        if "edge" in weights and weights["edge"]["dim"] != wanted:
            return f"a GCN-E of {self.links.features} features, {wanted}-d ones"
        return None

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        if min(self.feature_dim, self.graph.k, self.links.k) < 1:
            return "feature_dim, graph.k and links.k must be positive"
        if self.links.features not in FEATURES:
            return f"links.features = '{self.links.features}' is neither 'input' nor 'transformed'"
        for name, value in {
            "graph.th_sim": self.graph.th_sim,
            "edge.th_sim": self.edge.th_sim,
            "edge.ignore_ratio": self.edge.ignore_ratio,
        }.items():
            if not 0 <= value <= 1:
                return f"{name} = {value} does not lie in 0 to 1"
        if not -1 <= self.links.tau <= 1:
            return f"links.tau = {self.links.tau} is not a cosine similarity (-1 to 1)"
        return None

    def for_run(
        self, n: int, *, weights: Weights, k: int | None = None, tau: float | None = None
    ) -> tuple["Recipe", list[str]]:
        """Return the settings of a run over n faces, and a sentence for each that had to be changed.

        k sets both k's; no list can be longer than n. Raises InputError when what was given does not fit together.
        """
        graph, links = self.graph, self.links
        if k is not None:
            graph, links = replace(graph, k=k), replace(links, k=k)
        if tau is not None:
            links = replace(links, tau=tau)
        if problem := replace(self, graph=graph, links=links).problem():
            raise InputError(f"these settings do not fit together: {problem}.")
        notes, largest = [], max(graph.k, links.k)
        if largest > n:
            notes.append(f"k = {largest} is more than the number of faces, {n:,}; k = {n} is used.")
        graph, links = replace(graph, k=min(graph.k, n)), replace(links, k=min(links.k, n))
        return replace(self, graph=graph, links=links), notes

    @property
    def transforms(self) -> bool:
        """Whether links are looked for among GCN-V's features."""
        return self.links.features == TRANSFORMED

    @property
    def input_k(self) -> int:
        """How long lists of the input features have to be."""
        return self.graph.k if self.transforms else max(self.graph.k, self.links.k)


def problem(weights: Weights) -> str | None:
    """Say why a bundle of these networks makes no sense."""
    if "vertex" not in weights:
        return "GCN-E chooses among neighbors of higher confidence, which GCN-V tells; give GCN-V's checkpoint, too"
    if "edge" in weights:
        vertex, takes = weights["vertex"], weights["edge"]["dim"]
        if takes not in (vertex["hidden"], vertex["dim"]):
            return (
                f"GCN-E is for {takes}-d features, GCN-V takes {vertex['dim']}-d ones and gives {vertex['hidden']}-d "
                "ones; give two that were trained together"
            )
    return None


def tolerance(recipe: Recipe, network: str) -> Tolerance:
    """Return what an export of a network may be off by."""
    allowed = recipe.tolerance
    return NetworkTolerance({"vertex": allowed.confidence, "edge": allowed.logits}[network])


def searches(settings: Recipe) -> dict[str, int]:
    """Return how many further kNN searches the stages make: one of transformed features."""
    return {"transformed_knn": 1} if settings.transforms else {}


def workload(settings: Recipe, weights: Weights, options: Options) -> dict[str, Workload]:
    """Return how often a run uses each pass; about half of a list is of higher confidence than its face."""
    loads = {"confidence": Workload("confidence", kernels=SUM_SECONDS)}
    if "edge" in weights:
        nodes = (1 - settings.edge.ignore_ratio) * settings.links.k / 2
        loads |= {
            "encode": Workload("connect", kernels=SUM_SECONDS),
            "convolve": Workload("connect", {"m": ENGINE_ROWS}, nodes / ENGINE_ROWS, NODE_SECONDS * nodes),
            "score": Workload("connect", {"m": ENGINE_ROWS}, nodes / ENGINE_ROWS),
        }
    return loads


def vertex_passes(dim: int, hidden: int) -> dict[str, PassSpec]:
    """Return GCN-V's pass over faces: their features and means over their edges to confidence and hidden features."""
    return {
        "confidence": PassSpec(
            "confidence",
            (TensorSpec("features", ("m", dim)), TensorSpec("connected", ("m", dim))),
            (TensorSpec("confidence", ("m",)), TensorSpec("hidden", ("m", hidden))),
        )
    }


def edge_passes(dim: int, hidden: int) -> dict[str, PassSpec]:
    """Return GCN-E's passes, all over rows.

    ``encode``: faces to what they bring to conv1. ``convolve``: candidates with the mean over those connected to them,
    behind conv1, to what they bring to conv3. ``score``: the same behind conv3, to logits.
    """
    half = hidden // 2
    return {
        "encode": pass_over_rows("encode", {"features": dim}, {"own": hidden, "near": hidden}),
        "convolve": pass_over_rows("convolve", {"first": 2 * hidden}, {"own": half, "near": half}),
        "score": pass_over_rows("score", {"third": 2 * half}, {"logits": 2}),
    }


def conv_shapes(at: int, width_in: int, width_out: int) -> dict[str, tuple[int, ...]]:
    return {f"conv{at}.weight": (2 * width_in, width_out), f"conv{at}.bias": (width_out,)}


def classifier_shapes(width: int, classes: int) -> dict[str, tuple[int, ...]]:
    return {
        "classifier.0.weight": (width, width),
        "classifier.0.bias": (width,),
        "classifier.1.weight": (width,),
        "classifier.2.weight": (classes, width),
        "classifier.2.bias": (classes,),
    }


def vertex_shapes(dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return every key of GCN-V's state_dict with its shape."""
    return {**conv_shapes(1, dim, hidden), **classifier_shapes(hidden, 1)}


def edge_shapes(dim: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return every key of GCN-E's state_dict with its shape."""
    half = hidden // 2
    return {
        **conv_shapes(1, dim, hidden),
        **conv_shapes(2, hidden, hidden),
        **conv_shapes(3, hidden, half),
        **conv_shapes(4, half, half),
        **classifier_shapes(half, 2),
    }


def widths_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read widths off a state_dict's shapes: conv1 takes a face beside the mean over those connected to it, 2 d."""
    conv1 = shapes.get("conv1.weight", ())
    if len(conv1) != 2 or min(conv1) < 2:
        return None
    return {"dim": conv1[0] // 2, "hidden": conv1[1]}


NETWORKS = {
    "vertex": Network(widths_from_shapes, vertex_shapes, vertex_passes, example={"dim": 1, "hidden": 2}),
    "edge": Network(widths_from_shapes, edge_shapes, edge_passes, example={"dim": 1, "hidden": 2}),
}
