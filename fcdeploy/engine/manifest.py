"""What a bundle's manifest says, as types; keys beyond these are kept, and mean nothing here."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from msgspec import Meta

from fcdeploy.data.typed import misfit, typed
from fcdeploy.engine.tensorrt import PlanTarget
from fcdeploy.engine.tensors import Tensors
from fcdeploy.errors import InputError

MANIFEST = "manifest.json"
FORMAT = "fcdeploy-bundle"
FORMAT_VERSION = 2
ONNX, PLAN = "onnx", "plan"  # kinds of bundles, and the suffixes of their graph files
Width = Annotated[int, Meta(ge=1)]
Widths = dict[str, Width | tuple[Width, ...]]


@dataclass(frozen=True)
class Head:
    """What tells a manifest, of any version, from other JSON."""

    format: Literal["fcdeploy-bundle"]
    format_version: int


@dataclass(frozen=True)
class GraphFile(Tensors):
    """A pass: its file in the bundle and, in plans, its shape ranges, one table per optimization profile."""

    file: str
    sha256: str
    bytes: int
    profiles: tuple[dict[str, tuple[int, int, int]], ...] | None = None


@dataclass(frozen=True)
class CheckpointFile:
    file: str
    sha256: str


@dataclass(frozen=True)
class Parity:
    """How far the graphs in ONNX Runtime are from the plain PyTorch module.

    max_error: largest difference of an output, absolute or over the outputs' scale as the system's tolerance says,
    over the rows that are not apart: those with a flipped undecided edge, in half precision with any flipped edge.
    flipped: decisions that differ (S >= 0.5, or whether a link is accepted), of ``edges`` compared; undecided: of
    those that differ, the ones within 1e-6 of the threshold, not counted as flipped. sizes: the batches tried.
    """

    backend: str
    tolerance: float
    sizes: tuple[tuple[int, ...], ...]
    max_error: float
    mean_error: float
    nan: int
    edges: int
    flipped: int
    undecided: int
    allowed_flips: int = 0
    rows: int = 0
    rows_apart: int = 0

    @property
    def within_tolerance(self) -> bool:
        return self.nan == 0 and self.max_error <= self.tolerance and self.flipped <= self.allowed_flips

    def as_dict(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "within_tolerance": self.within_tolerance}

    def __str__(self) -> str:
        return (
            f"largest error {self.max_error:.1e} of {self.tolerance:.0e} allowed, {self.nan} NaN, "
            f"{self.flipped} of {self.edges:,} edges flipped"
        )


@dataclass(frozen=True)
class NetworkRecord:
    """A network of the bundle: the lengths of its weights, where they came from, and how exact its graphs are."""

    widths: Widths
    checkpoint: CheckpointFile
    parity: Parity


@dataclass(frozen=True)
class AgreementRun:
    """One way to cluster with two bundles.

    share: of the faces whose cluster is the same set of faces in both; clusters: how many, in either, None where the
    second gave no finite numbers.
    """

    inference: str
    options: dict[str, float]
    share: float
    clusters: tuple[int | None, ...]

    @property
    def way(self) -> str:
        """Say how it was clustered, as in "exact, tau = 0.8"."""
        return self.inference + "".join(f", {name} = {value:g}" for name, value in self.options.items())


@dataclass(frozen=True)
class Agreement:
    """How many faces are in the same cluster with two bundles; source: where the faces are from."""

    faces: int
    source: str
    runs: Annotated[tuple[AgreementRun, ...], Meta(min_length=1)]

    @property
    def worst(self) -> AgreementRun:
        return min(self.runs, key=lambda run: run.share)

    def as_dict(self) -> dict[str, object]:
        return {**dataclasses.asdict(self), "least": self.worst.share}

    def __str__(self) -> str:
        return (
            f"at least {self.worst.share:.2%} of {self.faces:,} faces ({self.source}) are in the same cluster as in "
            f"fp32 ({self.worst.way})"
        )


@dataclass(frozen=True)
class Products:
    """Matrix products of a pass by the type that they are computed in."""

    fp16: int
    fp32: int


@dataclass(frozen=True)
class HalfPrecision:
    """What is in half precision (keep: see ``fcdeploy.deploy.precision``), and what it does to clusters."""

    keep: str
    products: dict[str, Products]
    agreement: Agreement


@dataclass(frozen=True)
class Source:
    """The ONNX bundle that a bundle was built from."""

    bundle: str
    digest: str


@dataclass(frozen=True)
class RecipeOrigin:
    """Where a recipe is from, "given", "beside the checkpoint" or "published", and its files."""

    source: str = ""
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A bundle: its passes and networks by name, and the recipe as nested tables; target and source: of plans."""

    system: str
    feature_dim: int
    precision: str
    recipe: dict[str, object]
    passes: Annotated[dict[str, GraphFile], Meta(min_length=1, description="a table of passes")]
    networks: Annotated[dict[str, NetworkRecord], Meta(min_length=1, description="a table of networks")]
    versions: dict[str, object]
    kind: Literal["onnx", "plan"] = "onnx"
    recipe_from: RecipeOrigin = field(default_factory=RecipeOrigin)
    fp16: HalfPrecision | None = None
    target: PlanTarget | None = None
    source: Source | None = None

    def remake(self, name: str) -> str:
        """Say what to do about a bundle, called ``name``, that cannot be used as it is."""
        if self.target is None or self.source is None:
            return "export the bundle again"
        return f"rebuild it with `{self.target.command(self.source.bundle, name)}`"


def manifest_from_dict(table: Mapping[str, object], where: str) -> Manifest:
    """Read a manifest; raises InputError, which says ``where`` it stood, for one that is none or of another version."""
    if problem := misfit(Head, table, open_ended=True):
        raise InputError(f"{where}: is not a bundle's manifest ({problem}); export the bundle again.")
    if (found := typed(Head, table, where, open_ended=True).format_version) != FORMAT_VERSION:
        raise InputError(
            f"{where}: has format {found}, this fcdeploy reads up to {FORMAT_VERSION}; upgrade fcdeploy."
            if found > FORMAT_VERSION
            else f"{where}: has format {found}, of an older fcdeploy; export the bundle again."
        )
    if problem := misfit(Manifest, table, open_ended=True):
        raise InputError(f"{where}: is not a bundle's manifest ({problem}); export the bundle again.")
    manifest = typed(Manifest, table, where, open_ended=True)
    for name, network in manifest.networks.items():
        if "dim" not in network.widths:
            raise InputError(
                f"{where}: is not a bundle's manifest (networks.{name}.widths.dim is missing); export the bundle again."
            )
    of_plans = (manifest.target, manifest.source, *(of.profiles for of in manifest.passes.values()))
    if manifest.kind == PLAN and None in of_plans:
        raise InputError(
            f"{where}: is not a bundle's manifest (target, source or profiles of plans are missing); export the bundle "
            "again."
        )
    return manifest
