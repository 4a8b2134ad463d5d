"""Whether a width that was divided out of a file's size and a number of labels is that of its rows.

Labels of another number of faces may divide the size as well: 200 labels for 400 faces of 128 values make 200 rows of
256. Values of raw rows repeat with the width of a row, as each column of an embedding has a mean of its own, and
neighbors in a file are often of one person; and faces of one identity are more similar than others.
"""

import numpy as np

from fcdeploy.data.features import Features
from fcdeploy.errors import InputError, counted

VALUES = 1 << 20  # at the beginning of the file
FACTORS = range(2, 17)  # by which a width may be too large or too small
REPEATS = 0.05  # correlation of values a row apart that stands out
PAIRS, LEAST_PAIRS = 4096, 30
CHANCE = 0.6  # share of pairs of one identity that are more similar than any pair; 0.5 is chance


def check_width(features: Features, labels: np.ndarray, where: str) -> None:
    """Raise InputError when rows are likely to be of another width than the ``labels`` (n,), of ``where``, make them.

    features: raw rows, whose number is that of the labels.
    """
    width, n = features.dim, features.n
    advice = f"give the labels of these faces, or the true width as --dim (--dim {width} if this is it)"
    read = (
        f"{features.name}: by the {counted(n, 'label')} of {where} it holds rows of "
        f"{counted(width, 'float32 value')}"
    )
    if other := _repeats_with_another_width(features):
        raise InputError(
            f"{read}, but its values repeat with a period of {other}, as {n * width // other:,} rows would; {advice}."
        )
    share = _alike_within_identities(features, labels)
    if share is not None and share < CHANCE:
        raise InputError(
            f"{read}, but faces of one identity are then no more alike than any others ({share:.0%} of pairs are, 50 % "
            f"by chance); {advice}."
        )


def _repeats_with_another_width(features: Features) -> int | None:
    width, n = features.dim, features.n
    rows = min(n, max(2, VALUES // width))
    flat = np.asarray(features.array[:rows], np.float64).ravel()
    if not np.isfinite(flat).all():
        return None
    flat = flat - flat.mean()
    power = float((flat * flat).mean())
    if power == 0:
        return None
    stands_out = max(REPEATS, 6 / np.sqrt(len(flat)))

    def repeats(lag: int) -> float:
        return float((flat[:-lag] * flat[lag:]).mean()) / power if lag < len(flat) // 2 else 0.0

    own = repeats(width)
    for factor in FACTORS:
        if width % factor == 0 and width // factor > 1:
            found = repeats(width // factor)
            if found > stands_out and found > 0.8 * own:
                return width // factor
    for factor in FACTORS:
        if n % factor == 0:
            found = repeats(width * factor)
            if found > stands_out and own < 0.25 * found:
                return width * factor
    return None


def _alike_within_identities(features: Features, labels: np.ndarray) -> float | None:
    """Return the share of pairs of one identity that are more similar than a random pair; None for too few pairs."""
    known = np.flatnonzero(labels != -1)
    order = known[np.argsort(labels[known], kind="stable")]
    same = np.flatnonzero(labels[order[1:]] == labels[order[:-1]])
    if len(same) < LEAST_PAIRS:
        return None
    rng = np.random.default_rng(0)
    same = rng.choice(same, min(PAIRS, len(same)), replace=False)
    within = _cosines(features, order[same], order[same + 1])
    one, other = rng.integers(0, len(labels), (2, len(same)))
    apart = labels[one] != labels[other]
    between = _cosines(features, one[apart], other[apart])
    within, between = within[np.isfinite(within)], np.sort(between[np.isfinite(between)])
    if len(within) < LEAST_PAIRS or len(between) < LEAST_PAIRS:
        return None
    return float(np.searchsorted(between, within, "left").mean() / len(between))


def _cosines(features: Features, one: np.ndarray, other: np.ndarray) -> np.ndarray:
    a, b = (np.asarray(features.array[rows], np.float64) for rows in (one, other))
    with np.errstate(all="ignore"):
        return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
