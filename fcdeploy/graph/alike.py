"""How similar faces are that have nothing to do with each other, measured on a seeded sample of random pairs."""

from dataclasses import dataclass

import numpy as np

PAIRS = 1000
SEED = 11
FEWEST = 50  # faces below which a sample says little
ALIKE = 0.9  # median cosine of random pairs above which embeddings hardly tell faces apart


@dataclass(frozen=True)
class RandomPairs:
    """Cosines of a sample of pairs: below ``median`` are half of them, below ``quarter`` and ``tenth`` so many."""

    median: float
    quarter: float
    tenth: float

    @property
    def alike(self) -> bool:
        return self.median > ALIKE


def random_pairs(vectors: np.ndarray, faces: np.ndarray | None = None) -> RandomPairs:
    """Measure the cosine of pairs of different rows of ``vectors`` (n, d), or of those ``faces`` (m,); two or more.

    Rows need not have unit length; only those of the sample are read.
    """
    n = len(vectors) if faces is None else len(faces)
    draw = np.random.default_rng(SEED)
    first = draw.integers(n, size=PAIRS)
    second = (first + draw.integers(1, n, size=PAIRS)) % n
    if faces is not None:
        first, second = faces[first], faces[second]
    one, other = (np.asarray(vectors[rows], dtype=np.float64) for rows in (first, second))
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    cosines = np.einsum("ij,ij->i", one, other) / np.maximum(norms, np.finfo(np.float64).tiny)
    return RandomPairs(*np.quantile(cosines, (0.5, 0.25, 0.1)).tolist())


def alike_sentence(name: str, pairs: RandomPairs) -> str:
    """Say that random pairs of the faces called ``name`` are alike, and what to check."""
    return (
        f"{name}: random pairs of faces are similar, with a median cosine of {pairs.median:.2f}; unless nearly all "
        "faces are of one person, check the embedder's preprocessing (order of channels, mean, scale, alignment)."
    )
