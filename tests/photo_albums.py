"""Albums of generated photos, with face crops pasted into them at known places, sizes and turns."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

CROP = 112
FACE = 0.7  # of a crop's side: about what a detector calls the width of the face in it


@dataclass(frozen=True)
class Pasted:
    """A crop in a photo: which it is, the middle of it, its side in pixels and its turn in degrees, clockwise."""

    crop: int
    x: float
    y: float
    side: float
    turn: float


def background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """A photo of nothing, (width, height): soft patches of colour, boxes and lines, and a little noise."""
    width, height = size
    patches = rng.integers(40, 216, (max(2, height // 160), max(2, width // 160), 3)).astype(np.uint8)
    photo = Image.fromarray(patches).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(photo)
    for _ in range(12):
        x, y = rng.integers(0, width), rng.integers(0, height)
        w, h = rng.integers(20, max(21, width // 5)), rng.integers(20, max(21, height // 5))
        colour = tuple(rng.integers(30, 226, 3).tolist())
        if rng.random() < 0.6:
            draw.rectangle((x, y, x + w, y + h), fill=colour)
        else:
            draw.line((x, y, x + w, y + h), fill=colour, width=int(rng.integers(2, 12)))
    noisy = np.asarray(photo).astype(np.int16) + rng.integers(-4, 5, (height, width, 1))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def paste(photo: Image.Image, crop: Image.Image, at: Pasted) -> None:
    """Paste a crop into a photo as it would look there: antialiased where it is small, turned about its middle."""
    side = max(2, round(at.side))
    # Twice the size while it is turned, so that turning loses nothing; then once shrunk with a filter that averages.
    large = crop.resize((2 * side, 2 * side), Image.Resampling.BICUBIC)
    mask = Image.new("L", large.size, 255)
    turned, mask = (image.rotate(-at.turn, Image.Resampling.BICUBIC, expand=True) for image in (large, mask))
    shape = max(1, turned.width // 2), max(1, turned.height // 2)
    turned, mask = (image.resize(shape, Image.Resampling.BOX) for image in (turned, mask))
    photo.paste(turned, (round(at.x - shape[0] / 2), round(at.y - shape[1] / 2)), mask)


def places_for(
    rng: np.random.Generator,
    crops: Sequence[int],
    size: tuple[int, int],
    sides: tuple[float, float],
    turn: float,
) -> list[Pasted]:
    """Where to paste crops in a photo of ``size`` (width, height) so that none lies on another; as many as fit."""
    found: list[Pasted] = []
    for crop in crops:
        side = float(np.exp(rng.uniform(*np.log(sides))))
        reach = side * 0.75
        for _ in range(50):
            if 2 * reach >= min(size):
                break
            x, y = rng.uniform(reach, size[0] - reach), rng.uniform(reach, size[1] - reach)
            if all(max(abs(x - o.x), abs(y - o.y)) > reach + 0.75 * o.side for o in found):
                found.append(Pasted(crop, x, y, side, float(rng.uniform(-turn, turn))))
                break
    return found


def write_album(
    folder: Path,
    crops: Sequence[Image.Image],
    people: np.ndarray,
    *,
    photos: int,
    faces: tuple[int, int] = (1, 8),
    size: tuple[int, int] = (1280, 960),
    sides: tuple[float, float] = (90, 300),
    turn: float = 20,
    seed: int = 0,
) -> list[list[Pasted]]:
    """Write photos 0000.jpg and on, each with some crops of different people; returns what is in each."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    pasted = []
    for at in range(photos):
        order = rng.permutation(len(crops))
        _, first = np.unique(people[order], return_index=True)
        chosen = order[np.sort(first)][: rng.integers(faces[0], faces[1] + 1)].tolist()
        photo = background(rng, size)
        places = places_for(rng, chosen, size, sides, turn)
        for place in places:
            paste(photo, crops[place.crop], place)
        photo.save(folder / f"{at:04}.jpg", quality=92)
        pasted.append(places)
    return pasted


def matched(places: Sequence[Pasted], centres: np.ndarray) -> list[int | None]:
    """Which of the faces with ``centres`` (n, 2) is each pasted one: the nearest within half its side; None is none."""
    found: list[int | None] = []
    for place in places:
        away = np.hypot(*(centres - [place.x, place.y]).T) if len(centres) else np.zeros(0)
        at = int(away.argmin()) if len(away) else None
        found.append(at if at is not None and away[at] < place.side / 2 else None)
    return found


def as_bytes(image: Image.Image, form: str, **options: object) -> bytes:
    """An image as the bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()
