"""Whether neighbor lists that somebody else made are lists of these faces: a sample is compared with the features.

Exact lists, lists of approximate searches (IVF, HNSW), and similarities that were rounded (float16) or quantised (PQ)
pass: their neighbors are near, and their similarities are those of the features up to noise. Lists of other faces, or
of the same in another order, and distances in the place of similarities do not. Lists from another embedding of the
same faces pass, too: NSR-FC re-scores refined features on the lists of the original ones.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fcdeploy.data.features import Features
from fcdeploy.errors import FcdeployError, InputError
from fcdeploy.graph.lists import ListsFile

LISTS = 128  # of the sample
COLUMNS = 32  # of each, evenly spread
OTHERS = 256  # random faces that neighbors are compared with
SEED = 0
LIST_BYTES = 32 << 20  # read at a time
ENTRY_BYTES = 16
CLOSE = 0.02  # what rounding changes in a similarity; float16 0.0005, an 8-bit quantiser 0.01
NOISY, ALIKE = (
    0.15,
    0.6,
)  # median error of product quantisation, and the correlation within lists that remains
SORTED = 0.02  # by how much a similarity may exceed the one before it
ORDERED = 0.5  # rank correlation of place and similarity of lists that hold none; 1 is sorted
RERANKED = -0.1  # of re-ranked lists, whose order is another one; reversed ones are below
SHIFTS = [
    sign * by for by in range(1, 9) for sign in (1, -1)
]  # rows that were put in or taken out before a face
SHIFTED, FITS = 0.9, 0.95  # rank correlation below which shifts are tried, and that of one that fits
SAME_FACES = 0.4  # rank correlation with similarities by another embedding of the same faces
MOST_WRONG = 0.05  # of the lists looked at


@dataclass(frozen=True)
class Sample:
    """Some lists, and what the features say of them.

    faces: (s,) rows of the file; ids: (s, c) int64, -1 where an entry is no face or the face itself; columns: (c,)
    where they stand; stored: (s, c) float64, the file's own values, or None. cosines, inner, squared: (s, c) float64,
    between the face and each neighbor: cosine similarity, inner product and squared distance of the rows as they are.
    others: (s, o) cosine similarities to random faces. What is not known is NaN. shifted(by): the cosines if all were
    ``by`` rows further on in the features.
    """

    faces: np.ndarray
    ids: np.ndarray
    columns: np.ndarray
    stored: np.ndarray | None
    cosines: np.ndarray
    inner: np.ndarray
    squared: np.ndarray
    others: np.ndarray
    shifted: Callable[[int], np.ndarray]


def check_lists_of(
    lists: ListsFile,
    features: Features,
    *,
    unit: bool = True,
    reranked: bool = False,
    sorted_later: bool = False,
) -> None:
    """Raise InputError, with row and values, when ``lists`` are not lists of the faces of ``features``.

    lists: of all rows that the features' file has. unit: whether rows get divided by their length; if not, inner
    products of the rows as they are will do, too. reranked: their similarities are of another kind, and order is only
    looked at for being reversed. sorted_later: whether they get sorted by similarity, so that any order will do.
    """
    sample = draw_sample(lists, features)
    if not len(sample.faces) or sample.ids.shape[1] == 0:
        return
    where = f"{lists.path}"
    if not reranked and sample.stored is not None:
        _check_values(sample, where, features.name, lists, unit)
    _check_near(sample, where, features.name, lists.n, lists.k)
    if reranked:
        _check_order_of_ids(sample, where, features.name, RERANKED)
    elif not sorted_later:
        _check_order(sample, where, features.name, lists.holds)


def draw_sample(lists: ListsFile, features: Features) -> Sample:
    """Read some lists and the rows that they name; the same ones each time."""
    rng = np.random.default_rng(SEED)
    n, k = lists.n, lists.k
    mine = np.arange(n) if features.chosen is None else features.chosen
    faces = np.sort(rng.choice(mine, min(LISTS, len(mine)), replace=False))
    columns = np.unique(np.linspace(0, k - 1, min(k, COLUMNS)).astype(np.int64))
    ids, stored = _rows_at(lists, faces)
    ids = ids[:, columns]
    if stored is not None:
        stored = stored[:, columns].astype(np.float64)
        stored[~np.isfinite(stored)] = np.nan  # of a bad row, or refused when all lists are read
        stored = 1 - stored if lists.holds == "1 - cosine" else stored  # as they stand in the file
    with np.errstate(invalid="ignore"):
        real = (ids >= 0) & (ids < n) & (ids == np.floor(ids))
    whole = np.where(real, ids, -1).astype(np.int64)
    whole[whole == faces[:, None]] = -1
    if features.chosen is not None:
        whole[~np.isin(whole, mine)] = -1
    others = np.sort(rng.choice(mine, min(OTHERS, len(mine)), replace=False))
    wanted, place = np.unique(np.concatenate([faces, others, whole[whole >= 0]]), return_inverse=True)
    rows = _raw(features, wanted)
    with np.errstate(all="ignore"):
        lengths = np.linalg.norm(rows, axis=1)
        unit = rows / lengths[:, None]
        at_faces, at_others = place[: len(faces)], place[len(faces) : len(faces) + len(others)]
        between = unit[at_faces] @ unit[at_others].T
        between[faces[:, None] == others] = np.nan
        cosines = np.full(whole.shape, np.nan)
        inner, squared = cosines.copy(), cosines.copy()
        at = np.full(whole.shape, -1)
        at[whole >= 0] = place[len(faces) + len(others) :]
        for row, (own, its) in enumerate(zip(at_faces, at, strict=True)):
            some = its >= 0
            cosines[row, some] = unit[its[some]] @ unit[own]
            inner[row, some] = rows[its[some]] @ rows[own]
            squared[row, some] = ((rows[its[some]] - rows[own]) ** 2).sum(axis=1)
    return Sample(
        faces,
        whole,
        columns,
        stored,
        cosines,
        inner,
        squared,
        between,
        lambda by: _shifted_cosines(features, faces, whole, by),
    )


def _shifted_cosines(features: Features, faces: np.ndarray, ids: np.ndarray, by: int) -> np.ndarray:
    n = features.given
    cosines = np.full(ids.shape, np.nan)
    inside = (faces + by >= 0) & (faces + by < n)
    real = (ids >= 0) & (ids + by >= 0) & (ids + by < n) & inside[:, None]
    wanted, place = np.unique(np.concatenate([faces[inside], ids[real]]) + by, return_inverse=True)
    rows = _raw(features, wanted)
    with np.errstate(all="ignore"):
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        own = np.full(len(faces), -1)
        own[inside] = place[: inside.sum()]
        at = np.full(ids.shape, -1)
        at[real] = place[inside.sum() :]
        for row in np.flatnonzero(inside):
            some = at[row] >= 0
            cosines[row, some] = rows[at[row, some]] @ rows[own[row]]
    return cosines


def _raw(features: Features, rows: np.ndarray) -> np.ndarray:
    """Return rows of the file as they are, (m, d) float64."""
    return np.asarray(features.array[rows]).astype(np.float64)


def _rows_at(lists: ListsFile, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return ids and values of the lists of ``faces``, ascending; blocks are as large as memory allows."""
    rows = max(1, LIST_BYTES // (ENTRY_BYTES * lists.k))
    while True:
        try:
            ids, values = [], []
            for start, block, own in lists.blocks(rows, np.zeros(lists.n, dtype=bool)):
                here = faces[(faces >= start) & (faces < start + len(block))] - start
                ids.append(np.array(block[here]))
                if own is not None:
                    values.append(np.array(own[here]))
            return np.concatenate(ids), np.concatenate(values) if values else None
        except MemoryError as error:
            if rows == 1:
                raise FcdeployError(
                    f"{lists.path}: there is not enough memory for one list at a time."
                ) from error
            rows //= 2


def _worst_entry(bad: np.ndarray, score: np.ndarray) -> tuple[int, int]:
    """Return the row and column, within the sample, of the worst entry of the first row that is ``bad`` (s,)."""
    row = int(np.argmax(bad))
    return row, int(np.nanargmax(np.where(np.isfinite(score[row]), score[row], -np.inf)))


def _no_nearer(sample: Sample, share: float) -> np.ndarray:
    """Tell which lists hold neighbors that are no nearer than random faces; share: of all faces that a list holds."""
    if share > 0.5:
        return np.zeros(len(sample.faces), dtype=bool)
    nearer = np.full(len(sample.faces), np.nan)
    for row, (own, other) in enumerate(zip(sample.cosines, sample.others, strict=True)):
        own, other = own[np.isfinite(own)], other[np.isfinite(other)]
        if len(own) and len(other):
            nearer[row] = np.mean(own[:, None] >= other - 1e-6)
    with np.errstate(invalid="ignore"):
        # Lists of the nearest are nearer than 1 - share / 2 of all, lists of any faces than half of them.
        return nearer < 0.75 - share / 4


def _check_near(sample: Sample, where: str, name: str, n: int, k: int) -> None:
    """Neighbors are nearer than random faces are, as far as there are others that a list does not hold."""
    wrong = _no_nearer(sample, k / n)
    if wrong.mean() <= MOST_WRONG:
        return
    row = int(np.argmax(wrong))
    own = np.nanmean(sample.cosines[row])
    other = np.nanmean(sample.others[row])
    raise InputError(
        f"{where}: {int(wrong.sum())} of {len(wrong)} lists checked hold neighbors no nearer than random faces; "
        f"those of row {sample.faces[row]}, counted from 0, have the mean cosine similarity {own:.2f}, and random "
        f"faces {other:.2f}, by {name}. The lists belong to other faces or to another order of them; make them again "
        "from these features, or leave them out."
    )


def _check_values(sample: Sample, where: str, name: str, lists: ListsFile, unit: bool) -> None:
    """The stored values are the similarities, or 1 - similarity, that the form of ``lists`` says."""
    assert sample.stored is not None
    holds = lists.holds
    wanted = 1 - sample.stored if holds == "1 - cosine" else sample.stored
    right = [sample.cosines] if unit else [sample.cosines, sample.inner]
    error = np.min(
        [np.abs(wanted - values) for sims in right for values in (sims, np.clip(sims, 0, 1))], axis=0
    )
    known = np.isfinite(error).any(axis=1)
    if not known.any():
        return
    sample, error, wanted = _rows_of(sample, known), error[known], wanted[known]
    medians = np.nanmedian(error, axis=1)
    bad = medians > CLOSE
    if bad.sum() <= MOST_WRONG * len(bad):
        return
    by = _shift_that_fits(sample, wanted, bad)
    other = _what(sample, holds)
    if not by and not other and unit and np.nanmax(np.abs(wanted)) > 1 + NOISY:
        assert sample.stored is not None
        low, high = np.nanmin(sample.stored), np.nanmax(sample.stored)
        span = "0 to 2" if holds == "1 - cosine" else "-1 to 1"
        raise InputError(
            f"{where}: holds values of {low:.4g} to {high:.4g} where {_plural(holds)}, {span}, are expected. Store "
            "these, or the ids alone."
        )
    if not by and not other:
        if np.median(medians[bad]) <= NOISY and _correlation(wanted[bad], sample.cosines[bad]) >= ALIKE:
            return  # quantised
        near = _no_nearer(sample, lists.k / lists.n).mean() <= MOST_WRONG
        if near and _correlation(_ranks(wanted), _ranks(sample.cosines)) >= SAME_FACES:
            return  # by another embedding of these faces
    assert sample.stored is not None
    row, column = _worst_entry(bad, error)
    found, cosine = sample.stored[row, column], sample.cosines[row, column]
    expected, kind = (1 - cosine, holds) if holds == "1 - cosine" else (cosine, "cosine similarity")
    told = (
        f"row {sample.faces[row]}, counted from 0, has the value {found:.4g} for its neighbor "
        f"{sample.ids[row, column]}, whose {kind} is {expected:.4g} by {name}"
    )
    if other and not by:
        what, advice = other
        raise InputError(f"{where}: holds {what} where {_plural(holds)} are expected: {told}. {advice}")
    raise InputError(
        f"{where}: {told}; {int(bad.sum())} of {len(bad)} lists checked differ like this. {_fits(by)}The lists "
        "belong to other faces or to another order of them; make them again from these features, or leave them out."
    )


def _shift_that_fits(sample: Sample, wanted: np.ndarray, bad: np.ndarray) -> int:
    """Return by how many rows lists have to be moved for their values to be right, 0 if there is no such number."""
    for by in SHIFTS:
        error = np.abs(wanted - sample.shifted(by))[bad]
        known = np.isfinite(error).sum(axis=1) > 1
        if known.any() and np.mean(np.nanmedian(error[known], axis=1) <= CLOSE) > 0.5:
            return by
    return 0


def _fits(by: int) -> str:
    if not by:
        return ""
    rows = "row" if abs(by) == 1 else "rows"
    return f"They would fit {abs(by)} {rows} {'further on' if by > 0 else 'before'}. "


def _plural(holds: str) -> str:
    return "distances 1 - cosine" if holds == "1 - cosine" else "cosine similarities"


def _what(sample: Sample, holds: str) -> tuple[str, str] | None:
    """Name what the stored values are, by comparison with all that they might be, and say how to convert it."""
    found, cosines = sample.stored, sample.cosines
    assert found is not None
    with np.errstate(invalid="ignore"):
        known: dict[str, tuple[np.ndarray, str]] = {
            "cosine similarities": (cosines, "v"),
            "distances 1 - cosine": (1 - cosines, "1 - v"),
            "squared Euclidean distances of unit rows": (2 - 2 * cosines, "1 - v / 2"),
            "Euclidean distances of unit rows": (np.sqrt(np.maximum(2 - 2 * cosines, 0)), "1 - v ** 2 / 2"),
            "angles": (np.arccos(np.clip(cosines, -1, 1)), "np.cos(v)"),
            "similarities in percent": (100 * cosines, "v / 100"),
            "inner products of rows that are not of unit length": (sample.inner, ""),
            "squared Euclidean distances of rows that are not of unit length": (sample.squared, ""),
            "Euclidean distances of rows that are not of unit length": (np.sqrt(sample.squared), ""),
        }
        errors = {}
        for what, (values, _) in known.items():
            scale = np.maximum(1.0, np.abs(values))
            errors[what] = np.nanmean(np.abs(found - values) > CLOSE * scale)
    best = min(errors, key=lambda what: errors[what])
    if errors[best] > 0.1 or best == _plural(holds):
        return None
    formula = known[best][1]
    if not formula:
        return best, "Store cosine similarities, of rows divided by their lengths, or the ids alone."
    target = formula
    if holds == "1 - cosine":
        target = {"v": "1 - v", "1 - v": "v"}.get(formula, f"1 - ({formula})")
    return best, f"Store {target} in the place of each value v, or the ids alone."


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two (s, c) within rows: each row's mean is taken away before."""
    some = np.isfinite(one).any(axis=1) & np.isfinite(other).any(axis=1)
    one, other = one[some], other[some]
    one, other = (values - np.nanmean(values, axis=1, keepdims=True) for values in (one, other))
    both = np.isfinite(one) & np.isfinite(other)
    one, other = one[both], other[both]
    size = np.sqrt((one**2).sum() * (other**2).sum())
    return float((one * other).sum() / size) if size > 0 else 1.0


def _check_order(sample: Sample, where: str, name: str, holds: str) -> None:
    """Similarities do not rise along a list."""
    if sample.stored is None:
        _check_order_of_ids(sample, where, name, ORDERED)
        return
    sims = 1 - sample.stored if holds == "1 - cosine" else sample.stored
    for face, ids, values in zip(sample.faces, sample.ids, sims, strict=True):
        some = ids >= 0
        shown, kept, places = values[some], ids[some], sample.columns[some]
        rises = np.diff(shown) > SORTED
        if rises.any():
            at = int(np.argmax(rises))
            raise InputError(
                f"{where}: the list of row {face}, counted from 0, is not sorted: its neighbor {kept[at]} (column "
                f"{places[at]}) has the similarity {shown[at]:.4g}, and {kept[at + 1]} (column {places[at + 1]}) has "
                f"{shown[at + 1]:.4g}; sort every list, the most similar first."
            )


def _check_order_of_ids(sample: Sample, where: str, name: str, least: float) -> None:
    """Neighbors come in the order of their similarity by the features, as a tendency."""
    clear = [
        row
        for row, values in enumerate(sample.cosines)
        if np.isfinite(values).sum() > 2 and np.nanmax(values) - np.nanmin(values) > SORTED
    ]
    if not clear:
        return
    ranks, places = (
        _ranks(sample.cosines[clear]),
        _ranks(-np.where(sample.ids[clear] >= 0, sample.columns, np.nan)),
    )
    found, by = _correlation(ranks, places), 0
    if least >= ORDERED and found < SHIFTED:
        by = next((by for by in SHIFTS if _correlation(_ranks(sample.shifted(by)[clear]), places) >= FITS), 0)
    if found >= least and not by:
        return
    row = min(
        clear, key=lambda row: _correlation(ranks[clear.index(row)][None], places[clear.index(row)][None])
    )
    values = sample.cosines[row]
    some = np.flatnonzero(np.isfinite(values))
    first, best = some[0], some[np.argmax(values[some])]
    raise InputError(
        f"{where}: is not sorted by similarity: in the list of row {sample.faces[row]}, counted from 0, neighbor "
        f"{sample.ids[row, best]} (column {sample.columns[best]}) has the similarity {values[best]:.4g} by {name}, and "
        f"{sample.ids[row, first]} (column {sample.columns[first]}), which stands before it, {values[first]:.4g}. "
        f"{_fits(by)}Put the most similar first, or make lists of these same faces."
    )


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return the ranks within each row, NaN where a value is."""
    ranks = np.argsort(np.argsort(values, axis=1, kind="stable"), axis=1, kind="stable").astype(np.float64)
    ranks[~np.isfinite(values)] = np.nan
    return ranks


def _rows_of(sample: Sample, rows: np.ndarray) -> Sample:
    parts: dict[str, np.ndarray] = {
        part: getattr(sample, part)[rows]
        for part in ("faces", "ids", "cosines", "inner", "squared", "others")
    }
    stored = None if sample.stored is None else sample.stored[rows]
    return Sample(columns=sample.columns, stored=stored, shifted=lambda by: sample.shifted(by)[rows], **parts)
