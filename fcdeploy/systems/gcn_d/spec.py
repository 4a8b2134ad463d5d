"""What GCN-D's passes take and give, what its checkpoints hold, and its published settings."""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np

from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import InputError
from fcdeploy.run.options import Options
from fcdeploy.systems import Network, Weights, Widths
from fcdeploy.systems.recipe import Tuning
from fcdeploy.systems.training_types import Tunable, thresholds

DETECT, PURITY, SEGMENT = "detect", "purity", "segment"  # predict IoU, IoP, and the members of a proposal
EDGE_WEIGHTS = ("unit", "similarity")
REDUCTIONS = ("max", "mean", "sum")
STAGES = {
    "auto": "auto",
    **dict.fromkeys(("det", "dev", "detect"), "det"),
    **dict.fromkeys(("seg", "segment"), "seg"),
}
SEEDS = ("degree", "random", "none")
SELECTIONS = ("all", "iop")
ANY_COHESION = -1.0  # two faces can be no less alike
PUBLISHED_DEPTH = 4  # how often a network that only propagates does so if its recipe says just "true"


@dataclass(frozen=True)
class FeatureSettings:
    """normalize: divide every row by its 2-norm after reading."""

    normalize: bool = True


@dataclass(frozen=True)
class GraphSettings:
    """edge_weights of a proposal's graph: "unit", or the "similarity" of the two faces."""

    edge_weights: str = "unit"


@dataclass(frozen=True)
class MergeSettings:
    """How the components of the level below are merged into larger ones, by the kNN of their mean features.

    k counts the component itself; threshold of a kept pair's similarity, step by which it rises; min_parts and
    max_parts of a merged component, counted in components of the level below; min_size and max_size in faces. keep:
    the merged ones are proposals; otherwise they are only merged further.
    """

    k: int = 2
    threshold: float = 0.4
    step: float = 0.05
    min_parts: int = 2
    max_parts: int = 8
    min_size: int = 3
    max_size: int = 500
    keep: bool = True
    merge: tuple["MergeSettings", ...] = ()


@dataclass(frozen=True)
class ProposalSettings:
    """How proposals grow from the kNN lists of faces.

    k counts the face itself; threshold of a kept pair's similarity, step by which it rises while a component has more
    than max_size faces. keep: components of min_size faces and more are proposals; otherwise they are only merged.
    """

    k: int = 80
    threshold: float = 0.7
    step: float = 0.05
    min_size: int = 3
    max_size: int = 300
    keep: bool = True
    merge: tuple[MergeSettings, ...] = ()


def _published_proposals() -> tuple[ProposalSettings, ...]:
    merge = (MergeSettings(), MergeSettings(k=3, max_parts=5))
    thresholds = {0.6: True, 0.7: True, 0.75: False}
    return tuple(ProposalSettings(threshold=th, keep=keep, merge=merge) for th, keep in thresholds.items())


@dataclass(frozen=True)
class NetworkSettings:
    """What a state_dict does not tell of a network.

    reduce: how a graph's nodes become one, "max", "mean" or "sum". propagate_only: the network has no layers and
    averages features over the graph this many times (true: four, as published). featureless: nodes are ones instead
    of features. stage: "det" only scores proposals, "seg" segments them, too, "auto" does what the bundle has networks
    for.
    """

    reduce: str = "max"
    propagate_only: bool | int = False
    featureless: bool = False
    stage: str = "auto"

    @property
    def depth(self) -> int:
        """How often a network without layers propagates."""
        return PUBLISHED_DEPTH if self.propagate_only is True else int(self.propagate_only)


@dataclass(frozen=True)
class SegmentSettings:
    """How GCN-S removes members from proposals.

    seed: the node that a column of the input marks, that of largest "degree", a "random" one, or "none" (no such
    column). select: segment "all" proposals, or those whose predicted "iop" lies in min_iop..max_iop. th_outlier:
    members of this probability and less are removed; keep_outlier: they are clusters of their own, ranked last.
    """

    seed: str = "degree"
    select: str = "all"
    min_iop: float = 0.1
    max_iop: float = 0.9
    th_outlier: float = 0.5
    keep_outlier: bool = True


@dataclass(frozen=True)
class OverlapSettings:
    """min_score that a proposal needs; max_iou with a better one, above which it is dropped (1: none is).

    min_cohesion: mean cosine similarity of its pairs of faces that it needs, with all of them, and with those that
    better ones have left of it (-1, as published: any).
    """

    min_score: float = -1.0
    max_iou: float = 1.0
    min_cohesion: float = ANY_COHESION


@dataclass(frozen=True)
class ToleranceSettings:
    """Largest error of an exported graph's scores over their scale, and of members decided otherwise, against PyTorch.

    Members whose probability is within 1e-6 of one half may be decided either way and are counted apart.
    """

    scores: float = 1e-5
    flipped_members: int = 0

    relative: ClassVar[bool] = True

    @property
    def error(self) -> float:
        return self.scores

    @property
    def flips(self) -> int:
        return self.flipped_members


@dataclass(frozen=True)
class Recipe:
    """All that checkpoints do not say; the defaults are those published for MS1M with 8 proposal sets."""

    system: str = "gcn-d"
    feature_dim: int = 256
    features: FeatureSettings = field(default_factory=FeatureSettings)
    graph: GraphSettings = field(default_factory=GraphSettings)
    proposals: tuple[ProposalSettings, ...] = field(default_factory=_published_proposals)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    segment: SegmentSettings = field(default_factory=SegmentSettings)
    overlap: OverlapSettings = field(default_factory=OverlapSettings)
    tolerance: ToleranceSettings = field(default_factory=ToleranceSettings)
    tuned: Tuning | None = None

    @classmethod
    def for_weights(cls, weights: Weights) -> "Recipe":
        """Return the published settings for weights of these widths.

        One-wide features are taken for ones (featureless). Raises InputError for a network without layers, which
        does not say how often it propagates.
        """
        detect = weights[DETECT]
        if not detect["hidden"]:
            raise InputError(
                "the checkpoint has no layers; set in a recipe how often its network propagates, as in "
                "[network] propagate_only = 2."
            )
        featureless = detect["dim"] == 1
        recipe = cls(network=NetworkSettings(featureless=featureless))
        if not featureless:
            recipe = replace(recipe, feature_dim=detect["dim"])
        if SEGMENT in weights:
            seed = "none" if weights[SEGMENT]["dim"] == detect["dim"] else "degree"
            select = "iop" if PURITY in weights else "all"
            recipe = replace(recipe, segment=SegmentSettings(seed=seed, select=select))
        return recipe

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""
        dim = 1 if self.network.featureless else self.feature_dim
        for name, widths in weights.items():
            seeded = name == SEGMENT and self.segment.seed != "none"
            if widths["dim"] != dim + seeded:
                nodes = "ones" if self.network.featureless else f"{dim}-d features"
                return f"{nodes}{' and the column of a seed' if seeded else ''} ({name})"
            if name != SEGMENT and bool(widths["hidden"]) == bool(self.network.depth):
                layers = (
                    f"propagate_only = {self.network.depth} and no layers" if self.network.depth else "layers"
                )
                return f"{dim}-d features and {layers} ({name})"
        if SEGMENT not in weights and STAGES[self.network.stage] == "seg":
            return "a segmentation network, too (stage = 'seg')"
        if SEGMENT in weights and PURITY not in weights and self.segment.select == "iop":
            return "a second detection network, too, that predicts IoP (select = 'iop')"
        return None

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        if self.feature_dim < 1:
            return "feature_dim must be positive"
        for key, value, known in (
            ("graph.edge_weights", self.graph.edge_weights, EDGE_WEIGHTS),
            ("network.reduce", self.network.reduce, REDUCTIONS),
            ("network.stage", self.network.stage, tuple(STAGES)),
            ("segment.seed", self.segment.seed, SEEDS),
            ("segment.select", self.segment.select, SELECTIONS),
        ):
            if value not in known:
                return f"{key} = {value!r} is none of {', '.join(known)}"
        if self.network.depth < 0:
            return f"network.propagate_only = {self.network.propagate_only} is negative"
        if not self.proposals:
            return "there are no [[proposals]]"
        if not any(settings.keep for _, settings in self.levels()):
            return "no [[proposals]] and no [[proposals.merge]] has keep = true"
        for name, settings in self.levels():
            if problem := _problem_of(settings):
                return f"{name}: {problem}"
        if not 0 <= self.segment.th_outlier <= 1:
            return f"segment.th_outlier = {self.segment.th_outlier} is not a probability (0 to 1)"
        if not 0 <= self.segment.min_iop <= self.segment.max_iop <= 1:
            return f"segment.min_iop = {self.segment.min_iop}, max_iop = {self.segment.max_iop}: no range in 0..1"
        if not self.overlap.max_iou >= 0:
            return f"overlap.max_iou = {self.overlap.max_iou} is negative"
        if not -1 <= self.overlap.min_cohesion <= 1:
            return f"overlap.min_cohesion = {self.overlap.min_cohesion} is no cosine similarity (-1 to 1)"
        if np.isnan(self.overlap.min_score):
            return "overlap.min_score is not a number"
        return None

    def levels(self) -> Iterator[tuple[str, ProposalSettings | MergeSettings]]:
        """Yield all parameter sets by name, those of a merge behind that which it merges."""

        def below(name: str, merges: tuple[MergeSettings, ...]) -> Iterator[tuple[str, MergeSettings]]:
            for at, merge in enumerate(merges):
                yield f"{name}.merge[{at}]", merge
                yield from below(f"{name}.merge[{at}]", merge.merge)

        for at, base in enumerate(self.proposals):
            yield f"proposals[{at}]", base
            yield from below(f"proposals[{at}]", base.merge)

    @property
    def k(self) -> int:
        """The length of the kNN lists: the largest k of the proposals."""
        return max(base.k for base in self.proposals)

    def stages(self, networks: Collection[str]) -> tuple[str, ...]:
        """Return which of a bundle's networks a run uses."""
        if SEGMENT not in networks or STAGES[self.network.stage] == "det":
            return (DETECT,)
        return (DETECT, PURITY, SEGMENT) if self.segment.select == "iop" else (DETECT, SEGMENT)

    def for_run(self, n: int, *, k: int | None = None) -> tuple["Recipe", list[str]]:
        """Return the settings of a run over n faces, and a sentence for each that had to be changed.

        k replaces that of every [[proposals]]; no list can be longer than n.
        """
        bases = self.proposals if k is None else tuple(replace(base, k=k) for base in self.proposals)
        notes = []
        if (largest := max(base.k for base in bases)) > n:
            notes.append(f"k = {largest} is more than the number of faces, {n:,}; k = {n} is used.")
        bases = tuple(replace(base, k=min(base.k, n)) for base in bases)
        return replace(self, proposals=bases), notes


def _problem_of(settings: ProposalSettings | MergeSettings) -> str | None:
    if settings.k < 1:
        return f"k = {settings.k} must be positive"
    if not 0 <= settings.threshold <= 1:
        return f"threshold = {settings.threshold} is no similarity (0 to 1)"
    if not 0 < settings.step <= 1:
        return f"step = {settings.step} must be above 0 and at most 1"
    if not 2 <= settings.min_size <= settings.max_size:
        return f"min_size = {settings.min_size} and max_size = {settings.max_size}: 2 <= min_size <= max_size"
    if isinstance(settings, MergeSettings) and not 2 <= settings.min_parts <= settings.max_parts:
        return f"min_parts = {settings.min_parts} and max_parts = {settings.max_parts}: 2 <= min_parts <= max_parts"
    return None


def passes_of(name: str, dim: int, hidden: tuple[int, ...]) -> dict[str, PassSpec]:
    """Return the passes of one network: products of m faces with the first weights, then b graphs of n nodes.

    A network without layers has the second only, over features. adj: rows of zeros are padding.
    """
    adj = TensorSpec("adj", ("b", "n", "n"))
    if name == SEGMENT:
        output = TensorSpec("probability", ("b", "n"))
    else:
        output = TensorSpec("score", ("b",))
    if not hidden:
        return {name: PassSpec(name, (TensorSpec("features", ("b", "n", dim)), adj), (output,))}
    faces = f"{name}_faces"
    return {
        faces: PassSpec(
            faces, (TensorSpec("features", ("m", dim)),), (TensorSpec("weighted", ("m", hidden[0])),)
        ),
        name: PassSpec(name, (TensorSpec("weighted", ("b", "n", hidden[0])), adj), (output,)),
    }


def searches(settings: Recipe) -> dict[str, int]:
    """Return how many further kNN searches the stages make: one for all merges of one level."""
    return {"proposals": sum(bool(level.merge) for _, level in settings.levels())}


def tunable(weights: Weights, options: Options) -> tuple[Tunable, ...]:
    """Return what is chosen on labelled faces: which proposals become clusters, and what segmentation takes from them.

    The published th_outlier comes first: where segments make no difference it stays.
    """
    overlap = (
        Tunable("overlap.min_cohesion", (ANY_COHESION, *thresholds(0.1, 0.7, 0.05)), between=True),
        Tunable("overlap.min_score", (-1.0, 0.2, 0.4, 0.6)),
        Tunable("overlap.max_iou", (0.5, 1.0)),
    )
    segment = Tunable("segment.th_outlier", (0.5, 0.1, 0.0))
    return (*overlap, segment) if SEGMENT in weights else overlap


def graphs(n: int, settings: Recipe, nodes: int) -> float:
    """Return how many graphs of so many nodes proposals make at most: every kept set divides all faces."""
    return n * sum(level.keep for _, level in settings.levels()) / nodes


def checkpoint_shapes_of(outputs: int, dim: int, hidden: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return every key of the authors' state_dict with its shape, for d-wide nodes and layers of these widths."""
    widths = (dim, *hidden)
    shapes: dict[str, tuple[int, ...]] = {
        f"layers.{at}.gc.weight": pair for at, pair in enumerate(itertools.pairwise(widths))
    }
    return {**shapes, "classifier.weight": (outputs, widths[-1]), "classifier.bias": (outputs,)}


def widths_from_shapes_of(outputs: int, shapes: dict[str, tuple[int, ...]]) -> Widths | None:
    """Read node and layer widths off a state_dict's shapes; None for a network of another number of outputs."""
    classifier = shapes.get("classifier.weight", ())
    if len(classifier) != 2 or classifier[0] != outputs:
        return None
    layers: list[tuple[int, ...]] = []
    while len(layer := shapes.get(f"layers.{len(layers)}.gc.weight", ())) == 2:
        layers.append(layer)
    if outputs != 1 and not layers:
        return None
    dim = layers[0][0] if layers else classifier[1]
    hidden = tuple(layer[1] for layer in layers)
    return {"dim": dim, "hidden": hidden} if min((dim, *hidden)) > 0 else None


def _network(name: str, outputs: int) -> Network:
    return Network(
        lambda shapes: widths_from_shapes_of(outputs, shapes),
        lambda dim, hidden: checkpoint_shapes_of(outputs, dim, hidden),
        lambda dim, hidden: passes_of(name, dim, hidden),
        example={"dim": 1, "hidden": (1, 1)},
    )


NETWORKS = {DETECT: _network(DETECT, 1), PURITY: _network(PURITY, 1), SEGMENT: _network(SEGMENT, 2)}


def problem_of_networks(networks: Collection[str]) -> str | None:
    """Say why a bundle of these networks only makes no sense."""
    if DETECT not in networks:
        return "holds a segmentation network only; give the detection network that ranks proposals, too"
    if PURITY in networks and SEGMENT not in networks:
        return (
            "hold two detection networks; the second, which predicts IoP, only chooses what a segmentation network "
            "works on: give that, too, or one of the two"
        )
    return None
