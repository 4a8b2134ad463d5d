"""Where aligned crops are kept: a file each, or packed in tar archives; both are found again by photo and number."""

import io
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from fcdeploy.data.atomic import no_space_left, sync_file
from fcdeploy.errors import InputError

if TYPE_CHECKING:
    from PIL import Image

FOLDER = "faces"  # of crops, in the folder of a run
FORMS = ("jpg", "png")
QUALITY = 95  # of JPEG, with colours in full resolution
NO_SHARD = -1
SYNCING = 16  # files at once


def encoded(crop: "Image.Image", form: str) -> bytes:
    """Return a crop as the bytes of a JPEG or PNG file."""
    file = io.BytesIO()
    if form == "jpg":
        crop.save(file, "JPEG", quality=QUALITY, subsampling=0)
    else:
        crop.save(file, "PNG", compress_level=1)
    return file.getvalue()


def crop_name(photo: int, number: int, form: str) -> str:
    """Return the name of the file of face ``number`` of a photo, which is known by a hash of its line."""
    return f"{photo:016x}_{number}.{form}"


def crop_line(photo: int, number: int, form: str, shard: int) -> str:
    """Return where a crop lies, relative to the folder of a run: a file, or an archive and the member in it."""
    name = crop_name(photo, number, form)
    return f"{FOLDER}/{name[:2]}/{name}" if shard == NO_SHARD else f"{FOLDER}/{shard_name(shard)}/{name}"


def shard_name(number: int) -> str:
    return f"{number:06d}.tar"


class Crops(Protocol):
    """Takes the crops of photo after photo; what was added is safe on the disk after ``sync``."""

    def add(self, photo: int, crops: list[bytes]) -> int: ...

    def sync(self) -> None: ...

    def __enter__(self) -> "Crops": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CropFiles:
    """A file per crop, in 256 folders."""

    def __init__(self, folder: Path, form: str) -> None:
        self._folder, self._form = folder / FOLDER, form
        self._made: set[Path] = set()
        self._written: list[Path] = []

    def add(self, photo: int, crops: list[bytes]) -> int:
        """Write the crops of a photo over those that are there; returns NO_SHARD."""
        with no_space_left(self._folder):
            for number, content in enumerate(crops):
                name = crop_name(photo, number, self._form)
                place = self._folder / name[:2]
                if place not in self._made:
                    place.mkdir(parents=True, exist_ok=True)
                    self._made.add(place)
                path = place / name
                path.unlink(missing_ok=True)  # a link is not written through
                path.write_bytes(content)
                self._written.append(path)
        return NO_SHARD

    def sync(self) -> None:
        with ThreadPoolExecutor(SYNCING) as pool:  # side by side: a disk writes them together
            list(pool.map(sync_file, self._written))
        self._written.clear()

    def __enter__(self) -> "CropFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


class CropShards:
    """Tar archives, a new one after each ``sync``; next: the number of the first."""

    def __init__(self, folder: Path, form: str, next: int) -> None:
        self._folder, self._form, self._next = folder / FOLDER, form, next
        self._archive: tarfile.TarFile | None = None

    def add(self, photo: int, crops: list[bytes]) -> int:
        """Append the crops of a photo to the archive that is open; returns its number."""
        if not crops:
            return NO_SHARD
        with no_space_left(self._folder):
            if self._archive is None:
                self._folder.mkdir(exist_ok=True)
                path = self._folder / shard_name(self._next)
                path.unlink(missing_ok=True)
                self._archive = tarfile.open(path, "w")  # noqa: SIM115 - closed by sync
            for number, content in enumerate(crops):
                member = tarfile.TarInfo(crop_name(photo, number, self._form))
                member.size = len(content)
                self._archive.addfile(member, io.BytesIO(content))
        return self._next

    def sync(self) -> None:
        if self._archive is not None:
            with no_space_left(self._folder):
                self._archive.close()
            self._archive = None
            sync_file(self._folder / shard_name(self._next))
            self._next += 1

    def __enter__(self) -> "CropShards":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._archive is not None:
            self._archive.fileobj.close()
            self._archive = None


def remove_unused(folder: Path, used: set[str]) -> None:
    """Delete crops, and archives of crops, that no face is listed with any more.

    used: lines of ``crop_line``; of archives, their own.
    """
    for entry in sorted((folder / FOLDER).rglob("*")):
        line = str(entry.relative_to(folder))
        if line not in used and not entry.is_dir():
            entry.unlink()


def check_form(form: str) -> None:
    """Raise InputError for a kind of file that crops are not written as."""
    if form not in FORMS:
        raise InputError(f"crops as {form!r}: should be {' or '.join(map(repr, FORMS))}.")
