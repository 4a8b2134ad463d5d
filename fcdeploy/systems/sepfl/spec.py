"""What SEPFL's passes take and give, what its checkpoints hold, and its published settings."""

from dataclasses import dataclass, field, replace
from typing import ClassVar

from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import InputError, counted
from fcdeploy.systems import Network, Weights
from fcdeploy.systems.recipe import Tuning

ACCEPTED = 0.5  # probability from which a link is accepted


@dataclass(frozen=True)
class FeatureSettings:
    """normalize: divide every row by its 2-norm after reading."""

    normalize: bool = True


@dataclass(frozen=True)
class LinkSettings:
    """k of the kNN lists, a length of the weights; rho: the similarity of the neighbors that density counts.

    min_probability: what a link needs; 0.5 is what the network accepts, as published, less is more than that.
    """

    k: int = 80
    rho: float = 0.7
    min_probability: float = ACCEPTED


@dataclass(frozen=True)
class ToleranceSettings:
    """Largest error of an exported graph's logits over their scale, and of links decided otherwise, against PyTorch.

    Links whose logits differ by less than 1e-6 may be decided either way and are counted apart.
    """

    logits: float = 1e-5
    flipped_links: int = 0

    relative: ClassVar[bool] = True

    @property
    def error(self) -> float:
        return self.logits

    @property
    def flips(self) -> int:
        return self.flipped_links


@dataclass(frozen=True)
class Recipe:
    """All that a checkpoint does not say; the defaults are those published for MS1M."""

    system: str = "sepfl"
    feature_dim: int = 256
    features: FeatureSettings = field(default_factory=FeatureSettings)
    links: LinkSettings = field(default_factory=LinkSettings)
    tolerance: ToleranceSettings = field(default_factory=ToleranceSettings)
    tuned: Tuning | None = None

    @classmethod
    def for_weights(cls, weights: Weights) -> "Recipe":
        """Return the published settings for weights of these widths."""
        widths = weights["pairwise"]
        return cls(feature_dim=widths["dim"], links=replace(LinkSettings(), k=widths["k"]))

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""
        if weights["pairwise"] == {"dim": self.feature_dim, "k": self.links.k}:
            return None
        return f"{self.feature_dim}-d features and k = {self.links.k}"

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        if min(self.links.k, self.feature_dim) < 1:
            return "feature_dim and k must be positive"
        if not -1 <= self.links.rho <= 1:
            return f"links.rho = {self.links.rho} is not a cosine similarity (-1 to 1)"
        if not 0 <= self.links.min_probability <= 1:
            return f"links.min_probability = {self.links.min_probability} is not a probability (0 to 1)"
        return None

    def for_run(self, n: int, *, k: int | None = None) -> tuple["Recipe", list[str]]:
        """Return the settings of a run over n faces and no notes: nothing can be changed.

        Raises InputError for another k than that of the weights, and for fewer faces than k.
        """
        weights = self.links.k
        if k is not None and k != weights:
            raise InputError(
                f"--k {k}: the engine's weights are for k = {weights} neighbors; leave --k out, "
                "or export a checkpoint that was trained with the other k."
            )
        if n < weights:
            raise InputError(
                f"the weights are for k = {weights} neighbors, the face itself counted, "
                f"and there are only {counted(n, 'face')}; give at least {weights:,}."
            )
        return self, []


def passes(dim: int, k: int) -> dict[str, PassSpec]:
    """Return the passes for d-wide features and lists of k: ``near`` and ``encode`` over faces, ``pair`` over links."""
    h = 2 * dim
    return {
        "near": PassSpec("near", (TensorSpec("features", ("m", dim)),), (TensorSpec("near", ("m", 2 * h)),)),
        "encode": PassSpec(
            "encode",
            (
                TensorSpec("features", ("b", dim)),
                TensorSpec("neighbors", ("b", k, dim)),
                TensorSpec("near", ("b", k, 2 * h)),
            ),
            (TensorSpec("encoded", ("b", h)),),
        ),
        "pair": PassSpec(
            "pair",
            (TensorSpec("face", ("m", h)), TensorSpec("denser", ("m", h))),
            (TensorSpec("logits", ("m", 2)),),
        ),
    }


def checkpoint_shapes(dim: int, k: int) -> dict[str, tuple[int, ...]]:
    """Return every key of the authors' state_dict with its shape, for d-wide features and lists of k."""
    h = 2 * dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, width in {
        "channel_bn": h,
        "token_bn": h,
        "attention_bn": h,
        "classifier.0": 2 * h,
        "classifier.2": h,
        "classifier.6": dim,
    }.items():
        shapes |= {f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")}
        shapes[f"{name}.num_batches_tracked"] = ()
    for name, (width_in, width_out) in {
        "channel_mix.0": (h, 2 * h),
        "channel_mix.3": (2 * h, h),
        "token_mix.0": (k, 2 * k),
        "token_mix.3": (2 * k, k),
        "attention_layer.0": (h, dim),
        "attention_layer.3": (dim, 1),
        "classifier.1": (2 * h, h),
        "classifier.5": (h, dim),
        "classifier.9": (dim, 2),
    }.items():
        shapes |= {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}
    return shapes


def widths_from_shapes(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read d and k off a state_dict's shapes: F = 4 d inputs of the classifier, (2k, k) weights of the token mixer."""
    pair, tokens = shapes.get("classifier.0.weight", ()), shapes.get("token_mix.0.weight", ())
    if len(pair) != 1 or len(tokens) != 2 or pair[0] < 4:
        return None
    return {"dim": pair[0] // 4, "k": tokens[1]}


NETWORK = Network(widths_from_shapes, checkpoint_shapes, passes, example={"dim": 1, "k": 1})
