"""Make the four photos of `make photos` from two portraits in the public domain; see README.md.

python make_album.py astronaut.png grace_hopper.jpg album/
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SIZE = (960, 640)
# Of each photo: which portrait, its height in pixels, left, top, degrees it is turned by, mirrored, brightness.
PHOTOS = (
    ((0, 420, 60, 140, 6, False, 1.0), (1, 360, 540, 200, -8, False, 0.9)),
    ((1, 500, 200, 60, 4, True, 1.1), (0, 260, 680, 300, 12, True, 0.8)),
    ((0, 560, 240, 40, -14, False, 0.85),),
    ((1, 240, 90, 320, 15, False, 1.2), (0, 330, 420, 220, -5, True, 1.15), (1, 200, 760, 60, 0, True, 0.75)),
)


def wall(rng: np.random.Generator) -> Image.Image:
    """A background of soft patches of colour."""
    patches = rng.integers(70, 190, (4, 6, 3)).astype(np.uint8)
    return Image.fromarray(patches).resize(SIZE, Image.Resampling.BICUBIC)


def main(first: str, second: str, album: str) -> None:
    portraits = [Image.open(path).convert("RGB") for path in (first, second)]
    for number, faces in enumerate(PHOTOS, 1):
        photo = wall(np.random.default_rng(number))
        for which, height, left, top, turn, mirrored, brightness in faces:
            portrait = portraits[which]
            portrait = portrait.resize((round(portrait.width * height / portrait.height), height))
            portrait = ImageOps.mirror(portrait) if mirrored else portrait
            portrait = ImageEnhance.Brightness(portrait).enhance(brightness)
            mask = Image.new("L", portrait.size, 255)
            turned, mask = (
                image.rotate(turn, Image.Resampling.BICUBIC, expand=True) for image in (portrait, mask)
            )
            photo.paste(turned, (left, top), mask)
        photo.save(Path(album) / f"{number}.jpg", quality=88)


if __name__ == "__main__":
    main(*sys.argv[1:])
