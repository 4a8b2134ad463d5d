"""Who is in photos, as far as their user knows: of faces that are found only later, by photo or by face."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.filelist import Filelist
from fcdeploy.data.keyed_labels import KeyedLabels, read_keyed_labels
from fcdeploy.data.label_tables import ID_HEADINGS
from fcdeploy.data.label_values import UNKNOWN, shortened
from fcdeploy.data.labels import WrongNumberOfLabels, check_known, read_labels
from fcdeploy.errors import FcdeployWarning, InputError, counted
from fcdeploy.runtime.face_lists import FaceTable

PHOTOS = ("photo", "path", "file", "filename", "image")  # headings of a column of photos
FORMS = (
    "give one label per photo, in their order, or a table with a column 'photo' (paths), or 'face' (as faces.csv names "
    "them: photo#0)"
)


@dataclass(frozen=True)
class PhotoLabels:
    """What is known of n photos: of_photo (n,) int64, or of_face, by the ids that faces are going to have; not both.

    -1 is unknown.
    """

    name: str
    of_photo: np.ndarray | None = None
    of_face: dict[str, int] | None = None

    def of_faces(self, table: FaceTable, unknown: str = "ignore") -> np.ndarray:
        """Return the identities (p,) int64 of the faces that pass, -1 where unknown.

        The label of a photo counts where a single face was found in it: of several it does not say whose it is. Raises
        InputError where nobody is known and unknown ones are to be ignored.
        """
        passed = table.passed
        if self.of_face is not None:
            ids = [table.face_id(face).strip() for face in passed.tolist()]
            labels = np.array([self.of_face.get(one, UNKNOWN) for one in ids], np.int64)
            everybody = {table.face_id(face).strip() for face in range(len(table.photo))}
            missed = [one for one in self.of_face if one not in everybody]
            if missed:
                self._tell(
                    f"faces that it names and that were not found: {len(missed):,} of {len(self.of_face):,} (the first "
                    f"is {shortened(missed[0])})"
                )
        else:
            assert self.of_photo is not None
            photo = table.photo[passed]
            several = table.found.photos["count"][photo] > 1
            labels = np.where(several, UNKNOWN, self.of_photo[photo])
            unsure = int(np.count_nonzero(several & (self.of_photo[photo] != UNKNOWN)))
            if unsure:
                self._tell(
                    "in photos with several faces, a label per photo does not say whose it is; faces that therefore "
                    f"count as unknown: {unsure:,}"
                )
        check_known(labels, self.name, unknown)
        return labels

    def _tell(self, sentence: str) -> None:
        warnings.warn(f"{self.name}: {sentence}.", FcdeployWarning, stacklevel=3)


def read_photo_labels(path: Path, photos: Filelist, column: str | None = None) -> PhotoLabels:
    """Read who is in photos, before any face is found.

    path: the photos themselves, where their folders are identities; a table with a column of photos or of faces (see
    ``FORMS``), in whatever order; or one label per photo, in any form of ``read_labels``. Raises InputError for labels
    of other photos.
    """
    if path.exists() and Path(photos.name).exists() and path.samefile(photos.name):
        if photos.labels is None:
            raise InputError(f"{path}: its folders are not identities; {FORMS}.")
        return PhotoLabels(str(path), photos.labels)
    keyed = read_keyed_labels(path, column, (*ID_HEADINGS, *PHOTOS)) if path.is_file() else None
    if keyed is None:
        try:
            return PhotoLabels(str(path), read_labels(path, photos.n, column))
        except WrongNumberOfLabels as error:
            told = f"{counted(error.found, 'label')} for {counted(photos.n, 'photo')}"
            raise InputError(f"{path}: {told}; {FORMS}.") from error
    names = [photos.shown(at).strip() for at in range(photos.n)]  # tables lose the spaces around them
    return (_by_face if keyed.heading.lower() in ID_HEADINGS else _by_photo)(keyed, names)


def _by_face(keyed: KeyedLabels, names: list[str]) -> PhotoLabels:
    of_face, known = keyed.by_key(), set(names)
    if not any(face.rpartition("#")[0] in known for face in of_face):
        raise _no_photo(keyed, names)
    return PhotoLabels(keyed.name, of_face=of_face)


def _by_photo(keyed: KeyedLabels, names: list[str]) -> PhotoLabels:
    of_name, known = keyed.by_key(), set(names)
    missed = [photo for photo in of_name if photo not in known]
    if len(missed) == len(of_name):
        raise _no_photo(keyed, names)
    if missed:
        warnings.warn(
            f"{keyed.name}: photos that it names and that were not given: {len(missed):,} of {len(of_name):,} "
            f"(the first is {shortened(missed[0])}).",
            FcdeployWarning,
            stacklevel=3,
        )
    return PhotoLabels(keyed.name, np.array([of_name.get(name, UNKNOWN) for name in names], np.int64))


def _no_photo(keyed: KeyedLabels, names: list[str]) -> InputError:
    return InputError(
        f"{keyed.name}: its column '{keyed.heading}' names none of the {len(names):,} photos (its first is "
        f"{shortened(keyed.keys[0])}, the first photo is {shortened(names[0])}); write paths as the list of "
        "photos has them, relative to their folder."
    )
