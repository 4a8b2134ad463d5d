"""What L-GCN's passes take and give, what its checkpoints hold, and its published settings."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fcdeploy.clustering.propagation import POOLINGS
from fcdeploy.engine.tensors import PassSpec, pass_over_rows
from fcdeploy.errors import InputError, counted
from fcdeploy.run.options import Options
from fcdeploy.systems import Network, Weights, Workload
from fcdeploy.systems.recipe import Tuning

WIDTHS = (512, 512, 256, 256)  # of the outputs of conv1 to conv4, in both releases
KERNEL_SECONDS = 6e-6  # of one core a face of a sub-graph, measured on an EPYC of 2023
SMALLEST_STEP = 1e-4  # below it a threshold takes hundreds of thousands of rounds to rise


@dataclass(frozen=True)
class FeatureSettings:
    """normalize: divide every row by its 2-norm after reading; learn-to-cluster does, the first release does not."""

    normalize: bool = True


@dataclass(frozen=True)
class NeighborhoodSettings:
    """hops: neighbors a face is linked to, and those of each that join them; active: connections a face has there.

    The face itself is none of them. kNN lists are of hops[0] + 1, the face itself counted, and neither hops[1] nor
    active reaches beyond them.
    """

    hops: tuple[int, int] = (79, 10)
    active: int = 10

    @property
    def k(self) -> int:
        """The length of the kNN lists."""
        return self.hops[0] + 1


@dataclass(frozen=True)
class PropagationSettings:
    """max_size of a cluster; step of the threshold; pooling of a pair's scores; max_rounds, 0 for no limit."""

    max_size: int = 300
    step: float = 0.6
    pooling: str = "mean"
    max_rounds: int = 100


@dataclass(frozen=True)
class ToleranceSettings:
    """Largest error of an exported graph's logits over their scale, against PyTorch."""

    logits: float = 1e-5

    relative: ClassVar[bool] = True
    flips: ClassVar[int] = 0  # nothing is decided before propagation

    @property
    def error(self) -> float:
        return self.logits


@dataclass(frozen=True)
class Recipe:
    """All that a checkpoint does not say; the defaults are learn-to-cluster's for MS1M."""

    system: str = "l-gcn"
    feature_dim: int = 256
    features: FeatureSettings = field(default_factory=FeatureSettings)
    neighborhood: NeighborhoodSettings = field(default_factory=NeighborhoodSettings)
    propagation: PropagationSettings = field(default_factory=PropagationSettings)
    tolerance: ToleranceSettings = field(default_factory=ToleranceSettings)
    tuned: Tuning | None = None

    @classmethod
    def for_weights(cls, weights: Weights) -> "Recipe":
        """Return learn-to-cluster's settings for weights of a width."""
        return cls(feature_dim=weights["links"]["dim"])

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""
        return None if weights["links"]["dim"] == self.feature_dim else f"{self.feature_dim}-d features"

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        (one, two), active = self.neighborhood.hops, self.neighborhood.active
        after = self.propagation
        if min(self.feature_dim, one, two + 1, active) < 1:
            return "feature_dim, hops[0] and active must be positive, hops[1] may be 0"
        if after.max_size < 1:
            return f"propagation.max_size = {after.max_size} must be positive"
        if not SMALLEST_STEP <= after.step <= 1:
            return f"propagation.step = {after.step} does not lie in {SMALLEST_STEP} to 1"
        if after.pooling not in POOLINGS:
            return f"propagation.pooling = '{after.pooling}' is none of {', '.join(POOLINGS)}"
        if after.max_rounds < 0:
            return f"propagation.max_rounds = {after.max_rounds} must be positive, or 0 for no limit"
        return None

    def for_run(
        self, n: int, *, k: int | None = None, hops: tuple[int, int] | None = None
    ) -> tuple["Recipe", list[str]]:
        """Return the settings of a run over n faces, and a sentence for each that had to be changed.

        k is the length of the kNN lists, the face itself counted: it sets hops[0] = k - 1 where hops are not given,
        and shortens it where they are. Raises InputError when what was given makes no sense.
        """
        recipe, notes = self, []
        if hops is not None:
            recipe = recipe._with_hops(hops)
        if k is not None and k < 2:
            raise InputError(
                f"--k {k}: lists hold the face itself, and a link needs another; give --k 2 or more."
            )
        if k is not None and hops is None:
            recipe = recipe._with_hops((k - 1, recipe.neighborhood.hops[1]))
        if problem := recipe.problem():
            raise InputError(f"these settings do not fit together: {problem}.")
        if k is not None:
            recipe, more = recipe.for_lists(k, f"--k {k}")
            notes += more
        if recipe.neighborhood.k > n:
            notes.append(
                f"k = {recipe.neighborhood.k} is more than the number of faces, {n:,}; k = {n} is used."
            )
            recipe = recipe._with_hops((n - 1, recipe.neighborhood.hops[1]))
        return recipe, notes

    def for_lists(self, k: int, where: str) -> tuple["Recipe", list[str]]:
        """Return the settings for lists of k, the face itself counted, and a sentence if they are shorter than hops[0].

        As published: learn-to-cluster uses what a list holds.
        """
        one, two = self.neighborhood.hops
        if k > one:
            return self, []
        note = f"{where}: lists hold {counted(k - 1, 'neighbor')} besides the face itself; hops {k - 1},{two} are used."
        return self._with_hops((k - 1, two)), [note]

    def _with_hops(self, hops: tuple[int, int]) -> "Recipe":
        return replace(self, neighborhood=replace(self.neighborhood, hops=hops))


def passes(dim: int) -> dict[str, PassSpec]:
    """Return the passes for d-wide features; all are over rows.

    ``encode``: faces to what they bring to conv1. ``convolve``: faces of sub-graphs with the mean of those connected
    to them, behind conv1, to what they bring to conv3. ``score``: the same behind conv3, of one-hop neighbors, to
    logits.
    """
    first, _, third, _ = WIDTHS
    return {
        "encode": pass_over_rows("encode", {"features": dim}, {"own": first, "near": first}),
        "convolve": pass_over_rows("convolve", {"first": 2 * first}, {"own": third, "near": third}),
        "score": pass_over_rows("score", {"third": 2 * third}, {"logits": 2}),
    }


def workload(settings: Recipe, weights: Weights, options: Options) -> dict[str, Workload]:
    """Return how often a run uses each pass: a sub-graph of a typical person's face holds about 1.5 hops[0] faces."""
    rows, one = 4096, settings.neighborhood.hops[0]
    members = 1.5 * one
    return {
        "encode": Workload("links"),
        "convolve": Workload("links", {"m": rows}, members / rows, KERNEL_SECONDS * members),
        "score": Workload("links", {"m": rows}, one / rows),
    }


def checkpoint_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    """Return every key of the authors' state_dict with its shape, for d-wide features."""
    shapes: dict[str, tuple[int, ...]] = {
        "bn0.running_mean": (dim,),
        "bn0.running_var": (dim,),
        "bn0.num_batches_tracked": (),
    }
    for at, (width_in, width_out) in enumerate(zip((dim, *WIDTHS[:-1]), WIDTHS, strict=True)):
        shapes |= {f"conv{at + 1}.weight": (2 * width_in, width_out), f"conv{at + 1}.bias": (width_out,)}
    last = WIDTHS[-1]
    return shapes | {
        "classifier.0.weight": (last, last),
        "classifier.0.bias": (last,),
        "classifier.1.weight": (last,),
        "classifier.2.weight": (2, last),
        "classifier.2.bias": (2,),
    }


def widths_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read d off a state_dict's shapes: conv1 takes a face beside the mean of those connected to it, 2 d."""
    conv1 = shapes.get("conv1.weight", ())
    if len(conv1) != 2 or conv1[0] < 2:
        return None
    return {"dim": conv1[0] // 2}


NETWORK = Network(widths_from_shapes, checkpoint_shapes, passes, example={"dim": 1})
