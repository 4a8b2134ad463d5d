"""Image files to pixels of one size and one kind; what cannot be read is told, not raised."""

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from fcdeploy.errors import MissingDependencyError

if TYPE_CHECKING:
    from PIL import Image

# Formats that are pictures and begin with a signature: nothing is guessed, and no PostScript is run.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_PIXELS = 25_000_000
PILLOW_LIMIT = 178_956_970  # pixels beyond which Pillow itself refuses
STRETCH = 0.02  # difference in shape that still counts as none
ORIENTATION = 0x0112  # EXIF tag
TRANSPOSES = {  # EXIF orientation -> what turns the picture upright
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


class State(IntEnum):
    """What became of a line of a list; from BLANK on it has no embedding."""

    GOOD = 0
    RESIZED = 1
    STRETCHED = 2
    BLANK = 16
    MISSING = 17
    NOT_A_FILE = 18
    UNREADABLE = 19
    EMPTY = 20
    NOT_AN_IMAGE = 21
    DAMAGED = 22
    TOO_LARGE = 23
    UNCONVERTIBLE = 24
    NOT_FINITE = 25
    ALL_ZERO = 26


FIRST_BAD = State.BLANK
REASONS = {
    State.BLANK: "blank line",
    State.MISSING: "no such file",
    State.NOT_A_FILE: "not a file",
    State.UNREADABLE: "may not be read",
    State.EMPTY: "empty file",
    State.NOT_AN_IMAGE: "not an image of a known format",
    State.DAMAGED: "damaged or cut short",
    State.TOO_LARGE: "more than {max_pixels:,} pixels",
    State.UNCONVERTIBLE: "pixels of 32 bits or floating point",
    State.NOT_FINITE: "embedding not finite",
    State.ALL_ZERO: "embedding all zero",
}


class _Unconvertible(Exception):
    """The pixels have no meaning in 0..255."""


def read_image(
    path: bytes, size: tuple[int, int], channels: str, max_pixels: int
) -> tuple[State, np.ndarray | None]:
    """Read an image upright, in 8 bits a channel and at the size that is asked for.

    size: (height, width); channels: 'rgb', 'bgr' or 'gray'. The first frame of several. EXIF orientation is applied;
    greyscale, palette, CMYK and 16-bit pixels are converted, transparent ones lie on black; another size is resized,
    bilinear with antialiasing. Returns GOOD, RESIZED or STRETCHED (of another shape) and (height, width, c) uint8, or
    why there is none. The number of pixels is read off the header before anything is decoded.
    """
    from PIL import Image, UnidentifiedImageError

    known = [name for name in FORMATS if name in Image.OPEN]
    try:
        with open(path, "rb") as file:
            try:
                image = Image.open(file, formats=known)
            except UnidentifiedImageError:
                return State.NOT_AN_IMAGE, None
            if image.width * image.height > max_pixels:
                return State.TOO_LARGE, None
            image.load()
            state, resized = _resized(_as_rgb(_upright(image)), size)
            if channels == "gray":
                return state, np.asarray(resized.convert("L"))[..., None]
            pixels = np.asarray(resized)
            return state, pixels[..., ::-1] if channels == "bgr" else pixels
    except Image.DecompressionBombError:
        return State.TOO_LARGE, None
    except _Unconvertible:
        return State.UNCONVERTIBLE, None
    except MemoryError:
        raise
    except OSError as error:
        # Pillow's own complaints about the content carry no number.
        return (State.DAMAGED if error.errno is None else State.UNREADABLE), None
    except Exception:  # damaged files make Pillow's readers raise nearly anything
        return State.DAMAGED, None


def import_pillow() -> Any:
    """Import Pillow with all its readers, or raise MissingDependencyError with the command that installs it."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingDependencyError(
            "Pillow is not installed; install it with `pip install 'fcdeploy[cpu,embed]'`."
        ) from error
    Image.init()
    return Image


def _upright(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # a picture with damaged EXIF is a picture
        return image
    name = TRANSPOSES.get(orientation)
    return image.transpose(Image.Transpose[name]) if name else image


def _as_rgb(image: "Image.Image") -> "Image.Image":
    from PIL import Image

    if image.mode == "F":
        raise _Unconvertible
    if image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), layer)
    try:
        return image if image.mode == "RGB" else image.convert("RGB")
    except ValueError as error:
        raise _Unconvertible from error


def _eight_bits(pixels: np.ndarray) -> np.ndarray:
    """Scale 16-bit pixels, in whatever integer type, to uint8; raises _Unconvertible for larger ones."""
    if pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise _Unconvertible
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _resized(image: "Image.Image", size: tuple[int, int]) -> tuple[State, "Image.Image"]:
    from PIL import Image

    height, width = size
    if image.size == (width, height):
        return State.GOOD, image
    stretched = abs(image.width * height - image.height * width) > STRETCH * image.height * width
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return (State.STRETCHED if stretched else State.RESIZED), resized
