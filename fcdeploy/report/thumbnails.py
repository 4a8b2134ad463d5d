"""Thumbnails of faces in sprite sheets: a few files, whatever the number of faces."""

import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcdeploy.data.filelist import Filelist, look_up
from fcdeploy.data.images import State, import_pillow, read_thumbnail

EDGE = 96  # pixels of a thumbnail
COLUMNS = 16  # of a sheet, which has as many rows
QUALITY = 82
THREADS = 4


@dataclass(frozen=True)
class Sprites:
    """Where the thumbnail of a face lies: faces (m,) int64 ascending, row i of it is picture i of the sheets.

    shown: (m,) bool, False where the image could not be read. sheets: the names of their files.
    """

    faces: np.ndarray
    shown: np.ndarray
    sheets: tuple[str, ...]

    def place(self, face: int) -> tuple[int, int, int] | None:
        """Return sheet, column and row of a face's thumbnail, None where there is none."""
        at = int(np.searchsorted(self.faces, face))
        if at == len(self.faces) or self.faces[at] != face or not self.shown[at]:
            return None
        sheet, inner = divmod(at, COLUMNS * COLUMNS)
        return sheet, inner % COLUMNS, inner // COLUMNS


def no_sprites() -> Sprites:
    """Return sheets without a thumbnail."""
    return Sprites(np.empty(0, np.int64), np.empty(0, bool), ())


def write_sprites(
    folder: Path, files: Filelist, faces: np.ndarray, advance: Callable[[int], None] = lambda done: None
) -> Sprites:
    """Write the thumbnails of faces (m,) int64, lines of the list, ascending, into sheets in ``folder``.

    ``advance`` is told how many more are done. Raises MissingDependencyError without Pillow.
    """
    image = import_pillow()
    shown = np.zeros(len(faces), bool)
    names: list[str] = []
    per_sheet = COLUMNS * COLUMNS
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(faces), per_sheet):
            chosen = faces[start : start + per_sheet]
            lines = -(-len(chosen) // COLUMNS)
            sheet = np.full((lines * EDGE, COLUMNS * EDGE, 3), 128, np.uint8)
            found = pool.map(lambda face: pixels_of(files, face, EDGE), chosen.tolist())
            for at, pixels in enumerate(found):
                if pixels is not None:
                    y, x = (EDGE * place for place in divmod(at, COLUMNS))
                    sheet[y : y + EDGE, x : x + EDGE] = pixels
                    shown[start + at] = True
            name = f"thumbs-{len(names):03d}.jpg"
            image.fromarray(sheet).save(folder / name, "JPEG", quality=QUALITY, optimize=True)
            names.append(name)
            advance(len(chosen))
    return Sprites(faces, shown, tuple(names))


def pixels_of(files: Filelist, face: int, edge: int) -> np.ndarray | None:
    """Return one face as (edge, edge, 3) uint8, None where its image cannot be read."""
    states, _ = look_up(files, face, face + 1)  # a pipe would be waited for, for ever
    return read_thumbnail(files.source(face), edge)[1] if states[0] == State.GOOD else None


def jpeg_of(files: Filelist, face: int, edge: int) -> bytes | None:
    """Return one face as a JPEG of ``edge`` pixels, None where its image cannot be read."""
    image = import_pillow()
    pixels = pixels_of(files, face, edge)
    if pixels is None:
        return None
    written = io.BytesIO()
    image.fromarray(pixels).save(written, "JPEG", quality=QUALITY)
    return written.getvalue()


def style_of(sprites: Sprites) -> Iterator[str]:
    """Yield the rules of a style sheet that show a thumbnail as ``.s0.x1.y2``, without any style of an element."""
    for number, name in enumerate(sprites.sheets):
        yield f".s{number}{{background-image:url({name})}}"
    for at in range(COLUMNS if sprites.sheets else 0):
        yield f".x{at}{{background-position-x:calc(var(--face)*-{at})}}"
        yield f".y{at}{{background-position-y:calc(var(--face)*-{at})}}"
