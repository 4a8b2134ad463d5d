"""What Python's callers want of clusters beside labels, as they give it: paths, or values."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.checked_pairs import NO_PHOTO, CheckedPairs, pairs_from_rows, read_pairs, read_photos
from fcdeploy.errors import InputError, counted
from fcdeploy.runtime.review import Review, check_flags, check_pairs
from fcdeploy.runtime.tables import Tables


@dataclass(frozen=True)
class Wanted:
    """The arguments of ``fcdeploy.cluster`` of these names."""

    table: Path | str | None = None
    clusters_table: Path | str | None = None
    drop_flagged: tuple[str, ...] = ()
    pairs: Path | str | Sequence[tuple[int, int, str]] | None = None
    same_photo: Path | str | Sequence[object] | bool | None = None  # True: of faces found in photos

    @property
    def tables(self) -> Tables:
        return Tables(*(None if path is None else Path(path) for path in (self.table, self.clusters_table)))

    def check(self) -> None:
        """Raise InputError for flags that there are not, and for tables that cannot be written."""
        check_flags(self.drop_flagged)
        files = [Path(one) for one in (self.pairs, self.same_photo) if isinstance(one, (str, Path))]
        self.tables.check(None, files)

    def review(self, n: int) -> Review:
        """Return what is wanted of n rows; raises InputError for what does not fit them, or contradicts itself."""
        pairs: CheckedPairs | None
        if self.pairs is None or isinstance(self.pairs, (str, Path)):
            pairs = None if self.pairs is None else read_pairs(self.pairs, n)
        else:
            pairs = pairs_from_rows(self.pairs, n)
        if pairs is not None:
            check_pairs(pairs, n)
        photos: np.ndarray | None = None
        if isinstance(self.same_photo, (str, Path)):
            photos = read_photos(self.same_photo, n)
        elif isinstance(self.same_photo, bool):
            raise InputError(
                f"same_photo = {self.same_photo}: is for photos, with a detector; give the photo of each face."
            )
        elif self.same_photo is not None:
            photos = photos_from_values(self.same_photo, n)
        return Review(self.tables.wanted, self.drop_flagged, pairs, photos)


def photos_from_values(values: Sequence[object], n: int) -> np.ndarray:
    """Number the photos of n faces, (n,) int32; None, NaN and "" are NO_PHOTO. Raises InputError for another number."""
    if not hasattr(values, "__len__"):
        raise InputError(f"same_photo = {values!r}: give a file, or the photo of each face.")
    if len(values) != n:
        raise InputError(
            f"same_photo: has {counted(len(values), 'photo')} for {counted(n, 'face')}; give one per face."
        )
    numbers: dict[object, int] = {None: NO_PHOTO, "": NO_PHOTO}
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    listed = [None if photo != photo else photo for photo in listed]  # NaN, as tables have it
    for face, photo in enumerate(listed):
        if not isinstance(photo, Hashable):
            raise InputError(
                f"same_photo: that of face {face:,} is {photo!r}; give a name or a number per face."
            )
        numbers.setdefault(photo, len(numbers) - 2)
    return np.array([numbers[photo] for photo in listed], np.int32)
