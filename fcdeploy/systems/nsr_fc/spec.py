"""What NSR-FC's passes take and give, what its checkpoints hold, and its published settings."""

from dataclasses import dataclass, field, replace

import numpy as np

from fcdeploy.engine.tensors import PassSpec, TensorSpec
from fcdeploy.errors import InputError, counted
from fcdeploy.run.options import Options
from fcdeploy.systems import Network, Weights, Workload, get_system
from fcdeploy.systems.pse_gcn.spec import NETWORK as REFINE
from fcdeploy.systems.pse_gcn.spec import FeatureSettings, NeighborhoodSettings
from fcdeploy.systems.recipe import TensorShapes, Tuning
from fcdeploy.systems.training_types import Tunable, probabilities, thresholds

HEADS = 8  # of every published attention; no shape of a checkpoint says it
ENGINE_ROWS = 1280  # neighbors per engine call: full-speed matrix products that stay in the cache
ATTENTION_BYTES = 1 << 25  # that the attention weights of a batch may take at a time
MOST_POSITIONS = 8  # a call, however small batches are: build profiles have room for no more
PAIRS, DENSITY_PEAKS = "pairs", "density-peaks"
ATTENTIONS = ("batch", "neighbors")
EQUAL_WEIGHTS = (1.0, 1.0, 1.0)  # of LCE-PCENet


@dataclass(frozen=True)
class RescoreSettings:
    """k neighbors of each face are scored, faces attending to each other in batches in the order of the file.

    attention: "batch", as published, or "neighbors", for weights trained so: each face's neighbors attend to each
    other, and the batch does not matter.
    """

    k: int = 80
    batch: int = 512
    attention: str = "batch"


@dataclass(frozen=True)
class DensityPeaksSettings:
    """Density over the k nearest by re-scored distance, with sigma; transition distances with transition_sigma.

    tau: the distance that a link stays below; max_links: links a face at most. A transition_sigma of 0 links by the
    re-scored distances themselves.
    """

    k: int = 20
    sigma: float = 0.5
    transition_sigma: float = 0.05
    tau: float = 0.7
    max_links: int = 1


@dataclass(frozen=True)
class PairSettings:
    """k of the pair networks, a length of their weights, the face itself counted.

    certain_weights: a link is certain, and PCENet is not asked, when score times similarity reaches the mean over
    all faces of their largest similarities, weighted so, the smallest first (only ratios count; none: nothing is
    certain). min_probability: PCENet's, above which it confirms a link.
    """

    k: int = 80
    certain_weights: tuple[float, ...] = (0.1, 0.2, 0.7)
    min_probability: float = 0.5


@dataclass(frozen=True)
class ToleranceSettings:
    """Largest error of refined features (absolute) and of logits (over their scale), and of decisions, against PyTorch.

    Decisions: S >= 0.5 edges of the refinement, links of the pair networks; those within 1e-6 of the threshold may
    fall either way and are counted apart.
    """

    refined: float = 1e-5
    flipped_edges: int = 0
    logits: float = 1e-5
    flipped_links: int = 0


@dataclass(frozen=True)
class Recipe:
    """All that checkpoints do not say; the defaults are those published for MS1M."""

    system: str = "nsr-fc"
    feature_dim: int = 256
    features: FeatureSettings = field(default_factory=FeatureSettings)
    neighborhood: NeighborhoodSettings = field(default_factory=NeighborhoodSettings)
    rescore: RescoreSettings = field(default_factory=RescoreSettings)
    density_peaks: DensityPeaksSettings = field(default_factory=DensityPeaksSettings)
    pairs: PairSettings = field(default_factory=PairSettings)
    tolerance: ToleranceSettings = field(default_factory=ToleranceSettings)
    tuned: Tuning | None = None

    @classmethod
    def for_weights(cls, weights: Weights) -> "Recipe":
        """Return the published settings for weights of these widths."""
        recipe = cls(feature_dim=feature_dim(weights))
        if "lce" in weights:
            k = weights["lce"]["k"]
            pairs = replace(recipe.pairs, k=k, certain_weights=published_weights(weights))
            rescore = replace(recipe.rescore, k=max(recipe.rescore.k, k))
            recipe = replace(recipe, pairs=pairs, rescore=rescore)
        return recipe

    def mismatch(self, weights: Weights) -> str | None:
        """Say what the recipe is for when it is not for these weights."""
        if self.feature_dim != feature_dim(weights):
            return f"{self.feature_dim}-d features"
        if "lce" in weights:
            if self.pairs.k != weights["lce"]["k"]:
                return f"{self.feature_dim}-d features and pairs.k = {self.pairs.k}"
            if "rescore" in weights and self.rescore.k < self.pairs.k:
                return f"rescore.k = {self.rescore.k}, less than pairs.k = {self.pairs.k}"
        return None

    def problem(self) -> str | None:
        """Return what is wrong with these values together, or None."""
        rescore, peaks, pairs = self.rescore, self.density_peaks, self.pairs
        for name, value in {
            "feature_dim": self.feature_dim,
            "rescore.k": rescore.k,
            "rescore.batch": rescore.batch,
            "density_peaks.k": peaks.k,
            "density_peaks.max_links": peaks.max_links,
            "pairs.k": pairs.k,
        }.items():
            if value < 1:
                return f"{name} = {value} is not positive"
        if problem := self.neighborhood.problem():
            return problem
        if rescore.attention not in ATTENTIONS:
            return f"rescore.attention = '{rescore.attention}' is neither 'batch' nor 'neighbors'"
        if not 0 < peaks.sigma < np.inf:
            return f"density_peaks.sigma = {peaks.sigma} is not positive"
        if not 0 <= peaks.transition_sigma < np.inf:
            return f"density_peaks.transition_sigma = {peaks.transition_sigma} is negative"
        if not 0 <= peaks.tau <= 1:
            return f"density_peaks.tau = {peaks.tau} is no distance (0 to 1)"
        if not 0 <= pairs.min_probability <= 1:
            return f"pairs.min_probability = {pairs.min_probability} is not a probability (0 to 1)"
        weights = pairs.certain_weights
        if len(weights) >= pairs.k:
            return (
                f"pairs.certain_weights has {counted(len(weights), 'value')}, and pairs.k = {pairs.k} leaves "
                f"{pairs.k - 1}"
            )
        if weights and not (all(0 <= weight < np.inf for weight in weights) and sum(weights) > 0):
            return f"pairs.certain_weights = {list(weights)} should be numbers from 0 with a positive sum"
        return None

    def for_run(
        self,
        n: int,
        *,
        weights: Weights,
        k: int | None = None,
        hops: tuple[int, int] | None = None,
        tau: float | None = None,
        link: str | None = None,
    ) -> tuple["Recipe", list[str]]:
        """Return the settings of a run over n faces, and a sentence for each that had to be changed.

        k sets the k of the refinement and of the re-scoring, and shortens hops that were not given and would reach
        beyond it; that of the pair networks is a length of their weights. No list can be longer than n. Raises
        InputError when what was given does not fit together.
        """
        near, rescore, peaks = self.neighborhood.changed(k, hops), self.rescore, self.density_peaks
        if k is not None:
            rescore = replace(rescore, k=k)
        if tau is not None:
            peaks = replace(peaks, tau=tau)
        changed = replace(self, neighborhood=near, rescore=rescore, density_peaks=peaks)
        if problem := changed.problem():
            raise InputError(f"these settings do not fit together: {problem}.")
        if link_of(weights, link) == PAIRS:
            changed._check_pairs(n, weights, k)
        notes = []
        used = [setting.k for name, setting in (("refine", near), ("rescore", rescore)) if name in weights]
        if used and max(used) > n:
            notes.append(f"k = {max(used)} is more than the number of faces, {n:,}; k = {n} is used.")
        near = replace(near, k=min(near.k, n))
        rescore = replace(rescore, k=min(rescore.k, n))
        return replace(changed, neighborhood=near.within(near.k), rescore=rescore), notes

    def _check_pairs(self, n: int, weights: Weights, k: int | None) -> None:
        wanted = self.pairs.k
        if k is not None and (k != wanted if "rescore" not in weights else k < wanted):
            raise InputError(
                f"--k {k}: the pair networks' weights are for k = {wanted} neighbors; leave --k out, "
                "or export checkpoints that were trained with the other k."
            )
        if n < wanted:
            raise InputError(
                f"the pair networks' weights are for k = {wanted} neighbors, the face itself counted, "
                f"and there are only {counted(n, 'face')}; give at least {wanted:,}."
            )

    def check_reranked(self, k: int, where: str) -> None:
        """Raise InputError when re-ranked lists of k, made elsewhere, are too short for the hops."""
        self.neighborhood.check_reranked(k, where)


def feature_dim(weights: Weights) -> int:
    """Return the width of the input features: that of the refinement, else of the pair networks, else of the rest."""
    return next(weights[name]["dim"] for name in ("refine", "lce", "rescore") if name in weights)


def published_weights(weights: Weights) -> tuple[float, ...]:
    """Return the weights of certain links behind the re-scoring or without it, as many as lists have neighbors."""
    found = PairSettings.certain_weights if "rescore" in weights else EQUAL_WEIGHTS
    return found[max(0, len(found) + 1 - weights["lce"]["k"]) :]


def link_of(weights: Weights, link: str | None) -> str:
    """Return how clusters come about: as asked for, else by the pair networks where the bundle has them."""
    return link or (PAIRS if "lce" in weights else DENSITY_PEAKS)


def problem(weights: Weights) -> str | None:
    """Say why a bundle of these networks makes no sense: they are a run of neighbors of the chain, and fit together."""
    for name, title, other in (("lce", "LCENet", "PCENet"), ("pce", "PCENet", "LCENet")):
        if name in weights and not ("lce" in weights and "pce" in weights):
            return f"{title} works together with {other} only; give {other}'s checkpoint, too"
    if "refine" in weights and "lce" in weights and "rescore" not in weights:
        return (
            "the pair networks come after the re-scoring, not directly after the refinement; "
            "give the re-scoring network's checkpoint, too, or leave the refinement out"
        )
    if "lce" in weights and any(weights["lce"][width] != weights["pce"][width] for width in ("dim", "k")):
        lce, pce = ([weights[name]["dim"], weights[name]["k"]] for name in ("lce", "pce"))
        return (
            f"LCENet is for {lce[0]}-d features and k = {lce[1]}, PCENet for {pce[0]}-d features and k = {pce[1]}; "
            "give two that were trained together"
        )
    if "rescore" in weights:
        takes = weights["rescore"]["dim"]
        if "refine" in weights and takes != 2 * weights["refine"]["dim"]:
            return (
                f"the re-scoring network is for {takes}-d features, and the refinement gives "
                f"{2 * weights['refine']['dim']}-d ones"
            )
        wanted = weights["refine"]["dim"] if "refine" in weights else takes
        if "lce" in weights and weights["lce"]["dim"] != wanted:
            behind = "refine" not in weights and wanted == 2 * weights["lce"]["dim"]
            return (
                f"LCENet and PCENet are for {weights['lce']['dim']}-d input features, the networks before them for "
                f"{wanted}-d ones" + ("; give the refinement's checkpoint, too" if behind else "")
            )
    return None


def refusal(weights: Weights, options: Options) -> str | None:
    """Say which option makes no sense for a run of these networks."""
    link = link_of(weights, options.link)
    if link == PAIRS and "lce" not in weights:
        return "--link pairs: the engine has no LCENet and PCENet; leave --link out, or export them, too"
    if link == DENSITY_PEAKS and "rescore" not in weights:
        return (
            "--link density-peaks: the engine has no re-scoring network; leave --link out, or export it, too"
        )
    for name in ("hops", "reranked"):
        if getattr(options, name) is not None and "refine" not in weights:
            return f"--{name}: the engine has no refinement network, which alone uses it"
    if options.tau is not None and link == PAIRS:
        return "--tau: is for --link density-peaks; links of the pair networks have --min-probability"
    if options.min_probability is not None and link == DENSITY_PEAKS:
        return "--min-probability: is for --link pairs; density peaks have --tau"
    return None


@dataclass(frozen=True)
class NetworkTolerance:
    """What an export of one network may be off by."""

    error: float
    flips: int
    relative: bool


def tolerance(recipe: Recipe, network: str) -> NetworkTolerance:
    """Return what an export of a network may be off by."""
    allowed = recipe.tolerance
    if network == "refine":
        return NetworkTolerance(allowed.refined, allowed.flipped_edges, relative=False)
    return NetworkTolerance(allowed.logits, allowed.flipped_links, relative=True)


def rescore_passes(dim: int, ff: int, layers: int, norms: int) -> dict[str, PassSpec]:
    """Return the re-scoring's passes for s faces that are one batch, at p positions of their lists.

    Batch-wise attention: ``rescore_first`` once a batch, then ``rescore`` until all positions are done;
    neighbor-wise: ``rescore_neighbors``, for b faces with k neighbors.
    """
    batch, code = TensorSpec("features", ("s", dim)), TensorSpec("code", ("p", dim))
    first = TensorSpec("first", ("s", dim))
    return {
        "rescore_first": PassSpec("rescore_first", (batch,), (first,)),
        "rescore": PassSpec(
            "rescore",
            (TensorSpec("features", ("p", "s", dim)), code, first),
            (TensorSpec("logits", ("p", "s")),),
        ),
        "rescore_neighbors": PassSpec(
            "rescore_neighbors",
            (TensorSpec("features", ("b", "k", dim)), TensorSpec("code", ("k", dim))),
            (TensorSpec("logits", ("b", "k")),),
        ),
    }


def lce_passes(dim: int, k: int, ff: int, layers: int) -> dict[str, PassSpec]:
    """Return LCENet's pass over b faces with their k neighbors."""
    features = TensorSpec("features", ("b", k, dim))
    return {"connect": PassSpec("connect", (features,), (TensorSpec("logits", ("b", k, 2)),))}


def pce_passes(dim: int, k: int, ff: int, layers: int, hidden: int) -> dict[str, PassSpec]:
    """Return PCENet's pass over b links with the k neighbors of both faces."""
    features = TensorSpec("features", ("b", 2 * k, dim))
    return {"confirm": PassSpec("confirm", (features,), (TensorSpec("logits", ("b", 2)),))}


def longest_list(weights: Weights, settings: Recipe, link: str) -> int:
    """Return how many neighbors per face a run needs; every stage uses the first so many of them."""
    needed = {
        "refine": settings.neighborhood.k,
        "rescore": settings.rescore.k,
        "lce": settings.pairs.k if link == PAIRS else 1,
    }
    return max(k for name, k in needed.items() if name in weights)


def tunable(weights: Weights, options: Options) -> tuple[Tunable, ...]:
    """Return what is chosen on labelled faces: thresholds of the links that a run makes.

    Certain links bypass PCENet, so that there may be none; density peaks may link by re-scored distances themselves.
    """
    if link_of(weights, options.link) == DENSITY_PEAKS:
        return (
            Tunable("density_peaks.tau", thresholds(0.0, 1.0), between=True),
            Tunable("density_peaks.transition_sigma", (0.0, 0.05)),
        )
    return (
        Tunable("pairs.min_probability", probabilities(0.0, 1.0, 0.02), between=True),
        Tunable("pairs.certain_weights", ((), published_weights(weights))),
    )


def workload(settings: Recipe, weights: Weights, options: Options) -> dict[str, Workload]:
    """Return what a run does with each pass that it uses."""
    loads: dict[str, Workload] = {}
    if "refine" in weights:
        loads |= {name: Workload("refine") for name in get_system("pse-gcn").inferences[options.inference]}
    if "rescore" in weights:
        k, batch = settings.rescore.k, settings.rescore.batch
        if settings.rescore.attention == "neighbors":
            faces = max(1, ENGINE_ROWS // k)
            loads["rescore_neighbors"] = Workload("rescore", {"b": faces, "k": k}, 1 / faces)
        else:
            p = positions_a_call(batch)
            loads["rescore_first"] = Workload("rescore", {"s": batch}, 1 / batch)
            loads["rescore"] = Workload("rescore", {"p": p, "s": batch}, k / p / batch)
    if link_of(weights, options.link) == PAIRS:
        faces, links = (max(1, ENGINE_ROWS // rows) for rows in (settings.pairs.k, 2 * settings.pairs.k))
        loads["connect"] = Workload("connect", {"b": faces}, 1 / faces)
        loads["confirm"] = Workload("links", {"b": links}, 1 / links)
    return loads


def positions_a_call(batch: int) -> int:
    """Return at how many positions of their lists the faces of a batch attend to each other in one engine call."""
    return max(1, min(MOST_POSITIONS, ATTENTION_BYTES // (4 * HEADS * batch * batch)))


def encoder_shapes(width: int, ff: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return the keys of an encoder with their shapes."""
    shapes: dict[str, tuple[int, ...]] = {}
    for at in range(layers):
        layer = f"encoder.layers.{at}"
        shapes |= {
            f"{layer}.self_attn.in_proj_weight": (3 * width, width),
            f"{layer}.self_attn.in_proj_bias": (3 * width,),
            **linear_shapes(f"{layer}.self_attn.out_proj", width, width),
            **linear_shapes(f"{layer}.linear1", width, ff),
            **linear_shapes(f"{layer}.linear2", ff, width),
            **norm_shapes(f"{layer}.norm1", width),
            **norm_shapes(f"{layer}.norm2", width),
        }
    return shapes


def linear_shapes(name: str, width_in: int, width_out: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width_out, width_in), f"{name}.bias": (width_out,)}


def norm_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def rescore_shapes(dim: int, ff: int, layers: int, norms: int) -> dict[str, tuple[int, ...]]:
    """Return every key of the re-scoring's state_dict; with a final norm where norms is odd."""
    return {
        **encoder_shapes(dim, ff, layers),
        **(norm_shapes("encoder.norm", dim) if norms % 2 else {}),
        **linear_shapes("clf.0", 2 * dim, dim),
        **linear_shapes("clf.2", dim, dim // 2),
        **linear_shapes("clf.4", dim // 2, 1),
    }


def lce_shapes(dim: int, k: int, ff: int, layers: int) -> dict[str, tuple[int, ...]]:
    """Return every key of LCENet's state_dict with its shape."""
    return {
        **encoder_shapes(dim + k, ff, layers),
        **linear_shapes("classifier.0", 2 * (dim + k), dim),
        "classifier.1.weight": (1,),
        **linear_shapes("classifier.2", dim, 2),
    }


def pce_shapes(dim: int, k: int, ff: int, layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Return every key of PCENet's state_dict with its shape."""
    return {
        **encoder_shapes(dim + 2 * k, ff, layers),
        **linear_shapes("adjust_dim.0", dim + 2 * k, dim),
        "adjust_dim.1.weight": (1,),
        **linear_shapes("adjust_dim.2", dim, dim),
        **linear_shapes("classifier.0", 4 * dim, hidden),
        "classifier.1.weight": (1,),
        **linear_shapes("classifier.2", hidden, hidden),
        "classifier.3.weight": (1,),
        **linear_shapes("classifier.4", hidden, 2),
    }


def _encoder_widths(shapes: TensorShapes) -> tuple[int, int, int] | None:
    """Read width, feed-forward width and number of layers off an encoder's shapes."""
    first = shapes.get("encoder.layers.0.linear1.weight", ())
    layers = sum(name.startswith("encoder.layers.") and name.endswith(".norm1.weight") for name in shapes)
    if len(first) != 2 or first[1] % HEADS or not layers:
        return None
    return first[1], first[0], layers


def rescore_widths(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read the re-scoring's widths off a state_dict's shapes."""
    encoder = _encoder_widths(shapes)
    if encoder is None or "clf.0.weight" not in shapes:
        return None
    dim, ff, layers = encoder
    norms = 2 * layers + ("encoder.norm.weight" in shapes)
    return {"dim": dim, "ff": ff, "layers": layers, "norms": norms}


def lce_widths(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read LCENet's widths off a state_dict's shapes."""
    encoder, head = _encoder_widths(shapes), shapes.get("classifier.0.weight", ())
    if encoder is None or len(head) != 2 or not 0 < head[0] < encoder[0] or "adjust_dim.0.weight" in shapes:
        return None
    width, ff, layers = encoder
    return {"dim": head[0], "k": width - head[0], "ff": ff, "layers": layers}


def pce_widths(shapes: dict[str, tuple[int, ...]]) -> dict[str, int] | None:
    """Read PCENet's widths off a state_dict's shapes."""
    encoder, adjust, head = (
        _encoder_widths(shapes),
        shapes.get("adjust_dim.0.weight", ()),
        shapes.get("classifier.0.weight", ()),
    )
    if encoder is None or len(adjust) != 2 or len(head) != 2:
        return None
    width, ff, layers = encoder
    if not 0 < adjust[0] < width or (width - adjust[0]) % 2:
        return None
    return {"dim": adjust[0], "k": (width - adjust[0]) // 2, "ff": ff, "layers": layers, "hidden": head[0]}


NETWORKS = {
    "refine": REFINE,
    "rescore": Network(
        rescore_widths, rescore_shapes, rescore_passes, example={"dim": 8, "ff": 1, "layers": 1, "norms": 2}
    ),
    "lce": Network(lce_widths, lce_shapes, lce_passes, example={"dim": 7, "k": 1, "ff": 1, "layers": 3}),
    "pce": Network(
        pce_widths, pce_shapes, pce_passes, example={"dim": 6, "k": 1, "ff": 1, "layers": 3, "hidden": 1}
    ),
}
