"""What a person has said of the faces of a run, kept in its folder: an update holds to it without being told again."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from fcdeploy.data.checked_pairs import NO_PHOTO, CheckedPairs, no_pairs
from fcdeploy.run.run import Run
from fcdeploy.run.store import Arrays
from fcdeploy.runtime.review import NOTHING, Review

KNOWN = "known"  # the artifact
KEPT = "answers that the folder keeps"


def keep_known(run: Run, known: Review) -> None:
    """Keep pairs and photos of a run's rows in its store."""
    pairs = known.pairs if known.pairs is not None else no_pairs()
    made: Arrays = {"pairs": pairs.ids, "same": pairs.same, "not_faces": pairs.not_faces}
    if known.photos is not None:
        made["photos"] = known.photos
    state = hashlib.sha256(b"".join(np.ascontiguousarray(part).data for part in made.values()))
    key = run.key_of(KNOWN, {"content": state.hexdigest(), "parts": sorted(made)})
    if run.store.load(KNOWN, key) is None:
        run.keep(KNOWN, key, made)


def known_from(arrays: Mapping[str, np.ndarray] | None) -> Review:
    """Return the pairs and photos that a folder keeps, those of line 0 of no file; nothing where it keeps none."""
    if arrays is None:
        return NOTHING
    ids = np.array(arrays["pairs"])
    lines = np.zeros(len(ids), np.int64)
    pairs = CheckedPairs(KEPT, ids, np.array(arrays["same"]), lines, 0, {}, np.array(arrays["not_faces"]))
    return Review(pairs=pairs, photos=np.array(arrays["photos"]) if "photos" in arrays else None)


def carried(known: Review, place: np.ndarray, n: int) -> Review:
    """Return the same for n rows of which ``place`` (rows,) int32 says where each is now, -1 for one that went."""
    pairs = None if known.pairs is None else known.pairs.renumbered(place)
    photos = None
    if known.photos is not None:
        photos = np.full(n, NO_PHOTO, np.int32)
        photos[place[place >= 0]] = known.photos[place >= 0]
    return Review(pairs=pairs, photos=photos)


def with_answers(known: Review, given: CheckedPairs | None) -> Review:
    """Add pairs to those that are known; what they say of two faces goes before what was said earlier."""
    if given is None:
        return known
    if known.pairs is None:
        return replace(known, pairs=given)
    said = {tuple(sorted(pair)) for pair in given.ids.tolist()}
    kept = np.array([tuple(sorted(pair)) not in said for pair in known.pairs.ids.tolist()], bool)
    placed_now = given.ids[given.same].ravel()  # the same as somebody: a face after all
    pairs = CheckedPairs(
        given.name,
        np.concatenate([known.pairs.ids[kept], given.ids]),
        np.concatenate([known.pairs.same[kept], given.same]),
        np.concatenate([known.pairs.lines[kept], given.lines]),
        given.unanswered,
        {},
        np.union1d(np.setdiff1d(known.pairs.not_faces, placed_now), given.not_faces).astype(np.int32),
    )
    return replace(known, pairs=pairs)


def with_photos(known: Review, added: np.ndarray | None, first: int, n: int) -> Review:
    """Add the photos (m,) int32 of the rows from ``first`` on, none of which is a photo of an earlier row."""
    if added is None:
        return known
    photos = np.full(n, NO_PHOTO, np.int32) if known.photos is None else known.photos.copy()
    photos[first:] = np.where(added == NO_PHOTO, NO_PHOTO, added + (int(photos.max(initial=-1)) + 1))
    return replace(known, photos=photos)
