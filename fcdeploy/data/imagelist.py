"""Whatever stands for a list of images: a text of paths, or a folder."""

from pathlib import Path

from fcdeploy.data.filelist import Filelist, read_filelist
from fcdeploy.data.imagefolder import filelist_from_folder
from fcdeploy.errors import InputError


def open_images(path: Path | str) -> Filelist:
    """Return the images that ``path`` stands for, as a list; raises InputError when there are none.

    A text file is a list of paths (``read_filelist``), a folder all images below it (``filelist_from_folder``).
    """
    path = Path(path)
    if path.is_dir():
        files = filelist_from_folder(path)
        if files is None:
            raise InputError(f"{path}: is a folder that holds no images.")
        return files
    return read_filelist(path)
