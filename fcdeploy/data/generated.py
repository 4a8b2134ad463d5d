"""Faces that are made up: embeddings to measure with where there are none."""

import numpy as np

PERSON = 16  # faces a person on average
SPREAD = (0.25, 0.9)  # how far a face lies from its person, over the person's own length


def generated_faces(n: int, dim: int, seed: int = 0) -> np.ndarray:
    """Return embeddings of n made-up faces, (n, dim) float32, not normalised; equal arguments give equal faces.

    People have one face to about three times the average number; some people look alike, and every face lies nearer
    to or farther from its person, so that similarities lie on both sides of any threshold.
    """
    rng = np.random.default_rng(seed)
    people = rng.standard_normal((max(2, n // PERSON), dim))
    people[1::4] = 0.6 * people[1::4] + 0.4 * people[: len(people[1::4]) * 4 : 4]
    popularity = rng.gamma(2.0, size=len(people))
    person = rng.choice(len(people), n, p=popularity / popularity.sum())
    spread = rng.uniform(*SPREAD, (n, 1))
    faces = people[person] + spread * rng.standard_normal((n, dim))
    return (faces * rng.uniform(0.5, 2.0, (n, 1))).astype(np.float32)
