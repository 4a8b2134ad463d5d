"""How many of the true neighbors an approximate search found, measured on a sample of faces."""

from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from fcdeploy.graph.faiss_library import import_faiss
from fcdeploy.graph.knn import KnnGraph

SAMPLE = 500
SEED = 7


class RecallFigures(TypedDict):
    """A ``Recall`` in JSON."""

    sample: int
    all: float
    above: float
    threshold: float


@dataclass(frozen=True)
class Recall:
    """all: share of the k true neighbors found; above: of those with similarity ``threshold`` or more."""

    sample: int
    all: float
    above: float
    threshold: float

    def as_dict(self) -> RecallFigures:
        """Give the figures as plain numbers, ready for JSON."""
        return {
            "sample": self.sample,
            "all": self.all,
            "above": self.above,
            "threshold": self.threshold,
        }


def measure_recall(vectors: np.ndarray, graph: KnnGraph, threshold: float) -> Recall:
    """Compare ``graph`` with exact lists on a seeded sample; vectors: (n, d) float32 unit rows."""
    faiss = import_faiss()
    n, k = graph.ids.shape
    sample = np.sort(np.random.default_rng(SEED).choice(n, min(n, SAMPLE), replace=False))
    sims, ids = faiss.knn(
        np.ascontiguousarray(vectors[sample]), vectors, k, metric=faiss.METRIC_INNER_PRODUCT
    )
    found = np.array([np.isin(true, got) for true, got in zip(ids, graph.ids[sample], strict=True)])
    near = sims >= threshold
    return Recall(
        len(sample), float(found.mean()), float(found[near].mean()) if near.any() else 1.0, threshold
    )
