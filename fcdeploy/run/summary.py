"""What runs say of themselves at the end: the JSON of ``--json`` and of ``summary.json``, as far as it has a shape.

A key is there where it applies: ``quality`` with true identities, ``workers`` where there were some, and so on.
"""

from typing import TypedDict

from fcdeploy.clustering.metrics import Measures
from fcdeploy.graph.recall import RecallFigures


class StageFigures(TypedDict, total=False):
    """What a stage took; bytes that it copied, where there is a GPU."""

    seconds: float
    faces_per_s: float
    to_device: int
    from_device: int


class FeaturesRead(TypedDict):
    """The features of a run, and how they were read."""

    name: str
    rows: int
    computed: int
    width: int
    dtype: str
    normalized: bool
    read_as: str


class ComputedBy(TypedDict, total=False):
    """On what something was computed, with what limits, and by which versions of libraries."""

    device: dict[str, str]
    batch: int
    limits: dict[str, int]
    versions: dict[str, str]


class Computed(TypedDict):
    """What a run computed, see ``runtime.computed``."""

    system: str
    inference: dict[str, str]
    search: dict[str, dict[str, object]]
    settings: dict[str, object]
    options: dict[str, object]
    engine: dict[str, str]
    device: dict[str, str]
    features: FeaturesRead
    limits: dict[str, int]
    versions: dict[str, str]


class WorkersFigures(TypedDict):
    """How many workers there were, and what they did."""

    workers: int
    blocks: int
    blocks_again: int
    workers_lost: int
    seconds: dict[str, float]


class Figures(TypedDict, total=False):
    """What a flow has to say of its faces and clusters, beside a sentence."""

    duplicates: dict[str, object]
    random_pairs_cosine: float
    largest_cluster: int
    clustered_unasked: int
    united: dict[str, int]
    max_size: dict[str, int]
    proposals_too_large: int


class ListSummary(TypedDict, total=False):
    """What became of a list of images that were embedded."""

    lines: int
    bad: int
    reasons: dict[str, int]
    resized: int
    stretched: int
    embedder: dict[str, str]
    skipped: dict[str, int]
    notes: list[str]


class EmbedSummary(ListSummary, total=False):
    """What ``fcdeploy embed --json`` prints."""

    rows: int
    dim: int
    input: str
    seconds: float
    computed: ComputedBy
    random_pairs_cosine: float


class FacesSummary(TypedDict, total=False):
    """What ``fcdeploy faces --json`` prints."""

    photos: int
    bad_photos: int
    reasons: dict[str, int]
    photos_without_faces: int
    faces_found: int
    faces: int
    gated: int
    gated_by: dict[str, int]
    seconds: float
    stages: dict[str, StageFigures]
    detector: dict[str, str]
    embedder: dict[str, str]
    computed: ComputedBy
    skipped: dict[str, int]


class ReviewFigures(TypedDict, total=False):
    """What became of clusters that a person or a flag had a word in, and how many have each flag."""

    constraints: dict[str, int]
    dropped: dict[str, dict[str, int]]
    flags: dict[str, int]


class RowCounts(TypedDict):
    """How many rows there are, how many are bad, and why."""

    rows: int
    bad: int
    reasons: dict[str, int]


class Summary(Figures, ListSummary, ReviewFigures, total=False):
    """What ``fcdeploy cluster --json`` prints."""

    faces: int
    clusters: int
    singletons: int
    uncovered: int
    rows: int
    peak_bytes: int
    stages: dict[str, StageFigures]
    copied: dict[str, int]
    recall: dict[str, RecallFigures]
    computed: Computed
    workers: WorkersFigures
    quality: Measures
    photos: FacesSummary
